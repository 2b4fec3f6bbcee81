//! Blocks of a product of two dense matrices: `kernels/tile/hopper_strips.cuh`.

use std::fmt;
use std::ops::Range;

use super::{READERS, STEP, edge_of, launch_clusters, map, of_layout, row_sectors};
use crate::device::LaunchSpec;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::block_sparse::desc::Sampled;
use crate::ops::product::hopper::unfit;
use crate::ops::product::{Gpu, Traffic};
use crate::tensor::block_sparse::Item;

/// Strips of a sampled product, and where its operands are.
#[derive(Clone, Debug)]
pub(in crate::ops::block_sparse) struct Strips<'a> {
    pub desc: &'a Sampled,
    pub a: u64,
    pub b: u64,
    /// The blocks of `strips`, as many times as there are pieces.
    pub out: u64,
    pub out_dtype: DType,
    pub accumulate: bool,
    pub strips: Range<usize>,
    /// How much of m a piece takes: whole steps.
    pub split: usize,
    pub gpu: Gpu,
}

/// What follows the two maps in `struct HopperStripsParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct StripsParams {
    items: u64,
    places: u64,
    out: u64,
    piece: u64,
    count: u32,
    turns: u32,
    steps: u32,
    all_steps: u32,
    flags: u32,
    scale: f32,
    begin: u32,
    unused: [u32; 17],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<StripsParams>() == 128 && offset_of!(StripsParams, count) == 32);
    assert!(offset_of!(StripsParams, scale) == 52);
};

const WIDE: u32 = 1;
const ACCUMULATE: u32 = 2;

impl Strips<'_> {
    fn items(&self) -> &[Item] {
        &self.desc.pattern.strips()[self.strips.clone()]
    }

    fn pieces(&self) -> usize {
        self.desc.m.div_ceil(self.split.max(1))
    }

    /// Why this product cannot, or should not, go this way, as `why` has it.
    pub fn refusal<R>(&self, why: impl Fn(fmt::Arguments<'_>) -> R) -> Option<R> {
        let (desc, [n, k]) = (self.desc, self.desc.pattern.shape());
        let rows = [if desc.a_t { ("n", n) } else { ("m", desc.m) }, if desc.b_t { ("m", desc.m) } else { ("k", k) }];
        if let Some(reason) = unfit(self.gpu, desc.dtype, &rows, &[self.a, self.b, self.out], &why) {
            return Some(reason);
        }
        let most = i32::MAX as usize - STEP;
        if [desc.m, n, k].iter().any(|&extent| extent > most) {
            return Some(why(format_args!("an extent beyond the coordinates of the copy engine")));
        }
        if self.out_dtype != desc.dtype && self.out_dtype != DType::F32 {
            return Some(why(format_args!("writes {} or f32, and is to write {}", desc.dtype, self.out_dtype)));
        }
        let turns = self.strips.len().saturating_mul(self.pieces());
        if turns > i32::MAX as usize {
            return Some(why(format_args!("{turns} tiles; the kernel counts them in 31 bits")));
        }
        if turns < (self.gpu.multiprocessors as usize / 4).max(1) {
            return Some(why(format_args!(
                "{turns} strips are too few for {} multiprocessors",
                self.gpu.multiprocessors
            )));
        }
        None
    }

    pub fn spec(&self) -> Result<LaunchSpec> {
        let (desc, dtype) = (self.desc, self.desc.dtype);
        let (edge, [n, k], addresses) = (desc.pattern.block(), desc.pattern.shape(), desc.pattern.addresses()?);
        let blocks = covered(self.items());
        let turns = self.strips.len() * self.pieces();
        let wide = self.out_dtype != dtype;
        let params = StripsParams {
            items: addresses.strips + 16 * self.strips.start as u64,
            places: addresses.columns,
            out: self.out,
            piece: (blocks.len() * edge * edge) as u64,
            count: self.strips.len() as u32,
            turns: turns as u32,
            steps: (self.split / STEP) as u32,
            all_steps: desc.m.div_ceil(STEP) as u32,
            flags: if wide { WIDE } else { 0 } | if self.accumulate { ACCUMULATE } else { 0 },
            scale: desc.scale as f32,
            begin: blocks.start as u32,
            unused: [0; 17],
        };
        // A block's part of an operand: across, 64 of m by as many of the block's as fit a line; along, all of the block's by 64 of m.
        let operand = |address, extent, across| match across {
            true => map(dtype, address, [desc.m, extent], STEP, edge.min(STEP)),
            false => map(dtype, address, [extent, desc.m], edge, STEP),
        };
        let maps = [operand(self.a, n, desc.a_t), operand(self.b, k, !desc.b_t)];
        let kernel = of_layout(&edge_of(edge).strips, [desc.a_t, desc.b_t], dtype);
        Ok(launch_clusters(kernel, turns.min(self.gpu.multiprocessors as usize), 1, &maps, &params))
    }

    /// What [`Strips::spec`] does: of each strip the rows of op(A) and the columns of op(B) that it meets; its blocks; and for each step
    /// where they lie.
    pub fn traffic(&self) -> Traffic {
        let (desc, [n, k], m) = (self.desc, self.desc.pattern.shape(), self.desc.m);
        let (edge, span) = (desc.pattern.block(), desc.pattern.block().min(STEP));
        let along_m = row_sectors(m, 0, m, STEP);
        let operand = |extent: usize, at: usize, across: bool| match across {
            true => m as u64 * row_sectors(extent, at, at + edge, span),
            false => extent.saturating_sub(at).min(edge) as u64 * along_m,
        };
        let written = (edge * edge * self.out_dtype.size() / 32 * self.pieces()) as u64;
        let mut traffic = Traffic { loaded: 0, stored: 0, macs: 0 };
        for item in self.items() {
            let (blocks, steps) = (u64::from(item.count), m.div_ceil(STEP) as u64);
            traffic.loaded += operand(n, item.line as usize * edge, desc.a_t);
            for position in item.positions() {
                let column = desc.pattern.topology().columns()[position] as usize;
                traffic.loaded += operand(k, column * edge, !desc.b_t);
            }
            traffic.loaded += steps * blocks + READERS * self.pieces() as u64;
            traffic.loaded += if self.accumulate { blocks * written } else { 0 };
            traffic.stored += blocks * written;
            traffic.macs += steps * blocks * (edge * edge * STEP) as u64;
        }
        traffic
    }
}

/// The blocks of neighbouring strips.
pub(in crate::ops::block_sparse) fn covered(strips: &[Item]) -> Range<usize> {
    let start = strips.first().map_or(0, |s| s.first as usize);
    start..strips.last().map_or(start, |s| (s.first + s.count) as usize)
}
