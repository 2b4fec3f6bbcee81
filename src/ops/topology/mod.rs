//! A block pattern from a mask that lies on a device: where scores are thresholded, the pattern is built.
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `mask` | `[⌈n/b⌉, ⌈k/b⌉]`, not zero where a block is | u8 |
//!
//! Counts, running sums, and one pass each in row order and in column order; the result is the host's to the bit. The index is then read
//! back, since work is cut evenly on the host, and the pattern brings index and schedules to the device in one copy. What stays there is
//! the mask: a byte a block of the grid, where the index has sixteen a block that exists.
//!
//! Cost: the mask is read four times, by row and by column to count and again to fill. Errors: [`Error::Shape`], [`Error::DType`],
//! [`Error::NotContiguous`] for a mask that does not fit, and those of a pattern's shape and block.

mod gpu;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::block_sparse::Topology;
use crate::tensor::{BlockPattern, Tensor};

const OP: &str = "topology";

/// The pattern of the blocks of a matrix `[n, k]` that `mask` names, on the mask's device.
pub fn pattern_from_mask(mask: &Tensor, shape: [usize; 2], block: usize) -> Result<BlockPattern> {
    let grid = crate::tensor::block_sparse::grid(shape, block)?;
    mask.require_dtype(OP, "mask", DType::U8)?;
    mask.require_contiguous(OP, "mask")?;
    if mask.dims() != grid {
        return Err(Error::shape(OP, "mask", format!("{grid:?} for {shape:?} in blocks of {block}"), mask.dims()));
    }
    let topology = if mask.device().is_cpu() || mask.numel() == 0 {
        let flags: Vec<bool> = mask.to_vec::<u8>()?.into_iter().map(|v| v != 0).collect();
        Topology::from_mask(shape, block, &flags)?
    } else {
        gpu::topology(mask, shape, block)?
    };
    BlockPattern::new(mask.device(), topology)
}
