//! AdaLoRA: an update `s · P Λ Q` with P and Q nearly orthogonal, whose budget of ranks goes where it matters.
//!
//! ```text
//! y = x W₀ᵀ + b + s · (λ ⊙ dropout(x) Qᵀ) Pᵀ
//! R = w · Σ (‖PᵀP − 1‖² + ‖QQᵀ − 1‖²)                                  added to the loss
//! I = |θ ⊙ ∂θ|      Ī ← β₁ Ī + (1 − β₁) I      Ū ← β₂ Ū + (1 − β₂) |I − Ī|      s(θ) = Ī · Ū
//! score of rank i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij)
//! ```
//!
//! While the budget falls along a cubic ([`DensitySchedule`]), the λ of all ranks but the best so many, over all modules together, are set to zero every few steps;
//! between those steps they may come back. Where the fall ends, ranks whose λ is zero are taken away for good.
//!
//! Q `[r, k]` and P `[n, r]` start at N(0, 0.02), λ at zero, so that training starts from the trunk itself and λ moves first. Where
//! Ī meets the new I in Ū, it is the new Ī. Importances are kept on the host and read the gradients once a step.
//!
//! Source: Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", 2023; names as in PEFT, whose
//! regulariser takes norms where the paper, and this, takes their squares.

use serde::{Deserialize, Serialize};

use super::gated::Parameters;
pub use super::gated::Ranks;
use super::{AttachReport, LoraConfig, Trunk};
use crate::autograd::Grads;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::orthogonality::{Side, add_gradient};
use crate::optim::{Carry, DensitySchedule};
use crate::tensor::{Init, ParamSet, ParamSetBuilder, Tensor};

const OP: &str = "adalora";
/// While λ is zero, neither P nor Q moves anything.
const PARAMETERS: Parameters = Parameters {
    op: OP,
    a: ".lora_A",
    b: ".lora_B",
    gate: ".lora_E",
    start: |_| [(Init::Normal { std: 0.02 }, true), (Init::Normal { std: 0.02 }, true), (Init::Zeros, false)],
};

/// Where AdaLoRAs go, and how their budget falls.
#[derive(Clone, Debug, PartialEq)]
pub struct AdaLoraConfig {
    /// Rank is what every module starts with; s = α / rank, whatever is pruned.
    pub lora: LoraConfig,
    pub budget: Budget,
}

/// How ranks are given out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Share of all ranks that exist: 1 at the start, its end where the fall ends.
    pub schedule: DensitySchedule,
    /// w.
    pub orthogonality: f64,
    /// β₁, β₂.
    pub betas: [f64; 2],
}

impl Budget {
    /// PEFT's factors.
    pub fn new(schedule: DensitySchedule) -> Self {
        Budget { schedule, orthogonality: 0.5, betas: [0.85, 0.85] }
    }

    /// For a budget that comes from options or a file.
    pub fn check(&self) -> Result<()> {
        self.schedule.check()?;
        if !(self.orthogonality.is_finite() && self.orthogonality >= 0.0) {
            return Err(Error::value(OP, "orthogonality", "a finite number, 0 or more", self.orthogonality));
        }
        match self.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            Some(beta) => Err(Error::value(OP, "betas", "numbers in [0, 1)", beta)),
            None => Ok(()),
        }
    }

    /// Whether importances still matter at `step`.
    pub fn is_open(&self, step: u64) -> bool {
        step < self.schedule.last_step
    }
}

impl AdaLoraConfig {
    /// Puts the adapter on every target and declares `<module>.lora_A` (Q), `<module>.lora_B` (P), `<module>.lora_E` (λ).
    ///
    /// # Errors
    /// Those of [`LoraConfig::attach`], and [`Error::Value`] for factors outside their range.
    pub fn attach(&self, trunk: &mut dyn Trunk, ranks: &Ranks, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        self.budget.check()?;
        PARAMETERS.attach(&self.lora, trunk, ranks, params)
    }
}

/// Adds the gradient of R to `grads`.
pub fn add_orthogonality(budget: &Budget, params: &ParamSet, grads: &Grads) -> Result<()> {
    if budget.orthogonality == 0.0 {
        return Ok(());
    }
    for (module, _) in PARAMETERS.gates(params)? {
        for (end, side) in [(PARAMETERS.a, Side::Rows), (PARAMETERS.b, Side::Columns)] {
            let id = PARAMETERS.find(params, &module, end)?;
            let (matrix, gradient) = (params.view(params.master(), id)?, grads.view(id)?);
            add_gradient(&matrix, side, budget.orthogonality, &gradient)?;
        }
    }
    Ok(())
}

/// Ī and Ū of every parameter, in the layout of the set.
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    sensitivity: Vec<f32>,
    uncertainty: Vec<f32>,
}

impl Importance {
    pub fn new(params: &ParamSet) -> Self {
        let zeros = vec![0.0; params.flat_len()];
        Importance { sensitivity: zeros.clone(), uncertainty: zeros }
    }

    /// Takes in the gradients of a step, before its optimizer step.
    ///
    /// # Errors
    /// [`Error::Shape`] for a set of another layout.
    pub fn observe(&mut self, budget: &Budget, params: &ParamSet, grads: &Grads) -> Result<()> {
        self.require(params)?;
        let (values, slopes) = (params.master().to_f32_vec()?, grads.flat().to_f32_vec()?);
        let [first, second] = budget.betas.map(|b| b as f32);
        let moving = self.sensitivity.iter_mut().zip(&mut self.uncertainty);
        for ((mean, spread), (value, slope)) in moving.zip(values.iter().zip(&slopes)) {
            let now = (value * slope).abs();
            *mean = first * *mean + (1.0 - first) * now;
            *spread = second * *spread + (1.0 - second) * (now - *mean).abs();
        }
        Ok(())
    }

    /// The score of every rank, module by module.
    pub fn scores(&self, params: &ParamSet) -> Result<Vec<(String, Vec<f64>)>> {
        self.require(params)?;
        let score = |at: usize| f64::from(self.sensitivity[at]) * f64::from(self.uncertainty[at]);
        let mut all = Vec::new();
        for (module, gate) in PARAMETERS.gates(params)? {
            let gate = params.get(gate)?;
            let q = params.get(PARAMETERS.find(params, &module, PARAMETERS.a)?)?;
            let p = params.get(PARAMETERS.find(params, &module, PARAMETERS.b)?)?;
            let (r, k, n) = (gate.numel(), q.dims[1], p.dims[0]);
            let of = |i: usize| {
                let row = (0..k).map(|j| score(q.offset + i * k + j)).sum::<f64>() / k as f64;
                let column = (0..n).map(|j| score(p.offset + j * r + i)).sum::<f64>() / n as f64;
                score(gate.offset + i) + row + column
            };
            all.push((module, (0..r).map(of).collect()));
        }
        Ok(all)
    }

    /// Sets the λ of all ranks but the best share of `density` of them to zero. Of equal scores the earlier rank stays.
    pub fn allocate(&self, params: &ParamSet, density: f64) -> Result<()> {
        let scores = self.scores(params)?;
        let mut order: Vec<(f64, usize, usize)> = Vec::new();
        for (module, (_, scores)) in scores.iter().enumerate() {
            order.extend(scores.iter().enumerate().map(|(rank, &score)| (score, module, rank)));
        }
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let kept = ((density * order.len() as f64).round() as usize).max(1);
        let mut out: Vec<Vec<usize>> = vec![Vec::new(); scores.len()];
        for &(_, module, rank) in order.iter().skip(kept) {
            out[module].push(rank);
        }
        for ((module, _), out) in scores.iter().zip(&out).filter(|(_, out)| !out.is_empty()) {
            let id = PARAMETERS.find(params, module, PARAMETERS.gate)?;
            let mut gates = params.view(params.master(), id)?.to_f32_vec()?;
            out.iter().for_each(|&rank| gates[rank] = 0.0);
            params.set(id, &gates)?;
        }
        Ok(())
    }

    /// For a checkpoint: Ī and Ū, `[flat_len]` each.
    pub fn tensors(&self) -> Result<[Tensor; 2]> {
        let of = |values: &[f32]| Tensor::from_slice(&Device::cpu(), &[values.len()], values);
        Ok([of(&self.sensitivity)?, of(&self.uncertainty)?])
    }

    pub fn from_tensors([sensitivity, uncertainty]: [&Tensor; 2]) -> Result<Self> {
        uncertainty.require_dims(OP, "uncertainty", sensitivity.dims())?;
        Ok(Importance { sensitivity: sensitivity.to_f32_vec()?, uncertainty: uncertainty.to_f32_vec()? })
    }

    fn require(&self, params: &ParamSet) -> Result<()> {
        if self.sensitivity.len() == params.flat_len() {
            return Ok(());
        }
        let expected = format!("[{}], the set that importances were kept of", self.sensitivity.len());
        Err(Error::shape(OP, "params", expected, &[params.flat_len()]))
    }
}

/// The ranks without those whose λ is zero, and how values and moments follow.
pub fn prune_ranks(ranks: &Ranks, params: &ParamSet) -> Result<(Ranks, Carry)> {
    PARAMETERS.prune(ranks, params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::fixture::{Single, values};
    use crate::dtype::DType;

    fn budget() -> Budget {
        Budget::new(DensitySchedule::new(1.0, 0.5, 2, 6, 2).unwrap())
    }

    fn adapted(rank: usize) -> (Single, ParamSet) {
        let mut trunk = Single::drawn(3, 2);
        let mut builder = ParamSetBuilder::new();
        let lora = LoraConfig { rank, alpha: rank as f64, ..LoraConfig::default() };
        AdaLoraConfig { lora, budget: budget() }.attach(&mut trunk, &Ranks::new(), &mut builder).unwrap();
        (trunk, builder.build(&Device::cpu(), DType::F32, 1).unwrap())
    }

    fn set(params: &ParamSet, end: &str, values: &[f32]) {
        params.set(params.find(&format!("q_proj.lora_{end}")).unwrap(), values).unwrap();
    }

    /// One step from nothing: I = |θ ∂θ|, Ī = 0.15 I, Ū = 0.15 (I − 0.15 I), so s = 0.15 · 0.15 · 0.85 · I².
    #[test]
    fn golden_scores_of_one_step() {
        let (_, params) = adapted(2);
        set(&params, "A", &[1.0, 2.0, 0.0, 3.0]);
        set(&params, "B", &[1.0, 0.0, 0.0, 2.0, 1.0, 0.0]);
        set(&params, "E", &[2.0, -1.0]);
        let grads = Grads::zeros(&params).unwrap();
        for id in params.ids() {
            let ones = vec![1.0f32; params.get(id).unwrap().numel()];
            grads.view(id).unwrap().overwrite(&ones).unwrap();
        }
        let mut importance = Importance::new(&params);
        importance.observe(&budget(), &params, &grads).unwrap();
        let scores = importance.scores(&params).unwrap();
        let unit = 0.15 * 0.15 * 0.85;
        let want = [unit * (4.0 + 5.0 / 2.0 + 2.0 / 3.0), unit * (1.0 + 9.0 / 2.0 + 4.0 / 3.0)];
        for (got, want) in scores[0].1.iter().zip(want) {
            assert!((got - want).abs() < 1e-6 * want, "{got} {want}");
        }
        importance.allocate(&params, 0.5).unwrap();
        let gates = params.find("q_proj.lora_E").unwrap();
        assert_eq!(params.tensor(gates).unwrap().to_f32_vec().unwrap(), [2.0, 0.0]);
        let (ranks, _) = prune_ranks(&Ranks::new(), &params).unwrap();
        assert_eq!(ranks, Ranks::from([("q_proj".to_string(), 1)]));
        // A step later, with other gradients, the state survives a file to the bit.
        importance.observe(&budget(), &params, &grads).unwrap();
        let [mean, spread] = importance.tensors().unwrap();
        assert_eq!(Importance::from_tensors([&mean, &spread]).unwrap(), importance);
    }

    #[test]
    fn the_regulariser_pulls_towards_orthogonality() {
        let (_, params) = adapted(2);
        let mut far = Vec::new();
        for _ in 0..2 {
            let q = params.tensor(params.find("q_proj.lora_A").unwrap()).unwrap().to_f64_vec().unwrap();
            let gram = |i: usize, j: usize| (0..2).map(|c| q[i * 2 + c] * q[j * 2 + c]).sum::<f64>();
            let off = |i: usize, j: usize| gram(i, j) - f64::from(u8::from(i == j));
            far.push((0..4).map(|e| off(e / 2, e % 2).powi(2)).sum::<f64>());
            let grads = Grads::zeros(&params).unwrap();
            add_orthogonality(&budget(), &params, &grads).unwrap();
            for id in params.ids() {
                let value = params.tensor(id).unwrap().to_f32_vec().unwrap();
                let slope = grads.view(id).unwrap().to_f32_vec().unwrap();
                let moved: Vec<f32> = value.iter().zip(&slope).map(|(v, s)| v - 0.1 * s).collect();
                params.set(id, &moved).unwrap();
            }
        }
        assert!(far[1] < far[0], "{far:?}");
    }

    #[test]
    fn it_merges_and_comes_back() {
        let (mut trunk, params) = adapted(2);
        set(&params, "E", &[3.0, -2.0]);
        let x = Tensor::from_slice(&Device::cpu(), &[4, 2], &values("x", 8)).unwrap();
        let before = trunk.forward(&params, &x);
        trunk.linear.merge(&params).unwrap();
        let after = trunk.forward(&params, &x);
        assert!(before.iter().zip(&after).all(|(b, a)| (b - a).abs() < 1e-5 * b.abs().max(1.0)));
        assert!(trunk.linear.unmerge());
        assert_eq!(trunk.forward(&params, &x), before);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let attach = |budget: Budget| {
            let lora = LoraConfig::default();
            AdaLoraConfig { lora, budget }.attach(&mut Single::drawn(3, 2), &Ranks::new(), &mut ParamSetBuilder::new())
        };
        assert!(attach(budget()).is_ok());
        assert!(matches!(
            attach(Budget { orthogonality: -1.0, ..budget() }),
            Err(Error::Value { argument: "orthogonality", .. })
        ));
        assert!(matches!(
            attach(Budget { betas: [0.5, 1.0], ..budget() }),
            Err(Error::Value { argument: "betas", .. })
        ));
        let importance = Importance::new(&adapted(2).1);
        assert!(matches!(importance.scores(&adapted(70).1), Err(Error::Shape { argument: "params", .. })));
    }
}
