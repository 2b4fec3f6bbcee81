//! The launch plans: the products of the frozen layer, and the gradient of the weight as a sum over tokens.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::ops::column_sum::column_sum;
use crate::ops::product::{Layout, Product};
use crate::tensor::Tensor;

pub fn forward(desc: &Desc, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, y: &Tensor) -> Result<Plan> {
    let Desc { m, n, k, dtype } = *desc;
    if m == 0 {
        return Ok(Plan::new());
    }
    let addresses = [x.address()?, weight.address()?, y.address()?];
    let product = Product::new(OP, Layout::Nt, dtype, [m, n, k], addresses);
    let bias = bias.map_or(Ok(0), Tensor::address)?;
    Ok(Plan::from_iter([Product { bias, ..product }.spec()?]))
}

/// `dW += dyᵀ x`.
pub fn weight_gradient(desc: &Desc, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, dtype } = *desc;
    Product::new(OP, Layout::Tn, dtype, [n, k, m], [dy.address()?, x.address()?, 0]).sum_into(dy.device(), target)
}

/// `db += Σ_rows dy`.
pub fn bias_gradient(desc: &Desc, dy: &Tensor, target: &Target) -> Result<()> {
    column_sum(dy, 1, desc.n, 1.0, target)
}

/// `dx (+)= dy W`.
pub fn input_gradient(desc: &Desc, dy: &Tensor, weight: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, dtype } = *desc;
    Product::new(OP, Layout::Nn, dtype, [m, k, n], [dy.address()?, weight.address()?, 0])
        .write_into(dy.device(), target)
}
