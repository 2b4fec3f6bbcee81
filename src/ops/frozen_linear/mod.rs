//! The frozen linear layer with its updates, low-rank and block-sparse: the heart of the library.
//!
//! ```text
//! y = x W₀ᵀ + b + h Bᵀ + t · x Sᵀ        h = s · dropout(x) Aᵀ
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x`  | `[.., k]`, m rows | f32, f16, bf16 (f64 on the CPU) |
//! | `W₀` | `[n, k]`, frozen | as x |
//! | `b`  | `[n]`, frozen or trainable | as x |
//! | `A`, `B` | `[r, k]`, `[n, r]`, 1 ≤ r ≤ 256 | as x |
//! | `S`  | blocks `[nnz, b, b]` of `[n, k]` | as x |
//! | `y`  | `[.., n]` | as x |
//!
//! Backward, with `g = dy` and `u = g B` (`[m, r]`):
//! `dx = g W₀ + s · mask ⊙ (u A) + t · g S`, `dA = s · uᵀ dropout(x)`, `dB = gᵀ h`, `dS = t · gᵀ x` at the blocks,
//! `db = Σ_rows g`.
//! Kept for it: `x` only if A or S learns, `h` only if B learns; never W₀, never y, never a mask.
//!
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. Dropout acts on the update's input alone, in
//! training alone; forward and backward draw the same mask.
//!
//! Cost: `2·m·n·k + 2·m·r·(n + k) + 2·m·nnz·b²` floating-point operations forward, in one pass over y.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a rank outside 1..=256, a dropout outside [0, 1) or a scale that is not finite.

pub(crate) mod cpu;
mod gpu;

pub(in crate::ops) use cpu::masked;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var, Wants};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::block_sparse::Update;
use crate::ops::host::{sum_columns, with_real};
pub use crate::ops::product::{Candidate, Gpu};
use crate::ops::product::{Layout, Product};
use crate::rng::Dropout;
use crate::shape::Dims;
use crate::tensor::{BlockPattern, FrozenWeight, Tensor};

const OP: &str = "frozen_linear";

/// Largest rank of an update.
pub const MAX_RANK: usize = 256;

/// The update `s · dropout(x) Aᵀ Bᵀ`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `[r, k]`
    pub a: &'a Var,
    /// `[n, r]`
    pub b: &'a Var,
    pub scale: f64,
    /// Probability with which an element of x is dropped, in training.
    pub dropout: f64,
    /// Names the place, so that two layers draw different masks.
    pub site: u32,
}

/// The update `scale · x Sᵀ` by blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockUpdate<'a> {
    /// Of `[n, k]`, W₀'s shape.
    pub pattern: &'a BlockPattern,
    /// `[nnz, b, b]`
    pub values: &'a Var,
    pub scale: f64,
}

/// What is added to a frozen product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Updates<'a> {
    pub low_rank: Option<LowRank<'a>>,
    pub sparse: Option<BlockUpdate<'a>>,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// 0 without an update.
    pub r: usize,
    pub dtype: DType,
    pub scale: f64,
    pub dropout: Option<Dropout>,
}

impl Desc {
    pub fn new(
        tape: &Tape,
        x: &Var,
        weight: &FrozenWeight,
        bias: Option<&Var>,
        low_rank: Option<&LowRank>,
    ) -> Result<Self> {
        let (n, k) = (weight.n(), weight.k());
        let tensor = x.tensor();
        if tensor.dims().is_empty() || tensor.cols() != k {
            return Err(Error::shape(OP, "x", format!("[.., {k}] for a weight of [{n}, {k}]"), tensor.dims()));
        }
        tensor.require_contiguous(OP, "x")?;
        let matches = |name: &'static str, other: &Tensor, dims: &[usize]| {
            other.require_dims(OP, name, dims)?;
            other.require_dtype(OP, name, tensor.dtype())?;
            other.require_device(OP, name, tensor.device())?;
            other.require_contiguous(OP, name)
        };
        matches("weight", weight.tensor(), &[n, k])?;
        if let Some(bias) = bias {
            matches("bias", bias.tensor(), &[n])?;
        }
        let mut desc = Desc { m: tensor.rows(), n, k, r: 0, dtype: tensor.dtype(), scale: 0.0, dropout: None };
        if let Some(update) = low_rank {
            desc.r = update.a.dims().first().copied().unwrap_or(0);
            if desc.r == 0 || desc.r > MAX_RANK {
                return Err(Error::value(OP, "rank", format!("1 to {MAX_RANK}"), desc.r));
            }
            matches("a", update.a.tensor(), &[desc.r, k])?;
            matches("b", update.b.tensor(), &[n, desc.r])?;
            if !update.scale.is_finite() {
                return Err(Error::value(OP, "scale", "a finite number", update.scale));
            }
            desc.scale = update.scale;
            desc.dropout = crate::ops::dropout_of(OP, tape, update.dropout, update.site)?;
        }
        Ok(desc)
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        let (m, n, k, r) = (self.m as u64, self.n as u64, self.k as u64, self.r as u64);
        2 * m * n * k + 2 * m * r * (n + k)
    }

    /// Bytes that the forward pass must move at least: every operand and the result once.
    pub fn bytes(&self) -> u64 {
        let (m, n, k, r) = (self.m as u64, self.n as u64, self.k as u64, self.r as u64);
        (m * k + n * k + m * n + r * (n + k)) * self.dtype.size() as u64
    }
}

/// The kernels for the large product of each pass, in order of preference up to the one that is taken, with the reason against each
/// that is not. Operands are taken to be aligned.
pub fn candidates(gpu: Gpu, dtype: DType, [m, n, k]: [usize; 3]) -> [(&'static str, Vec<Candidate>); 2] {
    let product = |layout, shape| Product { gpu, ..Product::new(OP, layout, dtype, shape, [0; 3]) }.candidates();
    [("forward", product(Layout::Nt, [m, n, k])), ("backward", product(Layout::Nn, [m, k, n]))]
}

/// `y = x W₀ᵀ + b + s · dropout(x) Aᵀ Bᵀ`; see the module for shapes and errors.
pub fn frozen_linear(
    tape: &mut Tape,
    x: &Var,
    weight: &FrozenWeight,
    bias: Option<&Var>,
    low_rank: Option<LowRank>,
) -> Result<Var> {
    frozen_linear_with(tape, x, weight, bias, Updates { low_rank, sparse: None })
}

/// As [`frozen_linear`] with any of the updates, in one pass over y.
pub fn frozen_linear_with(
    tape: &mut Tape,
    x: &Var,
    weight: &FrozenWeight,
    bias: Option<&Var>,
    updates: Updates,
) -> Result<Var> {
    let low_rank = updates.low_rank;
    let desc = Desc::new(tape, x, weight, bias, low_rank.as_ref())?;
    let sparse = updates.sparse.map(|u| Sparse::new(&desc, x.tensor(), u)).transpose()?;
    let mut dims = Dims::from_slice(x.dims());
    if let Some(last) = dims.last_mut() {
        *last = desc.n;
    }
    let y = Tensor::empty(x.tensor().device(), &dims, desc.dtype)?;
    let h = match desc.r {
        0 => None,
        r => Some(Tensor::empty(x.tensor().device(), &[desc.m, r], desc.dtype)?),
    };
    let operands = Operands {
        weight: weight.tensor(),
        bias: bias.map(Var::tensor),
        a: low_rank.map(|u| u.a.tensor()),
        b: low_rank.map(|u| u.b.tensor()),
        sparse: sparse.as_ref(),
    };
    forward(&desc, x.tensor(), &operands, h.as_ref(), &y)?;

    let none = Var::constant(y.clone());
    let (a, b) = (low_rank.map_or(&none, |u| u.a), low_rank.map_or(&none, |u| u.b));
    let inputs = [x, bias.unwrap_or(&none), a, b, updates.sparse.map_or(&none, |u| u.values)];
    Ok(tape.record(y, &inputs, |wants| Node {
        desc,
        weight: weight.clone(),
        a: low_rank.map(|u| u.a.tensor().clone()),
        b: low_rank.map(|u| u.b.tensor().clone()),
        x: (needs_x(wants, &desc)).then(|| x.save()),
        h: h.filter(|_| needs_h(wants, &desc)).map(Saved::Held),
        sparse,
    }))
}

/// Positions of the inputs on the tape.
const X: usize = 0;
const BIAS: usize = 1;
const A: usize = 2;
const B: usize = 3;
const VALUES: usize = 4;

/// x is kept only if A or S learns (or, in accounting, if the weight would).
fn needs_x(wants: Wants, desc: &Desc) -> bool {
    wants.weights || (desc.r > 0 && wants.input(A)) || wants.input(VALUES)
}

/// h = s · dropout(x) Aᵀ is kept only if B learns.
fn needs_h(wants: Wants, desc: &Desc) -> bool {
    desc.r > 0 && wants.input(B)
}

/// A validated block-sparse update and its values.
#[derive(Clone, Debug)]
pub(crate) struct Sparse {
    pub update: Update,
    pub values: Tensor,
}

impl Sparse {
    fn new(desc: &Desc, x: &Tensor, update: BlockUpdate) -> Result<Self> {
        let (wanted, got) = ([desc.n, desc.k], update.pattern.shape());
        if got != wanted {
            return Err(Error::shape(OP, "pattern", format!("a pattern of {wanted:?}"), &got));
        }
        let values = update.values.tensor();
        Ok(Sparse { update: Update::new(OP, x, update.pattern, values, update.scale)?, values: values.clone() })
    }
}

/// What the product reads besides x.
pub(crate) struct Operands<'a> {
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    pub a: Option<&'a Tensor>,
    pub b: Option<&'a Tensor>,
    pub sparse: Option<&'a Sparse>,
}

/// What is added to `dy W₀` in the input's gradient.
#[derive(Clone, Copy)]
pub(crate) struct Backward<'a> {
    /// A and `u = dy B`.
    pub low_rank: Option<(&'a Tensor, &'a Tensor)>,
    pub sparse: Option<&'a Sparse>,
}

fn forward(desc: &Desc, x: &Tensor, operands: &Operands, h: Option<&Tensor>, y: &Tensor) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if x.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, x, operands, h, y));
    }
    gpu::forward(desc, x, operands, h, y)
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    weight: FrozenWeight,
    a: Option<Tensor>,
    b: Option<Tensor>,
    x: Option<Saved>,
    h: Option<Saved>,
    sparse: Option<Sparse>,
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
        if let Some(target) = sinks.open(BIAS)? {
            bias_gradient(desc, dy, &target)?;
        }
        // u = dy B serves dx and dA alike.
        let u = match &self.b {
            Some(b) if sinks.wants(X) || sinks.wants(A) => Some(project(desc, dy, b)?),
            _ => None,
        };
        if let (Some(x), Some(u), Some(target)) = (&self.x, &u, sinks.open(A)?) {
            a_gradient(desc, u, &x.get()?, &target)?;
        }
        if let (Some(h), Some(target)) = (&self.h, sinks.open(B)?) {
            b_gradient(desc, dy, &h.get()?, &target)?;
        }
        if let (Some(x), Some(sparse), Some(target)) = (&self.x, &self.sparse, sinks.open(VALUES)?) {
            sparse.update.values_gradient(dy, &x.get()?, &target)?;
        }
        if let Some(target) = sinks.open(X)? {
            let updates = Backward { low_rank: self.a.as_ref().zip(u.as_ref()), sparse: self.sparse.as_ref() };
            input_gradient(desc, dy, self.weight.tensor(), updates, &target)?;
        }
        Ok(())
    }
}

/// `u = dy B`, `[m, r]`.
fn project(desc: &Desc, dy: &Tensor, b: &Tensor) -> Result<Tensor> {
    let u = Tensor::empty(dy.device(), &[desc.m, desc.r], desc.dtype)?;
    if desc.m == 0 {
        return Ok(u);
    }
    if dy.device().is_cpu() {
        with_real!(desc.dtype, OP, T => cpu::project::<T>(desc, dy, b, &u))?;
    } else {
        dy.device().run(&gpu::project(desc, dy, b, &u)?)?;
    }
    Ok(u)
}

/// `dx (+)= dy W₀ + s · mask ⊙ (u A) + t · dy S`.
fn input_gradient(desc: &Desc, dy: &Tensor, weight: &Tensor, updates: Backward, target: &Target) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::input_gradient::<T>(desc, dy, weight, updates, target));
    }
    gpu::input_gradient(desc, dy, weight, updates, target)
}

/// `dA += s · uᵀ dropout(x)`.
fn a_gradient(desc: &Desc, u: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    if u.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::a_gradient::<T>(desc, u, x, target));
    }
    gpu::a_gradient(desc, u, x, target)
}

/// `dB += dyᵀ h`.
fn b_gradient(desc: &Desc, dy: &Tensor, h: &Tensor, target: &Target) -> Result<()> {
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::b_gradient::<T>(desc, dy, h, target));
    }
    gpu::b_gradient(desc, dy, h, target)
}

/// `db += Σ_rows dy`.
fn bias_gradient(desc: &Desc, dy: &Tensor, target: &Target) -> Result<()> {
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => sum_columns::<T>(OP, dy, desc.n, target));
    }
    gpu::bias_gradient(desc, dy, target)
}

#[cfg(test)]
mod tests;
