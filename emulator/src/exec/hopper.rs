//! Dispatch of the instructions that exist from sm_90 on, and cluster barriers.

use super::barrier::sync_lanes;
use super::block::{Block, Step, stop};
use super::step::Flow;
use super::warp::{Touched, Wait, Warp, lanes};
use crate::check::clocks::Foreign;
use crate::check::fault::FaultKind;
use crate::decode::hopper::Hopper;
use crate::decode::program::*;
use crate::decode::tensormap::Field;

/// The barrier of a cluster, and what its blocks share.
#[derive(Debug, Default)]
pub struct ClusterBarrier {
    pub generation: u64,
    arrived: u32,
    /// Threads of the cluster that have not exited.
    pub alive: u32,
    /// What the arrivals of this phase release, what those of the last one did, and the same for initialised mbarriers.
    gathering: Foreign,
    done: Foreign,
    gathering_inits: Foreign,
    done_inits: Foreign,
}

impl ClusterBarrier {
    pub fn new(alive: u32) -> ClusterBarrier {
        ClusterBarrier { alive, ..ClusterBarrier::default() }
    }

    pub fn settle(&mut self) {
        if self.arrived > 0 && self.arrived >= self.alive {
            self.arrived = 0;
            self.generation += 1;
            self.done = self.gathering.clone();
            self.done_inits = self.gathering_inits.clone();
        }
    }
}

impl Block<'_> {
    pub fn hopper(&mut self, warp: &mut Warp, gi: usize, pc: u32, h: &Hopper, active: u32) -> Step<Flow> {
        let frame = warp.groups[gi].frame as usize;
        let first = active.trailing_zeros() as usize;
        match h {
            Hopper::GridDependency => {}
            Hopper::SetMaxNreg { increase, wanted } => {
                return self.set_registers(warp, gi, *increase, *wanted, active, pc);
            }
            Hopper::MbarInit { addr, count } => {
                let a = self.addresses(warp, frame, addr);
                for l in lanes(active) {
                    let n = self.scalar(warp, frame, *count, l, 1);
                    self.mbarrier_init(warp, a[l], n, l, pc)?;
                }
            }
            Hopper::MbarInval { addr } => {
                let a = self.addresses(warp, frame, addr);
                self.mbarrier_inval(a[first], first)?;
            }
            Hopper::MbarArrive { d, addr, count, expect, how } => {
                let a = self.addresses(warp, frame, addr);
                for l in lanes(active) {
                    let n = self.scalar(warp, frame, *count, l, 1);
                    let tx = (*expect != NONE).then(|| self.scalar(warp, frame, *expect, l, 0));
                    let state = self.mbarrier_arrive(warp, a[l], (n, tx), how, l, pc)?;
                    if *d != NONE {
                        warp.frames[frame].planes.set_u64(*d, l, state);
                    }
                }
            }
            Hopper::MbarExpect { addr, tx } | Hopper::MbarComplete { addr, tx } => {
                let a = self.addresses(warp, frame, addr);
                let sign = if matches!(h, Hopper::MbarExpect { .. }) { 1 } else { -1 };
                for l in lanes(active) {
                    let n = i64::from(self.scalar(warp, frame, *tx, l, 0));
                    self.mbarrier_tx(warp, a[l], sign * n, l, pc)?;
                }
            }
            Hopper::MbarWait { addr, wait } => {
                let a = self.addresses(warp, frame, addr);
                return self.mbarrier_wait(warp, frame, wait, &a, active, pc);
            }
            Hopper::MbarPending { d, a } => {
                let p = &mut warp.frames[frame].planes;
                let count = p.get(*a).map(|state| state & 0xF_FFFF);
                p.put(*d, &count, active);
            }
            Hopper::CpAsyncArrive { addr, noinc } => {
                let a = self.addresses(warp, frame, addr);
                self.mbarrier_follow(warp, &a, !*noinc, active, pc)?;
            }
            Hopper::BulkLoad { dst, src, size, mbar, mask } => {
                let (d, s, b) = (
                    self.addresses(warp, frame, dst),
                    self.addresses(warp, frame, src),
                    self.addresses(warp, frame, mbar),
                );
                for l in lanes(active) {
                    let n = self.scalar(warp, frame, *size, l, 0);
                    self.bulk_load(warp, frame, [d[l], s[l], b[l]], n, *mask, l, pc)?;
                }
            }
            Hopper::BulkPeer { dst, src, size, mbar } => {
                let (d, s, b) = (
                    self.addresses(warp, frame, dst),
                    self.addresses(warp, frame, src),
                    self.addresses(warp, frame, mbar),
                );
                for l in lanes(active) {
                    let n = self.scalar(warp, frame, *size, l, 0);
                    self.bulk_peer(warp, [d[l], s[l], b[l]], n, l, pc)?;
                }
            }
            Hopper::BulkStore { dst, src, size, reduce } => {
                let (d, s) = (self.addresses(warp, frame, dst), self.addresses(warp, frame, src));
                for l in lanes(active) {
                    let n = self.scalar(warp, frame, *size, l, 0);
                    self.bulk_store(warp, [d[l], s[l]], n, *reduce, l, pc)?;
                }
            }
            Hopper::TensorLoad { dst, map, coords, mbar, mask } => {
                let (d, m, b) = (
                    self.addresses(warp, frame, dst),
                    self.addresses(warp, frame, map),
                    self.addresses(warp, frame, mbar),
                );
                for l in lanes(active) {
                    let at = self.coordinates_of(warp, frame, coords, l);
                    self.tensor_load(warp, frame, [d[l], m[l], b[l]], &at, *mask, l, pc)?;
                }
            }
            Hopper::TensorStore { map, coords, src, reduce } => {
                let (m, s) = (self.addresses(warp, frame, map), self.addresses(warp, frame, src));
                for l in lanes(active) {
                    let at = self.coordinates_of(warp, frame, coords, l);
                    self.tensor_store(warp, [m[l], s[l]], &at, *reduce, l, pc)?;
                }
            }
            Hopper::Prefetch { addr, size, coords } => {
                let a = self.addresses(warp, frame, addr);
                for l in lanes(active) {
                    let n = self.scalar(warp, frame, *size, l, 0);
                    self.bulk_prefetch(warp, a[l], n, coords.len(), l)?;
                }
            }
            Hopper::MapReplace { addr, space, field, ord, value } => {
                let a = self.addresses(warp, frame, addr);
                let p = &warp.frames[frame].planes;
                let wide = matches!(field, Field::Address | Field::Stride);
                let values: [u64; 32] =
                    std::array::from_fn(|l| if wide { p.u64_at(*value, l) } else { u64::from(p.get(*value)[l]) });
                self.map_replace(warp, &a, *space, (*field, *ord), &values, active, pc)?;
            }
            Hopper::MapCopy { dst, src } => {
                if let Some(flow) = self.whole_warp(warp, gi, active)? {
                    return Ok(flow);
                }
                let (d, s) = (self.addresses(warp, frame, dst), self.addresses(warp, frame, src));
                self.map_copy(warp, d[first], s[first], pc)?;
            }
            Hopper::MapAcquire { addr } => {
                let a = self.addresses(warp, frame, addr);
                for l in lanes(active) {
                    self.changed_maps.remove(&a[l]);
                }
            }
            Hopper::AsyncStore { addr, values, mbar, ty, reduce } => {
                let (a, b) = (self.addresses(warp, frame, addr), self.addresses(warp, frame, mbar));
                for l in lanes(active) {
                    let p = &warp.frames[frame].planes;
                    let data = values.iter().flat_map(|&v| {
                        let value = if ty.bytes() == 8 { p.u64_at(v, l) } else { u64::from(p.get(v)[l]) };
                        value.to_le_bytes().into_iter().take(ty.bytes() as usize)
                    });
                    let data = data.collect();
                    self.send_value(warp, [a[l], b[l]], data, reduce.map(|op| (op, *ty)), l, pc)?;
                }
            }
            Hopper::BulkCommit => {
                for l in lanes(active) {
                    warp.bulk_committed[l] += 1;
                }
            }
            // With `.read` or without, the source is free; the destination was written when the copy was issued.
            Hopper::BulkWait { pending } => self.bulk_wait(warp, *pending, active, pc),
            Hopper::WgFence => {
                if let Some(flow) = self.whole_warp(warp, gi, active)? {
                    return Ok(flow);
                }
                warp.fence = Some(Touched::default());
            }
            Hopper::WgCommit => self.wg_committed[warp.id] += 1,
            Hopper::WgWait { pending } => return Ok(self.wgmma_wait(warp, frame, *pending)),
            Hopper::Wgmma(w) => return self.wgmma(warp, gi, w, active, pc),
            Hopper::Mapa { d, a, b, planes, generic } => {
                self.mapa(warp, frame, [*d, *a, *b], *planes, *generic, active)?
            }
            Hopper::CtaRank { d, a, planes } => {
                for l in lanes(active) {
                    let p = &warp.frames[frame].planes;
                    let address = if *planes == 2 { p.u64_at(*a, l) } else { u64::from(p.get(*a)[l]) };
                    let rank = self.resolve_shared(address, l)?.0 as u32;
                    warp.frames[frame].planes.0[*d as usize][l] = rank;
                }
            }
            Hopper::ClusterArrive { aligned, release } => {
                if let Some(flow) = self.cluster_together(warp, gi, *aligned, active)? {
                    return Ok(flow);
                }
                self.cluster_arrive(warp, *release, active)?;
            }
            Hopper::ClusterWait { aligned } => {
                if let Some(flow) = self.cluster_together(warp, gi, *aligned, active)? {
                    return Ok(flow);
                }
                return self.cluster_wait(warp, active);
            }
        }
        Ok(Flow::Next)
    }

    /// The lanes of an aligned cluster barrier come together.
    fn cluster_together(&mut self, warp: &Warp, gi: usize, aligned: bool, active: u32) -> Step<Option<Flow>> {
        let mask = warp.groups[gi].mask;
        if !aligned || (active == mask && mask == warp.alive) {
            return Ok(None);
        }
        if active != mask {
            let kind = FaultKind::Divergent { arrived: active, expected: mask };
            return stop(kind, Some(active.trailing_zeros() as usize));
        }
        self.converge(warp, gi, warp.alive).map(Some)
    }

    fn cluster_arrive(&mut self, warp: &mut Warp, release: bool, active: u32) -> Step<()> {
        let me = warp.id;
        if warp.cluster_arrived & active != 0 {
            let l = (warp.cluster_arrived & active).trailing_zeros() as usize;
            return stop(FaultKind::Misuse("a second arrival at the cluster barrier without a wait".into()), Some(l));
        }
        warp.cluster_arrived |= active;
        let index = self.index as u32;
        let released = self.publish(me, release).map(|(seen, foreign)| foreign.with(index, &seen));
        let mut b = self.cluster_barrier.borrow_mut();
        warp.cluster_generation = b.generation;
        b.arrived += active.count_ones();
        if let Some(r) = released {
            b.gathering.join(&r);
        }
        if let Some(inits) = &self.init_released[me] {
            b.gathering_inits.join(inits);
        }
        self.only_full_barriers = false;
        self.counters.barriers += 1;
        b.settle();
        Ok(())
    }

    fn cluster_wait(&mut self, warp: &mut Warp, active: u32) -> Step<Flow> {
        let me = warp.id;
        if active & !warp.cluster_arrived != 0 {
            let l = (active & !warp.cluster_arrived).trailing_zeros() as usize;
            return stop(FaultKind::Misuse("a wait at the cluster barrier without an arrival".into()), Some(l));
        }
        if self.cluster_barrier.borrow().generation <= warp.cluster_generation {
            return Ok(Flow::Retry(Wait::Cluster { generation: warp.cluster_generation }));
        }
        warp.cluster_arrived &= !active;
        let (done, inits) = {
            let b = self.cluster_barrier.borrow();
            (b.done.clone(), b.done_inits.clone())
        };
        self.acquire_wide(me, &done);
        self.inits[me].join(&inits);
        sync_lanes(&mut self.epochs[me], active);
        Ok(Flow::Next)
    }

    fn mapa(
        &self,
        warp: &mut Warp,
        frame: usize,
        [d, a, b]: [u32; 3],
        planes: u8,
        generic: bool,
        active: u32,
    ) -> Step<()> {
        for l in lanes(active) {
            let p = &mut warp.frames[frame].planes;
            let address = if planes == 2 { p.u64_at(a, l) } else { u64::from(p.get(a)[l]) };
            let rank = p.get(b)[l];
            if rank as usize >= self.peers.len() {
                let text = format!("mapa to block {rank} of a cluster of {}", self.peers.len());
                return stop(FaultKind::Misuse(text), Some(l));
            }
            let tag = if generic { address & WINDOW_MASK } else { 0 };
            let out = tag | u64::from(rank + 1) << 24 | (address & 0xFF_FFFF);
            if planes == 2 {
                p.set_u64(d, l, out);
            } else {
                p.0[d as usize][l] = out as u32;
            }
        }
        Ok(())
    }
}
