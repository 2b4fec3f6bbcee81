use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::dtype::DType;
use crate::ops::check::{device, draw, draw_integers, on_each_device};
use crate::rng::Stream;
use crate::tensor::{BlockSparse, Init, ParamSetBuilder};

on_each_device! {
    norms_of_a_matrix_and_of_its_values_agree_with_plain_sums,
    scores_are_those_of_the_dense_gradient,
}

fn pattern(n: usize, k: usize, block: usize) -> BlockPattern {
    BlockPattern::random(&device(), [n, k], block, 0.5, Stream { seed: 1, step: 0, site: 0 }).unwrap()
}

/// Sums over blocks, element by element.
fn sums(pattern: &BlockPattern, matrix: &[f64], term: impl Fn(usize, f64) -> f64) -> Vec<(f64, usize)> {
    let ([_, k], b) = (pattern.shape(), pattern.block());
    let within = |i: usize, (row, column): (u32, u32)| i / k / b == row as usize && i % k / b == column as usize;
    let block = |at| {
        let inside = matrix.iter().enumerate().filter(|(i, _)| within(*i, at));
        inside.fold((0.0, 0), |(sum, count), (i, &v)| (sum + term(i, v), count + 1))
    };
    pattern.topology().blocks().map(block).collect()
}

fn norms_of_a_matrix_and_of_its_values_agree_with_plain_sums() {
    for (n, k, block) in [(40, 70, 16), (130, 33, 128)] {
        let p = pattern(n, k, block);
        let (matrix, plain) = draw("m", &[n, k], DType::BF16);
        let values = BlockSparse::sample(p.clone(), &matrix).unwrap().values().clone();
        for source in [&matrix, &values] {
            let near = |got: f64, want: f64| (got - want).abs() <= 1e-4 * want;
            let norms = block_norms(&p, source, BlockNorm::Frobenius).unwrap().to_f64_vec().unwrap();
            assert!(norms.iter().zip(sums(&p, &plain, |_, v| v * v)).all(|(&g, (w, _))| near(g, w.sqrt())));
            let means = block_norms(&p, source, BlockNorm::MeanAbsolute).unwrap().to_f64_vec().unwrap();
            assert!(means.iter().zip(sums(&p, &plain, |_, v| v.abs())).all(|(&g, (w, c))| near(g, w / c as f64)));
        }
    }
    let p = pattern(40, 70, 16);
    let wrong = Tensor::zeros(&device(), &[70, 40], DType::F32).unwrap();
    assert!(matches!(block_norms(&p, &wrong, BlockNorm::Frobenius), Err(Error::Shape { argument: "matrix", .. })));
}

fn scores_are_those_of_the_dense_gradient() {
    let (m, n, k) = (13, 40, 70);
    let p = pattern(n, k, 16);
    let (x, xv) = draw_integers("x", &[m, k], 2, DType::F32);
    let (dy, gv) = draw_integers("dy", &[m, n], 2, DType::F32);
    let (weight, wv) = draw_integers("w", &[n, k], 2, DType::F32);
    let dense: Vec<f64> = (0..n * k).map(|i| (0..m).map(|t| gv[t * n + i / k] * xv[t * k + i % k]).sum()).collect();
    for saliency in [false, true] {
        let mut builder = ParamSetBuilder::new();
        let id = builder.add("scores", &[p.nnz()], Init::Values(vec![0.0; p.nnz()])).unwrap();
        let params = builder.build(&device(), DType::F32, 0).unwrap();
        let mut grads = Grads::zeros(&params).unwrap();
        // Two micro-batches add up.
        for _ in 0..2 {
            let mut tape = Tape::deterministic(&params);
            let y = tape.input(dy.clone());
            let scores = tape.param(id).unwrap();
            let score = if saliency { GradientScore::Saliency(&weight) } else { GradientScore::Squares };
            let out = gradient_scores(&mut tape, &y, &Var::constant(x.clone()), &p, score, &scores).unwrap();
            let done = tape.backward_with(&out, dy.clone(), &mut grads).unwrap();
            assert_eq!(done.input_gradient(&y).unwrap().to_f64_vec().unwrap(), gv);
        }
        let got = grads.view(id).unwrap().to_f64_vec().unwrap();
        let want = sums(&p, &dense, |i, g| 2.0 * if saliency { (g * wv[i]).abs() } else { g * g });
        assert_eq!(got, want.iter().map(|w| w.0).collect::<Vec<_>>());
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let (cpu, other) = (Device::cpu(), Device::trace(80));
    let p = BlockPattern::full(&cpu, [40, 50], 16).unwrap();
    let zeros = |device: &Device, dims: &[usize], dtype| Var::constant(Tensor::zeros(device, dims, dtype).unwrap());
    let params = crate::ops::check::params(DType::F32);
    let refused = |y: &Var, x: &Var, scores: &Var| {
        let mut tape = Tape::inference(&params);
        match gradient_scores(&mut tape, y, x, &p, GradientScore::Squares, scores).unwrap_err() {
            Error::Shape { argument, .. } | Error::DType { argument, .. } | Error::DeviceMismatch { argument, .. } => {
                argument
            }
            error => panic!("{error}"),
        }
    };
    let f32s = |dims: &[usize]| zeros(&cpu, dims, DType::F32);
    let (y, x, scores) = (f32s(&[3, 40]), f32s(&[3, 50]), f32s(&[12]));
    assert_eq!(refused(&f32s(&[4, 40]), &x, &scores), "y");
    assert_eq!(refused(&zeros(&cpu, &[3, 40], DType::BF16), &x, &scores), "y");
    assert_eq!(refused(&zeros(&other, &[3, 40], DType::F32), &x, &scores), "y");
    assert_eq!(refused(&y, &f32s(&[3, 40]), &scores), "x");
    assert_eq!(refused(&y, &zeros(&other, &[3, 50], DType::F32), &scores), "x");
    assert_eq!(refused(&y, &x, &f32s(&[11])), "scores");
    assert_eq!(refused(&y, &x, &zeros(&other, &[12], DType::F32)), "scores");
    for pattern in [p.clone(), BlockPattern::empty(&cpu, [40, 50], 16).unwrap()] {
        let whole = Tensor::zeros(&cpu, &[40, 50], DType::I32).unwrap();
        let norms = block_norms(&pattern, &whole, BlockNorm::Frobenius);
        assert!(matches!(norms, Err(Error::DType { argument: "matrix", .. })), "{norms:?}");
    }
}
