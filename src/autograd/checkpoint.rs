//! Checkpointing: a segment of a model keeps only its input, and its forward runs again in backward.

use std::fmt;
use std::sync::Arc;

use super::node::{Recorded, Sinks};
use super::tape::{Tape, Tracking};
use super::var::{Saved, Var};
use crate::error::Result;
use crate::tensor::{ParamSet, Tensor};

/// A part of a model with one input and one output that can be run twice with equal bits: every block of a trunk.
pub trait Segment: fmt::Debug + Send + Sync {
    fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var>;
}

impl Tape {
    /// Runs `segment`. With [`Tape::recompute_blocks`] on, only `x` is kept, and backward runs the segment again.
    pub fn checkpoint(&mut self, segment: &Arc<dyn Segment>, x: &Var) -> Result<Var> {
        if !self.recompute_blocks || self.tracking != Tracking::Adapters {
            return segment.forward(self, x);
        }
        let mut probe = Tape::with(self.params(), Tracking::Needs, self.randomness);
        let probed = probe.leaf(x.tensor().clone(), x.needs_grad());
        let y = segment.forward(&mut probe, &probed)?;
        if !y.needs_grad() {
            return Ok(Var::constant(y.tensor().clone()));
        }
        // The node is recorded even if x needs no gradient: parameters inside the segment do.
        let node = Checkpoint {
            segment: segment.clone(),
            x: Saved::Held(x.tensor().clone()),
            x_needs_grad: x.needs_grad(),
            params: self.params().clone(),
            randomness: self.randomness,
        };
        Ok(self.record_always(y.tensor().clone(), &[x], node))
    }

    fn leaf(&mut self, x: Tensor, needs_grad: bool) -> Var {
        if needs_grad { self.input(x) } else { Var::constant(x) }
    }
}

#[derive(Debug)]
struct Checkpoint {
    segment: Arc<dyn Segment>,
    x: Saved,
    x_needs_grad: bool,
    params: ParamSet,
    randomness: Option<(u64, u32)>,
}

impl Recorded for Checkpoint {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn saved(&self) -> Vec<&Saved> {
        vec![&self.x]
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let mut tape = Tape::with(&self.params, Tracking::Adapters, self.randomness);
        let x = tape.leaf(self.x.get()?, self.x_needs_grad);
        let y = self.segment.forward(&mut tape, &x)?;
        // A gradient that x has from elsewhere goes in first, so that the segment's ops add to it in place.
        let seed = sinks.take(0).map(|dx| (&x, dx));
        let done = tape.backward_from(&y, dy.clone(), seed, sinks.grads, Some(sinks.ledger))?;
        if let Some(dx) = done.input_gradient(&x) {
            sinks.pass(0, dx);
        }
        Ok(())
    }
}
