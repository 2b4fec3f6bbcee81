//! Barriers of a block and fences.

use super::block::{Block, Carried, Step, carry, stop};
use super::step::Flow;
use super::warp::{Wait, Warp};
use crate::check::clocks::Foreign;
use crate::check::fault::FaultKind;
use crate::check::race::{NOTHING, Seen};
use crate::decode::program::*;

/// One of the sixteen named barriers.
#[derive(Debug, Clone)]
pub struct Barrier {
    pub generation: u64,
    arrived: u32,
    /// Threads expected: None for all that are left.
    expected: Option<Option<u32>>,
    /// Bits of the warps that take part, of those that wait, and what they bring.
    waiting: u32,
    seen: Seen,
    foreign: Foreign,
    released: Carried,
    acquired: Carried,
    /// Reduction over predicates: how many true, how many in all.
    ones: u32,
    /// Result of finished reductions, by generation.
    results: Vec<(u64, BarOp, u32, u32)>,
    op: Option<BarOp>,
}

impl Default for Barrier {
    fn default() -> Self {
        Barrier {
            generation: 1,
            arrived: 0,
            expected: None,
            waiting: 0,
            seen: NOTHING,
            foreign: Foreign::default(),
            released: None,
            acquired: None,
            ones: 0,
            results: Vec::new(),
            op: None,
        }
    }
}

/// What these lanes did before is ordered before what they do from here on.
pub fn sync_lanes(epochs: &mut [u32; 32], lanes: u32) {
    let newest = super::warp::lanes(lanes).map(|l| epochs[l]).max().unwrap_or(0);
    for l in super::warp::lanes(lanes) {
        epochs[l] = newest + 1;
    }
}

fn misuse<T>(barrier: u32, reason: String, lane: u32) -> Step<T> {
    stop(FaultKind::BarrierMisuse { barrier, reason }, Some(lane.trailing_zeros() as usize))
}

impl Block<'_> {
    /// Threads that have not exited, the running warp's included.
    fn alive(&self, running: &Warp) -> u32 {
        // The running warp is out of its slot, which then holds none.
        self.warps.iter().map(|w| w.alive.count_ones()).sum::<u32>() + running.alive.count_ones()
    }

    pub fn barrier(&mut self, warp: &mut Warp, gi: usize, bar: &Bar, active: u32) -> Step<Flow> {
        let g = warp.groups[gi];
        if bar.aligned && (active != g.mask || g.mask != warp.alive) {
            if active != g.mask {
                return stop(
                    FaultKind::Divergent { arrived: active, expected: g.mask },
                    Some(active.trailing_zeros() as usize),
                );
            }
            return self.converge(warp, gi, warp.alive);
        }
        let planes = &warp.frames[g.frame as usize].planes;
        let lane = active.trailing_zeros() as usize;
        let id = planes.get(bar.id)[lane];
        if super::warp::lanes(active).any(|l| planes.get(bar.id)[l] != id) {
            return misuse(id, "the lanes name different barriers".into(), active);
        }
        if id > 15 {
            return misuse(id, "there are 16 barriers, 0 to 15".into(), active);
        }
        let count = if bar.count == NONE { None } else { Some(planes.get(bar.count)[lane]) };
        if let Some(n) = count {
            if n == 0 || n % 32 != 0 {
                return misuse(id, format!("the thread count {n} is not a positive multiple of 32"), active);
            }
            self.only_full_barriers = false;
        }
        let predicate = if bar.p == NONE { 0 } else { planes.mask(bar.p) & active };
        let b = &mut self.barriers[id as usize];
        match b.expected {
            None => {
                b.expected = Some(count);
                b.seen = NOTHING;
                b.foreign = Foreign::default();
                b.released = None;
                b.acquired = None;
                b.ones = 0;
                b.waiting = 0;
            }
            Some(e) if e != count => {
                let show = |c: Option<u32>| c.map_or("all threads".to_string(), |n| format!("{n} threads"));
                let reason = format!("earlier arrivals expect {}, this one {}", show(e), show(count));
                return misuse(id, reason, active);
            }
            Some(_) => {}
        }
        if let (Some(before), true) = (b.op, b.arrived > 0) {
            let kind = |o: BarOp| matches!(o, BarOp::Popc | BarOp::And | BarOp::Or).then_some(o);
            if kind(before) != kind(bar.op) && bar.op != BarOp::Arrive && before != BarOp::Arrive {
                return misuse(id, "arrivals mix different barrier operations".into(), active);
            }
        }
        b.op = Some(bar.op);
        // A count names whole warps: lanes that do not exist or have exited are counted with theirs.
        b.arrived += if count.is_some() && active == warp.alive { 32 } else { active.count_ones() };
        b.ones += predicate.count_ones();
        let me = warp.id;
        for (s, t) in b.seen.iter_mut().zip(&self.seen[me]) {
            *s = (*s).max(*t);
        }
        b.foreign.join(&self.foreign[me]);
        for (to, from) in [(&mut b.released, &self.released[me]), (&mut b.acquired, &self.acquired[me])] {
            if let Some((seen, foreign)) = from {
                carry(to, seen, foreign);
            }
        }
        // What follows is later than what the others will have seen.
        self.seen[me][me] += 1;
        self.counters.barriers += 1;
        if bar.op != BarOp::Arrive {
            sync_lanes(&mut self.epochs[me], active);
        }
        let generation = b.generation;
        if bar.op != BarOp::Arrive {
            b.waiting |= 1 << me;
            if active == g.mask {
                warp.groups[gi].wait = Wait::Barrier { id: id as u8, generation };
            } else {
                warp.groups[gi].mask &= !active;
                warp.groups[gi].pc += 1;
                let waiting =
                    super::warp::Group { mask: active, wait: Wait::Barrier { id: id as u8, generation }, ..g };
                warp.groups.push(waiting);
            }
            // The group stays at the barrier until it completes.
            let pc = warp.pc;
            for g in &mut warp.groups {
                if g.wait == (Wait::Barrier { id: id as u8, generation }) && g.mask & active != 0 {
                    g.pc = pc;
                }
            }
        }
        self.try_complete(id as usize, warp)?;
        Ok(if bar.op == BarOp::Arrive { Flow::Next } else { Flow::Choose })
    }

    fn try_complete(&mut self, id: usize, running: &Warp) -> Step<()> {
        let alive = self.alive(running);
        let b = &mut self.barriers[id];
        let Some(expected) = b.expected else { return Ok(()) };
        let wanted = expected.unwrap_or(alive);
        if b.arrived > wanted && expected.is_some() {
            return misuse(id as u32, format!("{} threads arrived, {wanted} were expected", b.arrived), 1);
        }
        if b.arrived < wanted {
            return Ok(());
        }
        let full = expected.is_none();
        b.results.push((b.generation, b.op.unwrap_or(BarOp::Sync), b.ones, b.arrived));
        if b.results.len() > 64 {
            b.results.remove(0);
        }
        b.generation += 1;
        b.arrived = 0;
        b.expected = None;
        let (waiting, joined, foreign) = (b.waiting, b.seen, b.foreign.clone());
        let (released, acquired) = (b.released.take(), b.acquired.take());
        for w in super::warp::lanes(waiting) {
            for (s, t) in self.seen[w].iter_mut().zip(&joined) {
                *s = (*s).max(*t);
            }
            self.foreign[w].join(&foreign);
            if let Some((seen, foreign)) = &released {
                carry(&mut self.released[w], seen, foreign);
            }
            if let Some((seen, foreign)) = &acquired {
                carry(&mut self.acquired[w], seen, foreign);
            }
        }
        if full {
            self.generation += 1;
        }
        Ok(())
    }

    /// Called between warps: completes barriers whose missing threads have exited.
    pub fn settle_barriers(&mut self) {
        let none = Warp::default();
        for id in 0..self.barriers.len() {
            if self.barriers[id].expected == Some(None) && self.barriers[id].arrived > 0 {
                // Only a count can be exceeded, and this barrier has none.
                let _ = self.try_complete(id, &none);
            }
        }
    }

    /// A group goes on after its barrier.
    pub fn leave_barrier(&mut self, warp: &mut Warp, gi: usize, generation: u64) {
        let g = warp.groups[gi];
        if let Op::Bar(bar) = &self.env.program.code[g.pc as usize].op
            && bar.d != NONE
            && let Wait::Barrier { id, .. } = g.wait
            && let Some(&(_, _, ones, all)) = self.barriers[id as usize].results.iter().find(|r| r.0 == generation)
        {
            let frame = &mut warp.frames[g.frame as usize];
            match bar.op {
                BarOp::Popc => frame.planes.put(bar.d, &[ones; 32], g.mask),
                BarOp::And => frame.planes.set_mask(bar.d, if ones == all { u32::MAX } else { 0 }, g.mask),
                _ => frame.planes.set_mask(bar.d, if ones > 0 { u32::MAX } else { 0 }, g.mask),
            }
        }
        warp.groups[gi].pc += 1;
        warp.groups[gi].wait = Wait::Ready;
    }

    /// A fence publishes what the warp has done to whoever reads a flag written later, and takes in what earlier flags said.
    pub fn fence(&mut self, warp: &mut Warp, fence: Fence) {
        if fence == Fence::MbarrierInit {
            let me = warp.id;
            self.init_released[me] = Some(self.foreign[me].with(self.index as u32, &self.seen[me]));
            self.seen[me][me] += 1;
            return;
        }
        if fence == Fence::ProxyAsync {
            let me = warp.id;
            self.proxy_fenced[me] = self.seen[me][me];
            self.proxy_seen[me] = self.seen[me];
            self.seen[me][me] += 1;
            return;
        }
        if !matches!(fence, Fence::Cta | Fence::Cluster | Fence::Gpu) {
            return;
        }
        self.only_full_barriers = false;
        let me = warp.id;
        if let Some((seen, foreign)) = self.acquired[me].take() {
            self.acquire(me, &seen, &foreign);
        }
        self.released[me] = Some((Box::new(self.seen[me]), self.foreign[me].clone()));
        self.seen[me][me] += 1;
    }

    pub fn acquire(&mut self, me: usize, seen: &Seen, foreign: &Foreign) {
        for (s, t) in self.seen[me].iter_mut().zip(seen) {
            *s = (*s).max(*t);
        }
        self.foreign[me].join(foreign);
    }

    /// Takes in what blocks know of each other: what they know of this one is an order among its own warps.
    pub fn acquire_wide(&mut self, me: usize, wide: &Foreign) {
        if let Some(times) = wide.of(self.index as u32) {
            for (s, t) in self.seen[me].iter_mut().zip(times) {
                *s = (*s).max(*t);
            }
        }
        self.foreign[me].join(wide);
    }
}
