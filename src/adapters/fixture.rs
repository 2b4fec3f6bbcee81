//! What the tests of adapters on linears share: a trunk of one linear.

use super::{AdaptedLinear, InsertPoint, Trunk};
use crate::autograd::{Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::{FrozenWeight, ParamSet, Tensor};

pub use crate::testing::normal as values;

/// One linear, `q_proj`.
pub struct Single {
    pub linear: AdaptedLinear,
}

impl Single {
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        let weight = FrozenWeight::new(weight).unwrap();
        Single { linear: AdaptedLinear::new("q_proj", weight, bias.map(Var::constant)) }
    }

    /// `W₀ = 0 [n, k]` in f64, without a bias.
    pub fn zeros(n: usize, k: usize) -> Self {
        Single::new(Tensor::zeros(&Device::cpu(), &[n, k], DType::F64).unwrap(), None)
    }

    /// `W₀` and `b` drawn in f32.
    pub fn drawn(n: usize, k: usize) -> Self {
        let of = |name: &str, dims: &[usize]| {
            Tensor::from_slice(&Device::cpu(), dims, &values(name, dims.iter().product())).unwrap()
        };
        Single::new(of("weight", &[n, k]), Some(of("bias", &[n])))
    }

    /// In evaluation.
    pub fn forward(&self, params: &ParamSet, x: &Tensor) -> Vec<f64> {
        let mut tape = Tape::inference(params);
        let y = self.linear.forward(&mut tape, &Var::constant(x.clone())).unwrap();
        y.tensor().to_f64_vec().unwrap()
    }
}

impl Trunk for Single {
    fn linears(&mut self) -> Result<Vec<&mut AdaptedLinear>> {
        Ok(vec![&mut self.linear])
    }

    fn inserts(&mut self) -> Result<Vec<&mut InsertPoint>> {
        Ok(Vec::new())
    }
}
