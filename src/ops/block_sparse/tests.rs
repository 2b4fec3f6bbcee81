#[cfg(all(graftwork_kernels, feature = "emulator"))]
use super::desc::{Dense, Sampled, Side};
use super::*;
#[cfg(all(graftwork_kernels, feature = "emulator"))]
use crate::autograd::Target;
use crate::autograd::{Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::check::{STORED, device, draw, draw_integers, on_each_device, run, wide};
#[cfg(all(graftwork_kernels, feature = "emulator"))]
use crate::ops::product::Gpu;
use crate::rng::Stream;
use crate::tensor::{BlockPattern, Tensor};
use crate::testing::{compare, gradient};

on_each_device! {
    every_product_is_the_masked_dense_one_to_the_bit,
    sampled_products_are_the_dense_ones_at_the_blocks,
    products_of_random_numbers_keep_within_their_bound,
}

const ALL: [Transposed; 4] = [
    Transposed { sparse: false, dense: false },
    Transposed { sparse: false, dense: true },
    Transposed { sparse: true, dense: false },
    Transposed { sparse: true, dense: true },
];

fn random(shape: [usize; 2], block: usize, density: f64) -> BlockPattern {
    BlockPattern::random(&device(), shape, block, density, Stream { seed: 4, step: 1, site: 2 }).unwrap()
}

/// Row 1 and column 1 are long, the others have a block or two; row and column 0 have at most the one they share with those.
fn uneven(shape: [usize; 2], block: usize) -> BlockPattern {
    let [rows, columns] = [shape[0].div_ceil(block), shape[1].div_ceil(block)];
    let flag = |i: usize| {
        let (row, column) = (i / columns, i % columns);
        row == 1 || column == 1 || (row > 0 && row % 3 == 0 && column == row % columns)
    };
    let mask: Vec<bool> = (0..rows * columns).map(flag).collect();
    BlockPattern::from_mask(&device(), shape, block, &mask).unwrap()
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
    let mut out = vec![0.0; pattern.value_dims().iter().product()];
    pattern.topology().for_row_pieces(|at, place, len| out[at..at + len].copy_from_slice(&matrix[place..place + len]));
    out
}

fn densified(pattern: &BlockPattern, values: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; pattern.shape().iter().product()];
    pattern.topology().for_row_pieces(|at, place, len| out[place..place + len].copy_from_slice(&values[at..at + len]));
    out
}

/// Values whose parts beyond the edge are zero, as the format has it.
fn clean(pattern: &BlockPattern, values: &[f64], dtype: DType) -> Tensor {
    let clean: Vec<f32> = sampled(pattern, &densified(pattern, values)).into_iter().map(|v| v as f32).collect();
    Tensor::from_f32(&device(), &pattern.value_dims(), &clean, dtype).unwrap()
}

/// Patterns and how many rows or columns the dense operand has besides.
fn shapes() -> Vec<(BlockPattern, usize)> {
    let mut out = Vec::new();
    for block in [16, 32, 64, 128] {
        out.push((random([2 * block + 7, 3 * block - 5], block, 0.5), 33));
        out.push((uneven([3 * block, 9 * block + 1], block), 5));
        out.push((BlockPattern::empty(&device(), [block, block + 3], block).unwrap(), 3));
    }
    for shape in [[48, 16 * 150 - 9], [16 * 140 - 3, 40], [1100, 1100]] {
        let pattern = uneven(shape, 16);
        assert!(pattern.schedule(false).pieces + pattern.schedule(true).pieces > 0, "no line of {pattern:?} is cut");
        out.push((pattern, 5));
    }
    out.push((random([1, 1], 16, 1.0), 1));
    out.push((random([130, 70], 16, 0.3), 0));
    out
}

fn every_product_is_the_masked_dense_one_to_the_bit() {
    for (pattern, m) in shapes() {
        let [n, k] = pattern.shape();
        for dtype in STORED {
            let values = clean(&pattern, &draw_integers("v", &pattern.value_dims(), 1, dtype).1, dtype);
            let matrix = densified(&pattern, &values.to_f64_vec().unwrap());
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

fn sampled_products_are_the_dense_ones_at_the_blocks() {
    for (pattern, m) in shapes() {
        let [n, k] = pattern.shape();
        for (a_t, b_t) in [(false, false), (false, true), (true, false), (true, true)] {
            let (a, av) = draw_integers("a", &if a_t { [m, n] } else { [n, m] }, 1, DType::F32);
            let (b, bv) = draw_integers("b", &if b_t { [k, m] } else { [m, k] }, 1, DType::F32);
            let dv = clean(&pattern, &draw("dv", &pattern.value_dims(), DType::F32).1, DType::F32);
            let (v, _) = run(&[&a, &b], &dv, |tape, v| sdd(tape, &v[0], &v[1], &pattern, [a_t, b_t], -2.0));
            let want: Vec<f64> = product(&av, a_t, &bv, b_t, [n, k, m]).iter().map(|v| -2.0 * v).collect();
            assert!(compare::exact(&v, &sampled(&pattern, &want)).ok(), "{pattern:?} m={m} {a_t} {b_t}");
        }
    }
}

fn products_of_random_numbers_keep_within_their_bound() {
    for (pattern, m) in shapes().into_iter().filter(|(p, m)| p.nnz() > 0 && *m > 0) {
        let [n, k] = pattern.shape();
        for dtype in STORED {
            let values = clean(&pattern, &draw("v", &pattern.value_dims(), dtype).1, dtype);
            let matrix = densified(&pattern, &values.to_f64_vec().unwrap());
            let ((x, xv), (dy, gv)) = (draw("x", &[m, k], dtype), draw("dy", &[m, n], dtype));
            let (y, gradients) =
                run(&[&x, &values], &dy, |tape, v| block_sparse_linear(tape, &v[0], &pattern, &v[1], 1.0));
            let absolute = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
            let hold = |got: &[f64], a: (&[f64], bool), b: (&[f64], bool), dims: [usize; 3], place: &str| {
                let exact = product(a.0, a.1, b.0, b.1, dims);
                let size = product(&absolute(a.0), a.1, &absolute(b.0), b.1, dims);
                let at_blocks = |v: Vec<f64>| if place == "dvalues" { sampled(&pattern, &v) } else { v };
                let outcome = compare::bound(got, &at_blocks(exact), &at_blocks(size), dims[2], dtype);
                assert!(outcome.ok(), "{pattern:?} {dtype} {place}: {outcome:?}");
                // The check would see one wrong element.
                let mut wrong = got.to_vec();
                let size_of = |i: &usize| got[*i].abs();
                let last = (0..got.len()).max_by(|i, j| size_of(i).total_cmp(&size_of(j))).unwrap();
                wrong[last] *= 1.05;
                let (exact, size) =
                    (product(a.0, a.1, b.0, b.1, dims), product(&absolute(a.0), a.1, &absolute(b.0), b.1, dims));
                let seen = !compare::bound(&wrong, &at_blocks(exact), &at_blocks(size), dims[2], dtype).ok();
                assert!(seen, "{pattern:?} {dtype} {place}: a wrong element passed");
            };
            hold(&y, (&xv, false), (&matrix, true), [m, n, k], "y");
            hold(&gradients[0], (&gv, false), (&matrix, false), [m, k, n], "dx");
            hold(&gradients[1], (&gv, true), (&xv, false), [n, k, m], "dvalues");
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

/// More rows of blocks, and then more columns, than 16 bits count.
#[test]
fn indices_go_beyond_16_bits() {
    let (long, short, m, b) = (16 * 70_000, 48, 2, 16);
    let places = [(0, 0), (65_535, 1), (65_536, 2), (69_999, 0)];
    let at = |tall: bool| -> Vec<(u32, u32)> {
        let mut blocks: Vec<_> =
            places.iter().map(|&(far, near)| if tall { (far, near) } else { (near, far) }).collect();
        blocks.sort();
        blocks
    };
    for tall in [true, false] {
        let (n, k, blocks) = if tall { (long, short, at(true)) } else { (short, long, at(false)) };
        let pattern = BlockPattern::from_blocks(&Device::cpu(), [n, k], b, &blocks).unwrap();
        let (x, xv) = draw_integers("x", &[m, k], 2, DType::F32);
        let (values, v) = draw_integers("values", &pattern.value_dims(), 2, DType::F32);
        let (dy, g) = draw_integers("dy", &[m, n], 2, DType::F32);
        let (mut y, mut dx, mut dv) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; v.len()]);
        for (e, &(row, column)) in blocks.iter().enumerate() {
            for (t, i, j) in (0..m * b * b).map(|at| (at / (b * b), at / b % b, at % b)) {
                let (value, out, into) =
                    (e * b * b + i * b + j, t * n + row as usize * b + i, t * k + column as usize * b + j);
                y[out] += xv[into] * v[value];
                dx[into] += g[out] * v[value];
                dv[value] += g[out] * xv[into];
            }
        }
        let (got, gradients) =
            run(&[&x, &values], &dy, |tape, v| block_sparse_linear(tape, &v[0], &pattern, &v[1], 1.0));
        assert!(got == y && gradients[0] == dx && gradients[1] == dv, "tall: {tall}");

        let gpu = Device::trace(80);
        let zeros = |dims: &[usize]| Var::constant(Tensor::zeros(&gpu, dims, DType::F32).unwrap());
        let (pattern, params) = (pattern.to_device(&gpu).unwrap(), crate::ops::check::params(DType::F32));
        let mut tape = Tape::inference(&params);
        block_sparse_linear(&mut tape, &zeros(&[m, k]), &pattern, &zeros(&pattern.value_dims()), 1.0).unwrap();
        sdd(&mut tape, &zeros(&[m, n]), &zeros(&[m, k]), &pattern, [true, false], 1.0).unwrap();
        let recorded = gpu.recorded();
        assert!(recorded.len() >= 2 && recorded.iter().all(|l| l.grid[1] <= 65_535 && l.grid[2] <= 65_535));
    }
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
    for scale in [f64::NAN, f64::INFINITY, 1e300] {
        assert_eq!(refused(dds(&mut tape, &good, &pattern, &values, plain, scale)), "scale");
    }
    let few = zeros(&[1, 16, 16], DType::F32);
    assert_eq!(refused(dds(&mut tape, &good, &pattern, &few, plain, 1.0)), "values");
    let x = zeros(&[3, 50], DType::F32);
    assert_eq!(refused(block_sparse_linear(&mut tape, &good, &pattern, &values, 1.0)), "x");
    assert_eq!(refused(sdd(&mut tape, &good, &x, &pattern, [false, false], 1.0)), "a");
    assert_eq!(refused(sdd(&mut tape, &good, &good, &pattern, [true, false], 1.0)), "b");
    assert_eq!(refused(sdd(&mut tape, &good, &zeros(&[4, 50], DType::F32), &pattern, [true, false], 1.0)), "b");
    assert_eq!(sdd(&mut tape, &good, &x, &pattern, [true, false], 1.0).unwrap().dims(), pattern.value_dims());
}

/// What the kernels of one call did.
#[cfg(all(graftwork_kernels, feature = "emulator"))]
fn counted(device: &Device, call: impl FnOnce()) -> crate::device::Counters {
    device.take_counters();
    call();
    crate::device::counters::total(&device.take_counters().unwrap())
}

/// Products of one line of blocks and one tile of m: on tensor cores nothing is read twice, so that what crosses is what must, and a
/// second length shows what the main loop adds.
#[test]
#[cfg(all(graftwork_kernels, feature = "emulator"))]
fn kernels_move_what_they_must_and_multiply_what_exists() {
    let device = Device::parse("emulated").unwrap();
    let m = 128;
    for dtype in STORED {
        for block in [16, 32, 64, 128] {
            let measure = |count: usize, t: Transposed, left: bool| {
                // Every other block of the line.
                let along = 2 * count * block;
                let shape = if left == t.sparse { [along, block] } else { [block, along] };
                let at = |i: usize| if left == t.sparse { (2 * i as u32, 0) } else { (0, 2 * i as u32) };
                let blocks: Vec<_> = (0..count).map(at).collect();
                let pattern = BlockPattern::from_blocks(&device, shape, block, &blocks).unwrap();
                let zeros = |dims: &[usize]| Var::constant(Tensor::zeros(&device, dims, dtype).unwrap());
                let (values, params) = (zeros(&pattern.value_dims()), crate::ops::check::params(DType::F32));
                let dense = zeros(&if left == t.dense { [m, along] } else { [along, m] });
                let mut tape = Tape::inference(&params);
                let did = counted(&device, || {
                    match left {
                        true => dsd(&mut tape, &pattern, &values, &dense, t, 1.0).unwrap(),
                        false => dds(&mut tape, &dense, &pattern, &values, t, 1.0).unwrap(),
                    };
                });
                let (side, Transposed { sparse: sparse_t, dense: dense_t }) =
                    (if left { Side::Left } else { Side::Right }, t);
                let desc = Dense { op: "test", pattern, side, sparse_t, dense_t, scale: 1.0, m, dtype };
                (did, desc.traffic(Gpu::of(&device)).0)
            };
            for t in ALL {
                for left in [true, false] {
                    let place = format!("{dtype} b={block} {t:?} left={left}");
                    let (short, ..) = measure(8, t, left);
                    let (long, foretold) = measure(16, t, left);
                    assert_eq!(long.bank_conflicts, short.bank_conflicts, "{place}: conflicts in the main loop");
                    assert_eq!(long.tensor_macs, foretold.macs, "{place}");
                    holds(long.global_bytes(), foretold.bytes(), &place);
                    assert_eq!(long.local_accesses, 0, "{place}");
                }
            }
        }
    }
}

/// What threads look up for themselves comes to what the plan foretells.
#[cfg(all(graftwork_kernels, feature = "emulator"))]
fn holds(bytes: u64, foretold: u64, place: &str) {
    assert!((foretold..=foretold + foretold / 4).contains(&bytes), "{place}: {bytes} bytes, and {foretold} foretold");
}

/// Where every element of the operands is needed once, at density 0.25, and one tile has all tokens.
#[test]
#[cfg(all(graftwork_kernels, feature = "emulator"))]
fn what_moves_is_little_more_than_must() {
    for (name, m) in [("emulated", 128), ("emulated:sm_90a", 512)] {
        let device = Device::parse(name).unwrap();
        let gpu = Gpu::of(&device);
        for block in [16, 32, 64, 128] {
            for wide in [true, false] {
                // Each row of blocks has four columns of its own, or each column four rows.
                let (shape, count) = (if wide { [4 * block, 16 * block] } else { [16 * block, 4 * block] }, 16);
                let at = |i: u32| if wide { (i / 4, i) } else { (i, i / 4) };
                let blocks: Vec<_> = (0..count).map(at).collect();
                let pattern = BlockPattern::from_blocks(&device, shape, block, &blocks).unwrap();
                let zeros = |dims: &[usize], dtype| Tensor::zeros(&device, dims, dtype).unwrap();
                let values = zeros(&pattern.value_dims(), DType::BF16);
                let passes: &[usize] = if wide { &[0, 2] } else { &[1] };
                for &pass in passes {
                    // The gradient of the values is not cut.
                    let m = if pass == 2 { m.min(256) } else { m };
                    let (x, dy) = (zeros(&[m, shape[1]], DType::BF16), zeros(&[m, shape[0]], DType::BF16));
                    let update = Update::new("test", &x, &pattern, &values, 1.0).unwrap();
                    let onto = |tensor| Target { tensor, accumulate: false };
                    let [y, dx] = [&dy, &x].map(|like| onto(zeros(like.dims(), DType::BF16)));
                    let dvalues = onto(zeros(&pattern.value_dims(), DType::F32));
                    let did = counted(&device, || {
                        match pass {
                            0 => update.forward(&values, &x, &y),
                            1 => update.input_gradient(&values, &dy, &dx),
                            _ => update.values_gradient(&dy, &x, &dvalues),
                        }
                        .unwrap();
                    });
                    let plan = &foretold(gpu, &pattern, m, DType::BF16)[pass];
                    let place = format!("{name} b={block} {}", plan.pass);
                    assert_eq!(plan.refusal.is_none(), gpu.capability == 90, "{place}: {:?}", plan.refusal);
                    let bytes = did.global_bytes();
                    holds(bytes, plan.traffic.bytes(), &place);
                    assert!(bytes * 4 <= plan.compulsory * 5, "{place}: {bytes} bytes of {}", plan.compulsory);
                }
            }
        }
    }
}

/// Likewise of one strip of blocks: a row of blocks of dy, and as many columns of x.
#[test]
#[cfg(all(graftwork_kernels, feature = "emulator"))]
fn sampled_kernels_move_what_they_must_and_multiply_what_exists() {
    let device = Device::parse("emulated").unwrap();
    for dtype in STORED {
        for block in [16, 32, 64, 128] {
            let count = 128 / block;
            let blocks: Vec<_> = (0..count as u32).map(|i| (0, 2 * i)).collect();
            let pattern = BlockPattern::from_blocks(&device, [block, 2 * 128], block, &blocks).unwrap();
            let measure = |m: usize, t: [bool; 2]| {
                let zeros = |dims: [usize; 2]| Var::constant(Tensor::zeros(&device, &dims, dtype).unwrap());
                let a = zeros(if t[0] { [m, block] } else { [block, m] });
                let b = zeros(if t[1] { [256, m] } else { [m, 256] });
                let params = crate::ops::check::params(DType::F32);
                let mut tape = Tape::inference(&params);
                let did = counted(&device, || drop(sdd(&mut tape, &a, &b, &pattern, t, 1.0).unwrap()));
                let (pattern, [a_t, b_t]) = (pattern.clone(), t);
                let desc = Sampled { op: "test", pattern, a_t, b_t, scale: 1.0, m, dtype };
                (did, desc.traffic(Gpu::of(&device), dtype).0)
            };
            for t in [[false, false], [false, true], [true, false], [true, true]] {
                let place = format!("{dtype} b={block} {t:?}");
                let ((short, _), (long, foretold)) = (measure(128, t), measure(256, t));
                assert_eq!(long.bank_conflicts, short.bank_conflicts, "{place}: conflicts in the main loop");
                assert_eq!(long.tensor_macs, foretold.macs, "{place}");
                holds(long.global_bytes(), foretold.bytes(), &place);
            }
        }
    }
}
