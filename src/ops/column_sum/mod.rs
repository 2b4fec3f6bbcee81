//! Ordered sums over rows, which every gradient of something shared by many rows is made of.
//!
//! ```text
//! target[b, c] (+)= s · Σ_r x[b, r, c]
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x` | `[batch, rows, cols]` | f32, f16, bf16 (f64 on the CPU) |
//! | target | `[batch, cols]` | as x, or f32 |
//!
//! The order is fixed by the shape alone: on the CPU rows are added within blocks of 256, then the blocks; on a GPU rows are dealt
//! to eight groups in turn, within pieces of 128 rows where there are many, then the groups, then the pieces. Sums are in f32
//! (f64 for f64).
//!
//! Cost: `batch·rows·cols` additions; every element is read once. Errors: those of the tensors' own checks.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

pub(crate) use cpu::ordered;

use crate::autograd::Target;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::tensor::Tensor;

const OP: &str = "column_sum";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub batch: usize,
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
    pub scale: f64,
}

impl Desc {
    pub fn flops(&self) -> u64 {
        self.batch as u64 * self.rows as u64 * self.cols as u64
    }

    /// Bytes that must move at least.
    pub fn bytes(&self) -> u64 {
        let target = self.batch as u64 * self.cols as u64 * self.dtype.accumulator().size() as u64;
        self.flops() * self.dtype.size() as u64 + target
    }
}

/// `target (+)= scale · Σ_r x[batch, r, cols]`, with x seen as `[batch, rows, cols]`.
pub(crate) fn column_sum(x: &Tensor, batch: usize, cols: usize, scale: f64, target: &Target) -> Result<()> {
    if batch == 0 || cols == 0 {
        return Ok(());
    }
    x.require_contiguous(OP, "x")?;
    target.tensor.require_contiguous(OP, "target")?;
    if !x.numel().is_multiple_of(batch * cols) {
        return Err(Error::shape(OP, "x", format!("[{batch}, rows, {cols}]"), x.dims()));
    }
    if target.tensor.numel() != batch * cols {
        return Err(Error::shape(OP, "target", format!("[{batch}, {cols}]"), target.tensor.dims()));
    }
    target.tensor.require_device(OP, "target", x.device())?;
    let desc = Desc { batch, rows: x.numel() / (batch * cols), cols, dtype: x.dtype(), scale };
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::run::<T>(&desc, x, target));
    }
    gpu::run(&desc, x, target)
}
