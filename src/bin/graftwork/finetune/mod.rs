//! `graftwork finetune`: adapt the frozen trunk to digits that it has never seen.

mod args;
mod report;
mod resume;
mod setup;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use args::Args;
use args::{Method, Recompute};
use graftwork::device::on_workers;
use graftwork::{Device, Error, Result};
use report::{Report, RunReport};
use train::Trainer;

use super::device;
use super::digits::Digits;
use super::output::{self, say};

/// Exit code of a run that Ctrl-C ended: 128 + SIGINT, as shells do.
const INTERRUPTED: u8 = 130;

pub fn run(args: &Args) -> Result<ExitCode> {
    let device = device::open(args.device.as_deref())?;
    let digits = Digits::load(&args.data, 5..10)?;
    say!(
        "digits 5 to 9: {} to train on, {} held out; trunk {} (never saw these digits); device {}",
        digits.train.len(),
        digits.test.len(),
        args.trunk.display(),
        device.name()
    );
    if let Some(path) = &args.json {
        output::probe(path)?;
    }
    let repeated = args.method.iter().enumerate().any(|(i, method)| args.method[..i].contains(method));
    if repeated {
        return Err(Error::Value {
            op: "finetune",
            argument: "method",
            expected: "each method once".into(),
            got: format!("{:?}", args.method),
        });
    }
    let interrupt = train::Interrupt::install();
    let mut runs = Vec::new();
    for &method in &args.method {
        let run = on_workers(|| one(args, method, &device, &digits, &interrupt))?;
        let stopped = run.interrupted;
        runs.push(run);
        if stopped {
            break;
        }
    }
    let interrupted = runs.iter().any(|r| r.interrupted);
    let report = Report::new(runs);
    say!("\n{}", report.table());
    if let Some(path) = &args.json {
        output::write_json(path, &report)?;
    }
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// One method from start to reloaded adapter.
fn one(
    args: &Args,
    method: Method,
    device: &Device,
    digits: &Digits,
    interrupt: &train::Interrupt,
) -> Result<RunReport> {
    let place = |dir: &Option<PathBuf>| dir.as_deref().map(|dir| method_dir(dir, method, args.method.len()));
    let resumed = place(&args.resume);
    // A resumed run goes on in its own directory unless told otherwise.
    let out = place(&args.out).or_else(|| resumed.as_deref().map(resume::run_directory));
    let mut trainer = match &resumed {
        Some(dir) => resume::resume(dir, args, method, device, digits)?,
        None => {
            if let Some(dir) = &out {
                resume::require_no_checkpoints(dir)?;
            }
            let recipe = args.recipe(method)?;
            let pace = args.pace(&recipe, digits.train.len())?;
            Trainer::start(setup::build(&recipe, device)?, recipe, pace, digits)?
        }
    };
    trainer.recompute_blocks = args.recompute == Recompute::Blocks;
    let recipe = trainer.recipe.clone();
    say!("\n{}: {}", recipe.method.name(), trainer.model.summary);
    if let Some(dir) = &out {
        std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.clone(), source })?;
        output::probe_directory(dir)?;
    }
    let before = trainer.model.accuracy(&digits.test)?;
    let all_tracked = trainer.bytes_if_all_tracked()?;
    let trained = trainer.run(out.as_deref(), interrupt)?;
    let after = trainer.model.accuracy(&digits.test)?;
    let saved_to = tempdir_unless(out.as_deref())?;
    trainer.model.save_adapter(saved_to.path(), &recipe)?;
    let reloaded = setup::reload(saved_to.path(), &recipe, device)?.accuracy(&digits.test)?;
    Ok(RunReport::new(&trainer, trained, [before, after, reloaded], all_tracked, out))
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
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let path = std::env::temp_dir().join(format!("graftwork-{}-{}", std::process::id(), now.as_nanos()));
    // Only a directory made here is removed again.
    std::fs::create_dir(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
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
