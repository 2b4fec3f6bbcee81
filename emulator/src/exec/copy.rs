//! `cp.async`: the source is read when the copy is issued; the destination changes only when the issuing thread waits for the
//! group, and until then nobody may read or write it.

use super::block::{Block, Step, stop};
use super::lanes::LANES;
use super::traffic;
use super::warp::{Warp, lanes};
use crate::check::fault::{FaultKind, Memory};
use crate::decode::program::*;
use crate::memory::shared::{INIT, PENDING};
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
        let mut copy =
            PendingCopy { lanes: active, bytes, pc, dst: [0; LANES], data: [[0; 16]; LANES], group: warp.committed };
        let mut reading = 0;
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
            if let Err(c) = self.shared.shadow.write(offset, n, warp.id, &self.seen[warp.id], pc, false) {
                return self.shared_race(offset, true, c, l);
            }
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
        }
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
        let me = warp.id;
        let mut i = 0;
        while i < warp.copies.len() {
            let c = &mut warp.copies[i];
            let mut done = 0u32;
            for l in lanes(c.lanes & active) {
                let ready =
                    pending == NONE || u64::from(c.group[l]) + u64::from(pending) < u64::from(warp.committed[l]);
                done |= u32::from(ready) << l;
            }
            let n = u32::from(c.bytes);
            for l in lanes(done) {
                let o = c.dst[l] as usize;
                self.shared.data[o..o + n as usize].copy_from_slice(&c.data[l][..n as usize]);
                self.shared.set_state(c.dst[l], n, INIT);
                // The data is this warp's write of this moment.
                if let Err(conflict) = self.shared.shadow.write(c.dst[l], n, me, &self.seen[me], c.pc, false) {
                    let offset = c.dst[l];
                    return self.shared_race(offset, true, conflict, l);
                }
            }
            c.lanes &= !done;
            if c.lanes == 0 {
                warp.copies.remove(i);
            } else {
                i += 1;
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
