//! Learning where to be sparse: what blocks are chosen by, how many there are when, and what makes them go.
//!
//! Before the first step, and whenever the schedule says so, a trainer
//! 1. asks [`Sparsity::probe`] whether the scores need gradients; if so it attaches the family with that probe, runs forward and
//!    backward on a batch or a few, and reads the scores;
//! 2. lets [`Sparsity::next`] make the next patterns;
//! 3. attaches the family with them, builds a parameter set, and carries values and moments over.
//!
//! After every optimizer step comes [`Sparsity::proximal_step`]. Everything is a function of the step, the patterns, the parameters and the batch:
//! a run that is taken up from a checkpoint makes the same choices.

use serde::{Deserialize, Serialize};

use super::blocks::VALUES;
use super::choose::Move;
use super::{Family, Patterns, Probe, Scores, Site, require_block};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::{BlockNorm, Threshold, block_norms, shrink_blocks};
use crate::optim::{AdamW, DensitySchedule};
use crate::rng::Stream;
use crate::tensor::{BlockPattern, ParamSet, Tensor};

/// What a block is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// Draws of the run's seed.
    Random,
    /// `‖W_b‖_F` of the frozen weight, or of a bottleneck's starting values.
    Magnitude,
    /// `Σ_b |w ⊙ g|` (Lee, Ajanthan and Torr, "SNIP", 2019). All zero where w is zero.
    Snip,
    /// `Σ_b g²` over the scoring batches (in the manner of SMT), without the dense gradient.
    Gradient,
}

/// The settings of choosing and moving; the whole of its state beside the patterns and the step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sparsity {
    pub score: Score,
    pub schedule: DensitySchedule,
    /// Share of the blocks that give way to others at each move, in [0, 1).
    pub regrow: f64,
    /// λ of the group lasso; 0 is none.
    pub lasso: f64,
    /// Whether a block's threshold is divided by the root of its mean second moment, as Adam divides its step.
    pub preconditioned: bool,
}

const OP: &str = "sparsity";

impl Sparsity {
    /// Blocks of `score` at one density, which never move.
    pub fn fixed(score: Score, density: f64) -> Result<Self> {
        let schedule = DensitySchedule::constant(density)?;
        Ok(Sparsity { score, schedule, regrow: 0.0, lasso: 0.0, preconditioned: false })
    }

    /// For settings that come from a file or a command line.
    pub fn check(&self) -> Result<()> {
        self.schedule.check()?;
        if !(0.0..1.0).contains(&self.regrow) {
            return Err(Error::value(OP, "regrow", "a share in [0, 1)", self.regrow));
        }
        if !(self.lasso.is_finite() && self.lasso >= 0.0) {
            return Err(Error::value(OP, "lasso", "a finite number, 0 or more", self.lasso));
        }
        Ok(())
    }

    /// Whether patterns are to be made before step `step`.
    pub fn is_due(&self, step: u64) -> bool {
        step == 0 || self.schedule.moves_at(step)
    }

    /// What the scores of this choice need of gradients; `None` if nothing.
    pub fn probe(&self, device: &Device, family: &dyn Family, sites: &[Site], step: u64) -> Result<Option<Probe>> {
        match self.score {
            _ if step > 0 && !self.fills(step) => Ok(None),
            Score::Random | Score::Magnitude => Ok(None),
            Score::Gradient => Probe::new(device, family.block(), sites, false).map(Some),
            // A site that has moved on is no longer judged by where it started: what grows is then chosen by its gradient.
            Score::Snip => Probe::new(device, family.block(), sites, step == 0).map(Some),
        }
    }

    /// The patterns that step `step` trains with. `now` are those before it, whose values `params` holds; `scores` come from the
    /// probe's passes.
    #[allow(clippy::too_many_arguments)]
    pub fn next(
        &self,
        step: u64,
        seed: u64,
        family: &dyn Family,
        sites: &[Site],
        now: &Patterns,
        params: &ParamSet,
        scores: Option<Scores>,
    ) -> Result<Patterns> {
        let (device, block) = (params.device(), family.block());
        require_block(block)?;
        let scores = match (scores, self.score) {
            (Some(scores), _) => scores,
            (None, Score::Magnitude) => magnitudes(device, block, sites)?,
            (None, _) => random(block, sites, seed, step),
        };
        let density = self.schedule.at(step);
        if step == 0 {
            return family.choose(device, sites, &scores, density);
        }
        let fill = self.fills(step);
        let how = Move { density, allocation: family.allocation(), regrow: self.regrow, fill };
        family.advance(device, sites, now, &norms(now, params)?, &scores, how)
    }

    /// With a lasso the last move only takes away: nothing new is begun that the penalty did not ask for.
    fn fills(&self, step: u64) -> bool {
        self.lasso == 0.0 || step != self.schedule.last_step
    }

    /// `W_b ← max(0, 1 − t_b / ‖W_b‖_F) · W_b` with `t_b = η λ b`, divided by `√v̂_b + ε` when preconditioned (v̂_b: mean of the block's
    /// bias-corrected second moments). `lr` is the η of the optimizer's step that was just taken. A block that no gradient has reached is left as it
    /// is when preconditioned: a down-projection would otherwise be gone before its up-projection has begun to learn.
    ///
    /// # Errors
    /// [`Error::Value`] for settings that [`Sparsity::check`] refuses, a rate that is negative or not finite, and, when preconditioned, an optimizer
    /// that has taken no step; [`Error::Shape`] for values or moments that are not those of `patterns`.
    pub fn proximal_step(&self, patterns: &Patterns, params: &ParamSet, optimizer: &AdamW, lr: f64) -> Result<()> {
        self.check()?;
        if !(lr.is_finite() && lr >= 0.0) {
            return Err(Error::value(OP, "lr", "a finite number, 0 or more", lr));
        }
        if self.lasso == 0.0 || lr == 0.0 {
            return Ok(());
        }
        for (name, pattern) in patterns {
            let Some(id) = params.find(&format!("{name}{VALUES}")) else { continue };
            let master = params.view(params.master(), id)?;
            master.require_dims(OP, "values", &pattern.value_dims())?;
            let working = params.view(params.working(), id)?;
            let working = (working.dtype() != master.dtype()).then_some(&working);
            let plain = lr * self.lasso * pattern.block() as f64;
            if self.preconditioned {
                let second = params.view(optimizer.moments().1, id)?;
                let thresholds = preconditioned(pattern, &second, optimizer, plain)?;
                shrink_blocks(&master, working, Threshold::PerBlock(&thresholds))?;
            } else {
                shrink_blocks(&master, working, Threshold::Uniform(plain))?;
            }
        }
        Ok(())
    }
}

/// `plain / (√v̂_b + ε)` of every block, 0 where v̂_b is.
fn preconditioned(pattern: &BlockPattern, second: &Tensor, optimizer: &AdamW, plain: f64) -> Result<Tensor> {
    let config = optimizer.config();
    if optimizer.steps() == 0 {
        return Err(Error::value(OP, "optimizer", "one that has taken a step", "before its first"));
    }
    let correction = 1.0 - config.beta2.powf(optimizer.steps() as f64);
    let means = block_norms(pattern, second, BlockNorm::MeanAbsolute)?.to_f64_vec()?;
    let of = |mean: f64| match plain / ((mean / correction).sqrt() + config.eps) {
        _ if mean == 0.0 => 0.0,
        // NaN stays NaN.
        threshold => threshold.clamp(0.0, f64::from(f32::MAX)) as f32,
    };
    let thresholds: Vec<f32> = means.into_iter().map(of).collect();
    Tensor::from_slice(pattern.device(), &[thresholds.len()], &thresholds)
}

/// `‖W_b‖_F` of every block that exists, in the pattern's order.
fn norms(patterns: &Patterns, params: &ParamSet) -> Result<Scores> {
    let mut out = Scores::new();
    for (name, pattern) in patterns {
        if let Some(id) = params.find(&format!("{name}{VALUES}")) {
            let values = params.view(params.master(), id)?;
            out.insert(name.clone(), block_norms(pattern, &values, BlockNorm::Frobenius)?.to_f64_vec()?);
        }
    }
    Ok(out)
}

fn magnitudes(device: &Device, block: usize, sites: &[Site]) -> Result<Scores> {
    let norm = |site: &Site| {
        let all = BlockPattern::full(device, site.shape(), block)?;
        Ok((site.name.clone(), block_norms(&all, &site.weight, BlockNorm::Frobenius)?.to_f64_vec()?))
    };
    sites.iter().map(norm).collect()
}

fn random(block: usize, sites: &[Site], seed: u64, step: u64) -> Scores {
    let draws = |site: &Site| {
        let stream = Stream::named(seed, step as u32, &site.name);
        let [n, k] = site.shape();
        let blocks = n.div_ceil(block) * k.div_ceil(block);
        // Above zero, so that a draw of zero is no score of zero.
        (0..blocks as u64).map(|i| f64::from(stream.bits(i)) + 1.0).collect()
    };
    sites.iter().map(|site| (site.name.clone(), draws(site))).collect()
}
