//! The plans of block-sparse products on Hopper, on addresses: `kernels/tile/hopper_blocks.cuh`.

use crate::device::{LaunchSpec, Params, Swizzle, TensorMap, TensorMaps};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::aligned;
use crate::ops::product::{Gpu, Traffic};

/// Blocks of a cluster and rows of out that each makes, where lines are multiplied.
const CLUSTER: usize = 2;
const ROWS: usize = 256;
/// Elements of a line of shared memory at most, and tokens that a strip takes at once.
const STEP: usize = 64;
/// Rows that a warp writes at once.
const STORE_ROWS: u32 = 16;

/// By rows, by columns, strips; each for f16 and bf16.
struct Kernels {
    block: usize,
    lines: [[KernelId; 2]; 2],
    strips: Option<[KernelId; 2]>,
}

macro_rules! per_dtype {
    ($pass:literal, $block:literal) => {
        [
            KernelId::of(concat!("block_sparse_linear_", $pass, "_f16_b", $block, "_sm90a")),
            KernelId::of(concat!("block_sparse_linear_", $pass, "_bf16_b", $block, "_sm90a")),
        ]
    };
}

macro_rules! lines {
    ($block:literal) => {
        [per_dtype!("rows", $block), per_dtype!("columns", $block)]
    };
}

static KERNELS: [Kernels; 4] = [
    Kernels { block: 16, lines: lines!(16), strips: None },
    Kernels { block: 32, lines: lines!(32), strips: None },
    Kernels { block: 64, lines: lines!(64), strips: Some(per_dtype!("strips", 64)) },
    Kernels { block: 128, lines: lines!(128), strips: Some(per_dtype!("strips", 128)) },
];

/// `y (+)= s · x Sᵀ`, or `s · x S` by columns: each line of blocks of S makes b columns of y.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Lines {
    pub op: &'static str,
    pub dtype: DType,
    /// b
    pub block: usize,
    pub nnz: usize,
    pub m: usize,
    /// Columns of y.
    pub lines: usize,
    /// Columns of x.
    pub depth: usize,
    pub by_column: bool,
    /// `[m, depth]`
    pub x: u64,
    /// `[nnz, b, b]`
    pub values: u64,
    /// `[m, lines]`
    pub out: u64,
    /// `(line, position of its first block, count, -)` of every line, whole, longest first.
    pub items: u64,
    pub count: usize,
    /// By position, where along x a block lies, and its number; 0 if that is the position.
    pub places: u64,
    pub blocks: u64,
    pub scale: f64,
    pub accumulate: bool,
    pub gpu: Gpu,
}

/// What follows the three maps in `struct HopperLinesParams` of `kernels/tile/hopper_blocks.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct HopperLinesParams {
    pub items: u64,
    pub places: u64,
    pub blocks: u64,
    pub held: u64,
    pub m: u64,
    pub lines: u64,
    pub count: u32,
    pub pairs: u32,
    pub scale: f32,
    unused: [u32; 17],
}

/// `V (+)= s · yᵀ x` at the blocks: strips of neighbouring blocks of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Strips {
    pub op: &'static str,
    pub dtype: DType,
    /// b
    pub block: usize,
    pub m: usize,
    /// Rows and columns of S.
    pub n: usize,
    pub k: usize,
    /// `[m, n]`
    pub y: u64,
    /// `[m, k]`
    pub x: u64,
    /// The blocks of the strips, `[.., b, b]`, in f32 if `wide`.
    pub out: u64,
    pub wide: bool,
    /// `(row of blocks, first block, count, -)` of each strip, at most 256 columns wide.
    pub items: u64,
    pub count: usize,
    /// Column of each block.
    pub columns: u64,
    /// The block that `out` begins with.
    pub begin: usize,
    pub scale: f64,
    pub accumulate: bool,
    pub gpu: Gpu,
}

/// What follows the two maps in `struct HopperStripsParams` of `kernels/tile/hopper_blocks.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct HopperStripsParams {
    pub items: u64,
    pub places: u64,
    pub out: u64,
    pub count: u32,
    pub steps: u32,
    pub flags: u32,
    pub scale: f32,
    pub begin: u32,
    unused: [u32; 21],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<HopperLinesParams>() == 128 && offset_of!(HopperLinesParams, count) == 48);
    assert!(offset_of!(HopperLinesParams, scale) == 56);
    assert!(size_of::<HopperStripsParams>() == 128 && offset_of!(HopperStripsParams, count) == 24);
    assert!(offset_of!(HopperStripsParams, scale) == 36);
};

const WIDE: u32 = 1;
const ACCUMULATE: u32 = 2;

/// What both kinds ask of GPU, dtype and operands.
fn unfit(gpu: Gpu, dtype: DType, extents: [(&str, usize); 2], m: usize, addresses: &[u64]) -> Option<String> {
    if gpu.capability != 90 {
        return Some(format!("needs sm_90, and this is sm_{}", gpu.capability));
    }
    if !matches!(dtype, DType::F16 | DType::BF16) {
        return Some(format!("for f16 and bf16, and this is {dtype}"));
    }
    for (name, extent) in extents {
        if extent % 8 != 0 {
            return Some(format!(
                "the copy engine takes rows of 16 bytes and more, and {name} = {extent} is no multiple of 8"
            ));
        }
    }
    if !aligned(addresses) {
        return Some("an operand starts at no multiple of 16 bytes".into());
    }
    let most = i32::MAX as usize - CLUSTER * ROWS;
    (m == 0 || m > most || extents.iter().any(|&(_, e)| e > most))
        .then(|| "an extent beyond the coordinates of the copy engine".into())
}

fn kernels(op: &'static str, block: usize) -> Result<&'static Kernels> {
    let found = KERNELS.iter().find(|k| k.block == block);
    found.ok_or_else(|| Error::value(op, "block", "16, 32, 64 or 128", block))
}

fn of_dtype(kernels: &[KernelId; 2], dtype: DType) -> KernelId {
    kernels[usize::from(dtype == DType::BF16)]
}

fn map(dtype: DType, address: u64, rows: usize, cols: usize, tile_rows: u32, line: usize) -> TensorMap {
    let swizzle = match line {
        16 => Swizzle::B32,
        32 => Swizzle::B64,
        _ => Swizzle::B128,
    };
    TensorMap { address, dtype, rows: rows as u64, cols: cols as u64, tile_rows, swizzle }
}

impl Lines {
    /// Why this product cannot, or should not, go this way.
    pub fn refusal(&self) -> Option<String> {
        let extents = [("n", self.lines), ("k", self.depth)];
        let addresses = [self.x, self.values, self.out, self.items];
        if let Some(reason) = unfit(self.gpu, self.dtype, extents, self.m, &addresses) {
            return Some(reason);
        }
        if self.nnz == 0 || self.nnz * self.block > i32::MAX as usize {
            return Some(format!("{} blocks; the copy engine counts rows of values from 1 to 2^31", self.nnz));
        }
        if self.m <= ROWS / 4 {
            return Some("most of each tile would be empty".into());
        }
        let (turns, clusters) = (self.pairs().saturating_mul(self.count), self.gpu.multiprocessors as usize / CLUSTER);
        if turns > i32::MAX as usize {
            return Some(format!("{turns} tiles; the kernel counts them in 31 bits"));
        }
        (turns < clusters / 4).then(|| format!("{turns} pairs of tiles are too few for {clusters} clusters"))
    }

    fn pairs(&self) -> usize {
        self.m.div_ceil(ROWS * CLUSTER)
    }

    pub fn spec(&self) -> Result<LaunchSpec> {
        let kernel = of_dtype(&kernels(self.op, self.block)?.lines[usize::from(self.by_column)], self.dtype);
        let (line, b) = (self.block.min(STEP), self.block);
        let params = HopperLinesParams {
            items: self.items,
            places: self.places,
            blocks: self.blocks,
            held: if self.accumulate { self.out } else { 0 },
            m: self.m as u64,
            lines: self.lines as u64,
            count: self.count as u32,
            pairs: self.pairs() as u32,
            scale: self.scale as f32,
            unused: [0; 17],
        };
        let maps = [
            map(self.dtype, self.x, self.m, self.depth, ROWS as u32, line),
            map(self.dtype, self.values, self.nnz * b, b, b as u32 / 2, line),
            map(self.dtype, self.out, self.m, self.lines, STORE_ROWS, line),
        ];
        // One block a multiprocessor, in whole clusters; each cluster then takes turn after turn.
        let most = (self.gpu.multiprocessors as usize / CLUSTER).max(1);
        let clusters = self.pairs().saturating_mul(self.count).min(most);
        Ok(launch(kernel, clusters * CLUSTER, CLUSTER, &maps, Params::of(&params)))
    }

    /// What [`Lines::spec`] does, from where along x the blocks of each line lie. Threads themselves read the items, for each turn a
    /// sector by every warp that works, and for each part of the sum where it lies.
    #[cfg_attr(not(test), allow(dead_code))]
    pub fn traffic(&self, lines: &[(usize, Vec<usize>)]) -> Traffic {
        let (b, span, pairs) = (self.block, self.block.min(STEP), self.pairs() as u64);
        let sectors = |extent: usize, at: usize| (extent.saturating_sub(at).min(span) as u64 * 2).div_ceil(32);
        let spans = |place: usize| (0..b).step_by(span).map(move |half| place * b + half);
        let mut traffic = Traffic { loaded: 0, stored: 0, macs: 0 };
        for (line, places) in lines {
            traffic.stored += spans(*line).map(|at| self.m as u64 * sectors(self.lines, at)).sum::<u64>();
            traffic.loaded += pairs * CLUSTER as u64 * 9;
            for at in places.iter().flat_map(|&place| spans(place)) {
                let lookups = CLUSTER as u64 * if self.blocks == 0 { 1 } else { 2 };
                traffic.loaded += self.m as u64 * sectors(self.depth, at);
                traffic.loaded += pairs * ((b * span * 2 / 32) as u64 + lookups);
                traffic.macs += pairs * (CLUSTER * ROWS * b * span) as u64;
            }
        }
        traffic
    }
}

impl Strips {
    /// Why this product cannot, or should not, go this way.
    pub fn refusal(&self) -> Option<String> {
        let extents = [("n", self.n), ("k", self.k)];
        if let Some(reason) = unfit(self.gpu, self.dtype, extents, self.m, &[self.y, self.x, self.out, self.items]) {
            return Some(reason);
        }
        let enough = (self.gpu.multiprocessors as usize / 2).max(1);
        if self.count < enough || self.count > i32::MAX as usize {
            return Some(format!("{} strips; from {enough} to 2^31 fill this GPU without cutting the sum", self.count));
        }
        (self.block < 64).then(|| format!("a wgmma has 64 rows, and most would be wasted on blocks of {}", self.block))
    }

    pub fn spec(&self) -> Result<LaunchSpec> {
        let Some(strips) = kernels(self.op, self.block)?.strips else {
            return Err(Error::value(self.op, "block", "64 or 128 for strips", self.block));
        };
        let flags = if self.wide { WIDE } else { 0 } | if self.accumulate { ACCUMULATE } else { 0 };
        let params = HopperStripsParams {
            items: self.items,
            places: self.columns,
            out: self.out,
            count: self.count as u32,
            steps: self.m.div_ceil(STEP) as u32,
            flags,
            scale: self.scale as f32,
            begin: self.begin as u32,
            unused: [0; 21],
        };
        let panel = |address, cols| map(self.dtype, address, self.m, cols, STEP as u32, STEP);
        let maps = [panel(self.y, self.n), panel(self.x, self.k)];
        let blocks = self.count.min(self.gpu.multiprocessors as usize);
        Ok(launch(of_dtype(&strips, self.dtype), blocks, 1, &maps, Params::of(&params)))
    }
}

fn launch(kernel: KernelId, blocks: usize, cluster: usize, maps: &[TensorMap], params: Params) -> LaunchSpec {
    LaunchSpec {
        kernel,
        grid: [blocks as u32, 1, 1],
        block: [kernel.row().threads, 1, 1],
        cluster: [cluster as u32, 1, 1],
        shared_bytes: kernel.row().shared_bytes,
        maps: TensorMaps::from_slice(maps),
        params,
    }
}

#[cfg(all(test, feature = "emulator"))]
#[path = "hopper_tests.rs"]
mod tests;
