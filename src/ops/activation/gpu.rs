//! The launch plans: one launch each way.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/activation.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub x: u64,
    /// 0 in the forward pass.
    pub dy: u64,
    /// y, or dx in the backward pass.
    pub out: u64,
    pub n: u64,
    pub activation: u32,
    pub accumulate: u32,
    /// Elements that lie in whole units of 16 bytes are accessed so; the rest of the row one by one.
    pub vector: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Params>() == 48 && std::mem::offset_of!(Params, activation) == 32);

const FORWARD: PerDType = per_dtype!("activation_fwd", "t256");
const BACKWARD: PerDType = per_dtype!("activation_bwd", "t256");

pub fn forward(desc: &Desc, x: &Tensor, y: &Tensor) -> Result<Plan> {
    plan(desc, by_dtype(OP, desc.dtype, &FORWARD)?, x.address()?, 0, y.address()?, false)
}

pub fn backward(desc: &Desc, dy: &Tensor, x: &Tensor, target: &Target) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &BACKWARD)?;
    plan(desc, kernel, x.address()?, dy.address()?, target.tensor.address()?, target.accumulate)
}

fn plan(desc: &Desc, kernel: KernelId, x: u64, dy: u64, out: u64, accumulate: bool) -> Result<Plan> {
    let vector = aligned(&[x, dy, out]);
    let params = Params {
        x,
        dy,
        out,
        n: desc.n as u64,
        activation: desc.activation as u32,
        accumulate: u32::from(accumulate),
        vector: u32::from(vector),
        reserved: 0,
    };
    let units = (desc.n as u64).div_ceil(if vector { pack(desc.dtype) as u64 } else { 1 });
    Ok(Plan::from_iter([launch(kernel, blocks(units, u64::from(kernel.row().threads)), &params)]))
}
