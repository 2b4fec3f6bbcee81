//! Lines of blocks times a dense matrix: `kernels/tile/hopper_lines.cuh`.

use std::fmt;

use super::{READERS, STEP, edge_of, launch_clusters, map, of_layout, row_sectors, sectors};
use crate::device::LaunchSpec;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::block_sparse::desc::{Dense, Side};
use crate::ops::product::hopper::unfit;
use crate::ops::product::{Gpu, Traffic};
use crate::tensor::block_sparse::Item;

/// Blocks of a cluster, and rows of y that each makes.
const CLUSTER: usize = 2;
const ROWS: usize = 256;
/// Rows that a warp writes at once.
const STORE_ROWS: usize = 16;
/// What a band of x may take of the second-level cache, in bytes: about half.
const BAND_BYTES: usize = 24 << 20;

/// A member of the family with a sparse operand, and where its operands are. `y [m, lines]` and `x [m, depth]`, each of which may
/// lie across, as its transpose.
#[derive(Clone, Copy, Debug)]
pub(in crate::ops::block_sparse) struct Lines<'a> {
    pub desc: &'a Dense,
    pub x: u64,
    pub values: u64,
    pub out: u64,
    pub out_dtype: DType,
    pub accumulate: bool,
    pub gpu: Gpu,
}

/// What follows the three maps in `struct HopperLinesParams`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct LinesParams {
    items: u64,
    places: u64,
    blocks: u64,
    held: u64,
    m: u64,
    lines: u64,
    count: u32,
    pairs: u32,
    band: u32,
    across: u32,
    scale: f32,
    unused: [u32; 15],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<LinesParams>() == 128 && offset_of!(LinesParams, count) == 48);
    assert!(offset_of!(LinesParams, scale) == 64);
};

impl Lines<'_> {
    fn x_across(&self) -> bool {
        self.desc.dense_t != (self.desc.side == Side::Left)
    }

    fn y_across(&self) -> bool {
        self.desc.side == Side::Left
    }

    fn pairs(&self) -> usize {
        self.desc.m.div_ceil(ROWS * CLUSTER)
    }

    /// Every line of y, longest first.
    fn lines(&self) -> &[Item] {
        &self.desc.pattern.schedule(self.desc.by_column()).lines
    }

    /// Pairs that run at the same time and share their rows of x in the second-level cache.
    fn band(&self) -> usize {
        let [_, depth] = self.desc.lines_and_depth();
        (BAND_BYTES / (CLUSTER * ROWS * 2 * depth.max(1))).clamp(1, self.pairs().max(1))
    }

    /// Why this product cannot, or should not, go this way, as `why` has it.
    pub fn refusal<R>(&self, why: impl Fn(fmt::Arguments<'_>) -> R) -> Option<R> {
        let (desc, nnz, b) = (self.desc, self.desc.pattern.nnz(), self.desc.pattern.block());
        let [lines, depth] = desc.lines_and_depth();
        let rows = [
            if self.x_across() { ("m", desc.m) } else { ("k", depth) },
            if self.y_across() { ("m", desc.m) } else { ("n", lines) },
        ];
        if let Some(reason) = unfit(self.gpu, desc.dtype, &rows, &[self.x, self.values, self.out], &why) {
            return Some(reason);
        }
        let most = i32::MAX as usize - CLUSTER * ROWS;
        if [desc.m, lines, depth].iter().any(|&extent| extent > most) {
            return Some(why(format_args!("an extent beyond the coordinates of the copy engine")));
        }
        if self.out_dtype != desc.dtype {
            return Some(why(format_args!("writes {}, and is to write {}", desc.dtype, self.out_dtype)));
        }
        if nnz == 0 || nnz * b > i32::MAX as usize {
            return Some(why(format_args!("{nnz} blocks; the copy engine counts rows of values from 1 to 2^31")));
        }
        if desc.m <= ROWS / 4 {
            return Some(why(format_args!("most of each tile would be empty")));
        }
        let clusters = (self.gpu.multiprocessors as usize / CLUSTER).max(1);
        let turns = self.pairs().saturating_mul(self.lines().len());
        if turns > i32::MAX as usize {
            return Some(why(format_args!("{turns} tiles; the kernel counts them in 31 bits")));
        }
        if turns < clusters / 4 {
            return Some(why(format_args!("{turns} pairs of tiles are too few for {clusters} clusters")));
        }
        // A turn takes a line whole. One that is longer than all that a cluster has to do leaves the others idle.
        let longest = self.lines().first().map_or(0, |item| item.count as usize);
        (longest.saturating_mul(clusters) > nnz.saturating_mul(self.pairs()).max(clusters * 1024usize.div_ceil(b)))
            .then(|| {
                why(format_args!("a line of {longest} of the {nnz} blocks keeps one cluster busy while others idle"))
            })
    }

    pub fn spec(&self) -> Result<LaunchSpec> {
        let (desc, b, dtype) = (self.desc, self.desc.pattern.block(), self.desc.dtype);
        let ([lines, depth], by_column, addresses) =
            (desc.lines_and_depth(), desc.by_column(), desc.pattern.addresses()?);
        let (span, turns) = (b.min(STEP), self.pairs().saturating_mul(self.lines().len()));
        let params = LinesParams {
            items: if by_column { addresses.by_column_lines } else { addresses.by_row_lines },
            places: if by_column { addresses.t_rows } else { addresses.columns },
            blocks: if by_column { addresses.t_blocks } else { 0 },
            held: if self.accumulate { self.out } else { 0 },
            m: desc.m as u64,
            lines: lines as u64,
            count: self.lines().len() as u32,
            pairs: self.pairs() as u32,
            band: self.band() as u32,
            across: u32::from(self.y_across()),
            scale: desc.scale as f32,
            unused: [0; 15],
        };
        let maps = [
            if self.x_across() {
                map(dtype, self.x, [depth, desc.m], span, STEP)
            } else {
                map(dtype, self.x, [desc.m, depth], ROWS, span)
            },
            map(dtype, self.values, [desc.pattern.nnz() * b, b], b / 2, span),
            if self.y_across() {
                map(dtype, self.out, [lines, desc.m], span, STORE_ROWS)
            } else {
                map(dtype, self.out, [desc.m, lines], STORE_ROWS, span)
            },
        ];
        // One block a multiprocessor, in whole clusters; each cluster then takes turn after turn.
        let clusters = turns.min((self.gpu.multiprocessors as usize / CLUSTER).max(1));
        let kernel = of_layout(&edge_of(b).lines, [self.x_across(), by_column], dtype);
        Ok(launch_clusters(kernel, clusters * CLUSTER, CLUSTER, &maps, &params))
    }

    /// What [`Lines::spec`] does: all blocks of all lines, y, what is already there of it, and for each turn what it is about.
    pub fn traffic(&self) -> Traffic {
        let (desc, pairs, b) = (self.desc, self.pairs() as u64, self.desc.pattern.block());
        let ([lines, _], m, span) = (desc.lines_and_depth(), desc.m, b.min(STEP));
        let mut traffic = blocks_traffic(desc, CLUSTER * ROWS, self.x_across());
        for item in self.lines() {
            let corner = item.line as usize * b;
            traffic.stored += if self.y_across() {
                b.min(lines - corner) as u64 * row_sectors(m, 0, m, STORE_ROWS)
            } else {
                m as u64 * row_sectors(lines, corner, corner + b, span)
            };
            if self.accumulate {
                // Threads read eight neighbours at a time.
                traffic.loaded += (b.min(lines - corner) * m) as u64 / 8;
            }
            traffic.loaded += pairs * CLUSTER as u64 * READERS;
        }
        traffic
    }
}

/// What all blocks of all lines take, where a cluster makes `rows` of y: the tile of x that a block meets, the block once for both, and
/// for each part of the sum where it lies.
fn blocks_traffic(desc: &Dense, rows: usize, x_across: bool) -> Traffic {
    let ([_, depth], m, b) = (desc.lines_and_depth(), desc.m, desc.pattern.block());
    let (pairs, span) = (m.div_ceil(rows) as u64, b.min(STEP));
    let lookups = CLUSTER as u64 * if desc.by_column() { 2 } else { 1 };
    let mut traffic = Traffic { loaded: 0, stored: 0, macs: 0 };
    for position in 0..desc.pattern.nnz() {
        for half in (0..b).step_by(span) {
            let at = desc.other(position) * b + half;
            traffic.loaded += match x_across {
                true => depth.saturating_sub(at).min(span) as u64 * row_sectors(m, 0, m, STEP),
                false => m as u64 * sectors(depth, at, at + span),
            };
            traffic.loaded += pairs * ((b * span * 2 / 32) as u64 + lookups);
            traffic.macs += pairs * (rows * b * span) as u64;
        }
    }
    traffic
}

/// What a rider adds to the frozen product, whose clusters make 256 rows of out: its blocks, and for each line how many there are, which
/// every reader looks up in two places.
#[cfg(all(test, feature = "emulator"))]
pub(crate) fn ride_traffic(desc: &Dense) -> Traffic {
    let rows = 256;
    let mut traffic = blocks_traffic(desc, rows, false);
    let [lines, _] = desc.lines_and_depth();
    let lookups = (desc.m.div_ceil(rows) * CLUSTER * lines.div_ceil(desc.pattern.block())) as u64;
    traffic.loaded += lookups * READERS * 2;
    traffic
}
