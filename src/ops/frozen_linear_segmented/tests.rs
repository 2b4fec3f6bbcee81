use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{STORED, device, on_each_device, wide};
use crate::ops::{LowRank, Mid, frozen_linear};
use crate::tensor::ParamSet;
use crate::testing::{gradient, integers};

on_each_device!(
    rows_alone_and_together_have_the_same_bits,
    a_broken_adapter_stays_with_its_rows,
    no_rows_give_no_garbage
);

#[test]
fn gradients_agree_with_central_differences() {
    let (n, k, r) = (4, 6, 3);
    let lengths = [2, 0, 1, 3];
    let m = lengths.iter().sum();
    let weight = Tensor::from_slice(&Device::cpu(), &[n, k], &wide("w", n * k)).unwrap();
    let weight = FrozenWeight::new(weight).unwrap();
    let scales = Tensor::from_slice(&Device::cpu(), &[4], &[1.7f32, 1.0, -0.5, 2.0]).unwrap();
    let segments = Segments::new(&Device::cpu(), &lengths).unwrap();
    let inputs = [
        (&[m, k][..], wide("x", m * k)),
        (&[n][..], wide("bias", n)),
        (&[4, r, k][..], wide("a", 4 * r * k)),
        (&[4, n, r][..], wide("b", 4 * n * r)),
    ];
    for dropout_seed in [None, Some(3)] {
        gradient::check(&inputs, dropout_seed, |tape, v| {
            let bank = Bank { a: &v[2], b: &v[3], scales: &scales, dropout: 0.4, site: 9 };
            frozen_linear_segmented(tape, &v[0], &weight, Some(&v[1]), bank, &segments)
        })
        .unwrap();
    }
}

/// One call: values by name, limits that keep every sum exact in 16 bits too.
#[derive(Clone)]
struct Case {
    lengths: Vec<usize>,
    n: usize,
    k: usize,
    r: usize,
    dtype: DType,
    dropout: f64,
}

struct Outcome {
    y: Vec<f32>,
    /// Of x, the bias, A and B.
    gradients: Vec<Vec<f32>>,
}

impl Case {
    fn m(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn slots(&self) -> usize {
        self.lengths.len()
    }

    fn draw(&self, device: &Device, name: &str, dims: &[usize]) -> Tensor {
        let values = integers(name, dims.iter().product(), 1);
        Tensor::from_f32(device, dims, &values, self.dtype).unwrap()
    }

    fn operands(&self, device: &Device) -> [Tensor; 6] {
        let (m, n, k, r, slots) = (self.m(), self.n, self.k, self.r, self.slots());
        let draw = |name, dims: &[usize]| self.draw(device, name, dims);
        [
            draw("x", &[m, k]),
            draw("bias", &[n]),
            draw("a", &[slots, r, k]),
            draw("b", &[slots, n, r]),
            draw("w", &[n, k]),
            draw("dy", &[m, n]),
        ]
    }

    fn scales(&self) -> Vec<f32> {
        (0..self.slots()).map(|g| [0.5, -1.0, 2.0][g % 3]).collect()
    }

    fn run(&self, device: &Device) -> Outcome {
        let [x, bias, a, b, weight, dy] = self.operands(device);
        let segments = Segments::new(device, &self.lengths).unwrap();
        let scales = Tensor::from_slice(device, &[self.slots()], &self.scales()).unwrap();
        let weight = FrozenWeight::new(weight).unwrap();
        let params = ParamSet::none(device, self.dtype).unwrap();
        let mut tape = Tape::training(&params, 7, 1);
        let [x, bias, a, b] = [x, bias, a, b].map(|t| tape.input(t));
        let bank = Bank { a: &a, b: &b, scales: &scales, dropout: self.dropout, site: 5 };
        let y = frozen_linear_segmented(&mut tape, &x, &weight, Some(&bias), bank, &segments).unwrap();
        outcome(tape, &params, &y, dy, &[x, bias, a, b])
    }

    /// The rows of one slot, by the op that knows one adapter.
    fn alone(&self, device: &Device, slot: usize) -> Outcome {
        let [x, bias, a, b, weight, dy] = self.operands(device);
        let first: usize = self.lengths[..slot].iter().sum();
        let rows = |t: &Tensor| t.slice(0, first, self.lengths[slot]).unwrap().contiguous().unwrap();
        let own = |t: &Tensor| {
            let t = t.slice(0, slot, 1).unwrap().contiguous().unwrap();
            t.reshape(&t.dims()[1..]).unwrap()
        };
        let weight = FrozenWeight::new(weight).unwrap();
        let params = ParamSet::none(device, self.dtype).unwrap();
        let mut tape = Tape::training(&params, 7, 1);
        let [x, bias, a, b] = [rows(&x), bias, own(&a), own(&b)].map(|t| tape.input(t));
        let scale = f64::from(self.scales()[slot]);
        let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale, dropout: self.dropout, site: 5 };
        let y = frozen_linear(&mut tape, &x, &weight, Some(&bias), Some(update)).unwrap();
        outcome(tape, &params, &y, rows(&dy), &[x, bias, a, b])
    }
}

fn outcome(tape: Tape, params: &ParamSet, y: &Var, dy: Tensor, inputs: &[Var]) -> Outcome {
    let done = tape.backward_with(y, dy, &mut Grads::zeros(params).unwrap()).unwrap();
    let of = |v: &Var| done.input_gradient(v).unwrap().to_f32_vec().unwrap();
    Outcome { y: y.tensor().to_f32_vec().unwrap(), gradients: inputs.iter().map(of).collect() }
}

/// Check: exact, against the op for one adapter on the rows of each slot, with dropout.
fn rows_alone_and_together_have_the_same_bits() {
    let device = device();
    let shapes: [(&[usize], [usize; 3]); 5] = [
        // Runs within a tile, across tiles, none at all; odd sizes; more slots than rows.
        (&[3, 0, 70, 1, 0], [24, 40, 8]),
        (&[0, 130], [72, 16, 16]),
        (&[1, 1, 1, 1, 5, 60, 2], [9, 7, 3]),
        (&[0, 2, 0, 0, 0, 0, 1], [136, 72, 24]),
        (&[65, 64, 63], [33, 96, 40]),
    ];
    for (i, (lengths, [n, k, r])) in shapes.into_iter().enumerate() {
        for (j, dtype) in STORED.into_iter().enumerate() {
            let dropout = if (i + j) % 2 == 0 { 0.5 } else { 0.0 };
            let case = Case { lengths: lengths.to_vec(), n, k, r, dtype, dropout };
            let all = case.run(&device);
            let [dx, _, da, db] = &all.gradients[..] else { unreachable!() };
            let mut first = 0;
            for (slot, &rows) in lengths.iter().enumerate() {
                let (a, b) = (&da[slot * r * k..][..r * k], &db[slot * n * r..][..n * r]);
                if rows == 0 {
                    assert!(a.iter().chain(b).all(|&v| v == 0.0));
                    continue;
                }
                let one = case.alone(&device, slot);
                let what = format!("slot {slot} of {lengths:?}, n {n}, k {k}, rank {r}, {dtype}");
                assert!(all.y[first * n..][..rows * n] == one.y, "y: {what}");
                assert!(dx[first * k..][..rows * k] == one.gradients[0], "dx: {what}");
                assert!(a == one.gradients[2], "dA: {what}");
                assert!(b == one.gradients[3], "dB: {what}");
                first += rows;
            }
        }
    }
}

/// An adapter of NaNs makes NaNs of its own rows alone, of neighbours in the same tile none.
fn a_broken_adapter_stays_with_its_rows() {
    let device = device();
    for dtype in STORED {
        let case = Case { lengths: vec![3, 2, 4], n: 16, k: 8, r: 8, dtype, dropout: 0.0 };
        let [x, _, a, b, weight, _] = case.operands(&device);
        let mut values = a.to_f32_vec().unwrap();
        values[64..128].fill(f32::NAN);
        let a = Tensor::from_f32(&device, a.dims(), &values, dtype).unwrap();
        let params = ParamSet::none(&device, dtype).unwrap();
        let segments = Segments::from_ids(&device, &[0, 0, 0, 1, 1, 2, 2, 2, 2], 3).unwrap();
        let scales = Tensor::from_slice(&device, &[3], &case.scales()).unwrap();
        let [x, a, b] = [x, a, b].map(Var::constant);
        let bank = Bank { a: &a, b: &b, scales: &scales, dropout: 0.0, site: 0 };
        let weight = FrozenWeight::new(weight).unwrap();
        let mut tape = Tape::inference(&params);
        let y = frozen_linear_segmented(&mut tape, &x, &weight, None, bank, &segments).unwrap();
        let y = y.tensor().to_f32_vec().unwrap();
        assert!((0..9 * 16).all(|at| y[at].is_nan() == (3..5).contains(&(at / 16))), "{dtype}");
    }
}

/// On Hopper the product has its own kernel, and the updates are added to what it wrote: exact, against the CPU.
#[test]
#[cfg(feature = "emulator")]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn on_hopper_the_product_has_its_own_kernel() {
    let device = Device::with_launcher(Box::new(crate::device::Emulated::with_seed("sm_90a", 3).unwrap()));
    let case = Case { lengths: vec![100, 0, 157], n: 136, k: 264, r: 8, dtype: DType::F16, dropout: 0.5 };
    let (emulated, cpu) = (case.run(&device), case.run(&Device::cpu()));
    assert!(emulated.y == cpu.y && emulated.gradients == cpu.gradients);
    let ran: Vec<_> = device.take_counters().unwrap().iter().map(|(kernel, _)| kernel.symbol()).collect();
    for pass in ["frozen_linear_nt_f16_128x", "frozen_linear_nn_f16_128x"] {
        assert!(ran.iter().any(|symbol| symbol.starts_with(pass) && symbol.ends_with("sm90a")), "{ran:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::cpu();
    let value = |result: Result<Segments>, name: &str| match result {
        Err(Error::Value { argument, .. }) => assert_eq!(argument, name),
        other => panic!("{other:?}"),
    };
    value(Segments::from_ids(&device, &[0, 2, 1], 3), "ids");
    value(Segments::from_ids(&device, &[0, 3], 3), "ids");
    value(Segments::new(&device, &[]), "lengths");
    assert!(matches!(Segments::new(&device, &[1 << 30, 1 << 30]), Err(Error::SizeOverflow { .. })));

    let zeros = |dims: &[usize]| Tensor::zeros(&device, dims, DType::F32).unwrap();
    let weight = FrozenWeight::new(zeros(&[4, 6])).unwrap();
    let params = ParamSet::none(&device, DType::F32).unwrap();
    let run = |x: &[usize], a: &[usize], b: &[usize], scales: usize, lengths: &[usize], dropout: f64| {
        let [x, a, b] = [x, a, b].map(|dims| Var::constant(zeros(dims)));
        let scales = zeros(&[scales]);
        let bank = Bank { a: &a, b: &b, scales: &scales, dropout, site: 0 };
        let segments = Segments::new(&device, lengths).unwrap();
        frozen_linear_segmented(&mut Tape::training(&params, 0, 0), &x, &weight, None, bank, &segments)
    };
    run(&[3, 6], &[2, 5, 6], &[2, 4, 5], 2, &[1, 2], 0.1).unwrap();
    let argument = |result: Result<Var>| match result {
        Err(Error::Value { argument, .. } | Error::Shape { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    assert_eq!(argument(run(&[3, 6], &[2, 5, 6], &[2, 4, 5], 2, &[1, 1], 0.0)), "segments");
    assert_eq!(argument(run(&[3, 6], &[2, 5, 6], &[2, 4, 5], 2, &[1, 1, 1], 0.0)), "a");
    assert_eq!(argument(run(&[3, 6], &[2, 5, 6], &[2, 4, 4], 2, &[1, 2], 0.0)), "b");
    assert_eq!(argument(run(&[3, 6], &[2, 5, 6], &[2, 4, 5], 1, &[1, 2], 0.0)), "scales");
    assert_eq!(argument(run(&[3, 6], &[2, 257, 6], &[2, 4, 257], 2, &[1, 2], 0.0)), "rank");
    assert_eq!(argument(run(&[3, 5], &[2, 5, 6], &[2, 4, 5], 2, &[1, 2], 0.0)), "x");
    assert_eq!(argument(run(&[3, 6], &[2, 5, 6], &[2, 4, 5], 2, &[1, 2], 1.0)), "dropout");
}

/// No rows at all: nothing to launch, and gradients are written.
fn no_rows_give_no_garbage() {
    let case = Case { lengths: vec![0, 0], n: 8, k: 8, r: 8, dtype: DType::F32, dropout: 0.5 };
    let Outcome { y, gradients } = case.run(&device());
    assert!(y.is_empty() && gradients[2..].iter().flatten().all(|&v| v == 0.0));
}
