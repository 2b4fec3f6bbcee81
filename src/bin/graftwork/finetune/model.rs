//! The model of a run: frozen trunk, adapter, parameters; saved as an adapter and loaded back from one.

use std::path::Path;

use graftwork::autograd::{Tape, Var};
use graftwork::format::adapter::SavedAdapter;
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Device, Result};

use super::args::Recipe;
use super::methods::{self, Method};
use super::tasks::{Model, Task};

/// A task's model with an adapter on it.
pub struct Adapted {
    pub model: Box<dyn Model>,
    pub method: Box<dyn Method>,
    pub params: ParamSet,
    pub summary: String,
}

impl Adapted {
    /// The trunk with a fresh adapter.
    pub fn fresh(recipe: &Recipe, task: &dyn Task, device: &Device) -> Result<Self> {
        let (mut model, method) = (task.model(&recipe.trunk, device, recipe.dtype()?)?, recipe.method()?);
        let mut params = ParamSetBuilder::new();
        model.learn_heads(&mut params)?;
        let summary = method.attach(model.trunk(), &mut params)?;
        let params = params.build(device, recipe.dtype()?, recipe.seed)?;
        Ok(Adapted { model, method, params, summary })
    }

    /// The trunk with the adapter that was saved in `dir`: nothing of the trained model is reused.
    pub fn reload(dir: &Path, recipe: &Recipe, task: &dyn Task, device: &Device) -> Result<Self> {
        let (mut model, method) = (task.model(&recipe.trunk, device, recipe.dtype()?)?, recipe.method()?);
        let params = method.load(dir, &mut *model)?;
        Ok(Adapted { model, method, params, summary: String::new() })
    }

    /// The adapter as files hold it.
    pub fn saved(&self, recipe: &Recipe) -> Result<SavedAdapter> {
        self.method.save(methods::by_name(&recipe.method)?, &recipe.settings(), self.model.heads(), &self.params)
    }

    pub fn loss(&self, tape: &mut Tape, indices: &[usize], whole: usize) -> Result<Var> {
        self.model.loss(tape, indices, whole)
    }

    pub fn scores(&self) -> Result<Vec<(&'static str, f64)>> {
        self.model.scores(&self.params)
    }

    /// Frozen and trainable numbers.
    pub fn total_params(&self) -> usize {
        self.model.frozen_numel() + self.params.numel()
    }
}
