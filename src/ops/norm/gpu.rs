//! The launch plans: a warp for each short row, a block for each long one.

use super::{Desc, Kind, OP, Statistics};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::tensor::Tensor;

/// Mirrors `struct Forward` in `kernels/norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Forward {
    pub x: u64,
    pub gamma: u64,
    /// 0 when there is none.
    pub beta: u64,
    pub y: u64,
    pub statistics: u64,
    pub m: u64,
    pub d: u64,
    pub eps: f32,
    /// 1 for layer norm, 0 for RMS.
    pub centred: u32,
    /// 1 when the statistics are read instead of computed.
    pub given: u32,
    pub vector: u32,
}

/// Mirrors `struct Backward` in `kernels/norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Backward {
    pub dy: u64,
    pub x: u64,
    pub gamma: u64,
    pub dx: u64,
    pub statistics: u64,
    pub m: u64,
    pub d: u64,
    pub centred: u32,
    pub accumulate: u32,
    pub vector: u32,
    pub reserved: u32,
}

/// Mirrors `struct Gamma` in `kernels/norm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Gamma {
    pub dy: u64,
    pub x: u64,
    /// `[pieces, d]`, f32
    pub partial: u64,
    pub statistics: u64,
    pub m: u64,
    pub d: u64,
    pub piece: u64,
    pub centred: u32,
    pub vector: u32,
}

const _: () = assert!(size_of::<Forward>() == 72 && std::mem::offset_of!(Forward, eps) == 56);
const _: () = assert!(size_of::<Backward>() == 72 && std::mem::offset_of!(Backward, centred) == 56);
const _: () = assert!(size_of::<Gamma>() == 64 && std::mem::offset_of!(Gamma, centred) == 56);

const FORWARD_WARP: PerDType = per_dtype!("norm_fwd", "warp");
const FORWARD_BLOCK: PerDType = per_dtype!("norm_fwd", "block");
const BACKWARD_WARP: PerDType = per_dtype!("norm_bwd", "warp");
const BACKWARD_BLOCK: PerDType = per_dtype!("norm_bwd", "block");
const GAMMA: PerDType = per_dtype!("norm_gamma", "t256");

/// Rows whose products one block adds up for dγ.
const PIECE: usize = 128;

pub fn pieces(desc: &Desc) -> usize {
    desc.m.div_ceil(PIECE)
}

/// The kernel and its number of blocks. A warp takes a row that it can hold in registers; a longer one gets a whole block.
fn rowwise(desc: &Desc, chunks: &str, vector: bool, warp: &PerDType, block: &PerDType) -> Result<(KernelId, u32)> {
    let kernel = by_dtype(OP, desc.dtype, warp)?;
    let unit = if vector { pack(desc.dtype) } else { 1 };
    let held = kernel.family().defines.iter().find(|(name, _)| *name == chunks).map_or(1, |&(_, c)| c as usize);
    if desc.d <= 32 * unit * held {
        return Ok((kernel, blocks(desc.m as u64, u64::from(kernel.row().threads / 32))));
    }
    Ok((by_dtype(OP, desc.dtype, block)?, blocks(desc.m as u64, 1)))
}

pub fn forward(
    desc: &Desc,
    x: &Tensor,
    (gamma, beta): (&Tensor, Option<&Tensor>),
    statistics: Statistics,
    y: &Tensor,
) -> Result<Plan> {
    let beta = beta.map_or(Ok(0), Tensor::address)?;
    let (x, gamma, y) = (x.address()?, gamma.address()?, y.address()?);
    let vector = desc.d.is_multiple_of(pack(desc.dtype)) && aligned(&[x, gamma, beta, y]);
    let (kernel, blocks) = rowwise(desc, "NORM_FORWARD_CHUNKS", vector, &FORWARD_WARP, &FORWARD_BLOCK)?;
    let params = Forward {
        x,
        gamma,
        beta,
        y,
        statistics: statistics.tensor().address()?,
        m: desc.m as u64,
        d: desc.d as u64,
        eps: desc.eps as f32,
        centred: u32::from(desc.kind == Kind::Layer),
        given: u32::from(matches!(statistics, Statistics::Given(_))),
        vector: u32::from(vector),
    };
    Ok(Plan::from_iter([launch(kernel, blocks, &params)]))
}

pub fn input_gradient(
    desc: &Desc,
    dy: &Tensor,
    x: &Tensor,
    statistics: &Tensor,
    gamma: &Tensor,
    target: &Target,
) -> Result<Plan> {
    let (dy, x, gamma, dx) = (dy.address()?, x.address()?, gamma.address()?, target.tensor.address()?);
    let vector = desc.d.is_multiple_of(pack(desc.dtype)) && aligned(&[dy, x, gamma, dx]);
    let (kernel, blocks) = rowwise(desc, "NORM_BACKWARD_CHUNKS", vector, &BACKWARD_WARP, &BACKWARD_BLOCK)?;
    let params = Backward {
        dy,
        x,
        gamma,
        dx,
        statistics: statistics.address()?,
        m: desc.m as u64,
        d: desc.d as u64,
        centred: u32::from(desc.kind == Kind::Layer),
        accumulate: u32::from(target.accumulate),
        vector: u32::from(vector),
        reserved: 0,
    };
    Ok(Plan::from_iter([launch(kernel, blocks, &params)]))
}

/// Partial sums of dγ, one row of `partial` for each piece of rows.
pub fn gamma_gradient(desc: &Desc, dy: &Tensor, x: &Tensor, statistics: &Tensor, partial: &Tensor) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &GAMMA)?;
    let (dy, x) = (dy.address()?, x.address()?);
    let vector = desc.d.is_multiple_of(pack(desc.dtype)) && aligned(&[dy, x]);
    let params = Gamma {
        dy,
        x,
        partial: partial.address()?,
        statistics: statistics.address()?,
        m: desc.m as u64,
        d: desc.d as u64,
        piece: PIECE as u64,
        centred: u32::from(desc.kind == Kind::Layer),
        vector: u32::from(vector),
    };
    let tile = 32 * if vector { pack(desc.dtype) } else { 1 };
    let tiles = desc.d.div_ceil(tile) as u64 * pieces(desc) as u64;
    Ok(Plan::from_iter([launch(kernel, blocks(tiles, 1), &params)]))
}
