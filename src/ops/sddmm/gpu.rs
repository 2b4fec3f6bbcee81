//! The launch plan: one launch; edges are dealt out evenly whatever the degrees.

use super::{OP, Pairs};
use crate::autograd::Target;
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::ops::product::Traffic;
use crate::ops::rows::{Deal, GraphParams, Walked, lanes};
use crate::ops::spmm::gpu::unit;
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/sddmm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub(crate) graph: GraphParams,
    pub a: u64,
    pub b: u64,
    pub arg: u64,
    pub out: u64,
    pub f: u64,
    pub d: u64,
    pub heads: u32,
    pub lanes: u32,
    pub target: u32,
    pub flags: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Params>() == 120 && offset_of!(Params, a) == 56 && offset_of!(Params, heads) == 104);
};

#[cfg_attr(not(test), allow(dead_code))]
impl Params {
    /// What the launch reads and writes of a graph of these offsets, where a head's columns fill a warp and no more: each row once for every
    /// chunk that has edges of it, and for each edge its index, the other row and the product.
    pub fn traffic(&self, offsets: &[usize], dtype: DType) -> Traffic {
        let row = (self.d * dtype.size() as u64).div_ceil(32);
        let all = (self.graph.rows + self.graph.edges).div_ceil(self.graph.chunk);
        let Walked { lookups, begun, edges, .. } =
            Deal { chunk: self.graph.chunk, chunks: all, split: true }.walked(offsets);
        let heads = u64::from(self.heads);
        Traffic { loaded: heads * (lookups + begun * row + edges * (1 + row)), stored: heads * edges, macs: 0 }
    }
}

const VECTOR: u32 = 1;
const MEAN: u32 = 2;

const KERNELS: PerDType = per_dtype!("sddmm_fwd", "t256");

pub fn dots(pairs: &Pairs, target: &Target) -> Result<()> {
    let dtype = pairs.a.dtype();
    let kernel = by_dtype(OP, dtype, &KERNELS)?;
    let (out, flags) = address_and_flags(OP, dtype, target)?;
    // Nothing is left to join, so that parts take no memory.
    let deal = Deal::new(pairs.pattern, 0);
    let (a, b) = (pairs.a.address()?, pairs.b.address()?);
    let d = pairs.a.cols() / pairs.heads;
    let vector = d.is_multiple_of(pack(dtype)) && aligned(&[a, b]);
    let params = Params {
        graph: GraphParams::new(pairs.pattern, &deal)?,
        a,
        b,
        arg: pairs.picked.map_or(Ok(0), Tensor::address)?,
        out,
        f: pairs.a.cols() as u64,
        d: d as u64,
        heads: pairs.heads as u32,
        lanes: lanes(d.div_ceil(unit(dtype, vector))),
        target: flags,
        flags: if vector { VECTOR } else { 0 } | if pairs.mean { MEAN } else { 0 },
    };
    let teams = u64::from(kernel.row().threads / params.lanes);
    let work = deal.chunks * pairs.heads as u64;
    pairs.a.device().run(&Plan::from_iter([launch(kernel, blocks(work, teams), &params)]))
}
