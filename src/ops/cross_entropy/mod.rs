//! Cross-entropy from logits, with ignored targets, label smoothing and a denominator of the caller's.
//!
//! ```text
//! L_i  = ln Σ_j exp(x_ij)
//! loss = 1/N · Σ_i [ (1 − ε)(L_i − x_i,y_i) + ε/c · Σ_j (L_i − x_ij) ]        over rows whose target is not ignored
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `logits` | `[.., c]`, m rows | f32, f16, bf16 (f64 on the CPU) |
//! | `targets` | the logits' shape without c | i64 or i32 |
//! | loss | `[1]` | f32 (f64 for f64) |
//!
//! N is the number of targets that are not ignored, or `denominator`: the count over all micro-batches of a step, so that their
//! gradients add up to the gradient of the whole batch's mean. With no target left, the loss is 0 and so is the gradient.
//!
//! A target outside `0..c` is an error on the CPU that names its row. A GPU reads nothing out of bounds for it: the loss, and
//! that row's gradient, are NaN. Rows that are ignored are not looked at, whatever they hold.
//!
//! Backward: `dx_ij = dloss / N · (exp(x_ij − L_i) − (1 − ε)·[j = y_i] − ε/c)`, in one pass over the logits; 0 in ignored rows.
//! Kept for it: the logits, the targets, `L [m]` and `1/N`, f32. The softmax is not kept.
//!
//! Label smoothing after Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016.
//!
//! Cost: one pass over the logits forward, one backward, in about 4·m·c operations each. Sums have a fixed order.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a smoothing outside [0, 1], a denominator of 0, or (on the CPU) a target outside `0..c`.

mod cpu;
pub mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::tensor::Tensor;

const OP: &str = "cross_entropy";

#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropyOptions {
    /// Rows with this target count for nothing.
    pub ignore_index: Option<i64>,
    /// ε in [0, 1].
    pub label_smoothing: f64,
    /// What the sum of the losses is divided by, instead of the number of targets that are not ignored.
    pub denominator: Option<u64>,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub m: usize,
    /// Classes.
    pub c: usize,
    pub dtype: DType,
    pub target_dtype: DType,
    pub ignore_index: Option<i64>,
    pub label_smoothing: f64,
    pub denominator: Option<u64>,
}

impl Desc {
    pub fn new(logits: &Tensor, targets: &Tensor, options: &CrossEntropyOptions) -> Result<Self> {
        let c = match logits.dims().last() {
            Some(&c) if c > 0 => c,
            _ => return Err(Error::shape(OP, "logits", "[.., c] with c ≥ 1", logits.dims())),
        };
        if !logits.dtype().is_float() {
            let expected = "a float type".into();
            return Err(Error::DType { op: OP, argument: "logits", expected, got: logits.dtype() });
        }
        if !matches!(targets.dtype(), DType::I32 | DType::I64) {
            let expected = "i32 or i64".into();
            return Err(Error::DType { op: OP, argument: "targets", expected, got: targets.dtype() });
        }
        targets.require_dims(OP, "targets", &logits.dims()[..logits.dims().len() - 1])?;
        targets.require_device(OP, "targets", logits.device())?;
        logits.require_contiguous(OP, "logits")?;
        targets.require_contiguous(OP, "targets")?;
        if !(0.0..=1.0).contains(&options.label_smoothing) {
            return Err(Error::value(OP, "label_smoothing", "a number in [0, 1]", options.label_smoothing));
        }
        if options.denominator == Some(0) {
            return Err(Error::value(OP, "denominator", "at least 1", 0));
        }
        Ok(Desc {
            m: logits.rows(),
            c,
            dtype: logits.dtype(),
            target_dtype: targets.dtype(),
            ignore_index: options.ignore_index,
            label_smoothing: options.label_smoothing,
            denominator: options.denominator,
        })
    }

    /// Floating-point operations of the forward pass, an exponential counted as one.
    pub fn flops(&self) -> u64 {
        4 * self.m as u64 * self.c as u64
    }

    /// Bytes that the forward pass must move at least: the logits once.
    pub fn bytes(&self) -> u64 {
        (self.m * self.c * self.dtype.size() + self.m * self.target_dtype.size()) as u64
    }
}

/// The loss, `[1]`; see the module for its definition, and for targets that are ignored or out of range.
pub fn cross_entropy(tape: &mut Tape, logits: &Var, targets: &Tensor, options: &CrossEntropyOptions) -> Result<Var> {
    let desc = Desc::new(logits.tensor(), targets, options)?;
    let device = logits.tensor().device();
    let kept = desc.dtype.accumulator();
    let loss = Tensor::empty(device, &[1], kept)?;
    let statistics =
        Statistics { lse: Tensor::empty(device, &[desc.m], kept)?, inverse: Tensor::empty(device, &[1], kept)? };
    forward(&desc, logits.tensor(), targets, &statistics, &loss)?;
    Ok(tape.record(loss, &[logits], |_| Node {
        desc,
        logits: logits.save(),
        targets: Saved::Held(targets.clone()),
        lse: Saved::Held(statistics.lse),
        inverse: Saved::Held(statistics.inverse),
    }))
}

/// What forward finds out and backward needs.
pub(crate) struct Statistics {
    /// `[m]`, ln Σ exp of each row; unspecified where the target is ignored.
    pub lse: Tensor,
    /// `[1]`, 1/N; 0 if no target is left.
    pub inverse: Tensor,
}

fn forward(desc: &Desc, logits: &Tensor, targets: &Tensor, statistics: &Statistics, loss: &Tensor) -> Result<()> {
    if loss.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, logits, targets, statistics, loss));
    }
    if desc.m == 0 {
        statistics.inverse.zero()?;
        return loss.zero();
    }
    let losses = Tensor::empty(loss.device(), &[desc.m], DType::F32)?;
    loss.device().run(&gpu::forward(desc, logits, targets, statistics, &losses, loss)?)
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    logits: Saved,
    targets: Saved,
    lse: Saved,
    inverse: Saved,
}

const LOGITS: usize = 0;

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        vec![&self.logits, &self.targets, &self.lse, &self.inverse]
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let (logits, targets) = (self.logits.get()?, self.targets.get()?);
        let statistics = Statistics { lse: self.lse.get()?, inverse: self.inverse.get()? };
        let Some(target) = sinks.open(LOGITS)? else { return Ok(()) };
        backward(&self.desc, &logits, &targets, &statistics, dy, &target)
    }
}

fn backward(
    desc: &Desc,
    logits: &Tensor,
    targets: &Tensor,
    statistics: &Statistics,
    dy: &Tensor,
    target: &Target,
) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::backward::<T>(desc, logits, targets, statistics, dy, target));
    }
    dy.device().run(&gpu::backward(desc, logits, targets, statistics, dy, target)?)
}
