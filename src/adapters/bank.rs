//! Many LoRAs on one trunk: each row of a batch takes the adapter of its own slot, trained together in one step or served together.
//!
//! ```text
//! y[i] = x[i] W₀ᵀ + b + s_g · dropout(x[i]) A_gᵀ B_gᵀ        g: the slot of row i
//! ```
//!
//! `A [slots, r, k]` and `B [slots, n, r]` are two parameters per linear. A slot takes any rank up to r and is filled by [`LoraBank::put`],
//! in place: what has been captured or planned stays valid. An empty slot is zero, computes the trunk and learns nothing.
//! Which rows belong to which slot is told to all linears at once by a [`Route`], before each forward pass.

use std::sync::{Arc, RwLock};

use super::attach::{AttachReport, Attached, for_targets};
use super::{Frozen, LinearAdapter, Trunk};
use crate::autograd::{Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::peft::{Modules, PeftConfig};
use crate::ops::frozen_linear::MAX_RANK;
use crate::ops::{Bank, Segments, frozen_linear_segmented};
use crate::rng::Stream;
use crate::tensor::{Init, ParamId, ParamSet, ParamSetBuilder, Tensor};

const OP: &str = "lora_bank";

/// Which rows of the batch belong to which slot; clones tell each other.
#[derive(Clone, Debug, Default)]
pub struct Route(Arc<RwLock<Option<Segments>>>);

impl Route {
    /// For the forward passes from here on. What has been recorded before keeps its own.
    pub fn set(&self, segments: Segments) {
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(segments);
    }

    fn get(&self) -> Result<Segments> {
        let set = self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        set.ok_or_else(|| Error::value(OP, "route", "segments, set before the forward pass", "none"))
    }
}

/// The LoRAs on one linear.
#[derive(Clone, Debug)]
pub struct LoraBank {
    pub a: ParamId,
    pub b: ParamId,
    module: String,
    /// `[slots]`
    scales: Tensor,
    slots: usize,
    rank: usize,
    /// `[n, k]` of the linear.
    shape: [usize; 2],
    dropout: f64,
    site: u32,
    route: Route,
}

/// What a slot is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotValues<'a> {
    pub rank: usize,
    /// `[rank, k]`
    pub a: &'a [f32],
    /// `[n, rank]`
    pub b: &'a [f32],
    pub scale: f64,
}

impl LoraBank {
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Fills a slot, in place of what was there; moments of an optimizer are the caller's. Nothing is written where there is an error.
    ///
    /// # Errors
    /// [`Error::Value`] for a slot that is not there, a rank beyond the bank's, a scale that is not finite; [`Error::Shape`] for another
    /// number of values.
    pub fn put(&self, params: &ParamSet, slot: usize, values: &SlotValues) -> Result<()> {
        let (r, [n, k]) = (self.rank, self.shape);
        let SlotValues { rank, a, b, scale } = *values;
        if slot >= self.slots {
            return Err(Error::value(OP, "slot", format!("below {}", self.slots), slot));
        }
        if rank == 0 || rank > r {
            return Err(Error::value(OP, "rank", format!("1 to {r}, which this bank has room for"), rank));
        }
        if !scale.is_finite() {
            return Err(Error::value(OP, "scale", "a finite number", scale));
        }
        for (name, values, dims) in [("a", a, [rank, k]), ("b", b, [n, rank])] {
            if values.len() != dims[0] * dims[1] {
                return Err(Error::shape(OP, name, format!("{dims:?} values"), &[values.len()]));
            }
        }
        let (mut wide_a, mut wide_b) = (vec![0.0; r * k], vec![0.0; n * r]);
        wide_a[..rank * k].copy_from_slice(a);
        for (wide, b) in wide_b.chunks_mut(r).zip(b.chunks(rank)) {
            wide[..rank].copy_from_slice(b);
        }
        params.set_at(self.a, slot, &wide_a)?;
        params.set_at(self.b, slot, &wide_b)?;
        self.scales.slice(0, slot, 1)?.overwrite(&[scale as f32])
    }

    /// Fills a slot with an adapter that has learned nothing yet: A drawn as a LoRA's, B zero.
    ///
    /// # Errors
    /// As [`LoraBank::put`].
    pub fn start(&self, params: &ParamSet, slot: usize, rank: usize, scale: f64, seed: u64) -> Result<()> {
        let ([n, k], rank) = (self.shape, rank.min(MAX_RANK + 1));
        let (stream, bound) = (Stream::named(seed, 0, &self.module), 1.0 / (k as f64).sqrt());
        let a: Vec<f32> = (0..(rank * k) as u64).map(|e| ((2.0 * stream.uniform(e) - 1.0) * bound) as f32).collect();
        self.put(params, slot, &SlotValues { rank, a: &a, b: &vec![0.0; n * rank], scale })
    }

    /// Empties a slot.
    ///
    /// # Errors
    /// As [`LoraBank::put`].
    pub fn clear(&self, params: &ParamSet, slot: usize) -> Result<()> {
        let [n, k] = self.shape;
        self.put(params, slot, &SlotValues { rank: 1, a: &vec![0.0; k], b: &vec![0.0; n], scale: 0.0 })
    }
}

impl LinearAdapter for LoraBank {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let (a, b, segments) = (tape.param(self.a)?, tape.param(self.b)?, self.route.get()?);
        let bank = Bank { a: &a, b: &b, scales: &self.scales, dropout: self.dropout, site: self.site };
        let y = frozen_linear_segmented(tape, x, frozen.weight, frozen.bias, bank, &segments)?;
        frozen.after.apply(tape, y)
    }
}

/// Where banks go and how large they are.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraBankConfig {
    pub slots: usize,
    /// The largest rank that a slot takes.
    pub rank: usize,
    pub dropout: f64,
    pub targets: Modules,
}

impl LoraBankConfig {
    /// Puts a bank of empty slots on every linear that the targets pick and declares its parameters: `<module>.bank_A`, `<module>.bank_B`.
    /// The banks share the route.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when nothing matches; [`Error::Value`] for no slots, a rank outside 1..=256, a dropout outside [0, 1).
    pub fn attach(
        &self,
        trunk: &mut dyn Trunk,
        params: &mut ParamSetBuilder,
        device: &Device,
    ) -> Result<(Vec<LoraBank>, Route, AttachReport)> {
        let LoraBankConfig { slots, rank, dropout, .. } = *self;
        if slots == 0 {
            return Err(Error::value(OP, "slots", "at least 1", slots));
        }
        if rank == 0 || rank > MAX_RANK {
            return Err(Error::value(OP, "rank", format!("1 to {MAX_RANK}"), rank));
        }
        if !(0.0..1.0).contains(&dropout) {
            return Err(Error::value(OP, "dropout", "a probability in [0, 1)", dropout));
        }
        let (mut banks, route) = (Vec::new(), Route::default());
        let report = for_targets(trunk, &PeftConfig::new(self.targets.clone()), |linear, _| {
            let module = linear.name().to_string();
            let shape @ [n, k] = [linear.weight().n(), linear.weight().k()];
            let a = params.add(format!("{module}.bank_A"), &[slots, rank, k], Init::Zeros)?;
            let b = params.add(format!("{module}.bank_B"), &[slots, n, rank], Init::Zeros)?;
            params.first_gradient_may_vanish(a);
            params.first_gradient_may_vanish(b);
            let (scales, site) = (Tensor::zeros(device, &[slots], DType::F32)?, Stream::named(0, 0, &module).site);
            let (route, module_name) = (route.clone(), module.clone());
            let bank = LoraBank { a, b, module: module_name, scales, slots, rank, shape, dropout, site, route };
            linear.adapt(bank.clone());
            banks.push(bank);
            Ok(Attached { module, rank, params: slots * rank * (n + k) })
        })?;
        Ok((banks, route, report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::{AdaptedLinear, AdaptedNorm, InsertPoint, Lora};
    use crate::autograd::Grads;
    use crate::optim::{AdamW, AdamWConfig};
    use crate::tensor::FrozenWeight;
    use crate::testing::normal;

    struct One(AdaptedLinear);

    impl Trunk for One {
        fn linears(&mut self) -> Result<Vec<&mut AdaptedLinear>> {
            Ok(vec![&mut self.0])
        }

        fn inserts(&mut self) -> Result<Vec<&mut InsertPoint>> {
            Ok(Vec::new())
        }

        fn norms(&mut self) -> Result<Vec<&mut AdaptedNorm>> {
            Ok(Vec::new())
        }
    }

    const SHAPE: [usize; 2] = [12, 20];
    const RANKS: [usize; 3] = [2, 5, 1];
    /// Powers of two: the op for one adapter multiplies by it elsewhere.
    const SCALES: [f64; 3] = [0.5, 1.0, 2.0];

    fn trunk() -> One {
        let weight = Tensor::from_slice(&Device::cpu(), &SHAPE, &normal("w", SHAPE[0] * SHAPE[1])).unwrap();
        One(AdaptedLinear::new("fc", FrozenWeight::new(weight).unwrap(), None))
    }

    fn bank(trunk: &mut One) -> (LoraBank, Route, ParamSet) {
        let config = LoraBankConfig { slots: 3, rank: 5, dropout: 0.3, targets: Modules::Names(vec!["fc".into()]) };
        let mut builder = ParamSetBuilder::new();
        let (mut banks, route, report) = config.attach(trunk, &mut builder, &Device::cpu()).unwrap();
        assert_eq!(report.params(), 3 * 5 * 32);
        (banks.remove(0), route, builder.build(&Device::cpu(), DType::F32, 0).unwrap())
    }

    /// Three steps on rows of some slots, dropout on.
    fn train(trunk: &One, params: &ParamSet, rows: &[(usize, usize)], route: impl Fn()) {
        let mut optimizer = AdamW::new(AdamWConfig::default(), params).unwrap();
        let mut grads = Grads::zeros(params).unwrap();
        let of = |name: &str, width: usize| -> Vec<f32> {
            rows.iter().flat_map(|&(slot, rows)| normal(&format!("{name}{slot}"), rows * width)).collect()
        };
        let m = rows.iter().map(|r| r.1).sum();
        for step in 0..3 {
            let tensor =
                |name: &str, width: usize| Tensor::from_slice(&Device::cpu(), &[m, width], &of(name, width)).unwrap();
            route();
            let mut tape = Tape::training(params, 4, step);
            let y = trunk.0.forward(&mut tape, &Var::constant(tensor("x", SHAPE[1]))).unwrap();
            tape.backward_with(&y, tensor("dy", SHAPE[0]), &mut grads).unwrap();
            optimizer.step(params, &grads, 1e-2).unwrap();
        }
    }

    #[test]
    fn adapters_learn_the_same_together_and_apart() {
        let rows = [3, 0, 4];
        let [n, k] = SHAPE;
        let mut together = trunk();
        let (bank, route, params) = bank(&mut together);
        for (slot, rank) in RANKS.into_iter().enumerate() {
            bank.start(&params, slot, rank, SCALES[slot], slot as u64).unwrap();
        }
        let all: Vec<(usize, usize)> = rows.into_iter().enumerate().collect();
        train(&together, &params, &all, || route.set(Segments::new(&Device::cpu(), &rows).unwrap()));
        let values = |id| params.tensor(id).unwrap().to_f32_vec().unwrap();
        let (a, b) = (values(bank.a), values(bank.b));

        for (slot, rank) in RANKS.into_iter().enumerate() {
            let mut alone = trunk();
            let mut builder = ParamSetBuilder::new();
            let (stream, bound) = (Stream::named(slot as u64, 0, "fc"), 1.0 / (k as f64).sqrt());
            let draw = |e: u64| ((2.0 * stream.uniform(e) - 1.0) * bound) as f32;
            let start: Vec<f32> = (0..(rank * k) as u64).map(draw).collect();
            let own_a = builder.add("a", &[rank, k], Init::Values(start.clone())).unwrap();
            let own_b = builder.add("b", &[n, rank], Init::Zeros).unwrap();
            let own = builder.build(&Device::cpu(), DType::F32, 0).unwrap();
            let scale = SCALES[slot];
            alone.0.adapt(Lora { a: own_a, b: own_b, scale, dropout: 0.3, site: bank.site });
            train(&alone, &own, &[(slot, rows[slot])], || ());
            let values = |id| own.tensor(id).unwrap().to_f32_vec().unwrap();
            let (of_a, of_b) = (&a[slot * 5 * k..][..5 * k], &b[slot * n * 5..][..n * 5]);
            assert!(of_a[..rank * k] == values(own_a) && (rows[slot] == 0 || of_a[..rank * k] != start));
            assert!(of_a[rank * k..].iter().all(|&v| v == 0.0));
            for (row, own) in of_b.chunks(5).zip(values(own_b).chunks(rank)) {
                assert!(row[..rank] == *own && row[rank..].iter().all(|&v| v == 0.0));
            }
        }
    }

    #[test]
    fn a_slot_takes_no_more_than_it_has_room_for() {
        let mut trunk = trunk();
        let (bank, _, params) = bank(&mut trunk);
        let before = params.master().to_f32_vec().unwrap();
        let argument = |slot, rank, scale| match bank.start(&params, slot, rank, scale, 0) {
            Err(Error::Value { argument, .. }) => argument,
            other => panic!("{other:?}"),
        };
        assert_eq!((argument(3, 1, 1.0), argument(0, 6, 1.0), argument(0, usize::MAX, 1.0)), ("slot", "rank", "rank"));
        assert_eq!((argument(0, 0, 1.0), argument(0, 1, f64::NAN)), ("rank", "scale"));
        let short = SlotValues { rank: 1, a: &[0.0; 19], b: &[0.0; 12], scale: 1.0 };
        assert!(matches!(bank.put(&params, 0, &short), Err(Error::Shape { argument: "a", .. })));
        assert_eq!(params.master().to_f32_vec().unwrap(), before);
        // Without a route nobody knows whose the rows are.
        let x = Var::constant(Tensor::zeros(&Device::cpu(), &[1, 20], DType::F32).unwrap());
        let refused = trunk.0.forward(&mut Tape::inference(&params), &x);
        assert!(matches!(refused, Err(Error::Value { argument: "route", .. })), "{refused:?}");
    }

    #[test]
    fn a_slot_is_swapped_in_place() {
        let mut trunk = trunk();
        let (bank, route, params) = bank(&mut trunk);
        route.set(Segments::from_ids(&Device::cpu(), &[0, 2], 3).unwrap());
        let x = Var::constant(Tensor::from_slice(&Device::cpu(), &[2, 20], &normal("x", 40)).unwrap());
        let run = || {
            let y = trunk.0.forward(&mut Tape::inference(&params), &x).unwrap();
            y.tensor().to_f32_vec().unwrap()
        };
        let empty = run();
        let address = params.tensor(bank.a).unwrap().buffer().id();
        let (a, b) = (normal("a", 40), normal("b", 24));
        bank.put(&params, 2, &SlotValues { rank: 2, a: &a, b: &b, scale: 2.0 }).unwrap();
        let filled = run();
        assert!(filled[..12] == empty[..12] && filled[12..] != empty[12..]);
        bank.clear(&params, 2).unwrap();
        assert_eq!(run(), empty);
        assert_eq!(params.tensor(bank.a).unwrap().buffer().id(), address);
    }
}
