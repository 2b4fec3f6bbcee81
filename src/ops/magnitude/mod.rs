//! DoRA's factors: what the rows of a weight with a low-rank update are multiplied by to have the lengths that were learned.
//!
//! ```text
//! g_i = m_i / ‖w_i‖      w_i = row i of W₀ + s · B A
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `m` | `[n]`, the magnitudes | f32, f16, bf16 (f64 on the CPU) |
//! | `W₀` | `[n, k]`, frozen | as m |
//! | `A`, `B` | `[r, k]`, `[n, r]`, 1 ≤ r ≤ 256 | as m |
//! | `g` | `[n]` | as m |
//!
//! B·A is never formed: rows of it are made and squared where they are used, in f32 (f64 for f64). The norm is a constant to the
//! gradient, as in §4.3 of the paper: `dm = dg / ‖w‖`, and nothing flows into A and B from here. A row of norm 0 has `g = 1`, which
//! leaves it 0, and `dm = 0`. Kept for it: one norm a row.
//!
//! Cost: `2·n·k·(r + 2)` floating-point operations; W₀ and B are read once. Paid once a forward pass, whatever the tokens.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a rank outside 1..=256 or a scale that is not finite.
//!
//! Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::frozen_linear::MAX_RANK;
use crate::ops::host::with_real;
use crate::tensor::{FrozenWeight, Tensor};

const OP: &str = "magnitude";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub n: usize,
    pub k: usize,
    pub r: usize,
    pub scale: f64,
    pub dtype: DType,
}

impl Desc {
    pub fn new(magnitude: &Tensor, weight: &FrozenWeight, [a, b]: [&Tensor; 2], scale: f64) -> Result<Self> {
        let (n, k) = (weight.n(), weight.k());
        let r = a.dims().first().copied().unwrap_or(0);
        if r == 0 || r > MAX_RANK {
            return Err(Error::value(OP, "rank", format!("1 to {MAX_RANK}"), r));
        }
        let dtype = weight.dtype();
        for (name, tensor, dims) in [("magnitude", magnitude, &[n][..]), ("a", a, &[r, k]), ("b", b, &[n, r])] {
            tensor.require_dims(OP, name, dims)?;
            tensor.require_dtype(OP, name, dtype)?;
            tensor.require_device(OP, name, weight.device())?;
            tensor.require_contiguous(OP, name)?;
        }
        if !scale.is_finite() {
            return Err(Error::value(OP, "scale", "a finite number", scale));
        }
        Ok(Desc { n, k, r, scale, dtype })
    }

    pub fn flops(&self) -> u64 {
        2 * self.n as u64 * self.k as u64 * (self.r as u64 + 2)
    }

    /// Bytes that must move at least.
    pub fn bytes(&self) -> u64 {
        let (n, k, r) = (self.n as u64, self.k as u64, self.r as u64);
        (n * k + r * (n + k) + 2 * n) * self.dtype.size() as u64 + n * self.dtype.accumulator().size() as u64
    }
}

/// `m / ‖W₀ + s · B A‖`, row by row; see the module for shapes and errors.
pub fn magnitude(tape: &mut Tape, m: &Var, weight: &FrozenWeight, [a, b]: [&Var; 2], scale: f64) -> Result<Var> {
    let factors = [a.tensor(), b.tensor()];
    let desc = Desc::new(m.tensor(), weight, factors, scale)?;
    let g = Tensor::empty(weight.device(), &[desc.n], desc.dtype)?;
    let norms = norms_of(&desc, weight, factors)?;
    divide(&desc, m.tensor(), &norms, Kind::Forward, &Target { tensor: g.clone(), accumulate: false })?;
    Ok(tape.record(g, &[m], |_| Node { desc, norms: Saved::Held(norms) }))
}

/// `‖W₀ + s · B A‖` of each row, `[n]`, in f32 (f64 for f64).
pub fn row_norms(weight: &FrozenWeight, factors: [&Tensor; 2], scale: f64) -> Result<Tensor> {
    let some = Tensor::empty(weight.device(), &[weight.n()], weight.dtype())?;
    norms_of(&Desc::new(&some, weight, factors, scale)?, weight, factors)
}

fn norms_of(desc: &Desc, weight: &FrozenWeight, factors: [&Tensor; 2]) -> Result<Tensor> {
    let norms = Tensor::empty(weight.device(), &[desc.n], desc.dtype.accumulator())?;
    if norms.device().is_cpu() {
        with_real!(desc.dtype, OP, T => cpu::norms::<T>(desc, weight.tensor(), factors, &norms))?;
    } else {
        norms.device().run(&gpu::norms(desc, weight.tensor(), factors, &norms)?)?;
    }
    Ok(norms)
}

/// What comes of a row whose norm is 0.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 1
    Forward,
    /// 0
    Backward,
}

/// `target (+)= x / norms`.
fn divide(desc: &Desc, x: &Tensor, norms: &Tensor, kind: Kind, target: &Target) -> Result<()> {
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::divide::<T>(x, norms, kind, target));
    }
    x.device().run(&gpu::divide(desc, x, norms, kind, target)?)
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    norms: Saved,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        vec![&self.norms]
    }

    fn backward(&self, dg: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        match sinks.open(0)? {
            Some(target) => divide(&self.desc, dg, &self.norms.get()?, Kind::Backward, &target),
            None => Ok(()),
        }
    }
}
