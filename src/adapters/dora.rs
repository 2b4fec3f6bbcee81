//! DoRA: a LoRA that decides how the rows of a weight turn, and magnitudes that decide how long they are.
//!
//! ```text
//! y = g ⊙ (W₀ x + s · B (A dropout(x))) + b      g_i = m_i / ‖w_i‖, w_i row i of W₀ + s · B A
//! ```
//!
//! `m [n]` starts at the lengths of W₀'s rows, A and B as a LoRA's do, so that training starts from the trunk itself. The norm is a
//! constant to the gradient, and B·A is never formed for it ([`magnitude`](crate::ops::magnitude())). Dropout acts on what A sees;
//! PEFT, in training, drops elements of what W₀ sees in the scaled part as well. In evaluation there is no difference.
//!
//! Kept for backward besides what a LoRA keeps: the scaled sum, `[m, n]`, for the gradient of the magnitudes.
//!
//! Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024; names as in PEFT.

use super::attach::{AttachReport, Attached, for_targets};
use super::lora::{declare, validate};
use super::merge::{add_low_rank, master};
use super::{Frozen, LinearAdapter, Lora, LoraConfig, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::format::peft::PeftConfig;
use crate::ops::{LowRank, Mid, column_gate, frozen_linear, magnitude, scale_add};
use crate::tensor::{FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder};

/// A DoRA on one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Dora {
    pub lora: Lora,
    /// `[n]`
    pub magnitude: ParamId,
}

impl LinearAdapter for Dora {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let Lora { a, b, scale, dropout, site } = self.lora;
        let (a, b, m) = (tape.param(a)?, tape.param(b)?, tape.param(self.magnitude)?);
        let g = magnitude(tape, &m, frozen.weight, [&a, &b], scale)?;
        let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale, dropout, site };
        let y = frozen_linear(tape, x, frozen.weight, None, Some(update))?;
        let y = column_gate(tape, &y, &g)?;
        let y = match frozen.bias {
            Some(bias) => scale_add(tape, &y, bias, 1.0)?,
            None => y,
        };
        frozen.after.apply(tape, y)
    }

    fn update(&self, params: &ParamSet, weight: &FrozenWeight) -> Result<Vec<f64>> {
        let shape @ [_, k] = [weight.n(), weight.k()];
        let old = weight.tensor().to_f64_vec()?;
        let mut sum = old.clone();
        add_low_rank(&mut sum, shape, params, [self.lora.a, self.lora.b], None, self.lora.scale)?;
        let magnitudes = master(params, self.magnitude)?;
        for ((row, old), m) in sum.chunks_exact_mut(k).zip(old.chunks_exact(k)).zip(&magnitudes) {
            let norm = length(row);
            let g = if norm == 0.0 { 1.0 } else { m / norm };
            row.iter_mut().zip(old).for_each(|(v, old)| *v = g * *v - old);
        }
        Ok(sum)
    }
}

fn length(row: &[f64]) -> f64 {
    row.iter().map(|v| v * v).sum::<f64>().sqrt()
}

/// Where DoRAs go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DoraConfig {
    pub lora: LoraConfig,
}

impl DoraConfig {
    /// The same as adapter files say it.
    pub fn to_peft(&self, modules_to_save: &[&str]) -> PeftConfig {
        PeftConfig { use_dora: true, ..self.lora.to_peft(modules_to_save) }
    }

    /// Puts a DoRA on every target and declares `<module>.lora_A`, `<module>.lora_B` and `<module>.lora_magnitude_vector`.
    ///
    /// # Errors
    /// Those of [`LoraConfig::attach`].
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        attach(&self.to_peft(&[]), self.lora.plus_ratio, trunk, params)
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
        let (n, k) = (linear.weight().n(), linear.weight().k());
        let weight = linear.weight().tensor().to_f64_vec()?;
        let lengths = weight.chunks_exact(k).map(|row| length(row) as f32).collect();
        let module = linear.name().to_string();
        let magnitude = params.add(format!("{module}.lora_magnitude_vector"), &[n], Init::Values(lengths))?;
        linear.adapt(Dora { lora, magnitude });
        let rank = matcher.rank(&module);
        Ok(Attached { module, rank, params: rank * (n + k) + n })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::fixture::{Single, values};
    use crate::autograd::Grads;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::tensor::Tensor;

    fn adapted(trunk: &mut Single, dtype: DType) -> ParamSet {
        let lora = LoraConfig { rank: 2, alpha: 4.0, ..LoraConfig::default() };
        let mut builder = ParamSetBuilder::new();
        DoraConfig { lora }.attach(trunk, &mut builder).unwrap();
        builder.build(&Device::cpu(), dtype, 5).unwrap()
    }

    fn of(params: &ParamSet, name: &str) -> ParamId {
        params.find(&format!("q_proj.lora_{name}")).unwrap()
    }

    /// W₀ = [[3, 0], [0, 2]], s·B·A = [[0, 4], [0, 0]], m = (10, 1): rows (3, 4) of length 5 and (0, 2) of length 2, so g = (2, ½).
    #[test]
    fn golden_values() {
        let cpu = Device::cpu();
        let weight = Tensor::from_slice(&cpu, &[2, 2], &[3.0, 0.0, 0.0, 2.0]).unwrap();
        let bias = Tensor::from_slice(&cpu, &[2], &[0.5, -1.0]).unwrap();
        let mut trunk = Single::new(weight, Some(bias));
        let params = adapted(&mut trunk, DType::F64);
        let start = params.view(params.master(), of(&params, "magnitude_vector")).unwrap();
        assert_eq!(start.to_f64_vec().unwrap(), [3.0, 2.0]);
        params.set(of(&params, "A"), &[0.0, 1.0, 0.0, 0.0]).unwrap();
        params.set(of(&params, "B"), &[2.0, 0.0, 0.0, 0.0]).unwrap();
        params.set(of(&params, "magnitude_vector"), &[10.0, 1.0]).unwrap();
        let x = Tensor::from_slice(&cpu, &[1, 2], &[1.0, 2.0]).unwrap();
        let want = [2.0 * 11.0 + 0.5, 0.5 * 4.0 - 1.0];
        assert_eq!(trunk.forward(&params, &x), want);
        let report = trunk.linear.merge(&params).unwrap();
        assert_eq!((report.updated, report.rounded), (3, 0));
        assert_eq!(trunk.linear.weight().to_f32_vec().unwrap(), [6.0, 8.0, 0.0, 1.0]);
        assert_eq!(trunk.forward(&params, &x), want);
        assert!(trunk.linear.unmerge());
        assert_eq!(trunk.linear.weight().to_f32_vec().unwrap(), [3.0, 0.0, 0.0, 2.0]);
    }

    /// By the names that PEFT gives the three tensors; without the magnitudes it is refused.
    #[test]
    fn files_are_pefts() {
        use crate::adapters::{load_adapter, save_adapter};
        use crate::error::Error;
        use crate::format::peft::AdapterFile;
        let mut trunk = Single::drawn(6, 9);
        let params = adapted(&mut trunk, DType::F32);
        params.set(of(&params, "B"), &values("b", 12)).unwrap();
        params.set(of(&params, "magnitude_vector"), &values("m", 6)).unwrap();
        let x = Tensor::from_slice(&Device::cpu(), &[4, 9], &values("x", 36)).unwrap();
        let dir = std::env::temp_dir().join(format!("graftwork-dora-{}", std::process::id()));
        let lora = LoraConfig { rank: 2, alpha: 4.0, ..LoraConfig::default() };
        save_adapter(&dir, &DoraConfig { lora }.to_peft(&[]), &params).unwrap();
        let file = AdapterFile::load(&dir).unwrap();
        assert!(file.config.use_dora);
        let keys: Vec<String> = file.tensors().into_iter().map(|(key, _)| key).collect();
        let want = ["lora_A.weight", "lora_B.weight", "lora_magnitude_vector"];
        assert_eq!(keys, want.map(|end| format!("base_model.model.q_proj.{end}")));
        let mut fresh = Single::drawn(6, 9);
        let (again, _) = load_adapter(&mut fresh, &dir, &Device::cpu(), DType::F32).unwrap();
        assert_eq!(fresh.forward(&again, &x), trunk.forward(&params, &x));
        let bare = AdapterFile { full: Default::default(), ..file };
        bare.save(&dir).unwrap();
        let refused = load_adapter(&mut Single::drawn(6, 9), &dir, &Device::cpu(), DType::F32);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(matches!(refused, Err(Error::AdapterMismatch { report, .. }) if report.contains("magnitude")));
    }

    #[test]
    fn it_starts_from_the_trunk() {
        let mut trunk = Single::drawn(6, 9);
        let x = Tensor::from_slice(&Device::cpu(), &[4, 9], &values("x", 36)).unwrap();
        let none = ParamSet::none(&Device::cpu(), DType::F32).unwrap();
        let bare = trunk.forward(&none, &x);
        let params = adapted(&mut trunk, DType::F32);
        let got = trunk.forward(&params, &x);
        assert!(got.iter().zip(&bare).all(|(g, w)| (g - w).abs() < 1e-5));
    }

    /// Against the same layer whose factors are given numbers: A, B and x get what a LoRA under a fixed gate gets, in f64 to the last
    /// bits, and the magnitudes' own gradient is held against central differences by the op.
    #[test]
    fn the_norm_is_a_constant_to_the_gradient() {
        let cpu = Device::cpu();
        let wide = |name: &str, dims: &[usize]| {
            let v: Vec<f64> = values(name, dims.iter().product()).into_iter().map(f64::from).collect();
            Tensor::from_slice(&cpu, dims, &v).unwrap()
        };
        let mut trunk = Single::new(wide("w", &[5, 7]), None);
        let params = adapted(&mut trunk, DType::F64);
        params.set(of(&params, "B"), &values("b", 10)).unwrap();
        let (x, dy) = (wide("x", &[3, 7]), wide("dy", &[3, 5]));
        let weight = trunk.linear.weight().clone();
        let [a, b, m] = ["A", "B", "magnitude_vector"].map(|name| of(&params, name));
        let g = {
            let mut tape = Tape::inference(&params);
            let [a, b, m] = [a, b, m].map(|id| tape.param(id).unwrap());
            magnitude(&mut tape, &m, &weight, [&a, &b], 2.0).unwrap().tensor().clone()
        };
        let pass = |dora: bool| {
            let mut tape = Tape::deterministic(&params);
            let input = tape.input(x.clone());
            let y = if dora {
                trunk.linear.forward(&mut tape, &input).unwrap()
            } else {
                let (a, b) = (tape.param(a).unwrap(), tape.param(b).unwrap());
                let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 2.0, dropout: 0.0, site: 0 };
                let y = frozen_linear(&mut tape, &input, &weight, None, Some(update)).unwrap();
                column_gate(&mut tape, &y, &Var::constant(g.clone())).unwrap()
            };
            let mut grads = Grads::zeros(&params).unwrap();
            let done = tape.backward_with(&y, dy.clone(), &mut grads).unwrap();
            let of = |id| grads.view(id).unwrap().to_f64_vec().unwrap();
            (y.tensor().to_f64_vec().unwrap(), done.input_gradient(&input).unwrap().to_f64_vec().unwrap(), of(a), of(b))
        };
        assert_eq!(pass(true), pass(false));
    }
}
