//! LoRA: `y = x W₀ᵀ + b + s · dropout(x) Aᵀ Bᵀ`.
//!
//! `A [r, k]` starts at U(−1/√k, 1/√k), `B [n, r]` at zero, so that training starts from the trunk itself.
//! `s = α/r`, or `α/√r` with rsLoRA (Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA", 2023).
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; defaults and names as in PEFT.

use super::attach::{AttachReport, Attached, Targets, for_targets, path_matches};
use super::{Slot, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::ops::frozen_linear::MAX_RANK;
use crate::ops::{LowRank, frozen_linear};
use crate::rng::Stream;
use crate::tensor::{FrozenWeight, Init, ParamId, ParamSetBuilder};

/// A LoRA on one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    pub a: ParamId,
    pub b: ParamId,
    pub scale: f64,
    pub dropout: f64,
    pub site: u32,
}

impl Lora {
    pub fn forward(&self, tape: &mut Tape, x: &Var, weight: &FrozenWeight, bias: Option<&Var>) -> Result<Var> {
        let (a, b) = (tape.param(self.a)?, tape.param(self.b)?);
        let update = LowRank { a: &a, b: &b, scale: self.scale, dropout: self.dropout, site: self.site };
        frozen_linear(tape, x, weight, bias, Some(update))
    }
}

/// Where LoRAs go and what they look like.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f64,
    /// Scale by `α/√r` instead of `α/r`.
    pub rslora: bool,
    pub dropout: f64,
    pub targets: Targets,
    /// Rank of modules whose path ends in the name (or matches it as a regular expression), in place of `rank`.
    pub rank_pattern: Vec<(String, usize)>,
    pub alpha_pattern: Vec<(String, f64)>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            rank: 8,
            alpha: 8.0,
            rslora: false,
            dropout: 0.0,
            targets: Targets::Names(vec!["q_proj".into(), "v_proj".into()]),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
        }
    }
}

impl LoraConfig {
    /// Puts a LoRA on every linear that the targets pick and declares its parameters: `<module>.lora_A`, `<module>.lora_B`.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when nothing matches; [`Error::Value`] for a rank outside 1..=256, an alpha that is not finite, a dropout
    /// outside [0, 1).
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        self.validate()?;
        for_targets(trunk, &self.targets, |linear| {
            let module = linear.name().to_string();
            let rank = pick(&self.rank_pattern, &module).unwrap_or(self.rank);
            let alpha = pick(&self.alpha_pattern, &module).unwrap_or(self.alpha);
            let (n, k) = (linear.weight().n(), linear.weight().k());
            let a = params.add(format!("{module}.lora_A"), &[rank, k], Init::KaimingUniform { fan_in: k })?;
            let b = params.add(format!("{module}.lora_B"), &[n, rank], Init::Zeros)?;
            params.first_gradient_may_vanish(a);
            let site = Stream::named(0, 0, &module).site;
            linear.set_slot(Slot::Lora(Lora { a, b, scale: self.scale(rank, alpha), dropout: self.dropout, site }));
            Ok(Attached { module, rank, params: rank * (n + k) })
        })
    }

    fn scale(&self, rank: usize, alpha: f64) -> f64 {
        if self.rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }

    fn validate(&self) -> Result<()> {
        const OP: &str = "lora";
        for rank in self.rank_pattern.iter().map(|(_, r)| *r).chain([self.rank]) {
            if rank == 0 || rank > MAX_RANK {
                return Err(Error::value(OP, "rank", format!("1 to {MAX_RANK}"), rank));
            }
        }
        for alpha in self.alpha_pattern.iter().map(|(_, a)| *a).chain([self.alpha]) {
            if !alpha.is_finite() {
                return Err(Error::value(OP, "alpha", "a finite number", alpha));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::value(OP, "dropout", "a probability in [0, 1)", self.dropout));
        }
        Ok(())
    }
}

/// The first pattern that fits: PEFT tries `(^|.*\.)name$`, the name being a regular expression.
fn pick<T: Copy>(patterns: &[(String, T)], module: &str) -> Option<T> {
    let fits = |name: &str| {
        path_matches(module, name)
            || regex_lite::Regex::new(&format!(r"^(?:.*\.)?(?:{name})$")).is_ok_and(|r| r.is_match(module))
    };
    patterns.iter().find(|(name, _)| fits(name)).map(|(_, value)| *value)
}
