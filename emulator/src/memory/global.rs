//! Global memory: allocations, initialisation, and the last accesses of each piece during a launch.
//!
//! Blocks run on several cores, so memory is made of relaxed atomics; on the usual machines these are plain loads and stores.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use crate::check::race::Seen;

/// One allocation.
#[derive(Debug)]
pub struct Allocation {
    pub base: u64,
    pub len: u64,
    words: Vec<AtomicU32>,
    /// One bit for each byte: was it ever written?
    init: Vec<AtomicU32>,
}

impl Allocation {
    /// Fresh memory holds a pattern that is NaN in every float format, and counts as never written.
    pub fn new(base: u64, len: u64) -> Allocation {
        let words = (len as usize).div_ceil(4);
        Allocation {
            base,
            len,
            words: (0..words).map(|_| AtomicU32::new(u32::MAX)).collect(),
            init: (0..words.div_ceil(8)).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    #[inline]
    pub fn word(&self, offset: u64) -> &AtomicU32 {
        &self.words[(offset / 4) as usize]
    }

    /// Bits of `bytes` bytes (at most 16, aligned) at an offset, as written so far.
    #[inline]
    pub fn initialised(&self, offset: u64, bytes: u32) -> u32 {
        let w = self.init[(offset / 32) as usize].load(Relaxed);
        w >> (offset % 32) & (((1u64 << bytes) - 1) as u32)
    }

    #[inline]
    pub fn mark(&self, offset: u64, bytes: u32) {
        let bits = (((1u64 << bytes) - 1) << (offset % 32)) as u32;
        let w = &self.init[(offset / 32) as usize];
        if w.load(Relaxed) & bits != bits {
            w.fetch_or(bits, Relaxed);
        }
    }

    /// Reads up to 8 bytes inside one aligned 8-byte unit.
    #[inline]
    pub fn read(&self, offset: u64, bytes: u32) -> u64 {
        match bytes {
            8 => u64::from(self.word(offset).load(Relaxed)) | u64::from(self.word(offset + 4).load(Relaxed)) << 32,
            4 => u64::from(self.word(offset).load(Relaxed)),
            n => {
                let w = self.word(offset).load(Relaxed) >> (8 * (offset % 4));
                u64::from(w) & ((1 << (8 * n)) - 1)
            }
        }
    }

    #[inline]
    pub fn write(&self, offset: u64, bytes: u32, value: u64) {
        match bytes {
            8 => {
                self.word(offset).store(value as u32, Relaxed);
                self.word(offset + 4).store((value >> 32) as u32, Relaxed);
            }
            4 => self.word(offset).store(value as u32, Relaxed),
            n => {
                let shift = 8 * (offset % 4);
                let mask = (((1u64 << (8 * n)) - 1) << shift) as u32;
                let bits = (value << shift) as u32 & mask;
                let _ = self.word(offset).fetch_update(Relaxed, Relaxed, |w| Some(w & !mask | bits));
            }
        }
    }

    fn byte(&self, offset: u64) -> u8 {
        self.read(offset, 1) as u8
    }

    pub fn copy_in(&self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            if at % 4 == 0 && rest.len() >= 4 {
                self.write(at, 4, u64::from(u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]])));
                self.mark(at, 4);
                at += 4;
                rest = &rest[4..];
            } else {
                self.write(at, 1, u64::from(rest[0]));
                self.mark(at, 1);
                at += 1;
                rest = &rest[1..];
            }
        }
    }

    pub fn copy_out(&self, data: &mut [u8], offset: u64) {
        let mut i = 0;
        while i < data.len() {
            let at = offset + i as u64;
            if at % 4 == 0 && data.len() - i >= 4 {
                data[i..i + 4].copy_from_slice(&(self.read(at, 4) as u32).to_le_bytes());
                i += 4;
            } else {
                data[i] = self.byte(at);
                i += 1;
            }
        }
    }
}

/// Why a memory call of the host was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    #[error("out of memory: {wanted} bytes asked for, {free} of {total} free")]
    OutOfMemory { wanted: u64, free: u64, total: u64 },
    #[error("{bytes} bytes at {address:#x} are not inside one allocation")]
    BadRange { address: u64, bytes: u64 },
    #[error("{address:#x} is not the start of an allocation")]
    NotAllocated { address: u64 },
}

/// The allocations of a device.
#[derive(Debug, Default)]
pub struct Global {
    pub map: BTreeMap<u64, Arc<Allocation>>,
    next: u64,
    pub used: u64,
    pub total: u64,
}

/// Allocations start on 256-byte boundaries with an unmapped gap between them, so that running over an end is seen.
const ALIGN: u64 = 256;
const GAP: u64 = 4096;
const FIRST: u64 = 0x0000_7000_0000_0000;

impl Global {
    pub fn new(total: u64) -> Global {
        Global { map: BTreeMap::new(), next: FIRST, used: 0, total }
    }

    pub fn alloc(&mut self, bytes: u64) -> Result<u64, MemoryError> {
        let free = self.total - self.used;
        if bytes > free {
            return Err(MemoryError::OutOfMemory { wanted: bytes, free, total: self.total });
        }
        let base = self.next;
        self.next = (base + bytes + GAP).next_multiple_of(ALIGN);
        self.used += bytes;
        self.map.insert(base, Arc::new(Allocation::new(base, bytes)));
        Ok(base)
    }

    pub fn insert(&mut self, base: u64, data: &[u8]) {
        let a = Allocation::new(base, data.len() as u64);
        a.copy_in(0, data);
        self.map.insert(base, Arc::new(a));
    }

    pub fn free(&mut self, address: u64) -> Result<(), MemoryError> {
        match self.map.remove(&address) {
            Some(a) => {
                self.used -= a.len.min(self.used);
                Ok(())
            }
            None => Err(MemoryError::NotAllocated { address }),
        }
    }

    pub fn find(&self, address: u64, bytes: u64) -> Result<&Allocation, MemoryError> {
        let bad = MemoryError::BadRange { address, bytes };
        let (_, a) = self.map.range(..=address).next_back().ok_or_else(|| bad.clone())?;
        let end = address.checked_add(bytes).ok_or_else(|| bad.clone())?;
        if end <= a.base + a.len { Ok(a) } else { Err(bad) }
    }
}

/// Global memory as one launch sees it.
pub struct View {
    pub allocations: Vec<Arc<Allocation>>,
    shadows: Vec<OnceLock<Shadow>>,
    shift: u32,
}

/// Last accesses, in pages made when they are first touched: a launch pays for what it reaches, and data that is only read has
/// no record of writes.
#[derive(Default)]
struct Table(Vec<OnceLock<Box<[AtomicU64]>>>);

const PAGE: usize = 1024;

impl Table {
    fn new(granules: usize) -> Table {
        Table((0..granules.div_ceil(PAGE)).map(|_| OnceLock::new()).collect())
    }

    #[inline]
    fn get(&self, g: usize) -> Option<&AtomicU64> {
        self.0[g / PAGE].get().map(|p| &p[g % PAGE])
    }

    #[inline]
    fn make(&self, g: usize) -> &AtomicU64 {
        &self.0[g / PAGE].get_or_init(|| (0..PAGE).map(|_| AtomicU64::new(0)).collect())[g % PAGE]
    }
}

struct Shadow {
    writes: Table,
    reads: Table,
}

/// Packed access: block + 1 (24 bits), warp (6), clock (18), instruction (16).
const MANY_BLOCKS: u64 = 0xFF_FFFF;
const MANY_WARPS: u64 = 63;

#[derive(Debug, Clone, Copy)]
pub struct Accessor<'a> {
    pub block: u64,
    pub warp: usize,
    pub seen: &'a Seen,
    pub pc: u32,
    pub atomic: bool,
    /// Full barriers that the block has passed, and whether it used any other way to synchronise.
    pub generation: u32,
    pub only_full_barriers: bool,
    /// Blocks order themselves by flags in memory.
    pub foreign: Option<&'a crate::check::clocks::Foreign>,
    pub communicates: bool,
}

/// An unordered earlier access.
#[derive(Debug, Clone, Copy)]
pub struct GlobalConflict {
    pub block: Option<u64>,
    pub warp: Option<u32>,
    pub pc: Option<u32>,
    pub wrote: bool,
}

fn pack(a: &Accessor) -> u64 {
    let pc = u64::from(a.pc.min(0x7FFF)) << 1 | u64::from(a.atomic);
    (a.block + 1) << 40 | (a.warp as u64) << 34 | (u64::from(a.seen[a.warp]) & 0x3FFFF) << 16 | pc
}

fn unpack(e: u64, wrote: bool) -> GlobalConflict {
    let block = e >> 40;
    let warp = e >> 34 & 63;
    let pc = (e >> 1 & 0x7FFF) as u32;
    GlobalConflict {
        block: (block != MANY_BLOCKS).then(|| block - 1),
        warp: (warp != MANY_WARPS).then_some(warp as u32),
        pc: (pc != 0x7FFF && warp != MANY_WARPS && block != MANY_BLOCKS).then_some(pc),
        wrote,
    }
}

impl View {
    pub fn new(allocations: Vec<Arc<Allocation>>, shift: u32) -> View {
        let shadows = allocations.iter().map(|_| OnceLock::new()).collect();
        View { allocations, shadows, shift }
    }

    /// The allocation that holds an address.
    #[inline]
    pub fn locate(&self, address: u64, bytes: u64, hint: &mut usize) -> Option<usize> {
        let fits = |a: &Allocation| address >= a.base && address.saturating_add(bytes) <= a.base + a.len;
        if let Some(a) = self.allocations.get(*hint)
            && fits(a)
        {
            return Some(*hint);
        }
        let i = self.allocations.partition_point(|a| a.base <= address).checked_sub(1)?;
        if fits(&self.allocations[i]) {
            *hint = i;
            Some(i)
        } else {
            None
        }
    }

    fn shadow(&self, i: usize) -> &Shadow {
        self.shadows[i].get_or_init(|| {
            let n = (self.allocations[i].len >> self.shift) as usize + 1;
            Shadow { writes: Table::new(n), reads: Table::new(n) }
        })
    }

    fn ordered(&self, e: u64, a: &Accessor) -> bool {
        let (block, warp, clock) = (e >> 40, (e >> 34 & 63) as usize, (e >> 16 & 0x3FFFF) as u32);
        if e == 0 {
            return true;
        }
        if block == a.block + 1 {
            return warp == a.warp || clock <= a.seen[warp & 31];
        }
        match a.foreign {
            Some(f) => f.ordered((block - 1) as u32, warp, clock),
            None => false,
        }
    }

    #[inline]
    pub fn read(&self, i: usize, offset: u64, bytes: u32, a: &Accessor) -> Result<(), GlobalConflict> {
        let s = self.shadow(i);
        let mine = pack(a);
        for g in (offset >> self.shift) as usize..=((offset + u64::from(bytes) - 1) >> self.shift) as usize {
            let slot = s.reads.make(g);
            let old = slot.load(Relaxed);
            if old >> 40 != MANY_BLOCKS {
                let block = old >> 40;
                let new = if old == 0 || block == a.block + 1 {
                    let warp = old >> 34 & 63;
                    if old == 0 || warp == a.warp as u64 {
                        mine
                    } else {
                        // Several warps of one block: the clock field holds the generation of the barrier.
                        (a.block + 1) << 40 | MANY_WARPS << 34 | (u64::from(a.generation) & 0x3FFFF) << 16
                    }
                } else {
                    MANY_BLOCKS << 40
                };
                if new != old {
                    // A swap, not a store: with the reader's and the writer's sides both sequentially consistent, one of
                    // two racing blocks sees the other.
                    let seen = slot.swap(new, SeqCst);
                    if seen != old && seen >> 40 != a.block + 1 && seen != 0 {
                        slot.store(MANY_BLOCKS << 40, SeqCst);
                    }
                }
            }
            let w = s.writes.get(g).map_or(0, |w| w.load(SeqCst));
            if w != 0 && !(a.atomic && w & 1 == 1) && !self.ordered(w, a) {
                return Err(unpack(w, true));
            }
        }
        Ok(())
    }

    #[inline]
    pub fn write(&self, i: usize, offset: u64, bytes: u32, a: &Accessor) -> Result<(), GlobalConflict> {
        let s = self.shadow(i);
        let mine = pack(a);
        for g in (offset >> self.shift) as usize..=((offset + u64::from(bytes) - 1) >> self.shift) as usize {
            let slot = s.writes.make(g);
            let old = if slot.load(Relaxed) == mine { mine } else { slot.swap(mine, SeqCst) };
            if old != 0 && old != mine && !(a.atomic && old & 1 == 1) && !self.ordered(old, a) {
                return Err(unpack(old, true));
            }
            let r = s.reads.get(g).map_or(0, |r| r.load(SeqCst));
            if r == 0 || (a.atomic && r & 1 == 1) {
                continue;
            }
            let conflict = if r >> 40 == MANY_BLOCKS {
                !a.communicates
            } else if r >> 34 & 63 == MANY_WARPS {
                if r >> 40 == a.block + 1 {
                    a.only_full_barriers && (r >> 16 & 0x3FFFF) == u64::from(a.generation) & 0x3FFFF
                } else {
                    !a.communicates
                }
            } else {
                !self.ordered(r, a)
            };
            if conflict {
                return Err(unpack(r, false));
            }
        }
        Ok(())
    }
}
