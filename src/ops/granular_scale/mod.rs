//! The granularity gate: a sub-layer's output, with an adapter's update, scaled by a gate that tells apart single values, rows,
//! columns or nothing but samples.
//!
//! ```text
//! U = H + ΔH + b        Y = s · U ⊙ G        y = dropout(Y) + R        ΔH given, or D Wuᵀ
//! ```
//!
//! | gate | G | shape of G | learns |
//! |---|---|---|---|
//! | [`Gate::Large`] | `σ(L)` | `[m, k]` | what made L |
//! | [`Gate::MiddleX`] | `σ((R + U)·w + c)` | `[m, 1]` | `w [k]`, `c [1]` |
//! | [`Gate::MiddleY`] | `1 + z`, or `1 + σ(z)` | `[1, k]` | `z [k]` |
//! | [`Gate::Open`] | 1 | |
//! | [`Gate::Small`] | mean over a sample's tokens of `σ([R ; U]·w + c)` | one for each sample | `w [2k]`, `c [1]` |
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `H`, `ΔH`, `R`, `L`, `y` | `[.., k]`, m rows; for Small `[.., t, k]`, a sample being t rows | f32, f16, bf16 (f64 on the CPU) |
//! | `b` | `[k]` | as H |
//! | `D`, `Wu` | `[.., r]`, `[k, r / heads]`: block-diagonal with more than one head, no zero stored or multiplied | as H |
//!
//! Of a product ([`Update::Product`]) the gate takes the sums as they come, tile by tile, and ΔH is never written. MiddleX and Small look
//! at whole rows of U: on a GPU a pass before the product makes their logits, with `ΔH_i · w = D_i · (Wuᵀ w)`. Backward multiplies again,
//! into memory that lasts as long as its call, where a gradient of the gate needs U.
//!
//! ΔH, b and R may be absent. Where the paper and its published code differ, the code's behaviour is the default: the gate of MiddleX
//! and Small sees `U` ([`GateInput::Updated`]; the paper's figure shows `H`, [`GateInput::Hidden`]), MiddleY has no sigmoid (the figure
//! shows one), and Small's mean runs over all positions, padding included ([`TokenWeights`] confines it to real tokens).
//!
//! Backward, with `g = s · dropout'(dy)` and U again from H, ΔH and b: `dU = g ⊙ G`, to which MiddleX and Small add `dl ⊗ w`;
//! Large `dL = g ⊙ U ⊙ G ⊙ (1 − G)`; MiddleX `dl_i = (Σ_j g_ij U_ij) · G_i(1 − G_i)`; MiddleY `dz_j = Σ_i g_ij U_ij` (times `σ'`);
//! Small `dl_i = (Σ_sample g ⊙ U) · p_i σ'(l_i)` with p the weights of the mean; `dw = Σ_i dl_i (R + U)_i`, `dc = Σ_i dl_i`,
//! `db = Σ_i dU_i`, `dR = dy + dl ⊗ w`; `dD = dU Wu`, `dWu = dUᵀ D`. All sums in a fixed order.
//! Kept for it: H and ΔH or D, where a gradient of the gate flows; D if Wu learns; L; MiddleX and Small one number a row, and R if w learns; never G, U, Y
//! or a mask.
//!
//! Cost: 10 to 30 floating-point operations an element; H, ΔH, R and L are read and y written once, but twice for Small, whose mean
//! must be known before its first result. Backward likewise reads dy and what is kept, and writes dU, dL and dR.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for heads that do not divide k and r, a missing R, a dropout outside [0, 1), a scale that is not finite, or a sample of which no token counts.
//!
//! Source: Hu et al., "VL-PET: Vision-and-Language Parameter-Efficient Tuning via Granularity Control", ICCV 2023.

mod cpu;
mod gpu;
mod node;
mod product;
#[cfg(test)]
mod tests;
mod weights;

pub use weights::TokenWeights;

use crate::autograd::{Saved, Tape, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::with_real;
use crate::rng::Dropout;
use crate::shape::Dims;
use crate::tensor::Tensor;
use node::{Kept, Node};

const OP: &str = "granular_scale";

/// What the gates of MiddleX and Small look at beside R.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GateInput {
    /// `U = H + ΔH + b`: the published code.
    #[default]
    Updated,
    /// `H`: the paper's figure.
    Hidden,
}

/// How finely the scale tells values apart, and what it is made of.
#[derive(Clone, Copy, Debug)]
pub enum Gate<'a> {
    /// One for each value: logits `[.., k]`.
    Large { logits: &'a Var },
    /// One for each row: `weight [k]`, `bias [1]`.
    MiddleX { weight: &'a Var, bias: &'a Var, input: GateInput },
    /// One for each column: `offset [k]`; through a sigmoid in the paper's figure, as it is in the published code.
    MiddleY { offset: &'a Var, sigmoid: bool },
    /// None: 1 everywhere.
    Open,
    /// One for each sample: `weight [2k]`, R's half first, and `bias [1]`; the mean over all tokens, or as the weights say.
    Small { weight: &'a Var, bias: &'a Var, input: GateInput, tokens: Option<&'a TokenWeights> },
}

/// What is added to H.
#[derive(Clone, Copy, Debug)]
pub enum Update<'a> {
    /// `ΔH [.., k]`
    Given(&'a Var),
    /// `ΔH = D Wuᵀ` with `x = D [.., r]` and `weight = Wu [k, r / heads]`. With one head it is a dense product; with more, head j's
    /// columns of D make head j's columns of ΔH.
    Product { x: &'a Var, weight: &'a Var, heads: usize },
}

/// Everything beside H.
#[derive(Clone, Copy, Debug)]
pub struct GranularScale<'a> {
    pub gate: Gate<'a>,
    pub update: Option<Update<'a>>,
    /// `[k]`: the bias of the projection that made ΔH, if it is still to be added.
    pub bias: Option<&'a Var>,
    /// `R [.., k]`: the sub-layer's input.
    pub residual: Option<&'a Var>,
    /// Whether R is added to the result, beside being seen by the gate.
    pub add_residual: bool,
    pub scale: f64,
    /// Probability with which an element of the scaled output is dropped, in training.
    pub dropout: f64,
    /// Names the place, so that two layers draw different masks.
    pub site: u32,
}

impl<'a> GranularScale<'a> {
    /// The gate alone: `y = H ⊙ G`.
    pub fn new(gate: Gate<'a>) -> Self {
        let (update, bias, residual) = (None, None, None);
        GranularScale { gate, update, bias, residual, add_residual: false, scale: 1.0, dropout: 0.0, site: 0 }
    }
}

/// Shape of G. The order is that of `enum Kind` in `kernels/granular_scale.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    Large,
    MiddleX,
    MiddleY,
    Small,
}

impl Kind {
    /// Whether the gate depends on U, so that its gradient flows back into it.
    const fn looks(self) -> bool {
        matches!(self, Kind::MiddleX | Kind::Small)
    }
}

/// Extents of the product that makes ΔH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// Columns of D.
    pub r: usize,
    pub heads: usize,
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub m: usize,
    pub k: usize,
    /// Rows of a sample; all of them where the gate knows no samples.
    pub tokens: usize,
    pub kind: Kind,
    /// Absent for a gate of 1.
    pub gated: bool,
    pub product: Option<Product>,
    pub input: GateInput,
    pub sigmoid: bool,
    pub add_residual: bool,
    pub scale: f64,
    pub dropout: Option<Dropout>,
    pub dtype: DType,
}

impl Desc {
    pub fn new(tape: &Tape, hidden: &Tensor, options: &GranularScale) -> Result<Self> {
        let k = hidden.cols();
        if hidden.dims().is_empty() || k == 0 {
            return Err(Error::shape(OP, "hidden", "[.., k] with k ≥ 1", hidden.dims()));
        }
        if !hidden.dtype().is_float() {
            let got = hidden.dtype();
            return Err(Error::DType { op: OP, argument: "hidden", expected: "a float type".into(), got });
        }
        hidden.require_contiguous(OP, "hidden")?;
        let fits = |name: &'static str, other: Option<&Var>, dims: &[usize]| {
            let Some(other) = other.map(Var::tensor) else { return Ok(()) };
            other.require_dims(OP, name, dims)?;
            other.require_dtype(OP, name, hidden.dtype())?;
            other.require_device(OP, name, hidden.device())?;
            other.require_contiguous(OP, name)
        };
        let mut product = None;
        match options.update {
            Some(Update::Given(update)) => fits("update", Some(update), hidden.dims())?,
            Some(Update::Product { x, weight, heads }) => {
                let r = x.tensor().cols();
                let divides = heads > 0 && r.is_multiple_of(heads) && k.is_multiple_of(heads);
                if !divides || r == 0 {
                    let expected = format!("a divisor of the width {k} and of the bottleneck {r}");
                    return Err(Error::value(OP, "heads", expected, heads));
                }
                let mut dims = Dims::from_slice(hidden.dims());
                if let Some(last) = dims.last_mut() {
                    *last = r;
                }
                fits("x", Some(x), &dims)?;
                fits("weight", Some(weight), &[k, r / heads])?;
                product = Some(Product { r, heads });
            }
            None => {}
        }
        fits("residual", options.residual, hidden.dims())?;
        fits("bias", options.bias, &[k])?;
        if !options.scale.is_finite() {
            return Err(Error::value(OP, "scale", "a finite number", options.scale));
        }
        let mut desc = Desc {
            m: hidden.rows(),
            k,
            tokens: hidden.rows(),
            kind: Kind::Large,
            gated: true,
            product,
            input: GateInput::Updated,
            sigmoid: false,
            add_residual: options.add_residual,
            scale: options.scale,
            dropout: crate::ops::dropout_of(OP, tape, options.dropout, options.site)?,
            dtype: hidden.dtype(),
        };
        match options.gate {
            Gate::Large { logits } => fits("logits", Some(logits), hidden.dims())?,
            Gate::MiddleX { weight, bias, input } => {
                fits("weight", Some(weight), &[k])?;
                fits("gate_bias", Some(bias), &[1])?;
                (desc.kind, desc.input) = (Kind::MiddleX, input);
            }
            Gate::MiddleY { offset, sigmoid } => {
                fits("offset", Some(offset), &[k])?;
                (desc.kind, desc.sigmoid) = (Kind::MiddleY, sigmoid);
            }
            Gate::Open => (desc.kind, desc.gated) = (Kind::MiddleY, false),
            Gate::Small { weight, bias, input, tokens } => {
                let &[.., t, _] = hidden.dims() else {
                    return Err(Error::shape(OP, "hidden", "[.., t, k], a sample being t rows", hidden.dims()));
                };
                fits("weight", Some(weight), &[2 * k])?;
                fits("gate_bias", Some(bias), &[1])?;
                (desc.kind, desc.input, desc.tokens) = (Kind::Small, input, t);
                if let Some(tokens) = tokens {
                    tokens.require(hidden, t)?;
                }
            }
        }
        if (desc.kind.looks() || desc.add_residual) && options.residual.is_none() {
            let expected = "the sub-layer's input, which the gate sees or the result adds";
            return Err(Error::value(OP, "residual", expected, "absent"));
        }
        Ok(desc)
    }

    pub fn samples(&self) -> usize {
        self.m.checked_div(self.tokens).unwrap_or(0)
    }

    /// Floating-point operations of the forward pass, roughly: an exponential counts as ten.
    pub fn flops(&self) -> u64 {
        let each = match self.kind {
            Kind::Large => 16,
            Kind::MiddleX => 6,
            Kind::MiddleY => 4,
            Kind::Small => 7,
        };
        let products = self.product.map_or(0, |p| 2 * (p.r / p.heads) as u64);
        (each + products) * self.m as u64 * self.k as u64
    }

    /// Bytes that the forward pass must move at least, with an update and a residual.
    pub fn bytes(&self) -> u64 {
        let arrays = if self.kind == Kind::Large { 5 } else { 4 };
        arrays * (self.m * self.k * self.dtype.size()) as u64
    }
}

/// `y = dropout(s · (H + ΔH + b) ⊙ G) + R`; see the module for shapes and errors.
pub fn granular_scale(tape: &mut Tape, hidden: &Var, options: &GranularScale) -> Result<Var> {
    let desc = Desc::new(tape, hidden.tensor(), options)?;
    let device = hidden.tensor().device();
    let y = Tensor::empty(device, hidden.dims(), desc.dtype)?;
    let (gate, gate_bias, tokens) = match options.gate {
        Gate::Large { logits } => (Some(logits), None, None),
        Gate::MiddleX { weight, bias, .. } => (Some(weight), Some(bias), None),
        Gate::MiddleY { offset, .. } => (Some(offset), None, None),
        Gate::Open => (None, None, None),
        Gate::Small { weight, bias, tokens, .. } => (Some(weight), Some(bias), tokens),
    };
    let (update, up) = match options.update {
        Some(Update::Given(update)) => (Some(update), None),
        Some(Update::Product { x, weight, .. }) => (Some(x), Some(weight)),
        None => (None, None),
    };
    let rows = desc.kind.looks().then(|| Tensor::empty(device, &[desc.m], desc.dtype.accumulator())).transpose()?;
    let operands = Operands {
        hidden: hidden.tensor(),
        delta: Delta::of(update.map(Var::tensor), up.map(Var::tensor)),
        bias: options.bias.map(Var::tensor),
        residual: options.residual.map(Var::tensor),
        gate: gate.map(Var::tensor),
        gate_bias: gate_bias.map(Var::tensor),
        tokens: tokens.map(TokenWeights::tensor),
        rows: rows.as_ref(),
    };
    forward(&desc, &operands, &y)?;

    let none = Var::constant(y.clone());
    let all = [Some(hidden), update, options.bias, options.residual, gate, gate_bias, up];
    let inputs = all.map(|v| v.unwrap_or(&none));
    Ok(tape.record(y, &inputs, |wants| {
        let large = desc.kind == Kind::Large;
        let gates = desc.gated && (wants.weights || wants.input(node::GATE));
        let values = desc.kind.looks() || gates;
        let scaled = [node::HIDDEN, node::UPDATE, node::BIAS, node::GATE, node::UP].into_iter().any(|i| wants.input(i));
        Node {
            desc,
            hidden: values.then(|| hidden.save()),
            update: update.filter(|_| values || wants.input(node::UP)).map(Var::save),
            residual: options.residual.filter(|_| desc.kind.looks() && gates).map(Var::save),
            logits: gate.filter(|_| large && (wants.weights || scaled)).map(Var::save),
            rows: rows.map(Saved::Held),
            kept: Kept {
                bias: options.bias.map(|b| b.tensor().clone()),
                gate: gate.filter(|_| !large).map(|g| g.tensor().clone()),
                tokens: tokens.map(|t| t.tensor().clone()),
                up: up.map(|u| u.tensor().clone()),
            },
        }
    }))
}

/// ΔH, or what it is made of.
#[derive(Clone, Copy)]
enum Delta<'a> {
    None,
    Given(&'a Tensor),
    Product { x: &'a Tensor, weight: &'a Tensor },
}

impl<'a> Delta<'a> {
    fn of(update: Option<&'a Tensor>, up: Option<&'a Tensor>) -> Self {
        match (update, up) {
            (Some(x), Some(weight)) => Delta::Product { x, weight },
            (Some(update), None) => Delta::Given(update),
            (None, _) => Delta::None,
        }
    }
}

/// What forward reads besides its description. `rows` is written: the logits of MiddleX and Small.
#[derive(Clone, Copy)]
struct Operands<'a> {
    hidden: &'a Tensor,
    delta: Delta<'a>,
    bias: Option<&'a Tensor>,
    residual: Option<&'a Tensor>,
    /// Logits, w or z.
    gate: Option<&'a Tensor>,
    gate_bias: Option<&'a Tensor>,
    /// `[samples, t]`, in the accumulator's type.
    tokens: Option<&'a Tensor>,
    /// `[m]`
    rows: Option<&'a Tensor>,
}

fn forward(desc: &Desc, operands: &Operands, y: &Tensor) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if y.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::forward::<T>(desc, operands, y));
    }
    gpu::forward(desc, operands, y)
}
