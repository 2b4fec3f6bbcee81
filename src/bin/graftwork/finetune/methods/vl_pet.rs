//! VL-PET: gated bottlenecks after each sub-layer of the trunk. In an encoder-decoder, as published, also a bottleneck beside the value
//! projection of each cross-attention, and the encoder's norms learn.

use graftwork::adapters::vl_pet::{Start, Variant};
use graftwork::adapters::{HeadLayout, Sides, Trunk, VlPetConfig, VlPetDecoder};
use graftwork::format::peft::Modules;
use graftwork::tensor::ParamSetBuilder;
use graftwork::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, open, to_value};
use crate::finetune::Args;
use crate::finetune::options::{ABOVE_0, FROM_0, Read, WIDTH, names, number, refused, size};

pub const ENTRY: Entry = Entry {
    name: "vl-pet",
    about: "Bottlenecks after each sub-layer, behind a gate of chosen granularity",
    reads: &[
        Read::always(&["variant", "bottleneck", "heads", "head_layout", "gate_scale", "dropout", "start", "start_std"]),
        Read::when(&["gate_rank"], "with --variant large or auto", |args| tries(args, Variant::Large)),
        Read::when(&["trial_steps"], "with --variant auto", |args| args.methods.vl_pet.variant == OPEN),
        Read::when(DECODER, "with --task caption", |args| args.task == "caption"),
        Read::when(&["real_tokens"], "with --task caption and --variant small or auto", |args| {
            args.task == "caption" && tries(args, Variant::Small)
        }),
    ],
    settings: |o, _| VlPet::from(&o.vl_pet, o.lora.dropout),
    open: open::<VlPet>,
};

/// What only an encoder-decoder has.
const DECODER: &[&str] = &["value_rank", "decoder_places", "frozen_norms"];

fn tries(args: &Args, variant: Variant) -> bool {
    let named = &args.methods.vl_pet.variant;
    named == OPEN || named.split(',').any(|name| name.trim() == variant.name())
}

#[derive(clap::Args)]
pub struct VlPetOptions {
    /// What the gate tells apart: values (large), tokens (middle-x), features (middle-y) or samples (small). Several, separated by commas,
    /// are trained one after another and compared; auto tries all, each at the largest ranks up to those given that --budget allows
    #[arg(long, visible_alias = "granularity", default_value = "large", value_parser = variants)]
    pub variant: String,
    /// Rank of each bottleneck
    #[arg(long, default_value_t = 8, value_parser = size(1..=WIDTH))]
    pub bottleneck: usize,
    /// Heads of each bottleneck
    #[arg(long, default_value_t = 4, value_parser = size(1..=WIDTH))]
    pub heads: usize,
    /// Which side has heads: down, up, down-up or pair
    #[arg(long, default_value = "down", value_parser = ["down", "up", "down-up", "pair"])]
    pub head_layout: String,
    /// Rank of the gate of large [default: as --bottleneck]
    #[arg(long, value_parser = size(1..=WIDTH))]
    pub gate_rank: Option<usize>,
    /// s, times everything behind the gate; 2 starts bart's gates at the trunk itself
    #[arg(long, default_value_t = 1.0, value_parser = number(ABOVE_0))]
    pub gate_scale: f64,
    /// Starting values as published for bart (all small) or t5 (updates at zero)
    #[arg(long, default_value = "bart", value_parser = ["bart", "t5"])]
    pub start: String,
    /// Spread of the starting values; 0.02 is published, for trunks of 768 features
    #[arg(long, default_value_t = 0.02, value_parser = number(FROM_0))]
    pub start_std: f64,
    /// Rank of the bottlenecks beside the values of cross-attention [default: as --bottleneck]
    #[arg(long, value_parser = size(1..=WIDTH))]
    pub value_rank: Option<usize>,
    /// Gated bottlenecks after the decoder's sub-layers too; not with small, whose gate would see tokens that are still to come
    #[arg(long)]
    pub decoder_places: bool,
    /// The gate of small looks at real tokens alone; published: at padding too
    #[arg(long)]
    pub real_tokens: bool,
    /// Keep the encoder's norms frozen
    #[arg(long)]
    pub frozen_norms: bool,
}

#[derive(Clone, Serialize, Deserialize)]
struct VlPet {
    variant: String,
    bottleneck: usize,
    heads: usize,
    head_layout: String,
    gate_rank: usize,
    gate_scale: f64,
    #[serde(default)]
    dropout: f64,
    start: String,
    start_std: f64,
    value_rank: usize,
    decoder_places: bool,
    real_tokens: bool,
    frozen_norms: bool,
}

const ALL: &[Variant] = &Variant::ALL;
const FINEST: &str = "large";
/// In place of a variant: whichever does best.
const OPEN: &str = "auto";
/// Steps by which a budget makes ranks smaller.
const PARTS: usize = 8;

/// The value projections of cross-attention in BART and in T5.
const CROSS_VALUES: [&str; 2] = ["encoder_attn.v_proj", "EncDecAttention.v"];

/// Variants, or the word that leaves them open.
fn variants(text: &str) -> std::result::Result<String, String> {
    let all = Variant::ALL.map(Variant::name);
    let expected = || format!("expected {}, several separated by commas, each once; or {OPEN}", all.join(", "));
    let known = |name: &str| text == OPEN || all.contains(&name.trim());
    names(text).ok().filter(|text| text.split(',').all(known)).ok_or_else(expected)
}

impl VlPet {
    fn from(options: &VlPetOptions, dropout: f64) -> Result<Value> {
        let vl_pet = VlPet {
            variant: options.variant.clone(),
            bottleneck: options.bottleneck,
            heads: options.heads,
            head_layout: options.head_layout.clone(),
            gate_rank: options.gate_rank.unwrap_or(options.bottleneck),
            gate_scale: options.gate_scale,
            dropout,
            start: options.start.clone(),
            start_std: options.start_std,
            value_rank: options.value_rank.unwrap_or(options.bottleneck),
            decoder_places: options.decoder_places,
            real_tokens: options.real_tokens,
            frozen_norms: options.frozen_norms,
        };
        for variant in vl_pet.variants() {
            // Whatever is chosen, the rest has to fit it.
            let open = variant == OPEN && variant == vl_pet.variant;
            vl_pet.with(if open { FINEST } else { variant }).config()?;
        }
        to_value(&vl_pet)
    }

    fn variants(&self) -> impl Iterator<Item = &str> {
        self.variant.split(',').map(str::trim)
    }

    /// The same with every rank times `part / PARTS`, and as many heads, of those that divide the heads that were asked for, as divide what is left.
    fn shrunk(&self, part: usize) -> VlPet {
        let rank = |rank: usize| (rank * part).div_ceil(PARTS).max(1);
        let bottleneck = rank(self.bottleneck);
        let fits = |heads: &usize| bottleneck.is_multiple_of(*heads) && self.heads.is_multiple_of(*heads);
        // Asked for, they are judged as they are; upwards they do not divide the bottleneck.
        let kept = part == PARTS || self.head_layout == "up";
        let heads = if kept { self.heads } else { (1..=self.heads).rev().find(fits).unwrap_or(1) };
        let (gate_rank, value_rank) = (rank(self.gate_rank), rank(self.value_rank));
        VlPet { bottleneck, heads, gate_rank, value_rank, ..self.clone() }
    }

    /// From the finest on; small, the last, has no place in a decoder.
    fn all(&self) -> &'static [Variant] {
        &ALL[..ALL.len() - usize::from(self.decoder_places)]
    }

    fn with(&self, variant: &str) -> VlPet {
        VlPet { variant: variant.into(), ..self.clone() }
    }

    fn config(&self) -> Result<VlPetConfig> {
        let start = match self.start.as_str() {
            "bart" => Start::BART,
            "t5" => Start::T5,
            got => return Err(refused("--start", "bart or t5", got)),
        };
        let sides = if self.decoder_places { Sides::Both } else { Sides::Encoder };
        let variant = self.variant.parse::<Variant>()?;
        if !self.all().contains(&variant) {
            return Err(refused("--variant", "large, middle-x or middle-y with --decoder-places", &self.variant));
        }
        Ok(VlPetConfig {
            rank: self.bottleneck,
            heads: self.heads,
            layout: self.head_layout.parse::<HeadLayout>()?,
            gate_rank: self.gate_rank,
            scale: self.gate_scale,
            dropout: self.dropout,
            start: Start { std: self.start_std, ..start },
            real_tokens: self.real_tokens,
            sides,
            ..VlPetConfig::bart(variant)
        })
    }
}

impl Method for VlPet {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        let config = self.config()?;
        let mut summary = config.attach(trunk, &[], params)?.to_string();
        let values = Modules::Names(CROSS_VALUES.map(String::from).to_vec());
        match VlPetDecoder::attach(trunk, &values, self.value_rank, config.start, params) {
            Ok(report) => summary += &format!("; beside values of {} cross-attentions", report.attached.len()),
            // A trunk without cross-attention.
            Err(Error::NoMatch { .. }) => {}
            Err(other) => return Err(other),
        }
        let norms = if self.frozen_norms { Vec::new() } else { trunk.norms()? };
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

    fn is_random(&self) -> bool {
        self.dropout > 0.0
    }

    fn each(&self) -> Result<Vec<Value>> {
        let several = self.variants().nth(1).is_some();
        self.variants().filter(|_| several).map(|variant| to_value(&self.with(variant))).collect()
    }

    fn candidates(&self) -> Result<Vec<Vec<Value>>> {
        let open = if self.variant == OPEN { self.all() } else { &[] };
        let ever_smaller = |variant: &Variant| {
            let whole = self.with(variant.name());
            (1..=PARTS).rev().map(|part| to_value(&whole.shrunk(part))).collect()
        };
        open.iter().map(ever_smaller).collect()
    }
}
