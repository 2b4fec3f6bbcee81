//! Checkpoints of a run, and going on from one.

use std::path::Path;

use graftwork::adapters::adapter_file;
use graftwork::format::checkpoint::{self, Checkpoint, State};
use graftwork::{Device, Error, Result};
use serde_json::Value;

use super::args::{Args, Method, Pace, Recipe};
use super::setup;
use super::train::Trainer;
use crate::digits::Digits;

/// Checkpoints that stay in a run's directory.
const KEEP: usize = 3;

/// Writes `dir/step-NNNNNN`, whole or not at all, and removes the oldest beyond [`KEEP`].
pub fn save(dir: &Path, trainer: &Trainer) -> Result<()> {
    let params = &trainer.model.params;
    let (first, second) = trainer.optimizer.moments();
    let checkpoint = Checkpoint {
        state: State::new(params, trainer.progress(), as_value(dir, &trainer.pace)?, as_value(dir, &trainer.recipe)?),
        adapter: adapter_file(&trainer.recipe.peft()?, params)?,
        master: params.master().clone(),
        first_moment: first.clone(),
        second_moment: second.clone(),
        losses: trainer.losses.clone(),
    };
    checkpoint.save(dir)?;
    checkpoint::prune(dir, KEEP)
}

/// The newest complete checkpoint in `dir`, ready to train on.
pub fn resume<'a>(dir: &Path, args: &Args, method: Method, device: &Device, digits: &'a Digits) -> Result<Trainer<'a>> {
    let Some(latest) = checkpoint::latest(dir)? else {
        let reason = "holds no checkpoint; start a run with --out DIR --save-every N";
        return Err(Error::File { path: dir.into(), reason: reason.into() });
    };
    for error in &latest.passed_over {
        eprintln!("passed over: {error}");
    }
    let saved = Checkpoint::load(&latest.path, device)?;
    let recipe: Recipe = from_value(&latest.path, &saved.state.config)?;
    if !recipe.is_sound() {
        let reason = format!("has {} micro-batches of {} images a step", recipe.accumulate, recipe.batch);
        return Err(Error::File { path: latest.path, reason });
    }
    let mut pace: Pace = from_value(&latest.path, &saved.state.schedule)?;
    hold_to_what_was_given(&latest.path, args, method, &recipe, &pace)?;
    pace.last_step = args.last_step(&recipe, digits.train.len(), pace.last_step);
    let model = setup::build(&args.trunk, &recipe, device)?;
    saved.restore(&latest.path, &model.params)?;
    let mut trainer = Trainer::start(model, recipe, pace, digits)?;
    trainer.optimizer.restore(&saved.first_moment, &saved.second_moment, saved.state.progress.step)?;
    trainer.step = saved.state.progress.step;
    trainer.losses = saved.losses;
    println!("resumed {} after step {}", latest.path.display(), trainer.step);
    Ok(trainer)
}

/// A resumed run has the recipe of its checkpoint. An option on the command line that says otherwise is an error, not ignored.
fn hold_to_what_was_given(path: &Path, args: &Args, method: Method, recipe: &Recipe, pace: &Pace) -> Result<()> {
    let asked = Recipe { alpha: args.alpha.unwrap_or(recipe.alpha), ..args.recipe(method)? };
    let (asked, saved) = (as_value(path, &asked)?, as_value(path, recipe)?);
    let mut differ: Vec<String> = args
        .given
        .iter()
        .filter(|id| saved.get(id.as_str()).is_some() && saved.get(id.as_str()) != asked.get(id.as_str()))
        .map(|id| format!("--{} (it has {})", id.replace('_', "-"), saved[id.as_str()]))
        .collect();
    let given = |id: &str| args.given.iter().any(|g| g == id);
    if given("lr") && args.lr != pace.schedule.lr {
        differ.push(format!("--lr (it has {})", pace.schedule.lr));
    }
    if given("warmup") && args.warmup != pace.schedule.warmup_steps {
        differ.push(format!("--warmup (it has {})", pace.schedule.warmup_steps));
    }
    let decay = args.schedule.map(graftwork::optim::Decay::from);
    if decay.is_some_and(|decay| decay != pace.schedule.decay) {
        differ.push(format!("--schedule (it has {:?})", pace.schedule.decay));
    }
    if differ.is_empty() {
        return Ok(());
    }
    let reason = format!("was made with other settings than {}; leave these options out to go on", differ.join(", "));
    Err(Error::File { path: path.into(), reason })
}

fn as_value(path: &Path, value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::File { path: path.into(), reason: e.to_string() })
}

fn from_value<T: serde::de::DeserializeOwned>(path: &Path, value: &Value) -> Result<T> {
    serde_json::from_value(value.clone())
        .map_err(|e| Error::File { path: path.into(), reason: format!("was not written by this command: {e}") })
}
