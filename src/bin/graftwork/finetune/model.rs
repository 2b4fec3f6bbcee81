//! The model of a run: frozen trunk, adapter, parameters; saved as an adapter and loaded back from one.

use std::path::Path;

use graftwork::autograd::{Tape, Var};
use graftwork::format::adapter::SavedAdapter;
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Device, Result};

use super::args::Recipe;
use super::methods::{self, Method};
use super::options;
use super::tasks::{Model, Scores, Task};

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
        let (mut model, mut method) = bare(recipe, task, device)?;
        method.begin(&mut *model).map_err(|e| options::blame(e, method.picks_by()))?;
        let (params, summary) = attached(&mut *model, &*method, recipe.seed)?;
        Ok(Adapted { model, method, params, summary })
    }

    /// The trunk with an adapter of the form that a checkpoint in `dir` has; its values are still to come.
    pub fn like(dir: &Path, saved: &SavedAdapter, recipe: &Recipe, task: &dyn Task, device: &Device) -> Result<Self> {
        let (mut model, mut method) = bare(recipe, task, device)?;
        if let SavedAdapter::Native(file) = saved {
            method.take_form(dir, &mut file.clone(), &mut *model)?;
        }
        let (params, summary) = attached(&mut *model, &*method, recipe.seed)?;
        Ok(Adapted { model, method, params, summary })
    }

    /// Attaches the method in its present form and gives back the parameters that it had before.
    pub fn attach_again(&mut self, seed: u64) -> Result<ParamSet> {
        let (params, summary) = attached(&mut *self.model, &*self.method, seed)?;
        self.summary = summary;
        Ok(std::mem::replace(&mut self.params, params))
    }

    /// The trunk with the adapter that was saved in `dir`: nothing of the trained model is reused.
    pub fn reload(dir: &Path, recipe: &Recipe, task: &dyn Task, device: &Device) -> Result<Self> {
        let (mut model, method) = bare(recipe, task, device)?;
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

    pub fn scores(&self) -> Result<Scores> {
        self.model.scores(&self.params)
    }

    /// Frozen and trainable numbers.
    pub fn total_params(&self) -> usize {
        self.model.frozen_numel() + self.params.numel()
    }
}

/// The trunk, and what is to be put on it.
fn bare(recipe: &Recipe, task: &dyn Task, device: &Device) -> Result<(Box<dyn Model>, Box<dyn Method>)> {
    let model = task.model(&recipe.trunk, device, recipe.dtype()?);
    Ok((model.map_err(|e| options::blame_file(e, "--trunk"))?, recipe.method()?))
}

/// Heads and adapter on the trunk, and their parameters with starting values.
fn attached(model: &mut dyn Model, method: &dyn Method, seed: u64) -> Result<(ParamSet, String)> {
    let mut params = ParamSetBuilder::new();
    model.learn_heads(&mut params)?;
    let attached = method.attach(model.trunk(), &mut params);
    let summary = attached.map_err(|e| options::blame(e, method.picks_by()))?;
    Ok((params.build(model.device(), model.dtype(), seed)?, summary))
}
