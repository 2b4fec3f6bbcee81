//! Layer norm and RMS norm over the last dimension.
//!
//! ```text
//! layer:  y = (x − μ) · ρ ⊙ γ + β     μ = mean(x)    ρ = 1 / √(mean((x − μ)²) + ε)
//! RMS:    y =      x  · ρ ⊙ γ                        ρ = 1 / √(mean(x²) + ε)
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x`, `y` | `[.., d]`, m rows, d ≥ 1 | f32, f16, bf16 (f64 on the CPU) |
//! | `γ`, `β` | `[d]`, frozen or trainable; β may be absent | as x |
//! | statistics | `[m, 2]` (μ, ρ), `[m, 1]` (ρ) for RMS | f32 (f64 for f64) |
//!
//! Backward, with `x̂ = (x − μ)·ρ` and `g = dy ⊙ γ`: `dx = ρ · (g − mean(g) − x̂ · mean(g ⊙ x̂))`, without `mean(g)` for RMS;
//! `dγ = Σ_rows dy ⊙ x̂`, `dβ = Σ_rows dy`, in a fixed order.
//! Kept for it: x and the statistics if x or γ wants a gradient, nothing for β. Where x is kept anyway, y carries a recipe: who
//! saves y keeps x and the statistics instead, and y is made again from them with the same bits.
//!
//! Sources: Ba, Kiros and Hinton, "Layer Normalization", 2016; Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.
//!
//! Cost: `8·m·d` floating-point operations forward (`5·m·d` for RMS); x is read and y written once.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for an ε that is negative or not finite.

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
use crate::ops::scale_add::into_dtype;
use crate::tensor::Tensor;

const OP: &str = "norm";

/// What is normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Mean to 0, variance to 1.
    Layer,
    /// Mean square to 1.
    Rms,
}

impl Kind {
    /// Statistics of one row.
    pub const fn statistics(self) -> usize {
        match self {
            Kind::Layer => 2,
            Kind::Rms => 1,
        }
    }
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub m: usize,
    pub d: usize,
    pub kind: Kind,
    pub bias: bool,
    pub eps: f64,
    pub dtype: DType,
}

impl Desc {
    pub fn new(kind: Kind, x: &Tensor, gamma: &Tensor, beta: Option<&Tensor>, eps: f64) -> Result<Self> {
        let d = x.cols();
        if x.dims().is_empty() || d == 0 {
            return Err(Error::shape(OP, "x", "[.., d] with d ≥ 1", x.dims()));
        }
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        x.require_contiguous(OP, "x")?;
        for (name, other) in [("gamma", Some(gamma)), ("beta", beta)] {
            let Some(other) = other else { continue };
            other.require_dims(OP, name, &[d])?;
            other.require_dtype(OP, name, x.dtype())?;
            other.require_device(OP, name, x.device())?;
            other.require_contiguous(OP, name)?;
        }
        if !(eps >= 0.0 && eps.is_finite()) {
            return Err(Error::value(OP, "eps", "a finite number that is not negative", eps));
        }
        Ok(Desc { m: x.rows(), d, kind, bias: beta.is_some(), eps, dtype: x.dtype() })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        let each = match self.kind {
            Kind::Layer => 8,
            Kind::Rms => 5,
        };
        each * self.m as u64 * self.d as u64
    }

    /// Bytes that the forward pass must move at least.
    pub fn bytes(&self) -> u64 {
        let (m, d) = (self.m as u64, self.d as u64);
        let parameters = if self.bias { 2 } else { 1 };
        (2 * m * d + parameters * d) * self.dtype.size() as u64
            + m * (self.kind.statistics() * self.dtype.accumulator().size()) as u64
    }
}

/// Layer norm over the last dimension; see the module for shapes and errors.
pub fn layer_norm(tape: &mut Tape, x: &Var, gamma: &Var, beta: Option<&Var>, eps: f64) -> Result<Var> {
    norm(Kind::Layer, tape, x, gamma, beta, eps)
}

/// RMS norm over the last dimension; see the module for shapes and errors.
pub fn rms_norm(tape: &mut Tape, x: &Var, gamma: &Var, eps: f64) -> Result<Var> {
    norm(Kind::Rms, tape, x, gamma, None, eps)
}

/// Positions of the inputs on the tape.
const X: usize = 0;
const GAMMA: usize = 1;
const BETA: usize = 2;

fn norm(kind: Kind, tape: &mut Tape, x: &Var, gamma: &Var, beta: Option<&Var>, eps: f64) -> Result<Var> {
    let desc = Desc::new(kind, x.tensor(), gamma.tensor(), beta.map(Var::tensor), eps)?;
    let device = x.tensor().device();
    let y = Tensor::empty(device, x.dims(), desc.dtype)?;
    let statistics = Tensor::empty(device, &[desc.m, kind.statistics()], desc.dtype.accumulator())?;
    let gamma_beta = (gamma.tensor(), beta.map(Var::tensor));
    forward(&desc, x.tensor(), gamma_beta, Statistics::Written(&statistics), &y)?;

    let none = Var::constant(y.clone());
    let kept = Kept {
        desc,
        x: x.save(),
        statistics: Saved::Held(statistics),
        gamma: gamma.tensor().clone(),
        beta: beta.map(|b| b.tensor().clone()),
    };
    let out = tape.record(y, &[x, gamma, beta.unwrap_or(&none)], |wants| Node {
        desc,
        kept: (wants.input(X) || wants.input(GAMMA)).then(|| kept.clone()),
    });
    let holds_x = x.needs_grad() || gamma.needs_grad();
    Ok(if holds_x && tape.may_recompute() { out.with_recipe(Arc::new(kept)) } else { out })
}

/// Whether a forward pass computes the statistics of its rows or is given them.
#[derive(Clone, Copy)]
pub(crate) enum Statistics<'a> {
    Written(&'a Tensor),
    Given(&'a Tensor),
}

impl<'a> Statistics<'a> {
    fn tensor(self) -> &'a Tensor {
        match self {
            Statistics::Written(t) | Statistics::Given(t) => t,
        }
    }
}

fn forward(desc: &Desc, x: &Tensor, gb: (&Tensor, Option<&Tensor>), statistics: Statistics, y: &Tensor) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, x, gb, statistics, y));
    }
    x.device().run(&gpu::forward(desc, x, gb, statistics, y)?)
}

/// What backward and the making again of y both need.
#[derive(Clone, Debug)]
struct Kept {
    desc: Desc,
    x: Saved,
    statistics: Saved,
    gamma: Tensor,
    beta: Option<Tensor>,
}

impl Recompute for Kept {
    fn recompute(&self) -> Result<Tensor> {
        let (x, statistics) = (self.x.get()?, self.statistics.get()?);
        let y = Tensor::empty(x.device(), &[self.desc.m, self.desc.d], self.desc.dtype)?;
        forward(&self.desc, &x, (&self.gamma, self.beta.as_ref()), Statistics::Given(&statistics), &y)?;
        Ok(y)
    }

    fn holds(&self) -> Vec<&Tensor> {
        [&self.x, &self.statistics].into_iter().flat_map(Saved::holds).collect()
    }
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    kept: Option<Kept>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        match self.desc.kind {
            Kind::Layer => "layer_norm",
            Kind::Rms => "rms_norm",
        }
    }

    fn saved(&self) -> Vec<&Saved> {
        self.kept.iter().flat_map(|k| [&k.x, &k.statistics]).collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        if let Some(target) = sinks.open(BETA)? {
            column_sum(dy, 1, self.desc.d, 1.0, &target)?;
        }
        let Some(kept) = &self.kept else { return Ok(()) };
        let (x, statistics) = (kept.x.get()?, kept.statistics.get()?);
        if let Some(target) = sinks.open(GAMMA)? {
            gamma_gradient(&self.desc, dy, &x, &statistics, &target)?;
        }
        if let Some(target) = sinks.open(X)? {
            input_gradient(&self.desc, dy, &x, &statistics, &kept.gamma, &target)?;
        }
        Ok(())
    }
}

/// `dγ (+)= Σ_rows dy ⊙ x̂`.
fn gamma_gradient(desc: &Desc, dy: &Tensor, x: &Tensor, statistics: &Tensor, target: &Target) -> Result<()> {
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::gamma_gradient::<T>(desc, dy, x, statistics, target));
    }
    if desc.m == 0 {
        return column_sum(dy, 1, desc.d, 1.0, target);
    }
    let partial = Tensor::empty(x.device(), &[gpu::pieces(desc), desc.d], DType::F32)?;
    x.device().run(&gpu::gamma_gradient(desc, dy, x, statistics, &partial)?)?;
    column_sum(&partial, 1, desc.d, 1.0, target)
}

/// `dx (+)= ρ · (g − mean(g) − x̂ · mean(g ⊙ x̂))`.
fn input_gradient(
    desc: &Desc,
    dy: &Tensor,
    x: &Tensor,
    statistics: &Tensor,
    gamma: &Tensor,
    target: &Target,
) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::input_gradient::<T>(desc, dy, x, statistics, gamma, target));
    }
    into_dtype(target, desc.dtype, |target| {
        x.device().run(&gpu::input_gradient(desc, dy, x, statistics, gamma, target)?)
    })
}
