//! A norm of a trunk: frozen, or learning as a whole.

use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::ops::norm::Kind;
use crate::ops::{layer_norm, rms_norm};
use crate::tensor::{Init, ParamId, ParamSetBuilder};

/// Layer norm or RMS norm over the last dimension, with weights of its own.
#[derive(Clone, Debug)]
pub struct AdaptedNorm {
    name: String,
    kind: Kind,
    gamma: Var,
    beta: Option<Var>,
    eps: f64,
    learns: Option<(ParamId, Option<ParamId>)>,
}

impl AdaptedNorm {
    /// `name` is the module path, as files spell it.
    pub fn new(name: impl Into<String>, kind: Kind, gamma: Var, beta: Option<Var>, eps: f64) -> Self {
        AdaptedNorm { name: name.into(), kind, gamma, beta, eps, learns: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes γ and β learn, from the trunk's values on, and declares `<name>.weight` and `<name>.bias`.
    pub fn train(&mut self, params: &mut ParamSetBuilder) -> Result<()> {
        let mut declare = |leaf: &str, value: &Var| {
            let start = Init::Values(value.tensor().to_f32_vec()?);
            params.add(format!("{}.{leaf}", self.name), value.dims(), start)
        };
        let gamma = declare("weight", &self.gamma)?;
        let beta = self.beta.as_ref().map(|beta| declare("bias", beta)).transpose()?;
        self.learns = Some((gamma, beta));
        Ok(())
    }

    pub fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let (gamma, beta) = match self.learns {
            None => (self.gamma.clone(), self.beta.clone()),
            Some((gamma, beta)) => (tape.param(gamma)?, beta.map(|b| tape.param(b)).transpose()?),
        };
        match self.kind {
            Kind::Layer => layer_norm(tape, x, &gamma, beta.as_ref(), self.eps),
            Kind::Rms => rms_norm(tape, x, &gamma, self.eps),
        }
    }

    /// Numbers in γ and β.
    pub fn numel(&self) -> usize {
        self.gamma.tensor().numel() + self.beta.as_ref().map_or(0, |b| b.tensor().numel())
    }

    /// Of those, what stays frozen: all or nothing.
    pub fn frozen_numel(&self) -> usize {
        if self.learns.is_some() { 0 } else { self.numel() }
    }
}
