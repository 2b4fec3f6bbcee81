//! The weight that does not learn.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// How the elements of a frozen weight are laid out for the kernels that read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// `[n, k]`, row-major, as files hold it.
    RowMajor,
}

/// A frozen matrix `W₀ [n, k]`. It has no gradient identity: it is never a [`Var`](crate::autograd::Var), so code that would
/// compute its gradient cannot be written.
#[derive(Clone, Debug)]
pub struct FrozenWeight {
    tensor: Tensor,
    packing: Packing,
}

impl FrozenWeight {
    /// From a contiguous `[n, k]` tensor; more dimensions are folded into k (a convolution's kernel is `[n, c·h·w]`).
    pub fn new(tensor: Tensor) -> Result<Self> {
        const OP: &str = "frozen_weight";
        if tensor.dims().len() < 2 || tensor.dims()[0] == 0 {
            return Err(Error::shape(OP, "tensor", "[n, k] with n ≥ 1", tensor.dims()));
        }
        if !tensor.dtype().is_float() {
            return Err(Error::DType {
                op: OP,
                argument: "tensor",
                expected: "a float type".into(),
                got: tensor.dtype(),
            });
        }
        let n = tensor.dims()[0];
        let tensor = tensor.reshape(&[n, tensor.numel() / n])?;
        if tensor.cols() == 0 {
            return Err(Error::shape(OP, "tensor", "[n, k] with k ≥ 1", tensor.dims()));
        }
        Ok(FrozenWeight { tensor, packing: Packing::RowMajor })
    }

    /// Rows: out-features.
    pub fn n(&self) -> usize {
        self.tensor.dims()[0]
    }

    /// Columns: in-features.
    pub fn k(&self) -> usize {
        self.tensor.dims()[1]
    }

    pub fn dtype(&self) -> DType {
        self.tensor.dtype()
    }

    pub fn device(&self) -> &Device {
        self.tensor.device()
    }

    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Values in row-major order, as `f32`.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>> {
        self.tensor.to_f32_vec()
    }

    /// For ops of this crate alone: outside it, the values are read but never differentiated.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}
