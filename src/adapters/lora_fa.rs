//! LoRA-FA: a LoRA whose A is drawn once and then frozen, `y = W₀ x + b + s · B (A dropout(x))`.
//!
//! Only B `[n, r]` learns, so nothing of the width of x is kept for backward: the tape holds `A x`, r numbers a token. A `[r, k]` is
//! U(−1/√k, 1/√k), a function of the seed and the module's path, so that files need not hold it.
//!
//! Source: Zhang et al., "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning", 2023.

use super::attach::{AttachReport, Attached, for_targets};
use super::lora::validate;
use super::merge::{add_product, master};
use super::{Frozen, LinearAdapter, LoraConfig, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::ops::{LowRank, Mid};
use crate::rng::Stream;
use crate::tensor::{FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder, Tensor};

/// A LoRA with a frozen A on one linear.
#[derive(Clone, Debug)]
pub struct LoraFa {
    /// `[r, k]`
    pub a: Tensor,
    /// `[n, r]`
    pub b: ParamId,
    pub scale: f64,
    pub dropout: f64,
    pub site: u32,
}

impl LinearAdapter for LoraFa {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let (a, b) = (Var::constant(self.a.clone()), tape.param(self.b)?);
        let (scale, dropout, site) = (self.scale, self.dropout, self.site);
        frozen.with(tape, x, Some(LowRank { a: &a, b: &b, mid: Mid::Identity, scale, dropout, site }))
    }

    fn update(&self, params: &ParamSet, weight: &FrozenWeight) -> Result<Vec<f64>> {
        let shape @ [n, k] = [weight.n(), weight.k()];
        let mut update = vec![0.0; n * k];
        add_product(&mut update, shape, [&self.a.to_f64_vec()?, &master(params, self.b)?], None, self.scale)?;
        Ok(update)
    }
}

/// Where LoRAs with a frozen A go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraFaConfig {
    pub lora: LoraConfig,
    /// Of A.
    pub seed: u64,
}

impl LoraFaConfig {
    /// Puts a LoRA with a frozen A on every target and declares `<module>.lora_B`.
    ///
    /// # Errors
    /// Those of [`LoraConfig::attach`].
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        let config = self.lora.to_peft(&[]);
        validate(&config)?;
        for_targets(trunk, &config, |linear, matcher| {
            let module = linear.name().to_string();
            let (rank, weight) = (matcher.rank(&module), linear.weight());
            let (n, k) = (weight.n(), weight.k());
            let a = Init::KaimingUniform { fan_in: k }.values(self.seed, &format!("{module}.lora_A"), rank * k)?;
            let a = Tensor::from_f32(weight.device(), &[rank, k], &a, weight.dtype())?;
            let b = params.add(format!("{module}.lora_B"), &[n, rank], Init::Zeros)?;
            let site = Stream::named(0, 0, &module).site;
            linear.adapt(LoraFa { a, b, scale: matcher.scale(&module), dropout: matcher.dropout(), site });
            Ok(Attached { module, rank, params: rank * n })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::fixture::{Single, values};
    use crate::autograd::Grads;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::error::Error;

    fn adapted(dropout: f64) -> (Single, ParamSet) {
        let mut trunk = Single::drawn(6, 40);
        let lora = LoraConfig { rank: 3, alpha: 6.0, dropout, ..LoraConfig::default() };
        let mut builder = ParamSetBuilder::new();
        LoraFaConfig { lora, seed: 4 }.attach(&mut trunk, &mut builder).unwrap();
        let params = builder.build(&Device::cpu(), DType::F32, 9).unwrap();
        params.set(params.find("q_proj.lora_B").unwrap(), &values("b", 18)).unwrap();
        (trunk, params)
    }

    fn x() -> Tensor {
        Tensor::from_slice(&Device::cpu(), &[16, 40], &values("x", 640)).unwrap()
    }

    /// Of 16 tokens of 40 numbers, 3 numbers each are held: a LoRA whose A learns holds 43.
    #[test]
    fn the_input_is_not_kept() {
        for dropout in [0.0, 0.5] {
            let (trunk, params) = adapted(dropout);
            let mut tape = Tape::training(&params, 0, 0);
            let x = tape.input(x());
            trunk.linear.forward(&mut tape, &x).unwrap();
            assert_eq!(tape.ledger().retained_bytes(), 16 * 3 * 4);
        }
    }

    /// As a LoRA with the same A and B gives it, and one seed gives one A.
    #[test]
    fn output_and_gradient_are_those_of_a_lora() {
        let (fa, fa_params) = adapted(0.25);
        let mut lora = Single::drawn(6, 40);
        let config = LoraConfig { rank: 3, alpha: 6.0, dropout: 0.25, ..LoraConfig::default() };
        let mut builder = ParamSetBuilder::new();
        config.attach(&mut lora, &mut builder).unwrap();
        let params = builder.build(&Device::cpu(), DType::F32, 4).unwrap();
        params.set(params.find("q_proj.lora_B").unwrap(), &values("b", 18)).unwrap();
        let pass = |trunk: &Single, params: &ParamSet| {
            let mut tape = Tape::training(params, 1, 2);
            let y = trunk.linear.forward(&mut tape, &Var::constant(x())).unwrap();
            let dy = Tensor::from_slice(&Device::cpu(), &[16, 6], &values("dy", 96)).unwrap();
            let mut grads = Grads::zeros(params).unwrap();
            tape.backward_with(&y, dy, &mut grads).unwrap();
            let b = grads.view(params.find("q_proj.lora_B").unwrap()).unwrap();
            (y.tensor().to_f64_vec().unwrap(), b.to_f64_vec().unwrap())
        };
        assert_eq!(pass(&fa, &fa_params), pass(&lora, &params));
    }

    #[test]
    fn it_merges_and_comes_back() {
        let (mut trunk, params) = adapted(0.0);
        let (before, weight) = (trunk.forward(&params, &x()), trunk.linear.weight().to_f32_vec().unwrap());
        let report = trunk.linear.merge(&params).unwrap();
        assert_eq!((report.updated, report.lost), (240, 0));
        let after = trunk.forward(&params, &x());
        assert!(before.iter().zip(&after).all(|(b, a)| (b - a).abs() < 1e-5 * b.abs().max(1.0)));
        assert!(trunk.linear.unmerge());
        assert_eq!(trunk.linear.weight().to_f32_vec().unwrap(), weight);
        assert_eq!(trunk.forward(&params, &x()), before);
        for bad in [f32::NAN, f32::INFINITY] {
            params.set(params.find("q_proj.lora_B").unwrap(), &[bad; 18]).unwrap();
            assert!(matches!(trunk.linear.merge(&params), Err(Error::Value { op: "merge", argument: "update", .. })));
            assert_eq!(trunk.linear.weight().to_f32_vec().unwrap(), weight);
        }
    }
}
