//! Elementwise activations.
//!
//! ```text
//! Relu       max(x, 0)
//! Gelu       x · Φ(x),  Φ(x) = (1 + erf(x/√2)) / 2
//! GeluTanh   x · (1 + tanh(√(2/π) · (x + 0.044715·x³))) / 2
//! QuickGelu  x · σ(1.702·x)
//! Silu       x · σ(x),  σ(x) = 1 / (1 + e⁻ˣ)
//! ```
//!
//! `x` and `y`: any shape, f32, f16, bf16 (f64 on the CPU).
//! Backward: `dx = f'(x) ⊙ dy`. Kept for it: x. y carries a recipe, so that who saves y keeps x instead.
//!
//! Sources: Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016 (exact, tanh and sigmoid forms); Elfwing, Uchibe and Doya,
//! "Sigmoid-weighted linear units", 2017.
//!
//! Cost: x is read and y written once; some ten to thirty floating-point operations an element.
//! Errors: [`Error::DType`], [`Error::NotContiguous`].

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::autograd::{Recompute, Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::ops::scale_add::into_dtype;
use crate::tensor::Tensor;

const OP: &str = "activation";

/// Which function. The order is that of `enum Activation` in `kernels/tile/activation.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Activation {
    Relu,
    /// With the error function.
    Gelu,
    /// With the tanh approximation.
    GeluTanh,
    QuickGelu,
    Silu,
}

impl Activation {
    pub const ALL: [Activation; 5] =
        [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu];

    pub const fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::QuickGelu => "quick_gelu",
            Activation::Silu => "silu",
        }
    }

    /// How a product's kernel knows the function; 0 is none.
    pub(crate) const fn code(self) -> u32 {
        1 + self as u32
    }

    /// Floating-point operations of one element, roughly: an exponential counts as ten.
    const fn flops(self) -> u64 {
        match self {
            Activation::Relu => 1,
            Activation::Gelu => 30,
            Activation::GeluTanh => 22,
            Activation::QuickGelu | Activation::Silu => 14,
        }
    }
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub n: usize,
    pub activation: Activation,
    pub dtype: DType,
}

impl Desc {
    pub fn new(x: &Tensor, activation: Activation) -> Result<Self> {
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        x.require_contiguous(OP, "x")?;
        Ok(Desc { n: x.numel(), activation, dtype: x.dtype() })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        self.activation.flops() * self.n as u64
    }

    /// Bytes that the forward pass must move at least.
    pub fn bytes(&self) -> u64 {
        2 * (self.n * self.dtype.size()) as u64
    }
}

/// `y = f(x)`, elementwise; see the module for the functions.
pub fn activation(tape: &mut Tape, x: &Var, activation: Activation) -> Result<Var> {
    let y = apply(activation, x.tensor())?;
    record(tape, x, activation, y)
}

/// `f(x)`, without a tape.
pub(crate) fn apply(activation: Activation, x: &Tensor) -> Result<Tensor> {
    let desc = Desc::new(x, activation)?;
    let y = Tensor::empty(x.device(), x.dims(), desc.dtype)?;
    forward(&desc, x, &y)?;
    Ok(y)
}

/// `y = f(x)` that has been computed already.
pub(crate) fn record(tape: &mut Tape, x: &Var, activation: Activation, y: Tensor) -> Result<Var> {
    let kept = Kept { desc: Desc::new(x.tensor(), activation)?, x: x.save() };
    let out = tape.record(y, &[x], |_| kept.clone());
    Ok(if x.needs_grad() && tape.may_recompute() { out.with_recipe(Arc::new(kept)) } else { out })
}

/// `y` may be x itself on a GPU.
pub(crate) fn forward(desc: &Desc, x: &Tensor, y: &Tensor) -> Result<()> {
    if desc.n == 0 {
        return Ok(());
    }
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, x, y));
    }
    x.device().run(&gpu::forward(desc, x, y)?)
}

/// `dx (+)= f'(x) ⊙ dy`.
pub(crate) fn backward(desc: &Desc, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    if desc.n == 0 {
        return Ok(());
    }
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::backward::<T>(desc, dy, x, target));
    }
    into_dtype(target, desc.dtype, |target| x.device().run(&gpu::backward(desc, dy, x, target)?))
}

/// The node, and the recipe of y.
#[derive(Clone, Debug)]
struct Kept {
    desc: Desc,
    x: Saved,
}

impl Recompute for Kept {
    fn recompute(&self) -> Result<Tensor> {
        apply(self.desc.activation, &self.x.get()?)
    }

    fn holds(&self) -> Vec<&Tensor> {
        self.x.holds()
    }
}

impl Recorded for Kept {
    fn name(&self) -> &'static str {
        self.desc.activation.name()
    }

    fn saved(&self) -> Vec<&Saved> {
        vec![&self.x]
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        match sinks.open(0)? {
            Some(target) => backward(&self.desc, dy, &self.x.get()?, &target),
            None => Ok(()),
        }
    }
}
