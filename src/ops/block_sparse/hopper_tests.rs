//! The Hopper products on the emulator: exact for every edge, for any order of warps, and with the traffic that the plan foretells.

use half::{bf16, f16};

use super::*;
use crate::device::{Counters, Device, Emulated, Plan};
use crate::rng::Stream;
use crate::tensor::Tensor;
use crate::testing::integers;

/// Blocks of a matrix `[n, k]`, in row order: one row without, one with all, the others with some.
fn pattern(n: usize, k: usize, b: usize) -> Vec<(usize, usize)> {
    let stream = Stream::named(0, 0, "pattern");
    let (rows, columns) = (n.div_ceil(b), k.div_ceil(b));
    let wanted = |r: usize, c: usize| match r {
        0 => true,
        1 => false,
        _ => stream.bits((r * columns + c) as u64).is_multiple_of(3),
    };
    (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))).filter(|&(r, c)| wanted(r, c)).collect()
}

/// Values of the blocks, zero beyond the edges of `[n, k]`.
fn values(blocks: &[(usize, usize)], b: usize, n: usize, k: usize) -> Vec<f32> {
    let mut values = integers("values", blocks.len() * b * b, 1);
    for (e, &(r, c)) in blocks.iter().enumerate() {
        for i in 0..b {
            for j in 0..b {
                if r * b + i >= n || c * b + j >= k {
                    values[(e * b + i) * b + j] = 0.0;
                }
            }
        }
    }
    values
}

fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// Columns that a strip gathers at most.
const STRIP: usize = 256;

/// A device on which operands are put as they are.
struct Bench {
    device: Device,
    kept: Vec<Tensor>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let device = Device::with_launcher(Box::new(Emulated::with_seed("sm_90a", seed).unwrap()));
        Bench { device, kept: Vec::new() }
    }

    fn put(&mut self, values: &[f32], dtype: DType) -> u64 {
        self.kept.push(Tensor::from_f32(&self.device, &[values.len()], values, dtype).unwrap());
        self.kept[self.kept.len() - 1].address().unwrap()
    }

    fn indices(&mut self, values: &[usize]) -> u64 {
        let values: Vec<i32> = values.iter().map(|&v| v as i32).collect();
        self.kept.push(Tensor::from_slice(&self.device, &[values.len()], &values).unwrap());
        self.kept[self.kept.len() - 1].address().unwrap()
    }

    /// Runs a launch and returns what it counted and what the last tensor put holds.
    fn run(&self, spec: LaunchSpec) -> (Counters, Vec<f32>) {
        self.device.run(&Plan::from_iter([spec])).unwrap();
        (self.device.take_counters().unwrap().remove(0).1, self.kept[self.kept.len() - 1].to_f32_vec().unwrap())
    }
}

fn lines_are_exact(b: usize, by_column: bool, dtype: DType, [m, n, k]: [usize; 3], accumulate: bool, seed: u64) {
    let blocks = pattern(n, k, b);
    let (lines, depth) = if by_column { (k, n) } else { (n, k) };
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    order.sort_by_key(|&e| if by_column { (blocks[e].1, blocks[e].0) } else { blocks[e] });
    let line_of = |e: usize| if by_column { blocks[e].1 } else { blocks[e].0 };
    let place_of = |e: usize| if by_column { blocks[e].0 } else { blocks[e].1 };
    let members: Vec<(usize, Vec<usize>)> = (0..lines.div_ceil(b))
        .map(|l| (l, order.iter().filter(|&&e| line_of(e) == l).map(|&e| place_of(e)).collect()))
        .collect();
    let mut position = 0;
    let mut items: Vec<[usize; 4]> = Vec::new();
    for (line, places) in &members {
        items.push([*line, position, places.len(), 0]);
        position += places.len();
    }
    items.sort_by_key(|item| std::cmp::Reverse(item[2]));

    let mut bench = Bench::new(seed);
    let (x, v, held) = (integers("x", m * depth, 1), values(&blocks, b, n, k), integers("held", m * lines, 2));
    let mut plan = Lines {
        op: "test",
        dtype,
        block: b,
        nnz: blocks.len(),
        m,
        lines,
        depth,
        by_column,
        x: bench.put(&x, dtype),
        values: bench.put(&v, dtype),
        out: 0,
        items: bench.indices(items.as_flattened()),
        count: items.len(),
        places: bench.indices(&order.iter().map(|&e| place_of(e)).collect::<Vec<_>>()),
        blocks: if by_column { bench.indices(&order) } else { 0 },
        scale: 2.0,
        accumulate,
        gpu: Gpu::of(&bench.device),
    };
    plan.out = bench.put(&held, dtype);
    assert_eq!(plan.refusal(), None);
    let (counted, got) = bench.run(plan.spec().unwrap());

    let mut want: Vec<f32> = if accumulate { held.clone() } else { vec![0.0; m * lines] };
    for (e, &(r, c)) in blocks.iter().enumerate() {
        for (at, value) in v[e * b * b..(e + 1) * b * b].iter().enumerate().filter(|(_, value)| **value != 0.0) {
            let (i, j) = (r * b + at / b, c * b + at % b);
            let (line, along) = if by_column { (j, i) } else { (i, j) };
            for t in 0..m {
                want[t * lines + line] += 2.0 * value * x[t * depth + along];
            }
        }
    }
    let name = format!("b {b}, by column {by_column}, {dtype}, {m} x {n} x {k}, seed {seed}");
    assert!(got.iter().zip(&want).all(|(g, w)| *g == rounded(*w, dtype)), "{name}");
    let foretold = plan.traffic(&members);
    assert_eq!(counted.tensor_macs, foretold.macs, "{name}");
    assert_eq!((counted.bank_conflicts, counted.local_accesses), (0, 0), "{name}");
    assert_eq!(counted.store_sectors, foretold.stored, "{name}");
    if !accumulate {
        // How often threads read an item or a place for themselves is the compiler's choice.
        let apart = counted.load_sectors.abs_diff(foretold.loaded);
        assert!(apart * 500 <= foretold.loaded, "{name}: {} and not {}", counted.load_sectors, foretold.loaded);
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn lines_are_exact_for_every_edge() {
    for (i, b) in [16, 32, 64, 128].into_iter().enumerate() {
        for by_column in [false, true] {
            let dtype = if by_column { DType::F16 } else { DType::BF16 };
            // Edges inside a block; more lines than clusters; a second pair of tiles, all but empty.
            lines_are_exact(b, by_column, dtype, [65 + 8 * i, 3 * b + 8, 5 * b - 8], by_column, 1);
            lines_are_exact(b, by_column, dtype, [520, 4 * b, 3 * b], false, 2);
        }
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn no_order_of_warps_changes_a_line() {
    for seed in 3..6 {
        lines_are_exact(32, seed % 2 == 0, DType::BF16, [300, 136, 200], true, seed);
    }
}

fn strips_are_exact(b: usize, dtype: DType, [m, n, k]: [usize; 3], wide: bool, accumulate: bool, seed: u64) {
    let blocks = pattern(n, k, b);
    let mut items: Vec<[usize; 4]> = Vec::new();
    for (e, &(row, _)) in blocks.iter().enumerate() {
        match items.last_mut() {
            Some(last) if last[0] == row && last[2] < STRIP / b => last[2] += 1,
            _ => items.push([row, e, 1, 0]),
        }
    }
    let mut bench = Bench::new(seed);
    let (y, x) = (integers("y", m * n, 1), integers("x", m * k, 1));
    let held = integers("held", blocks.len() * b * b, 2);
    let out_dtype = if wide { DType::F32 } else { dtype };
    let mut plan = Strips {
        op: "test",
        dtype,
        block: b,
        m,
        n,
        k,
        y: bench.put(&y, dtype),
        x: bench.put(&x, dtype),
        out: 0,
        wide,
        items: bench.indices(items.as_flattened()),
        count: items.len(),
        columns: bench.indices(&blocks.iter().map(|b| b.1).collect::<Vec<_>>()),
        begin: 0,
        scale: -0.5,
        accumulate,
        gpu: Gpu::of(&bench.device),
    };
    plan.out = bench.put(&held, out_dtype);
    assert_eq!(plan.refusal(), None);
    let (counted, got) = bench.run(plan.spec().unwrap());
    let name = format!("b {b}, {dtype}, {m} x {n} x {k}, wide {wide}");
    for (at, &g) in got.iter().enumerate() {
        let (e, i, j) = (at / (b * b), blocks[at / (b * b)].0 * b + at / b % b, blocks[at / (b * b)].1 * b + at % b);
        let inside = i < n && j < k;
        let sum = if inside { (0..m).map(|t| y[t * n + i] * x[t * k + j]).sum::<f32>() } else { 0.0 };
        let want = -0.5 * sum + if accumulate { held[at] } else { 0.0 };
        assert!(g == rounded(want, out_dtype), "{name}: block {e}, {g} and not {want}");
    }
    assert_eq!(counted.tensor_macs, (blocks.len() * b * b * m.next_multiple_of(STEP)) as u64, "{name}");
    assert_eq!((counted.bank_conflicts, counted.local_accesses), (0, 0), "{name}");
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn strips_are_exact_for_every_edge() {
    for b in [64, 128] {
        strips_are_exact(b, DType::BF16, [72, 3 * b - 8, 5 * b - 8], true, true, 1);
        strips_are_exact(b, DType::F16, [333, 4 * b, 3 * b + 16], false, false, 2);
        strips_are_exact(b, DType::F16, [64, 4 * b, 3 * b], false, true, 3);
    }
}

#[test]
fn what_does_not_fit_says_why() {
    let gpu = Gpu { capability: 90, multiprocessors: 132 };
    let fits = Lines {
        op: "test",
        dtype: DType::BF16,
        block: 64,
        nnz: 7,
        m: 512,
        lines: 256,
        depth: 512,
        by_column: false,
        x: 256,
        values: 256,
        out: 256,
        items: 256,
        count: 64,
        places: 256,
        blocks: 0,
        scale: 1.0,
        accumulate: false,
        gpu,
    };
    assert_eq!(fits.refusal(), None);
    for (bad, reason) in [
        (Lines { gpu: Gpu::ANY, ..fits }, "needs sm_90"),
        (Lines { dtype: DType::F32, ..fits }, "for f16 and bf16"),
        (Lines { depth: 511, ..fits }, "k = 511"),
        (Lines { x: 264, ..fits }, "multiple of 16 bytes"),
        (Lines { nnz: 0, ..fits }, "0 blocks"),
        (Lines { m: 8, ..fits }, "empty"),
        (Lines { m: usize::MAX, ..fits }, "coordinates"),
    ] {
        let text = bad.refusal().unwrap_or_default();
        assert!(text.contains(reason), "{text}");
    }
}
