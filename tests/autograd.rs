//! What the tape records, what it keeps, and what that costs on the device.

use std::sync::Arc;

use graftwork::autograd::{Grads, Segment, Tape, Var};
use graftwork::ops::{LowRank, Mid, frozen_linear, linear};
use graftwork::tensor::{FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder};
use graftwork::testing::normal;
use graftwork::{DType, Device, Result, Tensor};

const M: usize = 12;
const D: usize = 16;
const R: usize = 4;

fn tensor(device: &Device, name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_slice(device, dims, &normal(name, dims.iter().product())).unwrap()
}

fn weight(device: &Device, name: &str) -> FrozenWeight {
    FrozenWeight::new(tensor(device, name, &[D, D])).unwrap()
}

/// Frozen layer, LoRA layer, frozen layer, head that sums up.
#[derive(Debug)]
struct Net {
    first: FrozenWeight,
    second: FrozenWeight,
    third: FrozenWeight,
    ids: [ParamId; 3],
    ones: Var,
    dropout: f64,
}

impl Net {
    fn new(device: &Device, dropout: f64) -> (Net, ParamSet) {
        let mut builder = ParamSetBuilder::new();
        let a = builder.add("a", &[R, D], Init::Normal { std: 0.3 }).unwrap();
        let b = builder.add("b", &[D, R], Init::Normal { std: 0.3 }).unwrap();
        let head = builder.add("head", &[1, D], Init::Normal { std: 0.3 }).unwrap();
        let [first, second, third] = ["w1", "w2", "w3"].map(|name| weight(device, name));
        let params = builder.build(device, DType::F32, 1).unwrap();
        let ones = Var::constant(Tensor::from_slice(device, &[1, M], &[1.0f32; M]).unwrap());
        (Net { first, second, third, ids: [a, b, head], ones, dropout }, params)
    }

    /// `[1, 1]`: the head's output summed over rows by a constant row of ones.
    fn loss(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let y = self.forward(tape, x)?;
        let head = tape.param(self.ids[2])?;
        let y = linear(tape, &y, &head, None)?.reshape(&[1, M])?;
        linear(tape, &y, &self.ones, None)
    }
}

impl Segment for Net {
    fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let x = frozen_linear(tape, x, &self.first, None, None)?;
        let (a, b) = (tape.param(self.ids[0])?, tape.param(self.ids[1])?);
        let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 2.0, dropout: self.dropout, site: 1 };
        let x = frozen_linear(tape, &x, &self.second, None, Some(update))?;
        frozen_linear(tape, &x, &self.third, None, None)
    }
}

#[test]
fn the_frozen_prefix_leaves_no_trace() {
    let device = Device::cpu();
    let (net, params) = Net::new(&device, 0.0);
    let x = Var::constant(tensor(&device, "x", &[M, D]));
    let mut tape = Tape::deterministic(&params);
    let y = frozen_linear(&mut tape, &x, &net.first, None, None).unwrap();
    assert!(!y.needs_grad() && tape.is_empty() && tape.ledger().retained_bytes() == 0);
    let mut tape = Tape::deterministic(&params);
    let y = net.forward(&mut tape, &x).unwrap();
    // The layer with the adapter and the frozen one behind it.
    assert!(y.needs_grad());
    assert_eq!(tape.len(), 2, "{}", tape.describe());
    let mut tape = Tape::inference(&params);
    assert!(!net.forward(&mut tape, &x).unwrap().needs_grad() && tape.is_empty());
}

#[test]
fn a_frozen_layer_keeps_nothing_and_a_lora_keeps_x_and_h() {
    let device = Device::cpu();
    let (net, params) = Net::new(&device, 0.0);
    let x = Var::constant(tensor(&device, "x", &[M, D]));
    let mut tape = Tape::deterministic(&params);
    net.forward(&mut tape, &x).unwrap();
    assert_eq!(tape.ledger().retained_bytes(), (M * D + M * R) * 4, "{}", tape.ledger());
    // With A frozen (a constant), x is not kept; with B frozen, h is not.
    for (freeze_a, freeze_b, expected) in [(true, false, M * R * 4), (false, true, M * D * 4)] {
        let mut tape = Tape::deterministic(&params);
        let pick = |tape: &Tape, id, freeze: bool| {
            let var = tape.param(id).unwrap();
            if freeze { Var::constant(var.tensor().clone()) } else { var }
        };
        let (a, b) = (pick(&tape, net.ids[0], freeze_a), pick(&tape, net.ids[1], freeze_b));
        let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 1.0, dropout: 0.0, site: 0 };
        frozen_linear(&mut tape, &x, &net.second, None, Some(update)).unwrap();
        assert_eq!(tape.ledger().retained_bytes(), expected);
    }
}

#[test]
fn a_buffer_saved_by_several_nodes_is_counted_once() {
    let device = Device::cpu();
    let (net, params) = Net::new(&device, 0.0);
    let x = Var::constant(tensor(&device, "x", &[M, D]));
    let mut tape = Tape::deterministic(&params);
    let (a, b) = (tape.param(net.ids[0]).unwrap(), tape.param(net.ids[1]).unwrap());
    for weight in [&net.first, &net.second, &net.third] {
        let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 1.0, dropout: 0.0, site: 0 };
        frozen_linear(&mut tape, &x, weight, None, Some(update)).unwrap();
    }
    assert_eq!(tape.ledger().retained_bytes(), (M * D + 3 * M * R) * 4);
}

#[test]
fn the_ledger_agrees_with_the_bytes_on_the_device() {
    let device = Device::cpu();
    let (net, params) = Net::new(&device, 0.25);
    let x = Var::constant(tensor(&device, "x", &[M, D]));
    let mut grads = Grads::zeros(&params).unwrap();
    let before = device.allocated_bytes();
    let mut tape = Tape::training(&params, 7, 0);
    let loss = net.loss(&mut tape, &x).unwrap();
    // Alive beyond the start: what the tape keeps, and the loss. Nothing else.
    let kept = device.allocated_bytes() - before;
    assert_eq!(kept, tape.ledger().retained_bytes() + loss.tensor().byte_len(), "{}", tape.ledger());
    tape.backward(&loss, &mut grads).unwrap();
    drop(loss);
    assert_eq!(device.allocated_bytes(), before, "backward frees all that was kept");
}

fn gradients(net: &Arc<Net>, params: &ParamSet, recompute: bool) -> (Vec<f32>, usize) {
    let device = params.device().clone();
    let mut grads = Grads::zeros(params).unwrap();
    let mut tape = Tape::training(params, 7, 3).recompute_blocks(recompute);
    let x = tape.input(tensor(&device, "x", &[M, D]));
    let segment: Arc<dyn Segment> = net.clone();
    // x is read twice, by the segment and beside it, so that its gradient has two parts.
    let y = tape.checkpoint(&segment, &x).unwrap();
    let y = frozen_linear(&mut tape, &y, &net.first, None, None).unwrap();
    let (a, b) = (tape.param(net.ids[0]).unwrap(), tape.param(net.ids[1]).unwrap());
    let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 1.0, dropout: 0.0, site: 0 };
    let beside = frozen_linear(&mut tape, &x, &net.second, None, Some(update)).unwrap();
    let head = tape.param(net.ids[2]).unwrap();
    let both = [y, beside].map(|v| linear(&mut tape, &v, &head, None).unwrap().reshape(&[1, M]).unwrap());
    let [y, beside] = both;
    let z = linear(&mut tape, &y, &beside, None).unwrap();
    let retained = tape.ledger().retained_bytes();
    let done = tape.backward(&z, &mut grads).unwrap();
    let mut all = grads.flat().to_vec::<f32>().unwrap();
    all.extend(done.input_gradient(&x).unwrap().to_vec::<f32>().unwrap());
    assert_eq!(done.ledger.retained_bytes(), 0);
    assert!(done.ledger.peak_bytes() >= retained);
    (all, retained)
}

#[test]
fn recomputation_changes_no_bit_and_keeps_less() {
    let (net, params) = Net::new(&Device::cpu(), 0.25);
    let net = Arc::new(net);
    let (kept, more) = gradients(&net, &params, false);
    let (recomputed, less) = gradients(&net, &params, true);
    assert_eq!(kept, recomputed);
    assert!(kept.iter().all(|v| v.is_finite()) && kept.iter().any(|&v| v != 0.0));
    assert!(less < more, "{less} {more}");
}

#[test]
fn gradients_of_micro_batches_add_up() {
    let device = Device::cpu();
    let (net, params) = Net::new(&device, 0.0);
    let mut grads = Grads::zeros(&params).unwrap();
    let run = |grads: &mut Grads| {
        let mut tape = Tape::deterministic(&params);
        let loss = net.loss(&mut tape, &Var::constant(tensor(&device, "x", &[M, D]))).unwrap();
        tape.backward(&loss, grads).unwrap();
        grads.flat().to_vec::<f32>().unwrap()
    };
    let once = run(&mut grads);
    let twice = run(&mut grads);
    assert!(once.iter().zip(&twice).all(|(a, b)| (2.0 * a - b).abs() <= 1e-6 * a.abs()));
    grads.zero().unwrap();
    assert_eq!(run(&mut grads), once, "the same run gives the same bits");
}

#[test]
fn the_audit_names_what_does_not_learn() {
    let device = Device::cpu();
    let mut builder = ParamSetBuilder::new();
    let used = builder.add("used", &[1, D], Init::Ones).unwrap();
    builder.add("forgotten", &[3], Init::Ones).unwrap();
    let params = builder.build(&device, DType::F32, 0).unwrap();
    let mut grads = Grads::zeros(&params).unwrap();
    let mut tape = Tape::deterministic(&params);
    let x = Var::constant(tensor(&device, "x", &[1, D]));
    let used = tape.param(used).unwrap();
    let loss = linear(&mut tape, &x, &used, None).unwrap();
    tape.backward(&loss, &mut grads).unwrap();
    let report = grads.audit().unwrap();
    assert_eq!(report.silent, ["forgotten"]);
    let message = report.require_learning().unwrap_err().to_string();
    assert!(message.contains("forgotten"), "{message}");
}

#[test]
fn misuse_is_an_error_that_says_what_to_do() {
    let device = Device::cpu();
    let (net, params) = Net::new(&device, 0.0);
    let x = Var::constant(tensor(&device, "x", &[M, D]));
    let mut grads = Grads::zeros(&params).unwrap();
    let mut tape = Tape::inference(&params);
    let loss = net.loss(&mut tape, &x).unwrap();
    assert!(tape.backward(&loss, &mut grads).is_err(), "inference has no backward");
    let mut tape = Tape::deterministic(&params);
    let y = net.forward(&mut tape, &x).unwrap();
    assert!(tape.backward(&y, &mut grads).is_err(), "a loss is one number");
    let mut tape = Tape::deterministic(&params);
    let frozen = frozen_linear(&mut tape, &x, &net.first, None, None).unwrap();
    let one = Var::constant(frozen.tensor().slice(1, 0, 1).unwrap().slice(0, 0, 1).unwrap());
    assert!(tape.backward(&one, &mut grads).is_err(), "nothing trainable lies before it");
    let mut accounting = Tape::accounting(&params);
    let loss = net.loss(&mut accounting, &x).unwrap();
    assert!(accounting.ledger().retained_bytes() > 0);
    assert!(accounting.backward(&loss, &mut grads).is_err(), "accounting has no backward");
}
