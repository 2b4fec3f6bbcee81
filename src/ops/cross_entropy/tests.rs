use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{device, on_each_device};
use crate::tensor::{Init, ParamSet, ParamSetBuilder};
use crate::testing::{compare, gradient, integers, normal};

on_each_device!(
    every_dtype_and_tail_is_within_its_bound,
    a_wrong_result_is_rejected,
    with_no_target_left_loss_and_gradient_are_zero,
    i32_targets_and_more_dimensions_are_the_same,
    nan_spreads_to_the_loss_and_to_its_row_alone,
    a_parameter_collects_its_gradient_in_f32_over_two_backwards,
);

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn logits(m: usize, c: usize, dtype: DType) -> Tensor {
    let values: Vec<f32> = normal("logits", m * c).iter().map(|v| 3.0 * v).collect();
    Tensor::from_f32(&device(), &[m, c], &values, dtype).unwrap()
}

/// Every fifth target is −1.
fn targets(m: usize, c: usize) -> Vec<i64> {
    (0..m).map(|i| if i % 5 == 3 { -1 } else { (i * 7 % c) as i64 }).collect()
}

fn column(targets: &[i64]) -> Tensor {
    Tensor::from_slice(&device(), &[targets.len()], targets).unwrap()
}

/// Loss and gradient, as f64.
fn run(x: &Tensor, y: &Tensor, options: &CrossEntropyOptions) -> Result<(f64, Vec<f64>)> {
    let params = ParamSet::none(x.device(), DType::F32)?;
    let mut tape = Tape::deterministic(&params);
    let x = tape.input(x.clone());
    let loss = cross_entropy(&mut tape, &x, y, options)?;
    let value = loss.tensor().to_scalar()?;
    let done = tape.backward(&loss, &mut Grads::zeros(&params)?)?;
    Ok((value, done.input_gradient(&x).map_or(Ok(Vec::new()), Tensor::to_f64_vec)?))
}

/// The formula in f64.
#[derive(Default)]
struct Reference {
    loss: f64,
    slope: Vec<f64>,
    /// Sums of the absolute values of what loss and slopes are made of.
    loss_magnitude: f64,
    slope_magnitude: Vec<f64>,
}

fn reference(x: &Tensor, targets: &[i64], options: &CrossEntropyOptions) -> Reference {
    let (values, c) = (x.to_f64_vec().unwrap(), x.cols());
    let mut out = Reference::default();
    let e = options.label_smoothing;
    let counted = targets.iter().filter(|&&y| options.ignore_index != Some(y)).count() as u64;
    let n = options.denominator.unwrap_or(counted).max(1) as f64;
    for (row, &y) in values.chunks(c).zip(targets) {
        if options.ignore_index == Some(y) {
            out.slope.extend(vec![0.0; c]);
            out.slope_magnitude.extend(vec![0.0; c]);
            continue;
        }
        let max = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v));
        let log_sum = row.iter().map(|v| (v - max).exp()).sum::<f64>().ln();
        out.loss_magnitude += (max.abs() + log_sum.abs()) / n;
        for (j, &v) in row.iter().enumerate() {
            let weight = if j as i64 == y { 1.0 - e } else { 0.0 } + e / c as f64;
            let p = (v - max - log_sum).exp();
            out.loss += weight * (max + log_sum - v) / n;
            out.loss_magnitude += weight * v.abs() / n;
            out.slope.push((p - weight) / n);
            // An error of the exponent is a relative error of the exponential.
            out.slope_magnitude.push((p * (1.0 + v.abs() + max.abs() + log_sum) + weight) / n);
        }
    }
    out
}

/// Outcomes for loss and slopes: c terms in a row's sum, and eight roundings for the exponential, the logarithm and the mean.
fn outcomes(loss: f64, slope: &[f64], want: &Reference, c: usize, dtype: DType) -> [compare::Outcome; 2] {
    [
        compare::bound(&[loss], &[want.loss], &[want.loss_magnitude], c + 8, DType::F32),
        compare::bound(slope, &want.slope, &want.slope_magnitude, c + 8, dtype),
    ]
}

fn all_options() -> [CrossEntropyOptions; 4] {
    let ignoring = CrossEntropyOptions { ignore_index: Some(-1), ..CrossEntropyOptions::default() };
    [
        ignoring,
        CrossEntropyOptions { label_smoothing: 0.1, ..ignoring },
        CrossEntropyOptions { denominator: Some(50), ..ignoring },
        CrossEntropyOptions { label_smoothing: 1.0, denominator: Some(3), ..ignoring },
    ]
}

#[test]
fn gradients_agree_with_central_differences() {
    for options in all_options() {
        for (m, c) in [(7, 5), (4, 1), (2, 20)] {
            let y = column(&targets(m, c));
            let x = (&[m, c][..], logits(m, c, DType::F64).to_f64_vec().unwrap());
            gradient::check(&[x], None, |tape, v| cross_entropy(tape, &v[0], &y, &options)).unwrap();
        }
    }
}

fn every_dtype_and_tail_is_within_its_bound() {
    for dtype in FLOATS {
        for (m, c) in [(1, 1), (3, 7), (33, 10), (5, 17), (9, 1000), (2, 5003)] {
            let (x, y) = (logits(m, c, dtype), targets(m, c));
            for options in all_options() {
                let (loss, slope) = run(&x, &column(&y), &options).unwrap();
                for outcome in outcomes(loss, &slope, &reference(&x, &y, &options), c, dtype) {
                    assert!(outcome.ok(), "{dtype} {m} {c}: {outcome:?}");
                }
            }
        }
    }
}

fn a_wrong_result_is_rejected() {
    let (x, y) = (logits(33, 10, DType::F32), targets(33, 10));
    let right = all_options()[1];
    let wrong = [
        CrossEntropyOptions { label_smoothing: 0.101, ..right },
        CrossEntropyOptions { denominator: Some(33), ..right },
    ];
    for options in wrong {
        let (loss, slope) = run(&x, &column(&y), &options).unwrap();
        assert!(outcomes(loss, &slope, &reference(&x, &y, &right), 10, DType::F32).iter().all(|o| !o.ok()));
    }
}

/// Equal logits over four classes: the loss is ln 4, the softmax exactly 1/4, and with one target a row the slopes are exact too.
#[test]
fn equal_logits_give_exact_slopes_and_golden_losses() {
    for dtype in FLOATS {
        let x = Tensor::zeros(&device(), &[2, 4], dtype).unwrap();
        let (loss, slope) = run(&x, &column(&[2, 0]), &CrossEntropyOptions::default()).unwrap();
        assert!((loss - 4f64.ln()).abs() < 1e-6);
        let exact: Vec<f64> = [1, 1, -3, 1, -3, 1, 1, 1].map(|v| f64::from(v) / 8.0).into();
        assert!(slope.iter().zip(&exact).all(|(g, w)| (g - w).abs() <= dtype.unit_roundoff()), "{slope:?}");
    }
    // ln(1 + e^−1) and ln(1 + e).
    let x = Tensor::from_slice(&device(), &[2, 2], &[1.0f64, 0.0, 1.0, 0.0]).unwrap();
    let (loss, _) = run(&x, &column(&[0, 1]), &CrossEntropyOptions::default()).unwrap();
    assert!((loss - (0.313_261_687_518_222_8 + 1.313_261_687_518_222_8) / 2.0).abs() < 1e-15);
}

#[test]
fn micro_batches_with_a_common_denominator_add_up_to_the_whole() {
    let (x, y) = (logits(12, 6, DType::F64), targets(12, 6));
    let count = y.iter().filter(|&&y| y >= 0).count() as u64;
    let options = CrossEntropyOptions { ignore_index: Some(-1), ..CrossEntropyOptions::default() };
    let (whole, slope) = run(&x, &column(&y), &options).unwrap();
    let part = CrossEntropyOptions { denominator: Some(count), ..options };
    let (mut sum, mut slopes) = (0.0, Vec::new());
    for (start, len) in [(0, 5), (5, 7)] {
        let (loss, s) = run(&x.slice(0, start, len).unwrap(), &column(&y[start..start + len]), &part).unwrap();
        sum += loss;
        slopes.extend(s);
    }
    assert!((sum - whole).abs() < 1e-14 && compare::exact(&slopes, &slope).ok());
}

fn with_no_target_left_loss_and_gradient_are_zero() {
    let options = CrossEntropyOptions { ignore_index: Some(-100), ..CrossEntropyOptions::default() };
    // What an ignored row holds is not looked at.
    let x = Tensor::from_slice(&device(), &[3, 5], &[f32::NAN; 15]).unwrap();
    let (loss, slope) = run(&x, &column(&[-100; 3]), &options).unwrap();
    assert!(loss == 0.0 && slope.iter().all(|&s| s == 0.0));
    let (loss, slope) = run(&logits(0, 5, DType::F32), &column(&[]), &options).unwrap();
    assert!(loss == 0.0 && slope.is_empty());
}

fn i32_targets_and_more_dimensions_are_the_same() {
    let (x, y) = (logits(6, 5, DType::F32), targets(6, 5));
    let options = all_options()[1];
    let narrow: Vec<i32> = y.iter().map(|&y| y as i32).collect();
    let shaped = Tensor::from_slice(&device(), &[2, 3], &narrow).unwrap();
    let got = run(&x.reshape(&[2, 3, 5]).unwrap(), &shaped, &options).unwrap();
    assert_eq!(got, run(&x, &column(&y), &options).unwrap());
}

fn nan_spreads_to_the_loss_and_to_its_row_alone() {
    let x = logits(3, 20, DType::F32);
    let mut values = x.to_f32_vec().unwrap();
    values[37] = f32::NAN;
    x.overwrite(&values).unwrap();
    let (loss, slope) = run(&x, &column(&[1, 2, 3]), &CrossEntropyOptions::default()).unwrap();
    assert!(loss.is_nan() && slope[20..40].iter().all(|s| s.is_nan()));
    assert!(slope[..20].iter().chain(&slope[40..]).all(|s| s.is_finite()));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (x, y) = (logits(300, 501, DType::F32), column(&targets(300, 501)));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let options = all_options()[1];
    assert_eq!(run(&x, &y, &options).unwrap(), one.install(|| run(&x, &y, &options)).unwrap());
}

fn a_parameter_collects_its_gradient_in_f32_over_two_backwards() {
    let mut builder = ParamSetBuilder::new();
    let id = builder.add("x", &[4, 3], Init::Values(integers("x", 12, 2))).unwrap();
    let params = builder.build(&device(), DType::BF16, 0).unwrap();
    let mut grads = Grads::zeros(&params).unwrap();
    let y = [0, 1, 2, 1];
    for _ in 0..2 {
        let mut tape = Tape::deterministic(&params);
        let x = tape.param(id).unwrap();
        let loss = cross_entropy(&mut tape, &x, &column(&y), &CrossEntropyOptions::default()).unwrap();
        tape.backward(&loss, &mut grads).unwrap();
    }
    let want = reference(&params.tensor(id).unwrap(), &y, &CrossEntropyOptions::default()).slope;
    let got = grads.view(id).unwrap().to_f64_vec().unwrap();
    assert!(got.iter().zip(&want).all(|(g, w)| (g - 2.0 * w).abs() < 1e-6), "{got:?} {want:?}");
}

#[test]
fn what_does_not_fit_is_named() {
    let x = logits(3, 5, DType::F32);
    let refused = |x: &Tensor, y: &Tensor, options: CrossEntropyOptions, part: &str| {
        let text = run(x, y, &options).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    let fine = CrossEntropyOptions::default();
    refused(&x, &column(&[0, 5, 1]), fine, "5 in row 1");
    refused(&x, &column(&[0, 1, -1]), fine, "-1 in row 2");
    refused(&x, &column(&[0, 7, -1]), CrossEntropyOptions { ignore_index: Some(-1), ..fine }, "7 in row 1");
    refused(&x, &column(&[0, 1]), fine, "`targets`");
    refused(&x, &Tensor::zeros(&device(), &[3], DType::F32).unwrap(), fine, "i32 or i64");
    refused(&Tensor::zeros(&device(), &[3, 0], DType::F32).unwrap(), &column(&[0; 3]), fine, "`logits`");
    refused(&Tensor::zeros(&device(), &[3, 4], DType::I32).unwrap(), &column(&[0; 3]), fine, "`logits`");
    refused(&x, &column(&[0; 3]), CrossEntropyOptions { denominator: Some(0), ..fine }, "`denominator`");
    for e in [-0.1, 1.1, f64::NAN] {
        refused(&x, &column(&[0; 3]), CrossEntropyOptions { label_smoothing: e, ..fine }, "`label_smoothing`");
    }
}

#[test]
fn the_plan_has_two_launches_forward_and_one_backward() {
    let device = Device::trace(80);
    for (c, symbols) in [
        (
            10,
            ["cross_entropy_rows_bf16_w32_sm80", "cross_entropy_sum_f32_t256_sm80", "cross_entropy_bwd_bf16_w32_sm80"],
        ),
        (
            4096,
            [
                "cross_entropy_rows_bf16_t256_sm80",
                "cross_entropy_sum_f32_t256_sm80",
                "cross_entropy_bwd_bf16_t256_sm80",
            ],
        ),
    ] {
        let before = device.launcher().unwrap().recorded().len();
        let params = ParamSet::none(&device, DType::BF16).unwrap();
        let mut tape = Tape::deterministic(&params);
        let x = tape.input(Tensor::zeros(&device, &[33, c], DType::BF16).unwrap());
        let y = Tensor::zeros(&device, &[33], DType::I64).unwrap();
        let options = CrossEntropyOptions { ignore_index: Some(-1), denominator: Some(4), ..Default::default() };
        let loss = cross_entropy(&mut tape, &x, &y, &options).unwrap();
        tape.backward(&loss, &mut Grads::zeros(&params).unwrap()).unwrap();
        let specs = device.launcher().unwrap().recorded().split_off(before);
        assert_eq!(specs.iter().map(|s| s.kernel.row().symbol).collect::<Vec<_>>(), symbols);
        let forward: gpu::Params = specs[0].params.read().unwrap();
        assert_eq!((forward.m, forward.c, forward.vector), (33, c as u64, u32::from(c % 8 == 0)));
        assert_eq!((forward.fixed_inverse, forward.may_ignore, forward.wide_targets), (0.25, 1, 1));
        assert_eq!(specs[0].grid[0], if c == 10 { 5 } else { 33 });
        let backward: gpu::Params = specs[2].params.read().unwrap();
        assert!(backward.dx != 0 && backward.dx_flags == 0 && backward.lse == forward.lse);
    }
}
