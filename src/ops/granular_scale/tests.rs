use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{STORED, constant, device, draw, draw_integers, floats, on_each_device, wide};
use crate::ops::scale_add;
use crate::tensor::ParamSet;
use crate::testing::{compare, gradient};

on_each_device!(golden_values_of_the_method, golden_values_on_a_product);

/// A variant with its switches, as data.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    kind: Kind,
    input: GateInput,
    sigmoid: bool,
    /// Small's mean leaves padding out.
    padded: bool,
}

const fn form(kind: Kind) -> Form {
    Form { kind, input: GateInput::Updated, sigmoid: false, padded: false }
}

const FORMS: [Form; 8] = [
    form(Kind::Large),
    form(Kind::MiddleX),
    Form { input: GateInput::Hidden, ..form(Kind::MiddleX) },
    form(Kind::MiddleY),
    Form { sigmoid: true, ..form(Kind::MiddleY) },
    form(Kind::Small),
    Form { input: GateInput::Hidden, ..form(Kind::Small) },
    Form { padded: true, ..form(Kind::Small) },
];

/// Which operands beside H there are.
#[derive(Clone, Copy, Debug)]
struct Parts {
    update: bool,
    bias: bool,
    add_residual: bool,
    scale: f64,
    dropout: f64,
}

const ALL: Parts = Parts { update: true, bias: true, add_residual: true, scale: 0.7, dropout: 0.4 };
const GATE_ALONE: Parts = Parts { update: false, bias: false, add_residual: false, scale: 1.0, dropout: 0.0 };

/// Every second token from the third on is padding.
fn real(samples: usize, t: usize) -> Vec<bool> {
    (0..samples * t).map(|i| i % t < 2 || i % 2 == 0).collect()
}

/// Dimensions of H, ΔH, b, R, the gate's operand and its bias.
fn dims(kind: Kind, [b, t, k]: [usize; 3]) -> [Vec<usize>; 6] {
    let wide = vec![b, t, k];
    let gate = match kind {
        Kind::Large => wide.clone(),
        Kind::Small => vec![2 * k],
        _ => vec![k],
    };
    [wide.clone(), wide.clone(), vec![k], wide, gate, vec![1]]
}

/// The op on [H, ΔH, b, R, gate, gate bias].
fn apply(tape: &mut Tape, v: &[Var], form: Form, parts: Parts) -> Result<Var> {
    let tokens = match (form.padded, v[0].dims()) {
        (true, &[b, t, _]) => {
            let device = v[0].tensor().device();
            Some(TokenWeights::new(device, [b, t], &real(b, t), v[0].tensor().dtype())?)
        }
        _ => None,
    };
    let gate = match form.kind {
        Kind::Large => Gate::Large { logits: &v[4] },
        Kind::MiddleX => Gate::MiddleX { weight: &v[4], bias: &v[5], input: form.input },
        Kind::MiddleY => Gate::MiddleY { offset: &v[4], sigmoid: form.sigmoid },
        Kind::Small => Gate::Small { weight: &v[4], bias: &v[5], input: form.input, tokens: tokens.as_ref() },
    };
    let options = GranularScale {
        gate,
        update: parts.update.then_some(Update::Given(&v[1])),
        bias: parts.bias.then_some(&v[2]),
        residual: (parts.add_residual || form.kind.looks()).then_some(&v[3]),
        add_residual: parts.add_residual,
        scale: parts.scale,
        dropout: parts.dropout,
        site: 5,
    };
    granular_scale(tape, &v[0], &options)
}

#[test]
fn gradients_agree_with_central_differences() {
    for form in FORMS {
        for shape in [[2, 3, 5], [1, 4, 1]] {
            let dims = dims(form.kind, shape);
            let inputs: Vec<_> = ["h", "du", "b", "r", "g", "c"]
                .iter()
                .zip(&dims)
                .map(|(name, d)| (&d[..], wide(name, d.iter().product())))
                .collect();
            for (parts, seed) in
                [(ALL, Some(3)), (ALL, None), (GATE_ALONE, None), (Parts { bias: false, ..ALL }, Some(4))]
            {
                gradient::check(&inputs, seed, |tape, v| apply(tape, v, form, parts))
                    .unwrap_or_else(|e| panic!("{form:?} {parts:?} {shape:?}: {e}"));
            }
            // R has a gradient from elsewhere, and H is R.
            gradient::check(&inputs, None, |tape, v| {
                let twice = [&v[..1], &v[1..3], &v[..1], &v[4..]].concat();
                let y = apply(tape, &twice, form, ALL)?;
                scale_add(tape, &y, &v[0], 2.0)
            })
            .unwrap();
        }
    }
}

#[test]
fn a_wrong_gate_is_rejected() {
    for form in FORMS {
        let dims = dims(form.kind, [2, 2, 3]);
        let inputs: Vec<_> = ["h", "du", "b", "r", "g", "c"]
            .iter()
            .zip(&dims)
            .map(|(name, d)| (&d[..], wide(name, d.iter().product())))
            .collect();
        let wrong = gradient::check(&inputs, None, |tape, v| {
            // The tape is not told that the gate's operand learns.
            let mut v = v.to_vec();
            v[4] = Var::constant(v[4].tensor().clone());
            apply(tape, &v, form, ALL)
        });
        assert!(matches!(wrong, Err(Error::Autograd { .. })), "{form:?}");
    }
}

/// The method's golden values: `U = [[1, 2], [3, 4]]`, `R = [[0, 1], [1, 0]]`, s = 1 and no biases. `run` gates U by what it is given.
fn golden_values(dtype: DType, run: impl Fn(&GranularScale) -> Vec<f64>) {
    let close = |gate: Gate, want: [f64; 4]| {
        let r = constant(&[1, 2, 2], &[0.0, 1.0, 1.0, 0.0], dtype);
        let got = run(&GranularScale { residual: Some(&r), ..GranularScale::new(gate) });
        // The gates are given to six digits; a value rounded to storage is off by its rounding unit, twice where logits are.
        let near = |i: usize| (got[i] - want[i]).abs() <= 5e-7 * (i + 1) as f64 + 2.0 * dtype.unit_roundoff() * want[i];
        assert!((0..4).all(near), "{dtype}: {got:?} for {want:?}");
    };
    let make = |values: &[f64]| constant(&[values.len()], values, dtype);
    let (input, bias) = (GateInput::Updated, &make(&[0.0]));
    close(Gate::MiddleY { offset: &make(&[0.5, -0.25]), sigmoid: false }, [1.5, 1.5, 4.5, 3.0]);
    close(Gate::MiddleX { weight: &make(&[1.0, -1.0]), bias, input }, [0.119203, 0.238406, 1.5, 2.0]);
    // Both logits are −1.
    let (weight, g) = (&make(&[1.0, 0.0, 0.0, -0.5]), 0.268941);
    close(Gate::Small { weight, bias, input, tokens: None }, [g, 2.0 * g, 3.0 * g, 4.0 * g]);
    // gelu_new(R Wgdᵀ) Wguᵀ with Wgd = [1, 1] and Wgu = (1, −1): ±gelu_new(1) in both rows.
    let x = 0.841_192;
    let logits = &constant(&[1, 2, 2], &[x, -x, x, -x], dtype);
    close(Gate::Large { logits }, [0.698716, 0.602568, 2.096149, 1.205135]);
}

const U: [f64; 4] = [1.0, 2.0, 3.0, 4.0];

fn golden_values_of_the_method() {
    for dtype in floats() {
        let params = ParamSet::none(&device(), dtype).unwrap();
        golden_values(dtype, |options| {
            let mut tape = Tape::inference(&params);
            let u = constant(&[1, 2, 2], &U, dtype);
            granular_scale(&mut tape, &u, options).unwrap().tensor().to_f64_vec().unwrap()
        });
    }
}

/// U as the product with an identity, so that it is gated where it is made.
fn golden_values_on_a_product() {
    for dtype in floats() {
        let params = ParamSet::none(&device(), dtype).unwrap();
        golden_values(dtype, |options| {
            let mut tape = Tape::inference(&params);
            let (h, x) = (constant(&[1, 2, 2], &[0.0; 4], dtype), constant(&[1, 2, 2], &U, dtype));
            let weight = constant(&[2, 2], &[1.0, 0.0, 0.0, 1.0], dtype);
            let update = Some(Update::Product { x: &x, weight: &weight, heads: 1 });
            let options = GranularScale { update, ..*options };
            granular_scale(&mut tape, &h, &options).unwrap().tensor().to_f64_vec().unwrap()
        });
    }
}

/// The output and the gradients of all operands, as f64; empty where there is none.
fn everything(device: &Device, tensors: &[Tensor], dy: &Tensor, form: Form, parts: Parts) -> Vec<Vec<f64>> {
    let there = |t: &Tensor| t.to_device(device).unwrap();
    let params = ParamSet::none(device, dy.dtype()).unwrap();
    let mut tape = Tape::training(&params, 7, 2);
    let vars: Vec<Var> = tensors.iter().map(|t| tape.input(there(t))).collect();
    let y = apply(&mut tape, &vars, form, parts).unwrap();
    let mut all = vec![y.tensor().to_f64_vec().unwrap()];
    let done = tape.backward_with(&y, there(dy), &mut Grads::zeros(&params).unwrap()).unwrap();
    all.extend(vars.iter().map(|v| done.input_gradient(v).map_or(Vec::new(), |t| t.to_f64_vec().unwrap())));
    all
}

fn operands(form: Form, shape: [usize; 3], dtype: DType, exact: bool) -> (Vec<Tensor>, Tensor) {
    let make = |name: &str, dims: &[usize]| match exact {
        true => draw_integers(name, dims, 2, dtype).0,
        false => realistic(form.kind, name, dims, dtype),
    };
    let dims = dims(form.kind, shape);
    let tensors = ["h", "du", "b", "r", "g", "c"].iter().zip(&dims).map(|(name, d)| make(name, d)).collect();
    (tensors, make("dy", &shape))
}

/// N(0, 1); the weights of a sum over a row so small that its sigmoid does not vanish.
fn realistic(kind: Kind, name: &str, dims: &[usize], dtype: DType) -> Tensor {
    let (tensor, values) = draw(name, dims, dtype);
    if name != "g" || !kind.looks() {
        return tensor;
    }
    let scale = (1.0 / dims[0] as f64).sqrt();
    let values: Vec<f32> = values.iter().map(|v| (v * scale) as f32).collect();
    Tensor::from_f32(&Device::cpu(), dims, &values, dtype).unwrap()
}

#[test]
#[cfg_attr(not(all(graftwork_kernels, feature = "emulator")), ignore = "this build has no kernels or no emulator")]
fn the_emulated_kernels_agree_with_the_reference() {
    let device = Device::emulated("sm_80").unwrap();
    // Rows that are whole units and rows that are not; within one block's registers, within the longer block's, beyond both.
    for shape in [[4, 6, 1], [2, 3, 7], [3, 5, 64], [1, 11, 130], [1, 2, 1037], [1, 9, 1040], [1, 2, 4400]] {
        for dtype in STORED {
            if shape[2] > 1000 && dtype == DType::F16 {
                continue;
            }
            for form in FORMS {
                for parts in [ALL, Parts { dropout: 0.0, ..ALL }, GATE_ALONE] {
                    let exact = form.kind == Kind::MiddleY && !form.sigmoid && parts.dropout == 0.0;
                    let (tensors, dy) = operands(form, shape, dtype, exact);
                    let parts = if exact { Parts { scale: 2.0, ..parts } } else { parts };
                    let got = joined(everything(&device, &tensors, &dy, form, parts), form);
                    // The same call in f64 on values as stored.
                    let widened: Vec<Tensor> = tensors.iter().map(|t| t.cast(DType::F64).unwrap()).collect();
                    let dy = dy.cast(DType::F64).unwrap();
                    let want = joined(everything(&Device::cpu(), &widened, &dy, form, parts), form);
                    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                        let cols = if i == 5 { got.len() } else { tensors[i.saturating_sub(1)].cols() };
                        let checked = if exact {
                            compare::exact(got, want)
                        } else {
                            compare::norm(got, want, cols, roundings(shape, dtype))
                        };
                        assert!(checked.ok(), "{shape:?} {dtype} {form:?} {parts:?} result {i}: {checked:?}");
                    }
                }
            }
        }
    }
}

/// w and c are one map, of (R + U, 1): its gradient is one vector. By itself that of c is a sum in which everything may cancel.
fn joined(mut all: Vec<Vec<f64>>, form: Form) -> Vec<Vec<f64>> {
    if form.kind.looks() {
        let last = std::mem::take(&mut all[6]);
        all[5].extend(last);
    }
    all
}

/// What roundings may add up to, relative to a row or a column: one of the result, and 4·√n of f32 for n operations one after the
/// other (Higham and Mary, 2019), tripled because the two ways into U may cancel.
fn roundings([b, t, k]: [usize; 3], dtype: DType) -> f64 {
    let depth = (4 * k + 2 * b * t + 32) as f64;
    dtype.unit_roundoff() + 12.0 * depth.sqrt() * DType::F32.unit_roundoff()
}

#[test]
fn a_result_with_one_wrong_value_is_rejected() {
    for form in FORMS {
        let (shape, dtype) = ([2, 3, 7], DType::BF16);
        let (tensors, dy) = operands(form, shape, dtype, false);
        let mut got = everything(&Device::cpu(), &tensors, &dy, form, ALL);
        let want = got.clone();
        for (got, want) in got.iter_mut().zip(&want).filter(|(got, _)| !got.is_empty()) {
            let size = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            got[0] += 0.1 * size;
            assert!(!compare::norm(got, want, want.len().min(7), roundings(shape, dtype)).ok());
        }
    }
}

#[test]
fn integers_come_out_exact_and_a_wrong_one_does_not() {
    for dtype in STORED {
        for k in [1, 3, 16, 130] {
            let form = form(Kind::MiddleY);
            let parts = Parts { scale: 2.0, dropout: 0.0, ..ALL };
            let (tensors, dy) = operands(form, [2, 3, k], dtype, true);
            let got = everything(&Device::cpu(), &tensors, &dy, form, parts);
            let v: Vec<Vec<f64>> = tensors.iter().map(|t| t.to_f64_vec().unwrap()).collect();
            let u = |i: usize| v[0][i] + v[1][i] + v[2][i % k];
            let want: Vec<f64> = (0..6 * k).map(|i| 2.0 * u(i) * (1.0 + v[4][i % k]) + v[3][i]).collect();
            assert!(compare::exact(&got[0], &want).ok());
            let dys = dy.to_f64_vec().unwrap();
            let dz: Vec<f64> = (0..k).map(|c| (0..6).map(|r| 2.0 * dys[r * k + c] * u(r * k + c)).sum()).collect();
            assert!(compare::exact(&got[5], &dz).ok());
            let mut wrong = want;
            wrong[k - 1] += 1.0;
            assert!(!compare::exact(&got[0], &wrong).ok());
        }
    }
}

#[test]
fn only_what_is_wanted_is_kept() {
    let device = Device::cpu();
    let params = ParamSet::none(&device, DType::F32).unwrap();
    let bytes = |form: Form, learns: [bool; 6]| {
        let (tensors, _) = operands(form, [2, 3, 16], DType::F32, false);
        let mut tape = Tape::deterministic(&params);
        let vars: Vec<Var> = tensors
            .iter()
            .zip(learns)
            .map(|(t, l)| if l { tape.input(t.clone()) } else { Var::constant(t.clone()) })
            .collect();
        apply(&mut tape, &vars, form, Parts { dropout: 0.0, ..ALL }).unwrap();
        (tape.len(), tape.ledger().retained_bytes())
    };
    let whole = 6 * 16 * 4;
    let update = [false, true, false, false, false, false];
    let gate = [false, true, false, false, true, true];
    assert_eq!(bytes(form(Kind::Large), [false; 6]), (0, 0));
    assert_eq!(bytes(form(Kind::Large), update), (1, whole), "the logits");
    assert_eq!(bytes(form(Kind::Large), gate), (1, 3 * whole), "the logits, H and ΔH");
    assert_eq!(bytes(form(Kind::MiddleY), update), (1, 0), "the gate is a parameter");
    assert_eq!(bytes(form(Kind::MiddleY), gate), (1, 2 * whole));
    assert_eq!(bytes(form(Kind::MiddleX), update), (1, 2 * whole + 24), "and a number a row");
    assert_eq!(bytes(form(Kind::MiddleX), gate), (1, 3 * whole + 24), "and R");
    assert_eq!(bytes(form(Kind::Small), [false, false, false, true, false, false]), (1, 2 * whole + 24));
}

#[test]
fn nothing_is_fine_and_nan_passes() {
    for form in FORMS {
        let (tensors, _) = operands(form, [2, 3, 4], DType::F32, false);
        let none = Tensor::empty(&Device::cpu(), &[0, 3, 4], DType::F32).unwrap();
        let mut empty = tensors.clone();
        for i in [0, 1, 3] {
            empty[i] = none.clone();
        }
        if form.kind == Kind::Large {
            empty[4] = none.clone();
        }
        let got = everything(&Device::cpu(), &empty, &none, Form { padded: false, ..form }, ALL);
        assert!(got[0].is_empty() && got[3].iter().all(|&v| v == 0.0), "{form:?}");
        let values = [f32::NAN; 24];
        let mut nan = tensors;
        nan[0] = Tensor::from_f32(&Device::cpu(), &[2, 3, 4], &values, DType::F32).unwrap();
        let got = everything(&Device::cpu(), &nan, &nan[0].clone(), form, ALL);
        assert!(got[0].iter().all(|v| v.is_nan()), "{form:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let params = ParamSet::none(&Device::cpu(), DType::F32).unwrap();
    let mut tape = Tape::deterministic(&params);
    let (tensors, _) = operands(form(Kind::Large), [2, 3, 4], DType::F32, false);
    let v: Vec<Var> = tensors.into_iter().map(Var::constant).collect();
    let gate = Gate::Large { logits: &v[4] };
    let mut refuse = |options: &GranularScale| granular_scale(&mut tape, &v[0], options).unwrap_err().to_string();
    let text = refuse(&GranularScale { add_residual: true, ..GranularScale::new(gate) });
    assert!(text.contains("`residual` is absent"), "{text}");
    let text = refuse(&GranularScale { scale: f64::NAN, ..GranularScale::new(gate) });
    assert!(text.contains("`scale` is NaN"), "{text}");
    let text = refuse(&GranularScale { dropout: 1.0, ..GranularScale::new(gate) });
    assert!(text.contains("`dropout`"), "{text}");
    let text = refuse(&GranularScale { bias: Some(&v[5]), ..GranularScale::new(gate) });
    assert!(text.contains("`bias` has shape [1], expected [4]"), "{text}");
    let text = refuse(&GranularScale::new(Gate::Large { logits: &v[2] }));
    assert!(text.contains("`logits`"), "{text}");
    let small = Gate::Small { weight: &v[2], bias: &v[5], input: GateInput::Updated, tokens: None };
    assert!(refuse(&GranularScale { residual: Some(&v[3]), ..GranularScale::new(small) }).contains("expected [8]"));
    let x = Gate::MiddleX { weight: &v[2], bias: &v[5], input: GateInput::Updated };
    assert!(refuse(&GranularScale::new(x)).contains("residual"));
}

#[test]
fn a_sample_without_tokens_is_refused() {
    let real = [true, false, false, false];
    let error = TokenWeights::new(&Device::cpu(), [2, 2], &real, DType::F32).unwrap_err().to_string();
    assert!(error.contains("at least one real token in each sample") && error.contains("none in 1"), "{error}");
    assert!(TokenWeights::new(&Device::cpu(), [2, 3], &real, DType::F32).is_err());
    let weights = TokenWeights::new(&Device::cpu(), [2, 2], &[true, false, true, true], DType::BF16).unwrap();
    assert_eq!(weights.tensor().to_f32_vec().unwrap(), [1.0, 0.0, 0.5, 0.5]);
}

#[test]
fn threads_do_not_change_the_bits() {
    for form in FORMS {
        // Long enough that the work is shared out.
        let (tensors, dy) = operands(form, [4, 80, 300], DType::F32, false);
        let run = || everything(&Device::cpu(), &tensors, &dy, form, ALL);
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (one, three) = (pool(1).install(run), pool(3).install(run));
        let bits = |all: &[Vec<f64>]| all.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&one), bits(&three), "{form:?}");
    }
}

/// A product with `heads` heads in place of ΔH: operands D and Wu stand for it, and Wu is the last one.
fn with_product(tape: &mut Tape, v: &[Var], form: Form, parts: Parts, heads: usize) -> Result<Var> {
    let options = |update, gate| GranularScale {
        gate,
        update,
        bias: parts.bias.then_some(&v[2]),
        residual: (parts.add_residual || form.kind.looks()).then_some(&v[3]),
        add_residual: parts.add_residual,
        scale: parts.scale,
        dropout: parts.dropout,
        site: 5,
    };
    let gate = match form.kind {
        Kind::Large => Gate::Large { logits: &v[4] },
        Kind::MiddleX => Gate::MiddleX { weight: &v[4], bias: &v[5], input: form.input },
        Kind::MiddleY => Gate::MiddleY { offset: &v[4], sigmoid: form.sigmoid },
        Kind::Small => Gate::Small { weight: &v[4], bias: &v[5], input: form.input, tokens: None },
    };
    let update = Update::Product { x: &v[1], weight: &v[6], heads };
    granular_scale(tape, &v[0], &options(Some(update), gate))
}

/// Dimensions of H, D, b, R, the gate's operand, its bias and Wu.
fn product_dims(kind: Kind, [b, t, k]: [usize; 3], r: usize, heads: usize) -> Vec<Vec<usize>> {
    let mut all = dims(kind, [b, t, k]).to_vec();
    all[1] = vec![b, t, r];
    all.push(vec![k, r / heads]);
    all
}

const NAMES: [&str; 7] = ["h", "d", "b", "r", "g", "c", "up"];

#[test]
fn gradients_through_a_product_agree_with_central_differences() {
    for form in FORMS.into_iter().filter(|f| !f.padded) {
        for (k, r, heads) in [(6, 3, 1), (5, 17, 1), (6, 4, 2), (6, 3, 3)] {
            let dims = product_dims(form.kind, [2, 2, k], r, heads);
            let inputs: Vec<_> =
                NAMES.iter().zip(&dims).map(|(name, d)| (&d[..], wide(name, d.iter().product()))).collect();
            for (parts, seed) in [(ALL, Some(3)), (GATE_ALONE, None)] {
                gradient::check(&inputs, seed, |tape, v| with_product(tape, v, form, parts, heads))
                    .unwrap_or_else(|e| panic!("{form:?} {parts:?} {heads}: {e}"));
            }
        }
    }
    let open = [(&[2, 2, 6][..], wide("h", 24)), (&[2, 2, 3][..], wide("d", 12)), (&[6, 3][..], wide("up", 18))];
    gradient::check(&open, Some(4), |tape, v| {
        let update = Some(Update::Product { x: &v[1], weight: &v[2], heads: 1 });
        granular_scale(
            tape,
            &v[0],
            &GranularScale { update, scale: 0.5, dropout: 0.3, ..GranularScale::new(Gate::Open) },
        )
    })
    .unwrap();
}

fn product_call(
    device: &Device,
    tensors: &[Tensor],
    dy: &Tensor,
    form: Form,
    parts: Parts,
    heads: usize,
) -> Vec<Vec<f64>> {
    let there = |t: &Tensor| t.to_device(device).unwrap();
    let params = ParamSet::none(device, dy.dtype()).unwrap();
    let mut tape = Tape::training(&params, 7, 2);
    let vars: Vec<Var> = tensors.iter().map(|t| tape.input(there(t))).collect();
    let y = with_product(&mut tape, &vars, form, parts, heads).unwrap();
    let mut all = vec![y.tensor().to_f64_vec().unwrap()];
    let done = tape.backward_with(&y, there(dy), &mut Grads::zeros(&params).unwrap()).unwrap();
    all.extend(vars.iter().map(|v| done.input_gradient(v).map_or(Vec::new(), |t| t.to_f64_vec().unwrap())));
    all
}

#[test]
fn the_pair_layout_is_the_dense_one_with_its_other_blocks_zero() {
    let (shape, r, heads) = ([2, 3, 8], 4, 2);
    for form in FORMS.into_iter().filter(|f| !f.padded) {
        let dims = product_dims(form.kind, shape, r, heads);
        let mut tensors: Vec<Tensor> = NAMES
            .iter()
            .zip(&dims)
            .map(|(name, d)| Tensor::from_slice(&Device::cpu(), d, &wide(name, d.iter().product())).unwrap())
            .collect();
        let dy = Tensor::from_slice(&Device::cpu(), &shape, &wide("dy", 48)).unwrap();
        let pair = product_call(&Device::cpu(), &tensors, &dy, form, ALL, heads);
        let blocks = tensors[6].to_f64_vec().unwrap();
        // Row i of Wu belongs to head i / 4, and that to columns 2j .. of D.
        let dense: Vec<f64> =
            (0..8 * 4).map(|at| if at % 4 / 2 == at / 4 / 4 { blocks[at / 4 * 2 + at % 2] } else { 0.0 }).collect();
        tensors[6] = Tensor::from_slice(&Device::cpu(), &[8, 4], &dense).unwrap();
        let whole = product_call(&Device::cpu(), &tensors, &dy, form, ALL, 1);
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        for (pair, whole) in pair[..6].iter().zip(&whole) {
            assert!(near(pair, whole), "{form:?}");
        }
        let last = pair.len() - 1;
        let kept: Vec<f64> = (0..8 * 2).map(|at| whole[last][at / 2 * 4 + at / 2 / 4 * 2 + at % 2]).collect();
        assert!(near(&pair[last], &kept), "{form:?}");
    }
}

#[test]
#[cfg_attr(not(all(graftwork_kernels, feature = "emulator")), ignore = "this build has no kernels or no emulator")]
fn the_emulated_product_agrees_with_the_reference() {
    let device = Device::emulated("sm_80").unwrap();
    for (shape, r, heads) in [([1, 3, 4], 2, 2), ([2, 3, 24], 12, 3), ([1, 70, 136], 20, 1), ([1, 65, 144], 48, 2)] {
        for dtype in STORED {
            for form in FORMS.into_iter().filter(|f| !f.padded) {
                let exact = form.kind == Kind::MiddleY && !form.sigmoid;
                let parts = if exact { Parts { scale: 2.0, dropout: 0.0, ..ALL } } else { ALL };
                let make = |(name, d): (&&str, &Vec<usize>)| match exact {
                    true => draw_integers(name, d, 1, dtype).0,
                    false => realistic(form.kind, name, d, dtype),
                };
                let dims = product_dims(form.kind, shape, r, heads);
                let tensors: Vec<Tensor> = NAMES.iter().zip(&dims).map(make).collect();
                let dy = make((&"dy", &shape.to_vec()));
                let got = joined(product_call(&device, &tensors, &dy, form, parts, heads), form);
                let widened: Vec<Tensor> = tensors.iter().map(|t| t.cast(DType::F64).unwrap()).collect();
                let dy = dy.cast(DType::F64).unwrap();
                let want = joined(product_call(&Device::cpu(), &widened, &dy, form, parts, heads), form);
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let cols = if i == 5 { got.len() } else { tensors[i.saturating_sub(1)].cols() };
                    // Magnitudes of the integers stay below 2⁸ in y alone; sums over rows go beyond what bf16 holds.
                    let checked = if exact && (i == 0 || dtype == DType::F32) {
                        let stored = |v: &f64| {
                            Tensor::from_f32(&Device::cpu(), &[1], &[*v as f32], dtype).unwrap().to_scalar().unwrap()
                        };
                        compare::exact(got, &want.iter().map(stored).collect::<Vec<_>>())
                    } else {
                        // dU, and ΔH where a row is looked at, are rounded to storage on the way to what is made of them.
                        let limit = roundings(shape, dtype) + 4.0 * dtype.unit_roundoff();
                        compare::norm(got, want, cols, limit)
                    };
                    assert!(checked.ok(), "{shape:?} {r} {heads} {dtype} {form:?} result {i}: {checked:?}");
                }
            }
        }
    }
}

#[test]
fn a_product_is_not_kept() {
    let params = ParamSet::none(&Device::cpu(), DType::F32).unwrap();
    let dims = product_dims(Kind::Large, [2, 3, 16], 4, 1);
    let tensors: Vec<Tensor> = NAMES.iter().zip(&dims).map(|(name, d)| draw(name, d, DType::F32).0).collect();
    let bytes = |learns: &[usize]| {
        let mut tape = Tape::deterministic(&params);
        let mut var = |(i, t): (usize, &Tensor)| match learns.contains(&i) {
            true => tape.input(t.clone()),
            false => Var::constant(t.clone()),
        };
        let vars: Vec<Var> = tensors.iter().enumerate().map(&mut var).collect();
        with_product(&mut tape, &vars, form(Kind::Large), Parts { dropout: 0.0, ..ALL }, 1).unwrap();
        tape.ledger().retained_bytes()
    };
    let (wide, narrow) = (6 * 16 * 4, 6 * 4 * 4);
    assert_eq!(bytes(&[1]), wide, "the logits");
    assert_eq!(bytes(&[1, 6]), wide + narrow, "and D");
    assert_eq!(bytes(&[1, 4, 6]), 2 * wide + narrow, "and H, but no ΔH");
}

#[test]
fn heads_must_divide() {
    let params = ParamSet::none(&Device::cpu(), DType::F32).unwrap();
    let mut tape = Tape::deterministic(&params);
    let make = |dims: &[usize]| Var::constant(draw("x", dims, DType::F32).0);
    let (h, x) = (make(&[2, 6]), make(&[2, 4]));
    for (heads, columns) in [(0, 4), (3, 1), (4, 1), (5, 1)] {
        let weight = make(&[6, columns]);
        let update = Some(Update::Product { x: &x, weight: &weight, heads });
        let options = GranularScale { update, ..GranularScale::new(Gate::Open) };
        let text = granular_scale(&mut tape, &h, &options).unwrap_err().to_string();
        assert!(text.contains("a divisor of the width 6 and of the bottleneck 4"), "{text}");
    }
}
