//! A LoRA whose ranks carry a gate, and can be pruned by it: what SoRA and AdaLoRA share.

use std::collections::BTreeMap;

use super::attach::{Attached, for_targets};
use super::lora::validate;
use super::merge::add_low_rank;
use super::{AttachReport, Frozen, LinearAdapter, LoraConfig, Slot, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::ops::{LowRank, Mid};
use crate::optim::Carry;
use crate::rng::Stream;
use crate::tensor::{FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder};

/// The adapter on one linear: `y = x W₀ᵀ + b + s · (g ⊙ dropout(x) Aᵀ) Bᵀ`.
#[derive(Clone, Debug)]
pub struct GatedLora {
    /// `[r, k]`
    pub a: ParamId,
    /// `[n, r]`
    pub b: ParamId,
    /// `[r]`
    pub gate: ParamId,
    pub scale: f64,
    pub dropout: f64,
    pub site: u32,
}

impl LinearAdapter for GatedLora {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let (a, b, gate) = (tape.param(self.a)?, tape.param(self.b)?, tape.param(self.gate)?);
        let (scale, dropout, site) = (self.scale, self.dropout, self.site);
        frozen.with(tape, x, Some(LowRank { a: &a, b: &b, mid: Mid::Gate(&gate), scale, dropout, site }))
    }

    fn update(&self, params: &ParamSet, weight: &FrozenWeight) -> Result<Vec<f64>> {
        let shape @ [n, k] = [weight.n(), weight.k()];
        let mut update = vec![0.0; n * k];
        add_low_rank(&mut update, shape, params, [self.a, self.b], Some(self.gate), self.scale)?;
        Ok(update)
    }
}

/// Ranks that each adapted module has now. A module that is not here has the configuration's; one of rank 0 has no adapter left.
pub type Ranks = BTreeMap<String, usize>;

/// What a method calls the three parameters, and how they start.
pub(super) struct Parameters {
    pub op: &'static str,
    pub a: &'static str,
    pub b: &'static str,
    pub gate: &'static str,
    /// Of A, B and the gate, for a width of k. Those that move nothing until another has moved are marked.
    pub start: fn(usize) -> [(Init, bool); 3],
}

impl Parameters {
    /// Puts a gated LoRA on every target and declares its parameters.
    pub fn attach(
        &self,
        lora: &LoraConfig,
        trunk: &mut dyn Trunk,
        ranks: &Ranks,
        params: &mut ParamSetBuilder,
    ) -> Result<AttachReport> {
        let config = lora.to_peft(&[]);
        validate(&config)?;
        for_targets(trunk, &config, |linear, matcher| {
            let module = linear.name().to_string();
            let most = matcher.rank(&module);
            let rank = ranks.get(&module).copied().unwrap_or(most);
            let (n, k) = (linear.weight().n(), linear.weight().k());
            if rank > most {
                return Err(Error::value(self.op, "rank", format!("at most {most} for `{module}`"), rank));
            }
            if rank == 0 {
                linear.set_slot(Slot::Frozen);
                return Ok(Attached { module, rank, params: 0 });
            }
            let mut add = |end: &str, dims: &[usize], (init, waits): (Init, bool)| {
                let id = params.add(format!("{module}{end}"), dims, init)?;
                if waits {
                    params.first_gradient_may_vanish(id);
                }
                Ok::<ParamId, Error>(id)
            };
            let [a, b, gate] = (self.start)(k);
            let (a, b) = (add(self.a, &[rank, k], a)?, add(self.b, &[n, rank], b)?);
            let gate = add(self.gate, &[rank], gate)?;
            let site = Stream::named(0, 0, &module).site;
            let (scale, dropout) = (matcher.scale(&module), matcher.dropout());
            linear.adapt(GatedLora { a, b, gate, scale, dropout, site });
            Ok(Attached { module, rank, params: rank * (n + k + 1) })
        })
    }

    /// The modules that have a gate, with its id.
    pub fn gates(&self, params: &ParamSet) -> Result<Vec<(String, ParamId)>> {
        let mut gates = Vec::new();
        for id in params.ids() {
            if let Some(module) = params.get(id)?.name.strip_suffix(self.gate) {
                gates.push((module.to_string(), id));
            }
        }
        Ok(gates)
    }

    /// The parameter of `module` whose name ends so.
    pub fn find(&self, params: &ParamSet, module: &str, end: &str) -> Result<ParamId> {
        let name = format!("{module}{end}");
        params.find(&name).ok_or_else(|| Error::value(self.op, "params", format!("`{name}`"), "none"))
    }

    /// The ranks without those whose gate is zero, and how values and moments follow.
    pub fn prune(&self, ranks: &Ranks, params: &ParamSet) -> Result<(Ranks, Carry)> {
        let (mut next, mut carry) = (ranks.clone(), Carry::whole());
        for (module, id) in self.gates(params)? {
            let gates = params.view(params.master(), id)?.contiguous()?.to_f32_vec()?;
            let kept: Vec<usize> = (0..gates.len()).filter(|&r| gates[r] != 0.0).collect();
            let (old, new) = (gates.len(), kept.len());
            let matrix = |end: &str| {
                let param = params.get(self.find(params, &module, end)?)?;
                let expected = || Error::shape(self.op, "params", format!("a matrix `{}`", param.name), &param.dims);
                <[usize; 2]>::try_from(&param.dims[..]).map_err(|_| expected())
            };
            let ([_, k], [n, _]) = (matrix(self.a)?, matrix(self.b)?);
            let name = |end: &str| format!("{module}{end}");
            carry.elements(name(self.a), (0..new * k).map(|e| Some(kept[e / k] * k + e % k)).collect());
            carry.elements(name(self.b), (0..n * new).map(|e| Some(e / new * old + kept[e % new])).collect());
            carry.elements(name(self.gate), kept.iter().copied().map(Some).collect());
            next.insert(module, new);
        }
        Ok((next, carry))
    }
}
