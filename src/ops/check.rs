//! What the ops' unit tests share.

use crate::autograd::{Grads, Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::tensor::{ParamSet, Tensor};
use crate::testing::{integers, normal};

/// The storage types that kernels know.
pub(crate) const STORED: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Lengths that miss every vector width, and one that meets them.
pub(crate) const TAILS: [usize; 7] = [1, 3, 7, 16, 33, 130, 1030];

/// Normal draws rounded to `dtype`: a CPU tensor, and its values.
pub(crate) fn draw(name: &str, dims: &[usize], dtype: DType) -> (Tensor, Vec<f64>) {
    let tensor = Tensor::from_f32(&Device::cpu(), dims, &normal(name, dims.iter().product()), dtype).unwrap();
    let values = tensor.to_f64_vec().unwrap();
    (tensor, values)
}

/// Integers from `-limit ..= limit`: a CPU tensor, and its values.
pub(crate) fn draw_integers(name: &str, dims: &[usize], limit: u32, dtype: DType) -> (Tensor, Vec<f64>) {
    let values = integers(name, dims.iter().product(), limit);
    let tensor = Tensor::from_f32(&Device::cpu(), dims, &values, dtype).unwrap();
    (tensor, values.iter().map(|&v| f64::from(v)).collect())
}

pub(crate) fn wide(name: &str, len: usize) -> Vec<f64> {
    normal(name, len).into_iter().map(f64::from).collect()
}

pub(crate) fn params(dtype: DType) -> ParamSet {
    ParamSet::none(&Device::cpu(), dtype).unwrap()
}

pub(crate) fn constant(dims: &[usize], values: &[f64], dtype: DType) -> Var {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    Var::constant(Tensor::from_f32(&Device::cpu(), dims, &values, dtype).unwrap())
}

/// The output of `function` on `inputs`, and the gradient of every input against the output's gradient `dy`.
pub(crate) fn run(
    inputs: &[&Tensor],
    dy: &Tensor,
    function: impl Fn(&mut Tape, &[Var]) -> Result<Var>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let params = params(dy.dtype());
    let mut tape = Tape::deterministic(&params);
    let vars: Vec<Var> = inputs.iter().map(|&t| tape.input(t.clone())).collect();
    let y = function(&mut tape, &vars).unwrap();
    let dy = dy.reshape(y.dims()).unwrap();
    let done = tape.backward_with(&y, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
    let gradients = vars.iter().map(|v| done.input_gradient(v).unwrap().to_f64_vec().unwrap()).collect();
    (y.tensor().to_f64_vec().unwrap(), gradients)
}

/// The output alone.
pub(crate) fn forward(inputs: &[&Tensor], function: impl Fn(&mut Tape, &[Var]) -> Result<Var>) -> Result<Tensor> {
    let mut tape = Tape::inference(&params(DType::F32));
    let vars: Vec<Var> = inputs.iter().map(|&t| Var::constant(t.clone())).collect();
    Ok(function(&mut tape, &vars)?.tensor().clone())
}
