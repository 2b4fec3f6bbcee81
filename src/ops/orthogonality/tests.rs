use super::*;
use crate::device::Device;
use crate::ops::check::{device, draw_integers, on_each_device, wide};
use crate::testing::compare;

on_each_device!(integers_come_out_exact);

/// ‖MMᵀ − 1‖² or ‖MᵀM − 1‖².
fn penalty(m: &[f64], rows: usize, cols: usize, side: Side) -> f64 {
    let (r, inner) = if side == Side::Rows { (rows, cols) } else { (cols, rows) };
    let at = |i: usize, c: usize| if side == Side::Rows { m[i * cols + c] } else { m[c * cols + i] };
    let gram = |i: usize, j: usize| (0..inner).map(|c| at(i, c) * at(j, c)).sum::<f64>();
    (0..r * r).map(|e| (gram(e / r, e % r) - f64::from(u8::from(e / r == e % r))).powi(2)).sum()
}

#[test]
fn the_gradient_is_that_of_the_penalty() {
    let cpu = Device::cpu();
    for (rows, cols) in [(2, 5), (7, 3), (1, 1)] {
        for side in [Side::Rows, Side::Columns] {
            let values = wide("m", rows * cols);
            let matrix = Tensor::from_slice(&cpu, &[rows, cols], &values).unwrap();
            let gradient = Tensor::zeros(&cpu, &[rows, cols], DType::F64).unwrap();
            add_gradient(&matrix, side, 0.3, &gradient).unwrap();
            for (e, got) in gradient.to_f64_vec().unwrap().into_iter().enumerate() {
                let at = |step: f64| {
                    let mut moved = values.clone();
                    moved[e] += step;
                    0.3 * penalty(&moved, rows, cols, side)
                };
                let want = (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((got - want).abs() < 1e-6 * want.abs().max(1.0), "{side:?} {e}: {got} {want}");
            }
        }
    }
}

fn integers_come_out_exact() {
    for (rows, cols) in [(3, 130), (130, 3), (17, 33), (1, 1)] {
        for side in [Side::Rows, Side::Columns] {
            let (matrix, m) = draw_integers("m", &[rows, cols], 3, DType::F32);
            let (gradient, start) = draw_integers("g", &[rows, cols], 9, DType::F32);
            add_gradient(&matrix, side, 0.5, &gradient).unwrap();
            let gram = |i: usize, j: usize| -> f64 {
                match side {
                    Side::Rows => (0..cols).map(|c| m[i * cols + c] * m[j * cols + c]).sum(),
                    Side::Columns => (0..rows).map(|c| m[c * cols + i] * m[c * cols + j]).sum(),
                }
            };
            let want: Vec<f64> = (0..rows * cols)
                .map(|e| {
                    let (i, j) = (e / cols, e % cols);
                    let sum: f64 = match side {
                        Side::Rows => (0..rows).map(|q| gram(i, q) * m[q * cols + j]).sum(),
                        Side::Columns => (0..cols).map(|q| m[i * cols + q] * gram(q, j)).sum(),
                    };
                    start[e] + 2.0 * (sum - m[e])
                })
                .collect();
            let mut got = gradient.to_f64_vec().unwrap();
            assert!(compare::exact(&got, &want).ok(), "{side:?} {rows}x{cols} on {}", device().name());
            got[0] += 1.0;
            assert!(!compare::exact(&got, &want).ok());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |dims: &[usize], dtype| Tensor::zeros(&Device::cpu(), dims, dtype).unwrap();
    let of = |m: Tensor, g: Tensor, w| add_gradient(&m, Side::Rows, w, &g);
    let f32s = |dims: &[usize]| zeros(dims, DType::F32);
    assert!(of(f32s(&[2, 3]), f32s(&[2, 3]), 1.0).is_ok());
    assert!(of(f32s(&[0, 3]), f32s(&[0, 3]), 1.0).is_ok());
    assert!(matches!(of(f32s(&[2]), f32s(&[2]), 1.0), Err(Error::Shape { argument: "matrix", .. })));
    assert!(matches!(of(f32s(&[2, 3]), f32s(&[3, 2]), 1.0), Err(Error::Shape { argument: "gradient", .. })));
    let half = zeros(&[2, 3], DType::F16);
    assert!(matches!(of(half.clone(), half, 1.0), Err(Error::DType { argument: "matrix", .. })));
    assert!(matches!(of(f32s(&[2, 3]), f32s(&[2, 3]), f64::NAN), Err(Error::Value { argument: "weight", .. })));
}
