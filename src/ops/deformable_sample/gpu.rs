//! The launch plans: a warp for a head of a query, and for the gradient of the maps a warp for a tile of tokens.

use super::{Desc, LOGITS, MAX_LEVELS, OFFSETS, OP, Operands, VALUE};
use crate::autograd::{Sinks, Target};
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::plan::{PerDType, blocks, by_dtype, launch, per_dtype};
use crate::ops::scale_add::accumulate;
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Maps` in `kernels/deformable_sample.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Maps {
    pub height: [u32; MAX_LEVELS],
    pub width: [u32; MAX_LEVELS],
    pub first: [u32; MAX_LEVELS],
    pub levels: u32,
    pub points: u32,
}

/// Mirrors `struct Params`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub value: u64,
    pub offsets: u64,
    pub logits: u64,
    pub references: u64,
    pub dy: u64,
    pub y: u64,
    /// 0 where nobody wants it, as are those below.
    pub d_offsets: u64,
    pub d_logits: u64,
    /// `[b, h, l, q, p, 4]`, f32: place and weight of each sample.
    pub records: u64,
    pub b: u64,
    pub q: u64,
    pub s: u64,
    pub heads: u32,
    pub d: u32,
    pub maps: Maps,
}

/// Mirrors `struct Value`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Value {
    pub dy: u64,
    pub records: u64,
    pub target: u64,
    pub b: u64,
    pub q: u64,
    pub s: u64,
    pub heads: u32,
    pub d: u32,
    pub flags: u32,
    pub reserved: u32,
    pub maps: Maps,
}

const _: () = assert!(size_of::<Params>() == 208 && std::mem::offset_of!(Params, maps) == 104);
const _: () = assert!(size_of::<Value>() == 168 && std::mem::offset_of!(Value, maps) == 64);

const FORWARD: PerDType = per_dtype!("deformable_sample_fwd", "w32");
const BACKWARD: PerDType = per_dtype!("deformable_sample_bwd", "w32");
const VALUES: PerDType = per_dtype!("deformable_sample_value", "t32");

/// Tokens that a warp collects the gradient of.
const TILE: u64 = 32;

impl Desc {
    fn maps(&self) -> Maps {
        let of = |extent: fn(&super::Level) -> usize| self.levels.map(|level| extent(&level) as u32);
        let (height, width, first) = (of(|l| l.height), of(|l| l.width), of(|l| l.first));
        Maps { height, width, first, levels: self.l as u32, points: self.points as u32 }
    }

    fn params(&self, operands: &Operands) -> Result<Params> {
        Ok(Params {
            value: operands.value.address()?,
            offsets: operands.offsets.address()?,
            logits: operands.logits.address()?,
            references: operands.references.address()?,
            dy: 0,
            y: 0,
            d_offsets: 0,
            d_logits: 0,
            records: 0,
            b: self.b as u64,
            q: self.q as u64,
            s: self.s as u64,
            heads: self.heads as u32,
            d: self.d as u32,
            maps: self.maps(),
        })
    }
}

/// One warp for each head of each query.
fn by_query(desc: &Desc, kernels: &PerDType, params: &Params) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, kernels)?;
    let warps = u64::from(kernel.row().threads / 32);
    Ok(Plan::from_iter([launch(kernel, blocks((desc.b * desc.q * desc.heads) as u64, warps), params)]))
}

pub fn forward(desc: &Desc, operands: &Operands, o: &Tensor) -> Result<Plan> {
    by_query(desc, &FORWARD, &Params { y: o.address()?, ..desc.params(operands)? })
}

pub fn backward(desc: &Desc, operands: &Operands, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
    let device = dy.device();
    // Two that one kernel makes, and only one can be opened at a time: they are made on the side.
    let on_side = |input: usize, sinks: &Sinks<'_>, like: &Tensor| {
        sinks.wants(input).then(|| Tensor::empty(device, like.dims(), desc.dtype)).transpose()
    };
    let d_offsets = on_side(OFFSETS, sinks, operands.offsets)?;
    let d_logits = on_side(LOGITS, sinks, operands.logits)?;
    let samples = desc.b * desc.heads * desc.q * desc.samples();
    let records = sinks.wants(VALUE).then(|| Tensor::empty(device, &[samples, 4], DType::F32)).transpose()?;
    let address = |tensor: &Option<Tensor>| tensor.as_ref().map_or(Ok(0), Tensor::address);
    if samples > 0 {
        let params = Params {
            dy: dy.address()?,
            d_offsets: address(&d_offsets)?,
            d_logits: address(&d_logits)?,
            records: address(&records)?,
            ..desc.params(operands)?
        };
        device.run(&by_query(desc, &BACKWARD, &params)?)?;
    }
    for (input, slopes) in [(OFFSETS, d_offsets), (LOGITS, d_logits)] {
        let Some(slopes) = slopes.filter(|slopes| !sinks.pass(input, slopes)) else { continue };
        if let Some(target) = sinks.open(input)? {
            accumulate(&target, &slopes)?;
        }
    }
    match (records, sinks.open(VALUE)?) {
        (Some(records), Some(target)) => device.run(&maps(desc, dy, &records, &target)?),
        _ => Ok(()),
    }
}

/// dV.
fn maps(desc: &Desc, dy: &Tensor, records: &Tensor, target: &Target) -> Result<Plan> {
    let jobs = desc.b as u64 * (desc.s as u64).div_ceil(TILE) * desc.heads as u64 * (desc.d as u64).div_ceil(32);
    if jobs == 0 {
        return Ok(Plan::new());
    }
    let kernel = by_dtype(OP, desc.dtype, &VALUES)?;
    let (address, flags) = address_and_flags(OP, desc.dtype, target)?;
    let params = Value {
        dy: dy.address()?,
        records: records.address()?,
        target: address,
        b: desc.b as u64,
        q: desc.q as u64,
        s: desc.s as u64,
        heads: desc.heads as u32,
        d: desc.d as u32,
        flags,
        reserved: 0,
        maps: desc.maps(),
    };
    Ok(Plan::from_iter([launch(kernel, blocks(jobs, u64::from(kernel.row().threads / 32)), &params)]))
}
