//! The bottleneck that adapters are made of: `Up(φ(Down(x)))` with biases, in one piece or in heads.
//!
//! | layout | Down | Up | runs as |
//! |---|---|---|---|
//! | [`HeadLayout::Down`] | h times k → r/h, side by side | r → k | one dense bottleneck |
//! | [`HeadLayout::Up`] | k → r | h times r → k/h, side by side | one dense bottleneck |
//! | [`HeadLayout::DownUp`] | both | both | one dense bottleneck |
//! | [`HeadLayout::Pair`] | h times k → r/h | head j of it, r/h → k/h | dense down, block-diagonal up |
//!
//! Heads that all read the whole input, or all the whole bottleneck, are rows of one matrix: their weights stacked give the same
//! numbers. Pairs alone have structure, and there no zero is stored or multiplied.
//!
//! Source: Hu et al., "VL-PET", ICCV 2023, and its published code.

use std::str::FromStr;

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::ops::{Activation, GranularScale, Update, activation, granular_scale, linear, scale};
use crate::tensor::{Init, ParamId, ParamSetBuilder};

const OP: &str = "bottleneck";

/// Which side of the bottleneck has heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadLayout {
    #[default]
    Down,
    Up,
    DownUp,
    Pair,
}

impl FromStr for HeadLayout {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "down" => Ok(HeadLayout::Down),
            "up" => Ok(HeadLayout::Up),
            "down-up" => Ok(HeadLayout::DownUp),
            "pair" => Ok(HeadLayout::Pair),
            got => Err(Error::value(OP, "head layout", "down, up, down-up or pair", got)),
        }
    }
}

/// Shape and starting values of a bottleneck.
#[derive(Clone, Debug, PartialEq)]
pub struct BottleneckConfig {
    /// k
    pub width: usize,
    /// r
    pub rank: usize,
    /// h
    pub heads: usize,
    pub layout: HeadLayout,
    /// φ
    pub activation: Activation,
    pub down: Init,
    pub up: Init,
}

impl BottleneckConfig {
    /// One head, `gelu_new`, N(0, 0.02) below and zero above: training starts from the trunk itself.
    pub fn new(width: usize, rank: usize) -> Self {
        let (heads, layout) = (1, HeadLayout::Down);
        let (activation, down, up) = (Activation::GeluTanh, Init::Normal { std: 0.02 }, Init::Zeros);
        BottleneckConfig { width, rank, heads, layout, activation, down, up }
    }

    /// Heads of the product that the up-projection runs as.
    fn up_heads(&self) -> usize {
        if self.layout == HeadLayout::Pair { self.heads } else { 1 }
    }

    /// # Errors
    /// [`Error::Value`] for a rank of 0 and for heads that do not divide what the layout cuts.
    pub fn validate(&self) -> Result<()> {
        if self.rank == 0 || self.width == 0 {
            let got = format!("{} of width {}", self.rank, self.width);
            return Err(Error::value(OP, "rank", "at least 1, of a width of at least 1", got));
        }
        let cuts = |n: usize| self.heads > 0 && n.is_multiple_of(self.heads);
        let (rank, width) = (cuts(self.rank), cuts(self.width));
        let (fits, expected) = match self.layout {
            HeadLayout::Down => (rank, format!("a divisor of the bottleneck {}", self.rank)),
            HeadLayout::Up => (width, format!("a divisor of the width {}", self.width)),
            HeadLayout::DownUp | HeadLayout::Pair => {
                (rank && width, format!("a divisor of the bottleneck {} and of the width {}", self.rank, self.width))
            }
        };
        if fits { Ok(()) } else { Err(Error::value(OP, "heads", expected, self.heads)) }
    }

    /// Trainable numbers.
    pub fn numel(&self) -> usize {
        self.rank * (self.width + 1) + self.width * (self.rank / self.up_heads() + 1)
    }
}

/// A bottleneck's parameters. Heads are stacked: down `[r, k]`, up `[k, r]`, or `[k, r/h]` in pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Bottleneck {
    down: ParamId,
    down_bias: ParamId,
    up: ParamId,
    up_bias: ParamId,
    heads: usize,
    activation: Activation,
}

impl Bottleneck {
    /// Declares `<name>.down.{weight,bias}` and `<name>.up.{weight,bias}`.
    pub fn declare(name: &str, config: &BottleneckConfig, params: &mut ParamSetBuilder) -> Result<Self> {
        config.validate()?;
        let BottleneckConfig { width: k, rank: r, .. } = *config;
        let heads = config.up_heads();
        let down = params.add(format!("{name}.down.weight"), &[r, k], config.down.clone())?;
        let down_bias = params.add(format!("{name}.down.bias"), &[r], Init::Zeros)?;
        let up = params.add(format!("{name}.up.weight"), &[k, r / heads], config.up.clone())?;
        let up_bias = params.add(format!("{name}.up.bias"), &[k], Init::Zeros)?;
        if config.up == Init::Zeros {
            params.first_gradient_may_vanish(down);
            params.first_gradient_may_vanish(down_bias);
        }
        Ok(Bottleneck { down, down_bias, up, up_bias, heads, activation: config.activation })
    }

    /// `φ(Down(x))`, `[.., r]`.
    pub fn narrow(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let (weight, bias) = (tape.param(self.down)?, tape.param(self.down_bias)?);
        let low = linear(tape, x, &weight, Some(&bias))?;
        activation(tape, &low, self.activation)
    }

    /// `Up(φ(Down(x)))` by itself, of a bottleneck without pairs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for pairs, whose output exists only within what it is added to.
    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        if self.heads > 1 {
            return Err(Error::Unsupported {
                op: OP,
                what: "the output of a bottleneck of pairs by itself".into(),
                hint: "use Bottleneck::add".into(),
            });
        }
        let narrow = self.narrow(tape, x)?;
        let (weight, bias) = (tape.param(self.up)?, tape.param(self.up_bias)?);
        linear(tape, &narrow, &weight, Some(&bias))
    }

    /// `hidden + Up(φ(Down(x)))` and what else `around` asks for, without writing the update itself. Its `update` and `bias` are taken
    /// by the bottleneck's own.
    pub fn add(&self, tape: &mut Tape, x: &Var, hidden: &Var, around: GranularScale<'_>) -> Result<Var> {
        let narrow = self.narrow(tape, x)?;
        self.add_narrow(tape, &narrow, hidden, around)
    }

    /// As [`Bottleneck::add`] with the update times `s`, its bias excepted.
    pub fn add_scaled(&self, tape: &mut Tape, x: &Var, s: f64, hidden: &Var, around: GranularScale<'_>) -> Result<Var> {
        let narrow = self.narrow(tape, x)?;
        let narrow = if s == 1.0 { narrow } else { scale(tape, &narrow, s)? };
        self.add_narrow(tape, &narrow, hidden, around)
    }

    fn add_narrow(&self, tape: &mut Tape, narrow: &Var, hidden: &Var, around: GranularScale<'_>) -> Result<Var> {
        let (weight, bias) = (tape.param(self.up)?, tape.param(self.up_bias)?);
        let update = Some(Update::Product { x: narrow, weight: &weight, heads: self.heads });
        granular_scale(tape, hidden, &GranularScale { update, bias: Some(&bias), ..around })
    }
}
