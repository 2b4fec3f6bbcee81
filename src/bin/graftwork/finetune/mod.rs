//! `graftwork finetune`: adapt the frozen trunk to digits that it has never seen.

mod args;
mod report;
mod resume;
mod setup;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use args::Args;
use args::{Method, Recipe};
use graftwork::{Device, Result};
use report::{Report, RunReport};
use train::Trainer;

use super::digits::Digits;
use super::{device, output};

/// Exit code of a run that Ctrl-C ended: 128 + SIGINT, as shells do.
const INTERRUPTED: u8 = 130;

pub fn run(args: &Args) -> Result<ExitCode> {
    let device = device::open(args.device.as_deref())?;
    let digits = Digits::load(&args.data, 5..10)?;
    println!(
        "digits 5 to 9: {} to train on, {} held out; trunk {} (never saw these digits); device {}",
        digits.train.len(),
        digits.test.len(),
        args.trunk.display(),
        device.name()
    );
    let interrupt = train::Interrupt::install();
    let mut runs = Vec::new();
    for &method in &args.method {
        let recipe = args.recipe(method)?;
        let run = one(args, &recipe, &device, &digits, &interrupt)?;
        let stopped = run.interrupted;
        runs.push(run);
        if stopped {
            break;
        }
    }
    let interrupted = runs.iter().any(|r| r.interrupted);
    let report = Report::new(runs);
    println!("\n{}", report.table());
    if let Some(path) = &args.json {
        output::write_json(path, &report)?;
    }
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// One method from start to reloaded adapter.
fn one(
    args: &Args,
    recipe: &Recipe,
    device: &Device,
    digits: &Digits,
    interrupt: &train::Interrupt,
) -> Result<RunReport> {
    let out = args.out.as_deref().map(|dir| method_dir(dir, recipe.method, args.method.len()));
    let resume = args.resume.as_deref().map(|dir| method_dir(dir, recipe.method, args.method.len()));
    let mut trainer = match &resume {
        Some(dir) => resume::resume(dir, args, recipe, device, digits)?,
        None => Trainer::start(setup::build(&args.trunk, recipe, device)?, recipe.clone(), digits)?,
    };
    println!("\n{}: {}", recipe.method.name(), trainer.model.summary);
    let before = trainer.model.accuracy(&digits.test)?;
    let all_tracked = trainer.bytes_if_all_tracked()?;
    let trained = trainer.run(out.as_deref(), args.save_every, interrupt)?;
    let after = trainer.model.accuracy(&digits.test)?;
    let saved_to = tempdir_unless(out.as_deref())?;
    trainer.model.save_adapter(saved_to.path(), recipe)?;
    let reloaded = setup::reload(&args.trunk, saved_to.path(), recipe, device)?.accuracy(&digits.test)?;
    Ok(RunReport::new(recipe, &trainer, trained, [before, after, reloaded], all_tracked, out))
}

/// A directory per method when several are compared.
fn method_dir(dir: &Path, method: Method, methods: usize) -> PathBuf {
    if methods > 1 { dir.join(method.name()) } else { dir.to_path_buf() }
}

/// The run's own directory, or one that is removed afterwards: the adapter is saved and loaded back either way.
fn tempdir_unless(out: Option<&Path>) -> Result<Place> {
    if let Some(dir) = out {
        return Ok(Place { path: dir.join("adapter"), temporary: false });
    }
    let path = std::env::temp_dir().join(format!("graftwork-{}", std::process::id()));
    Ok(Place { path, temporary: true })
}

struct Place {
    path: PathBuf,
    temporary: bool,
}

impl Place {
    fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.temporary {
            // Best effort: a file left in the temporary directory harms nothing.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
