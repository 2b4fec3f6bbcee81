//! What elastic weight consolidation computes over the flat buffers of a parameter set.
//!
//! ```text
//! observe     S_n ← S_n + g_n²                        one sample's gradient, or one batch's
//! pull        g_n ← g_n + 2 c S_n (θ_n − θ*_n)
//! penalty     Σ_n S_n (θ_n − θ*_n)²
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | θ, θ*, S, g | `[n]` | f32 (f64 on the CPU) |
//!
//! The penalty is added up in f64, within pieces of 4096 and then piece by piece. What is observed comes with whether it was finite: a sum of squares
//! that is not never becomes so again.
//!
//! Cost: every tensor is read once, and what is written is written once. Errors: [`Error::Shape`], [`Error::DType`],
//! [`Error::DeviceMismatch`], [`Error::NotContiguous`] for tensors that do not fit together.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const OP: &str = "ewc";

/// Elements whose part of the penalty is added up first.
const PIECE: usize = 4096;

/// `squares ← squares + gradients²`; whether all gradients are finite.
pub fn observe(squares: &Tensor, gradients: &Tensor) -> Result<bool> {
    check(squares, [("gradients", gradients)])?;
    match (squares.device().is_cpu(), squares.dtype()) {
        _ if squares.numel() == 0 => Ok(true),
        (true, DType::F64) => cpu::observe::<f64>(squares, gradients),
        (true, _) => cpu::observe::<f32>(squares, gradients),
        (false, _) => gpu::observe(squares, gradients),
    }
}

/// Where the parameters are, where they are held, and how strongly.
#[derive(Clone, Copy, Debug)]
pub struct Spring<'a> {
    pub params: &'a Tensor,
    pub anchor: &'a Tensor,
    pub squares: &'a Tensor,
}

impl Spring<'_> {
    /// `gradients ← gradients + 2 c S (θ − θ*)`.
    pub fn pull(&self, gradients: &Tensor, c: f64) -> Result<()> {
        check(self.squares, [("params", self.params), ("anchor", self.anchor), ("gradients", gradients)])?;
        if !c.is_finite() {
            return Err(Error::value(OP, "c", "a finite number", c));
        }
        match (gradients.device().is_cpu(), gradients.dtype()) {
            _ if gradients.numel() == 0 => Ok(()),
            (true, DType::F64) => cpu::pull::<f64>(self, gradients, c),
            (true, _) => cpu::pull::<f32>(self, gradients, c),
            (false, _) => gpu::pull(self, gradients, c),
        }
    }

    /// `Σ S (θ − θ*)²`.
    pub fn penalty(&self) -> Result<f64> {
        check(self.squares, [("params", self.params), ("anchor", self.anchor)])?;
        match (self.params.device().is_cpu(), self.params.dtype()) {
            _ if self.params.numel() == 0 => Ok(0.0),
            (true, DType::F64) => cpu::penalty::<f64>(self),
            (true, _) => cpu::penalty::<f32>(self),
            (false, _) => gpu::penalty(self),
        }
    }
}

fn check<const N: usize>(squares: &Tensor, others: [(&'static str, &Tensor); N]) -> Result<()> {
    if squares.dtype() != DType::F32 && !(squares.dtype() == DType::F64 && squares.device().is_cpu()) {
        let expected = "f32, or f64 on the CPU".into();
        return Err(Error::DType { op: OP, argument: "squares", expected, got: squares.dtype() });
    }
    squares.require_contiguous(OP, "squares")?;
    for (argument, tensor) in others {
        tensor.require_dims(OP, argument, squares.dims())?;
        tensor.require_dtype(OP, argument, squares.dtype())?;
        tensor.require_device(OP, argument, squares.device())?;
        tensor.require_contiguous(OP, argument)?;
    }
    Ok(())
}
