use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{STORED, device, draw_integers, on_each_device, run, wide};
use crate::ops::{linear, scale_add};
use crate::tensor::{Init, ParamSetBuilder};
use crate::testing::{compare, gradient};

on_each_device!(integers_come_out_exact, a_shared_factor_gathers_its_gradients);

/// n, k, h, r: parts around a warp, single numbers, and more ranks than rows.
const SHAPES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [3, 5, 2, 1], [2, 31, 3, 2], [16, 33, 4, 1], [1, 65, 2, 3], [24, 8, 2, 2]];

fn dims([n, k, h, r]: [usize; 4]) -> [Vec<usize>; 3] {
    [vec![h, h, h], vec![n, h * r], vec![h * r, k]]
}

#[test]
fn gradients_agree_with_central_differences() {
    for shape in [[1, 1, 1, 1], [2, 3, 2, 1], [1, 2, 3, 2]] {
        let dims = dims(shape);
        let inputs: Vec<_> = ["rule", "left", "right"]
            .iter()
            .zip(&dims)
            .map(|(name, d)| (&d[..], wide(name, d.iter().product())))
            .collect();
        gradient::check(&inputs, None, |tape, v| kronecker(tape, &v[0], &v[1], &v[2])).unwrap();
        // As a weight, made twice of the same factors.
        let x = wide("x", 4 * shape[1] * shape[2]);
        gradient::check(&inputs, None, |tape, v| {
            let x = Var::constant(Tensor::from_slice(&Device::cpu(), &[4, shape[1] * shape[2]], &x)?);
            let (w, again) = (kronecker(tape, &v[0], &v[1], &v[2])?, kronecker(tape, &v[0], &v[1], &v[2])?);
            let y = linear(tape, &x, &w, None)?;
            let z = linear(tape, &x, &again, None)?;
            scale_add(tape, &y, &z, 0.5)
        })
        .unwrap();
    }
}

#[test]
fn a_gradient_that_misses_a_factor_is_rejected() {
    let dims = dims([2, 3, 2, 1]);
    let inputs: Vec<_> =
        ["rule", "left", "right"].iter().zip(&dims).map(|(name, d)| (&d[..], wide(name, d.iter().product()))).collect();
    for held in 0..3 {
        let wrong = gradient::check(&inputs, None, |tape, v| {
            let mut v = v.to_vec();
            v[held] = Var::constant(v[held].tensor().clone());
            kronecker(tape, &v[0], &v[1], &v[2])
        });
        assert!(matches!(wrong, Err(Error::Autograd { .. })), "{held}");
    }
}

/// `Σ_i A_i ⊗ (L_i R_i)` as it is written, and the gradients as sums over all five letters.
fn written([n, k, h, r]: [usize; 4], a: &[f64], l: &[f64], x: &[f64], dw: &[f64]) -> [Vec<f64>; 4] {
    let mut w = vec![0.0; n * k * h * h];
    let (mut da, mut dl, mut dx) = (vec![0.0; a.len()], vec![0.0; l.len()], vec![0.0; x.len()]);
    for i in 0..h {
        for (q, p) in (0..h * h).map(|qp| (qp / h, qp % h)) {
            for (o, c) in (0..n * k).map(|oc| (oc / k, oc % k)) {
                for rank in i * r..(i + 1) * r {
                    let (at, ai) = ((q * n + o) * h * k + p * k + c, (i * h + q) * h + p);
                    let (li, xi) = (o * h * r + rank, rank * k + c);
                    w[at] += a[ai] * l[li] * x[xi];
                    da[ai] += dw[at] * l[li] * x[xi];
                    dl[li] += dw[at] * a[ai] * x[xi];
                    dx[xi] += dw[at] * a[ai] * l[li];
                }
            }
        }
    }
    [w, da, dl, dx]
}

fn integers_come_out_exact() {
    for dtype in STORED {
        for shape in SHAPES {
            let names = ["rule", "left", "right"];
            let drawn = std::array::from_fn::<_, 3, _>(|i| draw_integers(names[i], &dims(shape)[i], 1, dtype));
            let [n, k, h, _] = shape;
            let (dw, dws) = draw_integers("dw", &[n * h, k * h], 1, dtype);
            let tensors: Vec<&Tensor> = drawn.iter().map(|(t, _)| t).collect();
            let (w, grads) = run(&tensors, &dw, |tape, v| kronecker(tape, &v[0], &v[1], &v[2]));
            let want = written(shape, &drawn[0].1, &drawn[1].1, &drawn[2].1, &dws);
            assert!(compare::exact(&w, &want[0]).ok(), "{dtype} {shape:?}");
            for (got, want) in grads.iter().zip(&want[1..]) {
                // Sums beyond what 16 bits hold are rounded once, on the way into storage.
                let want = crate::ops::check::rounded(want, dtype);
                assert!(compare::exact(got, &want).ok(), "{dtype} {shape:?}");
            }
            let mut wrong = want[0].clone();
            wrong[0] += 1.0;
            assert!(!compare::exact(&w, &wrong).ok());
        }
    }
}

/// Two matrices with one rule: its gradients add up.
fn a_shared_factor_gathers_its_gradients() {
    for dtype in STORED {
        let mut builder = ParamSetBuilder::new();
        let mut add = |name: &str, dims: &[usize]| {
            let values = (0..dims.iter().product()).map(|i: usize| (i * 3 % 4) as f32 - 1.0).collect();
            builder.add(name, dims, Init::Values(values)).unwrap()
        };
        let rule = add("rule", &[2, 2, 2]);
        let factors = [add("l1", &[3, 2]), add("r1", &[2, 4]), add("l2", &[1, 2]), add("r2", &[2, 6])];
        let params = builder.build(&device(), dtype, 0).unwrap();
        let gradient = |which: &[usize]| {
            let mut grads = Grads::zeros(&params).unwrap();
            for &i in which {
                let mut tape = Tape::deterministic(&params);
                let [rule, left, right] = [rule, factors[2 * i], factors[2 * i + 1]].map(|id| tape.param(id).unwrap());
                let w = kronecker(&mut tape, &rule, &left, &right).unwrap();
                let ones = vec![1.0; w.tensor().numel()];
                let dw = Tensor::from_f32(&device(), w.dims(), &ones, dtype).unwrap();
                tape.backward_with(&w, dw, &mut grads).unwrap();
            }
            grads.view(rule).unwrap().to_f64_vec().unwrap()
        };
        let sum: Vec<f64> = gradient(&[0]).iter().zip(&gradient(&[1])).map(|(a, b)| a + b).collect();
        assert!(compare::exact(&gradient(&[0, 1]), &sum).ok(), "{dtype}");
        assert!(sum.iter().any(|&v| v != 0.0));
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let set = crate::tensor::ParamSet::none(&device, DType::F32).unwrap();
    let mut tape = Tape::inference(&set);
    let mut call = |rule: &[usize], left: &[usize], right: &[usize], dtype| {
        let make = |dims: &[usize], dtype| Var::constant(Tensor::zeros(&device, dims, dtype).unwrap());
        let (rule, left, right) = (make(rule, DType::F32), make(left, DType::F32), make(right, dtype));
        kronecker(&mut tape, &rule, &left, &right).map(|w| w.dims().to_vec())
    };
    assert_eq!(call(&[2, 2, 2], &[3, 4], &[4, 5], DType::F32).unwrap(), [6, 10]);
    assert!(matches!(call(&[2, 2], &[3, 4], &[4, 5], DType::F32), Err(Error::Shape { argument: "rule", .. })));
    assert!(matches!(call(&[2, 2, 3], &[3, 4], &[4, 5], DType::F32), Err(Error::Shape { argument: "rule", .. })));
    assert!(matches!(call(&[2, 2, 2], &[3, 3], &[3, 5], DType::F32), Err(Error::Shape { argument: "left", .. })));
    assert!(matches!(call(&[2, 2, 2], &[3, 4], &[2, 5], DType::F32), Err(Error::Shape { argument: "right", .. })));
    assert!(matches!(call(&[2, 2, 2], &[3, 4], &[4, 5], DType::F16), Err(Error::DType { argument: "right", .. })));
}
