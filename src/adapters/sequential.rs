//! Bottleneck adapters without a gate, which the literature compares with.
//!
//! ```text
//! sequential:  h ← h + Up(φ(Down(h)))          parallel:  h ← F(x) + s · Up(φ(Down(x)))
//! ```
//!
//! | preset | form | where | φ | r |
//! |---|---|---|---|---|
//! | [`AdapterConfig::houlsby`] | sequential | after attention and feed-forward | SiLU | k/16 |
//! | [`AdapterConfig::pfeiffer`] | sequential | after the feed-forward | ReLU | k/16 |
//! | [`AdapterConfig::parallel`] | parallel, s = 4 | beside the feed-forward | ReLU | k/2 |
//! | [`AdapterConfig::vl_adapter`] | sequential, one for all tasks | everywhere | gelu_new | k/8 |
//!
//! In an encoder-decoder they stand on both sides. Up starts at zero, so that training starts from the trunk itself.
//!
//! Sources: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019; Pfeiffer et al., "AdapterFusion", 2021; He et al.,
//! "Towards a Unified View of Parameter-Efficient Transfer Learning", 2022; Sung, Cho and Bansal, "VL-Adapter", 2022.

use super::attach::{AttachReport, Attached, Sides, for_places};
use super::{Bottleneck, BottleneckConfig, Insert, Trunk};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::ops::{Activation, Gate, GranularScale};
use crate::tensor::ParamSetBuilder;

/// What the bottleneck reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AdapterForm {
    /// The sub-layer's output.
    Sequential,
    /// The sub-layer's input; its update is scaled.
    Parallel { scale: f64 },
}

/// Which bottlenecks go where.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    pub form: AdapterForm,
    /// r = k / reduction, at least 1.
    pub reduction: usize,
    pub activation: Activation,
    /// Last parts of the places' paths; empty for all.
    pub places: Vec<String>,
    pub sides: Sides,
}

impl AdapterConfig {
    pub fn houlsby() -> Self {
        let (form, places) = (AdapterForm::Sequential, Vec::new());
        AdapterConfig { form, reduction: 16, activation: Activation::Silu, places, sides: Sides::Both }
    }

    pub fn pfeiffer() -> Self {
        let (form, places) = (AdapterForm::Sequential, vec!["mlp".into()]);
        AdapterConfig { form, activation: Activation::Relu, places, ..AdapterConfig::houlsby() }
    }

    pub fn parallel() -> Self {
        let (form, places) = (AdapterForm::Parallel { scale: 4.0 }, vec!["mlp".into()]);
        AdapterConfig { form, reduction: 2, places, ..AdapterConfig::pfeiffer() }
    }

    pub fn vl_adapter() -> Self {
        AdapterConfig { reduction: 8, activation: Activation::GeluTanh, ..AdapterConfig::houlsby() }
    }

    fn bottleneck(&self, width: usize) -> BottleneckConfig {
        let rank = (width / self.reduction.max(1)).max(1);
        BottleneckConfig { activation: self.activation, ..BottleneckConfig::new(width, rank) }
    }

    /// Puts an adapter in every place that the configuration names.
    ///
    /// # Errors
    /// [`Error::NoMatch`] when no place matches, [`Error::Value`] for a scale that is not finite or a reduction of 0.
    pub fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        if self.reduction == 0 {
            return Err(Error::value("adapter", "reduction", "at least 1", 0));
        }
        if let AdapterForm::Parallel { scale } = self.form
            && !scale.is_finite()
        {
            return Err(Error::value("adapter", "scale", "a finite number", scale));
        }
        for_places(trunk, &self.places, self.sides, |point| {
            let (module, config) = (point.name().to_string(), self.bottleneck(point.width()));
            let bottleneck = Bottleneck::declare(&format!("{module}.adapter"), &config, params)?;
            point.insert(BottleneckAdapter { bottleneck, form: self.form });
            Ok(Attached { module, rank: config.rank, params: config.numel() })
        })
    }
}

/// A bottleneck in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct BottleneckAdapter {
    pub bottleneck: Bottleneck,
    pub form: AdapterForm,
}

impl Insert for BottleneckAdapter {
    fn forward(&self, tape: &mut Tape, residual: &Var, output: &Var) -> Result<Var> {
        let around = GranularScale::new(Gate::Open);
        match self.form {
            AdapterForm::Sequential => self.bottleneck.add(tape, output, output, around),
            AdapterForm::Parallel { scale } => self.bottleneck.add_scaled(tape, residual, scale, output, around),
        }
    }
}
