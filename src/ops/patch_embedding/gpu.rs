//! The launch plans: one launch each.

use super::{Desc, OP, Operands, Sum};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::{Error, Result};
use crate::ops::plan::{PerDType, blocks, by_dtype, launch, per_dtype};
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/patch_embedding.cu`. What a pass does not touch, or was not given, is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub pixels: u64,
    pub weight: u64,
    pub bias: u64,
    pub cls: u64,
    pub positions: u64,
    pub y: u64,
    pub dy: u64,
    pub dpixels: u64,
    pub items: u64,
    pub d: u64,
    pub k: u64,
    pub tokens: u64,
    pub patches: u64,
    pub channels: u32,
    pub patch: u32,
    pub down: u32,
    pub across: u32,
    pub dpixels_flags: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Params>() == 128 && std::mem::offset_of!(Params, channels) == 104);

/// Mirrors `struct SumParams` in `kernels/patch_embedding.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SumParams {
    pub dy: u64,
    pub out: u64,
    pub items: u64,
    pub d: u64,
    pub tokens: u64,
    pub groups: u64,
    pub inner: u64,
    pub base: u64,
    pub flags: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<SumParams>() == 72 && std::mem::offset_of!(SumParams, flags) == 64);

const FORWARD: PerDType = per_dtype!("patch_embedding_fwd", "t64");
const PIXELS: PerDType = per_dtype!("patch_embedding_dpixels", "t64");
const SUMS: PerDType = per_dtype!("patch_embedding_sums", "c32");
/// Rows and columns of a block's tile of a product, and columns of a block of a sum.
const TILE: u64 = 64;
const SUM_COLUMNS: u64 = 32;

fn params(desc: &Desc, weight: &Tensor) -> Result<Params> {
    // Places within one image are counted in 32 bits.
    let small = |n: usize| {
        u32::try_from(n).map_err(|_| Error::Unsupported {
            op: OP,
            what: format!("an image of {} patches of {} values", desc.patches(), desc.k()),
            hint: "on a GPU both must stay below 2^32".into(),
        })
    };
    small(desc.patches())?;
    small(desc.k().max(desc.d))?;
    Ok(Params {
        pixels: 0,
        weight: weight.address()?,
        bias: 0,
        cls: 0,
        positions: 0,
        y: 0,
        dy: 0,
        dpixels: 0,
        items: desc.b as u64,
        d: desc.d as u64,
        k: desc.k() as u64,
        tokens: desc.t() as u64,
        patches: desc.patches() as u64,
        channels: small(desc.c)?,
        patch: small(desc.patch)?,
        down: small(desc.grid[0])?,
        across: small(desc.grid[1])?,
        dpixels_flags: 0,
        reserved: 0,
    })
}

fn tiles(m: usize, n: usize) -> u32 {
    blocks((m as u64).div_ceil(TILE).saturating_mul((n as u64).div_ceil(TILE)), 1)
}

pub(crate) fn forward(desc: &Desc, pixels: &Tensor, operands: &Operands, y: &Tensor) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &FORWARD)?;
    let address = |tensor: Option<&Tensor>| tensor.map_or(Ok(0), Tensor::address);
    let params = Params {
        pixels: pixels.address()?,
        bias: address(operands.bias)?,
        cls: address(operands.cls)?,
        positions: address(operands.positions)?,
        y: y.address()?,
        ..params(desc, operands.weight)?
    };
    Ok(Plan::from_iter([launch(kernel, tiles(desc.b * desc.t(), desc.d), &params)]))
}

pub(crate) fn pixel_gradient(desc: &Desc, dy: &Tensor, weight: &Tensor, target: &Target) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &PIXELS)?;
    let (dpixels, dpixels_flags) = address_and_flags(OP, desc.dtype, target)?;
    let params = Params { dy: dy.address()?, dpixels, dpixels_flags, ..params(desc, weight)? };
    Ok(Plan::from_iter([launch(kernel, tiles(desc.b * desc.patches(), desc.k()), &params)]))
}

pub(crate) fn token_sums(desc: &Desc, sum: &Sum, dy: &Tensor, target: &Target) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &SUMS)?;
    let (out, flags) = address_and_flags(OP, desc.dtype, target)?;
    let params = SumParams {
        dy: dy.address()?,
        out,
        items: desc.b as u64,
        d: desc.d as u64,
        tokens: desc.t() as u64,
        groups: sum.groups as u64,
        inner: sum.inner as u64,
        base: sum.base as u64,
        flags,
        reserved: 0,
    };
    let work = (sum.groups as u64).saturating_mul((desc.d as u64).div_ceil(SUM_COLUMNS));
    Ok(Plan::from_iter([launch(kernel, blocks(work, 1), &params)]))
}
