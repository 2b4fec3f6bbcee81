//! A frozen linear with a place for an adapter.

use std::fmt;
use std::sync::Arc;

use super::merge::{MergeReport, merged};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::ops::{After, LowRank, Updates, frozen_linear, frozen_linear_with, linear};
use crate::tensor::{FrozenWeight, ParamId, ParamSet};

/// A frozen linear as its adapter sees it.
#[derive(Clone, Copy, Debug)]
pub struct Frozen<'a> {
    pub weight: &'a FrozenWeight,
    pub bias: Option<&'a Var>,
    /// What the adapted output still goes through: a product takes it along.
    pub after: After<'a>,
}

impl Frozen<'_> {
    /// `x W₀ᵀ + b` alone: whoever calls this applies `after`.
    pub fn product(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        frozen_linear(tape, x, self.weight, self.bias, None)
    }

    /// With a low-rank update, or none, and what follows, in one pass.
    pub fn with(&self, tape: &mut Tape, x: &Var, low_rank: Option<LowRank>) -> Result<Var> {
        frozen_linear_with(tape, x, self.weight, self.bias, Updates { low_rank, sparse: None }, self.after)
    }
}

/// An adapter on a linear: computes the layer's output from its input, the frozen weight and the bias. It holds ids of parameters, not
/// values, and never changes: whoever changes its form puts another in its place.
pub trait LinearAdapter: fmt::Debug + Send + Sync {
    /// `x [.., k]` to `[.., n]`, `frozen.after` included.
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var>;

    /// The matrix `[n, k]`, row-major, that can be added to `weight` in this adapter's place.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is none, because what is added to the output depends on the input in another way.
    fn update(&self, params: &ParamSet, weight: &FrozenWeight) -> Result<Vec<f64>> {
        let _ = (params, weight);
        let hint = "keep the adapter beside the weight".into();
        Err(Error::Unsupported { op: "merge", what: format!("{self:?} is no matrix that could be added"), hint })
    }
}

/// What sits on a linear.
#[derive(Clone, Debug, Default)]
pub enum Slot {
    #[default]
    Frozen,
    Adapted(Arc<dyn LinearAdapter>),
    /// The whole layer learns, in place of the frozen one.
    Dense {
        weight: ParamId,
        bias: Option<ParamId>,
    },
}

#[derive(Clone, Debug)]
pub struct AdaptedLinear {
    name: String,
    weight: FrozenWeight,
    bias: Option<Var>,
    slot: Slot,
    /// Weight and adapter as they were before a merge.
    unmerged: Option<(FrozenWeight, Slot)>,
}

impl AdaptedLinear {
    /// `name` is the module path, as adapter files spell it.
    pub fn new(name: impl Into<String>, weight: FrozenWeight, bias: Option<Var>) -> Self {
        AdaptedLinear { name: name.into(), weight, bias, slot: Slot::Frozen, unmerged: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn weight(&self) -> &FrozenWeight {
        &self.weight
    }

    pub fn bias(&self) -> Option<&Var> {
        self.bias.as_ref()
    }

    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    pub fn set_slot(&mut self, slot: Slot) {
        self.slot = slot;
    }

    /// Puts `adapter` on this linear, in place of what was there.
    pub fn adapt(&mut self, adapter: impl LinearAdapter + 'static) {
        self.slot = Slot::Adapted(Arc::new(adapter));
    }

    /// Adds the adapter's update to the weight, which then is a frozen one without an adapter. The old weight and the adapter are kept, so
    /// that [`AdaptedLinear::unmerge`] restores them bit for bit.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an adapter that is no matrix, a layer that learns as a whole, or one that is merged already;
    /// [`Error::Value`] for a sum that is not finite in the weight's dtype. Nothing is changed then.
    pub fn merge(&mut self, params: &ParamSet) -> Result<MergeReport> {
        let Slot::Adapted(adapter) = &self.slot else {
            let what = format!("`{}` carries no adapter", self.name);
            return Err(Error::Unsupported { op: "merge", what, hint: "merge linears with an adapter, once".into() });
        };
        let update = adapter.update(params, &self.weight)?;
        let (weight, report) = merged(&self.name, &self.weight, &update)?;
        let old = (std::mem::replace(&mut self.weight, weight), std::mem::take(&mut self.slot));
        self.unmerged = Some(old);
        Ok(report)
    }

    /// Takes a merge back. Says whether there was one.
    pub fn unmerge(&mut self) -> bool {
        let Some((weight, slot)) = self.unmerged.take() else { return false };
        (self.weight, self.slot) = (weight, slot);
        true
    }

    /// `[.., k]` to `[.., n]`.
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        self.forward_then(tape, x, After::default())
    }

    /// With what follows in the trunk, in the same pass where the kernel takes it along.
    pub fn forward_then(&self, tape: &mut Tape, x: &Var, after: After<'_>) -> Result<Var> {
        let frozen = Frozen { weight: &self.weight, bias: self.bias.as_ref(), after };
        match &self.slot {
            Slot::Frozen => frozen.with(tape, x, None),
            Slot::Adapted(adapter) => adapter.forward(tape, x, frozen),
            Slot::Dense { weight, bias } => {
                let weight = tape.param(*weight)?;
                let bias = bias.map(|b| tape.param(b)).transpose()?;
                let y = linear(tape, x, &weight, bias.as_ref())?;
                after.apply(tape, y)
            }
        }
    }

    /// Numbers in the frozen weight and bias.
    pub fn frozen_numel(&self) -> usize {
        self.weight.n() * self.weight.k() + self.bias.as_ref().map_or(0, |b| b.tensor().numel())
    }
}
