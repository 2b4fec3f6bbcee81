//! The gradient of a penalty on rows or columns that are not orthonormal.
//!
//! ```text
//! rows:     R = w · ‖M Mᵀ − 1‖²      ∂R/∂M = 4w · (M Mᵀ − 1) M
//! columns:  R = w · ‖Mᵀ M − 1‖²      ∂R/∂M = 4w · M (Mᵀ M − 1)
//! ```
//!
//! `M [rows, cols]` and its gradient: one shape, f32 (f64 on the CPU): parameters as the optimizer has them. The gradient is added to
//! what is there. The sums' order is that of the products.
//!
//! Cost: `4·rows·cols·r` floating-point operations, r being the side that is to be orthonormal: two products.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a weight that is not finite.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::Target;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::scale_add::add_scaled;
use crate::tensor::Tensor;

const OP: &str = "orthogonality";

/// What is to be orthonormal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Rows,
    Columns,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub rows: usize,
    pub cols: usize,
    pub side: Side,
    /// 4w.
    pub factor: f64,
    pub dtype: DType,
}

impl Desc {
    pub fn new(matrix: &Tensor, side: Side, weight: f64, gradient: &Tensor) -> Result<Self> {
        let &[rows, cols] = matrix.dims() else {
            return Err(Error::shape(OP, "matrix", "[rows, cols]", matrix.dims()));
        };
        if !matches!(matrix.dtype(), DType::F32 | DType::F64) {
            let expected = "f32 or f64".into();
            return Err(Error::DType { op: OP, argument: "matrix", expected, got: matrix.dtype() });
        }
        matrix.require_contiguous(OP, "matrix")?;
        gradient.require_dims(OP, "gradient", matrix.dims())?;
        gradient.require_dtype(OP, "gradient", matrix.dtype())?;
        gradient.require_device(OP, "gradient", matrix.device())?;
        gradient.require_contiguous(OP, "gradient")?;
        if !weight.is_finite() {
            return Err(Error::value(OP, "weight", "a finite number", weight));
        }
        Ok(Desc { rows, cols, side, factor: 4.0 * weight, dtype: matrix.dtype() })
    }

    /// The extent of the Gram matrix.
    fn r(&self) -> usize {
        match self.side {
            Side::Rows => self.rows,
            Side::Columns => self.cols,
        }
    }
}

/// `gradient += ∂R/∂M`; see the module for formula and errors.
pub fn add_gradient(matrix: &Tensor, side: Side, weight: f64, gradient: &Tensor) -> Result<()> {
    let desc = Desc::new(matrix, side, weight, gradient)?;
    if desc.rows * desc.cols == 0 {
        return Ok(());
    }
    let target = Target { tensor: gradient.clone(), accumulate: true };
    let gram = Tensor::empty(matrix.device(), &[desc.r(), desc.r()], desc.dtype)?;
    match (matrix.device().is_cpu(), desc.dtype) {
        (true, DType::F64) => cpu::run::<f64>(&desc, matrix, &gram, &target)?,
        (true, _) => cpu::run::<f32>(&desc, matrix, &gram, &target)?,
        (false, _) => gpu::run(&desc, matrix, &gram, &target)?,
    }
    // What the 1 takes away.
    add_scaled(&target, matrix, -desc.factor)
}
