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
mod strict;
mod tasks;
mod train;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use args::Args;
use args::Recompute;
use graftwork::device::on_workers;
use graftwork::{Device, Error, Result};
use lock::Lock;
use model::Adapted;
use plan::{Plan, Planned};
use report::{Report, RunReport};
use tasks::Task;
use train::Trainer;

use super::device;
use super::output::{self, complain, say};

/// Points of a plotted curve.
const POINTS: u64 = 50;

/// Exit code of a run that Ctrl-C ended: 128 + SIGINT, as shells do.
const INTERRUPTED: u8 = 130;

pub fn run(args: &mut Args) -> Result<ExitCode> {
    plan::take_up(args).map_err(|e| options::blame_file(e, "--resume"))?;
    let args = &*args;
    options::require_read(args)?;
    // A resumed run goes on in its own directory unless told otherwise.
    let resumed_home = args.resume.as_deref().map(resume::run_directory);
    let home = args.out.clone().or(resumed_home);
    let home_option = if args.out.is_some() { "--out" } else { "--resume" };
    output::prepare(&args.files(), (home_option, home.as_deref()))?;
    let device = device::open(args.device.as_deref(), "finetune")?;
    let entry = tasks::by_name(&args.task)?;
    if let Some(method) = options::repeated(&args.method) {
        return Err(options::refused(
            "--method",
            "each method once",
            format!("{} with {method} twice", args.method.join(",")),
        ));
    }
    if let Some(study) = entry.study {
        return study(args, &device);
    }
    let data = args.data.as_deref().unwrap_or(Path::new(entry.data));
    let task = (entry.open)(data, args.validation).map_err(|e| options::blame_file(e, "--data"))?;
    say!("{}: {}; trunk {}; device {}", task.title(), task.about(), args.trunk()?.display(), device.name());
    let plan = match &args.resume {
        Some(dir) => Plan::resumed(dir, args, &*task).map_err(|e| options::blame_file(e, "--resume"))?,
        None => Plan::new(args, &*task)?,
    };
    let begun = home.as_deref().map(|home| plan.begin(home, args.resume.as_deref())).transpose();
    let _lock = begun.map_err(|e| options::blame_file(e, home_option))?;
    let whole = Whole { args, plan: &plan, home: home.as_deref(), task: &*task, device: &device };
    let interrupt = train::Interrupt::install();
    let mut runs = Vec::new();
    let mut interrupted = false;
    for planned in &plan.runs {
        let equal = runs.first().filter(|_| plan.choice.equal_params).map(|run: &RunReport| run.trainable_params);
        let run = on_workers(|| whole.one(planned, &interrupt, equal))?;
        interrupted = run.as_ref().is_none_or(|run| run.interrupted);
        runs.extend(run);
        if interrupted {
            break;
        }
    }
    let report = Report::new(runs);
    if !report.runs.is_empty() {
        say!("\n{}", report.table());
    }
    if let Some(scores) = report.scores() {
        say!("\n{scores}");
    }
    output::report(args.json.as_deref(), &report)?;
    if let Some(path) = &args.plot {
        plot::write(path, &task.title(), &report.runs).map_err(|e| e.within("--plot"))?;
    }
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// What all parts of a run have in common.
struct Whole<'a> {
    args: &'a Args,
    plan: &'a Plan,
    /// The run's directory.
    home: Option<&'a Path>,
    task: &'a dyn Task,
    device: &'a Device,
}

impl Whole<'_> {
    /// A part of the run from start, or from its checkpoint, to reloaded adapter, with about `equal` trainable numbers if that is asked for.
    /// `None` where it was interrupted before it began to train.
    fn one(&self, planned: &Planned, interrupt: &train::Interrupt, equal: Option<usize>) -> Result<Option<RunReport>> {
        let Whole { args, plan, task, device, .. } = *self;
        let out = self.home.map(|home| plan.place(home, planned));
        // The directory of a single run is the plan's, and claimed with it.
        let _lock = out.as_deref().filter(|_| plan.is_of_several()).map(Lock::claim).transpose()?;
        let resumed = args.resume.as_deref().map(|dir| plan.place(dir, planned));
        let Some(mut trainer) = self.trainer(planned, resumed, interrupt, equal)? else {
            complain(format_args!(
                "interrupted before anything was decided: {}",
                to_go_on(self.home, "makes the choice again")
            ));
            return Ok(None);
        };
        let sometimes = args.plot.is_some().then_some((trainer.pace.last_step / POINTS).max(1));
        trainer.eval_every = args.eval_every.or(sometimes);
        trainer.recompute_blocks = args.recompute == Recompute::Blocks;
        let recipe = trainer.recipe.clone();
        say!("\n{}: {}", recipe.method, trainer.adapted.summary);
        trainer.cut_short().iter().for_each(|what| complain(format_args!("note: {what}")));
        let score = |adapted: &Adapted| {
            let _shown = output::working("scoring the held-out samples");
            adapted.scores()
        };
        if trainer.step == 0 {
            trainer.before = report::named(&score(&trainer.adapted)?);
        }
        let all_tracked = trainer.bytes_if_all_tracked()?;
        let trained = trainer.run(out.as_deref(), interrupt)?;
        if trained.interrupted {
            complain(format_args!(
                "interrupted at step {}: {}",
                trainer.step,
                to_go_on(self.home, "goes on from there")
            ));
        }
        let after = score(&trainer.adapted)?;
        let saved_to = tempdir_unless(out.as_deref())?;
        trainer.adapted.saved(&recipe)?.save(saved_to.path())?;
        let reloaded = score(&Adapted::reload(saved_to.path(), &recipe, task, device)?)?;
        Ok(Some(RunReport::new(&trainer, task.title(), trained, [after, reloaded], all_tracked, out)))
    }

    /// Where a part stands: at its checkpoint, or at its start, with nothing left open. Of several parts some may not have been begun.
    fn trainer(
        &self,
        planned: &Planned,
        resumed: Option<PathBuf>,
        interrupt: &train::Interrupt,
        equal: Option<usize>,
    ) -> Result<Option<Trainer>> {
        let Whole { args, plan, task, device, .. } = *self;
        if let Some(dir) = resumed.filter(|dir| resume::is_begun(dir)) {
            return resume::resume(&dir, args, task, device).map(Some);
        }
        let Some(recipe) = choose::settle(planned, &plan.choice, task, device, interrupt)? else { return Ok(None) };
        let recipe = choose::equal(recipe, equal, task, device)?;
        let adapted = Adapted::fresh(&recipe, task, device)?;
        let mut trainer = Trainer::start(adapted, recipe, planned.pace, task.samples())?;
        trainer.hold()?;
        Ok(Some(trainer))
    }
}

/// What to do after an interruption, of a run with a directory.
fn to_go_on(home: Option<&Path>, how: &str) -> String {
    home.map_or("no --out, so nothing was saved".into(), |home| format!("--resume {} {how}", home.display()))
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
