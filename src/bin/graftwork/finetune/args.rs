//! The options of `finetune`, and the recipe they add up to.

use std::path::PathBuf;

use clap::ValueEnum;
use graftwork::optim::{Decay, Schedule};
use graftwork::{DType, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ewc::{EwcOptions, Springs};
use super::methods::{self, Method};
use super::options::{self, COUNT, FROM_0, number, refused, share, size, whole};
use super::tasks;
use crate::device;
use crate::output::Written;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Keep what backward needs
    None,
    /// Keep each block's input and run the block again in backward
    Blocks,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DecayArg {
    Constant,
    Linear,
    Cosine,
}

impl From<DecayArg> for Decay {
    fn from(decay: DecayArg) -> Self {
        match decay {
            DecayArg::Constant => Decay::Constant,
            DecayArg::Linear => Decay::Linear,
            DecayArg::Cosine => Decay::Cosine,
        }
    }
}

#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_help = "Examples:
  graftwork finetune --steps 200                                          a LoRA on the shipped digits, in seconds
  graftwork finetune --method lora,block-sparse,linear-probe --plot a.svg  methods side by side
  graftwork finetune --out run --save-every 100 --json report.json         adapter, checkpoints and report
  graftwork finetune --resume run                                          the same run, from where it was stopped
  graftwork finetune --task caption --method vl-pet --variant auto --budget 4%

Exit code: 0 done, 1 standard output took nothing, 2 it could not be done, 130 ended by a signal with what there was saved."
)]
pub struct Args {
    /// What is learned
    #[arg(long, value_parser = tasks::names(), default_value = "digits")]
    pub task: String,
    /// What learns; several methods, separated by commas, are trained one after another and compared [default: lora; dual-lora,lora for
    /// --task multi; ga-net,linear-probe for --task graph]
    #[arg(long, value_parser = methods::names(), value_delimiter = ',')]
    pub method: Vec<String>,
    /// Passes over the training samples [default: 50, unless --steps is given]
    #[arg(long, value_parser = whole(1..=COUNT))]
    pub epochs: Option<u64>,
    /// Stop after this many optimizer steps, counted from the run's start: a resumed run goes on to it
    #[arg(long, value_parser = whole(0..=COUNT))]
    pub steps: Option<u64>,
    /// Samples in a micro-batch
    #[arg(long, default_value_t = 32, value_parser = size(1..=COUNT))]
    pub batch: usize,
    /// Micro-batches whose gradients add up to one step
    #[arg(long, default_value_t = 1, value_parser = size(1..=COUNT))]
    pub accumulate: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 5e-3, value_parser = number(FROM_0))]
    pub lr: f64,
    /// Decay after the warm-up [default: cosine over --epochs; constant when only --steps is given]
    #[arg(long, value_enum)]
    pub schedule: Option<DecayArg>,
    /// Steps of linear warm-up
    #[arg(long, default_value_t = 55, value_parser = whole(0..=COUNT))]
    pub warmup: u64,
    /// Share of every parameter, times the rate, that each step takes off, as AdamW has it
    #[arg(long, default_value_t = 0.01, value_parser = number(FROM_0))]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 turns clipping off
    #[arg(long, default_value_t = 1.0, value_parser = number(FROM_0))]
    pub clip: f64,
    /// Seed of starting values, data order and dropout
    #[arg(long, default_value_t = 0, value_parser = whole(0..=u64::MAX))]
    pub seed: u64,
    /// What the forward pass computes in; parameters are kept in f32 (with f64, a slow reference on the CPU, in f64)
    #[arg(long, default_value = "f32", value_parser = ["f32", "f16", "bf16", "f64"])]
    pub dtype: String,
    /// Largest share of numbers that may learn, as 4% or 0.04
    #[arg(long, value_parser = share)]
    pub budget: Option<f64>,
    /// Steps of each trial where the options leave a choice
    #[arg(long, default_value_t = 60, value_parser = whole(1..=COUNT))]
    pub trial_steps: u64,
    /// What backward recomputes instead of keeping
    #[arg(long, value_enum, default_value = "none")]
    pub recompute: Recompute,
    /// Directory of this run, and of no other: the adapter, the checkpoints, and the plan that --resume goes by
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write a checkpoint to --out every N steps, and one at the end; Ctrl-C writes one in any case
    #[arg(long, value_name = "N", value_parser = whole(1..=COUNT))]
    pub save_every: Option<u64>,
    /// Go on with the run in DIR from its newest checkpoint, or from DIR itself if it is one, with the options it was started with
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    #[arg(long, help = format!("Where to run: {} [default: a GPU if there is one]", device::HELP))]
    pub device: Option<String>,
    /// Directory of the frozen trunk, mapped and not to be changed while the run lasts [default: the one that ships for the task]
    #[arg(long, value_name = "DIR")]
    pub trunk: Option<PathBuf>,
    /// Directory of the task's data [default: the one that ships]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Judge by a part of the training images instead of the held-out ones: every fifth of each class, or with --task graph those without a
    /// label. What settings are chosen by
    #[arg(long)]
    pub validation: bool,
    /// Score the held-out samples every N steps [default: 50 times a run with --plot, else only at its ends]
    #[arg(long, value_name = "N", value_parser = whole(1..=COUNT))]
    pub eval_every: Option<u64>,
    /// Draw scores and densities over steps, and the blocks that were chosen, as SVG (with --task graph: sweeps of threshold and noise)
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Write the report as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub methods: methods::Options,
    #[command(flatten)]
    pub vce: methods::vce::VceOptions,
    /// Give every method after the first the rank at which it has about as many trainable numbers as the first
    #[arg(long)]
    pub equal_params: bool,
    #[command(flatten)]
    pub graph: tasks::graph::GraphOptions,
    #[command(flatten)]
    pub ewc: EwcOptions,
    /// Options that stand on the command line, as opposed to defaults; see [`Args::note_given`]
    #[arg(skip)]
    pub given: Vec<String>,
}

/// What a run computes. Part of every checkpoint: a resumed run has the same, whatever the defaults say then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub task: String,
    pub method: String,
    /// Of the method.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
    #[serde(default)]
    pub ewc: Option<Springs>,
    pub batch: usize,
    pub accumulate: usize,
    pub weight_decay: f64,
    pub clip: f64,
    pub seed: u64,
    pub dtype: String,
    /// Whether the training images were split once more.
    #[serde(default)]
    pub validation: bool,
    /// As it was given; what must agree is the fingerprint.
    pub trunk: PathBuf,
    /// Of the trunk's files.
    pub trunk_fingerprint: String,
}

/// How the learning rate goes and where the run ends. Decided at the start, and kept by the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    pub schedule: Schedule,
    pub last_step: u64,
    pub save_every: Option<u64>,
}

const DEFAULT_EPOCHS: u64 = 50;

impl Args {
    /// Notes which options the user gave, so that a wish can be told from a default, and takes the task's methods where none is named.
    pub fn note_given(&mut self, matches: &clap::ArgMatches) {
        // Groups of options have ids too, named like types.
        let is_option = |id: &&clap::Id| id.as_str().starts_with(|c: char| c.is_ascii_lowercase());
        let given = |id: &&clap::Id| matches.value_source(id.as_str()) == Some(clap::parser::ValueSource::CommandLine);
        self.given = matches.ids().filter(is_option).filter(given).map(|id| id.as_str().to_string()).collect();
        if self.method.is_empty()
            && let Ok(task) = tasks::by_name(&self.task)
        {
            self.method = task.methods.iter().map(|name| name.to_string()).collect();
        }
    }

    /// Where the frozen trunk lies.
    pub fn trunk(&self) -> Result<PathBuf> {
        let shipped = tasks::by_name(&self.task)?.trunk;
        Ok(self.trunk.clone().unwrap_or_else(|| shipped.into()))
    }

    /// Files that the command writes when its work is done.
    pub fn files(&self) -> [Written<'_>; 2] {
        [("--json", self.json.as_deref()), ("--plot", self.plot.as_deref())]
    }

    /// Whether an option stands on the command line.
    pub fn is_given(&self, option: &str) -> bool {
        self.given.iter().any(|given| given == option)
    }

    /// The recipe of a run of `method` that starts now.
    pub fn recipe(&self, method: &str, trunk_fingerprint: String, samples: usize) -> Result<Recipe> {
        self.require_step(samples)?;
        if self.save_every.is_some() && self.out.is_none() && self.resume.is_none() {
            return Err(Error::Unsupported {
                op: "finetune",
                what: "--save-every has no directory to write checkpoints to".into(),
                hint: "pass --out DIR too".into(),
            });
        }
        let steps = self.horizon(steps_per_epoch(samples, self.batch, self.accumulate));
        let settings = (methods::by_name(method)?.settings)(&self.methods, steps);
        let mut settings = match settings.map_err(|e| options::blame(e, "targets"))? {
            Value::Object(settings) => settings,
            other => return Err(refused("--method", "settings with names", other)),
        };
        methods::vce::add_to(&mut settings, &self.vce)?;
        Ok(Recipe {
            task: self.task.clone(),
            method: method.into(),
            settings,
            ewc: self.ewc.springs(),
            batch: self.batch,
            accumulate: self.accumulate,
            weight_decay: self.weight_decay,
            clip: self.clip,
            seed: self.seed,
            dtype: self.dtype.clone(),
            validation: self.validation,
            trunk: self.trunk()?,
            trunk_fingerprint,
        })
    }

    /// Refuses a step that wants more samples than there are, where that was asked for: it would be a smaller one than the options say.
    fn require_step(&self, samples: usize) -> Result<()> {
        let (batch, accumulate) = (self.batch, self.accumulate);
        if !fits_counters(batch, accumulate) {
            let expected = format!("with --accumulate {accumulate} at most {} samples a step", u32::MAX);
            return Err(refused("--batch", expected, batch));
        }
        if self.is_given("batch") && batch > samples {
            return Err(refused("--batch", format!("at most {samples}, the samples of an epoch"), batch));
        }
        let most = samples.div_ceil(batch);
        if self.is_given("accumulate") && accumulate > most {
            let expected = format!("at most {most}, the micro-batches of {batch} in an epoch of {samples} samples");
            return Err(refused("--accumulate", expected, accumulate));
        }
        Ok(())
    }

    /// The pace of a run that starts now over `samples` samples. The schedule's horizon is --epochs if given, else --steps; a run with
    /// --steps alone keeps its rate constant, so that it can be resumed to a later step and be the same run.
    pub fn pace(&self, recipe: &Recipe, samples: usize) -> Result<Pace> {
        let horizon = self.horizon(recipe.steps_per_epoch(samples));
        let decay = match self.schedule {
            Some(decay) => decay.into(),
            None if self.steps.is_some() && self.epochs.is_none() => Decay::Constant,
            None => Decay::Cosine,
        };
        let warmup = if decay == Decay::Constant { self.warmup } else { self.warmup.min(horizon) };
        Ok(Pace {
            schedule: Schedule::new(self.lr, decay, warmup, horizon)?,
            last_step: self.last_step(recipe, samples, horizon),
            save_every: self.save_every,
        })
    }

    /// Steps that a run is planned for, wherever it is stopped.
    fn horizon(&self, steps_per_epoch: u64) -> u64 {
        match (self.epochs, self.steps) {
            (None, Some(steps)) => steps,
            (epochs, _) => epochs.unwrap_or(DEFAULT_EPOCHS).saturating_mul(steps_per_epoch),
        }
    }

    /// Where the run stops: the smaller of what --steps and --epochs ask for; `planned` if neither is given.
    pub fn last_step(&self, recipe: &Recipe, samples: usize, planned: u64) -> u64 {
        let by_epochs = self.epochs.map(|epochs| epochs.saturating_mul(recipe.steps_per_epoch(samples)));
        match (self.steps, by_epochs) {
            (Some(steps), Some(most)) => steps.min(most),
            (Some(steps), None) => steps,
            (None, Some(most)) => most,
            (None, None) => planned,
        }
    }
}

/// Whether the samples of a step can be counted, and there are any.
fn fits_counters(batch: usize, accumulate: usize) -> bool {
    batch.checked_mul(accumulate).is_some_and(|samples| samples > 0 && u32::try_from(samples).is_ok())
}

impl Recipe {
    /// For a recipe that comes from a file.
    pub fn fits_counters(&self) -> bool {
        fits_counters(self.batch, self.accumulate)
    }

    pub fn method(&self) -> Result<Box<dyn Method>> {
        methods::of_settings(&self.method, &self.settings())
    }

    /// Of the method, as its file understands them.
    pub fn settings(&self) -> Value {
        Value::Object(self.settings.clone())
    }

    pub fn dtype(&self) -> Result<DType> {
        self.dtype.parse()
    }

    /// Optimizer steps of one pass over `samples` samples.
    pub fn steps_per_epoch(&self, samples: usize) -> u64 {
        steps_per_epoch(samples, self.batch, self.accumulate)
    }
}

fn steps_per_epoch(samples: usize, batch: usize, accumulate: usize) -> u64 {
    samples.div_ceil(batch * accumulate) as u64
}
