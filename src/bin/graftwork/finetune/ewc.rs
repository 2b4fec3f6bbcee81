//! `--ewc`: what is learned is held, by springs, to where it starts. Before the first step the Fisher information is estimated on the training samples,
//! with the parameters as they are then.

use clap::ValueEnum;
use graftwork::autograd::{Grads, Tape, Var};
use graftwork::optim::{Ewc, EwcConfig};
use graftwork::tensor::ParamSet;
use graftwork::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::model::Adapted;
use super::options::{FROM_0, number};

/// Whose gradients are squared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fisher {
    /// Those of micro-batches, as GA-Net has it
    Batch,
    /// Those of single samples, as Kirkpatrick et al. have it
    Sample,
}

/// Where the springs are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Anchor {
    /// Where the parameters start
    Start,
    /// At zero
    Zero,
}

#[derive(clap::Args)]
pub struct EwcOptions {
    /// Elastic weight consolidation of this strength λ: adds λ/2 Σ F (θ − θ*)² to the loss, F the Fisher information of the training samples
    #[arg(long, value_name = "LAMBDA", value_parser = number(FROM_0))]
    pub ewc: Option<f64>,
    /// Whose squared gradients --ewc takes for F
    #[arg(long, value_enum, default_value = "batch", requires = "ewc")]
    pub ewc_fisher: Fisher,
    /// λ in place of λ/2, as GA-Net has it
    #[arg(long, requires = "ewc")]
    pub ewc_whole: bool,
    /// θ*
    #[arg(long, value_enum, default_value = "start", requires = "ewc")]
    pub ewc_anchor: Anchor,
}

/// As a recipe keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Springs {
    pub lambda: f64,
    pub fisher: Fisher,
    pub whole: bool,
    pub anchor: Anchor,
}

impl EwcOptions {
    pub fn springs(&self) -> Option<Springs> {
        let EwcOptions { ewc, ewc_fisher: fisher, ewc_whole: whole, ewc_anchor: anchor } = *self;
        ewc.map(|lambda| Springs { lambda, fisher, whole, anchor })
    }
}

impl Springs {
    pub fn config(&self) -> EwcConfig {
        EwcConfig { lambda: self.lambda, half: !self.whole }
    }

    /// Casts the anchor and measures how strongly each parameter is held: one pass over `samples` samples, in micro-batches of `batch`, without
    /// dropout.
    pub fn cast(&self, adapted: &Adapted, samples: usize, batch: usize) -> Result<Ewc> {
        let all: Vec<usize> = (0..samples).collect();
        self.cast_by(&adapted.params, &all, batch, |tape, part| adapted.loss(tape, part, part.len()))
    }

    /// The same of any loss over samples, the mean over those it is given.
    pub fn cast_by(
        &self,
        params: &ParamSet,
        samples: &[usize],
        batch: usize,
        loss: impl Fn(&mut Tape, &[usize]) -> Result<Var>,
    ) -> Result<Ewc> {
        let mut ewc = Ewc::new(self.config(), params)?;
        let mut grads = Grads::zeros(params)?;
        for part in samples.chunks(if self.fisher == Fisher::Sample { 1 } else { batch }) {
            let mut tape = Tape::deterministic(params);
            let loss = loss(&mut tape, part)?;
            grads.flat().zero()?;
            tape.backward(&loss, &mut grads)?;
            ewc.observe(&grads)?;
        }
        match self.anchor {
            Anchor::Start => Ok(ewc),
            Anchor::Zero => {
                let anchor = Tensor::zeros(params.device(), ewc.anchor().dims(), ewc.anchor().dtype())?;
                Ewc::restore(self.config(), anchor, ewc.squares().clone(), ewc.observations())
            }
        }
    }
}
