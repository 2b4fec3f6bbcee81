//! The plan of a large 16-bit product on Hopper: `kernels/tile/hopper_gemm.cuh`.

use std::fmt;

use super::{Gpu, Layout, LowRankFactors, Product, Rider, Traffic};
use crate::device::{LaunchSpec, Swizzle, TensorMap, TensorMaps};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::{aligned, launch};

/// Rows of a block's tile of out, and how much of k one stage takes.
pub(super) const ROWS: usize = 128;
pub(super) const STEP: usize = 64;
/// How much of a sum one instruction takes.
pub(super) const MMA_STEP: usize = 16;
/// Blocks of a cluster, one above the other.
pub(super) const CLUSTER: usize = 2;
/// Rows that a warp writes at once.
pub(super) const STORE_ROWS: usize = 16;

/// By layout (nt, nn), then f16 and bf16.
type Kernels = [[KernelId; 2]; 2];

/// A block's tile of out and the kernels that make it.
pub(super) struct Tile {
    pub name: &'static str,
    pub cols: usize,
    kernels: Kernels,
    /// With a rider, by its blocks' edge.
    riding: [Kernels; 4],
}

macro_rules! kernels {
    ($op:literal, $tile:expr) => {
        [
            [
                KernelId::of(concat!($op, "_nt_f16_", $tile, "_sm90a")),
                KernelId::of(concat!($op, "_nt_bf16_", $tile, "_sm90a")),
            ],
            [
                KernelId::of(concat!($op, "_nn_f16_", $tile, "_sm90a")),
                KernelId::of(concat!($op, "_nn_bf16_", $tile, "_sm90a")),
            ],
        ]
    };
}

macro_rules! tile {
    ($cols:literal) => {
        Tile {
            name: concat!("128x", $cols, "x64 sm90a"),
            cols: $cols,
            kernels: kernels!("frozen_linear", concat!("128x", $cols, "x64")),
            riding: [
                kernels!("ride", concat!("128x", $cols, "x64b16")),
                kernels!("ride", concat!("128x", $cols, "x64b32")),
                kernels!("ride", concat!("128x", $cols, "x64b64")),
                kernels!("ride", concat!("128x", $cols, "x64b128")),
            ],
        }
    };
}

/// In order of preference.
pub(super) static TILES: [Tile; 2] = [tile!(256), tile!(128)];

/// The narrow tile moves half as many bytes again for the same products: it is taken where it keeps this many percent more of the GPU
/// busy.
const WORTH_NARROW: usize = 115;

/// What follows the six maps in `struct HopperGemmParams` of `kernels/tile/hopper_gemm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct HopperGemmParams {
    pub bias: u64,
    pub held: u64,
    pub m: u64,
    pub n: u64,
    pub seed: u64,
    pub pairs: u32,
    pub columns: u32,
    pub low_steps: u32,
    pub steps: u32,
    pub step: u32,
    pub site: u32,
    pub threshold: u32,
    pub low_scale: f32,
    pub out_scale: f32,
    pub activation: u32,
    pub keeps: u32,
    unused: [u32; 11],
}

/// What follows the eight maps in `struct HopperRideParams` of `kernels/tile/hopper_ride.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct HopperRideParams {
    pub gemm: HopperGemmParams,
    pub offsets: u64,
    pub places: u64,
    pub blocks: u64,
    pub lines: u32,
    pub scale: f32,
    unused: [u32; 24],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<HopperRideParams>() == 256 && offset_of!(HopperRideParams, lines) == 152);
    assert!(size_of::<HopperGemmParams>() == 128 && offset_of!(HopperGemmParams, pairs) == 40);
    assert!(offset_of!(HopperGemmParams, activation) == 76);
};

/// What every product on Hopper asks of GPU, dtype and operands: rows of whole 16 bytes, at multiples of 16. Reasons are made by `why`
/// alone, so that a mere choice allocates nothing.
pub(crate) fn unfit<R>(
    gpu: Gpu,
    dtype: DType,
    rows: &[(&str, usize)],
    addresses: &[u64],
    why: &impl Fn(fmt::Arguments<'_>) -> R,
) -> Option<R> {
    if gpu.capability != 90 {
        return Some(why(format_args!("needs sm_90, and this is sm_{}", gpu.capability)));
    }
    if !matches!(dtype, DType::F16 | DType::BF16) {
        return Some(why(format_args!("for f16 and bf16, and this is {dtype}")));
    }
    if let Some((name, extent)) = rows.iter().find(|(_, extent)| extent % 8 != 0) {
        return Some(why(format_args!(
            "the copy engine takes rows of whole 16 bytes, and {name} = {extent} is no multiple of 8"
        )));
    }
    (!aligned(addresses)).then(|| why(format_args!("an operand starts at no multiple of 16 bytes")))
}

/// Why this product cannot, or should not, be made of these tiles, as `why` has it.
pub(super) fn refusal<R>(p: &Product, tile: &Tile, why: impl Fn(fmt::Arguments<'_>) -> R) -> Option<R> {
    if p.layout == Layout::Tn {
        return Some(why(format_args!("sums over tokens have the portable kernels")));
    }
    if p.layout == Layout::Nt && p.dropout.is_some() {
        return Some(why(format_args!("drops nothing of an operand")));
    }
    if p.segmented.is_some() {
        return Some(why(format_args!("has one update for all rows")));
    }
    if p.strides.is_some() {
        return Some(why(format_args!("reads no columns of wider matrices")));
    }
    let (rank, low) = p.low_rank.map_or((8, [0, 0]), |l| (l.rank, [l.a, l.b]));
    let (values, activated) = (p.rider.map_or(0, |r| r.values), p.activated.map_or(0, |a| a.to));
    let (rows, addresses) = (
        [("n", p.n), ("k", p.k), ("rank", rank)],
        [p.a, p.b, p.out, p.bias, p.held, activated, low[0], low[1], values],
    );
    if let Some(reason) = unfit(p.gpu, p.dtype, &rows, &addresses, &why) {
        return Some(reason);
    }
    if [p.m, p.n, p.k].iter().any(|&d| d > i32::MAX as usize - 256) {
        return Some(why(format_args!("an extent beyond the coordinates of the copy engine")));
    }
    if p.rider.is_some_and(|r| r.nnz * r.b > i32::MAX as usize) {
        return Some(why(format_args!("more blocks than the copy engine counts rows of")));
    }
    if p.m <= ROWS / 2 || p.n <= tile.cols / 2 {
        return Some(why(format_args!("half of each tile would be empty")));
    }
    let clusters = (p.gpu.multiprocessors as usize / CLUSTER).max(1);
    let turns = turns(p, tile);
    if turns < clusters.div_ceil(4) {
        return Some(why(format_args!(
            "{turns} pairs of tiles are too few for {} multiprocessors",
            p.gpu.multiprocessors
        )));
    }
    let [_, narrow] = &TILES;
    // What a cluster computes until the last one is done, in columns.
    let [own, other] = [tile, narrow].map(|t| self::turns(p, t).div_ceil(clusters) * t.cols);
    (own * 100 > other * WORTH_NARROW)
        .then(|| why(format_args!("{turns} pairs of tiles leave many of {clusters} clusters idle at the end")))
}

pub(super) fn pairs_and_columns(p: &Product, tile: &Tile) -> (usize, usize) {
    (p.m.div_ceil(ROWS * CLUSTER), p.n.div_ceil(tile.cols))
}

/// Pairs of tiles, which clusters take in turn.
pub(super) fn turns(p: &Product, tile: &Tile) -> usize {
    let (pairs, columns) = pairs_and_columns(p, tile);
    pairs.saturating_mul(columns)
}

/// Clusters of a launch: no more than there are multiprocessors for.
pub(super) fn clusters(p: &Product, tile: &Tile) -> usize {
    turns(p, tile).min((p.gpu.multiprocessors as usize / CLUSTER).max(1))
}

/// The tiles that this product is made of, if it goes this way.
pub(super) fn choose(p: &Product) -> Option<&'static Tile> {
    TILES.iter().find(|tile| refusal(p, tile, |_| ()).is_none())
}

pub(super) fn spec(p: &Product, tile: &Tile) -> Result<LaunchSpec> {
    // A pattern without blocks adds nothing.
    let rider = p.rider.filter(|r| r.nnz > 0);
    // The layouts nt and nn and both dtypes are what `refusal` lets pass, and b is one of 16, 32, 64 and 128.
    let kernels = rider.map_or(&tile.kernels, |r| &tile.riding[(r.b / 16).trailing_zeros() as usize % 4]);
    let kernel = kernels[usize::from(p.layout == Layout::Nn)][usize::from(p.dtype == DType::BF16)];
    let (pairs, columns) = pairs_and_columns(p, tile);
    // The kernel counts turns, and those of a whole band, in 32 bits.
    if turns(p, tile) > i32::MAX as usize || columns > 1 << 28 {
        return Err(Error::SizeOverflow { op: p.op, dims: vec![p.m, p.n, p.k] });
    }
    let low = p.low_rank.unwrap_or(LowRankFactors { a: 0, b: 0, rank: 0, scale: 0.0 });
    let lines_of = |address: u64, [rows, cols]: [usize; 2], tile_rows: usize, line: usize| TensorMap {
        address,
        dtype: p.dtype,
        rows: rows as u64,
        cols: cols as u64,
        tile_rows: tile_rows as u32,
        swizzle: Swizzle::of_line(line),
    };
    let map =
        |address: u64, rows: usize, cols: usize, tile_rows: usize| lines_of(address, [rows, cols], tile_rows, STEP);
    let b = |address: u64, k: usize| match p.layout {
        Layout::Nt => map(address, p.n, k, STEP),
        _ => map(address, k, p.n, STEP),
    };
    let (a2, b2) = (map(p.a, p.m, p.k, ROWS), b(p.b, p.k));
    // Without a low-rank product its maps are not read.
    let (a1, b1) = match low.rank {
        0 => (a2, b2),
        rank => (map(low.a, p.m, rank, ROWS), b(low.b, rank)),
    };
    let keep = p.dropout.map_or(1.0, |d| f64::from(d.keep_scale));
    let (stream, threshold) = p.dropout.map_or((None, 0), |d| (Some(d.stream), d.threshold));
    let params = HopperGemmParams {
        bias: p.bias,
        held: p.held,
        m: p.m as u64,
        n: p.n as u64,
        seed: stream.map_or(0, |s| s.seed),
        pairs: pairs as u32,
        columns: columns as u32,
        low_steps: low.rank.div_ceil(MMA_STEP) as u32,
        steps: p.k.div_ceil(STEP) as u32,
        step: stream.map_or(0, |s| s.step),
        site: stream.map_or(0, |s| s.site),
        threshold,
        low_scale: (low.scale * keep / rider.map_or(1.0, |r| r.scale)) as f32,
        out_scale: p.scale as f32,
        activation: p.activated.map_or(0, |a| a.activation.code()),
        keeps: u32::from(keeps(p)),
        unused: [0; 11],
    };
    let mut maps = TensorMaps::new();
    if let Some(r) = rider {
        let span = r.b.min(STEP);
        maps.push(lines_of(p.a, [p.m, p.k], ROWS, span));
        maps.push(lines_of(r.values, [r.nnz * r.b, r.b], r.b / 2, span));
    }
    let out = |address: u64| map(address, p.m, p.n, STORE_ROWS);
    maps.extend([a1, b1, a2, b2, out(p.out), out(p.activated.map_or(p.out, |a| a.to))]);
    let Some(Rider { offsets, others: places, blocks, b, scale, .. }) = rider else {
        return Ok(LaunchSpec { maps, ..persistent(p, (tile, kernel), &params) });
    };
    let (lines, scale) = (p.n.div_ceil(b) as u32, scale as f32);
    let riding = HopperRideParams { gemm: params, offsets, places, blocks, lines, scale, unused: [0; 24] };
    Ok(LaunchSpec { maps, ..persistent(p, (tile, kernel), &riding) })
}

/// Whether out is written besides a function of it.
pub(super) fn keeps(p: &Product) -> bool {
    p.activated.is_some_and(|a| a.to != p.out)
}

/// One block a multiprocessor, in whole clusters; each cluster then takes pair after pair of tiles. The maps are still to come.
pub(super) fn persistent<P: bytemuck::NoUninit>(
    p: &Product,
    (tile, kernel): (&Tile, KernelId),
    params: &P,
) -> LaunchSpec {
    LaunchSpec {
        grid: [(clusters(p, tile) * CLUSTER) as u32, 1, 1],
        cluster: [CLUSTER as u32, 1, 1],
        ..launch(kernel, 1, params)
    }
}

/// Sectors of a row of `extent` elements that is read or written in lines of `STEP`.
pub(super) fn row_sectors(extent: usize) -> u64 {
    let line = |elements: usize| (elements as u64 * 2).div_ceil(32);
    (extent / STEP) as u64 * line(STEP) + line(extent % STEP)
}

/// Of the launch that [`spec`] plans, without what rides, and without what threads read themselves: bias, and what is held.
#[cfg_attr(not(test), allow(dead_code))]
pub(super) fn traffic(p: &Product, tile: &Tile) -> Traffic {
    let (pairs, columns) = pairs_and_columns(p, tile);
    let written = 1 + u64::from(keeps(p));
    let mut traffic = Traffic { loaded: 0, stored: written * p.m as u64 * row_sectors(p.n), macs: 0 };
    for (k, whole) in [(p.low_rank.map_or(0, |l| l.rank), MMA_STEP), (p.k, STEP)] {
        let a = p.m as u64 * row_sectors(k);
        let b = match p.layout {
            Layout::Nt => p.n as u64 * row_sectors(k),
            _ => k as u64 * row_sectors(p.n),
        };
        traffic.loaded += a * columns as u64 + b * pairs as u64;
        let tiles = (pairs * CLUSTER * columns) as u64;
        traffic.macs += tiles * (ROWS * tile.cols * k.next_multiple_of(whole)) as u64;
    }
    traffic
}
