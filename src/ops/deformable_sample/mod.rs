//! Multi-scale deformable sampling: every head of every query looks at a few places of several maps, which it chooses itself.
//!
//! ```text
//! a       = softmax over the l·p samples of a head of logits
//! (x, y)  = reference · (W_l, H_l) + Δ − ½                                  in cells of map l
//! o       = Σ_{l, p} a · bilinear(V_l, x, y)                                 cells outside a map count as 0
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `V` | `[b, s, h·d]`: the maps' cells among s tokens | f32, f16, bf16 (f64 on the CPU) |
//! | Δ | `[b, q, h·l·p·2]`, x before y, in cells | as V |
//! | logits | `[b, q, h·l·p]`, l·p ≤ 32 | as V |
//! | references | `[q, 2]`, x before y, from 0 to 1 | f32 (f64 for f64), no gradient |
//! | `o` | `[b, q, h·d]` | as V |
//!
//! A map ([`Level`]) is `height · width` tokens of V in rows, from a first one on; tokens of no map get no gradient. Softmax, places and sums are in f32.
//! Backward, with `g_s = Σ_c do_c · V_s,c` of a sample: `dlogits = a ⊙ (g − Σ a·g)`, `dΔ = a · ∂g/∂(x, y)`, and `dV` collects
//! `a · bilinear weight · do` of all samples that touch a cell, in the order of queries, then points: no atomics, so two runs give the
//! same bits. Kept for it: V, Δ and logits.
//!
//! Cost: about `12·b·q·h·l·p·d` floating-point operations forward; limited by gathering four cells a sample.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for no map, more than 8, or more than 32 samples a head; maps that overlap or reach beyond the tokens.
//!
//! Source: Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", 2021, with `align_corners = false`
//! and zeros beyond the border.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::tensor::Tensor;

const OP: &str = "deformable_sample";

/// Most maps.
pub const MAX_LEVELS: usize = 8;
/// Most samples of a head: a lane each.
pub const MAX_SAMPLES: usize = 32;

/// One map among the tokens of V.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub height: usize,
    pub width: usize,
    /// Its first token.
    pub first: usize,
}

impl Level {
    fn end(&self) -> Option<usize> {
        self.height.checked_mul(self.width)?.checked_add(self.first)
    }
}

/// What is sampled, and where.
#[derive(Clone, Copy, Debug)]
pub struct Sampling<'a> {
    /// `[b, s, h·d]`
    pub value: &'a Var,
    /// `[b, q, h·l·p·2]`
    pub offsets: &'a Var,
    /// `[b, q, h·l·p]`
    pub logits: &'a Var,
    /// `[q, 2]`
    pub references: &'a Tensor,
    /// In ascending order of their tokens.
    pub levels: &'a [Level],
    pub heads: usize,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub b: usize,
    pub q: usize,
    pub s: usize,
    pub heads: usize,
    /// Of a head.
    pub d: usize,
    pub levels: [Level; MAX_LEVELS],
    /// How many of them there are.
    pub l: usize,
    pub points: usize,
    pub dtype: DType,
}

impl Desc {
    pub fn new(sampling: &Sampling) -> Result<Self> {
        let Sampling { value, offsets, logits, references, levels, heads } = *sampling;
        let (value, offsets, logits) = (value.tensor(), offsets.tensor(), logits.tensor());
        let &[b, s, width] = value.dims() else {
            return Err(Error::shape(OP, "value", "[b, s, h·d]", value.dims()));
        };
        if !value.dtype().is_float() {
            let expected = "a float type".into();
            return Err(Error::DType { op: OP, argument: "value", expected, got: value.dtype() });
        }
        if heads == 0 || width == 0 || !width.is_multiple_of(heads) {
            return Err(Error::value(OP, "heads", format!("a divisor of {width} features"), heads));
        }
        let l = levels.len();
        if l == 0 || l > MAX_LEVELS {
            return Err(Error::value(OP, "levels", format!("1 to {MAX_LEVELS} maps"), l));
        }
        let mut free = 0;
        for level in levels {
            let end = level.end().filter(|&end| level.height * level.width > 0 && level.first >= free && end <= s);
            let expected = || format!("maps of 1 cell or more, one after the other among {s} tokens");
            free = end.ok_or_else(|| Error::value(OP, "levels", expected(), format!("{level:?}")))?;
        }
        // Tokens, and cells beyond a border, are counted in 32 bits.
        if i32::try_from(s).map_or(true, |s| s > i32::MAX / 4) {
            return Err(Error::SizeOverflow { op: OP, dims: value.dims().to_vec() });
        }
        let each = heads * l;
        let (q, points) = match logits.dims() {
            &[other, q, samples] if other == b && samples > 0 && samples.is_multiple_of(each) => (q, samples / each),
            _ => return Err(Error::shape(OP, "logits", format!("[{b}, q, p·{each}]"), logits.dims())),
        };
        if l * points > MAX_SAMPLES {
            return Err(Error::value(OP, "logits", format!("at most {MAX_SAMPLES} samples a head"), l * points));
        }
        offsets.require_dims(OP, "offsets", &[b, q, 2 * each * points])?;
        references.require_dims(OP, "references", &[q, 2])?;
        references.require_dtype(OP, "references", value.dtype().accumulator())?;
        for (name, tensor) in [("offsets", offsets), ("logits", logits)] {
            tensor.require_dtype(OP, name, value.dtype())?;
        }
        for (name, tensor) in [("value", value), ("offsets", offsets), ("logits", logits), ("references", references)] {
            tensor.require_device(OP, name, value.device())?;
            tensor.require_contiguous(OP, name)?;
        }
        let mut all = [Level::default(); MAX_LEVELS];
        all[..l].copy_from_slice(levels);
        Ok(Desc { b, q, s, heads, d: width / heads, levels: all, l, points, dtype: value.dtype() })
    }

    /// Samples of a head.
    fn samples(&self) -> usize {
        self.l * self.points
    }

    /// Numbers of a token.
    fn width(&self) -> usize {
        self.heads * self.d
    }

    pub fn flops(&self) -> u64 {
        12 * (self.b * self.q * self.samples()) as u64 * self.width() as u64
    }

    /// Bytes that the forward pass must move at least.
    pub fn bytes(&self) -> u64 {
        let queries = (self.b * self.q) as u64;
        let each = self.width() as u64 + 3 * (self.heads * self.samples()) as u64;
        (queries * each + (self.b * self.s) as u64 * self.width() as u64) * self.dtype.size() as u64
    }
}

/// Positions of the inputs on the tape.
const VALUE: usize = 0;
const OFFSETS: usize = 1;
const LOGITS: usize = 2;

/// `Σ a · bilinear(V, x, y)`; see the module for shapes and errors.
pub fn deformable_sample(tape: &mut Tape, sampling: &Sampling) -> Result<Var> {
    let desc = Desc::new(sampling)?;
    let Sampling { value, offsets, logits, references, .. } = *sampling;
    let o = Tensor::empty(value.tensor().device(), &[desc.b, desc.q, desc.width()], desc.dtype)?;
    let operands = Operands { value: value.tensor(), offsets: offsets.tensor(), logits: logits.tensor(), references };
    if o.numel() > 0 {
        if o.device().is_cpu() {
            with_real!(desc.dtype, OP, T => cpu::forward::<T>(&desc, &operands, &o))?;
        } else {
            o.device().run(&gpu::forward(&desc, &operands, &o)?)?;
        }
    }
    let references = references.clone();
    Ok(tape.record(o, &[value, offsets, logits], |_| Node {
        desc,
        value: value.save(),
        offsets: offsets.save(),
        logits: logits.save(),
        references,
    }))
}

/// What is read to sample.
struct Operands<'a> {
    value: &'a Tensor,
    offsets: &'a Tensor,
    logits: &'a Tensor,
    references: &'a Tensor,
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    value: Saved,
    offsets: Saved,
    logits: Saved,
    references: Tensor,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        vec![&self.value, &self.offsets, &self.logits]
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let (value, offsets, logits) = (self.value.get()?, self.offsets.get()?, self.logits.get()?);
        let operands = Operands { value: &value, offsets: &offsets, logits: &logits, references: &self.references };
        let desc = &self.desc;
        if dy.device().is_cpu() {
            return with_real!(desc.dtype, OP, T => cpu::backward::<T>(desc, &operands, dy, sinks));
        }
        gpu::backward(desc, &operands, dy, sinks)
    }
}
