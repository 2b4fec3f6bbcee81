//! Proximal steps: what makes blocks and gates exactly zero.
//!
//! ```text
//! shrink_blocks      W_b ← max(0, 1 − t_b / ‖W_b‖_F) · W_b          0 where ‖W_b‖_F = 0
//! soft_threshold     v ← sign(v) · max(|v| − t, 0)
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `W` | `[nnz, b, b]`, or any `[nnz, ..]` | f32 (f64 on the CPU): a view of the parameters |
//! | `working` | as W | the 16-bit copy that ops read, rewritten too |
//! | `t_b` | one number, or `[nnz]` f32 | |
//!
//! They follow an optimizer's step of size η: t is η · λ · √b² for a group lasso of strength λ on blocks of b² elements, η · λ for an
//! ℓ1 penalty on a gate. Parameters change in place; nothing is recorded. NaN stays NaN.
//!
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for tensors that do not fit;
//! [`Error::Value`] for a threshold that is negative or not finite.
//!
//! Source: the proximal maps of the group lasso (Yuan and Lin, 2006) and of the ℓ1 norm; for gates, Ding et al., "SoRA", 2023, by its
//! formula: zeroing in place after subtracting would send all of |v| < 2t to zero.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Thresholds of the blocks.
#[derive(Clone, Copy, Debug)]
pub enum Threshold<'a> {
    Uniform(f64),
    /// `[nnz]`, f32; not below zero.
    PerBlock(&'a Tensor),
}

/// `W_b ← max(0, 1 − t_b / ‖W_b‖_F) · W_b` for every block, in `master` and in `working`, its rounded copy where there is one.
pub fn shrink_blocks(master: &Tensor, working: Option<&Tensor>, threshold: Threshold) -> Result<()> {
    const OP: &str = "shrink_blocks";
    check(OP, master, working)?;
    let Some(&blocks) = master.dims().first() else {
        return Err(Error::shape(OP, "master", "[nnz, ..]", master.dims()));
    };
    match threshold {
        Threshold::Uniform(t) => check_threshold(OP, t)?,
        Threshold::PerBlock(t) => {
            t.require_dims(OP, "threshold", &[blocks])?;
            t.require_dtype(OP, "threshold", DType::F32)?;
            t.require_device(OP, "threshold", master.device())?;
            t.require_contiguous(OP, "threshold")?;
        }
    }
    if master.numel() == 0 {
        return Ok(());
    }
    if master.device().is_cpu() {
        return match master.dtype() {
            DType::F64 => cpu::shrink_blocks::<f64>(OP, master, working, threshold, blocks),
            _ => cpu::shrink_blocks::<f32>(OP, master, working, threshold, blocks),
        };
    }
    master.device().run(&gpu::shrink_blocks(OP, master, working, threshold, blocks)?)
}

/// `v ← sign(v) · max(|v| − t, 0)` for every element, in `master` and in `working`.
pub fn soft_threshold(master: &Tensor, working: Option<&Tensor>, threshold: f64) -> Result<()> {
    const OP: &str = "soft_threshold";
    check(OP, master, working)?;
    check_threshold(OP, threshold)?;
    if master.numel() == 0 {
        return Ok(());
    }
    if master.device().is_cpu() {
        return match master.dtype() {
            DType::F64 => cpu::soft_threshold::<f64>(OP, master, working, threshold),
            _ => cpu::soft_threshold::<f32>(OP, master, working, threshold),
        };
    }
    master.device().run(&gpu::soft_threshold(OP, master, working, threshold)?)
}

fn check(op: &'static str, master: &Tensor, working: Option<&Tensor>) -> Result<()> {
    if master.dtype() != DType::F32 && !(master.dtype() == DType::F64 && master.device().is_cpu()) {
        let expected = "f32, or f64 on the CPU".into();
        return Err(Error::DType { op, argument: "master", expected, got: master.dtype() });
    }
    master.require_contiguous(op, "master")?;
    let Some(working) = working else { return Ok(()) };
    working.require_dims(op, "working", master.dims())?;
    working.require_device(op, "working", master.device())?;
    working.require_contiguous(op, "working")?;
    match working.dtype() {
        DType::F16 | DType::BF16 => Ok(()),
        got => Err(Error::DType { op, argument: "working", expected: "f16 or bf16".into(), got }),
    }
}

fn check_threshold(op: &'static str, t: f64) -> Result<()> {
    if t >= 0.0 && t.is_finite() {
        return Ok(());
    }
    Err(Error::value(op, "threshold", "a finite number, zero or above", t))
}
