//! AdamW over a parameter set: the moments, the step count, and what the op needs besides.

use crate::autograd::Grads;
use crate::error::{Error, Result};
use crate::ops::adamw::{AdamWStep, Buffers, Group, Scratch, step};
use crate::tensor::{ParamSet, Tensor};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest norm of the whole gradient; longer ones are scaled down to it.
    pub clip_norm: Option<f64>,
}

/// PyTorch's defaults.
impl Default for AdamWConfig {
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip_norm: None }
    }
}

pub struct AdamW {
    config: AdamWConfig,
    groups: Vec<Group>,
    m: Tensor,
    v: Tensor,
    scratch: Scratch,
    steps: u64,
}

impl AdamW {
    /// Moments zero, no step taken. Parameters learn at the rates that they were declared with, of which there may be eight.
    pub fn new(config: AdamWConfig, params: &ParamSet) -> Result<Self> {
        let (device, dtype) = (params.device(), params.master().dtype());
        let zeros = || Tensor::zeros(device, &[params.flat_len()], dtype);
        let group = |(end, lr_multiplier)| Group { end, lr_multiplier, weight_decay: config.weight_decay };
        Ok(AdamW {
            config,
            groups: params.rates().into_iter().map(group).collect(),
            m: zeros()?,
            v: zeros()?,
            scratch: Scratch::new(device, dtype)?,
            steps: 0,
        })
    }

    /// One step at learning rate `lr`. The gradients are zeroed for the next accumulation.
    pub fn step(&mut self, params: &ParamSet, grads: &Grads, lr: f64) -> Result<()> {
        let request = AdamWStep {
            lr,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            eps: self.config.eps,
            step: self.steps + 1,
            clip: self.config.clip_norm,
            measure_norm: false,
            zero_grads: true,
            groups: &self.groups,
        };
        let buffers = Buffers {
            params: params.master(),
            working: Some(params.working()),
            grads: grads.flat(),
            m: &self.m,
            v: &self.v,
            scratch: &self.scratch,
        };
        step(&request, &buffers)?;
        self.steps += 1;
        Ok(())
    }

    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// Steps taken so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// First and second moment, `[flat_len]` each.
    pub fn moments(&self) -> (&Tensor, &Tensor) {
        (&self.m, &self.v)
    }

    /// `[1]`: norm of the last clipped gradient before clipping.
    pub fn gradient_norm(&self) -> &Tensor {
        self.scratch.norm()
    }

    /// Takes up where a checkpoint left off.
    pub fn restore(&mut self, m: &Tensor, v: &Tensor, steps: u64) -> Result<()> {
        for (own, saved, name) in [(&self.m, m, "m"), (&self.v, v, "v")] {
            if saved.dims() != own.dims() || saved.dtype() != own.dtype() {
                let expected = format!("{} {:?}", own.dtype(), own.dims());
                return Err(Error::Shape {
                    op: "adamw",
                    argument: if name == "m" { "m" } else { "v" },
                    expected,
                    got: format!("{} {:?}", saved.dtype(), saved.dims()),
                });
            }
        }
        self.m = m.to_device(self.m.device())?;
        self.v = v.to_device(self.v.device())?;
        self.steps = steps;
        Ok(())
    }
}
