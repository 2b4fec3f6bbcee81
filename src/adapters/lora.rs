//! LoRA: `y = x W₀ᵀ + b + s · dropout(x) Aᵀ Bᵀ`.
//!
//! `A [r, k]` starts at U(−1/√k, 1/√k), `B [n, r]` at zero, so that training starts from the trunk itself.
//! `s = α/r`, or `α/√r` with rsLoRA (Kalajdzievski, "A rank stabilization scaling factor for fine-tuning with LoRA", 2023).
//! LoRA+ lets B learn at a multiple of A's rate (Hayou et al., "LoRA+: Efficient Low Rank Adaptation of Large Models", 2024): 16 is its
//! authors' advice.
//! Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021; defaults and names as in PEFT.

use super::attach::{AttachReport, Attached, for_targets};
use super::merge::add_low_rank;
use super::{AdaptedLinear, Frozen, LinearAdapter, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::format::peft::{Matcher, Modules, PeftConfig};
use crate::ops::frozen_linear::MAX_RANK;
use crate::ops::{LowRank, Mid};
use crate::rng::Stream;
use crate::tensor::{FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder};

/// A LoRA on one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    pub a: ParamId,
    pub b: ParamId,
    pub scale: f64,
    pub dropout: f64,
    pub site: u32,
}

impl LinearAdapter for Lora {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let (a, b) = (tape.param(self.a)?, tape.param(self.b)?);
        let (scale, dropout, site) = (self.scale, self.dropout, self.site);
        frozen.with(tape, x, Some(LowRank { a: &a, b: &b, mid: Mid::Identity, scale, dropout, site }))
    }

    fn update(&self, params: &ParamSet, weight: &FrozenWeight) -> Result<Vec<f64>> {
        let shape @ [n, k] = [weight.n(), weight.k()];
        let mut update = vec![0.0; n * k];
        add_low_rank(&mut update, shape, params, [self.a, self.b], None, self.scale)?;
        Ok(update)
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
    pub targets: Modules,
    /// Rank of the modules that a pattern matches, in place of `rank`; the first that matches counts.
    pub rank_pattern: Vec<(String, usize)>,
    pub alpha_pattern: Vec<(String, f64)>,
    /// LoRA+: B learns at so many times the rate of A.
    pub plus_ratio: f64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        LoraConfig {
            rank: 8,
            alpha: 8.0,
            rslora: false,
            dropout: 0.0,
            targets: Modules::Names(vec!["q_proj".into(), "v_proj".into()]),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            plus_ratio: 1.0,
        }
    }
}

/// Targets from text: `q_proj,v_proj`, `all-linear`, or `regex:…` for an expression that must match a whole module path.
pub fn parse_targets(text: &str) -> Result<Modules> {
    if text == "all-linear" {
        return Ok(Modules::AllLinear);
    }
    if let Some(pattern) = text.strip_prefix("regex:") {
        return Ok(Modules::Pattern(pattern.to_string()));
    }
    let names: Vec<String> = text.split(',').map(|t| t.trim().to_string()).filter(|t| !t.is_empty()).collect();
    if names.is_empty() {
        return Err(Error::value("targets", "names", "q_proj,v_proj or all-linear or regex:…", format!("{text:?}")));
    }
    Ok(Modules::Names(names))
}

impl LoraConfig {
    /// The same as adapter files say it. `modules_to_save` are the layers that learn as a whole beside it.
    pub fn to_peft(&self, modules_to_save: &[&str]) -> PeftConfig {
        PeftConfig {
            r: self.rank,
            lora_alpha: self.alpha,
            lora_dropout: self.dropout,
            use_rslora: self.rslora,
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            modules_to_save: modules_to_save.iter().map(|m| m.to_string()).collect(),
            ..PeftConfig::new(self.targets.clone())
        }
    }

    /// Puts a LoRA on every linear that the targets pick and declares its parameters: `<module>.lora_A`, `<module>.lora_B`. Layers that
    /// learn as a whole already are left alone.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when nothing matches; [`Error::Value`] for a rank outside 1..=256, an alpha that is not finite, a dropout
    /// outside [0, 1), a ratio that is negative or not finite.
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        attach(&self.to_peft(&[]), self.plus_ratio, trunk, params)
    }
}

pub(super) fn attach(
    config: &PeftConfig,
    plus_ratio: f64,
    trunk: &mut dyn Trunk,
    params: &mut ParamSetBuilder,
) -> Result<AttachReport> {
    validate(config)?;
    for_targets(trunk, config, |linear, matcher| {
        let lora = declare(linear, matcher, params)?;
        params.rate(lora.b, plus_ratio)?;
        linear.adapt(lora);
        let module = linear.name().to_string();
        let rank = matcher.rank(&module);
        Ok(Attached { module, rank, params: rank * (linear.weight().n() + linear.weight().k()) })
    })
}

/// Declares the factors of a LoRA for `linear`.
pub(super) fn declare(linear: &AdaptedLinear, matcher: &Matcher, params: &mut ParamSetBuilder) -> Result<Lora> {
    let module = linear.name();
    let rank = matcher.rank(module);
    let (n, k) = (linear.weight().n(), linear.weight().k());
    let a = params.add(format!("{module}.lora_A"), &[rank, k], Init::KaimingUniform { fan_in: k })?;
    let b = params.add(format!("{module}.lora_B"), &[n, rank], Init::Zeros)?;
    params.first_gradient_may_vanish(a);
    let site = Stream::named(0, 0, module).site;
    Ok(Lora { a, b, scale: matcher.scale(module), dropout: matcher.dropout(), site })
}

pub(super) fn validate(config: &PeftConfig) -> Result<()> {
    const OP: &str = "lora";
    for rank in config.rank_pattern.iter().map(|(_, r)| *r).chain([config.r]) {
        if rank == 0 || rank > MAX_RANK {
            return Err(Error::value(OP, "rank", format!("1 to {MAX_RANK}"), rank));
        }
    }
    for alpha in config.alpha_pattern.iter().map(|(_, a)| *a).chain([config.lora_alpha]) {
        if !alpha.is_finite() {
            return Err(Error::value(OP, "alpha", "a finite number", alpha));
        }
    }
    if !(0.0..1.0).contains(&config.lora_dropout) {
        return Err(Error::value(OP, "dropout", "a probability in [0, 1)", config.lora_dropout));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_parse_from_text() {
        assert_eq!(parse_targets("q, v").unwrap(), Modules::Names(vec!["q".into(), "v".into()]));
        assert_eq!(parse_targets("all-linear").unwrap(), Modules::AllLinear);
        assert_eq!(parse_targets("regex:.*fc[12]").unwrap(), Modules::Pattern(".*fc[12]".into()));
        assert!(parse_targets(" , ").is_err());
    }
}
