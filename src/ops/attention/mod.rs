//! Multi-head scaled-dot-product attention.
//!
//! ```text
//! S = scale · Q Kᵀ + mask        P = softmax_j(S)        y = P V        for each batch item and head
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `q` | `[b, t, h·d]` | f32, f16, bf16 (f64 on the CPU) |
//! | `k`, `v` | `[b, s, h·d]` | as q |
//! | `mask` | `[t, s]`, `[b, t, s]` or `[b, h, t, s]` | added to S: f32 or as q; u8: nonzero keeps, zero hides |
//! | `y` | `[b, t, h·d]` | as q |
//!
//! Head number i is columns `i·d .. (i+1)·d`; nothing is transposed in memory. The scale is `1/√d` unless given.
//!
//! *Causal* is aligned to the end: query i sees keys `j ≤ i + (s − t)`, so that the last query sees all keys, as it must when the
//! first keys come from a cache. With t > s the first t − s queries see nothing.
//!
//! A query that sees nothing (every score is −∞) gives zeros, and passes zero gradients on: it is no row of NaN.
//!
//! Backward, from `q`, `k`, `v` and the log-sum-exp of each row `L` (`[b, t, h]`, f32; nothing of size t·s and not y):
//! `P = exp(S − L)`, `dP = dy Vᵀ`, `D_i = Σ_j P_ij dP_ij`, `dS = P ⊙ (dP − D)`,
//! `dq = scale · dS K`, `dk = scale · dSᵀ Q`, `dv = Pᵀ dy`.
//!
//! Sources: Vaswani et al., "Attention is all you need", 2017; the blockwise form with an online softmax after Dao et al.,
//! "FlashAttention", 2022.
//!
//! Cost: `4·b·h·t·s·d` floating-point operations forward. GPU kernels take d up to [`MAX_HEAD_DIM`].
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for heads that do not divide the width or a scale that is not finite; [`Error::Unsupported`] on a GPU for a
//! wider head.

mod cpu;
pub mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Var, Wants};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::tensor::Tensor;

const OP: &str = "attention";

/// The widest head that the GPU kernels take.
pub const MAX_HEAD_DIM: usize = 128;

#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionOptions<'a> {
    pub heads: usize,
    pub causal: bool,
    pub mask: Option<&'a Tensor>,
    /// `1/√d` if absent.
    pub scale: Option<f64>,
}

/// A mask's element type, and how far apart its items and heads lie (0: the same for all).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskDesc {
    pub dtype: DType,
    pub batch_stride: usize,
    pub head_stride: usize,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub b: usize,
    /// Queries.
    pub t: usize,
    /// Keys.
    pub s: usize,
    pub h: usize,
    pub d: usize,
    pub dtype: DType,
    pub causal: bool,
    pub scale: f64,
    pub mask: Option<MaskDesc>,
}

impl Desc {
    pub fn new(q: &Tensor, k: &Tensor, v: &Tensor, options: &AttentionOptions) -> Result<Self> {
        let &[b, t, width] = q.dims() else {
            return Err(Error::shape(OP, "q", "[b, t, h·d]", q.dims()));
        };
        let h = options.heads;
        if h == 0 || width == 0 || !width.is_multiple_of(h) {
            return Err(Error::value(OP, "heads", format!("a divisor of the width {width}, at least 1"), h));
        }
        if !q.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "q", expected: "a float type".into(), got: q.dtype() });
        }
        let s = match k.dims() {
            &[keys_b, s, keys_width] if keys_b == b && keys_width == width => s,
            _ => return Err(Error::shape(OP, "k", format!("[{b}, s, {width}]"), k.dims())),
        };
        v.require_dims(OP, "v", k.dims())?;
        q.require_contiguous(OP, "q")?;
        for (name, other) in [("k", k), ("v", v)] {
            other.require_dtype(OP, name, q.dtype())?;
            other.require_device(OP, name, q.device())?;
            other.require_contiguous(OP, name)?;
        }
        let d = width / h;
        let scale = options.scale.unwrap_or(1.0 / (d as f64).sqrt());
        if !scale.is_finite() {
            return Err(Error::value(OP, "scale", "a finite number", scale));
        }
        let mut desc = Desc { b, t, s, h, d, dtype: q.dtype(), causal: options.causal, scale, mask: None };
        if let Some(mask) = options.mask {
            mask.require_device(OP, "mask", q.device())?;
            desc.mask = Some(desc.fit_mask(mask)?);
        }
        Ok(desc)
    }

    fn fit_mask(&self, mask: &Tensor) -> Result<MaskDesc> {
        let Desc { b, t, s, h, dtype: own, .. } = *self;
        mask.require_contiguous(OP, "mask")?;
        let dtype = mask.dtype();
        if dtype != DType::U8 && dtype != DType::F32 && dtype != own {
            let expected = format!("u8 (keep), f32 or {own}");
            return Err(Error::DType { op: OP, argument: "mask", expected, got: dtype });
        }
        // Saturates only where no item exists that a stride could lead to.
        let (batch_stride, head_stride) = match mask.dims() {
            dims if dims == [t, s] => (0, 0),
            dims if dims == [b, t, s] => (t.saturating_mul(s), 0),
            dims if dims == [b, h, t, s] => (h.saturating_mul(t).saturating_mul(s), t.saturating_mul(s)),
            dims => {
                let expected = format!("[{t}, {s}], [{b}, {t}, {s}] or [{b}, {h}, {t}, {s}]");
                return Err(Error::shape(OP, "mask", expected, dims));
            }
        };
        Ok(MaskDesc { dtype, batch_stride, head_stride })
    }

    /// Elements from one row to the next: all heads.
    pub fn width(&self) -> usize {
        self.h * self.d
    }

    /// One past the last key that query `i` sees.
    pub fn visible(&self, i: usize) -> usize {
        if self.causal { (i + 1 + self.s).saturating_sub(self.t).min(self.s) } else { self.s }
    }

    /// Floating-point operations of the forward pass, those that a causal mask saves included.
    pub fn flops(&self) -> u64 {
        [self.b, self.h, self.t, self.s, self.d].iter().fold(4u64, |n, &size| n.saturating_mul(size as u64))
    }

    /// Bytes that the forward pass must move at least: q, k, v and y once.
    pub fn bytes(&self) -> u64 {
        let sizes = [self.b, self.t.saturating_add(self.s), self.h, self.d, self.dtype.size()];
        sizes.iter().fold(2u64, |n, &size| n.saturating_mul(size as u64))
    }
}

/// `softmax(scale · Q Kᵀ + mask) V` head by head; see the module for shapes, masks and errors.
pub fn attention(tape: &mut Tape, q: &Var, k: &Var, v: &Var, options: &AttentionOptions) -> Result<Var> {
    let desc = Desc::new(q.tensor(), k.tensor(), v.tensor(), options)?;
    let device = q.tensor().device();
    let y = Tensor::empty(device, q.dims(), desc.dtype)?;
    let lse = Tensor::empty(device, &[desc.b, desc.t, desc.h], desc.dtype.accumulator())?;
    let operands = Operands { q: q.tensor(), k: k.tensor(), v: v.tensor(), mask: options.mask };
    forward(&desc, &operands, &y, &lse)?;
    Ok(tape.record(y, &[q, k, v], |wants| Node {
        desc,
        q: q.save(),
        k: k.save(),
        v: needs_v(wants).then(|| v.save()),
        lse: Saved::Held(lse),
        mask: options.mask.map(|m| Saved::Held(m.clone())),
    }))
}

/// Positions of the inputs on the tape.
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;

/// dv needs the probabilities alone; dq and dk need v as well.
fn needs_v(wants: Wants) -> bool {
    wants.weights || wants.input(Q) || wants.input(K)
}

/// What forward and backward read.
pub(crate) struct Operands<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub mask: Option<&'a Tensor>,
}

fn forward(desc: &Desc, operands: &Operands, y: &Tensor, lse: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    if y.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, operands, y, lse));
    }
    y.device().run(&gpu::forward(desc, operands, y, lse)?)
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    q: Saved,
    k: Saved,
    v: Option<Saved>,
    lse: Saved,
    mask: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        [&self.q, &self.k, &self.lse].into_iter().chain(&self.v).chain(&self.mask).collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        if self.desc.b == 0 || (self.desc.t == 0 && self.desc.s == 0) {
            // Gradients with no element: they are there, and there is nothing to write.
            return [Q, K, V].into_iter().try_for_each(|input| sinks.open(input).map(|_| ()));
        }
        let (q, k, lse) = (self.q.get()?, self.k.get()?, self.lse.get()?);
        let v = self.v.as_ref().map(Saved::get).transpose()?;
        let mask = self.mask.as_ref().map(Saved::get).transpose()?;
        // Without v only dv is wanted, for which any tensor of its shape stands in unread.
        let operands = Operands { q: &q, k: &k, v: v.as_ref().unwrap_or(&k), mask: mask.as_ref() };
        if dy.device().is_cpu() {
            with_real!(self.desc.dtype, OP, T => cpu::backward::<T>(&self.desc, &operands, dy, &lse, sinks))
        } else {
            gpu::backward(&self.desc, &operands, dy, &lse, sinks)
        }
    }
}
