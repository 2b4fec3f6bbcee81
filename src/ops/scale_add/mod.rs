//! Add and scale with residual, and what is made of the same kernel: scaling alone, and adding one tensor to another.
//!
//! ```text
//! scale_add:  y = x + s · z        scale:  y = s · x        accumulate:  target (+)= source
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x`, `y` | `[outer.., inner..]` | f32, f16, bf16 (f64 on the CPU) |
//! | `z` | `[inner..]`: the trailing dimensions of x, or all of them | as x |
//!
//! Backward: `dx = dy`, handed on without a copy where nothing else flows into x; `dz = s · Σ_outer dy`, in a fixed order.
//! Kept for it: nothing.
//!
//! Cost: `2·numel` floating-point operations; x and z are read and y written once.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a scale that is not finite.

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

const OP: &str = "scale_add";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    /// How often z is repeated.
    pub outer: usize,
    /// Elements of z.
    pub inner: usize,
    pub scale: f64,
    pub dtype: DType,
}

impl Desc {
    pub fn new(x: &Tensor, z: &Tensor, scale: f64) -> Result<Self> {
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        if !x.dims().ends_with(z.dims()) {
            let expected = format!("{:?} or trailing dimensions of it", x.dims());
            return Err(Error::shape(OP, "z", expected, z.dims()));
        }
        z.require_dtype(OP, "z", x.dtype())?;
        z.require_device(OP, "z", x.device())?;
        x.require_contiguous(OP, "x")?;
        z.require_contiguous(OP, "z")?;
        require_finite(scale)?;
        let inner = z.numel();
        // An empty z belongs to an empty x.
        Ok(Desc { outer: x.numel() / inner.max(1), inner, scale, dtype: x.dtype() })
    }

    pub fn numel(&self) -> usize {
        self.outer * self.inner
    }

    pub fn flops(&self) -> u64 {
        2 * self.numel() as u64
    }

    /// Bytes that the forward pass must move at least.
    pub fn bytes(&self) -> u64 {
        (2 * self.numel() as u64 + self.inner as u64) * self.dtype.size() as u64
    }
}

fn require_finite(scale: f64) -> Result<()> {
    if scale.is_finite() { Ok(()) } else { Err(Error::value(OP, "scale", "a finite number", scale)) }
}

/// Positions of the inputs on the tape.
const X: usize = 0;
const Z: usize = 1;

/// `y = x + s · z`; z may lack leading dimensions of x. See the module for shapes and errors.
pub fn scale_add(tape: &mut Tape, x: &Var, z: &Var, s: f64) -> Result<Var> {
    let desc = Desc::new(x.tensor(), z.tensor(), s)?;
    let y = Tensor::empty(x.tensor().device(), x.dims(), desc.dtype)?;
    run(&desc, Some(x.tensor()), z.tensor(), &y)?;
    Ok(tape.record(y, &[x, z], |_| Node { desc }))
}

/// `y = s · x`; see the module for errors.
pub fn scale(tape: &mut Tape, x: &Var, s: f64) -> Result<Var> {
    let desc = Desc::new(x.tensor(), x.tensor(), s)?;
    let y = Tensor::empty(x.tensor().device(), x.dims(), desc.dtype)?;
    run(&desc, None, x.tensor(), &y)?;
    Ok(tape.record(y, &[x], |_| Scaled { desc }))
}

/// `target (+)= source`, rounded once into the target's dtype.
pub(crate) fn accumulate(target: &Target, source: &Tensor) -> Result<()> {
    add_scaled(target, source, 1.0)
}

/// `target (+)= s · source`.
pub(crate) fn add_scaled(target: &Target, source: &Tensor, s: f64) -> Result<()> {
    source.require_contiguous(OP, "source")?;
    if target.tensor.numel() != source.numel() {
        return Err(Error::shape(OP, "source", format!("{:?}", target.tensor.dims()), source.dims()));
    }
    target.tensor.require_device(OP, "target", source.device())?;
    let narrows = source.dtype() == DType::F32 && target.tensor.dtype() != DType::F32;
    if narrows && !source.device().is_cpu() {
        // The one kernel that rounds sums in f32 into a narrower target, here of one row.
        return column_sum(source, 1, source.numel(), s, target);
    }
    let desc = Desc { outer: 1, inner: source.numel(), scale: s, dtype: source.dtype() };
    run(&desc, target.accumulate.then_some(&target.tensor), source, &target.tensor)
}

/// For kernels that write one dtype alone: gives `write` the target if it has `dtype`, else a tensor that has, which is then added
/// to the target.
pub(crate) fn into_dtype(target: &Target, dtype: DType, write: impl FnOnce(&Target) -> Result<()>) -> Result<()> {
    if target.tensor.dtype() == dtype {
        return write(target);
    }
    let tensor = Tensor::empty(target.tensor.device(), target.tensor.dims(), dtype)?;
    let own = Target { tensor, accumulate: false };
    write(&own)?;
    accumulate(target, &own.tensor)
}

/// `y = base + s · z`; y may be base itself.
fn run(desc: &Desc, base: Option<&Tensor>, z: &Tensor, y: &Tensor) -> Result<()> {
    if desc.numel() == 0 {
        return Ok(());
    }
    if z.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::run::<T>(desc, base, z, y));
    }
    z.device().run(&gpu::run(desc, base, z, y)?)
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
        let Desc { outer, inner, scale, .. } = self.desc;
        if !sinks.pass(X, dy)
            && let Some(target) = sinks.open(X)?
        {
            accumulate(&target, dy)?;
        }
        let whole = outer == 1 && scale == 1.0;
        if whole && sinks.pass(Z, dy) {
            return Ok(());
        }
        let Some(target) = sinks.open(Z)? else { return Ok(()) };
        match outer {
            1 => add_scaled(&target, dy, scale),
            _ => column_sum(dy, 1, inner, scale, &target),
        }
    }
}

#[derive(Debug)]
struct Scaled {
    desc: Desc,
}

impl Recorded for Scaled {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn saved(&self) -> Vec<&Saved> {
        Vec::new()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        match sinks.open(X)? {
            Some(target) => add_scaled(&target, dy, self.desc.scale),
            None => Ok(()),
        }
    }
}
