//! The launch plans: a block for eight rows' norms, a thread for each quotient.

use super::{Desc, Kind, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::ops::plan::{PerDType, blocks, by_dtype, launch, per_dtype};
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Norms` in `kernels/magnitude.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Norms {
    pub weight: u64,
    pub a: u64,
    pub b: u64,
    /// f32
    pub norms: u64,
    pub n: u64,
    pub k: u64,
    pub r: u32,
    pub scale: f32,
}

/// Mirrors `struct Divide` in `kernels/magnitude.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Divide {
    pub x: u64,
    pub norms: u64,
    pub target: u64,
    pub n: u64,
    /// What comes of a norm of 0.
    pub without: f32,
    pub flags: u32,
}

const _: () = assert!(size_of::<Norms>() == 56 && std::mem::offset_of!(Norms, r) == 48);
const _: () = assert!(size_of::<Divide>() == 40 && std::mem::offset_of!(Divide, without) == 32);

const NORMS: PerDType = per_dtype!("magnitude_norms", "r8");
const DIVIDE: PerDType = per_dtype!("magnitude_divide", "t256");

/// Rows of a block.
const ROWS: u64 = 8;

pub fn norms(desc: &Desc, weight: &Tensor, [a, b]: [&Tensor; 2], norms: &Tensor) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &NORMS)?;
    let params = Norms {
        weight: weight.address()?,
        a: a.address()?,
        b: b.address()?,
        norms: norms.address()?,
        n: desc.n as u64,
        k: desc.k as u64,
        r: desc.r as u32,
        scale: desc.scale as f32,
    };
    Ok(Plan::from_iter([launch(kernel, blocks(desc.n as u64, ROWS), &params)]))
}

pub fn divide(desc: &Desc, x: &Tensor, norms: &Tensor, kind: Kind, target: &Target) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &DIVIDE)?;
    let (address, flags) = address_and_flags(OP, desc.dtype, target)?;
    let params = Divide {
        x: x.address()?,
        norms: norms.address()?,
        target: address,
        n: desc.n as u64,
        without: if kind == Kind::Forward { 1.0 } else { 0.0 },
        flags,
    };
    Ok(Plan::from_iter([launch(kernel, blocks(desc.n as u64, u64::from(kernel.row().threads)), &params)]))
}
