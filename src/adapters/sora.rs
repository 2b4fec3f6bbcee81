//! SoRA: a LoRA whose ranks carry a gate, `y = x W₀ᵀ + b + s · (g ⊙ dropout(x) Aᵀ) Bᵀ`, so that training can do away with ranks.
//!
//! After each optimizer step of rate η comes the proximal step of an ℓ1 penalty, `g ← sign(g) · max(|g| − ηλ, 0)`, which makes gates
//! exactly zero. A rank whose gate is zero contributes nothing, and [`prune_ranks`] takes A's row and B's column away. λ rises by stages
//! ([`GateSchedule`]): none at first, then evenly up to its end, with ranks pruned where a stage begins.
//!
//! A starts at U(−1/√k, 1/√k), B at zero, g at N(0, 1). The gate acts on B ([`column_gate`](crate::ops::column_gate())): the
//! same function, at a cost that no token pays.
//!
//! Source: Ding et al., "Sparse Low-rank Adaptation of Pre-trained Language Models", EMNLP 2023. The published code's threshold ignores η
//! and sends all of |g| < 2λ to zero; this is the formula of the paper.

use serde::{Deserialize, Serialize};

use super::gated::Parameters;
pub use super::gated::{GatedLora, Ranks};
use super::{AttachReport, LoraConfig, Trunk};
use crate::error::{Error, Result};
use crate::ops::soft_threshold;
use crate::optim::Carry;
use crate::tensor::{Init, ParamSet, ParamSetBuilder};

const OP: &str = "sora";
/// While B is zero, neither A nor the gate moves anything.
const PARAMETERS: Parameters = Parameters {
    op: OP,
    a: ".sora_A",
    b: ".sora_B",
    gate: ".sora_gate",
    start: |k| [(Init::KaimingUniform { fan_in: k }, true), (Init::Zeros, false), (Init::Normal { std: 1.0 }, true)],
};

/// Where gated LoRAs go.
#[derive(Clone, Debug, PartialEq)]
pub struct SoraConfig {
    /// Rank is what every module starts with; s = α / rank, whatever is pruned.
    pub lora: LoraConfig,
}

impl SoraConfig {
    /// Puts a gated LoRA on every target and declares `<module>.sora_A`, `<module>.sora_B`, `<module>.sora_gate`.
    pub fn attach(&self, trunk: &mut dyn Trunk, ranks: &Ranks, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        PARAMETERS.attach(&self.lora, trunk, ranks, params)
    }
}

/// λ by stages: none for `dense_steps`, then `stages` stages of `stage_steps`, the i-th (from 1) at `λ_end · i / stages`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateSchedule {
    pub lambda: f64,
    pub dense_steps: u64,
    pub stages: u64,
    pub stage_steps: u64,
}

impl GateSchedule {
    pub fn check(&self) -> Result<()> {
        if !(self.lambda.is_finite() && self.lambda >= 0.0) {
            return Err(Error::value(OP, "lambda", "a finite number, 0 or more", self.lambda));
        }
        for (argument, value) in [("stages", self.stages), ("stage_steps", self.stage_steps)] {
            if value == 0 {
                return Err(Error::value(OP, argument, "at least 1", value));
            }
        }
        Ok(())
    }

    /// λ of step `step`.
    pub fn at(&self, step: u64) -> f64 {
        let Some(after) = step.checked_sub(self.dense_steps) else { return 0.0 };
        let stage = (after / self.stage_steps.max(1)).saturating_add(1).min(self.stages);
        self.lambda * stage as f64 / self.stages.max(1) as f64
    }

    /// Whether ranks are pruned before step `step`: where a stage follows a stage, and where the last one ends.
    pub fn prunes_at(&self, step: u64) -> bool {
        let Some(after) = step.checked_sub(self.dense_steps) else { return false };
        let each = self.stage_steps.max(1);
        after > 0 && after.is_multiple_of(each) && after / each <= self.stages
    }

    /// `g ← sign(g) · max(|g| − ηλ, 0)` for every gate, after an optimizer step at rate `lr`.
    ///
    /// # Errors
    /// [`Error::Value`] for settings that [`GateSchedule::check`] refuses, and for a rate that is negative or not finite.
    pub fn proximal_step(&self, step: u64, params: &ParamSet, lr: f64) -> Result<()> {
        self.check()?;
        let threshold = lr * self.at(step);
        if threshold == 0.0 {
            return Ok(());
        }
        for (_, id) in PARAMETERS.gates(params)? {
            let (master, working) = (params.view(params.master(), id)?, params.view(params.working(), id)?);
            let working = (working.dtype() != master.dtype()).then_some(&working);
            soft_threshold(&master, working, threshold)?;
        }
        Ok(())
    }
}

/// The ranks without those whose gate is zero, and how values and moments follow.
pub fn prune_ranks(ranks: &Ranks, params: &ParamSet) -> Result<(Ranks, Carry)> {
    PARAMETERS.prune(ranks, params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dtype::DType;

    fn schedule() -> GateSchedule {
        GateSchedule { lambda: 0.8, dense_steps: 10, stages: 4, stage_steps: 5 }
    }

    #[test]
    fn lambda_rises_by_stages() {
        let golden = [(0, 0.0), (9, 0.0), (10, 0.2), (14, 0.2), (15, 0.4), (20, 0.6), (25, 0.8), (1000, 0.8)];
        for (step, lambda) in golden {
            assert!((schedule().at(step) - lambda).abs() < 1e-15, "step {step}");
        }
        let prunes: Vec<u64> = (0..100).filter(|&t| schedule().prunes_at(t)).collect();
        assert_eq!(prunes, [15, 20, 25, 30]);
    }

    /// ξ = 1: 1.5 becomes 0.5, which the published code would send to zero; 2.5 becomes 1.5.
    #[test]
    fn the_soft_threshold_is_the_papers() {
        for dtype in [DType::F32, DType::BF16] {
            let mut builder = ParamSetBuilder::new();
            let gate = builder.add("q.sora_gate", &[5], Init::Values(vec![1.5, 2.5, -1.5, 0.5, -1.0])).unwrap();
            let other = builder.add("q.sora_A", &[1], Init::Values(vec![0.5])).unwrap();
            let params = builder.build(&Device::cpu(), dtype, 0).unwrap();
            let schedule = GateSchedule { lambda: 10.0, dense_steps: 0, stages: 1, stage_steps: 1 };
            schedule.proximal_step(0, &params, 0.1).unwrap();
            for flat in [params.master(), params.working()] {
                let of = |id| params.view(flat, id).unwrap().contiguous().unwrap().to_f32_vec().unwrap();
                assert_eq!(of(gate), [0.5, 1.5, -0.5, 0.0, 0.0]);
                assert_eq!(of(other), [0.5]);
            }
        }
    }

    /// A schedule is data: one that was never checked is refused where it would act, and divides by nothing.
    #[test]
    fn schedules_and_rates_that_make_no_sense_are_refused() {
        let mut builder = ParamSetBuilder::new();
        builder.add("q.sora_gate", &[2], Init::Ones).unwrap();
        let params = builder.build(&Device::cpu(), DType::F32, 0).unwrap();
        let bad = [
            (GateSchedule { lambda: f64::NAN, ..schedule() }, "lambda"),
            (GateSchedule { lambda: -1.0, ..schedule() }, "lambda"),
            (GateSchedule { stages: 0, ..schedule() }, "stages"),
            (GateSchedule { stage_steps: 0, ..schedule() }, "stage_steps"),
        ];
        for (schedule, word) in bad {
            for step in [0, 10, u64::MAX] {
                let _ = (schedule.at(step), schedule.prunes_at(step));
                let error = schedule.proximal_step(step, &params, 0.1).unwrap_err().to_string();
                assert!(error.contains(word), "{error}");
            }
        }
        for lr in [f64::NAN, f64::INFINITY, -1.0] {
            let error = schedule().proximal_step(20, &params, lr).unwrap_err();
            assert!(matches!(error, Error::Value { argument: "threshold", .. }), "{error}");
        }
        assert!(prune_ranks(&Ranks::new(), &params).unwrap_err().to_string().contains("`q.sora_A`"));
        let mut builder = ParamSetBuilder::new();
        for (name, len) in [("q.sora_A", 6), ("q.sora_B", 6), ("q.sora_gate", 2)] {
            builder.add(name, &[len], Init::Ones).unwrap();
        }
        let flat = builder.build(&Device::cpu(), DType::F32, 0).unwrap();
        assert!(prune_ranks(&Ranks::new(), &flat).unwrap_err().to_string().contains("a matrix `q.sora_A`"));
    }

    #[test]
    fn pruning_keeps_the_rows_and_columns_of_open_gates() {
        let mut builder = ParamSetBuilder::new();
        let values = |n: usize| Init::Values((0..n).map(|i| i as f32).collect());
        builder.add("q.sora_A", &[3, 2], values(6)).unwrap();
        builder.add("q.sora_B", &[2, 3], values(6)).unwrap();
        builder.add("q.sora_gate", &[3], Init::Values(vec![1.0, 0.0, -2.0])).unwrap();
        let old = builder.build(&Device::cpu(), DType::F32, 0).unwrap();
        let (ranks, carry) = prune_ranks(&Ranks::new(), &old).unwrap();
        assert_eq!(ranks, Ranks::from([("q".to_string(), 2)]));
        let mut builder = ParamSetBuilder::new();
        let ids = [("q.sora_A", [2, 2]), ("q.sora_B", [2, 2])].map(|(n, d)| builder.add(n, &d, Init::Ones).unwrap());
        let gate = builder.add("q.sora_gate", &[2], Init::Ones).unwrap();
        let new = builder.build(&Device::cpu(), DType::F32, 0).unwrap();
        carry.values(&old, &new).unwrap();
        let of = |id| new.tensor(id).unwrap().contiguous().unwrap().to_f32_vec().unwrap();
        assert_eq!(of(ids[0]), [0.0, 1.0, 4.0, 5.0]);
        assert_eq!(of(ids[1]), [0.0, 2.0, 3.0, 5.0]);
        assert_eq!(of(gate), [1.0, -2.0]);
    }
}
