//! Visual cue enhancement: the tokens of one depth look, by deformable attention, at the maps of several.
//!
//! ```text
//! q = LN_q(f_a)      V = LN_f(f_1 ∥ .. ∥ f_l) W_vᵀ + b_v      Δ = q W_offᵀ + b_off      logits = q W_attᵀ + b_att
//! f* = f_a + deformable_sample(V, Δ, logits) W_oᵀ + b_o       and LN(f*), with `post_norm`
//! ```
//!
//! `f_1 .. f_l` are hidden states `[b, t, d]` of one size, `f_a` the one of them that is the anchor. A patch asks from its own place, tokens
//! before the patches from the middle of the image. Each of `heads` heads looks at `points` places of each of the l maps.
//!
//! Offsets start on a star: head m of h looks along the angle 2πm/h, to the border of a square, `k + 1` cells far at its point k. W_off and
//! W_att start at zero, W_v and W_o at Xavier's U(−√(3/d), √(3/d)), biases at zero: f* is not f_a at the start.
//!
//! Source: Jiao et al., "From Holistic to Localized: Local Enhanced Adapters for Efficient Visual Instruction Fine-Tuning", 2024. Its
//! text takes the deepest state as the anchor and normalises f*; its released code takes the shallowest and does not.

use super::{AttachReport, Attached, Combine, Sites, TapPoint, Trunk};
use crate::autograd::{Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::{Level, Sampling, deformable_sample, join, layer_norm, linear, scale_add};
use crate::tensor::{Init, ParamId, ParamSetBuilder, Tensor};

const OP: &str = "vce";
/// ε of the norms.
const EPS: f64 = 1e-6;

/// How hidden states are combined.
#[derive(Clone, Debug, PartialEq)]
pub struct VceConfig {
    /// Depths whose hidden states are maps, in ascending order: depth i is what block i reads.
    pub depths: Vec<usize>,
    /// Which of them asks: an index into `depths`.
    pub anchor: usize,
    pub heads: usize,
    /// Places that a head looks at in each map.
    pub points: usize,
    pub post_norm: bool,
}

impl VceConfig {
    /// The last four depths of a place at `depth`, the deepest asking, with post-norm, and 16 heads of 4 points.
    pub fn before(depth: usize) -> Self {
        let depths: Vec<usize> = (depth.saturating_sub(3)..=depth).collect();
        VceConfig { anchor: depths.len() - 1, depths, heads: 16, points: 4, post_norm: true }
    }

    /// Puts the module in the trunk's tap and declares its parameters, `vce.…`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a trunk without a tap; [`Error::Value`] for depths that are not there, an anchor outside them, heads
    /// that do not divide the width, more samples than a head may have.
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        let device = trunk.linears()?.first().map_or_else(Device::cpu, |l| l.weight().device().clone());
        let dtype = trunk.linears()?.first().map_or(DType::F32, |l| l.weight().dtype());
        let Some(tap) = trunk.tap()? else {
            let hint = "use a trunk of patches, such as a vision transformer".into();
            return Err(Error::Unsupported {
                op: OP,
                what: "this trunk has no place where hidden states meet".into(),
                hint,
            });
        };
        let vce = self.declare(tap, params, &device, dtype)?;
        let numel = vce.numel;
        tap.insert(vce)?;
        let attached = vec![Attached { module: OP.into(), rank: 0, params: numel }];
        Ok(AttachReport { attached, sites: Sites::Places, ..AttachReport::default() })
    }

    fn declare(&self, tap: &TapPoint, params: &mut ParamSetBuilder, device: &Device, dtype: DType) -> Result<Vce> {
        let (d, heads, points, l) = (tap.width(), self.heads, self.points, self.depths.len());
        if self.anchor >= l {
            return Err(Error::value(OP, "anchor", format!("below {l}, the number of depths"), self.anchor));
        }
        if heads == 0 || !d.is_multiple_of(heads) {
            return Err(Error::value(OP, "heads", format!("a divisor of {d} features"), heads));
        }
        if points == 0 || l * points > crate::ops::deformable_sample::MAX_SAMPLES {
            let most = crate::ops::deformable_sample::MAX_SAMPLES / l;
            return Err(Error::value(OP, "points", format!("1 to {most} for {l} depths"), points));
        }
        let samples = heads * l * points;
        let mut numel = 0;
        let mut add = |name: &str, dims: &[usize], init: Init| {
            numel += dims.iter().product::<usize>();
            params.add(format!("vce.{name}"), dims, init)
        };
        let mut norm = |name: &str| {
            Ok::<_, Error>([
                add(&format!("{name}.weight"), &[d], Init::Ones)?,
                add(&format!("{name}.bias"), &[d], Init::Zeros)?,
            ])
        };
        let (norm_query, norm_value) = (norm("norm_query")?, norm("norm_value")?);
        let norm_after = if self.post_norm { Some(norm("norm_after")?) } else { None };
        let mut dense = |name: &str, n: usize, weight: Init, bias: Init| {
            Ok::<_, Error>([
                add(&format!("{name}.weight"), &[n, d], weight)?,
                add(&format!("{name}.bias"), &[n], bias)?,
            ])
        };
        let xavier = Init::Uniform { bound: (3.0 / d as f64).sqrt() };
        let value = dense("value", d, xavier.clone(), Init::Zeros)?;
        let offsets = dense("offsets", 2 * samples, Init::Zeros, Init::Values(star(heads, l, points)))?;
        let logits = dense("logits", samples, Init::Zeros, Init::Zeros)?;
        let output = dense("output", d, xavier, Init::Zeros)?;
        // While what reads the query is zero.
        norm_query.into_iter().for_each(|id| params.first_gradient_may_vanish(id));
        let (grid, special) = (tap.grid(), tap.special());
        let tokens = special + grid[0] * grid[1];
        let levels = (0..l).map(|i| Level { height: grid[0], width: grid[1], first: i * tokens + special }).collect();
        let references = references(grid, special, device, dtype)?;
        let (depths, anchor) = (self.depths.clone(), self.anchor);
        Ok(Vce {
            norm_query,
            norm_value,
            norm_after,
            value,
            offsets,
            logits,
            output,
            depths,
            anchor,
            heads,
            levels,
            references,
            numel,
        })
    }
}

/// The offsets that every query starts with.
fn star(heads: usize, levels: usize, points: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(2 * heads * levels * points);
    for head in 0..heads {
        let angle = std::f64::consts::TAU * head as f64 / heads as f64;
        let (x, y) = (angle.cos(), angle.sin());
        let most = x.abs().max(y.abs());
        for _ in 0..levels {
            for point in 1..=points {
                out.extend([x, y].map(|v| (v / most * point as f64) as f32));
            }
        }
    }
    out
}

/// Where each token asks from: x before y.
fn references([height, width]: [usize; 2], special: usize, device: &Device, dtype: DType) -> Result<Tensor> {
    let mut at = vec![0.5; 2 * special];
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        at.extend([(x as f64 + 0.5) / width as f64, (y as f64 + 0.5) / height as f64]);
    }
    Tensor::from_slice(&Device::cpu(), &[at.len() / 2, 2], &at)?.cast(dtype.accumulator())?.to_device(device)
}

/// The module in its place.
#[derive(Clone, Debug)]
pub struct Vce {
    /// γ and β.
    norm_query: [ParamId; 2],
    norm_value: [ParamId; 2],
    norm_after: Option<[ParamId; 2]>,
    /// Weight and bias.
    value: [ParamId; 2],
    offsets: [ParamId; 2],
    logits: [ParamId; 2],
    output: [ParamId; 2],
    depths: Vec<usize>,
    anchor: usize,
    heads: usize,
    levels: Vec<Level>,
    references: Tensor,
    numel: usize,
}

fn normed(tape: &mut Tape, x: &Var, [gamma, beta]: [ParamId; 2]) -> Result<Var> {
    let (gamma, beta) = (tape.param(gamma)?, tape.param(beta)?);
    layer_norm(tape, x, &gamma, Some(&beta), EPS)
}

fn dense(tape: &mut Tape, x: &Var, [weight, bias]: [ParamId; 2]) -> Result<Var> {
    let (weight, bias) = (tape.param(weight)?, tape.param(bias)?);
    linear(tape, x, &weight, Some(&bias))
}

impl Combine for Vce {
    fn depths(&self) -> &[usize] {
        &self.depths
    }

    fn forward(&self, tape: &mut Tape, hidden: &[Var]) -> Result<Var> {
        let Some(anchor) = hidden.get(self.anchor).filter(|_| hidden.len() == self.depths.len()) else {
            let expected = format!("{} of them, one for each depth", self.depths.len());
            return Err(Error::value(OP, "hidden", expected, hidden.len()));
        };
        if let Some(other) = hidden.iter().find(|h| h.dims() != anchor.dims()) {
            return Err(Error::shape(OP, "hidden", format!("{:?} as the anchor has", anchor.dims()), other.dims()));
        }
        let mut all = hidden[0].clone();
        for map in &hidden[1..] {
            all = join(tape, &all, map)?;
        }
        let all = normed(tape, &all, self.norm_value)?;
        let value = dense(tape, &all, self.value)?;
        let query = normed(tape, anchor, self.norm_query)?;
        let offsets = dense(tape, &query, self.offsets)?;
        let logits = dense(tape, &query, self.logits)?;
        let (references, levels, heads) = (&self.references, &self.levels[..], self.heads);
        let sampling = Sampling { value: &value, offsets: &offsets, logits: &logits, references, levels, heads };
        let found = deformable_sample(tape, &sampling)?;
        let made = dense(tape, &found, self.output)?;
        let enhanced = scale_add(tape, anchor, &made, 1.0)?;
        match self.norm_after {
            Some(norm) => normed(tape, &enhanced, norm),
            None => Ok(enhanced),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::fixture::values;
    use crate::tensor::ParamSet;

    /// A map of 2 x 3 and one token before it.
    fn place() -> TapPoint {
        TapPoint::new(2, 4, [2, 3], 1)
    }

    fn config() -> VceConfig {
        VceConfig { depths: vec![0, 2], anchor: 1, heads: 2, points: 2, post_norm: false }
    }

    fn declared(config: &VceConfig) -> Result<(Vce, ParamSet)> {
        let mut builder = ParamSetBuilder::new();
        let vce = config.declare(&place(), &mut builder, &Device::cpu(), DType::F64)?;
        assert_eq!(vce.numel, builder_numel(&vce));
        Ok((vce, builder.build(&Device::cpu(), DType::F64, 3)?))
    }

    /// Two norms, V and output of d² + d, offsets and logits of 3 · h·l·p rows.
    fn builder_numel(vce: &Vce) -> usize {
        let d = 4;
        2 * (2 * d) + 2 * (d * d + d) + 3 * 8 * (d + 1) + if vce.norm_after.is_some() { 2 * d } else { 0 }
    }

    fn hidden(name: &str) -> Var {
        let v: Vec<f64> = values(name, 2 * 7 * 4).into_iter().map(f64::from).collect();
        Var::constant(Tensor::from_slice(&Device::cpu(), &[2, 7, 4], &v).unwrap())
    }

    /// Heads along 0 and π, points one and two cells far; a patch asks from the middle of its cell.
    #[test]
    fn golden_starts() {
        let got = star(4, 1, 2);
        let want = [1.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 2.0, -1.0, 0.0, -2.0, 0.0, 0.0, -1.0, 0.0, -2.0];
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?}");
        // Along a diagonal both reach the border of the square.
        assert!(star(8, 1, 1)[2..4].iter().all(|v| (v - 1.0).abs() < 1e-6));
        let at = references([2, 4], 1, &Device::cpu(), DType::F32).unwrap().to_f32_vec().unwrap();
        assert_eq!((&at[..4], at.len()), (&[0.5, 0.5, 0.125, 0.25][..], 18));
    }

    /// With nothing to look at but itself at an offset of 0, one head and one point, f* = f_a + LN(f_a) W_vᵀ W_oᵀ.
    #[test]
    fn a_query_that_looks_at_itself_is_a_linear_layer() {
        let config = VceConfig { depths: vec![2], anchor: 0, heads: 1, points: 1, post_norm: false };
        let mut builder = ParamSetBuilder::new();
        let vce = config.declare(&place(), &mut builder, &Device::cpu(), DType::F64).unwrap();
        let params = builder.build(&Device::cpu(), DType::F64, 3).unwrap();
        params.set(vce.offsets[1], &[0.0, 0.0]).unwrap();
        let mut tape = Tape::inference(&params);
        let x = hidden("x");
        let got = vce.forward(&mut tape, std::slice::from_ref(&x)).unwrap().tensor().to_f64_vec().unwrap();
        let inner = normed(&mut tape, &x, vce.norm_value).unwrap();
        let inner = dense(&mut tape, &inner, vce.value).unwrap();
        let inner = dense(&mut tape, &inner, vce.output).unwrap();
        let want = scale_add(&mut tape, &x, &inner, 1.0).unwrap().tensor().to_f64_vec().unwrap();
        for token in (0..14).filter(|t| t % 7 > 0) {
            for c in 0..4 {
                assert!((got[token * 4 + c] - want[token * 4 + c]).abs() < 1e-12, "{token}");
            }
        }
    }

    /// From a start that lies on no border between cells, everything that learns has the gradient that differences give.
    #[test]
    fn every_parameter_gets_its_gradient() {
        use crate::autograd::Grads;
        for post_norm in [false, true] {
            let (vce, params) = declared(&VceConfig { post_norm, ..config() }).unwrap();
            for id in params.ids() {
                let numel = params.get(id).unwrap().numel();
                let draws: Vec<f32> = values(&format!("{id:?}"), numel).iter().map(|v| 0.3 * v + 0.05).collect();
                params.set(id, &draws).unwrap();
            }
            let maps = [hidden("first"), hidden("second")];
            let c =
                Tensor::from_slice(&Device::cpu(), &[2, 7, 4], &hidden("c").tensor().to_f64_vec().unwrap()).unwrap();
            let value = |params: &ParamSet| {
                let mut tape = Tape::inference(params);
                let y = vce.forward(&mut tape, &maps).unwrap().tensor().to_f64_vec().unwrap();
                y.iter().zip(c.to_f64_vec().unwrap()).map(|(y, c)| y * c).sum::<f64>()
            };
            let mut tape = Tape::deterministic(&params);
            let y = vce.forward(&mut tape, &maps).unwrap();
            let mut grads = Grads::zeros(&params).unwrap();
            tape.backward_with(&y, c.clone(), &mut grads).unwrap();
            for id in params.ids() {
                let tensor = params.tensor(id).unwrap();
                let (start, slope) = (tensor.to_f64_vec().unwrap(), grads.view(id).unwrap().to_f64_vec().unwrap());
                for e in (0..start.len()).step_by(1 + start.len() / 5) {
                    let at = |step: f64| {
                        let mut moved = start.clone();
                        moved[e] += step;
                        tensor.overwrite(&moved).unwrap();
                        let value = value(&params);
                        tensor.overwrite(&start).unwrap();
                        value
                    };
                    let want = (at(1e-6) - at(-1e-6)) / 2e-6;
                    let name = &params.get(id).unwrap().name;
                    assert!((slope[e] - want).abs() < 1e-6 * want.abs().max(1.0), "{name} {e}: {} {want}", slope[e]);
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |config: VceConfig| declared(&config).map(drop);
        assert!(of(config()).is_ok());
        assert!(matches!(of(VceConfig { anchor: 2, ..config() }), Err(Error::Value { argument: "anchor", .. })));
        assert!(matches!(of(VceConfig { heads: 3, ..config() }), Err(Error::Value { argument: "heads", .. })));
        assert!(matches!(of(VceConfig { points: 17, ..config() }), Err(Error::Value { argument: "points", .. })));
        for depths in [vec![], vec![2, 0], vec![1, 3], vec![1, 1]] {
            let (vce, _) = declared(&config()).unwrap();
            let refused = place().insert(Vce { depths, ..vce });
            assert!(matches!(refused, Err(Error::Value { argument: "depths", .. })));
        }
        let (vce, params) = declared(&config()).unwrap();
        let mut tape = Tape::inference(&params);
        let short = Var::constant(Tensor::zeros(&Device::cpu(), &[2, 6, 4], DType::F64).unwrap());
        let unequal = vce.forward(&mut tape, &[short, hidden("x")]);
        assert!(matches!(unequal, Err(Error::Shape { op: "vce", argument: "hidden", .. })));
        assert!(vce.forward(&mut tape, &[hidden("x")]).is_err());
    }
}
