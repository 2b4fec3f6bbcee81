//! The plans of block-sparse products on Hopper: lines of blocks times a dense matrix, and strips of blocks of a product of two.

mod lines;
mod strips;
#[cfg(all(test, feature = "emulator"))]
mod tests;

pub(super) use lines::Lines;
#[cfg(all(test, feature = "emulator"))]
pub(crate) use lines::ride_traffic;
pub(super) use strips::{Strips, covered};

use crate::device::{LaunchSpec, Swizzle, TensorMap, TensorMaps};
use crate::dtype::DType;
use crate::kernels::KernelId;
use crate::ops::plan::launch;

/// Elements of a line of shared memory at most, and of the sum that a stage takes.
const STEP: usize = 64;

/// f16 and bf16.
type PerDType = [KernelId; 2];

/// The kernels of one block edge: by layout of the two operands (n or t each), then by dtype.
struct Edge {
    lines: [PerDType; 4],
    strips: [PerDType; 4],
}

macro_rules! per_dtype {
    ($pass:literal, $edge:literal) => {
        [
            KernelId::of(concat!("block_sparse_", $pass, "_f16_", $edge, "_sm90a")),
            KernelId::of(concat!("block_sparse_", $pass, "_bf16_", $edge, "_sm90a")),
        ]
    };
}

macro_rules! edge {
    ($edge:literal) => {
        Edge {
            lines: [
                per_dtype!("lines_nn", $edge),
                per_dtype!("lines_nt", $edge),
                per_dtype!("lines_tn", $edge),
                per_dtype!("lines_tt", $edge),
            ],
            strips: [
                per_dtype!("strips_nn", $edge),
                per_dtype!("strips_nt", $edge),
                per_dtype!("strips_tn", $edge),
                per_dtype!("strips_tt", $edge),
            ],
        }
    };
}

static EDGES: [Edge; 4] = [edge!("b16"), edge!("b32"), edge!("b64"), edge!("b128")];

fn edge_of(b: usize) -> &'static Edge {
    // b is one of 16, 32, 64 and 128.
    &EDGES[(b / 16).trailing_zeros() as usize % EDGES.len()]
}

fn of_layout(kernels: &[PerDType; 4], [first_t, second_t]: [bool; 2], dtype: DType) -> KernelId {
    kernels[usize::from(first_t) * 2 + usize::from(second_t)][usize::from(dtype == DType::BF16)]
}

/// A matrix that is copied by boxes of `tile_rows` rows and `line` elements, of which 16, 32 or 64 are possible.
fn map(dtype: DType, address: u64, [rows, cols]: [usize; 2], tile_rows: usize, line: usize) -> TensorMap {
    let swizzle = Swizzle::of_line(line);
    TensorMap { address, dtype, rows: rows as u64, cols: cols as u64, tile_rows: tile_rows as u32, swizzle }
}

/// So many blocks, in clusters.
fn launch_clusters<P: bytemuck::NoUninit>(
    kernel: KernelId,
    blocks: usize,
    cluster: usize,
    maps: &[TensorMap],
    params: &P,
) -> LaunchSpec {
    let maps = TensorMaps::from_slice(maps);
    LaunchSpec { cluster: [cluster as u32, 1, 1], maps, ..launch(kernel, blocks as u32, params) }
}

/// Sectors of 32 bytes that the copy engine moves of 16-bit elements `at .. end` of a row, at most up to `extent`.
fn sectors(extent: usize, at: usize, end: usize) -> u64 {
    (extent.min(end).saturating_sub(at) as u64 * 2).div_ceil(32)
}

/// Those of a whole row in lines of `line` elements, the first of which begins at `at`, up to `end`.
fn row_sectors(extent: usize, at: usize, end: usize, line: usize) -> u64 {
    (at..end).step_by(line).map(|start| sectors(extent, start, end.min(start + line))).sum()
}

/// Sectors in which the nine readers of a turn, the producer and eight warps of consumers, find out what to do.
const READERS: u64 = 9;
