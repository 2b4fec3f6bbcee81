//! The launch plans: one launch forward, one backward.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/embedding.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub ids: u64,
    pub table: u64,
    pub y: u64,
    pub m: u64,
    pub v: u64,
    pub d: u64,
    pub wide_ids: u32,
    pub vector: u32,
}

const _: () = assert!(size_of::<Params>() == 56 && std::mem::offset_of!(Params, wide_ids) == 48);

/// Mirrors `struct GradientParams` in `kernels/embedding.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct GradientParams {
    pub ids: u64,
    pub dy: u64,
    pub dtable: u64,
    pub m: u64,
    pub v: u64,
    pub d: u64,
    pub wide_ids: u32,
    pub flags: u32,
}

const _: () = assert!(size_of::<GradientParams>() == 56 && std::mem::offset_of!(GradientParams, wide_ids) == 48);

const FORWARD: PerDType = per_dtype!("embedding_fwd", "t256");
const GRADIENT: PerDType = per_dtype!("embedding_bwd", "c512");
/// Columns that a block of the gradient kernels takes.
const COLUMNS: u64 = 512;

pub fn forward(desc: &Desc, ids: &Tensor, table: &Tensor, y: &Tensor) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &FORWARD)?;
    let (table, y) = (table.address()?, y.address()?);
    let vector = aligned(&[table, y]) && desc.d.is_multiple_of(pack(desc.dtype));
    let params = Params {
        ids: ids.address()?,
        table,
        y,
        m: desc.m as u64,
        v: desc.v as u64,
        d: desc.d as u64,
        wide_ids: u32::from(desc.id_dtype == DType::I64),
        vector: u32::from(vector),
    };
    let units = (desc.m * desc.d / if vector { pack(desc.dtype) } else { 1 }) as u64;
    Ok(Plan::from_iter([launch(kernel, blocks(units, u64::from(kernel.row().threads)), &params)]))
}

/// Adds to the rows that occur; the others are left as they are.
pub fn table_gradient(desc: &Desc, ids: &Tensor, dy: &Tensor, target: &Target) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &GRADIENT)?;
    let (dtable, flags) = address_and_flags(OP, desc.dtype, target)?;
    let params = GradientParams {
        ids: ids.address()?,
        dy: dy.address()?,
        dtable,
        m: desc.m as u64,
        v: desc.v as u64,
        d: desc.d as u64,
        wide_ids: u32::from(desc.id_dtype == DType::I64),
        flags,
    };
    let work = (desc.m as u64).saturating_mul((desc.d as u64).div_ceil(COLUMNS));
    Ok(Plan::from_iter([launch(kernel, blocks(work, 1), &params)]))
}
