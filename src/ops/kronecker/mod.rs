//! A matrix that is a sum of Kronecker products, as its factors make it: the weight of a bottleneck that shares factors with all others.
//!
//! ```text
//! W = Σ_i A_i ⊗ (L_i R_i)        block (q, p) of W, of h × h blocks:  Σ_i A_i[q, p] · L_i R_i
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `rule`, all A_i | `[h, h, h]`: i, then block row q and block column p | f32, f16, bf16 (f64 on the CPU) |
//! | `left`, the L_i side by side | `[n / h, h·r]` | as the rule |
//! | `right`, the R_i one below the other | `[h·r, k / h]` | as the rule |
//! | `W` | `[n, k]` | as the rule |
//!
//! W is made once a call and then runs as any weight: its cost does not depend on the tokens. Of `h³ + (n + k)·r` numbers it makes `n·k`.
//!
//! Backward, with `D[q, o, p, i, ρ] = Σ_c dW[(q, o), (p, c)] · R_i[ρ, c]`: `dL_i[o, ρ] = Σ_qp A_i[q, p] · D`, `dA_i[q, p] = Σ_oρ L_i[o, ρ] · D`,
//! `dR_i[ρ, c] = Σ_qop A_i[q, p] · L_i[o, ρ] · dW[(q, o), (p, c)]`, all sums in a fixed order. Kept for it: nothing but the factors.
//!
//! Cost: `2·n·k·h·r` floating-point operations; backward three times as many.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit.
//!
//! Source: Karimi Mahabadi, Henderson and Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", NeurIPS 2021.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::column_sum::column_sum;
use crate::ops::host::with_real;
use crate::tensor::Tensor;

const OP: &str = "kronecker";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    /// Rows and columns of a block.
    pub n: usize,
    pub k: usize,
    /// Blocks across, blocks down, and products.
    pub h: usize,
    /// Rank of each L_i R_i.
    pub r: usize,
    pub dtype: DType,
}

impl Desc {
    pub fn new(rule: &Tensor, left: &Tensor, right: &Tensor) -> Result<Self> {
        if !rule.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "rule", expected: "a float type".into(), got: rule.dtype() });
        }
        let h = match *rule.dims() {
            [h, q, p] if h > 0 && q == h && p == h => h,
            _ => return Err(Error::shape(OP, "rule", "[h, h, h] with h ≥ 1", rule.dims())),
        };
        let (n, all) = match *left.dims() {
            [n, all] if n > 0 && all > 0 && all.is_multiple_of(h) => (n, all),
            _ => return Err(Error::shape(OP, "left", format!("[n / {h}, {h}·r] with n, r ≥ 1"), left.dims())),
        };
        let k = match *right.dims() {
            [rows, k] if rows == all && k > 0 => k,
            _ => return Err(Error::shape(OP, "right", format!("[{all}, k / {h}] with k ≥ 1"), right.dims())),
        };
        for (name, tensor) in [("rule", rule), ("left", left), ("right", right)] {
            tensor.require_dtype(OP, name, rule.dtype())?;
            tensor.require_device(OP, name, rule.device())?;
            tensor.require_contiguous(OP, name)?;
        }
        Ok(Desc { n, k, h, r: all / h, dtype: rule.dtype() })
    }

    /// Rows and columns of W.
    pub fn dims(&self) -> [usize; 2] {
        [self.n * self.h, self.k * self.h]
    }

    /// h·r
    fn ranks(&self) -> usize {
        self.h * self.r
    }

    pub fn flops(&self) -> u64 {
        let [n, k] = self.dims();
        2 * n as u64 * k as u64 * self.ranks() as u64
    }
}

/// Positions of the inputs on the tape.
const RULE: usize = 0;
const LEFT: usize = 1;
const RIGHT: usize = 2;

/// `W = Σ_i A_i ⊗ (L_i R_i)`; see the module for shapes and errors.
pub fn kronecker(tape: &mut Tape, rule: &Var, left: &Var, right: &Var) -> Result<Var> {
    let factors = Factors { rule: rule.tensor().clone(), left: left.tensor().clone(), right: right.tensor().clone() };
    let desc = Desc::new(&factors.rule, &factors.left, &factors.right)?;
    let w = Tensor::empty(factors.rule.device(), &desc.dims(), desc.dtype)?;
    if w.device().is_cpu() {
        with_real!(desc.dtype, OP, T => cpu::forward::<T>(&desc, &factors, &w))?;
    } else {
        w.device().run(&gpu::forward(&desc, &factors, &w)?)?;
    }
    Ok(tape.record(w, &[rule, left, right], |_| Node { desc, factors }))
}

/// Parameters, which are alive anyway.
#[derive(Clone, Debug)]
struct Factors {
    rule: Tensor,
    left: Tensor,
    right: Tensor,
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    factors: Factors,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        Vec::new()
    }

    fn backward(&self, dw: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let dw = dw.contiguous()?;
        let Factors { rule, left, right } = &self.factors;
        let sums = |like: &Tensor| Tensor::empty(dw.device(), like.dims(), self.desc.dtype.accumulator());
        let gradients = Factors { rule: sums(rule)?, left: sums(left)?, right: sums(right)? };
        if dw.device().is_cpu() {
            with_real!(self.desc.dtype, OP, T => cpu::backward::<T>(&self.desc, &self.factors, &dw, &gradients))?;
        } else {
            gpu::backward(&self.desc, &self.factors, &dw, &gradients)?;
        }
        for (index, gradient) in [(RULE, &gradients.rule), (LEFT, &gradients.left), (RIGHT, &gradients.right)] {
            if let Some(target) = sinks.open(index)? {
                column_sum(gradient, 1, gradient.numel(), 1.0, &target)?;
            }
        }
        Ok(())
    }
}
