//! Atomic operations, and the orders that flags in memory carry.

use super::block::{Block, FlagTable, Step, carry, stop};
use super::lanes::Planes;
use super::traffic;
use super::warp::{Warp, lanes};
use crate::check::clocks::Foreign;
use crate::check::fault::{FaultKind, Memory};
use crate::check::race::{NOTHING, Seen};
use crate::decode::program::*;
use crate::memory::shared::INIT;
use crate::numerics::half::{self, After, IsBf16, IsF16, both};
use crate::parse::ast::{Space, Ty};

fn value(p: &Planes, reg: u32, ty: Ty, lane: usize) -> u128 {
    match ty.bytes() {
        16 => u128::from(p.u64_at(reg, lane)) | u128::from(p.u64_at(reg + 2, lane)) << 64,
        8 => u128::from(p.u64_at(reg, lane)),
        2 => u128::from(p.0[reg as usize][lane] & 0xFFFF),
        _ => u128::from(p.0[reg as usize][lane]),
    }
}

fn set_value(p: &mut Planes, reg: u32, ty: Ty, lane: usize, v: u128) {
    match ty.bytes() {
        16 => {
            p.set_u64(reg, lane, v as u64);
            p.set_u64(reg + 2, lane, (v >> 64) as u64);
        }
        8 => p.set_u64(reg, lane, v as u64),
        _ => p.0[reg as usize][lane] = v as u32,
    }
}

const PLAIN: After = After { ftz: false, sat: false, relu: false };

/// The new contents, given the old.
pub fn apply(op: AtomOp, ty: Ty, old: u128, a: u128, b: u128) -> u128 {
    match op {
        AtomOp::Exch => a,
        AtomOp::Cas => {
            if old == a {
                b
            } else {
                old
            }
        }
        AtomOp::And => old & a,
        AtomOp::Or => old | a,
        AtomOp::Xor => old ^ a,
        AtomOp::Inc => {
            if old as u32 >= a as u32 {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > a {
                a
            } else {
                old - 1
            }
        }
        AtomOp::Add => match ty {
            Ty::U32 | Ty::S32 => u128::from((old as u32).wrapping_add(a as u32)),
            Ty::U64 | Ty::S64 => u128::from((old as u64).wrapping_add(a as u64)),
            Ty::F32 => {
                let sum = f32::from_bits(old as u32) + f32::from_bits(a as u32);
                u128::from(crate::numerics::round::canonical(sum).to_bits())
            }
            Ty::F64 => u128::from((f64::from_bits(old as u64) + f64::from_bits(a as u64)).to_bits()),
            Ty::F16 => u128::from(half::add::<IsF16>(old as u16, a as u16, PLAIN)),
            Ty::Bf16 => u128::from(half::add::<IsBf16>(old as u16, a as u16, PLAIN)),
            Ty::F16x2 => u128::from(both(old as u32, a as u32, |x, y| half::add::<IsF16>(x, y, PLAIN))),
            _ => u128::from(both(old as u32, a as u32, |x, y| half::add::<IsBf16>(x, y, PLAIN))),
        },
        AtomOp::Min | AtomOp::Max => {
            let max = op == AtomOp::Max;
            let first = match ty {
                Ty::U32 | Ty::U64 => (old > a) == max,
                Ty::S32 => (old as i32 > a as i32) == max,
                Ty::S64 => (old as i64 > a as i64) == max,
                Ty::F16 => return u128::from(half::extremum::<IsF16>(old as u16, a as u16, max, false, false)),
                Ty::Bf16 => return u128::from(half::extremum::<IsBf16>(old as u16, a as u16, max, false, false)),
                Ty::F16x2 => {
                    return u128::from(both(old as u32, a as u32, |x, y| {
                        half::extremum::<IsF16>(x, y, max, false, false)
                    }));
                }
                _ => {
                    return u128::from(both(old as u32, a as u32, |x, y| {
                        half::extremum::<IsBf16>(x, y, max, false, false)
                    }));
                }
            };
            if first { old } else { a }
        }
    }
}

impl Block<'_> {
    pub fn atomic(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        m: &Atom,
        active: u32,
        pc: u32,
        flags: &mut FlagTable,
    ) -> Step<()> {
        let mut addresses = self.addresses(warp, frame, &m.addr);
        let element = m.ty.bytes();
        let bytes = element * m.a.len() as u32;
        for (space, mask) in self.split(m.space, &mut addresses, active) {
            if mask == 0 {
                continue;
            }
            match space {
                Space::Global => {
                    self.counters.store_sectors += traffic::sectors(&addresses, mask, bytes);
                    self.spare_sources(&addresses, mask, bytes)?;
                }
                Space::Shared => {}
                _ => {
                    let l = mask.trailing_zeros() as usize;
                    let memory = if space == Space::Const { Memory::Constant } else { Memory::Local };
                    return stop(FaultKind::ReadOnly { memory, address: addresses[l] }, Some(l));
                }
            }
            for l in lanes(mask) {
                let at = addresses[l];
                let (rank, global) = if space == Space::Global {
                    self.order_flag(warp, at, m.order, flags);
                    let i = self.global_check(warp, at, bytes, l, true)?;
                    let offset = at - self.env.view.allocations[i].base;
                    if self.env.view.allocations[i].initialised(offset, bytes) != ((1u64 << bytes) - 1) as u32 {
                        let kind = FaultKind::UninitialisedMemory { memory: Memory::Global, address: at, bytes };
                        return stop(kind, Some(l));
                    }
                    self.global_write(warp, i, offset, bytes, pc, true, l)?;
                    (0, Some((i, offset)))
                } else {
                    (self.atomic_place(warp, at, bytes, m.order, pc, l)?, None)
                };
                for e in 0..m.a.len() {
                    let p = &mut warp.frames[frame].planes;
                    let a = value(p, m.a[e], m.ty, l);
                    let b = if m.b == NONE { 0 } else { value(p, m.b, m.ty, l) };
                    let step = element * e as u32;
                    let old = match global {
                        Some((i, offset)) => self.atomic_global(i, offset + u64::from(step), m, a, b),
                        None => self.atomic_shared(rank, (at & 0xFF_FFFF) as u32 + step, m, a, b),
                    };
                    if let Some(&d) = m.d.get(e) {
                        set_value(&mut warp.frames[frame].planes, d, m.ty, l, old);
                    }
                }
            }
        }
        Ok(())
    }

    fn atomic_global(&self, i: usize, offset: u64, m: &Atom, a: u128, b: u128) -> u128 {
        use std::sync::atomic::Ordering::Relaxed;
        let alloc = &self.env.view.allocations[i];
        match m.ty.bytes() {
            // Kernels whose blocks run on several cores use only commuting 32- and 64-bit additions and their like here.
            4 => {
                let f = |w| Some(apply(m.op, m.ty, u128::from(w), a, b) as u32);
                u128::from(alloc.word(offset).fetch_update(Relaxed, Relaxed, f).unwrap_or_default())
            }
            8 => self.atomic_global_64(alloc, offset, m, a, b),
            16 => {
                let old = u128::from(alloc.read(offset, 8)) | u128::from(alloc.read(offset + 8, 8)) << 64;
                let new = apply(m.op, m.ty, old, a, b);
                alloc.write(offset, 8, new as u64);
                alloc.write(offset + 8, 8, (new >> 64) as u64);
                old
            }
            n => {
                let old = u128::from(alloc.read(offset, n));
                alloc.write(offset, n, apply(m.op, m.ty, old, a, b) as u64);
                old
            }
        }
    }

    fn atomic_global_64(
        &self,
        alloc: &crate::memory::global::Allocation,
        offset: u64,
        m: &Atom,
        a: u128,
        b: u128,
    ) -> u128 {
        // Two words cannot be exchanged at once: a lock keeps blocks on other cores out.
        static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _guard = LOCK.lock();
        let old = u128::from(alloc.read(offset, 8));
        alloc.write(offset, 8, apply(m.op, m.ty, old, a, b) as u64);
        old
    }

    /// Checks an atomic on shared memory of this block or another; the rank of the block.
    fn atomic_place(
        &mut self,
        warp: &mut Warp,
        at: u64,
        bytes: u32,
        order: Order,
        pc: u32,
        lane: usize,
    ) -> Step<usize> {
        let (rank, offset) = self.place_shared(at, bytes, lane, true)?;
        self.read_shared_flag(warp, rank, offset, order);
        self.write_shared_flag(warp, rank, offset, order);
        let (all, _) = self.shared_of(rank).states(offset, bytes);
        if rank != self.rank {
            self.remote_write(warp.id, rank, offset, bytes, pc, true, lane)?;
        }
        if all & INIT == 0 {
            let kind = FaultKind::UninitialisedMemory { memory: Memory::Shared, address: at, bytes };
            return stop(kind, Some(lane));
        }
        if rank == self.rank {
            self.shared_write(warp.id, offset, bytes, pc, true, lane)?;
        }
        Ok(rank)
    }

    fn atomic_shared(&mut self, rank: usize, offset: u32, m: &Atom, a: u128, b: u128) -> u128 {
        let n = m.ty.bytes();
        let shared = self.shared_of(rank);
        if n == 16 {
            let old = u128::from(shared.read(offset, 8)) | u128::from(shared.read(offset + 8, 8)) << 64;
            let new = apply(m.op, m.ty, old, a, b);
            shared.write(offset, 8, new as u64);
            shared.write(offset + 8, 8, (new >> 64) as u64);
            return old;
        }
        let old = u128::from(shared.read(offset, n));
        shared.write(offset, n, apply(m.op, m.ty, old, a, b) as u64);
        old
    }

    /// An atomic both reads and writes its flag.
    fn order_flag(&mut self, warp: &mut Warp, at: u64, order: Order, flags: &mut FlagTable) {
        if self.env.program.communicates {
            self.read_flag(warp, at, order.acquire, flags);
            self.write_flag(warp, at, order.release, flags);
        }
    }

    /// A strong read learns what the writer of the flag had done; it counts at once if it acquires, else at the next fence.
    pub fn read_flag(&mut self, warp: &mut Warp, at: u64, acquire: bool, flags: &mut FlagTable) {
        if let Some(entry) = flags.get(&at) {
            let foreign = entry.1.clone();
            self.take_in(warp, None, &foreign, acquire);
        }
    }

    /// The same for a flag in shared memory. Orders between blocks need a scope beyond the block on both sides.
    pub fn read_shared_flag(&mut self, warp: &mut Warp, rank: usize, offset: u32, order: Order) {
        let Some(flag) = self.shared_of(rank).flags.get(&offset) else { return };
        let (mut foreign, wide) = (flag.foreign.clone(), flag.wide.clone());
        let seen = flag.seen;
        if rank != self.rank {
            if !order.cta {
                self.take_in(warp, None, &wide, order.acquire);
            }
            return;
        }
        if !order.cta {
            foreign.join(&wide);
        }
        self.take_in(warp, Some(&seen), &foreign, order.acquire);
    }

    fn take_in(&mut self, warp: &mut Warp, seen: Option<&Seen>, foreign: &Foreign, acquire: bool) {
        let zero = NOTHING;
        let seen = seen.unwrap_or(&zero);
        if acquire {
            super::barrier::sync_lanes(&mut self.epochs[warp.id], warp.alive);
        }
        // What other blocks knew about this block comes back as an order among its own warps.
        let mut own = *seen;
        if let Some(times) = foreign.of(self.index as u32) {
            for (s, t) in own.iter_mut().zip(times) {
                *s = (*s).max(*t);
            }
        }
        if acquire {
            self.acquire(warp.id, &own, foreign);
            return;
        }
        carry(&mut self.acquired[warp.id], &own, foreign);
    }

    /// What a strong write of this warp publishes: all it has done if it releases, else what came before its last fence.
    pub fn publish(&mut self, me: usize, release: bool) -> Option<(Seen, Foreign)> {
        if release {
            let out = (self.seen[me], self.foreign[me].clone());
            self.seen[me][me] += 1;
            Some(out)
        } else {
            self.released[me].as_ref().map(|(s, f)| (**s, f.clone()))
        }
    }

    pub fn write_flag(&mut self, warp: &mut Warp, at: u64, release: bool, flags: &mut FlagTable) {
        if let Some((seen, foreign)) = self.publish(warp.id, release) {
            let entry = flags.entry(at).or_insert_with(|| (Box::new(NOTHING), Foreign::default()));
            entry.1.join(&foreign.with(self.index as u32, &seen));
        }
    }

    pub fn write_shared_flag(&mut self, warp: &mut Warp, rank: usize, offset: u32, order: Order) {
        self.only_full_barriers = false;
        let Some((seen, foreign)) = self.publish(warp.id, order.release) else { return };
        let (own, index, alone) = (rank == self.rank, self.index as u32, self.peers.len() == 1);
        let flag = self.shared_of(rank).flags.entry(offset).or_default();
        if own {
            flag.join_seen(&seen);
            flag.foreign.join(&foreign);
        }
        if !alone && !order.cta {
            flag.wide.join(&foreign.with(index, &seen));
        }
    }
}
