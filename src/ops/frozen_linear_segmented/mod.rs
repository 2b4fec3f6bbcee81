//! Many adapters on one frozen linear: each row of a batch takes the low-rank update of its own adapter.
//!
//! ```text
//! y[i] = x[i] W₀ᵀ + b + h[i] B_gᵀ        h[i] = s_g · dropout(x[i]) A_gᵀ        g: the slot of row i
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x` | `[.., k]`, m rows sorted by slot | f32, f16, bf16 (f64 on the CPU) |
//! | `W₀` | `[n, k]`, frozen | as x |
//! | `b` | `[n]` | as x |
//! | `A` | `[slots, r, k]` | as x |
//! | `B` | `[slots, n, r]` | as x |
//! | `s` | `[slots]`, frozen | f32 |
//! | `y` | `[.., n]` | as x |
//!
//! The product with W₀ knows nothing of slots, and no row is padded: runs of rows may have any length, none included. Where a GPU has
//! kernels of its own for that product, the updates are added to what it wrote, one rounding more. An adapter of a
//! smaller rank than r has zeros in the rest of its slot, which get no gradient: they stay zero.
//!
//! Backward, with `g = dy` and `u[i] = s_g · dy[i] B_g`: `dx = dy W₀ + mask ⊙ (u A_g)`, `dA_g = uᵀ dropout(x)` and `dB_g = dyᵀ h` over
//! the rows of the slot, `db = Σ_rows dy`. Kept for it: `x` only if A learns, `h` only if B learns.
//!
//! Dropout counts rows within a slot. So every row has the same bits alone or among others, and every adapter learns the same bits
//! alone or beside others, as long as the same kernels are chosen; no sum ever mixes two slots, not even as a product with zero.
//!
//! Cost: that of [`frozen_linear`](super::frozen_linear()) with rank r.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit, a bank
//! with another number of slots or segments with another number of rows; [`Error::Value`] for a rank outside 1..=256 or a dropout outside
//! [0, 1).
//!
//! Source: Chen et al., "Punica: Multi-Tenant LoRA Serving", 2023, for the problem.

mod cpu;
mod gpu;
mod segments;
#[cfg(test)]
mod tests;

pub use segments::Segments;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::frozen_linear::MAX_RANK;
use crate::ops::host::{sum_columns, with_real};
use crate::rng::Dropout;
use crate::shape::Dims;
use crate::tensor::{FrozenWeight, Tensor};

const OP: &str = "frozen_linear_segmented";

/// The updates of all slots.
#[derive(Clone, Copy, Debug)]
pub struct Bank<'a> {
    /// `[slots, r, k]`
    pub a: &'a Var,
    /// `[slots, n, r]`
    pub b: &'a Var,
    /// `[slots]`, f32
    pub scales: &'a Tensor,
    /// Probability with which an element of x is dropped, in training.
    pub dropout: f64,
    /// Names the place, so that two layers draw different masks.
    pub site: u32,
}

/// A validated call: everything but the values.
#[derive(Clone, Debug)]
pub struct Desc {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub r: usize,
    pub dtype: DType,
    pub dropout: Option<Dropout>,
    pub segments: Segments,
}

impl Desc {
    pub fn new(
        tape: &Tape,
        x: &Var,
        weight: &FrozenWeight,
        bias: Option<&Var>,
        bank: &Bank,
        segments: &Segments,
    ) -> Result<Self> {
        let (n, k) = (weight.n(), weight.k());
        let tensor = x.tensor();
        if tensor.dims().is_empty() || tensor.cols() != k {
            return Err(Error::shape(OP, "x", format!("[.., {k}] for a weight of [{n}, {k}]"), tensor.dims()));
        }
        tensor.require_contiguous(OP, "x")?;
        let matches = |name: &'static str, other: &Tensor, dims: &[usize], dtype: DType| {
            other.require_dims(OP, name, dims)?;
            other.require_dtype(OP, name, dtype)?;
            other.require_device(OP, name, tensor.device())?;
            other.require_contiguous(OP, name)
        };
        let (m, slots, dtype) = (tensor.rows(), segments.slots(), tensor.dtype());
        let r = bank.a.dims().get(1).copied().unwrap_or(0);
        if r == 0 || r > MAX_RANK {
            return Err(Error::value(OP, "rank", format!("1 to {MAX_RANK}"), r));
        }
        matches("weight", weight.tensor(), &[n, k], dtype)?;
        if let Some(bias) = bias {
            matches("bias", bias.tensor(), &[n], dtype)?;
        }
        matches("a", bank.a.tensor(), &[slots, r, k], dtype)?;
        matches("b", bank.b.tensor(), &[slots, n, r], dtype)?;
        matches("scales", bank.scales, &[slots], DType::F32)?;
        segments.on_device().require_device(OP, "segments", tensor.device())?;
        if segments.rows() != m {
            return Err(Error::value(OP, "segments", format!("rows that add up to {m}"), segments.rows()));
        }
        let dropout = crate::ops::dropout_of(OP, tape, bank.dropout, bank.site)?;
        Ok(Desc { m, n, k, r, dtype, dropout, segments: segments.clone() })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        let (m, n, k, r) = (self.m as u64, self.n as u64, self.k as u64, self.r as u64);
        2 * m * n * k + 2 * m * r * (n + k)
    }

    /// Bytes that the forward pass must move at least: every operand in use and the result once.
    pub fn bytes(&self) -> u64 {
        let (m, n, k, r) = (self.m as u64, self.n as u64, self.k as u64, self.r as u64);
        let slots = self.segments.runs().count() as u64;
        (m * k + n * k + m * n + slots * r * (n + k)) * self.dtype.size() as u64
    }
}

/// What the products read besides x and W₀.
#[derive(Clone, Debug)]
pub(crate) struct Factors {
    pub a: Tensor,
    pub b: Tensor,
    pub scales: Tensor,
}

/// `y = x W₀ᵀ + b` and each row's own update; see the module for shapes and errors.
pub fn frozen_linear_segmented(
    tape: &mut Tape,
    x: &Var,
    weight: &FrozenWeight,
    bias: Option<&Var>,
    bank: Bank,
    segments: &Segments,
) -> Result<Var> {
    let desc = Desc::new(tape, x, weight, bias, &bank, segments)?;
    let device = x.tensor().device();
    let mut dims = Dims::from_slice(x.dims());
    if let Some(last) = dims.last_mut() {
        *last = desc.n;
    }
    let (y, h) = (Tensor::empty(device, &dims, desc.dtype)?, Tensor::empty(device, &[desc.m, desc.r], desc.dtype)?);
    let factors = Factors { a: bank.a.tensor().clone(), b: bank.b.tensor().clone(), scales: bank.scales.clone() };
    if desc.m > 0 {
        let (x, weight, bias) = (x.tensor(), weight.tensor(), bias.map(Var::tensor));
        if device.is_cpu() {
            with_real!(desc.dtype, OP, T => cpu::forward::<T>(&desc, x, (weight, bias), &factors, (&h, &y)))?;
        } else {
            gpu::forward(&desc, x, (weight, bias), &factors, (&h, &y))?;
        }
    }
    let none = Var::constant(y.clone());
    Ok(tape.record(y, &[x, bias.unwrap_or(&none), bank.a, bank.b], |wants| Node {
        x: (wants.weights || wants.input(A)).then(|| x.save()),
        h: wants.input(B).then_some(Saved::Held(h)),
        weight: weight.clone(),
        factors,
        desc,
    }))
}

/// Positions of the inputs on the tape.
const X: usize = 0;
const BIAS: usize = 1;
const A: usize = 2;
const B: usize = 3;

#[derive(Debug)]
struct Node {
    desc: Desc,
    weight: FrozenWeight,
    factors: Factors,
    x: Option<Saved>,
    h: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.x.iter().chain(&self.h).collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let desc = &self.desc;
        let cpu = dy.device().is_cpu();
        if let Some(target) = sinks.open(BIAS)? {
            if cpu {
                with_real!(desc.dtype, OP, T => sum_columns::<T>(OP, dy, desc.n, &target))?;
            } else {
                gpu::bias_gradient(desc, dy, &target)?;
            }
        }
        // u = s · dy B serves dx and dA alike.
        let u = if sinks.wants(X) || sinks.wants(A) { Some(self.project(dy)?) } else { None };
        if let (Some(x), Some(u), Some(target)) = (&self.x, &u, sinks.open(A)?) {
            self.gather(&[desc.r, desc.k], (u, &x.get()?), desc.dropout, &target)?;
        }
        if let (Some(h), Some(target)) = (&self.h, sinks.open(B)?) {
            self.gather(&[desc.n, desc.r], (dy, &h.get()?), None, &target)?;
        }
        if let (Some(u), Some(target)) = (&u, sinks.open(X)?)
            && desc.m > 0
        {
            let weight = self.weight.tensor();
            if cpu {
                let a = &self.factors.a;
                with_real!(desc.dtype, OP, T => cpu::input_gradient::<T>(desc, dy, weight, (u, a), &target))?;
            } else {
                gpu::input_gradient(desc, dy, weight, (u, &self.factors.a), &target)?;
            }
        }
        Ok(())
    }
}

impl Node {
    /// `u[i] = s_g · dy[i] B_g`, `[m, r]`.
    fn project(&self, dy: &Tensor) -> Result<Tensor> {
        let desc = &self.desc;
        let u = Tensor::empty(dy.device(), &[desc.m, desc.r], desc.dtype)?;
        if desc.m == 0 {
            return Ok(u);
        }
        if dy.device().is_cpu() {
            with_real!(desc.dtype, OP, T => cpu::project::<T>(desc, dy, &self.factors, &u))?;
        } else {
            gpu::project(desc, dy, &self.factors, &u)?;
        }
        Ok(u)
    }

    /// `target[g] (+)= leftᵀ dropout(right)` over the rows of each slot; left `[m, dims[0]]`, right `[m, dims[1]]`.
    fn gather(
        &self,
        dims: &[usize; 2],
        (left, right): (&Tensor, &Tensor),
        dropout: Option<Dropout>,
        target: &Target,
    ) -> Result<()> {
        // Slots without rows learn nothing in this batch.
        if !target.accumulate {
            target.tensor.zero()?;
        }
        let &[rows, cols] = dims;
        let (left, right) = (left.reshape(&[self.desc.m, rows])?, right.reshape(&[self.desc.m, cols])?);
        for (slot, first, count) in self.desc.segments.runs() {
            let (left, right) = (left.slice(0, first, count)?, right.slice(0, first, count)?);
            let tensor = target.tensor.slice(0, slot, 1)?.reshape(dims)?;
            let own = Target { tensor, accumulate: true };
            if left.device().is_cpu() {
                with_real!(self.desc.dtype, OP, T => cpu::gather::<T>(dims, (&left, &right), dropout, &own))?;
            } else {
                gpu::gather(self.desc.dtype, dims, (&left, &right), dropout, &own)?;
            }
        }
        Ok(())
    }
}
