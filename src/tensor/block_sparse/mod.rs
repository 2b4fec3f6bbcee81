//! Matrices of which only some square blocks are there.
//!
//! A [`BlockPattern`] says which blocks of a matrix `[n, k]` exist; a [`BlockSparse`] is a pattern and their values. The page
//! `docs/block-sparse.md` draws both.
//!
//! ```text
//! value[e][i][j] = S[rows[e]·b + i, columns[e]·b + j]        e = 0 .. nnz, blocks sorted by row, then by column
//! ```
//!
//! | array | length | meaning |
//! |---|---|---|
//! | `row_offsets` | `⌈n/b⌉ + 1` | blocks of row r are `row_offsets[r] .. row_offsets[r + 1]` |
//! | `columns`, `rows` | nnz | where block e lies |
//! | `t_offsets` | `⌈k/b⌉ + 1` | the same by column, for products with the transpose |
//! | `t_rows`, `t_blocks` | nnz | row of the p-th block in column order, and which block that is |
//!
//! The transpose index permutes blocks, never values: both directions read the same memory. Edges need not be multiples of b; what a
//! block has beyond the matrix is zero and stays zero. Indices are 32 bits wide, offsets into values 64.

mod schedule;
mod topology;

use std::sync::Arc;

pub(crate) use schedule::{DIRECT, Item, Joint, STRIP, Schedule};
pub use topology::Topology;
pub(crate) use topology::{Index, grid};

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::tensor::Tensor;

const OP: &str = "block_pattern";

/// Edges that a block can have.
pub const BLOCKS: [usize; 4] = [16, 32, 64, 128];

/// Which blocks of a matrix exist, on one device. Validated when made; cloning copies nothing.
#[derive(Clone)]
pub struct BlockPattern(Arc<Inner>);

struct Inner {
    device: Device,
    topology: Topology,
    by_row: Schedule,
    by_column: Schedule,
    strips: Vec<Item>,
    /// All arrays of the topology and the schedules, end to end, for kernels.
    arrays: Tensor,
    places: Places,
}

/// Where each array starts in `arrays`, in elements.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    row_offsets: usize,
    t_offsets: usize,
    columns: usize,
    rows: usize,
    t_rows: usize,
    t_blocks: usize,
    by_row: usize,
    by_row_lines: usize,
    by_row_joints: usize,
    by_column: usize,
    by_column_lines: usize,
    by_column_joints: usize,
    strips: usize,
}

/// Addresses of a pattern's arrays on its GPU; an array of no elements has an address that is not read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub row_offsets: u64,
    pub t_offsets: u64,
    pub columns: u64,
    pub rows: u64,
    pub t_rows: u64,
    pub t_blocks: u64,
    pub by_row: u64,
    pub by_row_lines: u64,
    pub by_row_joints: u64,
    pub by_column: u64,
    pub by_column_lines: u64,
    pub by_column_joints: u64,
    pub strips: u64,
}

impl BlockPattern {
    /// From a validated topology.
    pub fn new(device: &Device, topology: Topology) -> Result<Self> {
        let by_row = Schedule::new(topology.row_offsets(), topology.block());
        let by_column = Schedule::new(topology.t_offsets(), topology.block());
        let strips = schedule::strips(topology.row_offsets(), topology.block());
        let mut all: Vec<i32> = Vec::new();
        // Every array starts at a multiple of 16 bytes.
        let mut put = |values: &mut dyn Iterator<Item = u32>| {
            let start = all.len();
            // Indices are below 2³¹, and `DIRECT` keeps its bits.
            all.extend(values.map(|v| v as i32));
            all.resize(all.len().next_multiple_of(4), 0);
            start
        };
        let places = Places {
            row_offsets: put(&mut topology.row_offsets().iter().copied()),
            t_offsets: put(&mut topology.t_offsets().iter().copied()),
            columns: put(&mut topology.columns().iter().copied()),
            rows: put(&mut topology.rows().iter().copied()),
            t_rows: put(&mut topology.t_rows().iter().copied()),
            t_blocks: put(&mut topology.t_blocks().iter().copied()),
            by_row: put(&mut by_row.items.iter().flat_map(Item::words)),
            by_row_lines: put(&mut by_row.lines.iter().flat_map(Item::words)),
            by_row_joints: put(&mut by_row.joints.iter().flat_map(Joint::words)),
            by_column: put(&mut by_column.items.iter().flat_map(Item::words)),
            by_column_lines: put(&mut by_column.lines.iter().flat_map(Item::words)),
            by_column_joints: put(&mut by_column.joints.iter().flat_map(Joint::words)),
            strips: put(&mut strips.iter().flat_map(Item::words)),
        };
        let arrays = Tensor::from_slice(device, &[all.len()], &all)?;
        Ok(BlockPattern(Arc::new(Inner {
            device: device.clone(),
            topology,
            by_row,
            by_column,
            strips,
            arrays,
            places,
        })))
    }

    /// From (row, column) of every block, sorted by row, then column, each once.
    pub fn from_blocks(device: &Device, shape: [usize; 2], block: usize, blocks: &[(u32, u32)]) -> Result<Self> {
        BlockPattern::new(device, Topology::from_blocks(shape, block, blocks)?)
    }

    /// From one flag per block of the grid `[⌈n/b⌉, ⌈k/b⌉]`, row-major.
    pub fn from_mask(device: &Device, shape: [usize; 2], block: usize, mask: &[bool]) -> Result<Self> {
        BlockPattern::new(device, Topology::from_mask(shape, block, mask)?)
    }

    /// From offsets and columns as files hold them.
    pub fn from_offsets(
        device: &Device,
        shape: [usize; 2],
        block: usize,
        row_offsets: Vec<u32>,
        columns: Vec<u32>,
    ) -> Result<Self> {
        BlockPattern::new(device, Topology::from_offsets(shape, block, row_offsets, columns)?)
    }

    /// All blocks.
    pub fn full(device: &Device, shape: [usize; 2], block: usize) -> Result<Self> {
        let [rows, columns] = grid(shape, block)?;
        BlockPattern::from_mask(device, shape, block, &vec![true; rows * columns])
    }

    /// No block.
    pub fn empty(device: &Device, shape: [usize; 2], block: usize) -> Result<Self> {
        BlockPattern::from_blocks(device, shape, block, &[])
    }

    /// `⌈density · blocks⌋` blocks, at least one, drawn without repetition: those with the smallest draws of `stream`.
    ///
    /// # Errors
    /// [`Error::Value`] for a density that is not in (0, 1].
    pub fn random(device: &Device, shape: [usize; 2], block: usize, density: f64, stream: Stream) -> Result<Self> {
        let [rows, columns] = grid(shape, block)?;
        let count = blocks_of(density, rows * columns)?;
        let mut order: Vec<(u32, usize)> = (0..rows * columns).map(|i| (stream.bits(i as u64), i)).collect();
        if count < order.len() {
            order.select_nth_unstable(count);
        }
        let mut mask = vec![false; rows * columns];
        for &(_, i) in &order[..count] {
            mask[i] = true;
        }
        BlockPattern::from_mask(device, shape, block, &mask)
    }

    /// The same blocks on another device.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if *device == self.0.device {
            return Ok(self.clone());
        }
        BlockPattern::new(device, self.0.topology.clone())
    }

    pub fn topology(&self) -> &Topology {
        &self.0.topology
    }

    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// `[n, k]`
    pub fn shape(&self) -> [usize; 2] {
        self.0.topology.shape()
    }

    /// b
    pub fn block(&self) -> usize {
        self.0.topology.block()
    }

    /// Blocks that exist.
    pub fn nnz(&self) -> usize {
        self.0.topology.nnz()
    }

    /// Share of the blocks that exist.
    pub fn density(&self) -> f64 {
        self.0.topology.density()
    }

    /// `[nnz, b, b]`
    pub fn value_dims(&self) -> [usize; 3] {
        [self.nnz(), self.block(), self.block()]
    }

    /// Work cut evenly for products that sum along rows (`transposed`: along columns).
    pub(crate) fn schedule(&self, transposed: bool) -> &Schedule {
        if transposed { &self.0.by_column } else { &self.0.by_row }
    }

    /// Neighbouring blocks of one row, as many as a sampled product computes together.
    pub(crate) fn strips(&self) -> &[Item] {
        &self.0.strips
    }

    pub(crate) fn addresses(&self) -> Result<Addresses> {
        let base = self.0.arrays.address()?;
        let p = &self.0.places;
        let at = |place: usize| base + 4 * place as u64;
        Ok(Addresses {
            row_offsets: at(p.row_offsets),
            t_offsets: at(p.t_offsets),
            columns: at(p.columns),
            rows: at(p.rows),
            t_rows: at(p.t_rows),
            t_blocks: at(p.t_blocks),
            by_row: at(p.by_row),
            by_row_lines: at(p.by_row_lines),
            by_row_joints: at(p.by_row_joints),
            by_column: at(p.by_column),
            by_column_lines: at(p.by_column_lines),
            by_column_joints: at(p.by_column_joints),
            strips: at(p.strips),
        })
    }
}

/// How many of `blocks` a density asks for: to nearest, at least one.
pub fn blocks_of(density: f64, blocks: usize) -> Result<usize> {
    if !(density > 0.0 && density <= 1.0) {
        return Err(Error::value(OP, "density", "a number above 0 and at most 1", density));
    }
    Ok(((density * blocks as f64).round() as usize).clamp(1.min(blocks), blocks))
}

/// The same blocks on the same device.
impl PartialEq for BlockPattern {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.device == other.0.device && self.0.topology == other.0.topology)
    }
}

impl Eq for BlockPattern {}

impl std::fmt::Debug for BlockPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (shape, block) = (self.shape(), self.block());
        write!(f, "BlockPattern({} blocks of {block} in {shape:?} on {})", self.nnz(), self.0.device.name())
    }
}

/// A matrix `[n, k]` by its blocks.
#[derive(Clone, Debug)]
pub struct BlockSparse {
    pattern: BlockPattern,
    values: Tensor,
}

impl BlockSparse {
    /// `values` is `[nnz, b, b]`; what lies beyond the matrix's edge must be zero, which ops keep so.
    pub fn new(pattern: BlockPattern, values: Tensor) -> Result<Self> {
        values.require_dims("block_sparse", "values", &pattern.value_dims())?;
        values.require_device("block_sparse", "values", pattern.device())?;
        values.require_contiguous("block_sparse", "values")?;
        if !values.dtype().is_float() {
            let expected = "a float type".into();
            return Err(Error::DType { op: "block_sparse", argument: "values", expected, got: values.dtype() });
        }
        Ok(BlockSparse { pattern, values })
    }

    /// Zeros in the blocks of a pattern.
    pub fn zeros(pattern: BlockPattern, dtype: DType) -> Result<Self> {
        let values = Tensor::zeros(pattern.device(), &pattern.value_dims(), dtype)?;
        BlockSparse::new(pattern, values)
    }

    /// The blocks of `matrix [n, k]` that hold anything but zeros, through the host.
    pub fn from_dense(matrix: &Tensor, block: usize) -> Result<Self> {
        let &[n, k] = matrix.dims() else {
            return Err(Error::shape("block_sparse", "matrix", "[n, k]", matrix.dims()));
        };
        let [rows, columns] = grid([n, k], block)?;
        let values = matrix.to_f64_vec()?;
        let mut mask = vec![false; rows * columns];
        for (i, &v) in values.iter().enumerate() {
            // Minus zero is zero; NaN is not.
            if v != 0.0 {
                mask[i / k / block * columns + i % k / block] = true;
            }
        }
        BlockSparse::sample(BlockPattern::from_mask(matrix.device(), [n, k], block, &mask)?, matrix)
    }

    /// The elements of `matrix [n, k]` that lie in the pattern's blocks, through the host.
    pub fn sample(pattern: BlockPattern, matrix: &Tensor) -> Result<Self> {
        matrix.require_dims("block_sparse", "matrix", &pattern.shape())?;
        matrix.require_device("block_sparse", "matrix", pattern.device())?;
        let size = matrix.dtype().size();
        let from = matrix.to_bytes()?;
        let out = Tensor::empty(pattern.device(), &pattern.value_dims(), matrix.dtype())?;
        let mut values = vec![0u8; out.byte_len()];
        pattern.topology().for_row_pieces(|at, place, len| {
            values[at * size..(at + len) * size].copy_from_slice(&from[place * size..(place + len) * size]);
        });
        out.set_bytes(&values)?;
        BlockSparse::new(pattern, out)
    }

    /// `[n, k]` with zeros where no block is, through the host.
    pub fn to_dense(&self) -> Result<Tensor> {
        let size = self.values.dtype().size();
        let from = self.values.to_bytes()?;
        let out = Tensor::empty(self.pattern.device(), &self.pattern.shape(), self.values.dtype())?;
        let mut values = vec![0u8; out.byte_len()];
        self.pattern.topology().for_row_pieces(|at, place, len| {
            values[place * size..(place + len) * size].copy_from_slice(&from[at * size..(at + len) * size]);
        });
        out.set_bytes(&values)?;
        Ok(out)
    }

    pub fn pattern(&self) -> &BlockPattern {
        &self.pattern
    }

    /// `[nnz, b, b]`
    pub fn values(&self) -> &Tensor {
        &self.values
    }
}

#[cfg(test)]
mod tests;
