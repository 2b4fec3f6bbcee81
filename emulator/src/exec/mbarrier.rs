//! mbarriers: arrivals, transaction counts, phases.

use std::rc::Rc;

use super::block::{Block, Step, stop};
use super::copy::PendingCopy;
use super::source::Source;
use super::step::Flow;
use super::warp::{Wait, Warp, lanes};
use crate::check::clocks::{Brought, Foreign};
use crate::check::fault::{FaultKind, Memory};
use crate::check::race::{Seen, Who};
use crate::decode::mbarrier::{Arrival, MbarWait};
use crate::decode::program::*;
use crate::memory::shared::{ASYNC, INIT, Shared};
use crate::parse::ast::Ty;

/// A copy whose bytes are on their way.
#[derive(Debug)]
pub struct Landing {
    pub dst: u32,
    pub data: Vec<u8>,
    /// The bytes are combined with what is there.
    pub reduce: Option<(AtomOp, Ty)>,
    /// What the copy reads until it lands.
    pub source: Option<Rc<Source>>,
}

/// Arrivals that follow the completion of `cp.async` copies.
#[derive(Debug)]
pub struct Deferred {
    pub warp: usize,
    pub arrivals: u32,
    pub copies: Vec<PendingCopy>,
    pub seen: Seen,
    pub foreign: Foreign,
}

/// An mbarrier object. Its bits in memory are opaque; the state lives here.
#[derive(Debug, Default)]
pub struct Mbarrier {
    pub expected: u32,
    pub pending: u32,
    pub tx: i64,
    pub phase: u64,
    /// What the arrivals bring, and what those of completed phases brought.
    pub brought: Brought,
    pub done: Brought,
    /// The same for copies that other blocks sent: their bytes are visible to whoever waits.
    pub copies: Foreign,
    done_copies: Foreign,
    pub inflight: Vec<Landing>,
    pub ready: Vec<Landing>,
    pub deferred: Vec<Deferred>,
    /// The phase ended with copies, at a time that no program can know: the first test still fails.
    delayed: bool,
    /// Who last expected or sent bytes: warp and instruction.
    pub place: Option<(usize, u32)>,
}

impl Mbarrier {
    fn complete(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.done = self.brought.clone();
            self.done_copies = self.copies.clone();
            self.delayed = !self.inflight.is_empty();
            self.ready.append(&mut self.inflight);
        }
    }

    fn passed(&self, state: u64, parity: bool) -> bool {
        if parity { self.phase & 1 != state & 1 } else { self.phase > state >> 20 }
    }
}

fn misuse<T>(text: String, lane: usize) -> Step<T> {
    stop(FaultKind::Misuse(text), Some(lane))
}

impl Block<'_> {
    fn barrier_at(&mut self, address: u64, lane: usize) -> Step<(usize, u32)> {
        let (rank, offset) = self.resolve_shared(address, lane)?;
        if offset % 8 != 0 {
            let kind = FaultKind::Misaligned { memory: Memory::Shared, address, bytes: 8, write: true };
            return stop(kind, Some(lane));
        }
        if !self.living(rank, offset, true, lane)?.mbarriers.contains_key(&offset) {
            return misuse(format!("no mbarrier is initialised at shared address {offset:#x}"), lane);
        }
        Ok((rank, offset))
    }

    pub fn mbarrier_init(&mut self, warp: &Warp, address: u64, count: u32, lane: usize, pc: u32) -> Step<()> {
        let offset = self.shared_check(address & !WINDOW_MASK, 8, lane, true)?;
        if !(1..1 << 20).contains(&count) {
            return misuse(format!("an mbarrier cannot expect {count} arrivals"), lane);
        }
        if self.shared.mbarriers.contains_key(&offset) {
            return misuse(format!("the mbarrier at shared address {offset:#x} is initialised already"), lane);
        }
        // Initialising is a write: those who use the barrier must be ordered after it.
        self.shared_write(warp.id, offset, 8, pc, false, lane)?;
        self.shared.set_state(offset, 8, INIT);
        let new = Mbarrier { expected: count, pending: count, ..Mbarrier::default() };
        self.shared.mbarriers.insert(offset, new);
        Ok(())
    }

    pub fn mbarrier_inval(&mut self, address: u64, lane: usize) -> Step<()> {
        let (rank, offset) = self.barrier_at(address, lane)?;
        self.shared_of(rank).mbarriers.remove(&offset);
        Ok(())
    }

    /// An access to the barrier must be ordered after its initialisation.
    fn check_order(&mut self, warp: &Warp, rank: usize, offset: u32, lane: usize, pc: u32) -> Step<()> {
        let me = warp.id;
        let stamp = self.stamp(me, lane);
        if self.inits[me].is_empty() {
            if rank == self.rank {
                return self.shared_note(me, offset, 8, pc, lane, stamp, None);
            }
            return self.remote_record(me, rank, offset, 8, pc, true, false, lane);
        }
        // Initialisations alone may be ordered by a fence of their own.
        let mut foreign = self.foreign[me].clone();
        foreign.join(&self.inits[me]);
        let mut seen = self.seen[me];
        for (s, t) in seen.iter_mut().zip(foreign.of(self.index as u32).unwrap_or_default()) {
            *s = (*s).max(*t);
        }
        let who = Who { seen: &seen, foreign: &foreign, ..self.who(me, pc, true, stamp) };
        let who = Who { block: self.index as u32, warp: me, ..who };
        let owner = self.members[rank] as u32;
        let result = if rank == self.rank {
            self.shared.shadow.read(offset, 8, &who)
        } else {
            self.peers[rank].shadow.remote_read(offset, 8, owner, &who)
        };
        match result {
            Ok(()) => Ok(()),
            Err(c) => self.shared_race(offset, false, c, lane),
        }
    }

    pub fn mbarrier_arrive(
        &mut self,
        warp: &mut Warp,
        address: u64,
        (count, expect): (u32, Option<u32>),
        how: &Arrival,
        lane: usize,
        pc: u32,
    ) -> Step<u64> {
        let (rank, offset) = self.barrier_at(address, lane)?;
        self.check_order(warp, rank, offset, lane, pc)?;
        let (own, me) = (rank == self.rank, warp.id);
        let (seen, foreign) = (self.seen[me], self.foreign[me].clone());
        let wide = (!own && how.release && how.wide).then(|| foreign.with(self.index as u32, &seen));
        let Some(b) = self.shared_of(rank).mbarriers.get_mut(&offset) else { return Ok(0) };
        // The opaque state: the phase, and the arrivals it still waits for.
        let state = b.phase << 20 | u64::from(b.pending);
        if let Some(bytes) = expect {
            b.tx += i64::from(bytes);
            b.place = own.then_some((me, pc)).or(b.place);
        }
        if count == 0 || count > b.pending || (how.drop && count > b.expected) {
            let text = format!(
                "{count} arrivals at the mbarrier at {offset:#x}, whose phase {} waits for {} of {}",
                b.phase, b.pending, b.expected
            );
            return misuse(text, lane);
        }
        b.pending -= count;
        if how.drop {
            b.expected -= count;
        }
        if let Some(wide) = wide {
            b.brought.wide.join(&wide);
        }
        if own && how.release {
            b.brought.join_seen(&seen);
            b.brought.foreign.join(&foreign);
        }
        if b.pending == 0 && b.tx < 0 {
            let text = format!("the mbarrier at {offset:#x} received {} bytes more than were expected", -b.tx);
            return misuse(text, lane);
        }
        if how.incomplete && b.pending == 0 && b.tx == 0 {
            return misuse(format!("an arrival with .noComplete completes the mbarrier at {offset:#x}"), lane);
        }
        b.complete();
        if how.release {
            self.seen[me][me] += 1;
            self.only_full_barriers = false;
        }
        Ok(state)
    }

    /// Adds to or takes from the transaction count.
    pub fn mbarrier_tx(&mut self, warp: &Warp, address: u64, change: i64, lane: usize, pc: u32) -> Step<()> {
        let (rank, offset) = self.barrier_at(address, lane)?;
        self.check_order(warp, rank, offset, lane, pc)?;
        self.transact(rank, offset, change, lane)
    }

    pub fn transact(&mut self, rank: usize, offset: u32, change: i64, lane: usize) -> Step<()> {
        let Some(b) = self.shared_of(rank).mbarriers.get_mut(&offset) else {
            return misuse(format!("no mbarrier is initialised at shared address {offset:#x}"), lane);
        };
        b.tx += change;
        if b.pending == 0 && b.tx < 0 {
            let text = format!("the mbarrier at {offset:#x} received {} bytes more than were expected", -b.tx);
            return misuse(text, lane);
        }
        b.complete();
        Ok(())
    }

    /// `cp.async.mbarrier.arrive`: the copies so far of these lanes now belong to the barrier, and their arrival comes when
    /// somebody asks for it.
    pub fn mbarrier_follow(
        &mut self,
        warp: &mut Warp,
        addresses: &[u64; 32],
        count_now: bool,
        active: u32,
        pc: u32,
    ) -> Step<()> {
        let me = warp.id;
        let mut left = active;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            let here = lanes(left).filter(|&l| addresses[l] == addresses[first]).fold(0u32, |m, l| m | 1 << l);
            left &= !here;
            let (rank, offset) = self.barrier_at(addresses[first], first)?;
            if rank != self.rank {
                return misuse("copies can be followed only by an mbarrier of their own block".into(), first);
            }
            self.check_order(warp, rank, offset, first, pc)?;
            let copies = PendingCopy::split(&mut warp.copies, here);
            let (seen, foreign, arrivals) = (self.seen[me], self.foreign[me].clone(), here.count_ones());
            let Some(b) = self.shared.mbarriers.get_mut(&offset) else { continue };
            if count_now {
                b.pending += arrivals;
                if b.pending >= 1 << 20 {
                    return misuse(format!("too many arrivals are pending at the mbarrier at {offset:#x}"), first);
                }
            }
            b.deferred.push(Deferred { warp: me, arrivals, copies, seen, foreign });
        }
        self.seen[me][me] += 1;
        self.only_full_barriers = false;
        Ok(())
    }

    /// Lets the copies that a barrier follows land, and their arrivals come.
    fn catch_up(&mut self, offset: u32, lane: usize) -> Step<()> {
        let Some(b) = self.shared.mbarriers.get_mut(&offset) else { return Ok(()) };
        for mut d in std::mem::take(&mut b.deferred) {
            for c in &mut d.copies {
                c.land(&mut self.shared, u32::MAX);
            }
            let Some(b) = self.shared.mbarriers.get_mut(&offset) else { return Ok(()) };
            b.brought.join_seen(&d.seen);
            b.brought.foreign.join(&d.foreign);
            if d.arrivals > b.pending {
                let text = format!(
                    "{} arrivals of copies at the mbarrier at {offset:#x}, whose phase {} waits for {} of {}",
                    d.arrivals, b.phase, b.pending, b.expected
                );
                return misuse(text, lane);
            }
            b.pending -= d.arrivals;
            b.complete();
        }
        Ok(())
    }

    /// True if a sleeping group may go on.
    pub fn phase_passed(&self, offset: u32, state: u64, parity: bool) -> bool {
        self.shared.mbarriers.get(&offset).is_none_or(|b| b.passed(state, parity) || !b.deferred.is_empty())
    }

    /// Is the end of the phase still unknown to the first who asks? Copies finish when they like.
    fn asked_too_early(&mut self, offset: u32, lane: usize) -> Step<bool> {
        let Some(b) = self.shared.mbarriers.get_mut(&offset) else { return Ok(false) };
        let early = std::mem::take(&mut b.delayed) || !b.deferred.is_empty();
        if early {
            self.catch_up(offset, lane)?;
            if let Some(b) = self.shared.mbarriers.get_mut(&offset) {
                b.delayed = false;
            }
        }
        Ok(early)
    }

    pub fn mbarrier_wait(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        w: &MbarWait,
        addresses: &[u64; 32],
        active: u32,
        pc: u32,
    ) -> Step<Flow> {
        let mut passed = 0u32;
        let mut first = None;
        let mut asked: Vec<(u32, bool)> = Vec::new();
        for l in lanes(active) {
            let (rank, offset) = self.barrier_at(addresses[l], l)?;
            if rank != self.rank {
                return misuse("a thread can wait only on an mbarrier of its own block".into(), l);
            }
            self.check_order(warp, rank, offset, l, pc)?;
            let p = &warp.frames[frame].planes;
            let s = if w.parity { u64::from(p.get(w.state)[l]) } else { p.u64_at(w.state, l) };
            let early = match asked.iter().find(|a| a.0 == offset) {
                Some(a) => a.1,
                None => {
                    let early = self.asked_too_early(offset, l)?;
                    asked.push((offset, early));
                    early
                }
            };
            let Some(b) = self.shared.mbarriers.get_mut(&offset) else { continue };
            if !w.parity && b.phase > (s >> 20) + 1 {
                let text = format!("a wait for phase {} of the mbarrier at {offset:#x}, now in {}", s >> 20, b.phase);
                return misuse(text, l);
            }
            if !early && b.passed(s, w.parity) {
                passed |= 1 << l;
                let ready = std::mem::take(&mut b.ready);
                let (done, copies) = (b.done.clone(), b.done_copies.clone());
                for landing in ready {
                    landing.arrive(&mut self.shared);
                }
                self.acquire_wide(warp.id, &copies);
                if w.acquire {
                    self.acquire(warp.id, &done.seen, &done.foreign);
                    if w.wide {
                        self.acquire_wide(warp.id, &done.wide);
                    }
                }
            } else {
                first = first.or(Some((offset, s)));
            }
        }
        super::barrier::sync_lanes(&mut self.epochs[warp.id], passed);
        if let (true, 0, Some((offset, state))) = (w.blocking, passed, first)
            && !asked.iter().any(|a| a.1)
        {
            // The wait may end early, and does so the first time: a program has to look at the predicate.
            let again = warp.refused.replace((pc, offset, state)) == Some((pc, offset, state));
            if again && self.rng.below(4) != 0 {
                return Ok(Flow::Retry(Wait::Phase { offset, state, parity: w.parity }));
            }
        }
        warp.frames[frame].planes.set_mask(w.d, passed, active);
        Ok(Flow::Next)
    }
}

impl Landing {
    /// The bytes are there.
    fn arrive(self, shared: &mut Shared) {
        let (o, n) = (self.dst as usize, self.data.len());
        match self.reduce {
            None => shared.data[o..o + n].copy_from_slice(&self.data),
            Some((op, ty)) => {
                let mut value = [0; 8];
                value[..n].copy_from_slice(&self.data);
                let old = u128::from(shared.read(self.dst, n as u32));
                let new = super::atomic::apply(op, ty, old, u128::from(u64::from_le_bytes(value)), 0);
                shared.write(self.dst, n as u32, new as u64);
            }
        }
        shared.set_state(self.dst, n as u32, INIT | ASYNC);
        // What it read may change again.
        drop(self.source);
    }
}
