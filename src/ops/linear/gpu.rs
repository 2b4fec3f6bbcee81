//! The launch plans: the frozen linear layer's kernels, with no update.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

fn later() -> Error {
    Error::KernelsMissing { reason: OP.into() }
}
pub fn forward(_: &Desc, _: &Tensor, _: &Tensor, _: Option<&Tensor>, _: &Tensor) -> Result<Plan> {
    Err(later())
}
pub fn weight_gradient(_: &Desc, _: &Tensor, _: &Tensor, _: &Target) -> Result<()> {
    Err(later())
}
pub fn bias_gradient(_: &Desc, _: &Tensor, _: &Target) -> Result<()> {
    Err(later())
}
pub fn input_gradient(_: &Desc, _: &Tensor, _: &Tensor, _: &Target) -> Result<Plan> {
    Err(later())
}
