//! VL-PET's gated bottlenecks, after each sub-layer of the trunk.

use graftwork::adapters::vl_pet::{Start, Variant};
use graftwork::adapters::{HeadLayout, Trunk, VlPetConfig};
use graftwork::tensor::ParamSetBuilder;
use graftwork::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, open, to_value};

pub const ENTRY: Entry = Entry {
    name: "vl-pet",
    about: "Bottlenecks after each sub-layer, behind a gate of chosen granularity",
    settings: |o| VlPet::from(&o.vl_pet),
    open: open::<VlPet>,
};

#[derive(clap::Args)]
#[command(next_help_heading = "Bottleneck and gate options")]
pub struct VlPetOptions {
    /// What the gate tells apart: values (large), tokens (middle-x), features (middle-y) or samples (small)
    #[arg(long, default_value = "large")]
    pub variant: String,
    /// Rank of each bottleneck
    #[arg(long, default_value_t = 8)]
    pub bottleneck: usize,
    /// Heads of each bottleneck
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Which side has heads: down, up, down-up or pair
    #[arg(long, default_value = "down")]
    pub head_layout: String,
    /// Rank of the gate of large [default: as --bottleneck]
    #[arg(long)]
    pub gate_rank: Option<usize>,
    /// s, times everything behind the gate; 2 starts bart's gates at the trunk itself
    #[arg(long, default_value_t = 1.0)]
    pub gate_scale: f64,
    /// Starting values as published for bart (all small) or t5 (updates at zero)
    #[arg(long, default_value = "bart")]
    pub start: String,
}

#[derive(Serialize, Deserialize)]
struct VlPet {
    variant: String,
    bottleneck: usize,
    heads: usize,
    head_layout: String,
    gate_rank: usize,
    gate_scale: f64,
    start: String,
}

impl VlPet {
    fn from(options: &VlPetOptions) -> Result<Value> {
        let vl_pet = VlPet {
            variant: options.variant.clone(),
            bottleneck: options.bottleneck,
            heads: options.heads,
            head_layout: options.head_layout.clone(),
            gate_rank: options.gate_rank.unwrap_or(options.bottleneck),
            gate_scale: options.gate_scale,
            start: options.start.clone(),
        };
        vl_pet.config()?;
        to_value(&vl_pet)
    }

    fn config(&self) -> Result<VlPetConfig> {
        let start = match self.start.as_str() {
            "bart" => Start::Bart,
            "t5" => Start::T5,
            got => {
                let expected = "bart or t5".into();
                return Err(Error::Value { op: "finetune", argument: "start", expected, got: got.into() });
            }
        };
        Ok(VlPetConfig {
            rank: self.bottleneck,
            heads: self.heads,
            layout: self.head_layout.parse::<HeadLayout>()?,
            gate_rank: self.gate_rank,
            scale: self.gate_scale,
            start,
            ..VlPetConfig::bart(self.variant.parse::<Variant>()?)
        })
    }
}

impl Method for VlPet {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        Ok(self.config()?.attach(trunk, &[], params)?.to_string())
    }

    fn note(&self) -> String {
        format!("{} r={} h={}", self.variant, self.bottleneck, self.heads)
    }
}
