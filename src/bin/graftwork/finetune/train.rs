//! The training loop.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use graftwork::autograd::{Grads, Tape};
use graftwork::dtype::Element;
use graftwork::format::checkpoint::Progress;
use graftwork::optim::{AdamW, AdamWConfig, Carry, Ewc};
use graftwork::{DType, Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::args::{Pace, Recipe};
use super::ewc::Springs;
use super::methods::Moment;
use super::model::Adapted;
use super::{options, resume, tasks};

pub struct Trainer {
    pub adapted: Adapted,
    pub recipe: Recipe,
    pub pace: Pace,
    pub recompute_blocks: bool,
    pub optimizer: AdamW,
    /// What holds the parameters, if the recipe asks for it.
    pub ewc: Option<Ewc>,
    pub losses: Vec<f64>,
    /// The scores before the first step, by name.
    pub before: BTreeMap<String, f64>,
    pub history: Vec<Point>,
    /// Steps between scores on the held-out samples.
    pub eval_every: Option<u64>,
    pub step: u64,
    /// To train on.
    samples: usize,
    grads: Grads,
    /// On the CPU without dropout, where the task allows it, the halves of a micro-batch run side by side, each into gradients of its own: on small trunks that keeps
    /// two cores busier than sharing out single ops does. Always halves, whatever the number of threads, so that the bits stay the same.
    other_grads: Option<Grads>,
    peak_bytes: usize,
    /// The epoch that is being visited, and in what order.
    order: (Option<u64>, Vec<usize>),
}

/// Smaller micro-batches are not worth halving.
const HALVED_FROM: usize = 16;

/// How the run stood at a step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    pub step: u64,
    /// The task's first score.
    pub score: f64,
    pub trainable_params: usize,
    /// Of a method whose form changes.
    pub density: Option<f64>,
}

/// What a checkpoint keeps of the way so far and the way to go.
#[derive(Serialize, Deserialize)]
pub struct Course {
    #[serde(flatten)]
    pub pace: Pace,
    /// The scores before the first step, by name.
    #[serde(default)]
    pub before: BTreeMap<String, f64>,
    #[serde(default)]
    pub history: Vec<Point>,
    /// Gradients that the Fisher information of `--ewc` is a mean of.
    #[serde(default)]
    pub observations: u64,
}

/// How a call of [`Trainer::run`] went.
pub struct Trained {
    pub seconds: f64,
    /// Steps of this call; a resumed run has more behind it.
    pub steps: u64,
    pub retained_peak_bytes: usize,
    pub interrupted: bool,
}

/// Set by Ctrl-C, looked at between steps.
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub fn install() -> Self {
        let flag = Arc::new(AtomicBool::new(false));
        let seen = flag.clone();
        // A second Ctrl-C ends the process at once. Where no handler can be set, Ctrl-C does so from the start.
        let _ = ctrlc::set_handler(move || {
            if seen.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(super::INTERRUPTED));
            }
        });
        Interrupt(flag)
    }

    pub fn asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl Trainer {
    pub fn start(adapted: Adapted, recipe: Recipe, pace: Pace, samples: usize) -> Result<Self> {
        let config = AdamWConfig {
            weight_decay: recipe.weight_decay,
            clip_norm: (recipe.clip > 0.0).then_some(recipe.clip),
            ..AdamWConfig::default()
        };
        let (model, params) = (&adapted.model, &adapted.params);
        let optimizer = AdamW::new(config, params)?;
        let grads = Grads::zeros(params)?;
        let halved = model.device().is_cpu() && model.divides() && !adapted.method.is_random();
        let other_grads = if halved { Some(Grads::zeros(params)?) } else { None };
        Ok(Trainer {
            adapted,
            recipe,
            pace,
            recompute_blocks: false,
            optimizer,
            ewc: None,
            losses: Vec::new(),
            before: BTreeMap::new(),
            history: Vec::new(),
            eval_every: None,
            step: 0,
            samples,
            grads,
            other_grads,
            peak_bytes: 0,
            order: (None, Vec::new()),
        })
    }

    /// Before the first step: casts the anchor of a recipe that has one.
    pub fn hold(&mut self) -> Result<()> {
        let cast = |springs: Springs| springs.cast(&self.adapted, self.samples, self.recipe.batch);
        self.ewc = self.recipe.ewc.map(cast).transpose()?;
        Ok(())
    }

    /// What does not come to its end before the run does, where that is known: a warm-up, the form of what learns.
    pub fn cut_short(&self) -> Vec<String> {
        let (schedule, last) = (&self.pace.schedule, self.pace.last_step);
        let form = self.adapted.method.settles_at().map(|(step, what)| (step, format!("{what} until step {step}")));
        let warmup = schedule.warmup_steps;
        let rate = (warmup, format!("--warmup raises the learning rate until step {warmup}"));
        let beyond = form.into_iter().chain([rate]).filter(|(step, _)| *step > last && last > 0);
        beyond.map(|(_, what)| format!("{what}, but this run ends at step {last}")).collect()
    }

    /// Steps until the recipe says stop, or Ctrl-C does. Checkpoints go to `out`.
    pub fn run(&mut self, out: Option<&Path>, interrupt: &Interrupt) -> Result<Trained> {
        let (first, save_every) = (self.step, self.pace.save_every);
        let last = self.pace.last_step;
        let bar = progress(first, last);
        let start = Instant::now();
        let mut interrupted = false;
        let mut saved_at = None;
        while self.step < last {
            if !self.reshape(&bar, interrupt)? {
                interrupted = true;
                break;
            }
            let loss = self.one_step()?;
            if self.eval_every.is_some_and(|n| self.step.is_multiple_of(n)) {
                self.look()?;
            }
            bar.set_message(format!("loss {loss:.4}"));
            bar.inc(1);
            interrupted = interrupt.asked();
            if let Some(dir) = out
                && save_every.is_some_and(|n| self.step.is_multiple_of(n))
            {
                resume::save(dir, self)?;
                saved_at = Some(self.step);
            }
            if interrupted {
                break;
            }
        }
        self.adapted.model.device().synchronize()?;
        let seconds = start.elapsed().as_secs_f64();
        bar.finish();
        if let Some(dir) = out
            && saved_at != Some(self.step)
            && (save_every.is_some() || interrupted)
        {
            resume::save(dir, self)?;
        }
        let steps = self.step - first;
        Ok(Trained { seconds, steps, retained_peak_bytes: self.peak_bytes, interrupted })
    }

    /// Before a step: the method may take another form. Values and moments follow it, and nothing is kept of what is gone. False where the run
    /// was interrupted before that was decided.
    fn reshape(&mut self, bar: &ProgressBar, interrupt: &Interrupt) -> Result<bool> {
        let (step, seed) = (self.step, self.recipe.seed);
        // The order of data belongs to the trainer, and the method may ask for batches ahead of its turn.
        let (samples, recipe) = (self.samples, &self.recipe);
        let mut batches = |step| batch_of(recipe, samples, step, &mut (None, Vec::new()));
        let mut stopped = false;
        let mut goes_on = |done, of| {
            bar.set_message(format!("scoring {done}/{of}"));
            stopped = interrupt.asked();
            !stopped
        };
        let Adapted { model, method, params, .. } = &mut self.adapted;
        let mut moment = Moment {
            step,
            seed,
            model: &mut **model,
            params,
            batches: &mut batches,
            goes_on: &mut goes_on,
            beside: None,
        };
        let reshaped = method.reshape(&mut moment);
        let carry = match reshaped.map_err(|e| options::blame(e, method.picks_by()))? {
            Some(carry) => carry,
            // What was attached to score with is taken off again.
            None if stopped => Carry::whole(),
            None => return Ok(true),
        };
        let old = self.adapted.attach_again(seed)?;
        let params = &self.adapted.params;
        carry.values(&old, params)?;
        self.optimizer = carry.optimizer(&old, params, &self.optimizer)?;
        self.ewc = self.ewc.as_ref().map(|ewc| carry.ewc(&old, params, ewc)).transpose()?;
        self.grads = Grads::zeros(params)?;
        if self.other_grads.is_some() {
            self.other_grads = Some(Grads::zeros(params)?);
        }
        Ok(!stopped)
    }

    /// Notes how the run stands.
    fn look(&mut self) -> Result<()> {
        let score = self.adapted.scores()?.first().map_or(0.0, |(_, score)| *score);
        let (density, trainable_params) = (self.adapted.method.density(), self.adapted.params.numel());
        self.history.push(Point { step: self.step, score, trainable_params, density });
        Ok(())
    }

    /// For a checkpoint.
    pub fn course(&self) -> Course {
        let observations = self.ewc.as_ref().map_or(0, Ewc::observations);
        Course { pace: self.pace, before: self.before.clone(), history: self.history.clone(), observations }
    }

    /// One optimizer step over `accumulate` micro-batches, each loss divided by the samples of them all.
    fn one_step(&mut self) -> Result<f64> {
        let indices = self.indices(self.step);
        let mut loss = 0.0;
        for (i, part) in indices.chunks(self.recipe.batch).enumerate() {
            let micro_step = self.step * self.recipe.accumulate as u64 + i as u64;
            loss += self.micro_batch(part, indices.len(), micro_step)?;
        }
        if self.step == 0 {
            self.grads.audit()?.require_learning()?;
        }
        if !loss.is_finite() {
            return Err(self.diverged("loss", loss));
        }
        if let Some(ewc) = &self.ewc {
            ewc.add_gradient(&self.adapted.params, &self.grads)?;
        }
        let lr = self.pace.schedule.lr_at(self.step);
        self.adapted.method.before_step(self.step, &self.adapted.params, &self.grads)?;
        self.optimizer.step(&self.adapted.params, &self.grads, lr)?;
        self.adapted.method.after_step(self.step, lr, &self.adapted.params, &self.optimizer)?;
        if self.optimizer.config().clip_norm.is_some() {
            let norm = self.optimizer.gradient_norm().to_scalar()?;
            if !norm.is_finite() {
                return Err(self.diverged("gradient norm", norm));
            }
        }
        self.step += 1;
        self.losses.push(loss);
        Ok(loss)
    }

    /// Nothing is saved from here on: the last checkpoint is the last good state.
    fn diverged(&self, what: &str, got: f64) -> Error {
        Error::Autograd {
            what: format!("training diverged: the {what} of step {} is {got}", self.step),
            hint: "lower --lr or --alpha, or compute in a wider --dtype".into(),
        }
    }

    fn micro_batch(&mut self, indices: &[usize], whole: usize, micro_step: u64) -> Result<f64> {
        let pass = Pass {
            adapted: &self.adapted,
            seed: self.recipe.seed,
            recompute_blocks: self.recompute_blocks,
            whole,
            micro_step,
        };
        let Some(other_grads) = self.other_grads.as_mut().filter(|_| indices.len() >= HALVED_FROM) else {
            let (loss, peak) = pass.run(indices, &mut self.grads)?;
            self.peak_bytes = self.peak_bytes.max(peak);
            return Ok(loss);
        };
        let (first, second) = indices.split_at(indices.len().div_ceil(2));
        let (a, b) = rayon::join(|| pass.run(first, &mut self.grads), || pass.run(second, other_grads));
        let ((a, a_peak), (b, b_peak)) = (a?, b?);
        add_and_clear(&self.grads, other_grads)?;
        self.peak_bytes = self.peak_bytes.max(a_peak + b_peak);
        Ok(a + b)
    }

    fn indices(&mut self, step: u64) -> Vec<usize> {
        batch_of(&self.recipe, self.samples, step, &mut self.order)
    }

    /// What an autograd that tracks every weight would keep of one full micro-batch, by the same ledger.
    pub fn bytes_if_all_tracked(&self) -> Result<usize> {
        let mut tape = Tape::accounting(&self.adapted.params);
        let indices: Vec<usize> = (0..self.recipe.batch.min(self.samples)).collect();
        self.adapted.loss(&mut tape, &indices, indices.len())?;
        Ok(tape.ledger().peak_bytes())
    }

    /// Where the run stands, for a checkpoint.
    pub fn progress(&self) -> Progress {
        let per_epoch = self.recipe.steps_per_epoch(self.samples).max(1);
        Progress {
            step: self.step,
            micro_step: self.step * self.recipe.accumulate as u64,
            seed: self.recipe.seed,
            epoch: self.step / per_epoch,
            index: (self.step % per_epoch) * (self.recipe.batch * self.recipe.accumulate) as u64,
        }
    }
}

/// The samples of one step. An epoch's last step takes what is left. `order` is the epoch that was visited last, and in what order.
fn batch_of(recipe: &Recipe, samples: usize, step: u64, order: &mut (Option<u64>, Vec<usize>)) -> Vec<usize> {
    let per_epoch = recipe.steps_per_epoch(samples).max(1);
    let each = recipe.batch * recipe.accumulate;
    let at = (step % per_epoch) as usize * each;
    let epoch = step / per_epoch;
    if order.0 != Some(epoch) {
        *order = (Some(epoch), tasks::order(samples, recipe.seed, epoch));
    }
    order.1[at..(at + each).min(samples)].to_vec()
}

/// Forward and backward of some samples, on whichever thread.
struct Pass<'a> {
    adapted: &'a Adapted,
    seed: u64,
    recompute_blocks: bool,
    /// Samples of the whole step, which the loss is divided by.
    whole: usize,
    micro_step: u64,
}

impl Pass<'_> {
    /// The samples' share of the loss, and the most bytes that were kept.
    fn run(&self, indices: &[usize], grads: &mut Grads) -> Result<(f64, usize)> {
        let mut tape = Tape::training(&self.adapted.params, self.seed, self.micro_step as u32)
            .recompute_blocks(self.recompute_blocks);
        let loss = self.adapted.loss(&mut tape, indices, self.whole)?;
        let done = tape.backward(&loss, grads)?;
        Ok((loss.tensor().to_scalar()?, done.ledger.peak_bytes()))
    }
}

/// `sum += part`, `part = 0`, on the CPU.
fn add_and_clear(sum: &Grads, part: &Grads) -> Result<()> {
    match sum.flat().dtype() {
        DType::F64 => add_and_clear_as::<f64>(sum, part),
        _ => add_and_clear_as::<f32>(sum, part),
    }
}

fn add_and_clear_as<T: Element + Default + AddAssign>(sum: &Grads, part: &Grads) -> Result<()> {
    let (mut sum, mut part) = (sum.flat().write::<T>("finetune")?, part.flat().write::<T>("finetune")?);
    for (s, p) in sum.iter_mut().zip(part.iter_mut()) {
        *s += std::mem::take(p);
    }
    Ok(())
}

fn progress(first: u64, last: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} step {pos}/{len}  {per_sec}  {msg}  eta {eta}");
    let bar = ProgressBar::new(last).with_position(first);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.reset_eta();
    bar
}
