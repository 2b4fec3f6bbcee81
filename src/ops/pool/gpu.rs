//! The launch plans. The mean's forward pass is a column sum.

use super::{Desc, OP, Pooling};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/pool.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    /// x `[b, t, d]`, or dy `[b, d]` in the backward pass.
    pub from: u64,
    /// y `[b, d]`, or dx `[b, t, d]` in the backward pass.
    pub to: u64,
    pub b: u64,
    pub t: u64,
    pub d: u64,
    pub factor: f32,
    /// 1 when token 0 alone counts.
    pub class_token: u32,
    pub accumulate: u32,
    pub vector: u32,
}

const _: () = assert!(size_of::<Params>() == 56 && std::mem::offset_of!(Params, factor) == 40);

const FORWARD: PerDType = per_dtype!("pool_fwd", "t256");
const BACKWARD: PerDType = per_dtype!("pool_bwd", "t256");

pub fn first_token(desc: &Desc, x: &Tensor, y: &Tensor) -> Result<Plan> {
    plan(desc, by_dtype(OP, desc.dtype, &FORWARD)?, x.address()?, y.address()?, false, desc.b)
}

pub fn backward(desc: &Desc, dy: &Tensor, target: &Target) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &BACKWARD)?;
    plan(desc, kernel, dy.address()?, target.tensor.address()?, target.accumulate, desc.b * desc.t)
}

/// `rows` vectors of d are written.
fn plan(desc: &Desc, kernel: KernelId, from: u64, to: u64, accumulate: bool, rows: usize) -> Result<Plan> {
    let vector = desc.d.is_multiple_of(pack(desc.dtype)) && aligned(&[from, to]);
    let params = Params {
        from,
        to,
        b: desc.b as u64,
        t: desc.t as u64,
        d: desc.d as u64,
        factor: desc.factor() as f32,
        class_token: u32::from(desc.pooling == Pooling::ClassToken),
        accumulate: u32::from(accumulate),
        vector: u32::from(vector),
    };
    let units = rows as u64 * desc.d as u64 / if vector { pack(desc.dtype) as u64 } else { 1 };
    Ok(Plan::from_iter([launch(kernel, blocks(units, u64::from(kernel.row().threads)), &params)]))
}
