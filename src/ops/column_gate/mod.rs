//! A gate on the columns of a matrix: `y[i, j] = x[i, j] · g[j]`.
//!
//! On the B of a low-rank update it gates the ranks: `(g ⊙ (x̃ Aᵀ)) Bᵀ = (x̃ Aᵀ) (B ⊙ g)ᵀ`, at a cost that does not depend on the tokens.
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x`, `y` | `[.., r]` | f32, f16, bf16 (f64 on the CPU) |
//! | `g` | `[r]` | as x |
//!
//! Backward: `dx = dy ⊙ g`, `dg = Σ_rows dy ⊙ x` in a fixed order. Kept for it: x only if g learns; parameters are alive anyway.
//!
//! Cost: one multiplication an element; x is read and y written once.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit.
//!
//! Source: the gate of Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP 2023.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::column_sum::column_sum;
use crate::ops::host::with_real;
use crate::tensor::Tensor;

const OP: &str = "column_gate";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub rows: usize,
    pub cols: usize,
    pub dtype: DType,
}

impl Desc {
    pub fn new(x: &Tensor, gate: &Tensor) -> Result<Self> {
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        if x.dims().is_empty() {
            return Err(Error::shape(OP, "x", "[.., r]", x.dims()));
        }
        gate.require_dims(OP, "gate", &[x.cols()])?;
        gate.require_dtype(OP, "gate", x.dtype())?;
        gate.require_device(OP, "gate", x.device())?;
        x.require_contiguous(OP, "x")?;
        gate.require_contiguous(OP, "gate")?;
        Ok(Desc { rows: x.rows(), cols: x.cols(), dtype: x.dtype() })
    }

    pub fn numel(&self) -> usize {
        self.rows * self.cols
    }
}

/// Positions of the inputs on the tape.
const X: usize = 0;
const GATE: usize = 1;

/// `y = x ⊙ g`, g repeated for every row; see the module for shapes and errors.
pub fn column_gate(tape: &mut Tape, x: &Var, gate: &Var) -> Result<Var> {
    let desc = Desc::new(x.tensor(), gate.tensor())?;
    let y = Tensor::empty(x.tensor().device(), x.dims(), desc.dtype)?;
    product(x.tensor(), gate.tensor(), &Target { tensor: y.clone(), accumulate: false })?;
    Ok(tape.record(y, &[x, gate], |wants| Node {
        desc,
        gate: gate.tensor().clone(),
        x: (wants.weights || wants.input(GATE)).then(|| x.save()),
    }))
}

/// `target (+)= a ⊙ b`, b repeated as often as it goes into a. Operands are validated already.
pub(crate) fn product(a: &Tensor, b: &Tensor, target: &Target) -> Result<()> {
    if a.numel() == 0 {
        return Ok(());
    }
    if a.device().is_cpu() {
        return with_real!(a.dtype(), OP, T => cpu::product::<T>(a, b, target));
    }
    a.device().run(&gpu::product(a, b, target)?)
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    gate: Tensor,
    x: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.x.iter().collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        if let (Some(x), Some(target)) = (&self.x, sinks.open(GATE)?) {
            let tensor = Tensor::empty(dy.device(), &[self.desc.numel()], self.desc.dtype.accumulator())?;
            product(dy, &x.get()?, &Target { tensor: tensor.clone(), accumulate: false })?;
            if self.desc.rows > 0 {
                column_sum(&tensor, 1, self.desc.cols, 1.0, &target)?;
            } else if !target.accumulate {
                target.tensor.zero()?;
            }
        }
        if let Some(target) = sinks.open(X)? {
            product(dy, &self.gate, &target)?;
        }
        Ok(())
    }
}
