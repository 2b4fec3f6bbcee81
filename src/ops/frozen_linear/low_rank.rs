//! The low-rank stage of a frozen product: `z = dropout(x) Aᵀ`, `h = mid(z)`, and `s · h Bᵀ` for the product to take along.
//!
//! s goes where the stage is linear: into h where nothing lies between, otherwise into the product with B.

use super::{Desc, OP};
use crate::autograd::{Saved, Sinks, Tape, Target, Var};
use crate::error::{Error, Result};
use crate::ops::activation::{self, Activation};
use crate::ops::dual_rank::{DualRank, Gate, Slopes};
use crate::tensor::Tensor;

/// The update `s · mid(dropout(x) Aᵀ) Bᵀ`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// `[r, k]`; of [`Mid::Dual`] `[2r, k]`.
    pub a: &'a Var,
    /// `[n, r]`
    pub b: &'a Var,
    pub mid: Mid<'a>,
    pub scale: f64,
    /// Probability with which an element of x is dropped, in training.
    pub dropout: f64,
    /// Names the place, so that two layers draw different masks.
    pub site: u32,
}

/// What lies between A and B.
#[derive(Clone, Copy, Debug, Default)]
pub enum Mid<'a> {
    #[default]
    Identity,
    /// `g ⊙ z`, g `[r]`. It acts on B, `z (B ⊙ g)ᵀ`, at a cost that no token pays.
    Gate(&'a Var),
    /// `φ(z + c)`, c `[r]`.
    Activation { activation: Activation, bias: Option<&'a Var> },
    /// `LayerNorm(S dropout(x)) ⊙ ReLU(T x)` with γ and β `[r]`, where A is S above T: [`dual_rank`](crate::ops::dual_rank()).
    Dual { gamma: &'a Var, beta: &'a Var, eps: f64 },
}

impl<'a> Mid<'a> {
    /// What of it can learn, besides a gate, which B takes in.
    pub(super) fn inputs(&self) -> [Option<&'a Var>; 2] {
        match *self {
            Mid::Identity | Mid::Gate(_) => [None; 2],
            Mid::Activation { bias, .. } => [bias, None],
            Mid::Dual { gamma, beta, .. } => [Some(gamma), Some(beta)],
        }
    }
}

/// A validated [`Mid`].
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Identity,
    Activation { activation: Activation, bias: Option<Tensor> },
    Dual(Gate),
}

impl Stage {
    pub fn new(tape: &Tape, x: &Tensor, update: &LowRank) -> Result<Self> {
        Ok(match update.mid {
            Mid::Identity | Mid::Gate(_) => Stage::Identity,
            Mid::Activation { activation, bias } => {
                if let Some(bias) = bias.map(Var::tensor) {
                    bias.require_dims(OP, "mid", &update.a.dims()[..1])?;
                    bias.require_dtype(OP, "mid", x.dtype())?;
                    bias.require_device(OP, "mid", x.device())?;
                    bias.require_contiguous(OP, "mid")?;
                }
                Stage::Activation { activation, bias: bias.map(|b| b.tensor().clone()) }
            }
            Mid::Dual { gamma, beta, eps } => {
                let &LowRank { a: stacked, dropout, site, .. } = update;
                Stage::Dual(Gate::new(tape, x, &DualRank { stacked, gamma, beta, eps, dropout, site })?)
            }
        })
    }

    /// h and z where something lies between, one tensor on a GPU if z is not kept. Otherwise they are the same, made by the launch that
    /// uses h.
    pub fn forward(&self, desc: &Desc, x: &Tensor, a: &Tensor, keeps: bool) -> Result<Option<[Tensor; 2]>> {
        match self {
            Stage::Identity => Ok(None),
            Stage::Activation { activation, bias } => {
                let z = Tensor::empty(x.device(), &[desc.m, desc.r], desc.dtype)?;
                let apart = keeps || x.device().is_cpu();
                let h = if apart { Tensor::empty(x.device(), z.dims(), desc.dtype)? } else { z.clone() };
                super::activated_low(desc, x, (a, bias.as_ref()), *activation, [&z, &h])?;
                Ok(Some([h, z]))
            }
            Stage::Dual(gate) => {
                let z = gate.project(x, a)?;
                Ok(Some([gate.open(&z)?, z]))
            }
        }
    }
}

/// An update as its node keeps it.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub stage: Stage,
    pub a: Tensor,
    pub b: Tensor,
    /// z, from which h is made again; h itself, if B learns, where nothing lies between.
    pub z: Option<Saved>,
}

/// The gradient of z: one matrix, whose product with A rides on that of dy with the weight, or two of which one alone is masked.
pub(super) enum Slope {
    Whole(Tensor),
    Halves(Box<(Slopes, Gate)>),
}

impl Kept {
    fn z(&self) -> Result<Tensor> {
        let what =
            || Error::Autograd { what: format!("{OP} kept nothing of its update"), hint: "record it anew".into() };
        self.z.as_ref().ok_or_else(what)?.get()
    }

    /// What B read.
    pub fn h(&self) -> Result<Tensor> {
        match &self.stage {
            Stage::Identity => self.z(),
            Stage::Activation { activation, .. } => activation::apply(*activation, &self.z()?),
            Stage::Dual(gate) => gate.open(&self.z()?),
        }
    }

    /// That of z, and those of what lies between, whose inputs start at `mid`.
    pub fn slope(&self, desc: &Desc, dy: &Tensor, mid: usize, sinks: &mut Sinks<'_>) -> Result<Slope> {
        let dh = super::project(desc, dy, &self.b)?;
        match &self.stage {
            Stage::Identity => Ok(Slope::Whole(dh)),
            Stage::Activation { activation, .. } => {
                let z = self.z()?;
                let dz = Tensor::empty(dh.device(), dh.dims(), desc.dtype)?;
                let target = Target { tensor: dz.clone(), accumulate: false };
                activation::backward(&activation::Desc::new(&z, *activation)?, &dh, &z, &target)?;
                if let Some(target) = sinks.open(mid)? {
                    super::bias_gradient(&dz, &target)?;
                }
                Ok(Slope::Whole(dz))
            }
            Stage::Dual(gate) => {
                let slopes = Slopes::new(gate, &self.z()?, &dh)?;
                slopes.weight_gradients(gate, [mid, mid + 1], sinks)?;
                let whole = gate.desc.dropout.is_none();
                Ok(if whole { Slope::Whole(slopes.projected) } else { Slope::Halves(Box::new((slopes, gate.clone()))) })
            }
        }
    }

    pub fn a_gradient(&self, desc: &Desc, slope: &Slope, x: &Tensor, target: &Target) -> Result<()> {
        match slope {
            Slope::Whole(dz) => super::a_gradient(desc, dz, x, target),
            Slope::Halves(halves) => halves.0.stacked_gradient(&halves.1, x, target),
        }
    }

    /// What rides on `dy W₀`.
    pub fn rides<'a>(&'a self, slope: &'a Slope) -> Option<(&'a Tensor, &'a Tensor)> {
        match slope {
            Slope::Whole(dz) => Some((&self.a, dz)),
            Slope::Halves(_) => None,
        }
    }

    /// What does not, added to `target`.
    pub fn add_input_gradient(&self, slope: &Slope, target: &Target) -> Result<()> {
        let Slope::Halves(halves) = slope else { return Ok(()) };
        let target = Target { tensor: target.tensor.clone(), accumulate: true };
        halves.0.input_gradient(&halves.1, &self.a, &target)
    }
}
