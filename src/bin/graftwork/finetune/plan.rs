//! What a run sets out to do: a recipe and a pace for each method, or for each of the settings that a method's options name. All of them are
//! made, and so checked, before the first is trained. A run of several writes its plan into its directory, so that one that was stopped is
//! taken up as a whole.

use std::path::{Path, PathBuf};

use graftwork::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::args::{Args, Pace, Recipe};
use super::lock::Lock;
use super::resume;
use super::tasks::{self, Task};
use crate::output;

/// In the run's directory, beside a directory for each part.
const NAME: &str = "plan.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub runs: Vec<Planned>,
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
        let fingerprint = tasks::fingerprint(&args.trunk()?, task.trunk_files())?;
        let mut runs = Vec::new();
        for method in &args.method {
            for (part, recipe) in asked(args, method, &fingerprint, task.samples())? {
                runs.push(Planned { part, pace: args.pace(&recipe, task.samples())?, recipe });
            }
        }
        Ok(Plan { runs })
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
        Ok(plan)
    }

    /// The plan in `dir`, or what a single run's checkpoint says; neither is checked.
    fn found(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let single = resume::recipe_in(dir)?;
                return Ok(
                    single.map(|(recipe, pace)| Plan { runs: vec![Planned { part: String::new(), recipe, pace }] })
                );
            }
            Err(source) => return Err(Error::Io { path, source }),
        };
        let bad = |e| Error::File { path: path.clone(), reason: format!("is not the plan of a run: {e}") };
        serde_json::from_slice(&bytes).map(Some).map_err(bad)
    }

    fn methods(&self) -> Vec<String> {
        let mut methods: Vec<String> = self.runs.iter().map(|planned| planned.recipe.method.clone()).collect();
        methods.dedup();
        methods
    }

    /// Where a part goes within `dir`.
    pub fn place(&self, dir: &Path, planned: &Planned) -> PathBuf {
        if self.runs.len() > 1 { dir.join(&planned.part) } else { dir.to_path_buf() }
    }

    /// Into the run's directory, where there is one and several parts share it: it is then this run's alone.
    pub fn write(&self, args: &Args) -> Result<Option<Lock>> {
        let Some(dir) = args.out.as_deref().or(args.resume.as_deref()).filter(|_| self.runs.len() > 1) else {
            return Ok(None);
        };
        std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.into(), source })?;
        let lock = Lock::take(dir)?;
        if args.resume.is_none() {
            for planned in &self.runs {
                resume::require_no_checkpoints(&self.place(dir, planned))?;
            }
        }
        output::write_json(&dir.join(NAME), self)?;
        Ok(Some(lock))
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
    let Some(plan) = args.resume.as_deref().map(Plan::found).transpose()?.flatten() else { return Ok(()) };
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
