//! VL-PET: what an adapter may change is scaled by a gate of chosen granularity.
//!
//! ```text
//! encoder, after attention and after the feed-forward:  Y = s · (H + Up(φ(Down(H)))) ⊙ G(R, H)
//! decoder, on the values of cross-attention:            V = W_v X + Up(φ(Down(X)))
//! ```
//!
//! R is the sub-layer's input, H its output; Y takes H's place before dropout, residual and norm. Each place has a bottleneck and a gate of
//! its own; all tasks share them. The four gates are those of [`granular_scale`](mod@crate::ops::granular_scale):
//!
//! | variant | made of | numbers beside the bottleneck |
//! |---|---|---|
//! | [`Variant::Large`] | `L = Up_g(φ(Down_g(R)))` | `2·k·r_g + r_g + k` |
//! | [`Variant::MiddleX`] | w, c | `k + 1` |
//! | [`Variant::MiddleY`] | z | `k` |
//! | [`Variant::Small`] | w, c | `2k + 1` |
//!
//! Two ways to start, those of the published scripts. [`Start::BART`]: every weight and z from N(0, 0.02), biases 0, so that G ≈ ½ and the
//! wrapped layer is not the trunk's own at first. [`Start::T5`]: the up-projections, w and z at 0. The spread 0.02 is that of trunks 768
//! features wide; narrow ones start from a wider one.
//!
//! Source: Hu et al., "VL-PET: Vision-and-Language Parameter-Efficient Tuning via Granularity Control", ICCV 2023, and its code.

mod budget;
#[cfg(test)]
mod tests;

pub use budget::{Shape, finest_within};

use std::str::FromStr;

use super::attach::{AttachReport, Attached, Sides, for_places, for_targets};
use super::{Bottleneck, BottleneckConfig, Frozen, HeadLayout, Insert, LinearAdapter, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::format::peft::{Modules, PeftConfig};
use crate::ops::{Gate, GateInput, GranularScale, TokenWeights};
use crate::rng::Stream;
use crate::tensor::{Init, ParamId, ParamSetBuilder};

const OP: &str = "vl_pet";

/// How finely the gate tells values apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Every value.
    Large,
    /// Rows: tokens.
    MiddleX,
    /// Columns: features.
    MiddleY,
    /// Samples.
    Small,
}

impl Variant {
    /// From the finest on.
    pub const ALL: [Variant; 4] = [Variant::Large, Variant::MiddleX, Variant::MiddleY, Variant::Small];

    pub const fn name(self) -> &'static str {
        match self {
            Variant::Large => "large",
            Variant::MiddleX => "middle-x",
            Variant::MiddleY => "middle-y",
            Variant::Small => "small",
        }
    }

    /// Trainable numbers of one gate.
    const fn numel(self, width: usize, gate_rank: usize) -> usize {
        match self {
            Variant::Large => 2 * width * gate_rank + gate_rank + width,
            Variant::MiddleX => width + 1,
            Variant::MiddleY => width,
            Variant::Small => 2 * width + 1,
        }
    }
}

impl FromStr for Variant {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Variant::ALL.into_iter().find(|v| v.name() == text);
        found.ok_or_else(|| Error::value(OP, "variant", "large, middle-x, middle-y or small", text))
    }
}

/// Starting values: weights from N(0, std).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Start {
    pub std: f64,
    /// Whether the up-projections, w and z start at 0.
    pub zero_up: bool,
}

impl Start {
    pub const BART: Start = Start { std: 0.02, zero_up: false };
    pub const T5: Start = Start { std: 0.02, zero_up: true };

    fn down(self) -> Init {
        Init::Normal { std: self.std }
    }

    fn up(self) -> Init {
        if self.zero_up { Init::Zeros } else { self.down() }
    }
}

/// What stands after a sub-layer of the encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct VlPetConfig {
    pub variant: Variant,
    /// r
    pub rank: usize,
    /// N_h
    pub heads: usize,
    pub layout: HeadLayout,
    /// r_g, of the gate of Large.
    pub gate_rank: usize,
    /// s
    pub scale: f64,
    /// Of Y, before the residual is added: what the published trunk's own dropout does there.
    pub dropout: f64,
    pub start: Start,
    /// What the gates of MiddleX and Small see beside R.
    pub input: GateInput,
    /// Whether MiddleY's z goes through a sigmoid.
    pub sigmoid: bool,
    /// Whether the mean of Small runs over real tokens alone, where the trunk knows of padding.
    pub real_tokens: bool,
    /// Published: the encoder alone. Not both for Small: the mean of its gate would show a decoder tokens that are still to come.
    pub sides: Sides,
}

impl VlPetConfig {
    /// As released for BART: r = r_g = 96, N_h = 4, s = 1.
    pub fn bart(variant: Variant) -> Self {
        let (layout, input) = (HeadLayout::Down, GateInput::Updated);
        VlPetConfig {
            variant,
            rank: 96,
            heads: 4,
            layout,
            gate_rank: 96,
            scale: 1.0,
            dropout: 0.0,
            start: Start::BART,
            input,
            sigmoid: false,
            real_tokens: false,
            sides: Sides::Encoder,
        }
    }

    /// As released for T5: r = r_g = 192, N_h = 4, s = 0.3.
    pub fn t5(variant: Variant) -> Self {
        VlPetConfig { rank: 192, gate_rank: 192, scale: 0.3, start: Start::T5, ..VlPetConfig::bart(variant) }
    }

    fn bottleneck(&self, width: usize) -> BottleneckConfig {
        BottleneckConfig {
            heads: self.heads,
            layout: self.layout,
            down: self.start.down(),
            up: self.start.up(),
            ..BottleneckConfig::new(width, self.rank)
        }
    }

    fn gate_bottleneck(&self, width: usize) -> BottleneckConfig {
        let (down, up) = (self.start.down(), self.start.up());
        BottleneckConfig { down, up, ..BottleneckConfig::new(width, self.gate_rank) }
    }

    /// Trainable numbers after one sub-layer.
    pub fn numel(&self, width: usize) -> usize {
        self.bottleneck(width).numel() + self.variant.numel(width, self.gate_rank)
    }

    /// Puts a module in every place whose path ends in one of `places`, or in all if there are none.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when no place matches; [`Error::Value`] for heads that do not divide, a rank of 0, a scale that is not finite, a
    /// gate of Small in a decoder.
    pub fn attach(
        &self,
        trunk: &mut dyn Trunk,
        places: &[String],
        params: &mut ParamSetBuilder,
    ) -> Result<AttachReport> {
        if self.variant == Variant::Small && self.sides == Sides::Both && !trunk.decoder_inserts()?.is_empty() {
            let expected = "the encoder alone: the gate of small is a mean over all tokens, of which a decoder must not see later ones";
            return Err(Error::value(OP, "sides", expected, "both"));
        }
        for_places(trunk, places, self.sides, |point| {
            let module = point.name().to_string();
            point.insert(VlPetEncoder::declare(&format!("{module}.vl_pet"), point.width(), self, params)?);
            Ok(Attached { module, rank: self.rank, params: self.numel(point.width()) })
        })
    }
}

/// A gate's parameters.
#[derive(Clone, Debug, PartialEq)]
enum GateParams {
    Large(Bottleneck),
    /// w and c.
    MiddleX([ParamId; 2]),
    /// z
    MiddleY(ParamId),
    Small([ParamId; 2]),
}

/// Bottleneck and gate after one sub-layer.
#[derive(Clone, Debug, PartialEq)]
pub struct VlPetEncoder {
    bottleneck: Bottleneck,
    gate: GateParams,
    scale: f64,
    dropout: f64,
    site: u32,
    input: GateInput,
    sigmoid: bool,
    real_tokens: bool,
}

/// What a trunk can have the module do beside the gate, in the same pass.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around<'a> {
    /// `dropout(Y) + R` instead of Y.
    pub add_residual: bool,
    pub dropout: f64,
    pub site: u32,
    /// Which tokens count in the mean of Small; all of them if absent.
    pub tokens: Option<&'a TokenWeights>,
}

impl VlPetEncoder {
    /// Declares `<name>.down`, `<name>.up` and `<name>.gate…` for a sub-layer of `width` features.
    pub fn declare(name: &str, width: usize, config: &VlPetConfig, params: &mut ParamSetBuilder) -> Result<Self> {
        for (argument, value) in [("scale", config.scale), ("start", config.start.std)] {
            if !value.is_finite() {
                return Err(Error::value(OP, argument, "a finite number", value));
            }
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(Error::value(OP, "dropout", "in [0, 1)", config.dropout));
        }
        let bottleneck = Bottleneck::declare(name, &config.bottleneck(width), params)?;
        let gate = format!("{name}.gate");
        let mut row = |len: usize| -> Result<[ParamId; 2]> {
            let weight = params.add(format!("{gate}.weight"), &[len], config.start.up())?;
            Ok([weight, params.add(format!("{gate}.bias"), &[1], Init::Zeros)?])
        };
        let gate = match config.variant {
            Variant::MiddleX => GateParams::MiddleX(row(width)?),
            Variant::Small => GateParams::Small(row(2 * width)?),
            Variant::MiddleY => GateParams::MiddleY(params.add(gate, &[width], config.start.up())?),
            Variant::Large => GateParams::Large(Bottleneck::declare(&gate, &config.gate_bottleneck(width), params)?),
        };
        let VlPetConfig { scale, dropout, input, sigmoid, real_tokens, .. } = *config;
        let site = Stream::named(0, 0, name).site;
        Ok(VlPetEncoder { bottleneck, gate, scale, dropout, site, input, sigmoid, real_tokens })
    }

    /// `s · (H + Up(φ(Down(H)))) ⊙ G`, `[.., t, k]`, and what `around` asks for.
    pub fn forward_with(&self, tape: &mut Tape, residual: &Var, hidden: &Var, around: Around<'_>) -> Result<Var> {
        let with = |gate| GranularScale {
            residual: Some(residual),
            add_residual: around.add_residual,
            scale: self.scale,
            dropout: around.dropout,
            site: around.site,
            ..GranularScale::new(gate)
        };
        let input = self.input;
        match &self.gate {
            GateParams::Large(gate) => {
                let logits = gate.forward(tape, residual)?;
                self.bottleneck.add(tape, hidden, hidden, with(Gate::Large { logits: &logits }))
            }
            GateParams::MiddleX([weight, bias]) => {
                let (weight, bias) = (&tape.param(*weight)?, &tape.param(*bias)?);
                self.bottleneck.add(tape, hidden, hidden, with(Gate::MiddleX { weight, bias, input }))
            }
            GateParams::MiddleY(offset) => {
                let gate = Gate::MiddleY { offset: &tape.param(*offset)?, sigmoid: self.sigmoid };
                self.bottleneck.add(tape, hidden, hidden, with(gate))
            }
            GateParams::Small([weight, bias]) => {
                let (weight, bias) = (&tape.param(*weight)?, &tape.param(*bias)?);
                let gate = Gate::Small { weight, bias, input, tokens: around.tokens };
                self.bottleneck.add(tape, hidden, hidden, with(gate))
            }
        }
    }
}

impl VlPetEncoder {
    /// What surrounds it in a trunk that adds the residual itself.
    fn alone<'a>(&self, tokens: Option<&'a TokenWeights>) -> Around<'a> {
        Around { add_residual: false, dropout: self.dropout, site: self.site, tokens }
    }
}

impl Insert for VlPetEncoder {
    fn forward(&self, tape: &mut Tape, residual: &Var, output: &Var) -> Result<Var> {
        self.forward_with(tape, residual, output, self.alone(None))
    }

    fn forward_padded(&self, tape: &mut Tape, residual: &Var, output: &Var, real: &TokenWeights) -> Result<Var> {
        self.forward_with(tape, residual, output, self.alone(self.real_tokens.then_some(real)))
    }
}

/// A bottleneck parallel to the value projection of cross-attention. It reads what the projection reads, so that a decoder that keeps
/// its values pays for it once for each sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct VlPetDecoder {
    bottleneck: Bottleneck,
}

impl VlPetDecoder {
    /// Declares `<name>.down` and `<name>.up` for a projection of `width` features to as many.
    pub fn declare(name: &str, width: usize, rank: usize, start: Start, params: &mut ParamSetBuilder) -> Result<Self> {
        let bottleneck = Bottleneck::declare(name, &decoder_bottleneck(width, rank, start), params)?;
        Ok(VlPetDecoder { bottleneck })
    }

    /// Trainable numbers of one.
    pub fn numel(width: usize, rank: usize) -> usize {
        BottleneckConfig::new(width, rank).numel()
    }

    /// Puts one on every linear that `targets` names.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when nothing matches; [`Error::Shape`] for a projection that is not square.
    pub fn attach(
        trunk: &mut dyn Trunk,
        targets: &Modules,
        rank: usize,
        start: Start,
        params: &mut ParamSetBuilder,
    ) -> Result<AttachReport> {
        for_targets(trunk, &PeftConfig::new(targets.clone()), |linear, _| {
            let (module, n, k) = (linear.name().to_string(), linear.weight().n(), linear.weight().k());
            if n != k {
                return Err(Error::shape(OP, "value projection", format!("[{k}, {k}]"), &[n, k]));
            }
            linear.adapt(VlPetDecoder::declare(&format!("{module}.vl_pet"), k, rank, start, params)?);
            Ok(Attached { module, rank, params: VlPetDecoder::numel(k, rank) })
        })
    }
}

fn decoder_bottleneck(width: usize, rank: usize, start: Start) -> BottleneckConfig {
    BottleneckConfig { down: start.down(), up: start.up(), ..BottleneckConfig::new(width, rank) }
}

impl LinearAdapter for VlPetDecoder {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let values = frozen.product(tape, x)?;
        let values = self.bottleneck.add(tape, x, &values, GranularScale::new(Gate::Open))?;
        frozen.after.apply(tape, values)
    }
}
