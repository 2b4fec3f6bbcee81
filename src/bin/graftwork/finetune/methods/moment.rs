//! The moment before a step, when a method may change its form.

use graftwork::adapters::Trunk;
use graftwork::autograd::{Grads, Tape};
use graftwork::optim::Carry;
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Device, Result};

use super::Model;

pub struct Moment<'a> {
    /// The step that is about to be taken.
    pub step: u64,
    /// Of the run.
    pub seed: u64,
    pub model: &'a mut dyn Model,
    pub params: &'a ParamSet,
    /// The samples of this step and of those after it, as far as asked for.
    pub batches: &'a mut dyn FnMut(u64) -> Vec<usize>,
    /// Told before each batch how many are done of how many; says whether to go on.
    pub goes_on: &'a mut dyn FnMut(u64, u64) -> bool,
    /// Attaches what learns beside the method, and is part of the model that a gradient is taken of.
    pub beside: Option<Attach<'a>>,
}

pub type Attach<'a> = &'a dyn Fn(&mut dyn Trunk, &mut ParamSetBuilder) -> Result<()>;

impl Moment<'_> {
    /// The same moment for a method that has something beside it.
    pub fn with<'b>(&'b mut self, beside: Attach<'b>) -> Moment<'b> {
        Moment {
            step: self.step,
            seed: self.seed,
            model: &mut *self.model,
            params: self.params,
            batches: &mut *self.batches,
            goes_on: &mut *self.goes_on,
            beside: Some(beside),
        }
    }

    pub fn device(&self) -> Device {
        self.model.device().clone()
    }

    /// Gradients, summed over the samples of `steps` steps, of what `attach` puts on the trunk. Parameters have their present values. `None`
    /// where the run is to end: what was summed by then must not count.
    pub fn gradients(
        &mut self,
        steps: u64,
        attach: impl FnOnce(&mut dyn Trunk, &mut ParamSetBuilder) -> Result<()>,
    ) -> Result<Option<Grads>> {
        let mut builder = ParamSetBuilder::new();
        self.model.learn_heads(&mut builder)?;
        attach(self.model.trunk(), &mut builder)?;
        if let Some(beside) = self.beside {
            beside(self.model.trunk(), &mut builder)?;
        }
        let params = builder.build(self.model.device(), self.model.dtype(), self.seed)?;
        Carry::whole().values(self.params, &params)?;
        let mut grads = Grads::zeros(&params)?;
        for step in 0..steps {
            if !(self.goes_on)(step, steps) {
                return Ok(None);
            }
            let indices = (self.batches)(self.step + step);
            let mut tape = Tape::deterministic(&params);
            let loss = self.model.loss(&mut tape, &indices, indices.len())?;
            tape.backward(&loss, &mut grads)?;
        }
        Ok(Some(grads))
    }
}
