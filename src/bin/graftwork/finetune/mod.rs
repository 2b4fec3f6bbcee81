//! `graftwork finetune`: adapt a frozen trunk to a task. What is learned is a task ([`tasks`]), what learns a method ([`methods`]); either
//! is added without touching the other, or this.

mod args;
mod choose;
mod ewc;
mod lock;
mod methods;
mod model;
pub mod options;
mod plan;
mod plot;
mod report;
mod resume;
mod tasks;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use args::Args;
use args::Recompute;
use graftwork::device::on_workers;
use graftwork::format::checkpoint;
use graftwork::{Device, Error, Result};
use lock::Lock;
use model::Adapted;
use plan::{Plan, Planned};
use report::{Report, RunReport};
use tasks::Task;
use train::Trainer;

use super::device;
use super::output::{self, say};

/// Points of a plotted curve.
const POINTS: u64 = 50;

/// Exit code of a run that Ctrl-C ended: 128 + SIGINT, as shells do.
const INTERRUPTED: u8 = 130;

pub fn run(args: &mut Args) -> Result<ExitCode> {
    plan::take_up(args)?;
    let args = &*args;
    options::require_read(args)?;
    for path in args.json.iter().chain(&args.plot) {
        output::prepare(path)?;
    }
    let device = device::open(args.device.as_deref())?;
    let entry = tasks::by_name(&args.task)?;
    let repeated = args.method.iter().enumerate().any(|(i, method)| args.method[..i].contains(method));
    if repeated {
        return Err(Error::Value {
            op: "finetune",
            argument: "method",
            expected: "each method once".into(),
            got: format!("{:?}", args.method),
        });
    }
    if let Some(study) = entry.study {
        return study(args, &device);
    }
    let task = (entry.open)(args.data.as_deref().unwrap_or(Path::new(entry.data)), args.validation)?;
    say!("{}: {}; trunk {}; device {}", task.title(), task.about(), args.trunk()?.display(), device.name());
    let plan = match &args.resume {
        Some(dir) => Plan::resumed(dir, args, &*task)?,
        None => Plan::new(args, &*task)?,
    };
    let _lock = plan.write(args)?;
    let interrupt = train::Interrupt::install();
    let mut runs = Vec::new();
    for planned in &plan.runs {
        let place = |dir: &Option<PathBuf>| dir.as_deref().map(|dir| plan.place(dir, planned));
        let places = Places { out: place(&args.out), resumed: place(&args.resume) };
        let equal = runs.first().filter(|_| args.equal_params).map(|run: &RunReport| run.trainable_params);
        let run = on_workers(|| one(args, planned, places, &*task, &device, &interrupt, equal))?;
        let stopped = run.interrupted;
        runs.push(run);
        if stopped {
            break;
        }
    }
    let interrupted = runs.iter().any(|r| r.interrupted);
    let report = Report::new(runs);
    say!("\n{}", report.table());
    if let Some(scores) = report.scores() {
        say!("\n{scores}");
    }
    if let Some(path) = &args.json {
        output::write_json(path, &report)?;
    }
    if let Some(path) = &args.plot {
        plot::write(path, &task.title(), &report.runs)?;
    }
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Directories of a part of the run.
struct Places {
    out: Option<PathBuf>,
    resumed: Option<PathBuf>,
}

/// A part of the run from start, or from its checkpoint, to reloaded adapter, with about `equal` trainable numbers if that is asked for.
fn one(
    args: &Args,
    planned: &Planned,
    Places { out, resumed }: Places,
    task: &dyn Task,
    device: &Device,
    interrupt: &train::Interrupt,
    equal: Option<usize>,
) -> Result<RunReport> {
    // A resumed run goes on in its own directory unless told otherwise.
    let out = out.or_else(|| resumed.as_deref().map(resume::run_directory));
    // Before anything is read there; a directory that is not there yet has no other run.
    let mut lock = out.as_deref().filter(|dir| dir.is_dir()).map(Lock::take).transpose()?;
    // Of several parts some may not have been begun.
    let mut trainer = match resumed.filter(|dir| resume::is_begun(dir)) {
        Some(dir) => resume::resume(&dir, args, task, device)?,
        None => {
            if let Some(dir) = &out {
                resume::require_no_checkpoints(dir)?;
            }
            let recipe = choose::settle(planned.recipe.clone(), args, task, device, interrupt)?;
            let recipe = choose::equal(recipe, equal, task, device)?;
            let adapted = Adapted::fresh(&recipe, task, device)?;
            let mut trainer = Trainer::start(adapted, recipe, planned.pace, task.samples())?;
            trainer.hold()?;
            trainer
        }
    };
    let sometimes = args.plot.is_some().then_some((trainer.pace.last_step / POINTS).max(1));
    trainer.eval_every = args.eval_every.or(sometimes);
    trainer.recompute_blocks = args.recompute == Recompute::Blocks;
    let recipe = trainer.recipe.clone();
    say!("\n{}: {}", recipe.method, trainer.adapted.summary);
    if let Some(dir) = &out {
        std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.clone(), source })?;
        output::probe_directory(dir)?;
        if lock.is_none() {
            lock = Some(Lock::take(dir)?);
        }
        checkpoint::sweep(dir)?;
    }
    let score = |adapted: &Adapted| {
        let _shown = output::working("scoring the held-out samples");
        adapted.scores()
    };
    let before = score(&trainer.adapted)?;
    let all_tracked = trainer.bytes_if_all_tracked()?;
    let trained = trainer.run(out.as_deref(), interrupt)?;
    let after = score(&trainer.adapted)?;
    let saved_to = tempdir_unless(out.as_deref())?;
    trainer.adapted.saved(&recipe)?.save(saved_to.path())?;
    let reloaded = score(&Adapted::reload(saved_to.path(), &recipe, task, device)?)?;
    drop(lock);
    Ok(RunReport::new(&trainer, task.title(), trained, [before, after, reloaded], all_tracked, out))
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
