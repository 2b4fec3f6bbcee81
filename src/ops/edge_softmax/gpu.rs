//! The launch plans: one launch where rows are short; where chunks cut rows, one that reduces, one that joins, one that writes.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::Csr;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, blocks, by_dtype, launch, per_dtype};
use crate::ops::product::Traffic;
use crate::ops::rows::{Deal, GraphParams, lanes};
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/edge_softmax.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub(crate) graph: GraphParams,
    pub from: u64,
    pub dp: u64,
    pub out: u64,
    pub stats: u64,
    pub partial: u64,
    pub heads: u32,
    pub together: u32,
    pub lanes: u32,
    pub target: u32,
    pub stage: u32,
    pub reserved: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Params>() == 120 && offset_of!(Params, from) == 56 && offset_of!(Params, heads) == 96);
};

#[cfg_attr(not(test), allow(dead_code))]
impl Params {
    /// What one launch over whole rows reads and writes of a graph of these offsets, where a team is a warp that takes all heads at once: the
    /// numbers of a row twice, as many edges at a time as the team has room for.
    pub fn traffic(&self, offsets: &[usize], dtype: DType) -> Traffic {
        let chunks = (self.graph.rows + self.graph.edges).div_ceil(self.graph.chunk);
        let lookups = Deal { chunk: self.graph.chunk, chunks, split: false }.walked(offsets).lookups;
        let (step, bytes) = ((self.lanes / self.together) as usize, self.heads as usize * dtype.size());
        let sectors = |row: &[usize]| -> u64 {
            let steps = (row[0]..row[1]).step_by(step);
            steps.map(|e| ((row[1].min(e + step) * bytes).div_ceil(32) - e * bytes / 32) as u64).sum()
        };
        let numbers: u64 = offsets.windows(2).map(sectors).sum();
        let operands = if self.dp == 0 { 1 } else { 2 };
        Traffic { loaded: lookups + 2 * operands * numbers, stored: numbers, macs: 0 }
    }
}

const WHOLE: u32 = 0;
const STATS: u32 = 1;
const JOIN: u32 = 2;
const WRITE: u32 = 3;

const FORWARD: PerDType = per_dtype!("edge_softmax_fwd", "t256");
const BACKWARD: PerDType = per_dtype!("edge_softmax_bwd", "t256");

pub fn forward(desc: &Desc, graph: &Csr, scores: &Tensor, p: &Tensor) -> Result<()> {
    run(desc, graph, by_dtype(OP, desc.dtype, &FORWARD)?, [scores.address()?, 0], (p.address()?, 0))
}

pub fn backward(desc: &Desc, graph: &Csr, p: &Tensor, dp: &Tensor, target: &Target) -> Result<()> {
    let kernel = by_dtype(OP, desc.dtype, &BACKWARD)?;
    let out = address_and_flags(OP, desc.dtype, target)?;
    run(desc, graph, kernel, [p.address()?, dp.address()?], out)
}

fn run(desc: &Desc, graph: &Csr, kernel: KernelId, [from, dp]: [u64; 2], (out, target): (u64, u32)) -> Result<()> {
    let (h, device) = (desc.heads, graph.device());
    let deal = Deal::new(graph.pattern(), 8 * h as u64);
    let (stats, partial) = if deal.split { (desc.v, deal.slots()) } else { (0, 0) };
    let stats = Tensor::empty(device, &[stats, h, 2], DType::F32)?;
    let partial = Tensor::empty(device, &[partial, h, 2], DType::F32)?;
    let together = if h.is_power_of_two() && h <= 32 { h } else { 1 };
    // Rows of average length keep all lanes busy.
    let edges_at_once = desc.e.div_ceil(desc.v.max(1)).clamp(1, 32 / together);
    let lanes = lanes(together * edges_at_once.next_power_of_two());
    let params = Params {
        graph: GraphParams::new(graph.pattern(), &deal)?,
        from,
        dp,
        out,
        stats: stats.address()?,
        partial: partial.address()?,
        heads: h as u32,
        together: together as u32,
        lanes,
        target,
        stage: WHOLE,
        reserved: 0,
    };
    let blocks = blocks(deal.chunks * (h / together) as u64, u64::from(kernel.row().threads / lanes));
    let stages: &[u32] = if deal.split { &[STATS, JOIN, WRITE] } else { &[WHOLE] };
    let plan: Plan = stages.iter().map(|&stage| launch(kernel, blocks, &Params { stage, ..params })).collect();
    device.run(&plan)
}
