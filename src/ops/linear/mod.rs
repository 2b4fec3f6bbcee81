//! The dense linear layer that learns as a whole: classifier heads, linear probes, `modules_to_save`.
//!
//! ```text
//! y = x Wᵀ + b
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x` | `[.., k]`, m rows | f32, f16, bf16 (f64 on the CPU) |
//! | `W` | `[n, k]`, trainable | as x |
//! | `b` | `[n]` | as x |
//! | `y` | `[.., n]` | as x |
//!
//! Backward, with `g = dy`: `dx = g W`, `dW = gᵀ x`, `db = Σ_rows g`. Kept for it: `x` only if W learns.
//! A weight that does not learn belongs into [`frozen_linear`](super::frozen_linear()), which cannot compute `dW`.
//!
//! Cost: `2·m·n·k` floating-point operations forward.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit.

pub(crate) mod cpu;
mod gpu;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::{sum_columns, with_real};
use crate::shape::Dims;
use crate::tensor::Tensor;

const OP: &str = "linear";

/// A validated call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub dtype: DType,
}

impl Desc {
    pub fn new(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let &[n, k] = weight.dims() else {
            return Err(Error::shape(OP, "weight", "[n, k]", weight.dims()));
        };
        if n == 0 || k == 0 {
            return Err(Error::shape(OP, "weight", "[n, k] with n, k ≥ 1", weight.dims()));
        }
        if x.dims().is_empty() || x.cols() != k {
            return Err(Error::shape(OP, "x", format!("[.., {k}] for a weight of [{n}, {k}]"), x.dims()));
        }
        x.require_contiguous(OP, "x")?;
        let operands = [("weight", Some(weight)), ("bias", bias)];
        for (name, tensor) in operands.into_iter().filter_map(|(name, t)| Some((name, t?))) {
            tensor.require_dtype(OP, name, x.dtype())?;
            tensor.require_device(OP, name, x.device())?;
            tensor.require_contiguous(OP, name)?;
        }
        if let Some(bias) = bias {
            bias.require_dims(OP, "bias", &[n])?;
        }
        Ok(Desc { m: x.rows(), n, k, dtype: x.dtype() })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        2 * self.m as u64 * self.n as u64 * self.k as u64
    }

    /// Bytes that the forward pass must move at least.
    pub fn bytes(&self) -> u64 {
        let (m, n, k) = (self.m as u64, self.n as u64, self.k as u64);
        (m * k + n * k + m * n) * self.dtype.size() as u64
    }
}

const X: usize = 0;
const WEIGHT: usize = 1;
const BIAS: usize = 2;

/// `y = x Wᵀ + b`; see the module for shapes and errors.
pub fn linear(tape: &mut Tape, x: &Var, weight: &Var, bias: Option<&Var>) -> Result<Var> {
    let desc = Desc::new(x.tensor(), weight.tensor(), bias.map(Var::tensor))?;
    let mut dims = Dims::from_slice(x.dims());
    if let Some(last) = dims.last_mut() {
        *last = desc.n;
    }
    let y = Tensor::empty(x.tensor().device(), &dims, desc.dtype)?;
    if desc.m > 0 {
        if y.device().is_cpu() {
            let bias = bias.map(Var::tensor);
            with_real!(desc.dtype, OP, T => cpu::forward::<T>(&desc, x.tensor(), weight.tensor(), bias, &y))?;
        } else {
            y.device().run(&gpu::forward(&desc, x.tensor(), weight.tensor(), bias.map(Var::tensor), &y)?)?;
        }
    }
    let none = Var::constant(y.clone());
    Ok(tape.record(y, &[x, weight, bias.unwrap_or(&none)], |wants| Node {
        desc,
        weight: weight.tensor().clone(),
        x: (wants.weights || wants.input(WEIGHT)).then(|| x.save()),
    }))
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    weight: Tensor,
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
        if let (Some(x), Some(target)) = (&self.x, sinks.open(WEIGHT)?) {
            self.weight_gradient(dy, &x.get()?, &target)?;
        }
        if let Some(target) = sinks.open(BIAS)? {
            self.bias_gradient(dy, &target)?;
        }
        if let Some(target) = sinks.open(X)? {
            self.input_gradient(dy, &target)?;
        }
        Ok(())
    }
}

impl Node {
    /// `dW += dyᵀ x`.
    fn weight_gradient(&self, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
        if dy.device().is_cpu() {
            return with_real!(self.desc.dtype, OP, T => cpu::weight_gradient::<T>(&self.desc, dy, x, target));
        }
        gpu::weight_gradient(&self.desc, dy, x, target)
    }

    /// `db += Σ_rows dy`.
    fn bias_gradient(&self, dy: &Tensor, target: &Target) -> Result<()> {
        if dy.device().is_cpu() {
            return with_real!(self.desc.dtype, OP, T => sum_columns::<T>(OP, dy, self.desc.n, target));
        }
        gpu::bias_gradient(&self.desc, dy, target)
    }

    /// `dx (+)= dy W`.
    fn input_gradient(&self, dy: &Tensor, target: &Target) -> Result<()> {
        if dy.device().is_cpu() {
            return with_real!(self.desc.dtype, OP, T => cpu::input_gradient::<T>(&self.desc, dy, &self.weight, target));
        }
        gpu::input_gradient(&self.desc, dy, &self.weight, target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{gradient, normal};

    #[test]
    fn gradients_agree_with_central_differences() {
        let values = |name, len| normal(name, len).into_iter().map(f64::from).collect();
        // Narrow on either side, on both, and on none.
        for (m, n, k) in [(4, 3, 5), (1, 1, 1), (5, 2, 19), (5, 18, 3), (3, 18, 17)] {
            let inputs =
                [(&[m, k][..], values("x", m * k)), (&[n, k][..], values("w", n * k)), (&[n][..], values("b", n))];
            gradient::check(&inputs, None, |tape, v| linear(tape, &v[0], &v[1], Some(&v[2]))).unwrap();
        }
    }
}
