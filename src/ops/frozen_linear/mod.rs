//! The frozen linear layer with its updates, low-rank and block-sparse: the heart of the library.
//!
//! ```text
//! y = φ(x W₀ᵀ + b + s · h Bᵀ + t · x Sᵀ + r)        h = mid(z),  z = dropout(x) Aᵀ
//! ```
//!
//! φ, the residual r and both updates are there or not; [`Mid`] says what may lie between A and B.
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x`  | `[.., k]`, m rows | f32, f16, bf16 (f64 on the CPU) |
//! | `W₀` | `[n, k]`, frozen | as x |
//! | `b`  | `[n]`, frozen or trainable | as x |
//! | `A`, `B` | `[r, k]`, `[n, r]`, 1 ≤ r ≤ 256 | as x |
//! | `S`  | blocks `[nnz, b, b]` of `[n, k]` | as x |
//! | `r`, `y` | `[.., n]` | as x |
//!
//! Backward, with g the gradient of what φ sees and `u = s · mid'(g B)` (`[m, r]`):
//! `dx = g W₀ + mask ⊙ (u A) + t · g S`, `dA = uᵀ dropout(x)`, `dB = s · gᵀ h`, `dS = t · gᵀ x` at the blocks,
//! `db = Σ_rows g`, `dr = g`.
//! Kept for it: `x` only if A or S learns, `z` only if something before B does and something lies between, `h` only if B learns and
//! nothing does, what φ sees; never W₀, never a mask. y of a φ is made again.
//!
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021. Dropout acts on the update's input alone, in
//! training alone; forward and backward draw the same mask.
//!
//! Cost: `2·m·n·k + 2·m·r·(n + k) + 2·m·nnz·b²` floating-point operations forward, in one pass over y. A residual is added before y is
//! rounded; φ is applied to what is rounded, so that it has the same bits whether y is written before or not.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a rank outside 1..=256, a dropout outside [0, 1) or a scale that is not finite.

pub(crate) mod cpu;
mod explain;
mod gpu;
mod low_rank;

pub(in crate::ops) use cpu::masked;
pub use explain::{Candidate, Forecast, Gpu, candidates, forecast, one_launch};
use low_rank::{Kept, Stage};
pub use low_rank::{LowRank, Mid};

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var, Wants};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::activation::{self, Activation};
use crate::ops::block_sparse::Update;
use crate::ops::column_gate::column_gate;
use crate::ops::host::{sum_columns, with_real};
use crate::ops::scale_add::{accumulate, scale_add};
use crate::rng::Dropout;
use crate::shape::Dims;
use crate::tensor::{BlockPattern, FrozenWeight, Tensor};

const OP: &str = "frozen_linear";

/// Largest rank of an update.
pub const MAX_RANK: usize = 256;

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

/// What follows a linear in a trunk: `φ(y + r)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct After<'a> {
    /// Of y's shape.
    pub residual: Option<&'a Var>,
    pub activation: Option<Activation>,
}

impl After<'_> {
    /// The same in passes of its own, for a linear whose kernel does not take it along.
    pub fn apply(&self, tape: &mut Tape, y: Var) -> Result<Var> {
        let y = match self.residual {
            Some(residual) => scale_add(tape, residual, &y, 1.0)?,
            None => y,
        };
        match self.activation {
            Some(f) => activation::activation(tape, &y, f),
            None => Ok(y),
        }
    }
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
    /// s is the one or the other: of z where it is h itself, otherwise of h's product with B.
    pub z_scale: f64,
    pub h_scale: f64,
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
        let (m, dtype) = (tensor.rows(), tensor.dtype());
        let mut desc = Desc { m, n, k, r: 0, dtype, z_scale: 1.0, h_scale: 1.0, dropout: None };
        if let Some(update) = low_rank {
            let halves = if matches!(update.mid, Mid::Dual { .. }) { 2 } else { 1 };
            desc.r = update.a.dims().first().copied().unwrap_or(0) / halves;
            if desc.r == 0 || desc.r > MAX_RANK {
                return Err(Error::value(OP, "rank", format!("1 to {MAX_RANK}"), desc.r));
            }
            matches("a", update.a.tensor(), &[halves * desc.r, k])?;
            matches("b", update.b.tensor(), &[n, desc.r])?;
            if !update.scale.is_finite() {
                return Err(Error::value(OP, "scale", "a finite number", update.scale));
            }
            match update.mid {
                Mid::Identity | Mid::Gate(_) => desc.z_scale = update.scale,
                Mid::Activation { .. } | Mid::Dual { .. } => desc.h_scale = update.scale,
            }
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

/// `y = x W₀ᵀ + b + s · mid(dropout(x) Aᵀ) Bᵀ`; see the module for shapes and errors.
pub fn frozen_linear(
    tape: &mut Tape,
    x: &Var,
    weight: &FrozenWeight,
    bias: Option<&Var>,
    low_rank: Option<LowRank>,
) -> Result<Var> {
    frozen_linear_with(tape, x, weight, bias, Updates { low_rank, sparse: None }, After::default())
}

/// As [`frozen_linear`] with any of the updates and what follows, in one pass over y. On a GPU, blocks whose values do not begin at a
/// multiple of 16 bytes, or whose scale is not within 2⁻³² and 2³², are added in a second pass.
pub fn frozen_linear_with(
    tape: &mut Tape,
    x: &Var,
    weight: &FrozenWeight,
    bias: Option<&Var>,
    updates: Updates,
    after: After,
) -> Result<Var> {
    if let Some(LowRank { b, mid: Mid::Gate(gate), .. }) = updates.low_rank {
        let b = column_gate(tape, b, gate)?;
        let low_rank = updates.low_rank.map(|u| LowRank { b: &b, mid: Mid::Identity, ..u });
        return frozen_linear_with(tape, x, weight, bias, Updates { low_rank, ..updates }, after);
    }
    let low_rank = updates.low_rank;
    let desc = Desc::new(tape, x, weight, bias, low_rank.as_ref())?;
    let stage = low_rank.map(|u| Stage::new(tape, x.tensor(), &u)).transpose()?;
    let sparse = updates.sparse.map(|u| Sparse::new(&desc, x.tensor(), u)).transpose()?;
    let device = x.tensor().device();
    let mut dims = Dims::from_slice(x.dims());
    if let Some(last) = dims.last_mut() {
        *last = desc.n;
    }
    let y = Tensor::empty(device, &dims, desc.dtype)?;
    if let Some(residual) = after.residual.map(Var::tensor) {
        residual.require_dims(OP, "residual", &dims)?;
        residual.require_dtype(OP, "residual", desc.dtype)?;
        residual.require_device(OP, "residual", device)?;
        residual.require_contiguous(OP, "residual")?;
    }
    let none = Var::constant(y.clone());
    let or_none = |input: Option<&Var>| input.unwrap_or(&none).clone();
    let mid = low_rank.map_or([None; 2], |u| u.mid.inputs());
    let inputs = [
        Some(x),
        bias,
        low_rank.map(|u| u.a),
        low_rank.map(|u| u.b),
        updates.sparse.map(|u| u.values),
        mid[0],
        mid[1],
        after.residual,
    ]
    .map(or_none);
    let inputs = inputs.each_ref();
    let keeps = tape.records(&inputs);

    let low = match (&stage, low_rank) {
        (Some(stage), Some(u)) => stage.forward(&desc, x.tensor(), u.a.tensor(), keeps)?,
        _ => None,
    };
    // Of an update whose h is there already, A has been used.
    let (a, h, z) = match (low, low_rank) {
        (Some([h, z]), _) => (None, Some(h), Some(z)),
        (None, Some(u)) => {
            let h = Tensor::empty(device, &[desc.m, desc.r], desc.dtype)?;
            (Some(u.a.tensor()), Some(h.clone()), Some(h))
        }
        (None, None) => (None, None, None),
    };
    // Where nothing is kept, φ takes the place of what it sees.
    let activated = match after.activation {
        Some(f) if keeps || device.is_cpu() => Some((f, Tensor::empty(device, &dims, desc.dtype)?)),
        Some(f) => Some((f, y.clone())),
        None => None,
    };
    let operands = Operands {
        weight: weight.tensor(),
        bias: bias.map(Var::tensor),
        a,
        b: low_rank.map(|u| u.b.tensor()),
        h: h.as_ref(),
        sparse: sparse.as_ref(),
        residual: after.residual.map(Var::tensor),
        activated: activated.as_ref().map(|(f, to)| (*f, to)),
    };
    forward(&desc, x.tensor(), &operands, &y)?;

    let sum = tape.record(y, &inputs, |wants| Node {
        desc,
        weight: weight.clone(),
        x: needs_x(wants, &desc).then(|| x.save()),
        low: stage.zip(low_rank).map(|(stage, u)| Kept {
            z: z.filter(|_| needs_z(wants, &stage)).map(Saved::Held),
            stage,
            a: u.a.tensor().clone(),
            b: u.b.tensor().clone(),
        }),
        sparse,
    });
    match activated {
        Some((f, y)) => activation::record(tape, &sum, f, y),
        None => Ok(sum),
    }
}

/// Positions of the inputs on the tape.
const X: usize = 0;
const BIAS: usize = 1;
const A: usize = 2;
const B: usize = 3;
const VALUES: usize = 4;
/// And the next.
const MID: usize = 5;
const RESIDUAL: usize = 7;

/// x is kept only if A or S learns (or, in accounting, if the weight would).
fn needs_x(wants: Wants, desc: &Desc) -> bool {
    wants.weights || (desc.r > 0 && wants.input(A)) || wants.input(VALUES)
}

/// h, where it is z, is kept only if B learns; where something lies between, z serves all that comes before as well.
fn needs_z(wants: Wants, stage: &Stage) -> bool {
    let before = [X, A, MID, MID + 1].iter().any(|&input| wants.input(input));
    wants.input(B) || (before && !matches!(stage, Stage::Identity))
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

/// What the product reads besides x, and where φ of it goes.
pub(crate) struct Operands<'a> {
    pub weight: &'a Tensor,
    pub bias: Option<&'a Tensor>,
    /// If h is still to be made of it.
    pub a: Option<&'a Tensor>,
    pub b: Option<&'a Tensor>,
    /// `[m, r]`
    pub h: Option<&'a Tensor>,
    pub sparse: Option<&'a Sparse>,
    pub residual: Option<&'a Tensor>,
    pub activated: Option<(Activation, &'a Tensor)>,
}

/// What is added to `dy W₀` in the input's gradient.
#[derive(Clone, Copy)]
pub(crate) struct Backward<'a> {
    /// A and the gradient of z.
    pub low_rank: Option<(&'a Tensor, &'a Tensor)>,
    pub sparse: Option<&'a Sparse>,
}

fn forward(desc: &Desc, x: &Tensor, operands: &Operands, y: &Tensor) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if x.device().is_cpu() {
        with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, x, operands, y))?;
        return match operands.activated {
            Some((f, to)) => activation::forward(&activation::Desc::new(y, f)?, y, to),
            None => Ok(()),
        };
    }
    gpu::forward(desc, x, operands, y)
}

/// `z = dropout(x) Aᵀ + c` and `h = φ(z)`; one tensor, on a GPU, if z is not kept.
fn activated_low(
    desc: &Desc,
    x: &Tensor,
    operands: (&Tensor, Option<&Tensor>),
    f: Activation,
    [z, h]: [&Tensor; 2],
) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if x.device().is_cpu() {
        with_real!(desc.dtype, OP, T => cpu::biased_low::<T>(desc, x, operands, z))?;
        return activation::forward(&activation::Desc::new(z, f)?, z, h);
    }
    x.device().run(&gpu::activated_low(desc, x, operands, f, [z, h])?)
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    weight: FrozenWeight,
    x: Option<Saved>,
    low: Option<Kept>,
    sparse: Option<Sparse>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.x.iter().chain(self.low.iter().flat_map(|low| &low.z)).collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let desc = &self.desc;
        if let Some(target) = sinks.open(BIAS)? {
            bias_gradient(dy, &target)?;
        }
        // The gradient of z serves dx, dA and what lies between alike.
        let slope = match &self.low {
            Some(low) if [X, A, MID, MID + 1].iter().any(|&input| sinks.wants(input)) => {
                Some((low, low.slope(desc, dy, MID, sinks)?))
            }
            _ => None,
        };
        if let (Some(x), Some((low, slope)), Some(target)) = (&self.x, &slope, sinks.open(A)?) {
            low.a_gradient(desc, slope, &x.get()?, &target)?;
        }
        if let (Some(low), Some(target)) = (&self.low, sinks.open(B)?) {
            b_gradient(desc, dy, &low.h()?, &target)?;
        }
        if let (Some(x), Some(sparse), Some(target)) = (&self.x, &self.sparse, sinks.open(VALUES)?) {
            sparse.update.values_gradient(dy, &x.get()?, &target)?;
        }
        if let Some(target) = sinks.open(X)? {
            let low_rank = slope.as_ref().and_then(|(low, slope)| low.rides(slope));
            let updates = Backward { low_rank, sparse: self.sparse.as_ref() };
            input_gradient(desc, dy, self.weight.tensor(), updates, &target)?;
            if let Some((low, slope)) = &slope {
                low.add_input_gradient(slope, &target)?;
            }
        }
        if !sinks.pass(RESIDUAL, dy)
            && let Some(target) = sinks.open(RESIDUAL)?
        {
            accumulate(&target, dy)?;
        }
        Ok(())
    }
}

/// The gradient of h, `dy B`, `[m, r]`, times its scale.
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

/// `dx (+)= dy W₀ + s · mask ⊙ (u A) + t · dy S`, u the gradient of z, and s its scale.
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

/// `dB += s · dyᵀ h`, s the scale of h.
fn b_gradient(desc: &Desc, dy: &Tensor, h: &Tensor, target: &Target) -> Result<()> {
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::b_gradient::<T>(desc, dy, h, target));
    }
    gpu::b_gradient(desc, dy, h, target)
}

/// `Σ_rows dy`, of a bias of the product or of z.
fn bias_gradient(dy: &Tensor, target: &Target) -> Result<()> {
    if dy.device().is_cpu() {
        return with_real!(dy.dtype(), OP, T => sum_columns::<T>(OP, dy, dy.cols(), target));
    }
    gpu::bias_gradient(dy, target)
}

#[cfg(test)]
mod tests;
