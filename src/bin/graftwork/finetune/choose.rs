//! Settings that a method leaves open, chosen under a budget: the largest candidate of each kind that fits is trained briefly on four fifths of
//! the training samples, and the one with the least loss on the last fifth is taken. The held-out samples are not looked at.

use graftwork::autograd::Tape;
use graftwork::optim::{Decay, Schedule};
use graftwork::{Device, Result};
use serde_json::Value;

use super::args::{Pace, Recipe};
use super::model::Adapted;
use super::options::refused;
use super::plan::{Choice, Planned};
use super::tasks::Task;
use super::train::{Interrupt, Trainer};
use crate::output::{percent, say};

/// The planned recipe with nothing left open; `None` where the run is to end before that is decided.
///
/// # Errors
/// [`Error::Value`] when no candidate fits the budget; it says what the smallest needs.
pub fn settle(
    planned: &Planned,
    choice: &Choice,
    task: &dyn Task,
    device: &Device,
    interrupt: &Interrupt,
) -> Result<Option<Recipe>> {
    let recipe = planned.recipe.clone();
    let mut candidates = recipe.method()?.candidates()?;
    if candidates.is_empty() {
        if choice.budget.is_none() {
            return Ok(Some(recipe));
        }
        candidates.push(vec![recipe.settings()]);
    }
    let budget = choice.budget.unwrap_or(1.0);
    let (mut fitting, mut least, tried) = (Vec::new(), f64::INFINITY, candidates.len());
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
        // Rounded up: what is named must be enough.
        let enough = percent((least * 1e4).ceil() / 1e4);
        let expected = format!("at least {enough}, what the smallest of the adapters in question needs");
        let Some((only, adapted, _)) = fitting.pop() else {
            return Err(refused("--budget", expected, percent(budget)));
        };
        if tried > 1 {
            say!("chosen: {}, the only one within the budget of {}", adapted.method.note(), percent(budget));
        }
        return Ok(Some(only));
    }
    let mut best: Option<(f64, Recipe, String)> = None;
    for (candidate, adapted, share) in fitting {
        let note = adapted.method.note();
        let pace = trial_pace(&planned.pace, choice.trial_steps)?;
        let loss = trial(adapted, &candidate, pace, task.samples(), interrupt).map_err(|e| e.within(&note))?;
        let Some(loss) = loss else { return Ok(None) };
        let (share, steps) = (percent(share), choice.trial_steps);
        say!("{note}: {share} trainable, loss {loss:.4} on samples left out, after {steps} steps");
        if best.as_ref().is_none_or(|(least, ..)| loss < *least || least.is_nan()) {
            best = Some((loss, candidate, note));
        }
    }
    let Some((loss, chosen, note)) = best else { return Ok(Some(recipe)) };
    say!("chosen: {note}, for the least loss ({loss:.4}) of all within the budget of {}", percent(budget));
    Ok(Some(chosen))
}

/// `recipe` at the rank, from 2 to 256, at which it has the number of trainable numbers closest to `wanted`; alpha goes with the rank.
/// A method without a rank stays as it is, and says so.
pub fn equal(recipe: Recipe, wanted: Option<usize>, task: &dyn Task, device: &Device) -> Result<Recipe> {
    let rank = recipe.settings.get("rank").and_then(Value::as_u64);
    let Some(wanted) = wanted else { return Ok(recipe) };
    let Some(rank) = rank else {
        say!(
            "note: --equal-params leaves {} as it is, which has no --rank; named first, it gives the others its number",
            recipe.method
        );
        return Ok(recipe);
    };
    let at = |new: u64| {
        let mut settings = recipe.settings.clone();
        settings.insert("rank".into(), new.into());
        if let Some(alpha) = settings.get("alpha").and_then(Value::as_f64) {
            settings.insert("alpha".into(), (alpha * new as f64 / rank as f64).into());
        }
        Recipe { settings, ..recipe.clone() }
    };
    let count = |rank: u64| Adapted::fresh(&at(rank), task, device).map(|adapted| adapted.params.numel());
    // The first rank that has as many.
    let (mut low, mut high) = (2, 256);
    while low < high {
        let middle = (low + high) / 2;
        if count(middle)? < wanted { low = middle + 1 } else { high = middle }
    }
    let far = |rank: u64| count(rank).map(|numel| numel.abs_diff(wanted));
    let closest = if low > 2 && far(low - 1)? < far(low)? { low - 1 } else { low };
    say!("{}: rank {closest}, for about {wanted} trainable numbers", recipe.method);
    Ok(at(closest))
}

/// A constant rate, after a warm-up of a quarter of the trial at most.
fn trial_pace(planned: &Pace, steps: u64) -> Result<Pace> {
    let warmup = planned.schedule.warmup_steps.min(steps / 4);
    let schedule = Schedule::new(planned.schedule.lr, Decay::Constant, warmup, steps)?;
    Ok(Pace { schedule, last_step: steps, save_every: None })
}

/// The loss on the last fifth of the training samples after a few steps on the others; `None` where the run is to end: half a trial is none.
fn trial(adapted: Adapted, recipe: &Recipe, pace: Pace, samples: usize, interrupt: &Interrupt) -> Result<Option<f64>> {
    let fitted = samples - samples / 5;
    let mut trainer = Trainer::start(adapted, recipe.clone(), pace, fitted)?;
    trainer.hold()?;
    if trainer.run(None, interrupt)?.interrupted {
        return Ok(None);
    }
    let left_out: Vec<usize> = (fitted..samples).collect();
    let mut loss = 0.0;
    for indices in left_out.chunks(recipe.batch) {
        let mut tape = Tape::inference(&trainer.adapted.params);
        loss += trainer.adapted.loss(&mut tape, indices, left_out.len())?.tensor().to_scalar()?;
    }
    Ok(if interrupt.asked() { None } else { Some(loss) })
}
