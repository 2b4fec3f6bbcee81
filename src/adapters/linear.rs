//! A frozen linear with a place for an adapter.

use std::fmt;
use std::sync::Arc;

use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::ops::{frozen_linear, linear};
use crate::tensor::{FrozenWeight, ParamId};

/// An adapter on a linear: computes the layer's output from its input, the frozen weight and the bias. It holds ids of parameters, not
/// values, and never changes: whoever changes its form puts another in its place.
pub trait LinearAdapter: fmt::Debug + Send + Sync {
    /// `x [.., k]` to `[.., n]`.
    fn forward(&self, tape: &mut Tape, x: &Var, weight: &FrozenWeight, bias: Option<&Var>) -> Result<Var>;
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
}

impl AdaptedLinear {
    /// `name` is the module path, as adapter files spell it.
    pub fn new(name: impl Into<String>, weight: FrozenWeight, bias: Option<Var>) -> Self {
        AdaptedLinear { name: name.into(), weight, bias, slot: Slot::Frozen }
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

    /// `[.., k]` to `[.., n]`.
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        match &self.slot {
            Slot::Frozen => frozen_linear(tape, x, &self.weight, self.bias.as_ref(), None),
            Slot::Adapted(adapter) => adapter.forward(tape, x, &self.weight, self.bias.as_ref()),
            Slot::Dense { weight, bias } => {
                let weight = tape.param(*weight)?;
                let bias = bias.map(|b| tape.param(b)).transpose()?;
                linear(tape, x, &weight, bias.as_ref())
            }
        }
    }

    /// Numbers in the frozen weight and bias.
    pub fn frozen_numel(&self) -> usize {
        self.weight.n() * self.weight.k() + self.bias.as_ref().map_or(0, |b| b.tensor().numel())
    }
}
