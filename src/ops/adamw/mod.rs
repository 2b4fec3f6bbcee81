//! AdamW over one flat buffer of parameters: one launch, or two when the gradient is clipped or its norm measured.
//!
//! ```text
//! g ← g · min(1, c / (‖g‖ + 1e-6))                        with clipping at c
//! p ← p · (1 − η·λ)                                       decoupled weight decay λ
//! m ← m + (1 − β₁)(g − m)      v ← β₂·v + (1 − β₂)·g²
//! p ← p − η / (1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//! g ← 0                                                   if asked for
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | parameters `p`, gradient `g`, moments `m`, `v` | `[n]` | f32 (f64 on the CPU) |
//! | working copy of `p`, written in the same pass | `[n]` | f16 or bf16, or absent |
//! | ‖g‖ over all n, before clipping | `[1]` | as p |
//!
//! Up to eight groups of parameters have their own learning rate `η = lr · multiplier` and decay `λ`. ‖g‖² is the sum of at most
//! 1024 partial sums of equally long pieces, added in an order that n alone decides.
//!
//! Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019; the order of operations and the place of ε are
//! those of `torch.optim.AdamW`, the clipping that of `torch.nn.utils.clip_grad_norm_`.
//!
//! Cost: about `16·n` floating-point operations; p, m, v are read and written and g is read once (twice with clipping, and
//! written if it is zeroed).
//! Errors: [`Error::Value`] for numbers outside their range, [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`],
//! [`Error::NotContiguous`] for buffers that do not fit.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

const OP: &str = "adamw";

/// Most groups of one step: they travel to the kernel by value.
pub const MAX_GROUPS: usize = 8;

/// Parameters `previous group's end .. end` of the flat buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    pub end: usize,
    /// Multiplies the step's learning rate.
    pub lr_multiplier: f64,
    pub weight_decay: f64,
}

/// One step, as the caller asks for it.
#[derive(Clone, Debug, PartialEq)]
pub struct AdamWStep<'a> {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Counted from 1.
    pub step: u64,
    /// Largest norm of the whole gradient.
    pub clip: Option<f64>,
    /// Measure the norm even without clipping.
    pub measure_norm: bool,
    /// Leave the gradient zeroed for the next accumulation.
    pub zero_grads: bool,
    /// In ascending order; the last ends where the buffer does.
    pub groups: &'a [Group],
}

/// What a step reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    pub params: &'a Tensor,
    /// The copy that the forward pass reads. May be `params` itself.
    pub working: Option<&'a Tensor>,
    pub grads: &'a Tensor,
    pub m: &'a Tensor,
    pub v: &'a Tensor,
    pub scratch: &'a Scratch,
}

/// Room for the norm of the gradient, made once for a run.
#[derive(Clone, Debug)]
pub struct Scratch {
    partials: Tensor,
    norm: Tensor,
}

/// Most partial sums of the norm.
const PARTIALS: usize = 1024;
/// Pieces are multiples of this many elements.
const PIECE: usize = 1024;

impl Scratch {
    /// For parameters of `dtype` (f32 or f64) on `device`.
    pub fn new(device: &Device, dtype: DType) -> Result<Self> {
        let partials = Tensor::zeros(device, &[PARTIALS], dtype)?;
        Ok(Scratch { partials, norm: Tensor::zeros(device, &[1], dtype)? })
    }

    /// `[1]`: the norm of the last step's gradient before clipping, where that step clipped or measured; else what it was before.
    pub fn norm(&self) -> &Tensor {
        &self.norm
    }
}

/// What one group's parameters are multiplied by, and their step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub end: usize,
    /// `1 − η·λ`
    pub keep: f64,
    /// `η / (1 − β₁ᵗ)`
    pub step: f64,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub n: usize,
    pub dtype: DType,
    /// Of the working copy, where there is one to write.
    pub working: Option<DType>,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// `√(1 − β₂ᵗ)`
    pub root_correction: f64,
    pub clip: Option<f64>,
    pub measure_norm: bool,
    pub zero_grads: bool,
    pub groups: usize,
    pub rates: [Rates; MAX_GROUPS],
}

impl Desc {
    pub fn new(step: &AdamWStep, buffers: &Buffers) -> Result<Self> {
        let (n, dtype) = (buffers.params.numel(), buffers.params.dtype());
        if !matches!(dtype, DType::F32 | DType::F64) {
            return Err(Error::DType { op: OP, argument: "params", expected: "f32 or f64".into(), got: dtype });
        }
        let device = buffers.params.device();
        let own = [
            ("params", buffers.params, n),
            ("grads", buffers.grads, n),
            ("m", buffers.m, n),
            ("v", buffers.v, n),
            ("scratch", &buffers.scratch.norm, 1),
        ];
        for (name, tensor, len) in own {
            tensor.require_dims(OP, name, &[len])?;
            tensor.require_dtype(OP, name, dtype)?;
            tensor.require_device(OP, name, device)?;
            tensor.require_contiguous(OP, name)?;
        }
        // The master itself needs no second writing.
        let working = buffers.working.filter(|w| w.buffer().id() != buffers.params.buffer().id());
        if let Some(working) = working {
            working.require_dims(OP, "working", &[n])?;
            working.require_device(OP, "working", device)?;
            working.require_contiguous(OP, "working")?;
            if dtype != DType::F32 || !matches!(working.dtype(), DType::F16 | DType::BF16) {
                let expected = "f16 or bf16 beside f32 parameters".into();
                return Err(Error::DType { op: OP, argument: "working", expected, got: working.dtype() });
            }
        }
        let mut desc = Desc {
            n,
            dtype,
            working: working.map(Tensor::dtype),
            beta1: step.beta1,
            beta2: step.beta2,
            eps: step.eps,
            root_correction: 0.0,
            clip: step.clip,
            measure_norm: step.measure_norm || step.clip.is_some(),
            zero_grads: step.zero_grads,
            groups: step.groups.len(),
            rates: [Rates::default(); MAX_GROUPS],
        };
        desc.take_numbers(step)?;
        Ok(desc)
    }

    fn take_numbers(&mut self, step: &AdamWStep) -> Result<()> {
        let not_negative = |name, value: f64| hold(name, value, value >= 0.0 && value.is_finite(), "finite, 0 or more");
        not_negative("lr", step.lr)?;
        hold("beta1", step.beta1, (0.0..1.0).contains(&step.beta1), "in [0, 1)")?;
        hold("beta2", step.beta2, (0.0..1.0).contains(&step.beta2), "in [0, 1)")?;
        // An ε that vanishes in f32 would let 0 / 0 through.
        let smallest = if self.dtype == DType::F32 { f64::from(f32::MIN_POSITIVE) } else { f64::MIN_POSITIVE };
        hold("eps", step.eps, step.eps >= smallest && step.eps.is_finite(), "finite and above 0")?;
        if let Some(clip) = step.clip {
            hold("clip", clip, clip >= smallest && clip.is_finite(), "finite and above 0")?;
        }
        if step.step == 0 {
            return Err(Error::value(OP, "step", "1 or more", step.step));
        }
        if step.groups.is_empty() || step.groups.len() > MAX_GROUPS {
            return Err(Error::value(OP, "groups", format!("1 to {MAX_GROUPS} of them"), step.groups.len()));
        }
        let t = step.step as f64;
        let correction = 1.0 - step.beta1.powf(t);
        self.root_correction = (1.0 - step.beta2.powf(t)).sqrt();
        let mut begin = 0;
        for (group, rates) in step.groups.iter().zip(&mut self.rates) {
            not_negative("lr_multiplier", group.lr_multiplier)?;
            not_negative("weight_decay", group.weight_decay)?;
            if group.end < begin {
                return Err(Error::value(
                    OP,
                    "groups",
                    "ends in ascending order",
                    format!("{} after {begin}", group.end),
                ));
            }
            begin = group.end;
            let lr = step.lr * group.lr_multiplier;
            *rates = Rates { end: group.end, keep: 1.0 - lr * group.weight_decay, step: lr / correction };
        }
        if begin != self.n {
            return Err(Error::value(OP, "groups", format!("a last end of {}", self.n), begin));
        }
        Ok(())
    }

    pub fn flops(&self) -> u64 {
        let norm = if self.measure_norm { 2 } else { 0 };
        (16 + norm) * self.n as u64
    }

    /// Bytes that must move at least.
    pub fn bytes(&self) -> u64 {
        let passes = 7 + u64::from(self.zero_grads) + u64::from(self.measure_norm);
        let working = self.working.map_or(0, DType::size) as u64;
        self.n as u64 * (passes * self.dtype.size() as u64 + working)
    }

    /// Elements that one partial sum of the norm covers.
    fn piece(&self) -> usize {
        self.n.div_ceil(PARTIALS).next_multiple_of(PIECE)
    }

    /// Partial sums of the norm.
    fn partials(&self) -> usize {
        self.n.div_ceil(self.piece().max(1))
    }
}

fn hold(argument: &'static str, value: f64, holds: bool, expected: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::value(OP, argument, format!("a number {expected}"), value)) }
}

/// Takes one step; see the module for the formula, shapes and errors.
pub fn step(step: &AdamWStep, buffers: &Buffers) -> Result<()> {
    let desc = Desc::new(step, buffers)?;
    if desc.n == 0 {
        return if desc.measure_norm { buffers.scratch.norm.zero() } else { Ok(()) };
    }
    let device = buffers.params.device();
    if !device.is_cpu() {
        return device.run(&gpu::step(&desc, buffers)?);
    }
    match desc.dtype {
        DType::F64 => cpu::step::<f64>(&desc, buffers),
        _ => cpu::step::<f32>(&desc, buffers),
    }
}
