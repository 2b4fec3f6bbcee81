//! The launch plans: one launch each.

use super::Threshold;
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, blocks, by_dtype, launch};
use crate::tensor::Tensor;

/// Mirrors `struct ProximalParams` in `kernels/proximal.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct ProximalParams {
    master: u64,
    working: u64,
    thresholds: u64,
    blocks: u64,
    each: u64,
    threshold: f32,
    padding: u32,
}

const _: () = assert!(size_of::<ProximalParams>() == 48 && std::mem::offset_of!(ProximalParams, blocks) == 24);

static BLOCKS: PerDType = [
    KernelId::of("proximal_blocks_f32_t256_sm80"),
    KernelId::of("proximal_blocks_f16_t256_sm80"),
    KernelId::of("proximal_blocks_bf16_t256_sm80"),
];
static SOFT: PerDType = [
    KernelId::of("proximal_soft_f32_t256_sm80"),
    KernelId::of("proximal_soft_f16_t256_sm80"),
    KernelId::of("proximal_soft_bf16_t256_sm80"),
];

pub fn shrink_blocks(
    op: &'static str,
    master: &Tensor,
    working: Option<&Tensor>,
    threshold: Threshold,
    count: usize,
) -> Result<Plan> {
    let mut params = params(master, working)?;
    (params.blocks, params.each) = (count as u64, (master.numel() / count.max(1)) as u64);
    match threshold {
        Threshold::Uniform(t) => params.threshold = t as f32,
        Threshold::PerBlock(t) => params.thresholds = t.address()?,
    }
    Ok(Plan::from_iter([spec(op, working, &BLOCKS, blocks(params.blocks, 1), params)?]))
}

pub fn soft_threshold(op: &'static str, master: &Tensor, working: Option<&Tensor>, threshold: f64) -> Result<Plan> {
    let mut params = params(master, working)?;
    (params.blocks, params.each, params.threshold) = (1, master.numel() as u64, threshold as f32);
    Ok(Plan::from_iter([spec(op, working, &SOFT, blocks(params.each, 256), params)?]))
}

fn params(master: &Tensor, working: Option<&Tensor>) -> Result<ProximalParams> {
    Ok(ProximalParams {
        master: master.address()?,
        working: working.map_or(Ok(0), Tensor::address)?,
        thresholds: 0,
        blocks: 0,
        each: 0,
        threshold: 0.0,
        padding: 0,
    })
}

/// The working copy's dtype chooses the kernel.
fn spec(
    op: &'static str,
    working: Option<&Tensor>,
    kernels: &PerDType,
    blocks: u32,
    params: ProximalParams,
) -> Result<LaunchSpec> {
    Ok(launch(by_dtype(op, working.map_or(DType::F32, Tensor::dtype), kernels)?, blocks, &params))
}
