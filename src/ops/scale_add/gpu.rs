//! The launch plan: one launch.

use super::{Desc, OP};
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::{aligned, blocks, launch, pack};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/scale_add.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    /// 0 when y is s·z alone; may be `y`.
    pub base: u64,
    pub z: u64,
    pub y: u64,
    /// Elements of y.
    pub n: u64,
    /// Elements of z.
    pub inner: u64,
    pub scale: f32,
    pub vector: u32,
}

const _: () = assert!(size_of::<Params>() == 48 && std::mem::offset_of!(Params, scale) == 40);

const F32: KernelId = KernelId::of("scale_add_fwd_f32_t256_sm80");
const F16: KernelId = KernelId::of("scale_add_fwd_f16_t256_sm80");
const BF16: KernelId = KernelId::of("scale_add_fwd_bf16_t256_sm80");
const F16_TO_F32: KernelId = KernelId::of("scale_add_widen_f16_t256_sm80");
const BF16_TO_F32: KernelId = KernelId::of("scale_add_widen_bf16_t256_sm80");

pub fn run(desc: &Desc, base: Option<&Tensor>, z: &Tensor, y: &Tensor) -> Result<Plan> {
    let kernel = match (desc.dtype, y.dtype()) {
        (DType::F32, DType::F32) => F32,
        (DType::F16, DType::F16) => F16,
        (DType::BF16, DType::BF16) => BF16,
        (DType::F16, DType::F32) => F16_TO_F32,
        (DType::BF16, DType::F32) => BF16_TO_F32,
        (got, to) => {
            let expected = format!("a dtype with a kernel that adds into {to}");
            return Err(Error::DType { op: OP, argument: "z", expected, got });
        }
    };
    let base = base.map_or(Ok(0), Tensor::address)?;
    let (z, y) = (z.address()?, y.address()?);
    // A repeated z must begin every repetition at a multiple of 16 bytes.
    let vector = aligned(&[base, z, y]) && (desc.outer == 1 || desc.inner.is_multiple_of(pack(desc.dtype)));
    let params = Params {
        base,
        z,
        y,
        n: desc.numel() as u64,
        inner: desc.inner as u64,
        scale: desc.scale as f32,
        vector: u32::from(vector),
    };
    let units = (desc.numel() as u64).div_ceil(if vector { pack(desc.dtype) as u64 } else { 1 });
    Ok(Plan::from_iter([launch(kernel, blocks(units, u64::from(kernel.row().threads)), &params)]))
}
