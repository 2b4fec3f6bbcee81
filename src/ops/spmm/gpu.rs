//! The launch plans: one launch, or two where rows are long enough to be cut.

use super::{By, Divide, Gather, OP, Reduce};
use crate::autograd::Target;
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::ops::product::Traffic;
use crate::ops::rows::{Deal, GraphParams, Walked, lanes};
use crate::ops::target::address_and_flags;
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/spmm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub(crate) graph: GraphParams,
    pub x: u64,
    pub weights: u64,
    pub arg: u64,
    pub degrees: u64,
    pub y: u64,
    pub picked: u64,
    pub partial: u64,
    pub partial_arg: u64,
    pub f: u64,
    /// Columns of a head.
    pub d: u64,
    pub heads: u32,
    pub lanes: u32,
    pub target: u32,
    pub flags: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Params>() == 152 && offset_of!(Params, x) == 56);
    assert!(offset_of!(Params, f) == 120 && offset_of!(Params, flags) == 148);
};

const VECTOR: u32 = 1;
const MEAN: u32 = 2;
const LOWEST: u32 = 4;
pub(crate) const SPLIT: u32 = 8;
const WIDE_WEIGHTS: u32 = 16;
const WIDE_DEGREES: u32 = 32;

const SUM: PerDType = per_dtype!("spmm_sum", "t256");
const PICK: PerDType = per_dtype!("spmm_pick", "t256");
const MAX: PerDType = per_dtype!("spmm_max", "t256");
const SUM_JOIN: PerDType = per_dtype!("spmm_sumjoin", "t256");
const MAX_JOIN: PerDType = per_dtype!("spmm_maxjoin", "t256");

pub fn sum(gather: &Gather, target: &Target) -> Result<()> {
    let (y, flags) = address_and_flags(OP, gather.x.dtype(), target)?;
    let deal = Deal::new(gather.pattern, 4 * gather.f() as u64);
    let partial = Tensor::empty(gather.x.device(), &[deal.slots(), gather.f()], DType::F32)?;
    let mut params = params(gather, &deal, &[y])?;
    (params.y, params.target) = (y, flags);
    params.partial = partial.address()?;
    let first = if gather.picked.is_some() { &PICK } else { &SUM };
    gather.x.device().run(&plan(gather, &deal, &params, [first, &SUM_JOIN])?)
}

pub fn extremum(gather: &Gather, reduce: Reduce, y: &Tensor, picked: &Tensor) -> Result<()> {
    let deal = Deal::new(gather.pattern, 12 * gather.f() as u64);
    let parts = [deal.slots(), gather.f()];
    let partial = Tensor::empty(y.device(), &parts, DType::F32)?;
    let partial_arg = Tensor::empty(y.device(), &parts, DType::I64)?;
    let mut params = params(gather, &deal, &[y.address()?])?;
    (params.y, params.picked) = (y.address()?, picked.address()?);
    (params.partial, params.partial_arg) = (partial.address()?, partial_arg.address()?);
    params.flags |= if reduce == Reduce::Min { LOWEST } else { 0 };
    y.device().run(&plan(gather, &deal, &params, [&MAX, &MAX_JOIN])?)
}

fn params(gather: &Gather, deal: &Deal, written: &[u64]) -> Result<Params> {
    let (f, heads) = (gather.f(), gather.heads);
    let d = f / heads;
    let x = gather.x.address()?;
    let vector = d.is_multiple_of(pack(gather.x.dtype())) && aligned(&[x]) && aligned(written);
    let mut graph = GraphParams::new(gather.pattern, deal)?;
    if gather.by == By::Edges {
        graph.indices = 0;
    }
    let (degrees, wide_degrees) = match gather.divide {
        Divide::Gathered(offsets) => (offsets.address()?, offsets.dtype() == DType::I64),
        _ => (0, false),
    };
    let wide_weights = gather.weights.is_some_and(|w| w.dtype() == DType::F32);
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    Ok(Params {
        graph,
        x,
        weights: gather.weights.map_or(Ok(0), Tensor::address)?,
        arg: gather.picked.map_or(Ok(0), Tensor::address)?,
        degrees,
        y: 0,
        picked: 0,
        partial: 0,
        partial_arg: 0,
        f: f as u64,
        d: d as u64,
        heads: heads as u32,
        lanes: lanes(d.div_ceil(unit(gather.x.dtype(), vector))),
        target: 0,
        flags: flag(vector, VECTOR)
            | flag(matches!(gather.divide, Divide::Row), MEAN)
            | flag(deal.split, SPLIT)
            | flag(wide_weights, WIDE_WEIGHTS)
            | flag(wide_degrees, WIDE_DEGREES),
    })
}

#[cfg_attr(not(test), allow(dead_code))]
impl Params {
    /// What the first launch reads and writes of a graph of these offsets whose rows are gathered as they lie, 16 bytes a lane. Teams of one
    /// warp that walk one chunk look things up together; where they walk several, what they meet in by chance counts for each.
    pub fn traffic(&self, deal: &Deal, offsets: &[usize], dtype: DType) -> Traffic {
        let sectors = |size: u64| (self.d * size).div_ceil(32) * u64::from(self.heads);
        // A part has four bytes a number, of which a lane stores sixteen at once: half a sector, where its piece of a 16-bit row is a whole one.
        let (row, part) = (sectors(dtype.size() as u64), sectors(4) * 4 / dtype.size() as u64);
        let (teams, a_warp) = (self.teams(dtype), u64::from(32 / self.lanes));
        let teams = if teams.is_multiple_of(a_warp) { teams / a_warp } else { teams };
        let of_edge = 1 + u64::from(self.weights != 0);
        let Walked { lookups, written, parts, edges, .. } = deal.walked(offsets);
        Traffic {
            loaded: teams * (lookups + edges * of_edge) + edges * row,
            stored: written * row + parts * part,
            macs: 0,
        }
    }

    /// Teams that walk one chunk: one for each head, and for each tile of its columns.
    pub fn teams(&self, dtype: DType) -> u64 {
        u64::from(self.heads) * tiles(self.d as usize, self.lanes, dtype, true)
    }
}

/// Columns of a lane: 16 bytes, or four.
pub(crate) fn unit(dtype: DType, vector: bool) -> usize {
    if vector { pack(dtype) } else { 4 }
}

/// Tiles of columns that a head is cut into.
pub(crate) fn tiles(d: usize, lanes: u32, dtype: DType, vector: bool) -> u64 {
    d.div_ceil(lanes as usize * unit(dtype, vector)) as u64
}

/// The walk, and the join where rows are cut.
fn plan(gather: &Gather, deal: &Deal, params: &Params, [walk, join]: [&PerDType; 2]) -> Result<Plan> {
    let dtype = gather.x.dtype();
    let vector = params.flags & VECTOR != 0;
    let work = deal.chunks * params.heads as u64 * tiles(params.d as usize, params.lanes, dtype, vector);
    let spec = |kernel: KernelId| -> LaunchSpec {
        let teams = u64::from(kernel.row().threads / params.lanes);
        launch(kernel, blocks(work, teams), params)
    };
    let mut plan = Plan::from_iter([spec(by_dtype(OP, dtype, walk)?)]);
    if deal.split {
        plan.push(spec(by_dtype(OP, dtype, join)?));
    }
    Ok(plan)
}
