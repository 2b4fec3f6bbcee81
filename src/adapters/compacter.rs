//! Compacter: bottlenecks whose weights are sums of Kronecker products, with one small factor for all of them.
//!
//! ```text
//! h ← h + W_u φ(W_d h + b_d) + b_u        W = Σ_i A_i ⊗ (L_i R_i)        A of every W the same
//! ```
//!
//! | numbers | of | count |
//! |---|---|---|
//! | A | all adapters together | `p³` |
//! | L, R of W_d `[r, k]` and of W_u `[k, r]` | one adapter | `2·(k + r)·ρ` |
//! | b_d, b_u | one adapter | `r + k` |
//!
//! with p products of rank ρ. Both weights are made once a call ([`kronecker`](mod@crate::ops::kronecker)) and then run as those of any
//! [bottleneck](super::Bottleneck): the update goes into the sub-layer's output without being written. A starts at N(0, 1/p), L and R at
//! Glorot's spread, R of W_u at zero, so that training starts from the trunk itself.
//!
//! Source: Karimi Mahabadi, Henderson and Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", NeurIPS 2021.

use super::attach::{AttachReport, Attached, Sides, for_places};
use super::{Insert, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::ops::{Activation, Gate, GranularScale, Update, activation, granular_scale, kronecker, linear};
use crate::tensor::{Init, ParamId, ParamSetBuilder};

const OP: &str = "compacter";

/// Shape and places. The published one is [`CompacterConfig::default`].
#[derive(Clone, Debug, PartialEq)]
pub struct CompacterConfig {
    /// r = k / reduction, rounded up to a multiple of p.
    pub reduction: usize,
    /// p: products in a sum. It must divide the trunk's width.
    pub products: usize,
    /// ρ
    pub rank: usize,
    pub activation: Activation,
    /// Last parts of the places' paths; empty for all.
    pub places: Vec<String>,
    pub sides: Sides,
}

impl Default for CompacterConfig {
    fn default() -> Self {
        let (activation, places) = (Activation::GeluTanh, Vec::new());
        CompacterConfig { reduction: 32, products: 4, rank: 1, activation, places, sides: Sides::Both }
    }
}

impl CompacterConfig {
    /// r of a trunk of `width` features.
    pub fn bottleneck(&self, width: usize) -> usize {
        (width / self.reduction.max(1)).max(1).next_multiple_of(self.products.max(1))
    }

    /// Trainable numbers of one adapter, beside the shared A.
    pub fn numel(&self, width: usize) -> usize {
        let r = self.bottleneck(width);
        2 * (width + r) * self.rank + width + r
    }

    /// Puts an adapter in every place that the configuration names, and declares the shared `compacter.rule`.
    ///
    /// # Errors
    /// [`Error::Value`] for a reduction, a rank or a number of products of 0 or products that do not divide the width; [`Error::NoMatch`] when
    /// no place matches.
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        for (argument, value) in [("reduction", self.reduction), ("products", self.products), ("rank", self.rank)] {
            if value == 0 {
                return Err(Error::value(OP, argument, "at least 1", value));
            }
        }
        let p = self.products;
        let rule = params.add("compacter.rule", &[p, p, p], Init::Normal { std: (1.0 / p as f64).sqrt() })?;
        params.first_gradient_may_vanish(rule);
        for_places(trunk, &self.places, self.sides, |point| {
            let module = point.name().to_string();
            let adapter = Compacter::declare(&format!("{module}.compacter"), point.width(), rule, self, params)?;
            point.insert(adapter);
            Ok(Attached { module, rank: self.bottleneck(point.width()), params: self.numel(point.width()) })
        })
    }
}

/// The factors of one weight, and the bias behind it.
#[derive(Clone, Debug, PartialEq)]
struct Projection {
    left: ParamId,
    right: ParamId,
    bias: ParamId,
}

impl Projection {
    /// Declares `<name>.left`, `<name>.right` and `<name>.bias` of a weight `[n, k]`.
    fn declare(
        name: &str,
        [n, k]: [usize; 2],
        config: &CompacterConfig,
        zero: bool,
        params: &mut ParamSetBuilder,
    ) -> Result<Self> {
        let (p, ranks) = (config.products, config.products * config.rank);
        let glorot = |rows: usize, cols: usize| Init::Normal { std: (2.0 / (rows + cols) as f64).sqrt() };
        let left = params.add(format!("{name}.left"), &[n / p, ranks], glorot(n / p, ranks))?;
        let start = if zero { Init::Zeros } else { glorot(ranks, k / p) };
        let right = params.add(format!("{name}.right"), &[ranks, k / p], start)?;
        if zero {
            params.first_gradient_may_vanish(left);
        }
        Ok(Projection { left, right, bias: params.add(format!("{name}.bias"), &[n], Init::Zeros)? })
    }

    /// Its weight and its bias.
    fn values(&self, tape: &mut Tape, rule: &Var) -> Result<(Var, Var)> {
        let (left, right) = (tape.param(self.left)?, tape.param(self.right)?);
        Ok((kronecker(tape, rule, &left, &right)?, tape.param(self.bias)?))
    }
}

/// One adapter in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Compacter {
    rule: ParamId,
    down: Projection,
    up: Projection,
    activation: Activation,
}

impl Compacter {
    /// Declares the factors `<name>.down…` and `<name>.up…` of an adapter after `width` features.
    ///
    /// # Errors
    /// [`Error::Value`] for products that do not divide the width.
    pub fn declare(
        name: &str,
        width: usize,
        rule: ParamId,
        config: &CompacterConfig,
        params: &mut ParamSetBuilder,
    ) -> Result<Self> {
        if config.products == 0 || !width.is_multiple_of(config.products) {
            return Err(Error::value(OP, "products", format!("a divisor of the width {width}"), config.products));
        }
        let r = config.bottleneck(width);
        let down = Projection::declare(&format!("{name}.down"), [r, width], config, false, params)?;
        let up = Projection::declare(&format!("{name}.up"), [width, r], config, true, params)?;
        for id in [down.left, down.right, down.bias] {
            params.first_gradient_may_vanish(id);
        }
        Ok(Compacter { rule, down, up, activation: config.activation })
    }
}

impl Insert for Compacter {
    fn forward(&self, tape: &mut Tape, _: &Var, output: &Var) -> Result<Var> {
        let rule = tape.param(self.rule)?;
        let (weight, bias) = self.down.values(tape, &rule)?;
        let low = linear(tape, output, &weight, Some(&bias))?;
        let narrow = activation(tape, &low, self.activation)?;
        let (weight, bias) = self.up.values(tape, &rule)?;
        let update = Some(Update::Product { x: &narrow, weight: &weight, heads: 1 });
        granular_scale(tape, output, &GranularScale { update, bias: Some(&bias), ..GranularScale::new(Gate::Open) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Grads;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::tensor::{ParamSet, Tensor};
    use crate::testing::normal;

    const WIDTH: usize = 6;

    fn config() -> CompacterConfig {
        CompacterConfig { reduction: 2, products: 2, rank: 2, ..CompacterConfig::default() }
    }

    /// Two adapters with one rule, and the value between which they stand.
    fn two() -> (ParamSet, [Compacter; 2]) {
        let mut params = ParamSetBuilder::new();
        let rule = params.add("compacter.rule", &[2, 2, 2], Init::Zeros).unwrap();
        let mut declare = |name: &str| Compacter::declare(name, WIDTH, rule, &config(), &mut params).unwrap();
        let adapters = [declare("a"), declare("b")];
        params.add("h", &[4, WIDTH], Init::Zeros).unwrap();
        let set = params.build(&Device::cpu(), DType::F64, 1).unwrap();
        for id in set.ids().collect::<Vec<_>>() {
            let param = set.get(id).unwrap();
            set.set(id, &normal(&param.name.clone(), param.numel())).unwrap();
        }
        (set, adapters)
    }

    fn loss(set: &ParamSet, adapters: &[Compacter], grads: Option<&mut Grads>) -> f64 {
        let mut tape = Tape::deterministic(set);
        let mut h = tape.param(set.find("h").unwrap()).unwrap();
        for adapter in adapters {
            h = adapter.forward(&mut tape, &h, &h).unwrap();
        }
        let c: Vec<f64> = normal("c", 4 * WIDTH).into_iter().map(f64::from).collect();
        let out = h.tensor().to_f64_vec().unwrap();
        if let Some(grads) = grads {
            let dy = Tensor::from_slice(&Device::cpu(), h.dims(), &c).unwrap();
            tape.backward_with(&h, dy, grads).unwrap();
        }
        out.iter().zip(&c).map(|(y, c)| y * c).sum()
    }

    #[test]
    fn every_factor_has_the_gradient_of_central_differences() {
        const STEP: f32 = 1.0 / 8192.0;
        let (set, adapters) = two();
        let mut grads = Grads::zeros(&set).unwrap();
        loss(&set, &adapters, Some(&mut grads));
        for id in set.ids().collect::<Vec<_>>() {
            let held = set.tensor(id).unwrap().to_f32_vec().unwrap();
            let got = grads.view(id).unwrap().to_f64_vec().unwrap();
            for e in 0..held.len() {
                let at = |step: f32| {
                    let mut moved = held.clone();
                    moved[e] += step;
                    set.set(id, &moved).unwrap();
                    (f64::from(moved[e]), loss(&set, &adapters, None))
                };
                let ((low, below), (high, above)) = (at(-STEP), at(STEP));
                let want = (above - below) / (high - low);
                // The third derivative times STEP² / 6 is below 1e-7 of a few hundreds.
                let near = (got[e] - want).abs() < 1e-5 * want.abs().max(1.0);
                assert!(near, "{}[{e}]: {} for {want}", set.get(id).unwrap().name, got[e]);
            }
            set.set(id, &held).unwrap();
        }
    }

    /// The adapter with its weights written out as sums of Kronecker products.
    #[test]
    fn it_is_the_bottleneck_with_the_weights_that_the_factors_make() {
        let (set, [adapter, _]) = two();
        let of = |name: &str| set.tensor(set.find(name).unwrap()).unwrap().to_f64_vec().unwrap();
        let rule = of("compacter.rule");
        let weight = |side: &str, n: usize, k: usize| {
            let (left, right) = (of(&format!("a.{side}.left")), of(&format!("a.{side}.right")));
            let one = move |row: usize, col: usize| -> f64 {
                let (q, o, p, c) = (row / (n / 2), row % (n / 2), col / (k / 2), col % (k / 2));
                (0..4).map(|ir| rule[(ir / 2 * 2 + q) * 2 + p] * left[o * 4 + ir] * right[ir * (k / 2) + c]).sum()
            };
            (0..n).flat_map(|row| (0..k).map(move |col| (row, col))).map(|(row, col)| one(row, col)).collect::<Vec<_>>()
        };
        let (r, h) = (config().bottleneck(WIDTH), of("h"));
        let (down, up) = (weight.clone()("down", r, WIDTH), weight("up", WIDTH, r));
        let (down_bias, up_bias) = (of("a.down.bias"), of("a.up.bias"));
        let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
        let mut want = h.clone();
        for (row, want) in h.chunks(WIDTH).zip(want.chunks_mut(WIDTH)) {
            let along = |w: &[f64], x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            let narrow: Vec<f64> =
                (0..r).map(|j| gelu(along(&down[j * WIDTH..(j + 1) * WIDTH], row) + down_bias[j])).collect();
            for (j, want) in want.iter_mut().enumerate() {
                *want += along(&up[j * r..(j + 1) * r], &narrow) + up_bias[j];
            }
        }
        let mut tape = Tape::inference(&set);
        let h = tape.param(set.find("h").unwrap()).unwrap();
        let got = adapter.forward(&mut tape, &h, &h).unwrap().tensor().to_f64_vec().unwrap();
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-12 * w.abs().max(1.0)));
    }

    #[test]
    fn it_starts_at_the_trunk_and_counts_its_numbers() {
        let mut params = ParamSetBuilder::new();
        let config = CompacterConfig::default();
        let rule = params.add("compacter.rule", &[4, 4, 4], Init::Ones).unwrap();
        let adapter = Compacter::declare("m", 768, rule, &config, &mut params).unwrap();
        let set = params.build(&Device::cpu(), DType::F32, 0).unwrap();
        assert_eq!((config.bottleneck(768), config.bottleneck(64)), (24, 4));
        // 2·(768 + 24) in the factors, 792 in the biases.
        assert_eq!((config.numel(768), set.numel()), (2376, 2376 + 64));
        let h = Var::constant(Tensor::from_slice(&Device::cpu(), &[2, 768], &normal("h", 1536)).unwrap());
        let y = adapter.forward(&mut Tape::inference(&set), &h, &h).unwrap();
        assert_eq!(y.tensor().to_f32_vec().unwrap(), h.tensor().to_f32_vec().unwrap());
    }

    #[test]
    fn products_must_divide() {
        let mut params = ParamSetBuilder::new();
        let rule = params.add("rule", &[4, 4, 4], Init::Ones).unwrap();
        let error = Compacter::declare("m", 6, rule, &CompacterConfig::default(), &mut params).unwrap_err().to_string();
        assert!(error.contains("a divisor of the width 6"), "{error}");
    }
}
