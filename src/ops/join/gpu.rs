//! The launch plan: one launch for each part, whatever the number of batch items.

use super::{OP, Runs};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/join.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    /// Where the first run begins.
    pub from: u64,
    pub to: u64,
    pub runs: u64,
    pub length: u64,
    /// Elements from one run to the next.
    pub from_pitch: u64,
    pub to_pitch: u64,
    pub accumulate: u32,
    pub vector: u32,
}

const _: () = assert!(size_of::<Params>() == 56 && std::mem::offset_of!(Params, accumulate) == 48);

const COPY: PerDType = per_dtype!("join_copy", "t256");

pub fn carry(runs: &Runs, from: &Tensor, to: &Target) -> Result<Plan> {
    let kernel = by_dtype(OP, from.dtype(), &COPY)?;
    let (size, per_unit) = (from.dtype().size(), pack(from.dtype()));
    let at = |address: u64, first: usize| address + (first * size) as u64;
    let from_at = at(from.address()?, runs.from.first);
    let to_at = at(to.tensor.address()?, runs.to.first);
    let whole = [runs.length, runs.from.pitch, runs.to.pitch].iter().all(|n| n.is_multiple_of(per_unit));
    let vector = whole && aligned(&[from_at, to_at]);
    let params = Params {
        from: from_at,
        to: to_at,
        runs: runs.count as u64,
        length: runs.length as u64,
        from_pitch: runs.from.pitch as u64,
        to_pitch: runs.to.pitch as u64,
        accumulate: u32::from(to.accumulate),
        vector: u32::from(vector),
    };
    let units = params.runs * params.length / if vector { per_unit as u64 } else { 1 };
    Ok(Plan::from_iter([launch(kernel, blocks(units, u64::from(kernel.row().threads)), &params)]))
}
