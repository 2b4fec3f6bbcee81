//! Dual-LoRA: `y = W₀ x + b + s · B (LayerNorm(S dropout(x)) ⊙ ReLU(T x))`.
//!
//! S is a space of skills, T says for each token which of its ranks are open: r experts of rank 1, each with a gate of its own. What is
//! added depends on the token in another way than a matrix does, so it cannot be merged into the weight.
//!
//! S and T `[r, k]` start at U(−1/√k, 1/√k), stacked as one parameter, so that x is read once for both; B `[n, r]` at zero, γ at one
//! and β at zero. While B is zero, B alone learns. `s = α/r`; the authors' is 2.
//!
//! Source: Jiao et al., "From Holistic to Localized: Local Enhanced Adapters for Efficient Visual Instruction Fine-Tuning", 2024. The
//! printed factor r/α must be its inverse to agree with the published code, which this follows.

use super::attach::{AttachReport, Attached, for_targets};
use super::lora::validate;
use super::{Frozen, LinearAdapter, LoraConfig, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::ops::{LowRank, Mid};
use crate::rng::Stream;
use crate::tensor::{FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder};

/// ε of the norm.
const EPS: f64 = 1e-5;

/// A Dual-LoRA on one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct DualLora {
    /// `[2r, k]`, S above T.
    pub stacked: ParamId,
    /// `[r]` each.
    pub gamma: ParamId,
    pub beta: ParamId,
    /// `[n, r]`
    pub b: ParamId,
    pub scale: f64,
    pub dropout: f64,
    pub site: u32,
}

impl LinearAdapter for DualLora {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let (stacked, b) = (tape.param(self.stacked)?, tape.param(self.b)?);
        let (gamma, beta) = (tape.param(self.gamma)?, tape.param(self.beta)?);
        let (scale, dropout, site) = (self.scale, self.dropout, self.site);
        let mid = Mid::Dual { gamma: &gamma, beta: &beta, eps: EPS };
        frozen.with(tape, x, Some(LowRank { a: &stacked, b: &b, mid, scale, dropout, site }))
    }

    fn update(&self, _: &ParamSet, _: &FrozenWeight) -> Result<Vec<f64>> {
        Err(Error::Unsupported {
            op: "merge",
            what: "a Dual-LoRA is gated by its input: for each token it is another matrix".into(),
            hint: "keep the adapter beside the weight".into(),
        })
    }
}

/// Where Dual-LoRAs go.
#[derive(Clone, Debug, PartialEq)]
pub struct DualLoraConfig {
    /// Its dropout acts on what S sees.
    pub lora: LoraConfig,
}

/// The authors' settings.
impl Default for DualLoraConfig {
    fn default() -> Self {
        DualLoraConfig { lora: LoraConfig { rank: 32, alpha: 64.0, dropout: 0.05, ..LoraConfig::default() } }
    }
}

impl DualLoraConfig {
    /// Puts a Dual-LoRA on every target and declares `<module>.dual_lora_ST`, `.dual_lora_B`, `.dual_lora_norm.weight` and `.bias`:
    /// `r · (2k + n) + 2r` numbers.
    ///
    /// # Errors
    /// Those of [`LoraConfig::attach`], and [`Error::Value`] for a rank of 1: the norm over it is 0 whatever x is.
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        let config = self.lora.to_peft(&[]);
        validate(&config)?;
        for_targets(trunk, &config, |linear, matcher| {
            let module = linear.name().to_string();
            let rank = matcher.rank(&module);
            if rank < 2 {
                return Err(Error::value("dual_lora", "rank", "2 or more: a norm over one rank is 0", rank));
            }
            let (n, k) = (linear.weight().n(), linear.weight().k());
            let stacked =
                params.add(format!("{module}.dual_lora_ST"), &[2 * rank, k], Init::KaimingUniform { fan_in: k })?;
            let gamma = params.add(format!("{module}.dual_lora_norm.weight"), &[rank], Init::Ones)?;
            let beta = params.add(format!("{module}.dual_lora_norm.bias"), &[rank], Init::Zeros)?;
            let b = params.add(format!("{module}.dual_lora_B"), &[n, rank], Init::Zeros)?;
            // While B is zero.
            [stacked, gamma, beta].into_iter().for_each(|id| params.first_gradient_may_vanish(id));
            let site = Stream::named(0, 0, &module).site;
            let (scale, dropout) = (matcher.scale(&module), matcher.dropout());
            linear.adapt(DualLora { stacked, gamma, beta, b, scale, dropout, site });
            Ok(Attached { module, rank, params: rank * (2 * k + n) + 2 * rank })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::AdaptedLinear;
    use crate::adapters::fixture::{Single, values};
    use crate::autograd::Grads;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::tensor::Tensor;

    /// S = [[1, 0, 2], [0, 1, −1]], T = [[½, 0, 0], [0, ½, 1]], B = [[1, 2], [3, 4]], s = 2, x = (1, −2, ½):
    /// a = (2, −2.5), t = (½, −½), h = (½ (1 − 10⁻⁶), 0).
    #[test]
    fn golden_values_of_a_token() {
        let mut trunk = Single::zeros(2, 3);
        let lora = LoraConfig { rank: 2, alpha: 4.0, dropout: 0.0, ..LoraConfig::default() };
        let mut builder = ParamSetBuilder::new();
        let report = DualLoraConfig { lora }.attach(&mut trunk, &mut builder).unwrap();
        assert_eq!(report.params(), 2 * (2 * 3 + 2) + 2 * 2);
        let params = builder.build(&Device::cpu(), DType::F64, 0).unwrap();
        let set = |name: &str, v: &[f32]| params.set(params.find(&format!("q_proj.{name}")).unwrap(), v).unwrap();
        let x = Tensor::from_slice(&Device::cpu(), &[1, 3], &[1.0, -2.0, 0.5]).unwrap();
        // As attached, with B zero: the trunk itself.
        assert_eq!(trunk.forward(&params, &x), [0.0, 0.0]);
        set("dual_lora_ST", &[1.0, 0.0, 2.0, 0.0, 1.0, -1.0, 0.5, 0.0, 0.0, 0.0, 0.5, 1.0]);
        set("dual_lora_B", &[1.0, 2.0, 3.0, 4.0]);
        let got = trunk.forward(&params, &x);
        // ρ = 1 / √(2.25² + 10⁻⁵).
        let u = 2.25 / (2.25f64 * 2.25 + 1e-5).sqrt();
        for (got, (exact, printed)) in got.iter().zip([(u, 0.999_999), (3.0 * u, 2.999_997)]) {
            assert!((got - exact).abs() < 1e-14 && (got - printed).abs() < 5e-7, "{got}");
        }
    }

    /// At the start B alone has a gradient; once B has moved, everything has.
    #[test]
    fn b_moves_first() {
        let mut trunk = Single::drawn(4, 5);
        let mut builder = ParamSetBuilder::new();
        let lora = LoraConfig { rank: 3, ..LoraConfig::default() };
        DualLoraConfig { lora }.attach(&mut trunk, &mut builder).unwrap();
        let params = builder.build(&Device::cpu(), DType::F32, 1).unwrap();
        let x = Tensor::from_slice(&Device::cpu(), &[6, 5], &values("x", 30)).unwrap();
        let audit = || {
            let mut tape = Tape::training(&params, 0, 0);
            let y = trunk.linear.forward(&mut tape, &Var::constant(x.clone())).unwrap();
            let dy = Tensor::from_slice(&Device::cpu(), &[6, 4], &values("dy", 24)).unwrap();
            let mut grads = Grads::zeros(&params).unwrap();
            tape.backward_with(&y, dy, &mut grads).unwrap();
            grads.audit().unwrap()
        };
        let report = audit();
        assert!(report.silent.is_empty() && report.zero_by_design.len() == 3, "{report}");
        params.set(params.find("q_proj.dual_lora_B").unwrap(), &values("b", 12)).unwrap();
        assert_eq!(audit().zero_by_design.len(), 0);
    }

    #[test]
    fn a_rank_of_one_and_a_merge_are_refused() {
        let mut trunk = Single::zeros(4, 5);
        let lora = LoraConfig { rank: 1, ..LoraConfig::default() };
        let mut builder = ParamSetBuilder::new();
        let refused = DualLoraConfig { lora }.attach(&mut trunk, &mut builder);
        assert!(matches!(refused, Err(Error::Value { op: "dual_lora", argument: "rank", .. })));
        DualLoraConfig::default().attach(&mut trunk, &mut builder).unwrap();
        let params = builder.build(&Device::cpu(), DType::F32, 1).unwrap();
        let before = trunk.linear.weight().to_f32_vec().unwrap();
        let refused = AdaptedLinear::merge(&mut trunk.linear, &params);
        assert!(matches!(&refused, Err(Error::Unsupported { what, .. }) if what.contains("token")), "{refused:?}");
        assert_eq!(trunk.linear.weight().to_f32_vec().unwrap(), before);
    }
}
