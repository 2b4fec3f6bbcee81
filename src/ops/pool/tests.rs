use super::*;
use crate::device::Device;
use crate::ops::check::{STORED, TAILS, device, draw, draw_integers, forward, on_each_device, run, wide};
use crate::testing::{compare, gradient};

on_each_device!(integers_come_out_exact, a_mean_of_many_tokens_is_within_its_bound, nothing_is_fine_and_nan_passes,);

const BOTH: [Pooling; 2] = [Pooling::Mean, Pooling::ClassToken];

#[test]
fn gradients_agree_with_central_differences() {
    for pooling in BOTH {
        let x = (&[2, 5, 3][..], wide("x", 30));
        gradient::check(std::slice::from_ref(&x), None, |tape, v| pool(tape, &v[0], pooling)).unwrap();
        // Where x has a gradient from elsewhere already, this one is added.
        gradient::check(&[x], None, |tape, v| {
            let (a, b) = (pool(tape, &v[0], pooling)?, pool(tape, &v[0], Pooling::Mean)?);
            crate::ops::scale_add(tape, &a, &b, 2.0)
        })
        .unwrap();
    }
}

fn integers_come_out_exact() {
    for dtype in STORED {
        for d in TAILS {
            // Four tokens: a quarter is exact.
            let (x, xs) = draw_integers("x", &[3, 4, d], 9, dtype);
            let (dy, gs) = draw_integers("dy", &[3, d], 9, dtype);
            for pooling in BOTH {
                let (y, grads) = run(&[&x], &dy, |tape, v| pool(tape, &v[0], pooling));
                let at = |b: usize, t: usize, c: usize| xs[(b * 4 + t) * d + c];
                let want: Vec<f64> = (0..3 * d)
                    .map(|i| match pooling {
                        Pooling::Mean => (0..4).map(|t| at(i / d, t, i % d)).sum::<f64>() / 4.0,
                        Pooling::ClassToken => at(i / d, 0, i % d),
                    })
                    .collect();
                assert!(compare::exact(&y, &want).ok());
                let dx: Vec<f64> = (0..12 * d)
                    .map(|i| match (pooling, i / d % 4) {
                        (Pooling::Mean, _) => gs[i / d / 4 * d + i % d] / 4.0,
                        (Pooling::ClassToken, 0) => gs[i / d / 4 * d + i % d],
                        _ => 0.0,
                    })
                    .collect();
                assert!(compare::exact(&grads[0], &dx).ok());
                let mut wrong = y;
                wrong[d / 2] += 1.0;
                assert!(!compare::exact(&wrong, &want).ok());
            }
        }
    }
}

fn a_mean_of_many_tokens_is_within_its_bound() {
    for dtype in STORED {
        let (x, xs) = draw("x", &[2, 997, 5], dtype);
        let y = forward(&[&x], |tape, v| pool(tape, &v[0], Pooling::Mean)).unwrap().to_f64_vec().unwrap();
        let sum =
            |i: usize, f: fn(f64) -> f64| (0..997).map(|t| f(xs[(i / 5 * 997 + t) * 5 + i % 5])).sum::<f64>() / 997.0;
        let want: Vec<f64> = (0..10).map(|i| sum(i, |v| v)).collect();
        let size: Vec<f64> = (0..10).map(|i| sum(i, f64::abs)).collect();
        assert!(compare::bound(&y, &want, &size, 998, dtype).ok());
    }
}

fn nothing_is_fine_and_nan_passes() {
    for dims in [[0, 3, 4], [2, 3, 0]] {
        let x = Tensor::empty(&device(), &dims, DType::F32).unwrap();
        for pooling in BOTH {
            let (y, grads) =
                run(&[&x], &Tensor::empty(&device(), &[dims[0], dims[2]], DType::F32).unwrap(), |tape, v| {
                    pool(tape, &v[0], pooling)
                });
            assert!(y.is_empty() && grads[0].is_empty());
        }
    }
    let x = Tensor::from_f32(&device(), &[1, 2, 2], &[f32::NAN, 1.0, 2.0, 3.0], DType::BF16).unwrap();
    for pooling in BOTH {
        let y = forward(&[&x], |tape, v| pool(tape, &v[0], pooling)).unwrap().to_f32_vec().unwrap();
        assert!(y[0].is_nan() && !y[1].is_nan());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let of = |dims: &[usize], dtype| {
        let x = Tensor::empty(&device(), dims, dtype).unwrap();
        forward(&[&x], |tape, v| pool(tape, &v[0], Pooling::Mean))
    };
    assert!(matches!(of(&[2, 3], DType::F32), Err(Error::Shape { argument: "x", .. })));
    assert!(matches!(of(&[2, 0, 3], DType::F32), Err(Error::Shape { argument: "x", .. })));
    assert!(matches!(of(&[2, 2, 3], DType::I32), Err(Error::DType { .. })));
    let turned = draw("x", &[2, 3, 4], DType::F32).0.transpose(1, 2).unwrap();
    assert!(matches!(Desc::new(&turned, Pooling::Mean), Err(Error::NotContiguous { .. })));
}

#[test]
fn plans_name_what_counts() {
    let device = Device::trace(80);
    let desc = Desc { b: 3, t: 5, d: 64, pooling: Pooling::ClassToken, dtype: DType::F16 };
    let x = Tensor::empty(&device, &[3, 5, 64], DType::F16).unwrap();
    let y = Tensor::empty(&device, &[3, 64], DType::F16).unwrap();
    let spec = gpu::first_token(&desc, &x, &y).unwrap();
    assert_eq!((spec.len(), spec[0].grid), (1, [1, 1, 1]));
    let target = Target { tensor: x, accumulate: true };
    let spec = gpu::backward(&Desc { pooling: Pooling::Mean, ..desc }, &y, &target).unwrap();
    let p: gpu::Params = spec[0].params.read().unwrap();
    assert_eq!((p.class_token, p.accumulate, p.vector, p.factor), (0, 1, 1, 0.2));
    let spec = gpu::backward(&Desc { d: 63, ..desc }, &y, &target).unwrap();
    let p: gpu::Params = spec[0].params.read().unwrap();
    assert_eq!((p.class_token, p.vector, p.factor, spec[0].grid[0]), (1, 0, 1.0, 4));
}
