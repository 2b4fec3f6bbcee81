//! AdaLoRA: a budget of ranks that falls, and goes where importance is.

use std::path::Path;

use graftwork::adapters::adalora::{AdaLoraConfig, Budget, Importance, Ranks, add_orthogonality, prune_ranks};
use graftwork::adapters::{LoraConfig, Trunk, parse_targets};
use graftwork::autograd::Grads;
use graftwork::format::adapter::NativeAdapter;
use graftwork::optim::{AdamW, Carry, DensitySchedule};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, Model, Moment, Options, parse, ranks, to_value, told};
use crate::finetune::options::{self, COUNT, FROM_0, Read, number, refused, size, whole};

pub const ENTRY: Entry = Entry {
    name: "adalora",
    about: "LoRAs that begin with too many ranks and keep those that matter",
    reads: &[Read::always(&[
        "targets",
        "rank",
        "alpha",
        "dropout",
        "target_rank",
        "ranks_from",
        "ranks_until",
        "ranks_every",
        "orthogonality",
    ])],
    settings: |options, steps| to_value(&Settings::from(options, steps)?),
    open: |settings| Ok(Box::new(AdaLora::open(settings)?)),
};

#[derive(clap::Args)]
pub struct AdaLoraOptions {
    /// Ranks a module has in the end, on average; --rank is what training starts with [default: half of it]
    #[arg(long, value_parser = size(1..=256))]
    pub target_rank: Option<usize>,
    /// Step from which ranks are taken away [default: a tenth of the run]
    #[arg(long, value_parser = whole(0..=COUNT))]
    pub ranks_from: Option<u64>,
    /// Step from which the ranks that are left stay [default: half of the run]
    #[arg(long, value_parser = whole(0..=COUNT))]
    pub ranks_until: Option<u64>,
    /// Steps between
    #[arg(long, default_value_t = 10, value_parser = whole(1..=COUNT))]
    pub ranks_every: u64,
    /// Weight of the penalty on factors that are not orthonormal
    #[arg(long, default_value_t = 0.5, value_parser = number(FROM_0))]
    pub orthogonality: f64,
}

#[derive(Serialize, Deserialize)]
struct Settings {
    rank: usize,
    alpha: f64,
    dropout: f64,
    targets: String,
    target_rank: usize,
    ranks_from: u64,
    ranks_until: u64,
    ranks_every: u64,
    orthogonality: f64,
}

impl Settings {
    fn from(options: &Options, steps: u64) -> Result<Self> {
        let (own, shared) = (&options.adalora, &options.lora);
        // One that is given moves the other along.
        let from = own.ranks_from.unwrap_or_else(|| (steps / 10).min(own.ranks_until.unwrap_or(u64::MAX)));
        let settings = Settings {
            rank: shared.rank,
            alpha: shared.alpha(),
            dropout: shared.dropout,
            targets: shared.targets(),
            target_rank: own.target_rank.unwrap_or(shared.rank.div_ceil(2)),
            ranks_from: from,
            ranks_until: own.ranks_until.unwrap_or_else(|| (steps / 2).max(from)),
            ranks_every: own.ranks_every,
            orthogonality: own.orthogonality,
        };
        settings.config()?;
        Ok(settings)
    }

    fn config(&self) -> Result<AdaLoraConfig> {
        if self.target_rank > self.rank {
            return Err(refused("--target-rank", format!("at most --rank, {}", self.rank), self.target_rank));
        }
        options::require_order(("--ranks-from", self.ranks_from), ("--ranks-until", self.ranks_until))?;
        let end = self.target_rank as f64 / self.rank as f64;
        let schedule = DensitySchedule::new(1.0, end, self.ranks_from, self.ranks_until, self.ranks_every)?;
        let budget = Budget { orthogonality: self.orthogonality, ..Budget::new(schedule) };
        budget.check()?;
        let (rank, alpha, dropout) = (self.rank, self.alpha, self.dropout);
        let targets = parse_targets(&self.targets)?;
        Ok(AdaLoraConfig { lora: LoraConfig { rank, alpha, dropout, targets, ..LoraConfig::default() }, budget })
    }
}

struct AdaLora {
    settings: Settings,
    config: AdaLoraConfig,
    ranks: Ranks,
    /// While the budget falls.
    importance: Option<Importance>,
}

/// Names of what a file holds beside the parameters.
const RANK: &str = ".adalora_rank";
const IMPORTANCE: [&str; 2] = ["adalora.sensitivity", "adalora.uncertainty"];

impl AdaLora {
    fn open(settings: &Value) -> Result<Self> {
        let settings: Settings = parse(settings)?;
        Ok(AdaLora { config: settings.config()?, settings, ranks: Ranks::new(), importance: None })
    }
}

impl Method for AdaLora {
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
        if moment.step == 0 || moment.step != self.config.budget.schedule.last_step {
            return Ok(None);
        }
        let (ranks, carry) = prune_ranks(&self.ranks, moment.params)?;
        (self.ranks, self.importance) = (ranks, None);
        Ok(Some(carry))
    }

    fn before_step(&mut self, step: u64, params: &ParamSet, grads: &Grads) -> Result<()> {
        let budget = &self.config.budget;
        if budget.is_open(step) {
            let importance = self.importance.get_or_insert_with(|| Importance::new(params));
            importance.observe(budget, params, grads)?;
        }
        add_orthogonality(budget, params, grads)
    }

    fn after_step(&self, step: u64, _: f64, params: &ParamSet, _: &AdamW) -> Result<()> {
        let schedule = &self.config.budget.schedule;
        match &self.importance {
            Some(importance) if schedule.moves_at(step + 1) => importance.allocate(params, schedule.at(step + 1)),
            _ => Ok(()),
        }
    }

    fn form(&self) -> Result<Vec<(String, Tensor)>> {
        let mut form = ranks::to_tensors(&self.ranks, RANK)?;
        if let Some(importance) = &self.importance {
            form.extend(IMPORTANCE.map(String::from).into_iter().zip(importance.tensors()?));
        }
        Ok(form)
    }

    fn take_form(&mut self, dir: &Path, file: &mut NativeAdapter, _: &mut dyn Model) -> Result<()> {
        self.ranks = ranks::take(dir, file, RANK)?;
        if let [Some(sensitivity), Some(uncertainty)] = IMPORTANCE.map(|name| file.tensors.remove(name)) {
            self.importance = Some(Importance::from_tensors([&sensitivity, &uncertainty])?);
        }
        Ok(())
    }

    fn settles_at(&self) -> Option<(u64, &'static str)> {
        Some((self.settings.ranks_until, "--ranks-until takes ranks away"))
    }

    fn density(&self) -> Option<f64> {
        Some(ranks::density(&self.ranks, self.settings.rank))
    }
}
