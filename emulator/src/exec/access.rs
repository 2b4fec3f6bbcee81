//! Loads and stores.

use super::block::{Block, FlagTable, Step, stop};
use super::lanes::{LANES, Planes};
use super::source::collision;
use super::special::space_of;
use super::traffic;
use super::warp::{Warp, lanes};
use crate::check::fault::{FaultKind, Memory};
use crate::decode::program::*;
use crate::memory::global::{Accessor, GlobalConflict};
use crate::memory::shared::INIT;
use crate::parse::ast::Space;

/// What the lanes of `mask` do to one memory in one instruction.
struct Access<'m> {
    frame: usize,
    m: &'m Mem,
    addresses: [u64; LANES],
    mask: u32,
    pc: u32,
}

impl Access<'_> {
    fn bytes(&self) -> u32 {
        u32::from(self.m.elem) * u32::from(self.m.count)
    }

    fn lanes(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        lanes(self.mask).map(|l| (l, self.addresses[l]))
    }

    /// Fills a lane's registers with what `read` finds: so many bytes, at most 8, so far behind the lane's address.
    #[inline(always)]
    fn fill(&self, p: &mut Planes, lane: usize, read: impl Fn(u32, u32) -> u64) {
        let (m, elem) = (self.m, u32::from(self.m.elem));
        if elem == 16 {
            if m.regs[0] != NONE {
                p.set_u64(m.regs[0], lane, read(0, 8));
                p.set_u64(m.regs[0] + 2, lane, read(8, 8));
            }
            return;
        }
        for e in 0..m.count as usize {
            put(p, m, e, lane, read(elem * e as u32, elem));
        }
    }

    /// Hands a lane's registers to `write`: where, how many bytes, and the value.
    #[inline(always)]
    fn drain(&self, p: &Planes, lane: usize, mut write: impl FnMut(u32, u32, u64)) {
        let (m, elem) = (self.m, u32::from(self.m.elem));
        if elem == 16 {
            write(0, 8, p.u64_at(m.regs[0], lane));
            write(8, 8, p.u64_at(m.regs[0] + 2, lane));
            return;
        }
        for e in 0..m.count as usize {
            write(elem * e as u32, elem, get(p, m, e, lane));
        }
    }

    /// Lanes that write to one place in one instruction must write one value.
    #[inline]
    fn agree(&self, warp: &Warp, memory: Memory) -> Step<()> {
        let (p, m, a) = (&warp.frames[self.frame].planes, self.m, &self.addresses);
        let planes = if m.elem >= 16 { 4 } else { 1 + u32::from(m.elem >= 8) };
        let keep = if m.elem < 4 { (1u32 << (8 * m.elem)) - 1 } else { u32::MAX };
        let value = |r: u32, l: usize| p.0[r as usize][l] & keep;
        let same = |x: usize, y: usize| {
            m.regs[..usize::from(m.count)].iter().all(|&r| (r..r + planes).all(|r| value(r, x) == value(r, y)))
        };
        match collision(a, self.mask, same) {
            Some((x, y)) => {
                let kind = FaultKind::LaneCollision { memory, address: a[y], lanes: (x as u32, y as u32) };
                stop(kind, Some(y))
            }
            None => Ok(()),
        }
    }
}

/// Writes one loaded value to a lane of a register.
#[inline(always)]
fn put(p: &mut Planes, m: &Mem, element: usize, lane: usize, value: u64) {
    let reg = m.regs[element];
    if reg == NONE {
        return;
    }
    let value = if m.signed && m.elem < 8 {
        let shift = 64 - 8 * u32::from(m.elem);
        ((value << shift) as i64 >> shift) as u64
    } else {
        value
    };
    p.0[reg as usize][lane] = value as u32;
    if m.planes >= 2 {
        p.0[reg as usize + 1][lane] = (value >> 32) as u32;
    }
}

#[inline(always)]
fn get(p: &Planes, m: &Mem, element: usize, lane: usize) -> u64 {
    let reg = m.regs[element];
    if m.elem >= 8 { p.u64_at(reg, lane) } else { u64::from(p.0[reg as usize][lane]) }
}

/// At most 8 bytes, the lowest first.
#[inline(always)]
fn little_endian(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}

impl Block<'_> {
    /// The address each lane computes.
    #[inline]
    pub fn addresses(&self, warp: &Warp, frame: usize, addr: &Addr) -> [u64; LANES] {
        let f = &warp.frames[frame];
        let mut out = [addr.offset as u64; LANES];
        if addr.frame {
            return [(addr.offset as u64).wrapping_add(u64::from(f.base)); LANES];
        }
        if addr.base != NONE {
            let lo = f.planes.get(addr.base);
            if addr.wide {
                let hi = f.planes.get(addr.base + 1);
                for l in 0..LANES {
                    out[l] = (u64::from(lo[l]) | u64::from(hi[l]) << 32).wrapping_add(addr.offset as u64);
                }
            } else {
                for l in 0..LANES {
                    out[l] = u64::from(lo[l].wrapping_add(addr.offset as u32));
                }
            }
        }
        out
    }

    /// Splits generic addresses by the memory they point into, and strips the tag.
    pub fn split(&self, space: Space, addresses: &mut [u64; LANES], active: u32) -> [(Space, u32); 5] {
        let order = [Space::Global, Space::Shared, Space::Local, Space::Const, Space::Param];
        let mut parts = order.map(|s| (s, 0));
        if space != Space::Generic {
            return parts.map(|(s, _)| (s, if s == space { active } else { 0 }));
        }
        for l in lanes(active) {
            let s = space_of(addresses[l]);
            if s != Space::Global {
                addresses[l] &= !WINDOW_MASK;
            }
            for p in &mut parts {
                if p.0 == s {
                    p.1 |= 1 << l;
                }
            }
        }
        parts
    }

    pub fn load(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        m: &Mem,
        active: u32,
        pc: u32,
        flags: &mut FlagTable,
    ) -> Step<()> {
        let mut addresses = self.addresses(warp, frame, &m.addr);
        for (space, mask) in self.split(m.space, &mut addresses, active) {
            if mask == 0 {
                continue;
            }
            let access = Access { frame, m, addresses, mask, pc };
            match space {
                Space::Global => self.load_global(warp, &access, flags)?,
                Space::Shared => self.load_shared(warp, &access)?,
                Space::Local => self.load_local(warp, &access)?,
                Space::Const => self.load_bytes(warp, &access, Memory::Constant)?,
                _ => self.load_bytes(warp, &access, Memory::Parameter)?,
            }
        }
        Ok(())
    }

    pub fn store(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        m: &Mem,
        active: u32,
        pc: u32,
        flags: &mut FlagTable,
    ) -> Step<()> {
        let mut addresses = self.addresses(warp, frame, &m.addr);
        for (space, mask) in self.split(m.space, &mut addresses, active) {
            if mask == 0 {
                continue;
            }
            let access = Access { frame, m, addresses, mask, pc };
            match space {
                Space::Global => self.store_global(warp, &access, flags)?,
                Space::Shared => self.store_shared(warp, &access)?,
                Space::Local => self.store_local(warp, &access)?,
                other => {
                    let memory = if other == Space::Const { Memory::Constant } else { Memory::Parameter };
                    let l = mask.trailing_zeros() as usize;
                    return stop(FaultKind::ReadOnly { memory, address: addresses[l] }, Some(l));
                }
            }
        }
        Ok(())
    }

    fn load_global(&mut self, warp: &mut Warp, access: &Access, flags: &mut FlagTable) -> Step<()> {
        let (m, bytes) = (access.m, access.bytes());
        self.counters.load_sectors += traffic::sectors(&access.addresses, access.mask, bytes);
        self.counters.ideal_sectors += u64::from(access.mask.count_ones() * bytes).div_ceil(32);
        for (l, address) in access.lanes() {
            let i = self.global_check(warp, address, bytes, l, false)?;
            let alloc = &self.env.view.allocations[i];
            let offset = address - alloc.base;
            let mut at = 0;
            while at < bytes {
                let n = (bytes - at).min(16);
                let used = m.used >> at & ((1u32 << n) - 1);
                if alloc.initialised(offset + u64::from(at), n) & used != used {
                    let kind = FaultKind::UninitialisedMemory { memory: Memory::Global, address, bytes };
                    return stop(kind, Some(l));
                }
                at += n;
            }
            self.global_read(warp, i, offset, bytes, access.pc, m.order.strong, l)?;
            let alloc = &self.env.view.allocations[i];
            let p = &mut warp.frames[access.frame].planes;
            access.fill(p, l, |behind, bytes| alloc.read(offset + u64::from(behind), bytes));
            if m.order.strong {
                self.read_flag(warp, address, m.order.acquire, flags);
            }
        }
        Ok(())
    }

    fn store_global(&mut self, warp: &mut Warp, access: &Access, flags: &mut FlagTable) -> Step<()> {
        let (m, bytes) = (access.m, access.bytes());
        self.counters.store_sectors += traffic::sectors(&access.addresses, access.mask, bytes);
        self.counters.ideal_sectors += u64::from(access.mask.count_ones() * bytes).div_ceil(32);
        self.spare_sources(&access.addresses, access.mask, bytes)?;
        if !m.order.strong {
            access.agree(warp, Memory::Global)?;
        }
        for (l, address) in access.lanes() {
            let i = self.global_check(warp, address, bytes, l, true)?;
            let offset = address - self.env.view.allocations[i].base;
            if m.order.strong {
                self.write_flag(warp, address, m.order.release, flags);
            }
            self.global_write(warp, i, offset, bytes, access.pc, m.order.strong, l)?;
            let alloc = &self.env.view.allocations[i];
            let p = &warp.frames[access.frame].planes;
            access.drain(p, l, |behind, bytes, value| alloc.write(offset + u64::from(behind), bytes, value));
            let mut at = 0;
            while at < bytes {
                let n = (bytes - at).min(16);
                alloc.mark(offset + u64::from(at), n);
                at += n;
            }
        }
        Ok(())
    }

    /// Alignment and bounds of a global access; the allocation it falls into.
    #[inline]
    pub fn global_check(&self, warp: &mut Warp, address: u64, bytes: u32, lane: usize, write: bool) -> Step<usize> {
        if address & u64::from(bytes - 1) != 0 {
            return stop(FaultKind::Misaligned { memory: Memory::Global, address, bytes, write }, Some(lane));
        }
        match self.env.view.locate(address, u64::from(bytes), &mut warp.hint) {
            Some(i) => Ok(i),
            None => stop(FaultKind::OutOfBounds { memory: Memory::Global, address, bytes, write }, Some(lane)),
        }
    }

    fn accessor<'s>(&'s self, warp: &Warp, pc: u32, atomic: bool) -> Accessor<'s> {
        let communicates = self.env.program.communicates;
        Accessor {
            block: self.index,
            warp: warp.id,
            seen: &self.seen[warp.id],
            pc,
            atomic,
            generation: self.generation,
            only_full_barriers: self.only_full_barriers,
            foreign: (communicates || self.peers.len() > 1).then(|| &self.foreign[warp.id]),
            communicates,
        }
    }

    pub fn global_read(
        &self,
        warp: &Warp,
        i: usize,
        offset: u64,
        bytes: u32,
        pc: u32,
        atomic: bool,
        lane: usize,
    ) -> Step<()> {
        match self.env.view.read(i, offset, bytes, &self.accessor(warp, pc, atomic)) {
            Ok(()) => Ok(()),
            Err(c) => self.global_race(i, offset, false, c, lane),
        }
    }

    pub fn global_write(
        &self,
        warp: &Warp,
        i: usize,
        offset: u64,
        bytes: u32,
        pc: u32,
        atomic: bool,
        lane: usize,
    ) -> Step<()> {
        match self.env.view.write(i, offset, bytes, &self.accessor(warp, pc, atomic)) {
            Ok(()) => Ok(()),
            Err(c) => self.global_race(i, offset, true, c, lane),
        }
    }

    fn global_race(&self, i: usize, offset: u64, write: bool, c: GlobalConflict, lane: usize) -> Step<()> {
        let block = c.block.map_or(self.ctaid, |b| self.coordinates(b));
        let other = self.other(block, c.warp, c.pc, c.wrote);
        let address = self.env.view.allocations[i].base + offset;
        stop(FaultKind::Race { memory: Memory::Global, address, write, other }, Some(lane))
    }

    fn count_shared(&mut self, a: &[u64; LANES], mask: u32, bytes: u32) {
        let (total, conflicts) = traffic::wavefronts(&a.map(|x| x as u32), mask, bytes);
        self.counters.shared_wavefronts += total;
        self.counters.bank_conflicts += conflicts;
    }

    fn load_shared(&mut self, warp: &mut Warp, access: &Access) -> Step<()> {
        let (m, bytes, pc) = (access.m, access.bytes(), access.pc);
        self.count_shared(&access.addresses, access.mask, bytes);
        let me = warp.id;
        for (l, address) in access.lanes() {
            let (rank, offset) = self.place_shared(address, bytes, l, false)?;
            if m.order.strong {
                self.read_shared_flag(warp, rank, offset, m.order);
            }
            if rank != self.rank {
                self.remote_read(me, rank, offset, bytes, pc, m.order.strong, l)?;
            } else if !m.order.strong {
                self.shared_read(me, offset, bytes, m.used, pc, l)?;
            }
            let shared = if rank == self.rank { &self.shared } else { &self.peers[rank] };
            let p = &mut warp.frames[access.frame].planes;
            access.fill(p, l, |behind, bytes| shared.read(offset + behind, bytes));
        }
        Ok(())
    }

    fn store_shared(&mut self, warp: &mut Warp, access: &Access) -> Step<()> {
        let (m, bytes, pc) = (access.m, access.bytes(), access.pc);
        self.count_shared(&access.addresses, access.mask, bytes);
        let me = warp.id;
        if !m.order.strong {
            access.agree(warp, Memory::Shared)?;
        }
        for (l, address) in access.lanes() {
            let (rank, offset) = self.place_shared(address, bytes, l, true)?;
            if m.order.strong {
                self.write_shared_flag(warp, rank, offset, m.order);
            }
            let shared = if rank == self.rank {
                self.shared_write(me, offset, bytes, pc, m.order.strong, l)?;
                &mut self.shared
            } else {
                self.remote_write(me, rank, offset, bytes, pc, m.order.strong, l)?;
                &mut self.peers[rank]
            };
            let p = &warp.frames[access.frame].planes;
            access.drain(p, l, |behind, bytes, value| shared.write(offset + behind, bytes, value));
            shared.set_state(offset, bytes, INIT);
        }
        Ok(())
    }

    fn local_check(&self, warp: &Warp, address: u64, bytes: u32, lane: usize, write: bool) -> Step<usize> {
        if address & u64::from(bytes - 1) != 0 {
            return stop(FaultKind::Misaligned { memory: Memory::Local, address, bytes, write }, Some(lane));
        }
        if address.saturating_add(u64::from(bytes)) > u64::from(warp.local_bytes) {
            return stop(FaultKind::OutOfBounds { memory: Memory::Local, address, bytes, write }, Some(lane));
        }
        Ok(lane * warp.local_bytes as usize + address as usize)
    }

    /// Local memory may be copied before it is written (padding of structures): such values are unsure, not faults.
    fn load_local(&mut self, warp: &mut Warp, access: &Access) -> Step<()> {
        let bytes = access.bytes();
        self.counters.local_accesses += 1;
        for (l, address) in access.lanes() {
            let at = self.local_check(warp, address, bytes, l, false)?;
            if warp.local_init[at..at + bytes as usize].contains(&0) {
                warp.poison |= 1 << l;
            }
            let data = &warp.local[at..at + bytes as usize];
            let p = &mut warp.frames[access.frame].planes;
            access.fill(p, l, |behind, bytes| little_endian(&data[behind as usize..][..bytes as usize]));
        }
        Ok(())
    }

    fn store_local(&mut self, warp: &mut Warp, access: &Access) -> Step<()> {
        let bytes = access.bytes();
        self.counters.local_accesses += 1;
        for (l, address) in access.lanes() {
            let at = self.local_check(warp, address, bytes, l, true)?;
            let data = &mut warp.local[at..at + bytes as usize];
            access.drain(&warp.frames[access.frame].planes, l, |behind, bytes, value| {
                data[behind as usize..][..bytes as usize].copy_from_slice(&value.to_le_bytes()[..bytes as usize]);
            });
            let sure = warp.poison >> l & 1 == 0;
            warp.local_init[at..at + bytes as usize].fill(u8::from(sure));
        }
        Ok(())
    }

    fn load_bytes(&mut self, warp: &mut Warp, access: &Access, memory: Memory) -> Step<()> {
        let bytes = access.bytes();
        let from = if memory == Memory::Constant { self.env.constants } else { self.env.params };
        for (l, address) in access.lanes() {
            if address & (u64::from(bytes) - 1) != 0 {
                return stop(FaultKind::Misaligned { memory, address, bytes, write: false }, Some(l));
            }
            let at = address as usize;
            let Some(data) = at.checked_add(bytes as usize).and_then(|end| from.get(at..end)) else {
                return stop(FaultKind::OutOfBounds { memory, address, bytes, write: false }, Some(l));
            };
            let p = &mut warp.frames[access.frame].planes;
            access.fill(p, l, |behind, bytes| little_endian(&data[behind as usize..][..bytes as usize]));
        }
        Ok(())
    }
}
