//! VL-PET: gated bottlenecks after each sub-layer of the trunk. In an encoder-decoder, as published, also a bottleneck beside the value
//! projection of each cross-attention, and the encoder's norms learn.

use graftwork::adapters::vl_pet::{Start, Variant};
use graftwork::adapters::{HeadLayout, Trunk, VlPetConfig, VlPetDecoder};
use graftwork::format::peft::Modules;
use graftwork::tensor::ParamSetBuilder;
use graftwork::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, open, to_value};
use crate::finetune::options::{ABOVE_0, Read, WIDTH, number, size};

pub const ENTRY: Entry = Entry {
    name: "vl-pet",
    about: "Bottlenecks after each sub-layer, behind a gate of chosen granularity",
    reads: &[Read::always(&["variant", "bottleneck", "heads", "head_layout", "gate_rank", "gate_scale", "start"])],
    settings: |o, _| VlPet::from(&o.vl_pet),
    open: open::<VlPet>,
};

#[derive(clap::Args)]
pub struct VlPetOptions {
    /// What the gate tells apart: values (large), tokens (middle-x), features (middle-y) or samples (small); auto tries them
    #[arg(long, alias = "granularity", default_value = "large")]
    pub variant: String,
    /// Rank of each bottleneck
    #[arg(long, default_value_t = 8, value_parser = size(1..=WIDTH))]
    pub bottleneck: usize,
    /// Heads of each bottleneck
    #[arg(long, default_value_t = 4, value_parser = size(1..=WIDTH))]
    pub heads: usize,
    /// Which side has heads: down, up, down-up or pair
    #[arg(long, default_value = "down")]
    pub head_layout: String,
    /// Rank of the gate of large [default: as --bottleneck]
    #[arg(long, value_parser = size(1..=WIDTH))]
    pub gate_rank: Option<usize>,
    /// s, times everything behind the gate; 2 starts bart's gates at the trunk itself
    #[arg(long, default_value_t = 1.0, value_parser = number(ABOVE_0))]
    pub gate_scale: f64,
    /// Starting values as published for bart (all small) or t5 (updates at zero)
    #[arg(long, default_value = "bart")]
    pub start: String,
}

#[derive(Clone, Serialize, Deserialize)]
struct VlPet {
    variant: String,
    bottleneck: usize,
    heads: usize,
    head_layout: String,
    gate_rank: usize,
    gate_scale: f64,
    start: String,
}

const FINEST: &str = "large";

/// The value projections of cross-attention in BART and in T5.
const CROSS_VALUES: [&str; 2] = ["encoder_attn.v_proj", "EncDecAttention.v"];

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
        // Whatever is chosen, the rest has to fit it.
        let variant = if vl_pet.is_open() { FINEST } else { &vl_pet.variant };
        vl_pet.with(variant).config()?;
        to_value(&vl_pet)
    }

    fn is_open(&self) -> bool {
        self.variant == "auto"
    }

    fn with(&self, variant: &str) -> VlPet {
        VlPet { variant: variant.into(), ..self.clone() }
    }

    fn config(&self) -> Result<VlPetConfig> {
        let start = match self.start.as_str() {
            "bart" => Start::BART,
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
        let config = self.config()?;
        let mut summary = config.attach(trunk, &[], params)?.to_string();
        let values = Modules::Names(CROSS_VALUES.map(String::from).to_vec());
        match VlPetDecoder::attach(trunk, &values, self.bottleneck, config.start, params) {
            Ok(report) => summary += &format!("; beside values of {} cross-attentions", report.attached.len()),
            // A trunk without cross-attention.
            Err(Error::NoMatch { .. }) => {}
            Err(other) => return Err(other),
        }
        let norms = trunk.norms()?;
        if !norms.is_empty() {
            summary += &format!("; {} norms learn", norms.len());
        }
        for norm in norms {
            norm.train(params)?;
        }
        Ok(summary)
    }

    fn note(&self) -> String {
        format!("{} r={} h={}", self.variant, self.bottleneck, self.heads)
    }

    fn candidates(&self) -> Result<Vec<Value>> {
        let open = if self.is_open() { &Variant::ALL[..] } else { &[] };
        open.iter().map(|variant| to_value(&self.with(variant.name()))).collect()
    }
}
