//! Happens-before: vector clocks of the warps of a block, and the last accesses of every piece of memory.
//!
//! Each warp has a clock that advances when it releases (arrives at a barrier, fences and then writes a flag). `seen[w]` is the
//! newest time of warp w that is ordered before this warp's next instruction. An access at time t of warp w is ordered
//! before this warp if t ≤ seen[w]; two accesses to the same piece, one a write, not so ordered, race.
//!
//! Two finer orders sit beside it. Lanes of one warp have times of their own, which advance where the warp synchronises: what
//! one lane wrote another may not read at the same time. Other blocks of a cluster are known by [`Foreign`] clocks.

use std::collections::HashMap;

use super::clocks::Foreign;

/// Most warps of a block.
pub const MAX_WARPS: usize = 32;

/// Times of the warps, then of the warpgroups: a matrix operation belongs to its warpgroup, and is over for all when any of
/// the four warps has waited for it.
pub type Seen = [u32; MAX_WARPS + MAX_WARPS / 4];
pub const NOTHING: Seen = [0; MAX_WARPS + MAX_WARPS / 4];

/// A lane and its time within the warp: five bits and the rest.
pub type Stamp = u32;
/// What no single lane did, or an order among lanes does not matter for.
pub const NO_LANE: Stamp = u32::MAX;

pub fn stamp(lane: usize, epoch: u32) -> Stamp {
    (lane as u32) << 27 | (epoch & 0x7FF_FFFF)
}

/// Who accesses memory, and what is ordered before that.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    pub block: u32,
    pub warp: usize,
    pub seen: &'a Seen,
    pub foreign: &'a Foreign,
    pub pc: u32,
    pub atomic: bool,
    pub stamp: Stamp,
}

impl Who<'_> {
    fn knows(&self, block: u32, warp: usize, clock: u32) -> bool {
        if block == self.block {
            warp == self.warp || clock <= self.seen[warp]
        } else {
            self.foreign.ordered(block, warp, clock)
        }
    }
}

/// An earlier access that is not ordered before the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    /// Another block of the cluster.
    pub block: Option<u32>,
    pub warp: u32,
    /// Another lane of the same warp.
    pub lane: Option<u32>,
    pub clock: u32,
    pub pc: u32,
    pub wrote: bool,
}

const PC_BITS: u64 = 24;
const PC_MASK: u64 = (1 << PC_BITS) - 2;

fn pack(who: &Who) -> u64 {
    let clock = who.seen[who.warp];
    u64::from(clock) << 32 | (who.warp as u64) << PC_BITS | (u64::from(who.pc) << 1 & PC_MASK) | u64::from(who.atomic)
}

/// An access from another block of the cluster.
#[derive(Debug, Clone, Copy)]
pub struct RemoteAccess {
    pub block: u32,
    pub warp: u8,
    pub atomic: bool,
    pub clock: u32,
    pub pc: u32,
}

const NO_ACCESS: RemoteAccess = RemoteAccess { block: u32::MAX, warp: 0, atomic: false, clock: 0, pc: 0 };

impl RemoteAccess {
    fn of(who: &Who) -> RemoteAccess {
        let clock = who.seen[who.warp];
        RemoteAccess { block: who.block, warp: who.warp as u8, atomic: who.atomic, clock, pc: who.pc }
    }

    fn conflict(&self, who: &Who, wrote: bool) -> Option<Conflict> {
        let ordered = self.block == u32::MAX
            || (self.atomic && who.atomic)
            || who.knows(self.block, usize::from(self.warp), self.clock);
        (!ordered).then_some(Conflict {
            block: Some(self.block),
            warp: u32::from(self.warp),
            lane: None,
            clock: self.clock,
            pc: self.pc,
            wrote,
        })
    }
}

/// The last write and the last read of each warp, for every granule of shared memory.
#[derive(Debug, Default)]
pub struct SharedShadow {
    warps: usize,
    columns: usize,
    shift: u32,
    writes: Vec<u64>,
    /// Lane and time of each last write.
    stamps: Vec<Stamp>,
    reads: Vec<u64>,
    /// Empty until another block of the cluster writes here, or reads.
    remote_writes: Vec<RemoteAccess>,
    remote_reads: HashMap<u32, Vec<RemoteAccess>>,
}

impl SharedShadow {
    /// `groups`: warpgroups whose matrix operations read shared memory.
    pub fn reset(&mut self, bytes: usize, shift: u32, warps: usize, groups: usize) {
        self.warps = warps;
        self.columns = warps + groups;
        self.shift = shift;
        let n = (bytes >> shift) + 1;
        self.writes.clear();
        self.writes.resize(n, 0);
        self.stamps.clear();
        self.stamps.resize(n, NO_LANE);
        self.reads.clear();
        self.reads.resize(n * self.columns, 0);
        self.remote_writes.clear();
        self.remote_reads.clear();
    }

    #[inline]
    fn range(&self, offset: u32, bytes: u32) -> std::ops::RangeInclusive<usize> {
        (offset >> self.shift) as usize..=((offset + bytes - 1) >> self.shift) as usize
    }

    /// Warp and time of the last write that covers an offset.
    pub fn last_write(&self, offset: u32) -> (usize, u32) {
        let e = self.writes[(offset >> self.shift) as usize];
        ((e >> PC_BITS & 31) as usize, (e >> 32) as u32)
    }

    #[inline]
    fn write_conflict(&self, g: usize, who: &Who) -> Option<Conflict> {
        let e = self.writes[g];
        let w = (e >> PC_BITS & 0xFF) as usize;
        let conflict = |lane| Conflict {
            block: None,
            warp: w as u32,
            lane,
            clock: (e >> 32) as u32,
            pc: ((e & PC_MASK) >> 1) as u32,
            wrote: true,
        };
        if w != who.warp {
            if (e >> 32) as u32 > who.seen[w & 31] && !(who.atomic && e & 1 == 1) {
                return Some(conflict(None));
            }
        } else if self.lanes_clash(g, e, who) {
            return Some(conflict(Some(self.stamps[g] >> 27)));
        }
        if !self.remote_writes.is_empty() {
            return self.remote_writes[g].conflict(who, true);
        }
        None
    }

    /// Did another lane of this warp write, with nothing between that orders the lanes? One instruction is judged elsewhere.
    #[inline]
    fn lanes_clash(&self, g: usize, e: u64, who: &Who) -> bool {
        let s = self.stamps[g];
        s != NO_LANE
            && who.stamp != NO_LANE
            && s >> 27 != who.stamp >> 27
            && s & 0x7FF_FFFF >= who.stamp & 0x7FF_FFFF
            && e & 1 == 0
            && (e & PC_MASK) >> 1 != u64::from(who.pc)
    }

    #[inline]
    pub fn read(&mut self, offset: u32, bytes: u32, who: &Who) -> Result<(), Conflict> {
        for g in self.range(offset, bytes) {
            if let Some(c) = self.write_conflict(g, who) {
                return Err(c);
            }
            self.reads[g * self.columns + who.warp] = u64::from(who.seen[who.warp]) << 32 | u64::from(who.pc);
        }
        Ok(())
    }

    /// A read by a warpgroup's matrix operation of the given time.
    pub fn read_group(&mut self, offset: u32, bytes: u32, who: &Who, time: u32) -> Result<(), Conflict> {
        for g in self.range(offset, bytes) {
            if let Some(c) = self.write_conflict(g, who) {
                return Err(c);
            }
            self.reads[g * self.columns + self.warps + who.warp / 4] = u64::from(time) << 32 | u64::from(who.pc);
        }
        Ok(())
    }

    #[inline]
    pub fn write(&mut self, offset: u32, bytes: u32, who: &Who) -> Result<(), Conflict> {
        for g in self.range(offset, bytes) {
            if let Some(c) = self.write_conflict(g, who) {
                return Err(c);
            }
            let row = &self.reads[g * self.columns..(g + 1) * self.columns];
            for (w, &r) in row.iter().enumerate() {
                let actor = if w < self.warps { w } else { MAX_WARPS + w - self.warps };
                if (r >> 32) as u32 > who.seen[actor] && w != who.warp {
                    return Err(self.read_conflict(w, r, None));
                }
            }
            if !self.remote_reads.is_empty()
                && let Some(c) = self.remote_read_conflict(g, who)
            {
                return Err(c);
            }
            self.writes[g] = pack(who);
            self.stamps[g] = who.stamp;
        }
        Ok(())
    }

    /// `w`: a column of the reads.
    fn read_conflict(&self, w: usize, r: u64, block: Option<u32>) -> Conflict {
        let w = if w < self.warps { w } else { 4 * (w - self.warps) };
        Conflict { block, warp: w as u32, lane: None, clock: (r >> 32) as u32, pc: r as u32, wrote: false }
    }

    fn remote_read_conflict(&self, g: usize, who: &Who) -> Option<Conflict> {
        self.remote_reads.get(&(g as u32))?.iter().find_map(|r| r.conflict(who, false))
    }

    /// Is the last write to a piece of block `owner`'s memory, by itself or another block, ordered before a third block's access?
    fn remote_write_conflict(&self, g: usize, owner: u32, who: &Who) -> Option<Conflict> {
        let e = self.writes[g];
        let (w, clock) = ((e >> PC_BITS & 0xFF) as usize, (e >> 32) as u32);
        if e != 0 && !(who.atomic && e & 1 == 1) && !who.knows(owner, w, clock) {
            let pc = ((e & PC_MASK) >> 1) as u32;
            return Some(Conflict { block: Some(owner), warp: w as u32, lane: None, clock, pc, wrote: true });
        }
        self.remote_writes.get(g)?.conflict(who, true)
    }

    /// A read of this block's memory (`owner`) from another block of the cluster.
    pub fn remote_read(&mut self, offset: u32, bytes: u32, owner: u32, who: &Who) -> Result<(), Conflict> {
        for g in self.range(offset, bytes) {
            if let Some(c) = self.remote_write_conflict(g, owner, who) {
                return Err(c);
            }
            let list = self.remote_reads.entry(g as u32).or_default();
            let new = RemoteAccess::of(who);
            match list.iter_mut().find(|r| r.block == new.block && r.warp == new.warp) {
                Some(r) => *r = new,
                None => list.push(new),
            }
        }
        Ok(())
    }

    /// A write to this block's memory (`owner`) from another block of the cluster.
    pub fn remote_write(&mut self, offset: u32, bytes: u32, owner: u32, who: &Who) -> Result<(), Conflict> {
        if self.remote_writes.is_empty() {
            self.remote_writes.resize(self.writes.len(), NO_ACCESS);
        }
        for g in self.range(offset, bytes) {
            if let Some(c) = self.remote_write_conflict(g, owner, who) {
                return Err(c);
            }
            for w in 0..self.columns {
                let r = self.reads[g * self.columns + w];
                let actor = if w < self.warps { w } else { MAX_WARPS + w - self.warps };
                if r != 0 && !who.knows(owner, actor, (r >> 32) as u32) {
                    return Err(self.read_conflict(w, r, Some(owner)));
                }
            }
            if let Some(c) = self.remote_read_conflict(g, who) {
                return Err(c);
            }
            self.remote_writes[g] = RemoteAccess::of(who);
        }
        Ok(())
    }

    /// An access from another block that nothing orders before the end of this one.
    pub fn unfinished(&self, foreign: &Foreign) -> Option<(u32, RemoteAccess, bool)> {
        let late = |r: &RemoteAccess| r.block != u32::MAX && !foreign.ordered(r.block, usize::from(r.warp), r.clock);
        let write = self.remote_writes.iter().enumerate().find(|(_, r)| late(r)).map(|(g, r)| (g as u32, *r, true));
        let mut reads: Vec<_> = self
            .remote_reads
            .iter()
            .flat_map(|(g, list)| list.iter().filter(|r| late(r)).map(|r| (*g, *r, false)))
            .collect();
        // Some order that does not depend on the table's.
        reads.sort_by_key(|(g, r, _)| (*g, r.block, r.warp));
        write.or(reads.first().copied()).map(|(g, r, wrote)| (g << self.shift, r, wrote))
    }
}
