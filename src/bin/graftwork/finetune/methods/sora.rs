//! SoRA: a LoRA whose ranks are gated, and pruned by stages.

use std::path::Path;

use graftwork::adapters::sora::{GateSchedule, Ranks, SoraConfig, prune_ranks};
use graftwork::adapters::{LoraConfig, Trunk, parse_targets};
use graftwork::format::adapter::NativeAdapter;
use graftwork::optim::{AdamW, Carry};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, Model, Moment, Options, parse, ranks, to_value, told};
use crate::finetune::options::{COUNT, FROM_0, Read, number, whole};

pub const ENTRY: Entry = Entry {
    name: "sora",
    about: "A LoRA with a gate on every rank, and ranks pruned by stages",
    reads: &[Read::always(&["targets", "rank", "alpha", "dropout", "lambda", "dense_steps", "stages", "stage_steps"])],
    settings: |options, _| to_value(&Settings::from(options)?),
    open: |settings| Ok(Box::new(Sora::open(settings)?)),
};

#[derive(clap::Args)]
pub struct SoraOptions {
    /// Strength of the ℓ1 penalty on gates in the last stage; --rank is what training starts with
    #[arg(long, default_value_t = 0.2, value_parser = number(FROM_0))]
    pub lambda: f64,
    /// Steps before the first stage, without a penalty
    #[arg(long, default_value_t = 400, value_parser = whole(0..=COUNT))]
    pub dense_steps: u64,
    /// Stages in which the penalty rises to --lambda
    #[arg(long, default_value_t = 6, value_parser = whole(1..=COUNT))]
    pub stages: u64,
    /// Steps of a stage
    #[arg(long, default_value_t = 100, value_parser = whole(1..=COUNT))]
    pub stage_steps: u64,
}

#[derive(Serialize, Deserialize)]
struct Settings {
    rank: usize,
    alpha: f64,
    dropout: f64,
    targets: String,
    #[serde(flatten)]
    schedule: GateSchedule,
}

impl Settings {
    fn from(options: &Options) -> Result<Self> {
        let (own, shared) = (&options.sora, &options.lora);
        let SoraOptions { lambda, dense_steps, stages, stage_steps } = *own;
        let settings = Settings {
            rank: shared.rank,
            alpha: shared.alpha(),
            dropout: shared.dropout,
            targets: shared.targets(),
            schedule: GateSchedule { lambda, dense_steps, stages, stage_steps },
        };
        settings.schedule.check()?;
        settings.config()?;
        Ok(settings)
    }

    fn config(&self) -> Result<SoraConfig> {
        let targets = parse_targets(&self.targets)?;
        let (rank, alpha, dropout) = (self.rank, self.alpha, self.dropout);
        Ok(SoraConfig { lora: LoraConfig { rank, alpha, dropout, targets, ..LoraConfig::default() } })
    }
}

struct Sora {
    settings: Settings,
    config: SoraConfig,
    ranks: Ranks,
}

impl Sora {
    fn open(settings: &Value) -> Result<Self> {
        let settings: Settings = parse(settings)?;
        settings.schedule.check()?;
        Ok(Sora { config: settings.config()?, settings, ranks: Ranks::new() })
    }
}

/// Name of the tensor that holds a module's rank.
const RANK: &str = ".sora_rank";

impl Method for Sora {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        told(self.config.attach(trunk, &self.ranks, params)?)
    }

    fn note(&self) -> String {
        ranks::note(&self.ranks, self.settings.rank)
    }

    fn is_random(&self) -> bool {
        self.settings.dropout > 0.0
    }

    fn reshape(&mut self, moment: &mut Moment) -> Result<Option<Carry>> {
        if !self.settings.schedule.prunes_at(moment.step) {
            return Ok(None);
        }
        let (ranks, carry) = prune_ranks(&self.ranks, moment.params)?;
        self.ranks = ranks;
        Ok(Some(carry))
    }

    fn after_step(&self, step: u64, lr: f64, params: &ParamSet, _: &AdamW) -> Result<()> {
        self.settings.schedule.proximal_step(step, params, lr)
    }

    fn form(&self) -> Result<Vec<(String, Tensor)>> {
        ranks::to_tensors(&self.ranks, RANK)
    }

    fn take_form(&mut self, dir: &Path, file: &mut NativeAdapter, _: &mut dyn Model) -> Result<()> {
        self.ranks = ranks::take(dir, file, RANK)?;
        Ok(())
    }

    fn settles_at(&self) -> Option<(u64, &'static str)> {
        let GateSchedule { dense_steps, stages, stage_steps, .. } = self.settings.schedule;
        let last = dense_steps.saturating_add(stages.saturating_mul(stage_steps));
        Some((last, "--dense-steps and --stages of --stage-steps prune ranks"))
    }

    fn density(&self) -> Option<f64> {
        Some(ranks::density(&self.ranks, self.settings.rank))
    }
}
