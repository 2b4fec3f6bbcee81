use super::*;
use crate::device::Device;
use crate::ops::check::{STORED, device, draw, draw_integers, forward, on_each_device, run, wide};
use crate::testing::{compare, gradient};

on_each_device!(pythagoras_comes_out_exact, norms_of_rows_are_within_their_bound, a_row_of_nothing_stays_one,);

/// As the op takes it: m, A, B.
fn call(tape: &mut Tape, weight: &Tensor, v: &[Var], scale: f64) -> Result<Var> {
    magnitude(tape, &v[0], &FrozenWeight::new(weight.clone())?, [&v[1], &v[2]], scale)
}

#[test]
fn the_gradient_of_the_magnitudes_agrees_with_central_differences() {
    let of = |name: &str, dims: &[usize]| {
        Tensor::from_slice(&Device::cpu(), dims, &wide(name, dims.iter().product())).unwrap()
    };
    let (weight, a, b) = (of("w", &[5, 7]), of("a", &[2, 7]), of("b", &[5, 2]));
    gradient::check(&[(&[5], wide("m", 5))], None, |tape, v| {
        let [a, b] = [&a, &b].map(|t| Var::constant(t.clone()));
        call(tape, &weight, &[v[0].clone(), a, b], 0.7)
    })
    .unwrap();
}

/// Rows (3, 4, 0, ..) and (5, 12, 0, ..) made of W₀ and B·A: norms 5 and 13, m multiples of them.
fn pythagoras_comes_out_exact() {
    for dtype in STORED {
        for k in [2, 3, 16, 257, 1030] {
            let of = |dims: &[usize], v: &[f32]| Tensor::from_f32(&device(), dims, v, dtype).unwrap();
            let n = 9;
            let mut weight = vec![0.0f32; n * k];
            for i in 0..n {
                weight[i * k + 1] = if i % 2 == 0 { 4.0 } else { 12.0 };
            }
            // A's only row is (1, 0, ..): B gives 3 or 5, times the scale.
            let mut a = vec![0.0f32; k];
            a[0] = 1.0;
            let b: Vec<f32> = (0..n).map(|i| if i.is_multiple_of(2) { 1.5 } else { 2.5 }).collect();
            let (factors, fs) = draw_integers("m", &[n], 9, dtype);
            let norm = |i: usize| if i.is_multiple_of(2) { 5.0 } else { 13.0 };
            let m: Vec<f32> = fs.iter().enumerate().map(|(i, f)| (f * norm(i)) as f32).collect();
            let (weight, a, b, m) = (of(&[n, k], &weight), of(&[1, k], &a), of(&[n, 1], &b), of(&[n], &m));
            let [a, b] = [a, b].map(Var::constant);
            let (g, grads) = run(&[&m], &m, |tape, v| call(tape, &weight, &[v[0].clone(), a.clone(), b.clone()], 2.0));
            assert!(compare::exact(&g, &fs).ok(), "{dtype} {k}");
            assert!(compare::exact(&grads[0], &fs).ok(), "{dtype} {k}");
            assert!(!compare::exact(&g, &fs.iter().map(|f| f + 1.0).collect::<Vec<_>>()).ok());
            drop(factors);
        }
    }
}

fn norms_of_rows_are_within_their_bound() {
    for dtype in STORED {
        for (n, k, r) in [(1, 1, 1), (9, 33, 3), (17, 300, 16), (8, 64, 256)] {
            let (weight, ws) = draw("w", &[n, k], dtype);
            let (a, at) = draw("a", &[r, k], dtype);
            let (b, bs) = draw("b", &[n, r], dtype);
            let got = row_norms(&FrozenWeight::new(weight).unwrap(), [&a, &b], -0.5).unwrap().to_f64_vec().unwrap();
            let row = |i: usize, sign: fn(f64) -> f64| -> f64 {
                let element = |j: usize| {
                    let update = (0..r).map(|q| sign(-0.5 * bs[i * r + q] * at[q * k + j])).sum::<f64>();
                    (sign(ws[i * k + j]) + update).powi(2)
                };
                (0..k).map(element).sum::<f64>().sqrt()
            };
            let want: Vec<f64> = (0..n).map(|i| row(i, |v| v)).collect();
            // ‖v + δ‖ is within ‖δ‖ of ‖v‖, and δ within γ(r + 1) of the sum of magnitudes.
            let size: Vec<f64> = (0..n).map(|i| row(i, f64::abs)).collect();
            assert!(compare::bound(&got, &want, &size, r + k + 4, DType::F32).ok(), "{dtype} {n} {k} {r}");
            let wrong: Vec<f64> = want.iter().map(|v| v * 1.01).collect();
            assert!(!compare::bound(&wrong, &want, &size, r + k + 4, DType::F32).ok());
        }
    }
}

fn a_row_of_nothing_stays_one() {
    let of = |dims: &[usize], v: &[f32]| Tensor::from_f32(&device(), dims, v, DType::F32).unwrap();
    let weight = of(&[3, 2], &[0.0, 0.0, 3.0, 4.0, f32::NAN, 1.0]);
    let [a, b] = [of(&[1, 2], &[1.0, 1.0]), of(&[3, 1], &[0.0; 3])].map(Var::constant);
    let (m, dg) = (of(&[3], &[0.0, 10.0, 1.0]), of(&[3], &[7.0, 5.0, 1.0]));
    let (g, grads) = run(&[&m], &dg, |tape, v| call(tape, &weight, &[v[0].clone(), a.clone(), b.clone()], 1.0));
    assert_eq!((&g[..2], &grads[0][..2]), (&[1.0, 2.0][..], &[0.0, 1.0][..]));
    assert!(g[2].is_nan() && grads[0][2].is_nan());
}

#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |dims: &[usize]| Tensor::zeros(&Device::cpu(), dims, DType::F32).unwrap();
    let of = |m: &[usize], a: &[usize], b: &[usize], scale| {
        let weight = zeros(&[4, 5]);
        forward(&[&zeros(m), &zeros(a), &zeros(b)], |tape, v| call(tape, &weight, v, scale))
    };
    assert!(of(&[4], &[2, 5], &[4, 2], 1.0).is_ok());
    assert!(matches!(of(&[5], &[2, 5], &[4, 2], 1.0), Err(Error::Shape { argument: "magnitude", .. })));
    assert!(matches!(of(&[4], &[2, 4], &[4, 2], 1.0), Err(Error::Shape { argument: "a", .. })));
    assert!(matches!(of(&[4], &[2, 5], &[4, 3], 1.0), Err(Error::Shape { argument: "b", .. })));
    assert!(matches!(of(&[4], &[0, 5], &[4, 0], 1.0), Err(Error::Value { argument: "rank", .. })));
    assert!(matches!(of(&[4], &[2, 5], &[4, 2], f64::NAN), Err(Error::Value { argument: "scale", .. })));
}
