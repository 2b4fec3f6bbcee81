//! mbarriers: arrivals, transaction counts, phases.

use super::block::{Block, Step, stop};
use super::step::Flow;
use super::warp::{Wait, Warp, lanes};
use crate::check::fault::{FaultKind, Memory};
use crate::check::race::{NOTHING, Seen};
use crate::decode::program::*;
use crate::memory::shared::{ASYNC, INIT, Shared};

/// A copy whose bytes are on their way.
#[derive(Debug)]
pub struct Landing {
    /// The instruction that sent it.
    pub pc: u32,
    pub dst: u32,
    pub data: Vec<u8>,
}

/// An mbarrier object. Its bits in memory are opaque; the state lives here.
#[derive(Debug)]
pub struct Mbarrier {
    pub expected: u32,
    pub pending: u32,
    pub tx: i64,
    pub phase: u64,
    /// What the arrivals of this block bring, and what completed phases brought.
    pub seen: Seen,
    pub done: Seen,
    pub inflight: Vec<Landing>,
    pub ready: Vec<Landing>,
}

impl Mbarrier {
    fn complete(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.done = self.seen;
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
    /// Which block of the cluster a shared address means, and the offset there.
    pub fn resolve_shared(&self, address: u64, lane: usize) -> Step<(usize, u32)> {
        let address = address & !WINDOW_MASK;
        let rank = (address >> 24) as usize;
        if rank == 0 {
            return Ok((self.rank, address as u32));
        }
        if rank > self.peers.len() {
            let kind = FaultKind::OutOfBounds { memory: Memory::Shared, address, bytes: 1, write: false };
            return stop(kind, Some(lane));
        }
        Ok((rank - 1, (address & 0xFF_FFFF) as u32))
    }

    pub fn shared_of(&mut self, rank: usize) -> &mut Shared {
        if rank == self.rank { &mut self.shared } else { &mut self.peers[rank] }
    }

    fn barrier_at(&mut self, address: u64, lane: usize) -> Step<(usize, u32)> {
        let (rank, offset) = self.resolve_shared(address, lane)?;
        if offset % 8 != 0 {
            let kind = FaultKind::Misaligned { memory: Memory::Shared, address, bytes: 8, write: true };
            return stop(kind, Some(lane));
        }
        if !self.shared_of(rank).mbarriers.contains_key(&offset) {
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
        let new = Mbarrier {
            expected: count,
            pending: count,
            tx: 0,
            phase: 0,
            seen: NOTHING,
            done: NOTHING,
            inflight: Vec::new(),
            ready: Vec::new(),
        };
        self.shared.mbarriers.insert(offset, new);
        Ok(())
    }

    pub fn mbarrier_inval(&mut self, address: u64, lane: usize) -> Step<()> {
        let (rank, offset) = self.barrier_at(address, lane)?;
        self.shared_of(rank).mbarriers.remove(&offset);
        Ok(())
    }

    /// An access to the barrier by this block must be ordered after its initialisation.
    fn check_order(&mut self, warp: &Warp, rank: usize, offset: u32, lane: usize, pc: u32) -> Step<()> {
        if rank != self.rank {
            return Ok(());
        }
        match self.shared.shadow.read(offset, 8, warp.id, &self.seen[warp.id], pc) {
            Ok(()) => Ok(()),
            Err(c) => self.shared_race(offset, false, c, lane),
        }
    }

    pub fn mbarrier_arrive(
        &mut self,
        warp: &mut Warp,
        address: u64,
        count: u32,
        expect: Option<u32>,
        drop: bool,
        release: bool,
        lane: usize,
        pc: u32,
    ) -> Step<u64> {
        let (rank, offset) = self.barrier_at(address, lane)?;
        self.check_order(warp, rank, offset, lane, pc)?;
        let (own, me) = (rank == self.rank, warp.id);
        let seen = self.seen[me];
        let Some(b) = self.shared_of(rank).mbarriers.get_mut(&offset) else { return Ok(0) };
        // The opaque state: the phase, and the arrivals it still waits for.
        let state = b.phase << 20 | u64::from(b.pending);
        if let Some(bytes) = expect {
            b.tx += i64::from(bytes);
        }
        if count == 0 || count > b.pending {
            let text = format!(
                "{count} arrivals at the mbarrier at {offset:#x}, whose phase {} waits for {} of {}",
                b.phase, b.pending, b.expected
            );
            return misuse(text, lane);
        }
        b.pending -= count;
        if drop {
            b.expected -= count;
        }
        if own && release {
            for (s, t) in b.seen.iter_mut().zip(&seen) {
                *s = (*s).max(*t);
            }
        }
        if b.pending == 0 && b.tx < 0 {
            let text = format!("the mbarrier at {offset:#x} received {} bytes more than were expected", -b.tx);
            return misuse(text, lane);
        }
        b.complete();
        if own && release {
            self.seen[me][me] += 1;
            self.only_full_barriers = false;
        }
        Ok(state)
    }

    /// Adds to or takes from the transaction count.
    pub fn mbarrier_tx(&mut self, address: u64, change: i64, lane: usize) -> Step<()> {
        let (rank, offset) = self.barrier_at(address, lane)?;
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

    /// True if a sleeping group may go on.
    pub fn phase_passed(&self, offset: u32, state: u64, parity: bool) -> bool {
        self.shared.mbarriers.get(&offset).is_none_or(|b| b.passed(state, parity))
    }

    pub fn mbarrier_wait(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        d: u32,
        addresses: &[u64; 32],
        state: u32,
        parity: bool,
        blocking: bool,
        acquire: bool,
        active: u32,
        pc: u32,
    ) -> Step<Flow> {
        let mut passed = 0u32;
        let mut first = None;
        for l in lanes(active) {
            let (rank, offset) = self.barrier_at(addresses[l], l)?;
            if rank != self.rank {
                return misuse("a thread can wait only on an mbarrier of its own block".into(), l);
            }
            self.check_order(warp, rank, offset, l, pc)?;
            let p = &warp.frames[frame].planes;
            let s = if parity { u64::from(p.get(state)[l]) } else { p.u64_at(state, l) };
            let Some(b) = self.shared.mbarriers.get_mut(&offset) else { continue };
            if b.passed(s, parity) {
                passed |= 1 << l;
                let ready = std::mem::take(&mut b.ready);
                let done = b.done;
                for landing in ready {
                    let o = landing.dst as usize;
                    self.shared.data[o..o + landing.data.len()].copy_from_slice(&landing.data);
                    self.shared.set_state(landing.dst, landing.data.len() as u32, INIT | ASYNC);
                }
                if acquire {
                    for (s, t) in self.seen[warp.id].iter_mut().zip(&done) {
                        *s = (*s).max(*t);
                    }
                }
            } else {
                first = first.or(Some((offset, s)));
            }
        }
        if let (true, 0, Some((offset, state))) = (blocking, passed, first) {
            return Ok(Flow::Retry(Wait::Phase { offset, state, parity }));
        }
        warp.frames[frame].planes.set_mask(d, passed, active);
        Ok(Flow::Next)
    }
}
