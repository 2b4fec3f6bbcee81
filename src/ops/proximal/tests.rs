use super::*;
use crate::ops::check::{device, on_each_device};

on_each_device! {
    the_golden_values_of_the_block_step,
    blocks_have_their_own_thresholds_and_the_working_copy_follows,
    the_soft_threshold_is_the_formula_and_not_the_code_that_zeroes_twice,
    bad_thresholds_and_tensors_are_refused,
}

fn tensor(dims: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_slice(&device(), dims, values).unwrap()
}

fn the_golden_values_of_the_block_step() {
    // ‖[[3, 0], [0, 4]]‖ = 5.
    let shrunk = |threshold| {
        let w = tensor(&[1, 2, 2], &[3.0, 0.0, 0.0, 4.0]);
        shrink_blocks(&w, None, threshold).unwrap();
        w.to_vec::<f32>().unwrap()
    };
    let near = |got: Vec<f32>, want: [f32; 4]| got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 2.4e-7 * w.abs());
    assert!(near(shrunk(Threshold::Uniform(2.0)), [1.8, 0.0, 0.0, 2.4]));
    assert_eq!(shrunk(Threshold::Uniform(5.0)), [0.0; 4]);
    assert_eq!(shrunk(Threshold::Uniform(7.0)), [0.0; 4]);
    assert_eq!(shrunk(Threshold::Uniform(0.0)), [3.0, 0.0, 0.0, 4.0]);
}

fn blocks_have_their_own_thresholds_and_the_working_copy_follows() {
    let w = tensor(&[3, 1, 2], &[3.0, 4.0, 3.0, 4.0, 0.0, 0.0]);
    let working = Tensor::zeros(&device(), &[3, 1, 2], DType::BF16).unwrap();
    let t = tensor(&[3], &[2.5, 5.5, 0.0]);
    shrink_blocks(&w, Some(&working), Threshold::PerBlock(&t)).unwrap();
    assert_eq!(w.to_vec::<f32>().unwrap(), [1.5, 2.0, 0.0, 0.0, 0.0, 0.0]);
    assert_eq!(working.to_f32_vec().unwrap(), [1.5, 2.0, 0.0, 0.0, 0.0, 0.0]);
    let nan = tensor(&[2, 1, 2], &[f32::NAN, 4.0, 3.0, 4.0]);
    shrink_blocks(&nan, None, Threshold::Uniform(1.0)).unwrap();
    let got = nan.to_vec::<f32>().unwrap();
    assert!(got[0].is_nan() && got[1].is_nan() && got[2].is_finite());
}

fn the_soft_threshold_is_the_formula_and_not_the_code_that_zeroes_twice() {
    let v = tensor(&[7], &[1.5, 2.5, -1.5, 0.5, -1.0, 0.0, f32::NAN]);
    soft_threshold(&v, None, 1.0).unwrap();
    let got = v.to_vec::<f32>().unwrap();
    assert_eq!(got[..6], [0.5, 1.5, -0.5, 0.0, 0.0, 0.0]);
    assert!(got[6].is_nan());
}

fn bad_thresholds_and_tensors_are_refused() {
    let w = tensor(&[1, 1, 2], &[3.0, 4.0]);
    for t in [-1.0, f64::NAN, f64::INFINITY] {
        let refused = shrink_blocks(&w, None, Threshold::Uniform(t));
        assert!(matches!(refused, Err(Error::Value { argument: "threshold", .. })), "{t}");
        assert!(matches!(soft_threshold(&w, None, t), Err(Error::Value { argument: "threshold", .. })), "{t}");
    }
    let narrow = Tensor::zeros(&device(), &[1, 1, 2], DType::F16).unwrap();
    assert!(matches!(soft_threshold(&narrow, None, 1.0), Err(Error::DType { argument: "master", .. })));
    let one = tensor(&[], &[1.0]);
    assert!(matches!(shrink_blocks(&one, None, Threshold::Uniform(1.0)), Err(Error::Shape { argument: "master", .. })));
    let few = tensor(&[2], &[1.0, 1.0]);
    let refused = shrink_blocks(&w, None, Threshold::PerBlock(&few));
    assert!(matches!(refused, Err(Error::Shape { argument: "threshold", .. })));
}
