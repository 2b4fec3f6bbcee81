//! LoRA and DoRA, saved as PEFT saves them.

use std::path::Path;

use graftwork::Result;
use graftwork::adapters::{DoraConfig, LoraConfig, Trunk, adapter_file, load_adapter, parse_targets};
use graftwork::format::adapter::SavedAdapter;
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, Model, open, to_value, told};
use crate::finetune::options::{ABOVE_0, PART, Read, modules, number, size};

const READS: &[Read] = &[Read::always(&["targets", "rank", "alpha", "rslora", "dropout", "lora_plus_ratio"])];

pub const ENTRY: Entry = Entry {
    name: "lora",
    about: "Low-rank updates of linears",
    reads: READS,
    settings: |o, _| Lora::from(&o.lora),
    open: open::<Lora>,
};

pub const DORA: Entry = Entry {
    name: "dora",
    about: "Low-rank updates that turn the rows of a weight, and lengths of the rows that learn by themselves",
    reads: READS,
    settings: |o, _| Lora::from(&o.lora),
    open: |settings| Ok(Box::new(Dora(super::parse(settings)?))),
};

#[derive(clap::Args)]
pub struct LoraOptions {
    /// Modules that get an adapter: names separated by commas, all-linear, or regex:PATTERN [default: q_proj,v_proj; all-linear for
    /// block-sparse]
    #[arg(long, value_parser = modules)]
    pub targets: Option<String>,
    /// Rank of each LoRA, 1 to 256
    #[arg(long, default_value_t = 8, value_parser = size(1..=256))]
    pub rank: usize,
    /// LoRA's alpha; the update is scaled by alpha / rank [default: twice the rank]
    #[arg(long, value_parser = number(ABOVE_0))]
    pub alpha: Option<f64>,
    /// Scale by alpha / √rank instead
    #[arg(long)]
    pub rslora: bool,
    /// Dropout on the input of each LoRA, in [0, 1); with vl-pet on what leaves each gate
    #[arg(long, default_value_t = 0.0, value_parser = number(PART))]
    pub dropout: f64,
    /// LoRA+: B learns at so many times the rate of A; its authors advise 16
    #[arg(long, default_value_t = 1.0, value_parser = number(ABOVE_0))]
    pub lora_plus_ratio: f64,
}

impl LoraOptions {
    pub fn alpha(&self) -> f64 {
        self.alpha.unwrap_or(2.0 * self.rank as f64)
    }

    pub fn targets(&self) -> String {
        self.targets.clone().unwrap_or_else(|| "q_proj,v_proj".into())
    }
}

#[derive(Serialize, Deserialize)]
struct Lora {
    rank: usize,
    alpha: f64,
    rslora: bool,
    dropout: f64,
    targets: String,
    #[serde(default = "same")]
    lora_plus_ratio: f64,
}

/// A and B learn alike, as in runs that were begun before they could differ.
fn same() -> f64 {
    1.0
}

impl Lora {
    fn from(options: &LoraOptions) -> Result<Value> {
        let lora = Lora {
            rank: options.rank,
            alpha: options.alpha(),
            rslora: options.rslora,
            dropout: options.dropout,
            targets: options.targets(),
            lora_plus_ratio: options.lora_plus_ratio,
        };
        lora.config()?;
        to_value(&lora)
    }

    fn config(&self) -> Result<LoraConfig> {
        Ok(LoraConfig {
            rank: self.rank,
            alpha: self.alpha,
            rslora: self.rslora,
            dropout: self.dropout,
            targets: parse_targets(&self.targets)?,
            plus_ratio: self.lora_plus_ratio,
            ..LoraConfig::default()
        })
    }
}

impl Method for Lora {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        told(self.config()?.attach(trunk, params)?)
    }

    fn note(&self) -> String {
        format!("r={}", self.rank)
    }

    fn is_random(&self) -> bool {
        self.dropout > 0.0
    }

    fn save(&self, _: &Entry, _: &Value, heads: &[&str], params: &ParamSet) -> Result<SavedAdapter> {
        adapter_file(&self.config()?.to_peft(heads), params).map(SavedAdapter::from)
    }

    fn load(&self, dir: &Path, model: &mut dyn Model) -> Result<ParamSet> {
        let (device, dtype) = (model.device().clone(), model.dtype());
        load_adapter(model.trunk(), dir, &device, dtype).map(|(params, _)| params)
    }
}

struct Dora(Lora);

impl Dora {
    fn config(&self) -> Result<DoraConfig> {
        Ok(DoraConfig { lora: self.0.config()? })
    }
}

impl Method for Dora {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        told(self.config()?.attach(trunk, params)?)
    }

    fn note(&self) -> String {
        self.0.note()
    }

    fn is_random(&self) -> bool {
        self.0.is_random()
    }

    fn save(&self, _: &Entry, _: &Value, heads: &[&str], params: &ParamSet) -> Result<SavedAdapter> {
        adapter_file(&self.config()?.to_peft(heads), params).map(SavedAdapter::from)
    }

    fn load(&self, dir: &Path, model: &mut dyn Model) -> Result<ParamSet> {
        self.0.load(dir, model)
    }
}
