//! Dispatch of the instructions that exist from sm_90 on, and cluster barriers.

use super::block::{Block, Step, stop};
use super::step::Flow;
use super::warp::{Wait, Warp, lanes};
use crate::check::fault::{FaultKind, Memory};
use crate::decode::hopper::Hopper;
use crate::decode::program::*;
use crate::memory::shared::Shared;

/// The barrier of a cluster, and what its blocks share.
#[derive(Debug, Default)]
pub struct ClusterBarrier {
    pub generation: u64,
    arrived: u32,
    /// Threads of the cluster that have not exited.
    pub alive: u32,
}

impl ClusterBarrier {
    pub fn new(alive: u32) -> ClusterBarrier {
        ClusterBarrier { alive, ..ClusterBarrier::default() }
    }

    pub fn settle(&mut self) {
        if self.arrived > 0 && self.arrived >= self.alive {
            self.arrived = 0;
            self.generation += 1;
        }
    }
}

impl Block<'_> {
    pub fn hopper(&mut self, warp: &mut Warp, gi: usize, pc: u32, h: &Hopper, active: u32) -> Step<Flow> {
        let frame = warp.groups[gi].frame as usize;
        let first = active.trailing_zeros() as usize;
        match h {
            Hopper::GridDependency | Hopper::SetMaxNreg => {}
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
            Hopper::MbarArrive { d, addr, count, expect, drop, release } => {
                let a = self.addresses(warp, frame, addr);
                for l in lanes(active) {
                    let n = self.scalar(warp, frame, *count, l, 1);
                    let tx = (*expect != NONE).then(|| self.scalar(warp, frame, *expect, l, 0));
                    let state = self.mbarrier_arrive(warp, a[l], n, tx, *drop, *release, l, pc)?;
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
                    self.mbarrier_tx(a[l], sign * n, l)?;
                }
            }
            Hopper::MbarWait { d, addr, state, parity, blocking, acquire } => {
                let a = self.addresses(warp, frame, addr);
                return self.mbarrier_wait(warp, frame, *d, &a, *state, *parity, *blocking, *acquire, active, pc);
            }
            Hopper::MbarPending { d, a } => {
                let p = &mut warp.frames[frame].planes;
                let count = p.get(*a).map(|state| state & 0xF_FFFF);
                p.put(*d, &count, active);
            }
            Hopper::CpAsyncArrive { addr, noinc } => {
                // The arrival may come as late as the copies; it comes at once, with the copies landed first.
                let a = self.addresses(warp, frame, addr);
                self.copy_wait(warp, NONE, active)?;
                if *noinc {
                    for l in lanes(active) {
                        self.mbarrier_arrive(warp, a[l], 1, None, false, true, l, pc)?;
                    }
                }
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
            Hopper::BulkCommit => warp.bulk_committed += 1,
            // With `.read` or without, the source is free; the destination was written when the copy was issued.
            Hopper::BulkWait { pending } => self.bulk_wait(warp, *pending, pc),
            Hopper::WgFence => warp.wg_fenced = true,
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
            Hopper::ClusterArrive => {
                let mut b = self.cluster_barrier.borrow_mut();
                warp.cluster_generation = b.generation;
                b.arrived += active.count_ones();
                for (s, t) in self.cluster_seen.iter_mut().zip(&self.seen[warp.id]) {
                    *s = (*s).max(*t);
                }
                self.seen[warp.id][warp.id] += 1;
                self.only_full_barriers = false;
                self.counters.barriers += 1;
                b.settle();
            }
            Hopper::ClusterWait => {
                if self.cluster_barrier.borrow().generation <= warp.cluster_generation {
                    return Ok(Flow::Retry(Wait::Cluster { generation: warp.cluster_generation }));
                }
                // The warps of this block are ordered among each other; those of its peers are not tracked.
                let joined = self.cluster_seen;
                for (s, t) in self.seen[warp.id].iter_mut().zip(&joined) {
                    *s = (*s).max(*t);
                }
            }
        }
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

    /// A plain access to another block's shared memory: bounds, alignment and initialisation are checked, races are not.
    pub fn remote(&mut self, address: u64, bytes: u32, lane: usize, write: bool) -> Step<Option<(usize, u32)>> {
        if address >> 24 == 0 {
            return Ok(None);
        }
        let (rank, offset) = self.resolve_shared(address, lane)?;
        if offset % bytes != 0 {
            return stop(FaultKind::Misaligned { memory: Memory::Shared, address, bytes, write }, Some(lane));
        }
        let own = rank == self.rank;
        let s: &Shared = self.shared_of(rank);
        if offset < SHARED_START || (offset + bytes) as usize > s.data.len() {
            return stop(FaultKind::OutOfBounds { memory: Memory::Shared, address, bytes, write }, Some(lane));
        }
        if !write && s.states(offset, bytes).0 & crate::memory::shared::INIT == 0 {
            return stop(FaultKind::UninitialisedMemory { memory: Memory::Shared, address, bytes }, Some(lane));
        }
        let _ = own;
        Ok(Some((rank, offset)))
    }
}
