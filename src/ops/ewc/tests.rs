use super::*;
use crate::device::Device;
use crate::ops::check::{device, draw, draw_integers, on_each_device};
use crate::testing::compare;

on_each_device! {
    integers_come_out_exact_across_pieces,
    random_values_are_within_rounding,
    what_is_not_finite_is_noticed,
    tensors_that_do_not_fit_are_refused,
}

const LENGTHS: [usize; 6] = [0, 1, 255, 4096, 4097, 9000];

fn integers_come_out_exact_across_pieces() {
    for n in LENGTHS {
        let of = |name: &str| draw_integers(name, &[n], 3, DType::F32);
        let ((params, now), (anchor, held), (squares, strengths), (gradients, slopes)) =
            (of("params"), of("anchor"), of("squares"), of("gradients"));
        let spring = Spring { params: &params, anchor: &anchor, squares: &squares };
        let away = |i: usize| now[i] - held[i];
        let want: f64 = (0..n).map(|i| strengths[i] * away(i).powi(2)).sum();
        assert_eq!(spring.penalty().unwrap(), want, "{n}");
        spring.pull(&gradients, 1.5).unwrap();
        let want: Vec<f64> = (0..n).map(|i| slopes[i] + 3.0 * strengths[i] * away(i)).collect();
        assert!(compare::exact(&gradients.to_f64_vec().unwrap(), &want).ok(), "{n}");
        assert!(observe(&squares, &params).unwrap());
        let want: Vec<f64> = (0..n).map(|i| strengths[i] + now[i] * now[i]).collect();
        assert!(compare::exact(&squares.to_f64_vec().unwrap(), &want).ok(), "{n}");
        if n > 0 {
            assert!(!compare::exact(&squares.to_f64_vec().unwrap(), &strengths).ok() || now.iter().all(|&v| v == 0.0));
        }
    }
}

fn random_values_are_within_rounding() {
    let of = |name: &str| draw(name, &[5000], DType::F32);
    let ((params, now), (anchor, held), (squares, strengths), (gradients, slopes)) =
        (of("params"), of("anchor"), of("squares"), of("gradients"));
    let spring = Spring { params: &params, anchor: &anchor, squares: &squares };
    let (mut want, mut size) = (0.0, 0.0);
    for i in 0..now.len() {
        let term = strengths[i] * (now[i] - held[i]).powi(2);
        (want, size) = (want + term, size + term.abs());
    }
    assert!((spring.penalty().unwrap() - want).abs() <= 1e-12 * size);
    spring.pull(&gradients, 0.3).unwrap();
    let pulls: Vec<f64> = (0..now.len()).map(|i| 0.6 * strengths[i] * (now[i] - held[i])).collect();
    let want: Vec<f64> = slopes.iter().zip(&pulls).map(|(g, p)| g + p).collect();
    let sizes: Vec<f64> = slopes.iter().zip(&pulls).map(|(g, p)| g.abs() + p.abs()).collect();
    assert!(compare::bound(&gradients.to_f64_vec().unwrap(), &want, &sizes, 5, DType::F32).ok());
}

fn what_is_not_finite_is_noticed() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1.0f32; 700];
        values[513] = bad;
        let gradients = Tensor::from_slice(&device(), &[700], &values).unwrap();
        let squares = Tensor::zeros(&device(), &[700], DType::F32).unwrap();
        assert!(!observe(&squares, &gradients).unwrap());
    }
}

fn tensors_that_do_not_fit_are_refused() {
    let zeros = |n: usize, dtype| Tensor::zeros(&device(), &[n], dtype).unwrap();
    let (small, large, half) = (zeros(3, DType::F32), zeros(4, DType::F32), zeros(3, DType::F16));
    assert!(matches!(observe(&small, &large), Err(Error::Shape { argument: "gradients", .. })));
    assert!(matches!(observe(&half, &half), Err(Error::DType { argument: "squares", .. })));
    let spring = Spring { params: &small, anchor: &large, squares: &small };
    assert!(matches!(spring.penalty(), Err(Error::Shape { argument: "anchor", .. })));
    let spring = Spring { params: &small, anchor: &small, squares: &small };
    assert!(matches!(spring.pull(&small, f64::NAN), Err(Error::Value { argument: "c", .. })));
    let elsewhere = Tensor::zeros(&Device::trace(80), &[3], DType::F32).unwrap();
    assert!(matches!(observe(&small, &elsewhere), Err(Error::DeviceMismatch { .. })));
}

#[test]
fn doubles_stay_doubles_on_the_cpu() {
    let of = |values: &[f64]| Tensor::from_slice(&Device::cpu(), &[values.len()], values).unwrap();
    let (params, anchor, squares) = (of(&[1.5, 1.0 + 1e-12]), of(&[1.0, 1.0]), of(&[2.0, 1e24]));
    let spring = Spring { params: &params, anchor: &anchor, squares: &squares };
    assert!((spring.penalty().unwrap() - 1.5).abs() < 1e-3);
    assert!(observe(&squares, &anchor).unwrap());
    assert_eq!(squares.to_f64_vec().unwrap()[0], 3.0);
}
