//! The launch plans. Tiles of a gradient are computed into a workspace of bounded size by the sampled product, and reduced there: as
//! many rounds as the candidates need.

use super::BlockNorm;
use crate::autograd::Target;
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::block_sparse::{Sampled, sampled_strips};
use crate::ops::plan::{PerDType, by_dtype, launch};
use crate::ops::target::address_and_flags;
use crate::tensor::{BlockPattern, Tensor};

/// Mirrors `struct ScoreParams` in `kernels/block_score.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct ScoreParams {
    source: u64,
    weight: u64,
    out: u64,
    rows: u64,
    columns: u64,
    n: u64,
    k: u64,
    first: u32,
    count: u32,
    b: u32,
    flags: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<ScoreParams>() == 72 && offset_of!(ScoreParams, n) == 40 && offset_of!(ScoreParams, first) == 56);
};

const AS_MATRIX: u32 = 2;
const MEAN: u32 = 4;

static NORM: PerDType = [
    KernelId::of("block_score_norm_f32_t256_sm80"),
    KernelId::of("block_score_norm_f16_t256_sm80"),
    KernelId::of("block_score_norm_bf16_t256_sm80"),
];
static GRADIENT: PerDType = [
    KernelId::of("block_score_gradient_f32_t256_sm80"),
    KernelId::of("block_score_gradient_f16_t256_sm80"),
    KernelId::of("block_score_gradient_bf16_t256_sm80"),
];

/// Blocks of threads of a launch; they go on to further blocks of the matrix.
const MOST_BLOCKS: usize = 1 << 16;
/// Elements of a gradient's tiles that exist at a time.
const WORKSPACE: usize = 1 << 22;

fn params(pattern: &BlockPattern, first: usize, count: usize) -> Result<ScoreParams> {
    let ([n, k], addresses) = (pattern.shape(), pattern.addresses()?);
    Ok(ScoreParams {
        source: 0,
        weight: 0,
        out: 0,
        rows: addresses.rows,
        columns: addresses.columns,
        n: n as u64,
        k: k as u64,
        first: first as u32,
        count: count as u32,
        b: pattern.block() as u32,
        flags: 0,
    })
}

fn spec(op: &'static str, dtype: DType, kernels: &PerDType, params: ScoreParams) -> Result<LaunchSpec> {
    Ok(launch(by_dtype(op, dtype, kernels)?, (params.count as usize).min(MOST_BLOCKS) as u32, &params))
}

pub fn norms(op: &'static str, pattern: &BlockPattern, matrix: &Tensor, norm: BlockNorm, out: &Tensor) -> Result<Plan> {
    let as_matrix = if matrix.dims().len() == 2 { AS_MATRIX } else { 0 };
    let mean = if norm == BlockNorm::MeanAbsolute { MEAN } else { 0 };
    let params = ScoreParams {
        source: matrix.address()?,
        out: out.address()?,
        flags: as_matrix | mean,
        ..params(pattern, 0, pattern.nnz())?
    };
    Ok(Plan::from_iter([spec(op, matrix.dtype(), &NORM, params)?]))
}

pub fn score(desc: &Sampled, dy: &Tensor, x: &Tensor, weight: Option<&Tensor>, target: &Target) -> Result<()> {
    let (out, flags) = address_and_flags(desc.op, DType::F32, target)?;
    let (b, strips) = (desc.pattern.block(), desc.pattern.strips());
    let each = (WORKSPACE / (b * super::STRIP)).max(1);
    for start in (0..strips.len()).step_by(each) {
        let range = start..strips.len().min(start + each);
        let first = strips[start].first as usize;
        let last = strips[range.end - 1];
        let count = (last.first + last.count) as usize - first;
        let tiles = Tensor::empty(dy.device(), &[count, b, b], DType::F32)?;
        sampled_strips(desc, dy, x, range, &Target { tensor: tiles.clone(), accumulate: false })?;
        let params = ScoreParams {
            source: tiles.address()?,
            weight: weight.map_or(Ok(0), Tensor::address)?,
            out,
            flags,
            ..params(&desc.pattern, first, count)?
        };
        dy.device().run(&Plan::from_iter([spec(desc.op, desc.dtype, &GRADIENT, params)?]))?;
    }
    Ok(())
}
