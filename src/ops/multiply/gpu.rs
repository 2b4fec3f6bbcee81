//! The launch plan: one launch for the product, and one for either gradient, by the same kernel.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/multiply.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub x: u64,
    pub z: u64,
    pub out: u64,
    pub n: u64,
    pub accumulate: u32,
    pub vector: u32,
}

const _: () = assert!(size_of::<Params>() == 40 && std::mem::offset_of!(Params, accumulate) == 32);

const KERNELS: PerDType = [
    KernelId::of("multiply_fwd_f32_t256_sm80"),
    KernelId::of("multiply_fwd_f16_t256_sm80"),
    KernelId::of("multiply_fwd_bf16_t256_sm80"),
];

pub fn run(desc: &Desc, x: &Tensor, z: &Tensor, target: &Target) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &KERNELS)?;
    let (x, z, out) = (x.address()?, z.address()?, target.tensor.address()?);
    let vector = aligned(&[x, z, out]);
    let accumulate = u32::from(target.accumulate);
    let params = Params { x, z, out, n: desc.n as u64, accumulate, vector: u32::from(vector) };
    let units = (desc.n as u64).div_ceil(if vector { pack(desc.dtype) as u64 } else { 1 });
    Ok(Plan::from_iter([launch(kernel, blocks(units, u64::from(kernel.row().threads)), &params)]))
}
