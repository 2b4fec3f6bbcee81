//! One vector for a sequence of tokens.
//!
//! ```text
//! Mean        y[b] = Σ_t x[b, t] / t
//! ClassToken  y[b] = x[b, 0]
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x` | `[b, t, d]`, t ≥ 1 | f32, f16, bf16 (f64 on the CPU) |
//! | `y` | `[b, d]` | as x |
//!
//! Backward: `dx[b, t] = dy[b] / t` for the mean; `dy[b]` at token 0 and 0 elsewhere for the class token. Kept for it: nothing.
//!
//! Cost: `b·t·d` additions (none for the class token); what is pooled is read once.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::NotContiguous`] for an x that does not fit.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::column_sum::column_sum;
use crate::ops::host::with_real;
use crate::ops::scale_add::into_dtype;
use crate::tensor::Tensor;

const OP: &str = "pool";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// Of all tokens.
    Mean,
    /// The first token.
    ClassToken,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub b: usize,
    pub t: usize,
    pub d: usize,
    pub pooling: Pooling,
    pub dtype: DType,
}

impl Desc {
    pub fn new(x: &Tensor, pooling: Pooling) -> Result<Self> {
        let &[b, t, d] = x.dims() else {
            return Err(Error::shape(OP, "x", "[b, t, d]", x.dims()));
        };
        if t == 0 {
            return Err(Error::shape(OP, "x", "[b, t, d] with t ≥ 1", x.dims()));
        }
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        x.require_contiguous(OP, "x")?;
        Ok(Desc { b, t, d, pooling, dtype: x.dtype() })
    }

    fn tokens(&self) -> u64 {
        match self.pooling {
            Pooling::Mean => self.t as u64,
            Pooling::ClassToken => 1,
        }
    }

    /// Factor of every token that counts.
    fn factor(&self) -> f64 {
        1.0 / self.tokens() as f64
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        match self.pooling {
            Pooling::Mean => (self.b * self.t * self.d) as u64,
            Pooling::ClassToken => 0,
        }
    }

    /// Bytes that the forward pass must move at least.
    pub fn bytes(&self) -> u64 {
        (self.b * self.d * self.dtype.size()) as u64 * (self.tokens() + 1)
    }
}

/// `[b, t, d]` to `[b, d]`; see the module for errors.
pub fn pool(tape: &mut Tape, x: &Var, pooling: Pooling) -> Result<Var> {
    let desc = Desc::new(x.tensor(), pooling)?;
    let y = Tensor::empty(x.tensor().device(), &[desc.b, desc.d], desc.dtype)?;
    forward(&desc, x.tensor(), &y)?;
    Ok(tape.record(y, &[x], |_| Node { desc }))
}

fn forward(desc: &Desc, x: &Tensor, y: &Tensor) -> Result<()> {
    if desc.b * desc.d == 0 {
        return Ok(());
    }
    if desc.pooling == Pooling::Mean {
        let target = Target { tensor: y.clone(), accumulate: false };
        return column_sum(x, desc.b, desc.d, desc.factor(), &target);
    }
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::first_token::<T>(desc, x, y));
    }
    x.device().run(&gpu::first_token(desc, x, y)?)
}

fn backward(desc: &Desc, dy: &Tensor, target: &Target) -> Result<()> {
    if desc.b * desc.d == 0 {
        return Ok(());
    }
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::backward::<T>(desc, dy, target));
    }
    into_dtype(target, desc.dtype, |target| dy.device().run(&gpu::backward(desc, dy, target)?))
}

#[derive(Debug)]
struct Node {
    desc: Desc,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        Vec::new()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        match sinks.open(0)? {
            Some(target) => backward(&self.desc, dy, &target),
            None => Ok(()),
        }
    }
}
