//! The launch plans. Forward: one launch, and one that joins where chunks cut rows. Backward: one over the edges; the sums over them
//! are the sums of `spmm`.

use super::{Desc, OP, Operands, Slopes};
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::Csr;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::ops::product::Traffic;
use crate::ops::rows::{Deal, GraphParams, Walked, lanes};
use crate::ops::spmm::gpu::{tiles, unit};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/graph_attention.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub(crate) graph: GraphParams,
    pub x: u64,
    pub left: u64,
    pub right: u64,
    pub y: u64,
    pub lse: u64,
    pub dy: u64,
    pub alpha: u64,
    pub dz: u64,
    pub partial: u64,
    pub f: u64,
    pub d: u64,
    pub slope: f32,
    pub heads: u32,
    pub lanes: u32,
    pub flags: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Params>() == 160 && offset_of!(Params, x) == 56);
    assert!(offset_of!(Params, f) == 128 && offset_of!(Params, slope) == 144);
};

#[cfg_attr(not(test), allow(dead_code))]
impl Params {
    /// What the forward launch, and what that over the edges, reads and writes of a graph of these offsets, whose rows stay whole forward and
    /// where a head's columns fill a warp and no more. A score's halves and what becomes of it are a sector each.
    pub fn traffic(&self, offsets: &[usize], dtype: DType) -> [Traffic; 2] {
        let row = (self.d * dtype.size() as u64).div_ceil(32);
        let chunks = (self.graph.rows + self.graph.edges).div_ceil(self.graph.chunk);
        let heads = u64::from(self.heads);
        let of = |split| Deal { chunk: self.graph.chunk, chunks, split }.walked(offsets);
        let Walked { lookups, begun, written, edges, .. } = of(false);
        // A row's end and beginning are read again to tell whether it is empty.
        let loaded = heads * (lookups + begun + 2 * written + edges * (2 + row));
        let forward = Traffic { loaded, stored: heads * written * (row + 1), macs: 0 };
        let Walked { lookups, begun, edges, .. } = of(true);
        let loaded = heads * (lookups + begun * (2 + 2 * row) + edges * (2 + row));
        [forward, Traffic { loaded, stored: heads * edges * 2, macs: 0 }]
    }
}

const VECTOR: u32 = 1;
const SPLIT: u32 = 2;

const FORWARD: PerDType = per_dtype!("graph_attention_fwd", "t256");
const JOIN: PerDType = per_dtype!("graph_attention_join", "t256");
const EDGES: PerDType = per_dtype!("graph_attention_edges", "t256");

pub fn forward(desc: &Desc, graph: &Csr, operands: &Operands, y: &Tensor, lse: &Tensor) -> Result<()> {
    let width = desc.f + 2 * desc.heads;
    let deal = Deal::new(graph.pattern(), 4 * width as u64);
    let partial = Tensor::empty(y.device(), &[deal.slots(), width], DType::F32)?;
    let mut params = params(desc, graph, operands, &deal, &[y.address()?])?;
    (params.y, params.lse, params.partial) = (y.address()?, lse.address()?, partial.address()?);
    let per_head = tiles(params.d as usize, params.lanes, desc.dtype, params.flags & VECTOR != 0);
    let work = deal.chunks * desc.heads as u64 * per_head;
    let passes: &[&PerDType] = if deal.split { &[&FORWARD, &JOIN] } else { &[&FORWARD] };
    let mut plan = Plan::new();
    for pass in passes {
        let kernel = by_dtype(OP, desc.dtype, pass)?;
        plan.push(launch(kernel, blocks(work, u64::from(kernel.row().threads / params.lanes)), &params));
    }
    y.device().run(&plan)
}

pub fn edges(desc: &Desc, graph: &Csr, operands: &Operands, slopes: &Slopes) -> Result<()> {
    let deal = Deal::new(graph.pattern(), 0);
    let (y, dy) = (slopes.y.address()?, slopes.dy.address()?);
    let mut params = params(desc, graph, operands, &deal, &[y, dy])?;
    (params.y, params.dy, params.lse) = (y, dy, slopes.lse.address()?);
    (params.alpha, params.dz) = (slopes.alpha.address()?, slopes.dz.address()?);
    let kernel = by_dtype(OP, desc.dtype, &EDGES)?;
    let blocks = blocks(deal.chunks * desc.heads as u64, u64::from(kernel.row().threads / params.lanes));
    slopes.dy.device().run(&Plan::from_iter([launch(kernel, blocks, &params)]))
}

fn params(desc: &Desc, graph: &Csr, operands: &Operands, deal: &Deal, others: &[u64]) -> Result<Params> {
    let d = desc.f / desc.heads;
    let x = operands.x.address()?;
    let vector = d.is_multiple_of(pack(desc.dtype)) && aligned(&[x]) && aligned(others);
    Ok(Params {
        graph: GraphParams::new(graph.pattern(), deal)?,
        x,
        left: operands.left.address()?,
        right: operands.right.address()?,
        y: 0,
        lse: 0,
        dy: 0,
        alpha: 0,
        dz: 0,
        partial: 0,
        f: desc.f as u64,
        d: d as u64,
        slope: desc.slope as f32,
        heads: desc.heads as u32,
        lanes: lanes(d.div_ceil(unit(desc.dtype, vector))),
        flags: if vector { VECTOR } else { 0 } | if deal.split { SPLIT } else { 0 },
    })
}
