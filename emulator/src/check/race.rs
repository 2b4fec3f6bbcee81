//! Happens-before: vector clocks of the warps of a block, and the last accesses of every piece of memory.
//!
//! Each warp has a clock that advances when it releases (arrives at a barrier, fences and then writes a flag). `seen[w]` is the
//! newest time of warp w that is ordered before this warp's next instruction. An access at time t of warp w is ordered
//! before this warp if t ≤ seen[w]; two accesses to the same piece, one a write, not so ordered, race.

/// Most warps of a block.
pub const MAX_WARPS: usize = 32;

/// Times of the warps, then of the warpgroups: a matrix operation belongs to its warpgroup, and is over for all when any of
/// the four warps has waited for it.
pub type Seen = [u32; MAX_WARPS + MAX_WARPS / 4];
pub const NOTHING: Seen = [0; MAX_WARPS + MAX_WARPS / 4];

/// An earlier access that is not ordered before the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conflict {
    pub warp: u32,
    pub pc: u32,
    pub wrote: bool,
}

const PC_BITS: u64 = 24;
const PC_MASK: u64 = (1 << PC_BITS) - 2;

fn pack(clock: u32, warp: usize, pc: u32, atomic: bool) -> u64 {
    u64::from(clock) << 32 | (warp as u64) << PC_BITS | (u64::from(pc) << 1 & PC_MASK) | u64::from(atomic)
}

/// The last write and the last read of each warp, for every granule of shared memory.
#[derive(Debug, Default)]
pub struct SharedShadow {
    warps: usize,
    columns: usize,
    shift: u32,
    writes: Vec<u64>,
    reads: Vec<u64>,
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
        self.reads.clear();
        self.reads.resize(n * self.columns, 0);
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
    fn write_conflict(&self, g: usize, me: usize, seen: &Seen, atomic: bool) -> Option<Conflict> {
        let e = self.writes[g];
        let w = (e >> PC_BITS & 0xFF) as usize;
        if (e >> 32) as u32 > seen[w & 31] && w != me && !(atomic && e & 1 == 1) {
            return Some(Conflict { warp: w as u32, pc: ((e & PC_MASK) >> 1) as u32, wrote: true });
        }
        None
    }

    #[inline]
    pub fn read(&mut self, offset: u32, bytes: u32, me: usize, seen: &Seen, pc: u32) -> Result<(), Conflict> {
        for g in self.range(offset, bytes) {
            if let Some(c) = self.write_conflict(g, me, seen, false) {
                return Err(c);
            }
            self.reads[g * self.columns + me] = u64::from(seen[me]) << 32 | u64::from(pc);
        }
        Ok(())
    }

    /// A read by a warpgroup's matrix operation of the given time, issued by warp `me`.
    pub fn read_group(
        &mut self,
        offset: u32,
        bytes: u32,
        me: usize,
        seen: &Seen,
        time: u32,
        pc: u32,
    ) -> Result<(), Conflict> {
        for g in self.range(offset, bytes) {
            if let Some(c) = self.write_conflict(g, me, seen, false) {
                return Err(c);
            }
            self.reads[g * self.columns + self.warps + me / 4] = u64::from(time) << 32 | u64::from(pc);
        }
        Ok(())
    }

    #[inline]
    pub fn write(
        &mut self,
        offset: u32,
        bytes: u32,
        me: usize,
        seen: &Seen,
        pc: u32,
        atomic: bool,
    ) -> Result<(), Conflict> {
        for g in self.range(offset, bytes) {
            if let Some(c) = self.write_conflict(g, me, seen, atomic) {
                return Err(c);
            }
            let row = &self.reads[g * self.columns..(g + 1) * self.columns];
            for (w, &r) in row.iter().enumerate() {
                let actor = if w < self.warps { w } else { MAX_WARPS + w - self.warps };
                if (r >> 32) as u32 > seen[actor] && w != me {
                    let w = if w < self.warps { w } else { 4 * (w - self.warps) };
                    return Err(Conflict { warp: w as u32, pc: r as u32, wrote: false });
                }
            }
            self.writes[g] = pack(seen[me], me, pc, atomic);
        }
        Ok(())
    }
}
