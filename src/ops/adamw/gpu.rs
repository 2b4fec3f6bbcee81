//! The launch plan: the update, after the partial sums of the norm where that is wanted.

use super::{Buffers, Desc, MAX_GROUPS, OP};
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::{aligned, blocks, launch};
use crate::tensor::Tensor;

/// Mirrors `struct Norm` in `kernels/adamw.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Norm {
    pub grads: u64,
    pub partials: u64,
    pub n: u64,
    /// Elements of one partial sum, a multiple of 4.
    pub piece: u64,
    pub count: u64,
    pub vector: u64,
}

/// Mirrors `struct Rates` in `kernels/adamw.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Rates {
    pub end: u64,
    pub keep: f32,
    pub step: f32,
}

/// Mirrors `struct Step` in `kernels/adamw.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Step {
    pub params: u64,
    /// 0 when there is no working copy.
    pub working: u64,
    pub grads: u64,
    pub m: u64,
    pub v: u64,
    /// 0 when the norm is not measured.
    pub partials: u64,
    pub norm: u64,
    pub n: u64,
    pub rates: [Rates; MAX_GROUPS],
    pub groups: u32,
    pub partial_count: u32,
    /// `1 − β₁`
    pub first: f32,
    pub beta2: f32,
    /// `1 − β₂`
    pub second: f32,
    pub root_correction: f32,
    pub eps: f32,
    /// 0 without clipping.
    pub clip: f32,
    pub zero_grads: u32,
    pub vector: u32,
}

const _: () = assert!(size_of::<Norm>() == 48 && std::mem::offset_of!(Norm, vector) == 40);
const _: () = assert!(size_of::<Rates>() == 16 && size_of::<Step>() == 232);
const _: () = assert!(std::mem::offset_of!(Step, rates) == 64 && std::mem::offset_of!(Step, groups) == 192);

const NORM: KernelId = KernelId::of("adamw_norm_f32_t256_sm80");
const STEP: KernelId = KernelId::of("adamw_step_f32_t256_sm80");
const STEP_F16: KernelId = KernelId::of("adamw_step_f16_t256_sm80");
const STEP_BF16: KernelId = KernelId::of("adamw_step_bf16_t256_sm80");

pub fn step(desc: &Desc, buffers: &Buffers) -> Result<Plan> {
    if desc.dtype != DType::F32 {
        let expected = "f32 on a GPU".into();
        return Err(Error::DType { op: OP, argument: "params", expected, got: desc.dtype });
    }
    let (kernel, working) = match (desc.working, buffers.working) {
        (Some(DType::F16), Some(working)) => (STEP_F16, working.address()?),
        (Some(_), Some(working)) => (STEP_BF16, working.address()?),
        _ => (STEP, 0),
    };
    let address = |tensor: &Tensor| tensor.address();
    let (params, grads) = (address(buffers.params)?, address(buffers.grads)?);
    let (m, v, partials) = (address(buffers.m)?, address(buffers.v)?, address(&buffers.scratch.partials)?);
    let mut plan = Plan::new();
    if desc.measure_norm {
        let sums = Norm {
            grads,
            partials,
            n: desc.n as u64,
            piece: desc.piece() as u64,
            count: desc.partials() as u64,
            vector: u64::from(aligned(&[grads])),
        };
        plan.push(launch(NORM, blocks(sums.count, 1), &sums));
    }
    let inner_ends = &desc.rates[..desc.groups.saturating_sub(1)];
    let vector = aligned(&[params, working, grads, m, v]) && inner_ends.iter().all(|r| r.end.is_multiple_of(4));
    let mut rates = [Rates::default(); MAX_GROUPS];
    for (to, from) in rates.iter_mut().zip(&desc.rates) {
        *to = Rates { end: from.end as u64, keep: from.keep as f32, step: from.step as f32 };
    }
    let params = Step {
        params,
        working,
        grads,
        m,
        v,
        partials: if desc.measure_norm { partials } else { 0 },
        norm: address(&buffers.scratch.norm)?,
        n: desc.n as u64,
        rates,
        groups: desc.groups as u32,
        partial_count: desc.partials() as u32,
        first: (1.0 - desc.beta1) as f32,
        beta2: desc.beta2 as f32,
        second: (1.0 - desc.beta2) as f32,
        root_correction: desc.root_correction as f32,
        eps: desc.eps as f32,
        clip: desc.clip.unwrap_or(0.0) as f32,
        zero_grads: u32::from(desc.zero_grads),
        vector: u32::from(vector),
    };
    // Many elements a block, so that the partial sums that each block adds up are little beside them; fewer where that would leave
    // the machine idle.
    let each = if desc.n > 1 << 22 { 8192 } else { 2048 };
    plan.push(launch(kernel, blocks(desc.n as u64, each), &params));
    Ok(plan)
}
