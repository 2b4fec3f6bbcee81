//! Checkpoints of a run, and going on from one.

use std::path::{Path, PathBuf};

use graftwork::format::checkpoint::{self, Checkpoint, State};
use graftwork::optim::Ewc;
use graftwork::{Device, Error, Result};
use serde_json::Value;

use super::args::{Args, Pace, Recipe};
use super::model::Adapted;
use super::options;
use super::tasks::{self, Task};
use super::train::{Course, Trainer};
use super::{plan, strict};
use crate::output::{complain, say};

/// Checkpoints that stay in a run's directory.
const KEEP: usize = 3;

/// Writes `dir/step-NNNNNN`, whole or not at all, and removes the oldest beyond [`KEEP`].
pub fn save(dir: &Path, trainer: &Trainer) -> Result<()> {
    let params = &trainer.adapted.params;
    let (first, second) = trainer.optimizer.moments();
    let checkpoint = Checkpoint {
        state: State::new(
            params,
            trainer.progress(),
            as_value(dir, &trainer.course())?,
            as_value(dir, &trainer.recipe)?,
        ),
        adapter: trainer.adapted.saved(&trainer.recipe)?,
        master: params.master().clone(),
        first_moment: first.clone(),
        second_moment: second.clone(),
        springs: trainer.ewc.as_ref().map(|ewc| [ewc.anchor().clone(), ewc.squares().clone()]),
        losses: trainer.losses.clone(),
    };
    checkpoint.save(dir)?;
    checkpoint::prune(dir, KEEP)
}

/// The directory of a run, given it or one of its checkpoints.
pub fn run_directory(dir: &Path) -> PathBuf {
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if is_checkpoint(dir) { parent.to_path_buf() } else { dir.to_path_buf() }
}

fn is_checkpoint(dir: &Path) -> bool {
    dir.join("state.json").is_file()
}

/// A new run among another's checkpoints would be pruned as the older one, and resuming would find the other.
pub fn require_no_checkpoints(dir: &Path) -> Result<()> {
    let Some(latest) = checkpoint::latest(dir)? else { return Ok(()) };
    let reason = format!(
        "holds checkpoints of another run (step {}); pass --resume to go on with it, or another --out",
        latest.step
    );
    Err(Error::File { path: dir.into(), reason })
}

/// A run within a checkpoint would be lost with it.
pub fn require_no_checkpoint(dir: &Path) -> Result<()> {
    if !is_checkpoint(dir) {
        return Ok(());
    }
    Err(Error::File {
        path: dir.into(),
        reason: "is a checkpoint; pass another directory, or --resume to go on from it".into(),
    })
}

/// Whether there is something in `dir` to go on from.
pub fn is_begun(dir: &Path) -> bool {
    is_checkpoint(dir) || !matches!(checkpoint::latest(dir), Ok(None))
}

/// Recipe and pace of the newest checkpoint in `dir`, read but not held to anything; `None` where there is none.
pub fn recipe_in(dir: &Path) -> Result<Option<(Recipe, Pace)>> {
    let path = match is_checkpoint(dir) {
        true => dir.to_path_buf(),
        false => match checkpoint::latest(dir)? {
            Some(latest) => latest.path,
            None => return Ok(None),
        },
    };
    let file = path.join("state.json");
    let bytes = std::fs::read(&file).map_err(|source| Error::Io { path: file.clone(), source })?;
    let state = State::parse(&file, &bytes)?;
    let course: Course = from_value(&file, &state.schedule)?;
    Ok(Some((from_value(&file, &state.config)?, course.pace)))
}

/// The newest complete checkpoint in `dir`, or `dir` itself if it is one, ready to train on.
pub fn resume(dir: &Path, args: &Args, task: &dyn Task, device: &Device) -> Result<Trainer> {
    let path = if is_checkpoint(dir) { dir.to_path_buf() } else { newest(dir)? };
    let saved = Checkpoint::load(&path, device)?;
    let mut recipe: Recipe = from_value(&path, &saved.state.config)?;
    let Course { mut pace, before, history, observations } = from_value(&path, &saved.state.schedule)?;
    hold(&path, args, &mut recipe, &mut pace, task)?;
    let adapted = Adapted::like(&path, &saved.adapter, &recipe, task, device)?;
    saved.restore(&path, &adapted.params)?;
    let mut trainer = Trainer::start(adapted, recipe, pace, task.samples())?;
    trainer.optimizer.restore(&saved.first_moment, &saved.second_moment, saved.state.progress.step)?;
    trainer.step = saved.state.progress.step;
    trainer.losses = saved.losses;
    (trainer.before, trainer.history) = (before, history);
    trainer.ewc = match (trainer.recipe.ewc, &saved.springs) {
        (Some(springs), Some([anchor, squares])) => {
            Some(Ewc::restore(springs.config(), anchor.clone(), squares.clone(), observations)?)
        }
        (None, None) => None,
        _ => {
            return Err(Error::File { path, reason: "has an anchor that its settings do not ask for, or none".into() });
        }
    };
    if trainer.progress() != saved.state.progress || trainer.losses.len() as u64 != trainer.step {
        let reason = format!("does not stand where its settings are after step {}", trainer.step);
        return Err(Error::File { path, reason });
    }
    if trainer.step >= trainer.pace.last_step {
        say!(
            "nothing is left to train: the checkpoint is at step {}, the run ends at {}",
            trainer.step,
            trainer.pace.last_step
        );
    }
    say!("resumed {} after step {}", path.display(), trainer.step);
    Ok(trainer)
}

/// Holds what was read from `path` to what it can be, to what the command line says and to the trunk that is there; takes over from the
/// command line what may change.
pub fn hold(path: &Path, args: &Args, recipe: &mut Recipe, pace: &mut Pace, task: &dyn Task) -> Result<()> {
    require_in_range(path, recipe, pace)?;
    recipe.method().map_err(|e| e.within(path.display().to_string()))?;
    hold_to_what_was_given(path, args, recipe, pace, task.samples())?;
    if let Some(trunk) = &args.trunk {
        recipe.trunk.clone_from(trunk);
    }
    let fingerprint = tasks::fingerprint(&recipe.trunk, task.trunk_files());
    if fingerprint.map_err(|e| options::blame_file(e, "--trunk"))? != recipe.trunk_fingerprint {
        let reason =
            format!("was trained on another trunk than {}; pass --trunk DIR of that one", recipe.trunk.display());
        return Err(Error::File { path: path.into(), reason });
    }
    pace.save_every = args.save_every.or(pace.save_every);
    pace.last_step = args.last_step(recipe, task.samples(), pace.last_step);
    Ok(())
}

fn newest(dir: &Path) -> Result<PathBuf> {
    let Some(latest) = checkpoint::latest(dir)? else { return Err(nothing_there(dir)) };
    for error in &latest.passed_over {
        complain(format_args!("passed over: {error}"));
    }
    Ok(latest.path)
}

/// No checkpoint, where one was to be resumed.
pub fn nothing_there(dir: &Path) -> Error {
    if !dir.is_dir() {
        return Error::File {
            path: dir.into(),
            reason: "is no directory; pass the one that a run was given as --out".into(),
        };
    }
    let mut below: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|run| matches!(checkpoint::latest(run), Ok(Some(_))))
        .map(|run| run.display().to_string())
        .collect();
    below.sort_unstable();
    let hint = if below.is_empty() {
        "start a run with --out DIR --save-every N".to_string()
    } else {
        format!("it compares runs; resume one of {}", below.join(", "))
    };
    Error::File { path: dir.into(), reason: format!("holds no checkpoint; {hint}") }
}

/// What is read was perhaps not written by this command.
fn require_in_range(path: &Path, recipe: &Recipe, pace: &Pace) -> Result<()> {
    let mut settings = as_value(path, recipe)?.as_object().cloned().unwrap_or_default();
    for (option, value) in [
        ("lr", Value::from(pace.schedule.lr)),
        ("warmup", pace.schedule.warmup_steps.into()),
        ("steps", pace.last_step.into()),
        ("save_every", pace.save_every.into()),
    ] {
        settings.insert(option.into(), value);
    }
    options::require_in_range(path, &settings)?;
    if recipe.fits_counters() {
        return Ok(());
    }
    let reason = format!("has {} micro-batches of {} samples a step", recipe.accumulate, recipe.batch);
    Err(Error::File { path: path.into(), reason })
}

/// A resumed run has the recipe of its checkpoint. An option on the command line that says otherwise is an error, not ignored.
fn hold_to_what_was_given(path: &Path, args: &Args, recipe: &Recipe, pace: &Pace, samples: usize) -> Result<()> {
    let saved = as_value(path, recipe)?;
    // Where options name several settings, the recipe is one of them.
    let mut closest: Option<Vec<String>> = None;
    for (_, asked) in plan::asked(args, &recipe.method, &recipe.trunk_fingerprint, samples)? {
        // Another place of the same trunk is no other setting.
        let asked = as_value(path, &Recipe { trunk: recipe.trunk.clone(), ..asked })?;
        let differs =
            |id: &&String| saved.get(id.as_str()).is_some() && saved.get(id.as_str()) != asked.get(id.as_str());
        let said = |id: &String| format!("--{} (it has {})", id.replace('_', "-"), saved[id.as_str()]);
        let differ: Vec<String> = args.given.iter().filter(differs).map(said).collect();
        if closest.as_ref().is_none_or(|closest| differ.len() < closest.len()) {
            closest = Some(differ);
        }
    }
    let mut differ = closest.unwrap_or_default();
    if args.is_given("lr") && args.lr != pace.schedule.lr {
        differ.push(format!("--lr (it has {})", pace.schedule.lr));
    }
    if args.is_given("warmup") && args.warmup != pace.schedule.warmup_steps {
        differ.push(format!("--warmup (it has {})", pace.schedule.warmup_steps));
    }
    let decay = args.schedule.map(graftwork::optim::Decay::from);
    if decay.is_some_and(|decay| decay != pace.schedule.decay) {
        differ.push(format!("--schedule (it has {:?})", pace.schedule.decay));
    }
    require_the_same(path, &differ)
}

/// Refuses options of a resumed run that say otherwise than it was begun with: `differ` names each, and what it was.
pub fn require_the_same(path: &Path, differ: &[String]) -> Result<()> {
    if differ.is_empty() {
        return Ok(());
    }
    let reason = format!("was made with other settings than {}; leave these options out to go on", differ.join(", "));
    Err(Error::File { path: path.into(), reason })
}

fn as_value(path: &Path, value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value).map_err(|e| Error::File { path: path.into(), reason: e.to_string() })
}

fn from_value<T: serde::Serialize + serde::de::DeserializeOwned>(path: &Path, value: &Value) -> Result<T> {
    strict::read(value)
        .map_err(|e| Error::File { path: path.into(), reason: format!("was not written by this command: {e}") })
}
