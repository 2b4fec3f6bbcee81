//! Adapters that scale and shift the columns of what a linear makes.
//!
//! ```text
//! (IA)³:  y = (1 + z) ⊙ (W₀ x + b), or W₀ ((1 + z) ⊙ x) + b before a feed-forward's second linear          z starts at 0
//! SSF:    y = (1 + z) ⊙ (W₀ x + b) + β                                                       z, β start at N(0, 0.02)
//! ```
//!
//! Sources: Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", 2022; Lian et al.,
//! "Scaling & Shifting Your Features", 2022.

use super::attach::{AttachReport, Attached, for_targets, path_matches};
use super::{Frozen, LinearAdapter, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::format::peft::{Modules, PeftConfig};
use crate::ops::{Gate, GranularScale, granular_scale, scale_add};
use crate::tensor::{Init, ParamId, ParamSetBuilder};

/// `(1 + z) ⊙ x`.
fn columns(tape: &mut Tape, x: &Var, z: ParamId) -> Result<Var> {
    let offset = tape.param(z)?;
    granular_scale(tape, x, &GranularScale::new(Gate::MiddleY { offset: &offset, sigmoid: false }))
}

/// (IA)³ on one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Ia3 {
    pub offset: ParamId,
    /// Scales the linear's input instead of its output.
    pub on_input: bool,
}

impl LinearAdapter for Ia3 {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        if self.on_input {
            let x = columns(tape, x, self.offset)?;
            return frozen.with(tape, &x, None);
        }
        let y = frozen.product(tape, x)?;
        let y = columns(tape, &y, self.offset)?;
        frozen.after.apply(tape, y)
    }
}

/// Where (IA)³ goes: keys, values, and the input of a feed-forward's second linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Ia3Config {
    pub targets: Modules,
    /// Those of the targets that are scaled at their input.
    pub feedforward: Vec<String>,
}

impl Default for Ia3Config {
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
        Ia3Config { targets: Modules::Names(names(&["k_proj", "v_proj", "fc2"])), feedforward: names(&["fc2"]) }
    }
}

impl Ia3Config {
    /// # Errors
    /// [`Error::NoMatch`](crate::Error::NoMatch) when nothing matches.
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        for_targets(trunk, &PeftConfig::new(self.targets.clone()), |linear, _| {
            let module = linear.name().to_string();
            let on_input = self.feedforward.iter().any(|name| path_matches(&module, name));
            let width = if on_input { linear.weight().k() } else { linear.weight().n() };
            let offset = params.add(format!("{module}.ia3"), &[width], Init::Zeros)?;
            linear.adapt(Ia3 { offset, on_input });
            Ok(Attached { module, rank: 0, params: width })
        })
    }
}

/// SSF on one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct Ssf {
    pub offset: ParamId,
    pub shift: ParamId,
}

impl LinearAdapter for Ssf {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let y = frozen.product(tape, x)?;
        let y = columns(tape, &y, self.offset)?;
        let shift = tape.param(self.shift)?;
        let y = scale_add(tape, &y, &shift, 1.0)?;
        frozen.after.apply(tape, y)
    }
}

/// Where SSF goes.
#[derive(Clone, Debug, PartialEq)]
pub struct SsfConfig {
    pub targets: Modules,
}

impl Default for SsfConfig {
    fn default() -> Self {
        SsfConfig { targets: Modules::AllLinear }
    }
}

impl SsfConfig {
    /// # Errors
    /// [`Error::NoMatch`](crate::Error::NoMatch) when nothing matches.
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        for_targets(trunk, &PeftConfig::new(self.targets.clone()), |linear, _| {
            let (module, n) = (linear.name().to_string(), linear.weight().n());
            let start = Init::Normal { std: 0.02 };
            let offset = params.add(format!("{module}.ssf_scale"), &[n], start.clone())?;
            let shift = params.add(format!("{module}.ssf_shift"), &[n], start)?;
            linear.adapt(Ssf { offset, shift });
            Ok(Attached { module, rank: 0, params: 2 * n })
        })
    }
}
