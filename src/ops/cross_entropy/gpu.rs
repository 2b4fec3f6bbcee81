//! The launch plans: forward the rows, then their sum; backward one launch. Short rows take a warp each, long ones a block.

use super::{Desc, OP, Statistics};
use crate::autograd::Target;
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/cross_entropy.cu`. What a pass does not touch is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub logits: u64,
    pub targets: u64,
    pub lse: u64,
    /// `[m]`, f32: a workspace between the two launches of forward.
    pub losses: u64,
    pub loss: u64,
    pub inverse: u64,
    pub dy: u64,
    pub dx: u64,
    pub m: u64,
    pub c: u64,
    pub ignore_index: i64,
    pub smoothing: f32,
    /// 1 / denominator where one was given, else 0.
    pub fixed_inverse: f32,
    pub may_ignore: u32,
    pub wide_targets: u32,
    pub vector: u32,
    pub dx_flags: u32,
}

const _: () = assert!(size_of::<Params>() == 112 && std::mem::offset_of!(Params, smoothing) == 88);

const ROWS_BY_WARP: PerDType = per_dtype!("cross_entropy_rows", "w32");
const ROWS_BY_BLOCK: PerDType = per_dtype!("cross_entropy_rows", "t256");
const SUM: KernelId = KernelId::of("cross_entropy_sum_f32_t256_sm80");
const BACKWARD_BY_WARP: PerDType = per_dtype!("cross_entropy_bwd", "w32");
const BACKWARD_BY_BLOCK: PerDType = per_dtype!("cross_entropy_bwd", "t256");

/// Rows of up to this many classes take a warp.
const WARP_CLASSES: usize = 1024;

fn params(desc: &Desc, logits: &Tensor, targets: &Tensor, statistics: &Statistics) -> Result<Params> {
    let x = logits.address()?;
    Ok(Params {
        logits: x,
        targets: targets.address()?,
        lse: statistics.lse.address()?,
        losses: 0,
        loss: 0,
        inverse: statistics.inverse.address()?,
        dy: 0,
        dx: 0,
        m: desc.m as u64,
        c: desc.c as u64,
        ignore_index: desc.ignore_index.unwrap_or(0),
        smoothing: desc.label_smoothing as f32,
        fixed_inverse: desc.denominator.map_or(0.0, |n| (1.0 / n as f64) as f32),
        may_ignore: u32::from(desc.ignore_index.is_some()),
        wide_targets: u32::from(desc.target_dtype == DType::I64),
        vector: u32::from(aligned(&[x]) && desc.c.is_multiple_of(pack(desc.dtype))),
        dx_flags: 0,
    })
}

/// The kernel for rows of this length, and how many blocks take all rows.
fn by_length(desc: &Desc, warp: &PerDType, block: &PerDType) -> Result<(KernelId, u32)> {
    let short = desc.c <= WARP_CLASSES;
    let kernel = by_dtype(OP, desc.dtype, if short { warp } else { block })?;
    let rows = if short { kernel.row().threads / 32 } else { 1 };
    Ok((kernel, blocks(desc.m as u64, u64::from(rows))))
}

/// `losses`: `[m]`, f32, alive until the launches are asked for.
pub(crate) fn forward(
    desc: &Desc,
    logits: &Tensor,
    targets: &Tensor,
    statistics: &Statistics,
    losses: &Tensor,
    loss: &Tensor,
) -> Result<Plan> {
    let (rows, count) = by_length(desc, &ROWS_BY_WARP, &ROWS_BY_BLOCK)?;
    let params =
        Params { losses: losses.address()?, loss: loss.address()?, ..params(desc, logits, targets, statistics)? };
    Ok(Plan::from_iter([launch(rows, count, &params), launch(SUM, 1, &params)]))
}

pub(crate) fn backward(
    desc: &Desc,
    logits: &Tensor,
    targets: &Tensor,
    statistics: &Statistics,
    dy: &Tensor,
    target: &Target,
) -> Result<Plan> {
    let (kernel, count) = by_length(desc, &BACKWARD_BY_WARP, &BACKWARD_BY_BLOCK)?;
    let (dx, dx_flags) = address_and_flags(OP, desc.dtype, target)?;
    let mut params = Params { dy: dy.address()?, dx, dx_flags, ..params(desc, logits, targets, statistics)? };
    params.vector &= u32::from(aligned(&[dx]));
    Ok(Plan::from_iter([launch(kernel, count, &params)]))
}
