//! The gated half of Dual-LoRA: a skill space S, normalised, that a task space T opens rank by rank.
//!
//! ```text
//! h = u ⊙ ReLU(t)      u = (a − μ) · ρ ⊙ γ + β      a = S dropout(x)      t = T x
//! ```
//!
//! with `μ`, `ρ` the mean and `1 / √(variance + ε)` of a row of a. T sees x undropped.
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x` | `[.., k]`, m rows | f32, f16, bf16 (f64 on the CPU) |
//! | `[S; T]` | `[2r, k]`, S above T, 2 ≤ r ≤ 256 | as x |
//! | `γ`, `β` | `[r]` | as x |
//! | `h` | `[.., r]` | as x |
//!
//! Both halves are one product with x; with dropout they are two. Backward, with `g = dh`:
//! `du = g ⊙ ReLU(t)`, `dt = g ⊙ u ⊙ [t > 0]`, `dγ = Σ du ⊙ â`, `dβ = Σ du`, `da = ρ · (du ⊙ γ − mean − â · mean(â ⊙ du ⊙ γ))`,
//! `d[S; T] = [da, dt]ᵀ [dropout(x), x]`, `dx = mask ⊙ (da S) + dt T`; sums over rows in a fixed order.
//! Kept for it: x only if S and T learn, and `[a, t]`, 2r numbers a row, from which whoever saves h makes it again.
//!
//! Cost: `4·m·r·k + 12·m·r` floating-point operations forward. Limited by reading x once.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a rank of 1, whose norm is 0 whatever x is, or above 256, a dropout outside [0, 1), an ε that is negative or
//! not finite.
//!
//! Source: Jiao et al., "From Holistic to Localized: Local Enhanced Adapters for Efficient Visual Instruction Fine-Tuning", 2024.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::autograd::{Recompute, Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::column_sum::column_sum;
use crate::ops::host::with_real;
use crate::rng::Dropout;
use crate::shape::Dims;
use crate::tensor::Tensor;

const OP: &str = "dual_rank";

/// Largest rank.
pub const MAX_RANK: usize = 256;

/// What the gate is made of.
#[derive(Clone, Copy, Debug)]
pub struct DualRank<'a> {
    /// `[2r, k]`, S above T.
    pub stacked: &'a Var,
    /// `[r]`
    pub gamma: &'a Var,
    /// `[r]`
    pub beta: &'a Var,
    pub eps: f64,
    /// Probability with which an element of the x that S sees is dropped, in training.
    pub dropout: f64,
    /// Names the place, so that two layers draw different masks.
    pub site: u32,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub m: usize,
    pub k: usize,
    pub r: usize,
    pub eps: f64,
    pub dtype: DType,
    pub dropout: Option<Dropout>,
}

impl Desc {
    pub fn new(tape: &Tape, x: &Tensor, gate: &DualRank) -> Result<Self> {
        let &[rows, k] = gate.stacked.dims() else {
            return Err(Error::shape(OP, "stacked", "[2r, k]", gate.stacked.dims()));
        };
        if !rows.is_multiple_of(2) || k == 0 {
            return Err(Error::shape(OP, "stacked", "[2r, k], S above T", gate.stacked.dims()));
        }
        let r = rows / 2;
        if !(2..=MAX_RANK).contains(&r) {
            return Err(Error::value(OP, "rank", format!("2 to {MAX_RANK}: a norm over one rank is 0"), r));
        }
        if x.dims().is_empty() || x.cols() != k {
            return Err(Error::shape(OP, "x", format!("[.., {k}] for [S; T] of [{rows}, {k}]"), x.dims()));
        }
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        x.require_contiguous(OP, "x")?;
        for (name, operand, dims) in
            [("stacked", gate.stacked, &[rows, k][..]), ("gamma", gate.gamma, &[r]), ("beta", gate.beta, &[r])]
        {
            operand.tensor().require_dims(OP, name, dims)?;
            operand.tensor().require_dtype(OP, name, x.dtype())?;
            operand.tensor().require_device(OP, name, x.device())?;
            operand.tensor().require_contiguous(OP, name)?;
        }
        if !(gate.eps >= 0.0 && gate.eps.is_finite()) {
            return Err(Error::value(OP, "eps", "a finite number that is not negative", gate.eps));
        }
        let dropout = crate::ops::dropout_of(OP, tape, gate.dropout, gate.site)?;
        Ok(Desc { m: x.rows(), k, r, eps: gate.eps, dtype: x.dtype(), dropout })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        (4 * self.k as u64 + 12) * self.m as u64 * self.r as u64
    }

    /// Bytes that the forward pass must move at least: x and the weights once, h, and `[a, t]` that is kept.
    pub fn bytes(&self) -> u64 {
        let (m, k, r) = (self.m as u64, self.k as u64, self.r as u64);
        (m * k + 2 * r * k + 2 * r + 3 * m * r) * self.dtype.size() as u64
    }

    /// Pieces of rows whose sums of dγ and dβ are added afterwards.
    fn pieces(&self) -> usize {
        self.m.div_ceil(PIECE)
    }
}

/// Rows of a piece.
const PIECE: usize = 64;

/// Positions of the inputs on the tape.
const X: usize = 0;
const STACKED: usize = 1;
const GAMMA: usize = 2;
const BETA: usize = 3;

/// `LayerNorm(S dropout(x)) ⊙ ReLU(T x)`; see the module for shapes and errors.
pub fn dual_rank(tape: &mut Tape, x: &Var, operands: &DualRank) -> Result<Var> {
    let gate = Gate::new(tape, x.tensor(), operands)?;
    let projected = Saved::Held(gate.project(x.tensor(), operands.stacked.tensor())?);
    let kept = Kept { gate, projected };
    let mut dims = Dims::from_slice(x.dims());
    if let Some(last) = dims.last_mut() {
        *last = kept.gate.desc.r;
    }
    let h = kept.recompute()?.reshape(&dims)?;
    let inputs = [x, operands.stacked, operands.gamma, operands.beta];
    let recipe = inputs.iter().any(|v| v.needs_grad()) && tape.may_recompute();
    let h = tape.record(h, &inputs, |wants| Node {
        kept: kept.clone(),
        stacked: operands.stacked.tensor().clone(),
        x: (wants.weights || wants.input(STACKED)).then(|| x.save()),
    });
    Ok(if recipe { h.with_recipe(Arc::new(kept)) } else { h })
}

/// A validated call and the norm's weights.
#[derive(Clone, Debug)]
pub(in crate::ops) struct Gate {
    pub desc: Desc,
    gamma: Tensor,
    beta: Tensor,
}

impl Gate {
    pub fn new(tape: &Tape, x: &Tensor, operands: &DualRank) -> Result<Self> {
        let desc = Desc::new(tape, x, operands)?;
        Ok(Gate { desc, gamma: operands.gamma.tensor().clone(), beta: operands.beta.tensor().clone() })
    }

    /// `[a, t]`: the two halves of a row one after the other, on a GPU with dropout one matrix after the other.
    pub fn project(&self, x: &Tensor, stacked: &Tensor) -> Result<Tensor> {
        let desc = &self.desc;
        let projected = Tensor::empty(x.device(), &[desc.m, 2 * desc.r], desc.dtype)?;
        if desc.m == 0 {
            return Ok(projected);
        }
        if x.device().is_cpu() {
            with_real!(desc.dtype, OP, T => cpu::project::<T>(desc, x, stacked, &projected))?;
        } else {
            x.device().run(&gpu::project(desc, x, stacked, &projected)?)?;
        }
        Ok(projected)
    }

    /// h of `[a, t]`.
    pub fn open(&self, projected: &Tensor) -> Result<Tensor> {
        let (desc, weights) = (&self.desc, [&self.gamma, &self.beta]);
        let h = Tensor::empty(projected.device(), &[desc.m, desc.r], desc.dtype)?;
        if desc.m == 0 {
            return Ok(h);
        }
        if h.device().is_cpu() {
            with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, projected, weights, &h))?;
        } else {
            h.device().run(&gpu::forward(desc, projected, weights, &h)?)?;
        }
        Ok(h)
    }
}

/// What backward and the making again of h both need.
#[derive(Clone, Debug)]
struct Kept {
    gate: Gate,
    projected: Saved,
}

impl Recompute for Kept {
    fn recompute(&self) -> Result<Tensor> {
        self.gate.open(&self.projected.get()?)
    }

    fn holds(&self) -> Vec<&Tensor> {
        self.projected.holds()
    }
}

#[derive(Debug)]
struct Node {
    kept: Kept,
    stacked: Tensor,
    x: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.x.iter().chain([&self.kept.projected]).collect()
    }

    fn backward(&self, dh: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let gate = &self.kept.gate;
        let slopes = Slopes::new(gate, &self.kept.projected.get()?, dh)?;
        slopes.weight_gradients(gate, [GAMMA, BETA], sinks)?;
        if let (Some(x), Some(target)) = (&self.x, sinks.open(STACKED)?) {
            slopes.stacked_gradient(gate, &x.get()?, &target)?;
        }
        if let Some(target) = sinks.open(X)? {
            slopes.input_gradient(gate, &self.stacked, &target)?;
        }
        Ok(())
    }
}

/// The gradient of `[a, t]`, laid out as that is, and the sums of dγ and dβ over pieces of rows, `[pieces, 2r]`.
pub(in crate::ops) struct Slopes {
    pub projected: Tensor,
    partial: Tensor,
}

impl Slopes {
    pub fn new(gate: &Gate, projected: &Tensor, dh: &Tensor) -> Result<Self> {
        let (desc, weights) = (&gate.desc, [&gate.gamma, &gate.beta]);
        let slopes = Slopes {
            projected: Tensor::empty(dh.device(), &[desc.m, 2 * desc.r], desc.dtype)?,
            partial: Tensor::empty(dh.device(), &[desc.pieces(), 2 * desc.r], desc.dtype.accumulator())?,
        };
        if desc.m == 0 {
            return Ok(slopes);
        }
        if dh.device().is_cpu() {
            with_real!(desc.dtype, OP, T => cpu::backward::<T>(desc, projected, weights, dh, &slopes))?;
        } else {
            dh.device().run(&gpu::backward(desc, projected, weights, dh, &slopes)?)?;
        }
        Ok(slopes)
    }

    /// Those of γ and β, the inputs at these positions.
    pub fn weight_gradients(&self, gate: &Gate, inputs: [usize; 2], sinks: &mut Sinks<'_>) -> Result<()> {
        if !inputs.iter().any(|&input| sinks.wants(input)) {
            return Ok(());
        }
        let r = gate.desc.r;
        let sums = self.sums(&gate.desc)?;
        for (input, half) in inputs.into_iter().zip([0, r]) {
            if let Some(target) = sinks.open(input)? {
                column_sum(&sums.slice(0, half, r)?, 1, r, 1.0, &target)?;
            }
        }
        Ok(())
    }

    /// dγ and dβ, `[2r]`.
    fn sums(&self, desc: &Desc) -> Result<Tensor> {
        let tensor = Tensor::empty(self.partial.device(), &[2 * desc.r], self.partial.dtype())?;
        column_sum(&self.partial, 1, 2 * desc.r, 1.0, &Target { tensor: tensor.clone(), accumulate: false })?;
        Ok(tensor)
    }

    pub fn stacked_gradient(&self, gate: &Gate, x: &Tensor, target: &Target) -> Result<()> {
        let desc = &gate.desc;
        if x.device().is_cpu() {
            return with_real!(desc.dtype, OP, T => cpu::stacked_gradient::<T>(desc, &self.projected, x, target));
        }
        gpu::stacked_gradient(desc, &self.projected, x, target)
    }

    pub fn input_gradient(&self, gate: &Gate, stacked: &Tensor, target: &Target) -> Result<()> {
        let desc = &gate.desc;
        if stacked.device().is_cpu() {
            return with_real!(desc.dtype, OP, T => cpu::input_gradient::<T>(desc, &self.projected, stacked, target));
        }
        gpu::input_gradient(desc, &self.projected, stacked, target)
    }
}
