//! The elementwise product: the gate of a gated feed-forward.
//!
//! ```text
//! y = x ⊙ z
//! ```
//!
//! `x`, `z` and `y`: one shape, f32, f16, bf16 (f64 on the CPU).
//! Backward: `dx = dy ⊙ z`, `dz = dy ⊙ x`. Kept for it: z if x wants a gradient, x if z does.
//!
//! Cost: one multiplication an element; x and z are read and y written once.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`],
//! [`Error::NotContiguous`] for operands that do not fit.

#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::column_gate::product;
use crate::tensor::Tensor;

const OP: &str = "multiply";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub n: usize,
    pub dtype: DType,
}

impl Desc {
    pub fn new(x: &Tensor, z: &Tensor) -> Result<Self> {
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        z.require_dims(OP, "z", x.dims())?;
        z.require_dtype(OP, "z", x.dtype())?;
        z.require_device(OP, "z", x.device())?;
        x.require_contiguous(OP, "x")?;
        z.require_contiguous(OP, "z")?;
        Ok(Desc { n: x.numel(), dtype: x.dtype() })
    }

    pub fn flops(&self) -> u64 {
        self.n as u64
    }

    /// Bytes that the forward pass must move at least.
    pub fn bytes(&self) -> u64 {
        3 * (self.n * self.dtype.size()) as u64
    }
}

/// Positions of the inputs on the tape.
const X: usize = 0;
const Z: usize = 1;

/// `y = x ⊙ z`; see the module for shapes and errors.
pub fn multiply(tape: &mut Tape, x: &Var, z: &Var) -> Result<Var> {
    let desc = Desc::new(x.tensor(), z.tensor())?;
    let y = Tensor::empty(x.tensor().device(), x.dims(), desc.dtype)?;
    product(x.tensor(), z.tensor(), &Target { tensor: y.clone(), accumulate: false })?;
    Ok(tape.record(y, &[x, z], |wants| Node {
        x: (wants.weights || wants.input(Z)).then(|| x.save()),
        z: (wants.weights || wants.input(X)).then(|| z.save()),
    }))
}

#[derive(Debug)]
struct Node {
    x: Option<Saved>,
    z: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.x.iter().chain(&self.z).collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        for (input, factor) in [(X, &self.z), (Z, &self.x)] {
            let (Some(factor), Some(target)) = (factor, sinks.open(input)?) else { continue };
            product(dy, &factor.get()?, &target)?;
        }
        Ok(())
    }
}
