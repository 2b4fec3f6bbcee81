//! `cp.async`: the source is read when the copy is issued; the destination changes only when the issuing thread waits for the
//! group, and until then nobody may read or write it.

use std::rc::Rc;

use super::block::{Block, Step, stop};
use super::lanes::LANES;
use super::source::Source;
use super::traffic;
use super::warp::{Warp, lanes};
use crate::check::fault::{FaultKind, Memory};
use crate::decode::program::*;
use crate::memory::shared::{INIT, PENDING, Shared};
use crate::parse::ast::Space;

/// A copy that has not landed, for the lanes that issued it.
#[derive(Debug, Clone)]
pub struct PendingCopy {
    lanes: u32,
    bytes: u8,
    pc: u32,
    dst: [u32; LANES],
    data: [[u8; 16]; LANES],
    /// The group of each lane that the copy belongs to.
    group: [u32; LANES],
    /// Global memory that it reads until it lands.
    source: Option<Rc<Source>>,
}

impl PendingCopy {
    /// Takes what these lanes issued out of a list of copies.
    pub fn split(copies: &mut Vec<PendingCopy>, which: u32) -> Vec<PendingCopy> {
        let mut out = Vec::new();
        for c in copies.iter_mut().filter(|c| c.lanes & which != 0) {
            out.push(PendingCopy { lanes: c.lanes & which, ..c.clone() });
            c.lanes &= !which;
        }
        copies.retain(|c| c.lanes != 0);
        out
    }

    /// The data of these lanes arrives in shared memory.
    pub fn land(&mut self, shared: &mut Shared, which: u32) {
        let n = usize::from(self.bytes);
        for l in lanes(self.lanes & which) {
            let o = self.dst[l] as usize;
            shared.data[o..o + n].copy_from_slice(&self.data[l][..n]);
            shared.set_state(self.dst[l], n as u32, INIT);
        }
        self.lanes &= !which;
        if self.lanes == 0 {
            self.source = None;
        }
    }

    /// The lanes whose group is among those that are waited for.
    fn ready(&self, committed: &[u32; LANES], pending: u32, active: u32) -> u32 {
        let over =
            |l: &usize| pending == NONE || u64::from(self.group[*l]) + u64::from(pending) < u64::from(committed[*l]);
        lanes(self.lanes & active).filter(over).fold(0, |m, l| m | 1 << l)
    }
}

impl Block<'_> {
    pub fn copy_async(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        [dst, src]: [&Addr; 2],
        bytes: u8,
        src_bytes: u32,
        ignore: u32,
        active: u32,
        pc: u32,
    ) -> Step<()> {
        let to = self.addresses(warp, frame, dst);
        let from = self.addresses(warp, frame, src);
        let planes = &warp.frames[frame].planes;
        let sizes = if src_bytes == NONE { [u32::from(bytes); LANES] } else { *planes.get(src_bytes) };
        let ignored = if ignore == NONE { 0 } else { planes.mask(ignore) };
        let mut copy = PendingCopy {
            lanes: active,
            bytes,
            pc,
            dst: [0; LANES],
            data: [[0; 16]; LANES],
            group: warp.committed,
            source: None,
        };
        let mut reading = 0;
        let mut ranges = Vec::with_capacity(active.count_ones() as usize);
        for l in lanes(active) {
            let size = if ignored >> l & 1 == 1 { 0 } else { sizes[l] };
            if size > u32::from(bytes) {
                let text = format!("source size {size} exceeds the copy's {bytes} bytes");
                return stop(FaultKind::Misuse(text), Some(l));
            }
            let offset = self.shared_check(to[l], u32::from(bytes), l, true)?;
            copy.dst[l] = offset;
            let n = u32::from(bytes);
            let (_, any) = self.shared.states(offset, n);
            if any & PENDING != 0 {
                let kind = FaultKind::AsyncNotWaited { memory: Memory::Shared, address: to[l], write: true };
                return stop(kind, Some(l));
            }
            // The copy may land at any time from now on: earlier reads of the place must be ordered before it.
            self.shared_note_write(warp.id, offset, n, pc, false, l, self.stamp(warp.id, l))?;
            for s in &mut self.shared.state[offset as usize..(offset + n) as usize] {
                *s |= PENDING;
            }
            if size == 0 {
                continue;
            }
            reading |= 1 << l;
            if from[l] & u64::from(n - 1) != 0 {
                let kind = FaultKind::Misaligned { memory: Memory::Global, address: from[l], bytes: n, write: false };
                return stop(kind, Some(l));
            }
            let Some(i) = self.env.view.locate(from[l], u64::from(size), &mut warp.hint) else {
                let kind =
                    FaultKind::OutOfBounds { memory: Memory::Global, address: from[l], bytes: size, write: false };
                return stop(kind, Some(l));
            };
            let alloc = &self.env.view.allocations[i];
            let at = from[l] - alloc.base;
            let used = ((1u64 << size) - 1) as u32;
            if alloc.initialised(at, size) != used {
                let kind = FaultKind::UninitialisedMemory { memory: Memory::Global, address: from[l], bytes: size };
                return stop(kind, Some(l));
            }
            alloc.copy_out(&mut copy.data[l][..size as usize], at);
            self.global_read(warp, i, at, size, pc, false, l)?;
            ranges.push((from[l], from[l] + u64::from(size)));
        }
        copy.source = self.hold_source(ranges);
        if reading != 0 {
            self.counters.load_sectors += traffic::sectors(&from, reading, u32::from(bytes));
            self.counters.ideal_sectors += u64::from(reading.count_ones() * u32::from(bytes)).div_ceil(32);
        }
        let (total, conflicts) = traffic::wavefronts(&copy.dst, active, u32::from(bytes));
        self.counters.shared_wavefronts += total;
        self.counters.bank_conflicts += conflicts;
        warp.copies.push(copy);
        Ok(())
    }

    /// Lands what the active lanes wait for: all but the last `pending` committed groups, or everything.
    pub fn copy_wait(&mut self, warp: &mut Warp, pending: u32, active: u32) -> Step<()> {
        let mut copies = std::mem::take(&mut warp.copies);
        let result = self.land_ready(warp, &mut copies, pending, active);
        copies.retain(|c| c.lanes != 0);
        warp.copies = copies;
        result?;
        // Copies that an mbarrier follows can be waited for as well.
        let follow = self.shared.mbarriers.iter().filter(|(_, b)| b.deferred.iter().any(|d| d.warp == warp.id));
        let mut offsets: Vec<u32> = follow.map(|(o, _)| *o).collect();
        offsets.sort_unstable();
        for o in offsets {
            let Some(b) = self.shared.mbarriers.get_mut(&o) else { continue };
            let mut deferred = std::mem::take(&mut b.deferred);
            for d in deferred.iter_mut().filter(|d| d.warp == warp.id) {
                self.land_ready(warp, &mut d.copies, pending, active)?;
            }
            if let Some(b) = self.shared.mbarriers.get_mut(&o) {
                b.deferred = deferred;
            }
        }
        Ok(())
    }

    fn land_ready(&mut self, warp: &Warp, copies: &mut [PendingCopy], pending: u32, active: u32) -> Step<()> {
        for c in copies {
            let done = c.ready(&warp.committed, pending, active);
            c.land(&mut self.shared, done);
            for l in lanes(done) {
                // The data is this lane's write of this moment.
                let stamp = self.stamp(warp.id, l);
                self.shared_note_write(warp.id, c.dst[l], u32::from(c.bytes), c.pc, false, l, stamp)?;
            }
        }
        Ok(())
    }

    /// The shared address of each lane of a matrix row access.
    pub fn shared_rows(&self, warp: &Warp, frame: usize, addr: &Addr, space: Space) -> [u64; LANES] {
        let mut a = self.addresses(warp, frame, addr);
        if space == Space::Generic {
            for x in &mut a {
                // A generic address of another memory keeps its tag, and falls outside shared memory.
                if super::special::space_of(*x) == Space::Shared {
                    *x &= !WINDOW_MASK;
                } else {
                    *x |= 1 << 63;
                }
            }
        }
        a
    }
}
