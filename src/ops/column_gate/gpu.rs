//! The launch plan: one launch.

use super::OP;
use crate::autograd::Target;
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::{aligned, blocks, launch, pack};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/column_gate.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    /// 0 when y is the product alone; may be `y`.
    pub base: u64,
    pub a: u64,
    pub b: u64,
    pub y: u64,
    /// Elements of y.
    pub n: u64,
    /// Elements of b.
    pub inner: u64,
    pub vector: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Params>() == 56 && std::mem::offset_of!(Params, vector) == 48);

const F32: KernelId = KernelId::of("column_gate_fwd_f32_t256_sm80");
const F16: KernelId = KernelId::of("column_gate_fwd_f16_t256_sm80");
const BF16: KernelId = KernelId::of("column_gate_fwd_bf16_t256_sm80");
const F16_TO_F32: KernelId = KernelId::of("column_gate_widen_f16_t256_sm80");
const BF16_TO_F32: KernelId = KernelId::of("column_gate_widen_bf16_t256_sm80");

pub fn product(a: &Tensor, b: &Tensor, target: &Target) -> Result<Plan> {
    let kernel = match (a.dtype(), target.tensor.dtype()) {
        (DType::F32, DType::F32) => F32,
        (DType::F16, DType::F16) => F16,
        (DType::BF16, DType::BF16) => BF16,
        (DType::F16, DType::F32) => F16_TO_F32,
        (DType::BF16, DType::F32) => BF16_TO_F32,
        (got, to) => {
            let expected = format!("a dtype with a kernel that writes {to}");
            return Err(Error::DType { op: OP, argument: "x", expected, got });
        }
    };
    let (a_at, b_at, y) = (a.address()?, b.address()?, target.tensor.address()?);
    let base = if target.accumulate { y } else { 0 };
    let (n, inner, per_unit) = (a.numel(), b.numel(), pack(a.dtype()));
    // A repeated b must begin every repetition at a multiple of 16 bytes.
    let vector = aligned(&[a_at, b_at, y]) && (inner == n || inner.is_multiple_of(per_unit));
    let params =
        Params { base, a: a_at, b: b_at, y, n: n as u64, inner: inner as u64, vector: u32::from(vector), reserved: 0 };
    let units = (n as u64).div_ceil(if vector { per_unit as u64 } else { 1 });
    Ok(Plan::from_iter([launch(kernel, blocks(units, u64::from(kernel.row().threads)), &params)]))
}
