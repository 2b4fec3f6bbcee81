//! The two raw members: a product with a sparse operand, and a sampled one. What a call and every gradient come down to.

use super::{cpu, gpu};
use crate::autograd::Target;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::tensor::{BlockPattern, Tensor};

/// Which operand of a product is sparse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// `op(S) · op(D)`
    Left,
    /// `op(D) · op(S)`
    Right,
}

/// `Y = s · op(S) · op(D)` or `s · op(D) · op(S)`.
#[derive(Clone, Debug)]
pub(crate) struct Dense {
    pub op: &'static str,
    pub pattern: BlockPattern,
    pub side: Side,
    pub sparse_t: bool,
    pub dense_t: bool,
    pub scale: f64,
    /// The dense operand's extent that is not summed over: rows of Y for [`Side::Right`], columns for [`Side::Left`].
    pub m: usize,
    pub dtype: DType,
}

/// `V = s · op(A) · op(B)` at the blocks of a pattern `[n, k]`: A is `[n, m]`, B is `[m, k]`, each perhaps stored transposed.
#[derive(Clone, Debug)]
pub(crate) struct Sampled {
    pub op: &'static str,
    pub pattern: BlockPattern,
    pub a_t: bool,
    pub b_t: bool,
    pub scale: f64,
    pub m: usize,
    pub dtype: DType,
}

/// Checks that `tensor` is contiguous and has `like`'s dtype and device.
pub(super) fn matches(op: &'static str, argument: &'static str, tensor: &Tensor, like: &Tensor) -> Result<()> {
    tensor.require_dtype(op, argument, like.dtype())?;
    tensor.require_device(op, argument, like.device())?;
    tensor.require_contiguous(op, argument)
}

/// Sums are scaled in f32: what is infinite there would make NaN of zeros.
pub(super) fn finite(op: &'static str, scale: f64) -> Result<()> {
    if (scale as f32).is_finite() {
        return Ok(());
    }
    Err(Error::value(op, "scale", "a finite number", scale))
}

/// Rows and columns of a matrix, after it is transposed if so stored.
pub(super) fn extents(op: &'static str, argument: &'static str, tensor: &Tensor, t: bool) -> Result<[usize; 2]> {
    match *tensor.dims() {
        [rows, cols] => Ok(if t { [cols, rows] } else { [rows, cols] }),
        _ => Err(Error::shape(op, argument, "two dimensions", tensor.dims())),
    }
}

impl Dense {
    /// Rows and columns of `op(S)`.
    pub fn sparse_extents(&self) -> [usize; 2] {
        let [n, k] = self.pattern.shape();
        if self.sparse_t { [k, n] } else { [n, k] }
    }

    /// Extent of Y along which the sparse operand's lines lie, and the extent summed over.
    pub fn lines_and_depth(&self) -> [usize; 2] {
        let [rows, cols] = self.sparse_extents();
        if self.side == Side::Left { [rows, cols] } else { [cols, rows] }
    }

    /// Whether lines of output tiles follow columns of blocks: the transpose index serves.
    pub fn by_column(&self) -> bool {
        self.sparse_t == (self.side == Side::Left)
    }

    /// Which block of the sum the block at a position of the lines' order meets.
    pub fn other(&self, position: usize) -> usize {
        let topology = self.pattern.topology();
        let others = if self.by_column() { topology.t_rows() } else { topology.columns() };
        others[position] as usize
    }

    /// Dimensions of Y.
    pub fn out_dims(&self) -> [usize; 2] {
        let [lines, _] = self.lines_and_depth();
        if self.side == Side::Left { [lines, self.m] } else { [self.m, lines] }
    }

    /// Writes Y to `target`, or adds it.
    pub fn run(&self, values: &Tensor, dense: &Tensor, target: &Target) -> Result<()> {
        if target.tensor.numel() == 0 {
            return Ok(());
        }
        if values.device().is_cpu() {
            return with_real!(self.dtype, self.op, T => cpu::dense::<T>(self, values, dense, target));
        }
        // The workspace lives until its launches are asked for, which is all that a stream needs.
        let (plan, _workspace) = gpu::dense(self, values, dense, target)?;
        values.device().run(&plan)
    }
}

impl Sampled {
    /// Writes V to `target`, or adds it. Parts of blocks beyond the matrix's edge are zero.
    pub fn run(&self, a: &Tensor, b: &Tensor, target: &Target) -> Result<()> {
        if target.tensor.numel() == 0 {
            return Ok(());
        }
        if self.m == 0 {
            return if target.accumulate { Ok(()) } else { target.tensor.zero() };
        }
        if a.device().is_cpu() {
            return with_real!(self.dtype, self.op, T => cpu::sampled::<T>(self, a, b, target));
        }
        gpu::sampled(self, a, b, 0..self.pattern.strips().len(), target)
    }
}
