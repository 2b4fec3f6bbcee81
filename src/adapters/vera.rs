//! VeRA: two random matrices that all linears share and nothing trains, and two vectors a linear that learn.
//!
//! ```text
//! y = W₀ x + b + λ_b ⊙ (B (λ_d ⊙ (A dropout(x))))
//! ```
//!
//! `A [r, k_max]` and `B [n_max, r]` are drawn once for the largest target, U(−√(6/fan), √(6/fan)) with fan the number of columns;
//! a linear of `[n, k]` takes the first k columns of A and the first n rows of B. `λ_d [r]` starts at 0.1, `λ_b [n]` at zero: while it
//! is, λ_b alone learns. The vectors act on B, `(λ_b λ_dᵀ) ⊙ B`, at a cost that no token pays, and of x nothing is kept.
//!
//! Source: Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", 2024; starting values as in PEFT, whose generator draws
//! other numbers.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::attach::{AttachReport, Attached, for_targets};
use super::lora::validate;
use super::merge::{add_product, master};
use super::{Frozen, LinearAdapter, LoraConfig, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::format::peft::Modules;
use crate::ops::{LowRank, Mid, linear, multiply};
use crate::rng::Stream;
use crate::tensor::{FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder, Tensor};

/// The adapter on one linear.
#[derive(Clone, Debug)]
pub struct Vera {
    /// `[r, k]` and `[n, r]`: parts of what all share.
    pub a: Tensor,
    pub b: Tensor,
    /// `[r]`
    pub lambda_d: ParamId,
    /// `[n]`
    pub lambda_b: ParamId,
    pub dropout: f64,
    pub site: u32,
}

impl LinearAdapter for Vera {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let (n, r) = (frozen.weight.n(), self.a.dims().first().copied().unwrap_or(0));
        let lambda_b = tape.param(self.lambda_b)?.reshape(&[n, 1])?;
        let lambda_d = tape.param(self.lambda_d)?.reshape(&[r, 1])?;
        let outer = linear(tape, &lambda_b, &lambda_d, None)?;
        let b = multiply(tape, &outer, &Var::constant(self.b.clone()))?;
        let a = Var::constant(self.a.clone());
        let (dropout, site) = (self.dropout, self.site);
        frozen.with(tape, x, Some(LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 1.0, dropout, site }))
    }

    fn update(&self, params: &ParamSet, weight: &FrozenWeight) -> Result<Vec<f64>> {
        let shape @ [n, k] = [weight.n(), weight.k()];
        let (lambda_b, lambda_d) = (master(params, self.lambda_b)?, master(params, self.lambda_d)?);
        let mut b = self.b.to_f64_vec()?;
        for (row, factor) in b.chunks_exact_mut(lambda_d.len().max(1)).zip(&lambda_b) {
            row.iter_mut().for_each(|v| *v *= factor);
        }
        let mut update = vec![0.0; n * k];
        add_product(&mut update, shape, [&self.a.to_f64_vec()?, &b], Some(&lambda_d), 1.0)?;
        Ok(update)
    }
}

/// Where VeRA goes.
#[derive(Clone, Debug, PartialEq)]
pub struct VeraConfig {
    /// r, 1 to 256.
    pub rank: usize,
    /// What λ_d starts at.
    pub d_initial: f64,
    pub dropout: f64,
    pub targets: Modules,
    /// Of A and B.
    pub seed: u64,
}

/// PEFT's.
impl Default for VeraConfig {
    fn default() -> Self {
        VeraConfig { rank: 256, d_initial: 0.1, dropout: 0.0, targets: LoraConfig::default().targets, seed: 0 }
    }
}

/// `U(−√(6/fan), √(6/fan))`.
fn kaiming(name: &str, rows: usize, fan: usize, seed: u64) -> Result<Vec<f32>> {
    Init::Uniform { bound: (6.0 / fan as f64).sqrt() }.values(seed, name, rows * fan)
}

impl VeraConfig {
    /// Puts VeRA on every target and declares `<module>.vera_lambda_d` and `<module>.vera_lambda_b`.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when nothing matches; [`Error::Value`] for a rank outside 1..=256, a dropout outside [0, 1), or a start of λ_d
    /// that is zero or not finite: nothing would ever learn.
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        let VeraConfig { rank: r, dropout, seed, .. } = *self;
        let config =
            LoraConfig { rank: r, dropout, targets: self.targets.clone(), ..LoraConfig::default() }.to_peft(&[]);
        validate(&config)?;
        if self.d_initial == 0.0 || !self.d_initial.is_finite() {
            return Err(Error::value("vera", "d_initial", "a finite number other than 0", self.d_initial));
        }
        let (mut n_max, mut k_max) = (0, 0);
        for_targets(trunk, &config, |linear, _| {
            (n_max, k_max) = (n_max.max(linear.weight().n()), k_max.max(linear.weight().k()));
            Ok(Attached { module: linear.name().to_string(), rank: r, params: 0 })
        })?;
        let (a, b) = (kaiming("vera_A", r, k_max, seed)?, kaiming("vera_B", n_max, r, seed)?);
        // One copy of A for each width that there is, and one of B.
        let mut widths: BTreeMap<usize, Tensor> = BTreeMap::new();
        let mut heights: Option<Tensor> = None;
        for_targets(trunk, &config, |linear, _| {
            let (module, weight) = (linear.name().to_string(), linear.weight());
            let (n, k, device, dtype) = (weight.n(), weight.k(), weight.device(), weight.dtype());
            let narrow = match widths.entry(k) {
                Entry::Occupied(made) => made.get().clone(),
                Entry::Vacant(place) => {
                    let columns: Vec<f32> = a.chunks_exact(k_max).flat_map(|row| &row[..k]).copied().collect();
                    place.insert(Tensor::from_f32(device, &[r, k], &columns, dtype)?).clone()
                }
            };
            let all = match &heights {
                Some(all) => all.clone(),
                None => heights.insert(Tensor::from_f32(device, &[n_max, r], &b, dtype)?).clone(),
            };
            let lambda_d =
                params.add(format!("{module}.vera_lambda_d"), &[r], Init::Values(vec![self.d_initial as f32; r]))?;
            let lambda_b = params.add(format!("{module}.vera_lambda_b"), &[n], Init::Zeros)?;
            // While λ_b is zero.
            params.first_gradient_may_vanish(lambda_d);
            let site = Stream::named(0, 0, &module).site;
            let b = all.slice(0, 0, n)?;
            linear.adapt(Vera { a: narrow, b, lambda_d, lambda_b, dropout, site });
            Ok(Attached { module, rank: r, params: n + r })
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
    use crate::ops::frozen_linear;
    use crate::testing::gradient;

    fn adapted(dropout: f64) -> (Single, ParamSet) {
        let mut trunk = Single::drawn(6, 40);
        let mut builder = ParamSetBuilder::new();
        let report = VeraConfig { rank: 4, dropout, ..VeraConfig::default() }.attach(&mut trunk, &mut builder).unwrap();
        assert_eq!(report.params(), 6 + 4);
        (trunk, builder.build(&Device::cpu(), DType::F32, 9).unwrap())
    }

    fn of(params: &ParamSet, name: &str) -> ParamId {
        params.find(&format!("q_proj.vera_lambda_{name}")).unwrap()
    }

    fn x() -> Tensor {
        Tensor::from_slice(&Device::cpu(), &[16, 40], &values("x", 640)).unwrap()
    }

    #[test]
    fn it_starts_from_the_trunk_and_lambda_b_moves_first() {
        let (trunk, params) = adapted(0.1);
        let bare = Single::drawn(6, 40).forward(&params, &x());
        assert_eq!(trunk.forward(&params, &x()), bare);
        let mut tape = Tape::training(&params, 0, 0);
        let y = trunk.linear.forward(&mut tape, &Var::constant(x())).unwrap();
        let dy = Tensor::from_slice(&Device::cpu(), &[16, 6], &values("dy", 96)).unwrap();
        let mut grads = Grads::zeros(&params).unwrap();
        tape.backward_with(&y, dy, &mut grads).unwrap();
        let report = grads.audit().unwrap();
        assert_eq!((report.silent.len(), report.zero_by_design.len()), (0, 1));
    }

    /// h = A x, and what makes B' of the vectors: nothing of x.
    #[test]
    fn of_the_input_nothing_is_kept() {
        let (trunk, params) = adapted(0.0);
        let mut tape = Tape::training(&params, 0, 0);
        let x = tape.input(x());
        trunk.linear.forward(&mut tape, &x).unwrap();
        assert!(tape.ledger().retained_bytes() < 16 * 40 * 4, "{}", tape.ledger().retained_bytes());
    }

    #[test]
    fn gradients_of_the_vectors_agree_with_central_differences() {
        let cpu = Device::cpu();
        let wide = |name: &str, dims: &[usize]| {
            let v: Vec<f64> = values(name, dims.iter().product()).into_iter().map(f64::from).collect();
            Tensor::from_slice(&cpu, dims, &v).unwrap()
        };
        let (w, a, b) = (wide("w", &[5, 7]), wide("a", &[3, 7]), wide("b", &[5, 3]));
        let draw = |name: &str, n: usize| values(name, n).into_iter().map(f64::from).collect::<Vec<_>>();
        let inputs = [(&[4, 7][..], draw("x", 28)), (&[5, 1][..], draw("lb", 5)), (&[3, 1][..], draw("ld", 3))];
        for (seed, dropout) in [(None, 0.0), (Some(2), 0.3)] {
            gradient::check(&inputs, seed, |tape, v| {
                let outer = linear(tape, &v[1], &v[2], None)?;
                let b = multiply(tape, &outer, &Var::constant(b.clone()))?;
                let a = Var::constant(a.clone());
                let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 1.0, dropout, site: 3 };
                frozen_linear(tape, &v[0], &FrozenWeight::new(w.clone())?, None, Some(update))
            })
            .unwrap();
        }
    }

    #[test]
    fn it_merges_and_comes_back() {
        let (mut trunk, params) = adapted(0.0);
        params.set(of(&params, "b"), &values("lb", 6)).unwrap();
        params.set(of(&params, "d"), &values("ld", 4)).unwrap();
        let before = trunk.forward(&params, &x());
        assert_ne!(before, Single::drawn(6, 40).forward(&params, &x()));
        trunk.linear.merge(&params).unwrap();
        let after = trunk.forward(&params, &x());
        assert!(before.iter().zip(&after).all(|(b, a)| (b - a).abs() < 1e-4 * b.abs().max(1.0)));
        assert!(trunk.linear.unmerge());
        assert_eq!(trunk.forward(&params, &x()), before);
    }

    #[test]
    fn what_could_not_learn_is_refused() {
        let attach = |config: VeraConfig| config.attach(&mut Single::drawn(4, 4), &mut ParamSetBuilder::new());
        for (config, argument) in [
            (VeraConfig { rank: 0, ..VeraConfig::default() }, "rank"),
            (VeraConfig { rank: 257, ..VeraConfig::default() }, "rank"),
            (VeraConfig { dropout: 1.0, ..VeraConfig::default() }, "dropout"),
            (VeraConfig { d_initial: 0.0, ..VeraConfig::default() }, "d_initial"),
            (VeraConfig { d_initial: f64::NAN, ..VeraConfig::default() }, "d_initial"),
        ] {
            assert!(attach(config).unwrap_err().to_string().contains(argument), "{argument}");
        }
    }
}
