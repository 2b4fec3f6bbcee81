use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{
    STORED, TAILS, constant, device, draw, draw_integers, forward as infer, on_each_device, params, run, wide,
};
use crate::ops::{Activation, activation};
use crate::testing::{compare, gradient};

on_each_device!(
    rows_of_ones_come_out_exact,
    random_rows_are_within_their_bounds_and_wrong_ones_are_not,
    a_large_common_offset_does_not_cancel,
    only_what_backward_needs_is_kept,
    who_saves_the_output_keeps_input_and_statistics_and_gets_the_same_bits,
    nothing_is_fine_and_nan_stays_in_its_row,
);

const BOTH: [Kind; 2] = [Kind::Layer, Kind::Rms];
const EPS: f64 = 1e-5;

/// The op on [x, γ, β], whatever its kind; RMS leaves β out.
fn apply(kind: Kind, eps: f64) -> impl Fn(&mut Tape, &[Var]) -> Result<Var> {
    move |tape, v| match kind {
        Kind::Layer => layer_norm(tape, &v[0], &v[1], v.get(2), eps),
        Kind::Rms => rms_norm(tape, &v[0], &v[1], eps),
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    for d in [1, 3, 7, 33] {
        let inputs = [(&[2, 3, d][..], wide("x", 6 * d)), (&[d][..], wide("gamma", d)), (&[d][..], wide("beta", d))];
        for kind in BOTH {
            let count = kind.statistics() + 1;
            gradient::check(&inputs[..count], None, apply(kind, 0.1)).unwrap();
            // x has a gradient from elsewhere, and who saves y makes it again.
            gradient::check(&inputs[..count], None, |tape, v| {
                let y = apply(kind, 0.1)(tape, v)?;
                let y = activation(tape, &y, Activation::Silu)?;
                let y = apply(kind, 0.1)(tape, &[y, v[1].clone()])?;
                crate::ops::scale_add(tape, &y, &v[0], 2.0)
            })
            .unwrap();
        }
        gradient::check(&inputs[..2], None, apply(Kind::Layer, 0.1)).unwrap();
    }
}

#[test]
fn golden_values() {
    let row = |kind, x: &[f64], eps: f64| {
        let d = x.len();
        let x = Tensor::from_slice(&device(), &[d], x).unwrap();
        let gamma = Tensor::from_slice(&device(), &[d], &vec![2.0; d]).unwrap();
        infer(&[&x, &gamma], apply(kind, eps)).unwrap().to_f64_vec().unwrap()
    };
    let close = |got: Vec<f64>, want: &[f64]| {
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12), "{got:?} for {want:?}");
    };
    // Deviations ±1.5, ±0.5 of variance 5/4, so x̂ = ±3/√5, ±1/√5.
    let (three, one) = (6.0 / 5f64.sqrt(), 2.0 / 5f64.sqrt());
    close(row(Kind::Layer, &[1.0, 2.0, 3.0, 4.0], 0.0), &[-three, -one, one, three]);
    // Variance 1 and ε = 3: ρ = 1/2.
    close(row(Kind::Layer, &[6.0, 4.0], 3.0), &[1.0, -1.0]);
    // Mean square 25/2.
    let five = 5.0 / 2f64.sqrt();
    close(row(Kind::Rms, &[3.0, 4.0], 0.0), &[6.0 / five, 8.0 / five]);
    close(row(Kind::Rms, &[1.0, -1.0, 1.0], 3.0), &[1.0, -1.0, 1.0]);
    // A constant row has no deviation, and ε keeps the division sane.
    close(row(Kind::Layer, &[5.0, 5.0, 5.0], 1e-5), &[0.0; 3]);
}

fn rows_of_ones_come_out_exact() {
    // x = ±1 with mean 0 and ε = 3: ρ = 1/2, and with d a power of two every mean is exact.
    for dtype in STORED {
        for (m, d) in [(1, 2), (3, 4), (7, 64), (300, 8), (5, 2048)] {
            let signs: Vec<f32> = (0..m * d).map(|i| if (i % d + i / d) % 2 == 0 { 1.0 } else { -1.0 }).collect();
            let x = Tensor::from_f32(&device(), &[m, d], &signs, dtype).unwrap();
            let ((gamma, gs), (beta, bs)) =
                (draw_integers("gamma", &[d], 2, dtype), draw_integers("beta", &[d], 4, dtype));
            let (dy, ys) = draw_integers("dy", &[m, d], 1, dtype);
            for kind in BOTH {
                let all = [&x, &gamma, &beta];
                let (y, grads) = run(&all[..kind.statistics() + 1], &dy, apply(kind, 3.0));
                let half = |i: usize| f64::from(signs[i]) / 2.0;
                let shift = |c: usize| if kind == Kind::Layer { bs[c] } else { 0.0 };
                let want: Vec<f64> = (0..m * d).map(|i| half(i) * gs[i % d] + shift(i % d)).collect();
                assert!(compare::exact(&y, &want).ok(), "{kind:?} {dtype} {m} {d}");
                let columns = |f: &dyn Fn(usize) -> f64| (0..d).map(|c| (0..m).map(|r| f(r * d + c)).sum()).collect();
                let dgamma: Vec<f64> = columns(&|i| ys[i] * half(i));
                let within = |want: &[f64]| want.iter().all(|v| v.abs() <= 128.0);
                assert!(within(&dgamma) && compare::exact(&grads[1], &dgamma).ok());
                if kind == Kind::Layer {
                    let dbeta: Vec<f64> = columns(&|i| ys[i]);
                    assert!(compare::exact(&grads[2], &dbeta).ok());
                }
                let mut wrong = y;
                wrong[m * d - 1] += 0.5;
                assert!(!compare::exact(&wrong, &want).ok());
            }
        }
    }
}

/// Results in f64 and the sizes of what is added up in them, from values as stored: y, dx, dγ.
struct Reference {
    y: Vec<f64>,
    dx: Vec<f64>,
    dgamma: Vec<f64>,
    sizes: [Vec<f64>; 3],
}

fn reference(kind: Kind, d: usize, x: &[f64], gamma: &[f64], beta: &[f64], dy: &[f64]) -> Reference {
    let n = x.len();
    let mut r = Reference {
        y: vec![0.0; n],
        dx: vec![0.0; n],
        dgamma: vec![0.0; d],
        sizes: [vec![0.0; n], vec![0.0; n], vec![0.0; d]],
    };
    let mean = |f: &dyn Fn(usize) -> f64| (0..d).map(f).sum::<f64>() / d as f64;
    for row in 0..n / d {
        let at = row * d;
        let mu = if kind == Kind::Layer { mean(&|c| x[at + c]) } else { 0.0 };
        let mu_size = if kind == Kind::Layer { mean(&|c| x[at + c].abs()) } else { 0.0 };
        let rho = 1.0 / (mean(&|c| (x[at + c] - mu).powi(2)) + EPS).sqrt();
        let hat = |c: usize| (x[at + c] - mu) * rho;
        let hat_size = |c: usize| (x[at + c].abs() + mu_size) * rho;
        let g = |c: usize| dy[at + c] * gamma[c];
        let centre = if kind == Kind::Layer { mean(&g) } else { 0.0 };
        let centre_size = if kind == Kind::Layer { mean(&|c| g(c).abs()) } else { 0.0 };
        let (along, along_size) = (mean(&|c| g(c) * hat(c)), mean(&|c| g(c).abs() * hat_size(c)));
        for c in 0..d {
            let shift = if kind == Kind::Layer { beta[c] } else { 0.0 };
            r.y[at + c] = hat(c) * gamma[c] + shift;
            r.sizes[0][at + c] = hat_size(c) * gamma[c].abs() + shift.abs();
            r.dx[at + c] = rho * (g(c) - centre - hat(c) * along);
            r.sizes[1][at + c] = rho * (g(c).abs() + centre_size + hat_size(c) * along_size);
            r.dgamma[c] += dy[at + c] * hat(c);
            r.sizes[2][c] += (dy[at + c] * hat_size(c)).abs();
        }
    }
    r
}

fn random_rows_are_within_their_bounds_and_wrong_ones_are_not() {
    for dtype in STORED {
        for d in TAILS {
            let m = 5;
            let (x, xs) = draw("x", &[m, d], dtype);
            let ((gamma, gs), (beta, bs)) = (draw("gamma", &[d], dtype), draw("beta", &[d], dtype));
            let (dy, ys) = draw("dy", &[m, d], dtype);
            for kind in BOTH {
                let (y, grads) = run(&[&x, &gamma, &beta][..kind.statistics() + 1], &dy, apply(kind, EPS));
                let r = reference(kind, d, &xs, &gs, &bs, &ys);
                let hold = |got: &[f64], want: &[f64], k: usize, terms| {
                    let outcome = compare::bound(got, want, &r.sizes[k], terms, dtype);
                    assert!(outcome.ok(), "{kind:?} {dtype} {d} {k} {outcome:?}");
                };
                // Mean, deviation and the sums of backward are each d terms long.
                hold(&y, &r.y, 0, 2 * d + 10);
                hold(&grads[0], &r.dx, 1, 4 * d + 20);
                hold(&grads[1], &r.dgamma, 2, m + 2 * d + 10);
                if d > 1 {
                    // Without the mean of g ⊙ x̂.
                    let other = if kind == Kind::Layer { Kind::Rms } else { Kind::Layer };
                    let wrong = reference(other, d, &xs, &gs, &bs, &ys);
                    assert!(!compare::bound(&y, &wrong.y, &r.sizes[0], 2 * d + 10, dtype).ok());
                    assert!(!compare::bound(&grads[0], &wrong.dx, &r.sizes[1], 4 * d + 20, dtype).ok());
                }
            }
        }
    }
}

fn a_large_common_offset_does_not_cancel() {
    let values: Vec<f32> = crate::testing::normal("x", 64).iter().map(|v| v + 4096.0).collect();
    let x = Tensor::from_f32(&device(), &[1, 64], &values, DType::F32).unwrap();
    let ones = Tensor::from_f32(&device(), &[64], &[1.0; 64], DType::F32).unwrap();
    let y = infer(&[&x, &ones], apply(Kind::Layer, EPS)).unwrap().to_f64_vec().unwrap();
    let xs: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    let want = reference(Kind::Layer, 64, &xs, &[1.0; 64], &[0.0; 64], &xs).y;
    let worst = y.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    // The mean is known to 2⁻²⁴ · 4096, some 2.4e-4; the difference of two squares would be off by ones.
    assert!(worst < 1e-3, "{worst}");
}

fn only_what_backward_needs_is_kept() {
    let params = params(DType::F32);
    let (x, gamma, beta) =
        (draw("x", &[4, 8], DType::F32).0, draw("g", &[8], DType::F32).0, draw("b", &[8], DType::F32).0);
    let bytes = |learn: [bool; 3]| {
        let mut tape = Tape::deterministic(&params);
        let mut var = |t: &Tensor, learns| if learns { tape.input(t.clone()) } else { Var::constant(t.clone()) };
        let (x, gamma, beta) = (var(&x, learn[0]), var(&gamma, learn[1]), var(&beta, learn[2]));
        let y = layer_norm(&mut tape, &x, &gamma, Some(&beta), EPS).unwrap();
        (tape.len(), tape.ledger().retained_bytes(), matches!(y.save(), Saved::Recomputed(_)))
    };
    let both = 4 * 8 * 4 + 4 * 2 * 4;
    assert_eq!(bytes([false, false, false]), (0, 0, false));
    assert_eq!(bytes([false, false, true]), (1, 0, false));
    assert_eq!(bytes([false, true, false]), (1, both, true));
    assert_eq!(bytes([true, false, false]), (1, both, true));
    assert_eq!(bytes([true, true, true]), (1, both, true));
}

fn who_saves_the_output_keeps_input_and_statistics_and_gets_the_same_bits() {
    for dtype in STORED {
        for kind in BOTH {
            let params = params(dtype);
            let mut tape = Tape::deterministic(&params);
            let x = tape.input(draw("x", &[6, 33], dtype).0);
            let ones = constant(&[33], &wide("gamma", 33), dtype);
            let y = apply(kind, EPS)(&mut tape, &[x.clone(), ones.clone(), ones]).unwrap();
            let z = activation(&mut tape, &y, Activation::Gelu).unwrap();
            let statistics = 6 * kind.statistics() * size_of::<f32>();
            assert_eq!(tape.ledger().retained_bytes(), x.tensor().buffer().bytes() + statistics);
            for value in [&y, &z] {
                assert!(matches!(value.save(), Saved::Recomputed(_)));
                assert_eq!(value.save().get().unwrap().to_bytes().unwrap(), value.tensor().to_bytes().unwrap());
            }
            let dy = draw("dy", &[6, 33], dtype).0;
            let done = tape.backward_with(&z, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
            assert_eq!(done.ledger.retained_bytes(), 0);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (x, gamma) = (draw("x", &[700, 96], DType::F32).0, draw("gamma", &[96], DType::F32).0);
    let dy = draw("dy", &[700, 96], DType::F32).0;
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&[&x, &gamma, &gamma], &dy, apply(Kind::Layer, EPS)))
    };
    assert_eq!(with(1), with(3));
}

fn nothing_is_fine_and_nan_stays_in_its_row() {
    let gamma = draw("gamma", &[3], DType::F32).0;
    let empty = Tensor::empty(&device(), &[0, 3], DType::F32).unwrap();
    for kind in BOTH {
        let (y, grads) = run(&[&empty, &gamma, &gamma][..kind.statistics() + 1], &empty, apply(kind, EPS));
        assert!(y.is_empty() && grads[0].is_empty());
        assert!(grads[1..].iter().all(|g| g == &[0.0; 3]));
        let x = Tensor::from_f32(&device(), &[2, 3], &[1.0, f32::NAN, 2.0, 1.0, 2.0, 3.0], DType::F32).unwrap();
        let (y, grads) = run(&[&x, &gamma], &x, apply(kind, EPS));
        assert!(y[..3].iter().all(|v| v.is_nan()) && y[3..].iter().all(|v| v.is_finite()));
        assert!(grads[0][..3].iter().all(|v| v.is_nan()) && grads[1].iter().all(|v| v.is_nan()));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, gamma) = (draw("x", &[2, 3], DType::F32).0, draw("gamma", &[3], DType::F32).0);
    let short = draw("short", &[2], DType::F32).0;
    let of = |x: &Tensor, gamma: &Tensor, beta: Option<&Tensor>, eps| Desc::new(Kind::Layer, x, gamma, beta, eps);
    assert!(of(&x, &gamma, Some(&gamma), 0.0).is_ok());
    assert!(matches!(of(&x, &short, None, EPS), Err(Error::Shape { argument: "gamma", .. })));
    assert!(matches!(of(&x, &gamma, Some(&short), EPS), Err(Error::Shape { argument: "beta", .. })));
    assert!(matches!(
        of(&draw("x", &[2, 0], DType::F32).0, &gamma, None, EPS),
        Err(Error::Shape { argument: "x", .. })
    ));
    let half = draw("gamma", &[3], DType::F16).0;
    assert!(matches!(of(&x, &half, None, EPS), Err(Error::DType { argument: "gamma", .. })));
    let turned = draw("x", &[3, 2], DType::F32).0.transpose(0, 1).unwrap();
    assert!(matches!(of(&turned, &gamma, None, EPS), Err(Error::NotContiguous { .. })));
    for eps in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(matches!(of(&x, &gamma, None, eps), Err(Error::Value { argument: "eps", .. })));
    }
    let there = Tensor::empty(&Device::trace(80), &[3], DType::F32).unwrap();
    assert!(matches!(of(&x, &there, None, EPS), Err(Error::DeviceMismatch { .. })));
}

#[test]
fn short_rows_get_a_warp_and_long_ones_a_block() {
    let device = Device::trace(80);
    let plan = |m: usize, d: usize, dtype: DType| -> (gpu::Forward, u32, &'static str) {
        let empty = |dims: &[usize]| Tensor::empty(&device, dims, dtype).unwrap();
        infer(&[&empty(&[m, d]), &empty(&[d])], apply(Kind::Layer, EPS)).unwrap();
        let spec = device.launcher().unwrap().recorded().pop().unwrap();
        (spec.params.read().unwrap(), spec.grid[0], spec.kernel.row().symbol)
    };
    let (p, grid, symbol) = plan(17, 768, DType::BF16);
    assert_eq!((p.beta, p.given, p.vector, p.centred, grid, symbol), (0, 0, 1, 1, 3, "norm_fwd_bf16_warp_sm80"));
    assert_eq!(plan(17, 4096, DType::BF16).2, "norm_fwd_bf16_block_sm80");
    assert_eq!(plan(17, 1024, DType::F32).2, "norm_fwd_f32_warp_sm80");
    let (p, grid, symbol) = plan(17, 1025, DType::F32);
    assert_eq!((p.vector, grid, symbol), (0, 17, "norm_fwd_f32_block_sm80"));
    let desc = Desc { m: 1000, d: 100, kind: Kind::Rms, bias: false, eps: EPS, dtype: DType::F16 };
    let tensor = |dims: &[usize], dtype| Tensor::empty(&device, dims, dtype).unwrap();
    let (x, gamma) = (tensor(&[1000, 100], DType::F16), tensor(&[100], DType::F16));
    let statistics = tensor(&[1000, 1], DType::F32);
    let target = Target { tensor: tensor(&[100], DType::F32), accumulate: true };
    let before = device.launcher().unwrap().recorded().len();
    gamma_gradient(&desc, &x, &x, &statistics, &target).unwrap();
    let specs = device.launcher().unwrap().recorded().split_off(before);
    let p: gpu::Gamma = specs[0].params.read().unwrap();
    assert_eq!((specs.len(), specs[0].grid[0], p.piece, p.centred, p.vector), (2, 8 * 4, 128, 0, 0));
    let target = Target { tensor: tensor(&[1000, 100], DType::F32), accumulate: true };
    let before = device.launcher().unwrap().recorded().len();
    input_gradient(&desc, &x, &x, &statistics, &gamma, &target).unwrap();
    let specs = device.launcher().unwrap().recorded().split_off(before);
    let names: Vec<_> = specs.iter().map(|s| s.kernel.row().symbol).collect();
    assert_eq!(names, ["norm_bwd_f16_warp_sm80", "scale_add_widen_f16_t256_sm80"]);
}
