//! Settings that a method leaves open, chosen under a budget: the largest candidate of each kind that fits is trained briefly on four fifths of
//! the training samples, and the one with the least loss on the last fifth is taken. The held-out samples are not looked at.

use graftwork::autograd::Tape;
use graftwork::optim::{Decay, Schedule};
use graftwork::{Device, Error, Result};
use serde_json::Value;

use super::args::{Args, Pace, Recipe};
use super::model::Adapted;
use super::tasks::Task;
use super::train::{Interrupt, Trainer};
use crate::output::{percent, say};

/// `recipe` with nothing left open.
///
/// # Errors
/// [`Error::Value`] when no candidate fits the budget; it says what the smallest needs.
pub fn settle(recipe: Recipe, args: &Args, task: &dyn Task, device: &Device, interrupt: &Interrupt) -> Result<Recipe> {
    let mut candidates = recipe.method()?.candidates()?;
    if candidates.is_empty() {
        if args.budget.is_none() {
            return Ok(recipe);
        }
        candidates.push(vec![recipe.settings()]);
    }
    let budget = args.budget.unwrap_or(1.0);
    let (mut fitting, mut least) = (Vec::new(), f64::INFINITY);
    for kind in candidates {
        for settings in kind {
            let Value::Object(settings) = settings else { continue };
            let candidate = Recipe { settings, ..recipe.clone() };
            let adapted = Adapted::fresh(&candidate, task, device)?;
            let share = adapted.params.numel() as f64 / adapted.total_params() as f64;
            least = least.min(share);
            if share <= budget {
                fitting.push((candidate, adapted, share));
                break;
            }
            say!("{}: {} trainable, over the budget of {}", adapted.method.note(), percent(share), percent(budget));
        }
    }
    if fitting.len() < 2 {
        return fitting.pop().map(|(candidate, ..)| candidate).ok_or_else(|| Error::Value {
            op: "finetune",
            argument: "budget",
            expected: format!("at least {}, what the smallest of the adapters in question needs", percent(least)),
            got: percent(budget),
        });
    }
    let mut best: Option<(f64, Recipe, String)> = None;
    for (candidate, adapted, share) in fitting {
        let note = adapted.method.note();
        let loss = trial(args, adapted, &candidate, task.samples(), interrupt)?;
        say!(
            "{note}: {} trainable, loss {loss:.4} on samples left out, after {} steps",
            percent(share),
            args.trial_steps
        );
        if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
            best = Some((loss, candidate, note));
        }
    }
    let Some((loss, chosen, note)) = best else { return Ok(recipe) };
    say!("chosen: {note}, for the least loss ({loss:.4}) of all within the budget of {}", percent(budget));
    Ok(chosen)
}

/// The loss on the last fifth of the training samples after a few steps on the others.
fn trial(args: &Args, adapted: Adapted, recipe: &Recipe, samples: usize, interrupt: &Interrupt) -> Result<f64> {
    let fitted = samples - samples / 5;
    let schedule = Schedule::new(args.lr, Decay::Constant, args.warmup.min(args.trial_steps / 4), args.trial_steps)?;
    let pace = Pace { schedule, last_step: args.trial_steps, save_every: None };
    let mut trainer = Trainer::start(adapted, recipe.clone(), pace, fitted)?;
    trainer.hold()?;
    trainer.run(None, interrupt)?;
    let left_out: Vec<usize> = (fitted..samples).collect();
    let mut loss = 0.0;
    for indices in left_out.chunks(recipe.batch) {
        let mut tape = Tape::inference(&trainer.adapted.params);
        loss += trainer.adapted.loss(&mut tape, indices, left_out.len())?.tensor().to_scalar()?;
    }
    Ok(loss)
}
