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
//! Source: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017. All of it runs where the parameters are
//! ([`ops::ewc`](crate::ops::ewc)).

use crate::autograd::Grads;
use crate::error::{Error, Result};
use crate::ops::ewc::{Spring, observe};
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
#[derive(Debug)]
pub struct Ewc {
    config: EwcConfig,
    anchor: Tensor,
    squares: Tensor,
    count: u64,
}

impl Ewc {
    /// Casts the anchor: a copy of the parameters as they are now. No spring yet.
    ///
    /// # Errors
    /// [`Error::Value`] for a λ that is negative or not finite.
    pub fn new(config: EwcConfig, params: &ParamSet) -> Result<Self> {
        let squares = Tensor::zeros(params.device(), params.master().dims(), params.master().dtype())?;
        Ewc::restore(config, params.master().duplicate()?, squares, 0)
    }

    /// With an anchor, sums of squared gradients and their number, as a run that is taken up again has kept them.
    ///
    /// # Errors
    /// [`Error::Value`] for a λ that is negative or not finite; [`Error::Shape`] and the like for tensors that do not fit together.
    pub fn restore(config: EwcConfig, anchor: Tensor, squares: Tensor, count: u64) -> Result<Self> {
        if !(config.lambda.is_finite() && config.lambda >= 0.0) {
            return Err(Error::value(OP, "lambda", "a finite number, 0 or more", config.lambda));
        }
        squares.require_dims(OP, "squares", anchor.dims())?;
        squares.require_dtype(OP, "squares", anchor.dtype())?;
        squares.require_device(OP, "squares", anchor.device())?;
        Ok(Ewc { config, anchor, squares, count })
    }

    /// Takes the gradient of one sample's negative log-likelihood (or of one batch's mean) at the anchor into the Fisher information.
    ///
    /// # Errors
    /// [`Error::Shape`] for gradients of another parameter set; [`Error::Value`] for one that is not finite, after which nothing that was observed
    /// is of use.
    pub fn observe(&mut self, grads: &Grads) -> Result<()> {
        if !observe(&self.squares, grads.flat())? {
            let values = grads.flat().to_f64_vec()?;
            let place = values.iter().position(|g| !g.is_finite()).unwrap_or(values.len());
            return Err(Error::value(OP, "gradients", "finite numbers", format!("not so at place {place}")));
        }
        self.count += 1;
        Ok(())
    }

    pub fn config(&self) -> &EwcConfig {
        &self.config
    }

    /// Where the springs are fixed, flat.
    pub fn anchor(&self) -> &Tensor {
        &self.anchor
    }

    /// Sums of squared gradients, flat, over [`observations`](Ewc::observations).
    pub fn squares(&self) -> &Tensor {
        &self.squares
    }

    pub fn observations(&self) -> u64 {
        self.count
    }

    /// The diagonal of the Fisher information, in the layout of the flat buffer.
    pub fn fisher(&self) -> Result<Vec<f64>> {
        let count = self.count.max(1) as f64;
        Ok(self.squares.to_f64_vec()?.into_iter().map(|s| s / count).collect())
    }

    /// The penalty where the parameters are now.
    pub fn penalty(&self, params: &ParamSet) -> Result<f64> {
        Ok(self.factor() * self.spring(params).penalty()?)
    }

    /// Adds the penalty's gradient, `2c F (θ − θ*)`.
    pub fn add_gradient(&self, params: &ParamSet, grads: &Grads) -> Result<()> {
        self.spring(params).pull(grads.flat(), self.factor())
    }

    fn spring<'a>(&'a self, params: &'a ParamSet) -> Spring<'a> {
        Spring { params: params.master(), anchor: &self.anchor, squares: &self.squares }
    }

    /// c over the number of observations, whose squares are summed.
    fn factor(&self) -> f64 {
        let c = if self.config.half { self.config.lambda / 2.0 } else { self.config.lambda };
        c / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::ops::check::{device, on_each_device};
    use crate::tensor::{Init, ParamSetBuilder};

    on_each_device!(the_golden_penalty_and_an_anchor_that_stays, what_does_not_fit_is_refused);

    fn the_golden_penalty_and_an_anchor_that_stays() {
        let mut params = ParamSetBuilder::new();
        let id = params.add("w", &[1], Init::Ones).unwrap();
        let params = params.build(&device(), DType::F32, 0).unwrap();
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

    fn what_does_not_fit_is_refused() {
        let of = |n: usize| {
            let mut params = ParamSetBuilder::new();
            params.add("w", &[n], Init::Ones).unwrap();
            params.build(&device(), DType::F32, 0).unwrap()
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
