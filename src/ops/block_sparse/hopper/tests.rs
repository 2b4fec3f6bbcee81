//! The Hopper products on the emulator: exact for every edge, for any order of warps, and with the traffic that the plan foretells.

use half::{bf16, f16};

use super::*;
use crate::autograd::Target;
use crate::device::{Counters, Device, Emulated};
use crate::ops::block_sparse::desc::{Dense, Sampled, Side};
use crate::ops::block_sparse::{Foretold, foretold, gpu};
use crate::ops::product::{Gpu, Traffic};
use crate::rng::Stream;
use crate::tensor::{BlockPattern, Tensor};
use crate::testing::integers;

fn device(seed: u64) -> Device {
    Device::with_launcher(Box::new(Emulated::with_seed("sm_90a", seed).unwrap()))
}

/// Blocks of a matrix `[n, k]`: one row without, one with all, the others with some.
fn pattern(device: &Device, [n, k]: [usize; 2], b: usize) -> BlockPattern {
    let stream = Stream::named(0, 0, "pattern");
    let (rows, columns) = (n.div_ceil(b), k.div_ceil(b));
    let wanted = |i: usize| match i / columns {
        0 => true,
        1 => false,
        _ => stream.bits(i as u64).is_multiple_of(3),
    };
    BlockPattern::from_mask(device, [n, k], b, &(0..rows * columns).map(wanted).collect::<Vec<_>>()).unwrap()
}

/// Values of the blocks, zero beyond the edges, and the matrix that they are.
fn values(pattern: &BlockPattern) -> (Vec<f32>, Vec<f32>) {
    let drawn = integers("values", pattern.value_dims().iter().product(), 1);
    let (mut values, mut matrix) = (vec![0.0; drawn.len()], vec![0.0; pattern.shape().iter().product()]);
    pattern.topology().for_row_pieces(|at, place, len| {
        values[at..at + len].copy_from_slice(&drawn[at..at + len]);
        matrix[place..place + len].copy_from_slice(&drawn[at..at + len]);
    });
    (values, matrix)
}

/// As `[rows, cols]`.
fn transposed(matrix: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|at| matrix[at % cols * rows + at / cols]).collect()
}

fn rounded(value: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn put(device: &Device, values: &[f32], dtype: DType) -> Tensor {
    Tensor::from_f32(device, &[values.len()], values, dtype).unwrap()
}

/// `A [m, k] · B [k, n]`
fn product(a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<f32> {
    let mut out = vec![0.0; m * n];
    for (i, row) in out.chunks_mut(n.max(1)).enumerate() {
        for p in 0..k {
            let v = a[i * k + p];
            if v != 0.0 {
                row.iter_mut().zip(&b[p * n..]).for_each(|(o, b)| *o += v * b);
            }
        }
    }
    out
}

/// Sectors of lookups that an order of warps may add to a launch.
const APART: u64 = 4;

fn holds(counted: &Counters, foretold: Traffic, name: &str) {
    assert_eq!(counted.tensor_macs, foretold.macs, "{name}");
    // The lanes that let go of a stage may run apart from their warp for a while; what they then look up for the next turn counts twice.
    let apart = counted.load_sectors.checked_sub(foretold.loaded);
    assert!(
        apart.is_some_and(|more| more <= APART),
        "{name}: {} loaded, {} foretold",
        counted.load_sectors,
        foretold.loaded
    );
    assert_eq!(counted.store_sectors, foretold.stored, "{name}");
    assert_eq!((counted.bank_conflicts, counted.local_accesses), (0, 0), "{name}");
}

/// A member with a sparse operand of shape `[n, k]`.
#[derive(Clone, Copy, Debug)]
struct Member {
    side: Side,
    sparse_t: bool,
    dense_t: bool,
}

const MEMBERS: [Member; 8] = {
    let mut out = [Member { side: Side::Left, sparse_t: false, dense_t: false }; 8];
    let mut i = 0;
    while i < 8 {
        out[i].side = if i & 4 == 0 { Side::Right } else { Side::Left };
        (out[i].sparse_t, out[i].dense_t) = (i & 1 == 0, i & 2 != 0);
        i += 1;
    }
    out
};

fn lines_are_exact(member: Member, b: usize, dtype: DType, [m, n, k]: [usize; 3], accumulate: bool, seed: u64) {
    let device = device(seed);
    let Member { side, sparse_t, dense_t } = member;
    let pattern = pattern(&device, [n, k], b);
    let (v, matrix) = values(&pattern);
    let desc = Dense { op: "test", pattern, side, sparse_t, dense_t, scale: 2.0, m, dtype };
    let [lines, depth] = desc.lines_and_depth();
    // As for y [m, lines] = x [m, depth] · s [depth, lines]; what lies across is turned.
    let (x, held) = (integers("x", m * depth, 1), integers("held", m * lines, 2));
    let across = side == Side::Left;
    let s = if desc.by_column() { matrix } else { transposed(&matrix, k, n) };
    let as_stored = |of: &[f32], cols: usize, turn: bool| if turn { transposed(of, cols, m) } else { of.to_vec() };
    let mut want = product(&x, &s, [m, lines, depth]);
    for (w, h) in want.iter_mut().zip(&held) {
        *w = rounded(2.0 * *w + if accumulate { *h } else { 0.0 }, dtype);
    }

    let dense = put(&device, &as_stored(&x, depth, dense_t != across), dtype);
    let values = put(&device, &v, dtype);
    let tensor = put(&device, &as_stored(&held, lines, across), dtype);
    let [x, values_at, out] = [&dense, &values, &tensor].map(|t| t.address().unwrap());
    let gpu = Gpu::of(&device);
    let plan = Lines { desc: &desc, x, values: values_at, out, out_dtype: dtype, accumulate, gpu };
    let name = format!("b {b}, {member:?}, {dtype}, {m} x {n} x {k}, seed {seed}");
    assert_eq!(plan.refusal(|why| why.to_string()), None, "{name}");
    let (launches, aside) = gpu::dense(&desc, &values, &dense, &Target { tensor: tensor.clone(), accumulate }).unwrap();
    assert!(launches.len() == 1 && aside.is_none());
    device.run(&launches).unwrap();
    assert!(tensor.to_f32_vec().unwrap() == as_stored(&want, lines, across), "{name}");
    holds(&device.take_counters().unwrap().remove(0).1, plan.traffic(), &name);
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn lines_are_exact_for_every_edge() {
    for (i, b) in [16, 32, 64, 128].into_iter().enumerate() {
        for (j, member) in MEMBERS.into_iter().enumerate() {
            let (dtype, accumulate) = ([DType::BF16, DType::F16][(i + j) % 2], (i + j / 2) % 2 == 0);
            // Edges inside a block; a second pair of tiles, all but empty.
            lines_are_exact(member, b, dtype, [72 + 8 * i, 3 * b + 8, 5 * b - 8], accumulate, 1);
            if j < 2 || j == 7 {
                lines_are_exact(member, b, dtype, [520, 4 * b, 3 * b], !accumulate, 2);
            }
        }
    }
    // Where neither operand has m along its rows, it is any number.
    lines_are_exact(MEMBERS[0], 64, DType::BF16, [601, 72, 200], true, 1);
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn no_order_of_warps_changes_a_line() {
    for seed in 3..6 {
        lines_are_exact(MEMBERS[seed as usize], 32, DType::BF16, [304, 136, 200], true, seed);
    }
}

fn strips_are_exact(
    [a_t, b_t]: [bool; 2],
    b: usize,
    dtype: DType,
    [m, n, k]: [usize; 3],
    wide: bool,
    accumulate: bool,
    seed: u64,
) {
    let device = device(seed);
    let pattern = pattern(&device, [n, k], b);
    let (left, right) = (integers("a", n * m, 1), integers("b", m * k, 1));
    let held = integers("held", pattern.value_dims().iter().product(), 2);
    let sums = product(&left, &right, [n, k, m]);
    let out_dtype = if wide { DType::F32 } else { dtype };
    let mut want: Vec<f32> = held.iter().map(|h| if accumulate { *h } else { 0.0 }).collect();
    pattern.topology().for_row_pieces(|at, place, len| {
        want[at..at + len].iter_mut().zip(&sums[place..]).for_each(|(w, s)| *w -= 0.5 * s);
    });
    want.iter_mut().for_each(|w| *w = rounded(*w, out_dtype));

    let desc = Sampled { op: "test", pattern, a_t, b_t, scale: -0.5, m, dtype };
    let a = put(&device, &if a_t { transposed(&left, m, n) } else { left }, dtype);
    let x = put(&device, &if b_t { transposed(&right, k, m) } else { right }, dtype);
    let target = Target { tensor: put(&device, &held, out_dtype), accumulate };
    let strips = 0..desc.pattern.strips().len();
    let plan = gpu::strips(&desc, &a, &x, strips.clone(), &target).unwrap();
    let name = format!("b {b}, {a_t} {b_t}, {dtype}, {m} x {n} x {k}, wide {wide}, adding {accumulate}");
    assert_eq!(plan.refusal(|why| why.to_string()), None, "{name}");
    gpu::sampled(&desc, &a, &x, strips, &target).unwrap();
    assert!(target.tensor.to_f32_vec().unwrap() == want, "{name}");
    let counted = device.take_counters().unwrap();
    let (_, sampled) = counted.iter().find(|(kernel, _)| kernel.symbol().contains("strips")).unwrap();
    let pieces = m.div_ceil(plan.split);
    let aside = Strips { out_dtype: DType::F32, accumulate: false, ..plan.clone() };
    holds(sampled, if pieces > 1 { aside.traffic() } else { plan.traffic() }, &name);
    assert_eq!(counted.len(), 1 + usize::from(pieces > 1), "{name}");
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn strips_are_exact_for_every_edge() {
    for (i, b) in [16, 32, 64, 128].into_iter().enumerate() {
        for (j, t) in [[true, false], [false, true], [false, false], [true, true]].into_iter().enumerate() {
            let dtype = [DType::BF16, DType::F16][(i + j) % 2];
            strips_are_exact(t, b, dtype, [72, 3 * b - 8, 9 * b - 8], j % 2 == 0, i % 2 == 0, 1);
            if i + j < 4 {
                // The sum in pieces, with steps that are not whole.
                strips_are_exact(t, b, dtype, [616, 2 * b, 7 * b], j % 2 == 1, true, 2);
            }
        }
        strips_are_exact([true, false], b, DType::F16, [77, 2 * b, 4 * b], false, true, 3);
    }
}

/// x of 8192 by 4096, S of 4096 by 4096 at density 0.25: the products of existing blocks and no others.
#[test]
fn an_adapter_of_usual_size_goes_this_way() {
    let gpu = Gpu { capability: 90, multiprocessors: 132 };
    for b in [16, 32, 64, 128] {
        let stream = Stream { seed: 1, step: 0, site: 0 };
        let pattern = BlockPattern::random(&Device::cpu(), [4096, 4096], b, 0.25, stream).unwrap();
        let wanted = (pattern.nnz() * b * b * 8192) as u64;
        for pass in foretold(gpu, &pattern, 8192, DType::BF16) {
            let Foretold { pass, refusal, traffic, compulsory } = pass;
            println!(
                "| {b} | {pass} | {} | {} | {} |",
                traffic.bytes() / 1_000_000,
                compulsory / 1_000_000,
                traffic.macs
            );
            assert_eq!(refusal, None, "b {b}, {pass}");
            assert_eq!(traffic.macs, wanted, "b {b}, {pass}");
        }
    }
}

#[test]
fn what_does_not_fit_says_why() {
    let desc = |b: usize, m, k, dtype| Dense {
        op: "test",
        pattern: BlockPattern::full(&Device::cpu(), [256 * b, k], b).unwrap(),
        side: Side::Right,
        sparse_t: true,
        dense_t: false,
        scale: 1.0,
        m,
        dtype,
    };
    let gpu = Gpu { capability: 90, multiprocessors: 132 };
    let refusal = |desc: &Dense, x, gpu| {
        let lines = Lines { desc, x, values: 256, out: 256, out_dtype: DType::BF16, accumulate: false, gpu };
        lines.refusal(|why| why.to_string())
    };
    let fits = desc(16, 512, 64, DType::BF16);
    assert_eq!(refusal(&fits, 256, gpu), None);
    let none = Dense { pattern: BlockPattern::empty(&Device::cpu(), [256, 64], 16).unwrap(), ..fits.clone() };
    for (bad, reason) in [
        (refusal(&fits, 256, Gpu::ANY), "needs sm_90"),
        (refusal(&desc(16, 512, 64, DType::F32), 256, gpu), "for f16 and bf16"),
        (refusal(&desc(16, 512, 63, DType::BF16), 256, gpu), "k = 63"),
        (refusal(&fits, 264, gpu), "multiple of 16 bytes"),
        (refusal(&none, 256, gpu), "0 blocks"),
        (refusal(&desc(16, 8, 64, DType::BF16), 256, gpu), "empty"),
        (refusal(&desc(16, usize::MAX / 2, 64, DType::BF16), 256, gpu), "coordinates"),
        (refusal(&desc(16, 512, 64, DType::F16), 256, gpu), "writes f16"),
    ] {
        let text = bad.unwrap_or_default();
        assert!(text.contains(reason), "{text}, and not {reason}");
    }
}
