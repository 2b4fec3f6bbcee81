//! Elastic weight consolidation: what mattered to an earlier task is held in place by a spring.
//!
//! ```text
//! penalty = c Σ_n F_n (θ_n − θ*_n)²          c = λ/2, or λ
//! ```
//!
//! θ* are the parameters when the anchor was cast, F the diagonal of the Fisher information there: the mean of squared gradients of the log-likelihood,
//! sample by sample, or batch by batch as GA-Net has it, which is cheaper and smaller. It works on the flat buffers of a
//! [`ParamSet`](crate::tensor::ParamSet), and therefore with any adapter.
//!
//! Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017. It is a handful of operations a parameter; on a GPU they
//! run on the host, through copies of the flat buffers.

use crate::autograd::Grads;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{ParamSet, Tensor};

const OP: &str = "ewc";

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EwcConfig {
    pub lambda: f64,
    /// c = λ/2, as Kirkpatrick et al. have it; otherwise c = λ.
    pub half: bool,
}

impl Default for EwcConfig {
    fn default() -> Self {
        EwcConfig { lambda: 1.0, half: true }
    }
}

/// The anchor and the springs' strengths.
pub struct Ewc {
    config: EwcConfig,
    anchor: Vec<f64>,
    squares: Vec<f64>,
    count: u64,
}

impl Ewc {
    /// Casts the anchor: a copy of the parameters as they are now. No spring yet.
    ///
    /// # Errors
    /// [`Error::Value`] for a λ that is negative or not finite.
    pub fn new(config: EwcConfig, params: &ParamSet) -> Result<Self> {
        if !(config.lambda.is_finite() && config.lambda >= 0.0) {
            return Err(Error::value(OP, "lambda", "a finite number, 0 or more", config.lambda));
        }
        let anchor = params.master().to_f64_vec()?;
        Ok(Ewc { config, squares: vec![0.0; anchor.len()], anchor, count: 0 })
    }

    /// Takes the gradient of one sample's negative log-likelihood (or of one batch's mean) at the anchor into the Fisher information.
    ///
    /// # Errors
    /// [`Error::Shape`] for gradients of another parameter set; [`Error::Value`] for one that is not finite.
    pub fn observe(&mut self, grads: &Grads) -> Result<()> {
        let gradient = self.flat("gradients", grads.flat())?;
        if let Some(i) = gradient.iter().position(|g| !g.is_finite()) {
            return Err(Error::value(OP, "gradients", "finite numbers", format!("{} at place {i}", gradient[i])));
        }
        for (square, g) in self.squares.iter_mut().zip(gradient) {
            *square += g * g;
        }
        self.count += 1;
        Ok(())
    }

    /// The diagonal of the Fisher information, in the layout of the flat buffer.
    pub fn fisher(&self) -> Vec<f64> {
        let count = self.count.max(1) as f64;
        self.squares.iter().map(|s| s / count).collect()
    }

    /// The penalty where the parameters are now.
    pub fn penalty(&self, params: &ParamSet) -> Result<f64> {
        let now = self.flat("parameters", params.master())?;
        let terms = self.fisher().into_iter().zip(now).zip(&self.anchor);
        Ok(self.factor() * terms.map(|((f, now), anchor)| f * (now - anchor).powi(2)).sum::<f64>())
    }

    /// Adds the penalty's gradient, `2c F (θ − θ*)`.
    pub fn add_gradient(&self, params: &ParamSet, grads: &Grads) -> Result<()> {
        let now = self.flat("parameters", params.master())?;
        let mut gradient = self.flat("gradients", grads.flat())?;
        for (i, f) in self.fisher().into_iter().enumerate() {
            gradient[i] += 2.0 * self.factor() * f * (now[i] - self.anchor[i]);
        }
        let flat = grads.flat();
        let narrow: Vec<f32> = gradient.iter().map(|&g| g as f32).collect();
        match flat.dtype() {
            DType::F64 => flat.overwrite(&gradient),
            _ => flat.overwrite(&narrow),
        }
    }

    fn factor(&self) -> f64 {
        if self.config.half { self.config.lambda / 2.0 } else { self.config.lambda }
    }

    fn flat(&self, argument: &'static str, tensor: &Tensor) -> Result<Vec<f64>> {
        tensor.require_dims(OP, argument, &[self.anchor.len()])?;
        tensor.to_f64_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::tensor::{Init, ParamSetBuilder};

    #[test]
    fn the_golden_penalty_and_an_anchor_that_stays() {
        let mut params = ParamSetBuilder::new();
        let id = params.add("w", &[1], Init::Ones).unwrap();
        let params = params.build(&Device::cpu(), DType::F32, 0).unwrap();
        for (half, penalty, slope) in [(false, 0.5, 2.0), (true, 0.25, 1.0)] {
            params.set(id, &[1.0]).unwrap();
            let mut ewc = Ewc::new(EwcConfig { lambda: 1.0, half }, &params).unwrap();
            // Squares 1 and 3: F = 2.
            for g in [1.0f32, 3f32.sqrt()] {
                let grads = Grads::zeros(&params).unwrap();
                grads.view(id).unwrap().overwrite(&[g]).unwrap();
                ewc.observe(&grads).unwrap();
            }
            assert_eq!(ewc.penalty(&params).unwrap(), 0.0);
            params.set(id, &[1.5]).unwrap();
            assert!((ewc.penalty(&params).unwrap() - penalty).abs() < 1e-6);
            let grads = Grads::zeros(&params).unwrap();
            ewc.add_gradient(&params, &grads).unwrap();
            assert!((grads.view(id).unwrap().to_f64_vec().unwrap()[0] - slope).abs() < 1e-6);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |n: usize| {
            let mut params = ParamSetBuilder::new();
            params.add("w", &[n], Init::Ones).unwrap();
            params.build(&Device::cpu(), DType::F32, 0).unwrap()
        };
        let (small, large) = (of(1), of(100));
        assert!(matches!(Ewc::new(EwcConfig { lambda: -1.0, half: true }, &small), Err(Error::Value { .. })));
        let mut ewc = Ewc::new(EwcConfig::default(), &small).unwrap();
        assert!(matches!(ewc.observe(&Grads::zeros(&large).unwrap()), Err(Error::Shape { .. })));
        let grads = Grads::zeros(&small).unwrap();
        grads.flat().overwrite(&vec![f32::NAN; small.flat_len()]).unwrap();
        assert!(matches!(ewc.observe(&grads), Err(Error::Value { argument: "gradients", .. })));
    }
}
