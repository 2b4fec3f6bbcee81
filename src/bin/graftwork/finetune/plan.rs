//! What a run sets out to do: a recipe and a pace for each method, or for each of the settings that a method's options name. All of them are
//! made, and so checked, before the first is trained. The plan goes into the run's directory, so that a run that was stopped is taken up as a
//! whole, at whatever moment that was.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use graftwork::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::{Args, Pace, Recipe};
use super::lock::Lock;
use super::tasks::{self, Task};
use super::{options, resume, strict};
use crate::output;

/// In the run's directory, beside the checkpoints of a single run or a directory for each part of several.
const NAME: &str = "plan.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    #[serde(default)]
    pub choice: Choice,
    pub runs: Vec<Planned>,
}

/// How what recipes leave open is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Largest share of numbers that may learn.
    pub budget: Option<f64>,
    pub trial_steps: u64,
    /// Whether later runs get the rank at which they have as many numbers as the first.
    pub equal_params: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Planned {
    /// Its directory within that of several runs.
    pub part: String,
    pub recipe: Recipe,
    pub pace: Pace,
}

impl Plan {
    /// Of a run that starts now.
    pub fn new(args: &Args, task: &dyn Task) -> Result<Self> {
        let fingerprint = tasks::fingerprint(&args.trunk()?, task.trunk_files());
        let fingerprint = fingerprint.map_err(|e| options::blame_file(e, "--trunk"))?;
        let mut runs = Vec::new();
        for method in &args.method {
            for (part, recipe) in asked(args, method, &fingerprint, task.samples())? {
                runs.push(Planned { part, pace: args.pace(&recipe, task.samples())?, recipe });
            }
        }
        Ok(Plan { choice: Choice::asked(args), runs })
    }

    /// The one that is in `dir`, with what this command line says in addition.
    pub fn resumed(dir: &Path, args: &Args, task: &dyn Task) -> Result<Self> {
        let mut plan = Plan::found(dir)?.ok_or_else(|| resume::nothing_there(dir))?;
        let methods = plan.methods();
        if !methods.iter().all(|m| args.method.contains(m)) || !args.method.iter().all(|m| methods.contains(m)) {
            let reason = format!("was made with --method {}; leave --method out to go on", methods.join(","));
            return Err(Error::File { path: dir.into(), reason });
        }
        for Planned { recipe, pace, .. } in &mut plan.runs {
            resume::hold(dir, args, recipe, pace, task)?;
        }
        plan.choice.hold(dir, args)?;
        Ok(plan)
    }

    /// What there is to go on with in `dir`, a run's directory or a checkpoint: the recipe of a single run's checkpoint, or else the plan.
    fn found(dir: &Path) -> Result<Option<Self>> {
        let written = Plan::written(&resume::run_directory(dir))?;
        let Some((recipe, pace)) = resume::recipe_in(dir)? else { return Ok(written) };
        let choice = match written {
            Some(plan) if plan.runs.len() > 1 => return Err(plan.stands_beside_checkpoints(dir)),
            Some(plan) => plan.choice,
            None => Choice::default(),
        };
        Ok(Some(Plan { choice, runs: vec![Planned { part: String::new(), recipe, pace }] }))
    }

    /// The file in a run's directory, not checked.
    fn written(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
            Err(source) => return Err(Error::Io { path, source }),
        };
        let plan = serde_json::from_slice(&bytes).map_err(|e| e.to_string()).and_then(|value| strict::read(&value));
        plan.map(Some).map_err(|e| Error::File { path, reason: format!("is not the plan of a run: {e}") })
    }

    /// Two runs in one directory, of which nobody can tell which one is meant.
    fn stands_beside_checkpoints(&self, dir: &Path) -> Error {
        let methods = self.methods().join(", ");
        let reason = format!(
            "holds the plan of a comparison ({methods}) and checkpoints of another run; move {NAME} away to go on with the checkpoints, or \
             the step-* directories to go on with the comparison"
        );
        Error::File { path: dir.into(), reason }
    }

    fn methods(&self) -> Vec<String> {
        let mut methods: Vec<String> = self.runs.iter().map(|planned| planned.recipe.method.clone()).collect();
        methods.dedup();
        methods
    }

    /// Whether each run has a directory of its own within the plan's.
    pub fn is_of_several(&self) -> bool {
        self.runs.len() > 1
    }

    /// Where a part goes within `dir`.
    pub fn place(&self, dir: &Path, planned: &Planned) -> PathBuf {
        if self.is_of_several() { dir.join(&planned.part) } else { dir.to_path_buf() }
    }

    /// Makes `home` the directory of this run and writes the plan into it.
    ///
    /// # Errors
    /// Another run's checkpoints are there, and this one does not go on with them; or `home` is itself one.
    pub fn begin(&self, home: &Path, resumed: Option<&Path>) -> Result<Lock> {
        resume::require_no_checkpoint(home)?;
        let lock = Lock::claim(home)?;
        let own = resumed.map(resume::run_directory).and_then(|dir| std::fs::canonicalize(dir).ok());
        if own.is_none() || own != std::fs::canonicalize(home).ok() {
            // Of this plan, and of one that was there before.
            let before = Plan::written(home)?;
            for plan in [self].into_iter().chain(&before) {
                for planned in &plan.runs {
                    resume::require_no_checkpoints(&plan.place(home, planned))?;
                }
            }
            resume::require_no_checkpoints(home)?;
        }
        output::write_json(&home.join(NAME), self)?;
        Ok(lock)
    }
}

impl Choice {
    fn asked(args: &Args) -> Self {
        Choice { budget: args.budget, trial_steps: args.trial_steps, equal_params: args.equal_params }
    }

    /// Refuses options that say otherwise than the run was begun with.
    fn hold(&self, dir: &Path, args: &Args) -> Result<()> {
        let asked = Choice::asked(args);
        let all = [
            ("budget", asked.budget == self.budget, self.budget.map_or("none".into(), output::percent)),
            ("trial_steps", asked.trial_steps == self.trial_steps, self.trial_steps.to_string()),
            ("equal_params", asked.equal_params == self.equal_params, "none".into()),
        ];
        let differ = all.iter().filter(|(id, same, _)| args.is_given(id) && !same);
        let differ: Vec<String> =
            differ.map(|(id, _, had)| format!("--{} (it has {had})", id.replace('_', "-"))).collect();
        resume::require_the_same(dir, &differ)
    }
}

/// The recipes that the command line asks for of a method, with names for their directories: one, or one for each of the settings that its
/// options name.
pub fn asked(args: &Args, method: &str, fingerprint: &str, samples: usize) -> Result<Vec<(String, Recipe)>> {
    let recipe = args.recipe(method, fingerprint.into(), samples)?;
    let each = recipe.method()?.each()?;
    if each.is_empty() {
        return Ok(vec![(method.into(), recipe)]);
    }
    let mut recipes = Vec::new();
    for settings in each {
        let Value::Object(settings) = settings else { continue };
        let recipe = Recipe { settings, ..recipe.clone() };
        let name = recipe.method()?.note().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        recipes.push((format!("{method}-{name}"), recipe));
    }
    Ok(recipes)
}

/// A run that is resumed has the task and the methods that it was started with, unless they are named: then they must agree.
pub fn take_up(args: &mut Args) -> Result<()> {
    let Some(dir) = args.resume.as_deref() else { return Ok(()) };
    let plan = Plan::found(dir)?.ok_or_else(|| resume::nothing_there(dir))?;
    if let Some(first) = plan.runs.first() {
        if !args.is_given("task") {
            args.task.clone_from(&first.recipe.task);
        }
        if !args.is_given("method") {
            args.method = plan.methods();
        }
        args.validation |= first.recipe.validation;
    }
    Ok(())
}
