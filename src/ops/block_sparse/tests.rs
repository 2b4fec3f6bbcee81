use super::*;
use crate::autograd::{Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check::{STORED, draw, draw_integers, run, wide};
use crate::rng::Stream;
use crate::tensor::block_sparse::BlockSparse;
use crate::tensor::{BlockPattern, Tensor};
use crate::testing::{compare, gradient};

const ALL: [Transposed; 4] = [
    Transposed { sparse: false, dense: false },
    Transposed { sparse: false, dense: true },
    Transposed { sparse: true, dense: false },
    Transposed { sparse: true, dense: true },
];

fn random(shape: [usize; 2], block: usize, density: f64) -> BlockPattern {
    BlockPattern::random(&Device::cpu(), shape, block, density, Stream { seed: 4, step: 1, site: 2 }).unwrap()
}

/// Row 1 is long, row 0 has nothing, the others one block at most.
fn uneven(shape: [usize; 2], block: usize) -> BlockPattern {
    let [rows, columns] = [shape[0].div_ceil(block), shape[1].div_ceil(block)];
    let long = rows.min(2) - 1;
    let mut mask = vec![false; rows * columns];
    for row in 0..rows {
        for column in 0..columns {
            mask[row * columns + column] = row == long || (row > 1 && row % 3 == 0 && column == row % columns);
        }
    }
    BlockPattern::from_mask(&Device::cpu(), shape, block, &mask).unwrap()
}

/// `op(A) [m, k] · op(B) [k, n]` in f64.
fn product(a: &[f64], a_t: bool, b: &[f64], b_t: bool, [m, n, k]: [usize; 3]) -> Vec<f64> {
    let at = |i: usize, p: usize| if a_t { a[p * m + i] } else { a[i * k + p] };
    let bt = |p: usize, j: usize| if b_t { b[j * k + p] } else { b[p * n + j] };
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for p in 0..k {
            let v = at(i, p);
            for j in 0..n {
                out[i * n + j] += v * bt(p, j);
            }
        }
    }
    out
}

/// The values of `matrix [n, k]` in the pattern's blocks.
fn sampled(pattern: &BlockPattern, matrix: &[f64]) -> Vec<f64> {
    let [n, k] = pattern.shape();
    let tensor = Tensor::from_slice(&Device::cpu(), &[n, k], matrix).unwrap();
    BlockSparse::sample(pattern.clone(), &tensor).unwrap().values().to_f64_vec().unwrap()
}

fn densified(pattern: &BlockPattern, values: &Tensor) -> Vec<f64> {
    BlockSparse::new(pattern.clone(), values.clone()).unwrap().to_dense().unwrap().to_f64_vec().unwrap()
}

/// Values whose parts beyond the edge are zero, as the format has it.
fn clean(pattern: &BlockPattern, values: Tensor) -> Tensor {
    let dense = BlockSparse::new(pattern.clone(), values).unwrap().to_dense().unwrap();
    BlockSparse::sample(pattern.clone(), &dense).unwrap().values().clone()
}

/// Patterns and how many rows or columns the dense operand has besides.
fn shapes() -> Vec<(BlockPattern, usize)> {
    let mut out = Vec::new();
    for block in [16, 32, 64, 128] {
        out.push((random([2 * block + 7, 3 * block - 5], block, 0.5), 33));
        out.push((uneven([3 * block, 9 * block + 1], block), 5));
        out.push((BlockPattern::empty(&Device::cpu(), [block, block + 3], block).unwrap(), 3));
    }
    out.push((uneven([96, 16 * 300 - 9], 16), 20));
    out.push((random([1, 1], 16, 1.0), 1));
    out.push((random([130, 70], 16, 0.3), 0));
    out
}

#[test]
fn every_product_is_the_masked_dense_one_to_the_bit() {
    for (pattern, m) in shapes() {
        let [n, k] = pattern.shape();
        for dtype in STORED {
            let values = draw_integers("v", &pattern.value_dims(), 1, dtype).0;
            let values = clean(&pattern, values);
            let matrix = densified(&pattern, &values);
            for t in ALL {
                let [rows, cols] = if t.sparse { [k, n] } else { [n, k] };
                for left in [true, false] {
                    let (depth, lines) = if left { (cols, rows) } else { (rows, cols) };
                    let [d_rows, d_cols] = if left == t.dense { [m, depth] } else { [depth, m] };
                    let (dense, d) = draw_integers("d", &[d_rows, d_cols], 1, dtype);
                    let y_dims = if left { [lines, m] } else { [m, lines] };
                    let (dy, g) = draw_integers("dy", &y_dims, 1, dtype);
                    let (y, gradients) = run(&[&dense, &values], &dy, |tape, v| match left {
                        true => dsd(tape, &pattern, &v[1], &v[0], t, 2.0),
                        false => dds(tape, &v[0], &pattern, &v[1], t, 2.0),
                    });
                    let twice = |v: Vec<f64>| v.into_iter().map(|v| 2.0 * v).collect::<Vec<_>>();
                    // dD and dS of the dense product, by its own rules.
                    let (want, d_dense, d_sparse) = if left {
                        (
                            product(&matrix, t.sparse, &d, t.dense, [lines, m, depth]),
                            product(&matrix, !t.sparse, &g, false, [depth, m, lines]),
                            product(&g, false, &d, !t.dense, [lines, depth, m]),
                        )
                    } else {
                        (
                            product(&d, t.dense, &matrix, t.sparse, [m, lines, depth]),
                            product(&g, false, &matrix, !t.sparse, [m, depth, lines]),
                            product(&d, !t.dense, &g, false, [depth, lines, m]),
                        )
                    };
                    let transpose = |v: Vec<f64>, rows: usize, cols: usize| -> Vec<f64> {
                        (0..rows * cols).map(|i| v[i % rows * cols + i / rows]).collect()
                    };
                    let (o_rows, o_cols) = if left { (depth, m) } else { (m, depth) };
                    let d_dense = if t.dense { transpose(d_dense, o_rows, o_cols) } else { d_dense };
                    let d_sparse = if t.sparse { transpose(d_sparse, k, n) } else { d_sparse };
                    let place = format!("{pattern:?} m={m} {t:?} left={left} {dtype}");
                    assert!(compare::exact(&y, &twice(want)).ok(), "{place}: forward");
                    assert!(compare::exact(&gradients[0], &twice(d_dense)).ok(), "{place}: dense gradient");
                    let want = sampled(&pattern, &twice(d_sparse));
                    assert!(compare::exact(&gradients[1], &want).ok(), "{place}: values' gradient");
                }
            }
        }
    }
}

#[test]
fn sampled_products_are_the_dense_ones_at_the_blocks() {
    for (pattern, m) in shapes() {
        let [n, k] = pattern.shape();
        for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
            let (a, av) = draw_integers("a", &if a_t { [m, n] } else { [n, m] }, 1, DType::F32);
            let (b, bv) = draw_integers("b", &if b_t { [k, m] } else { [m, k] }, 1, DType::F32);
            let dv = clean(&pattern, draw("dv", &pattern.value_dims(), DType::F32).0);
            let (v, _) = run(&[&a, &b], &dv, |tape, v| sdd(tape, &v[0], &v[1], &pattern, [a_t, b_t], -2.0));
            let want: Vec<f64> = product(&av, a_t, &bv, b_t, [n, k, m]).iter().map(|v| -2.0 * v).collect();
            assert!(compare::exact(&v, &sampled(&pattern, &want)).ok(), "{pattern:?} m={m} {a_t} {b_t}");
        }
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let pattern = random([20, 35], 16, 0.5);
    let dims = pattern.value_dims();
    let values = wide("values", dims.iter().product());
    for t in ALL {
        for left in [true, false] {
            let depth = if left == t.sparse { 20 } else { 35 };
            let dense = if left == t.dense { [3, depth] } else { [depth, 3] };
            let inputs = [(&dims[..], values.clone()), (&dense[..], wide("dense", 3 * depth))];
            gradient::check(&inputs, None, |tape, v| match left {
                true => dsd(tape, &pattern, &v[0], &v[1], t, 0.7),
                false => dds(tape, &v[1], &pattern, &v[0], t, 0.7),
            })
            .unwrap();
        }
        let a = if t.sparse { [3, 20] } else { [20, 3] };
        let b = if t.dense { [35, 3] } else { [3, 35] };
        let inputs = [(&a[..], wide("a", 60)), (&b[..], wide("b", 105))];
        gradient::check(&inputs, None, |tape, v| sdd(tape, &v[0], &v[1], &pattern, [t.sparse, t.dense], 1.3)).unwrap();
    }
    let inputs = [(&[2, 2, 35][..], wide("x", 140)), (&dims[..], values)];
    gradient::check(&inputs, None, |tape, v| block_sparse_linear(tape, &v[0], &pattern, &v[1], 0.9)).unwrap();
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let params = crate::ops::check::params(DType::F32);
    let mut tape = Tape::inference(&params);
    let pattern = random([40, 50], 16, 0.5);
    let zeros = |dims: &[usize], dtype| Var::constant(Tensor::zeros(&Device::cpu(), dims, dtype).unwrap());
    let values = zeros(&pattern.value_dims(), DType::F32);
    let refused = |r: Result<Var>| match r {
        Err(Error::Shape { argument, .. } | Error::DType { argument, .. } | Error::Value { argument, .. }) => argument,
        other => panic!("{other:?}"),
    };
    let plain = Transposed::default();
    assert_eq!(refused(dsd(&mut tape, &pattern, &values, &zeros(&[40, 3], DType::F32), plain, 1.0)), "dense");
    assert_eq!(refused(dds(&mut tape, &zeros(&[3, 50], DType::F32), &pattern, &values, plain, 1.0)), "dense");
    assert_eq!(refused(dds(&mut tape, &zeros(&[3, 40], DType::F16), &pattern, &values, plain, 1.0)), "dense");
    assert_eq!(refused(dds(&mut tape, &zeros(&[3, 4, 10], DType::F32), &pattern, &values, plain, 1.0)), "dense");
    let good = zeros(&[3, 40], DType::F32);
    assert_eq!(refused(dds(&mut tape, &good, &pattern, &values, plain, f64::NAN)), "scale");
    let few = zeros(&[1, 16, 16], DType::F32);
    assert_eq!(refused(dds(&mut tape, &good, &pattern, &few, plain, 1.0)), "values");
    let x = zeros(&[3, 50], DType::F32);
    assert_eq!(refused(block_sparse_linear(&mut tape, &good, &pattern, &values, 1.0)), "x");
    assert_eq!(refused(sdd(&mut tape, &good, &x, &pattern, [false, false], 1.0)), "a");
    assert_eq!(refused(sdd(&mut tape, &good, &good, &pattern, [true, false], 1.0)), "b");
    assert_eq!(refused(sdd(&mut tape, &good, &zeros(&[4, 50], DType::F32), &pattern, [true, false], 1.0)), "b");
    assert_eq!(sdd(&mut tape, &good, &x, &pattern, [true, false], 1.0).unwrap().dims(), pattern.value_dims());
}
