//! The interpreter's loop.

use super::block::{Block, FlagTable, Step, Stop, stop};
use super::warp::{Wait, Warp};
use crate::check::fault::{Fault, FaultKind};
use crate::decode::program::*;

/// What follows an instruction.
pub enum Flow {
    Next,
    Jump(u32),
    /// The groups changed: choose again.
    Choose,
    /// Try the same instruction again after others ran.
    Retry(Wait),
}

impl Block<'_> {
    /// Runs one warp until its budget is spent or nothing in it can move. False if nothing moved.
    pub fn run_warp(&mut self, w: usize, budget: u32, flags: &mut FlagTable) -> Result<bool, Box<Fault>> {
        let mut warp = std::mem::take(&mut self.warps[w]);
        let before = warp.executed;
        let mut left = budget;
        let mut moved = false;
        let mut result = Ok(());
        let mut favour = None;
        while left > 0 && warp.alive != 0 {
            let Some(g) = self.select(&mut warp, &mut moved, favour.take()) else { break };
            if let Err(s) = self.run_group(&mut warp, g, &mut left, flags) {
                result = Err(s);
                break;
            }
            moved = true;
        }
        // A warp that spends its whole budget while other groups wait for their turn lets another one go first.
        if left == 0 && warp.groups.len() > 1 {
            favour = Some(self.rng.below(warp.groups.len()));
            if result.is_ok()
                && let Some(g) = self.select(&mut warp, &mut moved, favour)
            {
                let mut extra = budget;
                if let Err(s) = self.run_group(&mut warp, g, &mut extra, flags) {
                    result = Err(s);
                }
            }
        }
        self.executed += warp.executed - before;
        let at = (w, warp.pc);
        self.warps[w] = warp;
        match result {
            Ok(()) => Ok(moved),
            Err(s) => Err(self.fault(Some(at), Stop { kind: s.kind, lane: s.lane })),
        }
    }

    /// Wakes groups whose wait is over, merges groups that have met, and picks the next to run.
    fn select(&mut self, warp: &mut Warp, moved: &mut bool, favour: Option<usize>) -> Option<usize> {
        if let [g] = warp.groups.as_slice()
            && g.wait == Wait::Ready
        {
            return Some(0);
        }
        for i in 0..warp.groups.len() {
            if let Wait::Barrier { id, generation } = warp.groups[i].wait
                && self.barriers[id as usize].generation > generation
            {
                self.leave_barrier(warp, i, generation);
                *moved = true;
            }
        }
        for g in &mut warp.groups {
            let over = match g.wait {
                Wait::Phase { offset, state, parity } => self.phase_passed(offset, state, parity),
                Wait::Registers { more } => self.registers.free >= more,
                Wait::Warpgroup { groups } => self.warpgroup_ready(warp.id, groups),
                Wait::Cluster { generation } => self.cluster_barrier.borrow().generation > generation,
                _ => false,
            };
            if over {
                g.wait = Wait::Ready;
            }
        }
        let mut i = 0;
        while i < warp.groups.len() {
            let mut j = i + 1;
            while j < warp.groups.len() {
                let (a, b) = (warp.groups[i], warp.groups[j]);
                let still = |w: Wait| matches!(w, Wait::Ready | Wait::Converge);
                if a.pc == b.pc && a.frame == b.frame && still(a.wait) && still(b.wait) {
                    warp.groups[i].mask |= b.mask;
                    warp.groups[i].wait = Wait::Ready;
                    warp.groups.swap_remove(j);
                } else {
                    j += 1;
                }
            }
            i += 1;
        }
        if let Some(f) = favour
            && warp.groups.get(f).is_some_and(|g| g.wait == Wait::Ready)
        {
            return Some(f);
        }
        let depth = |f: u32| warp.frames[f as usize].depth;
        (0..warp.groups.len())
            .filter(|&i| warp.groups[i].wait == Wait::Ready)
            .min_by_key(|&i| (std::cmp::Reverse(depth(warp.groups[i].frame)), warp.groups[i].pc))
    }

    fn run_group(&mut self, warp: &mut Warp, gi: usize, left: &mut u32, flags: &mut FlagTable) -> Step<()> {
        let program = self.env.program;
        let group = warp.groups[gi];
        let frame = group.frame as usize;
        let mask = group.mask;
        let mut pc = group.pc;
        // Where another group of the same call stands: meeting it there merges the two.
        let meet = warp
            .groups
            .iter()
            .enumerate()
            .filter(|(i, g)| {
                *i != gi && g.frame == group.frame && g.pc > pc && matches!(g.wait, Wait::Ready | Wait::Converge)
            })
            .map(|(_, g)| g.pc)
            .min()
            .unwrap_or(u32::MAX);
        while *left > 0 {
            let instr = &program.code[pc as usize];
            warp.pc = pc;
            let mut active = mask;
            if instr.guard != NONE {
                let p = warp.frames[frame].planes.mask(instr.guard);
                if instr.track {
                    self.check_guard(warp, frame, instr, mask)?;
                }
                active &= if instr.guard_negated { !p } else { p };
                if active == 0 {
                    pc += 1;
                    *left -= 1;
                    warp.executed += 1;
                    self.counters.instructions[instr.kind as usize] += u64::from(!instr.part);
                    if pc == meet {
                        warp.groups[gi].pc = pc;
                        return Ok(());
                    }
                    continue;
                }
            }
            if !instr.part {
                *left -= 1;
                warp.executed += 1;
                self.counters.instructions[instr.kind as usize] += 1;
            }
            if instr.watched {
                self.touch(warp, instr, pc);
            }
            if warp.any_flight() {
                self.check_flight(warp, frame, instr, pc)?;
            }
            let flow = if instr.track {
                self.tracked(warp, gi, pc, instr, active, flags)?
            } else if let Op::Alu { f, x } = &instr.op {
                f(&mut warp.frames[frame].planes, x, active);
                Flow::Next
            } else {
                self.execute(warp, gi, pc, instr, active, flags)?
            };
            match flow {
                Flow::Next => pc += 1,
                Flow::Jump(to) => {
                    let back = to <= pc;
                    pc = to;
                    if back && meet != u32::MAX {
                        warp.groups[gi].pc = pc;
                        return Ok(());
                    }
                    if pc > meet {
                        warp.groups[gi].pc = pc;
                        return Ok(());
                    }
                }
                Flow::Choose => return Ok(()),
                Flow::Retry(wait) => {
                    warp.groups[gi].pc = pc;
                    warp.groups[gi].wait = wait;
                    warp.executed -= 1;
                    *left += 1;
                    self.counters.instructions[instr.kind as usize] -= 1;
                    return Ok(());
                }
            }
            if pc == meet {
                break;
            }
        }
        warp.groups[gi].pc = pc;
        Ok(())
    }

    /// Executes everything but plain arithmetic.
    fn execute(
        &mut self,
        warp: &mut Warp,
        gi: usize,
        pc: u32,
        instr: &Instr,
        active: u32,
        flags: &mut FlagTable,
    ) -> Step<Flow> {
        let frame = warp.groups[gi].frame as usize;
        match &instr.op {
            Op::Alu { f, x } => f(&mut warp.frames[frame].planes, x, active),
            Op::Special { d, which, planes } => self.special(warp, frame, *d, *which, *planes, active),
            Op::FrameAddress { d, offset, .. } => {
                let v = u64::from(warp.frames[frame].base.wrapping_add(*offset));
                for l in super::warp::lanes(active) {
                    warp.frames[frame].planes.set_u64(*d, l, v);
                }
            }
            Op::FunctionAddress { d, function } => {
                let v = super::call::function_pointer(*function);
                for l in super::warp::lanes(active) {
                    warp.frames[frame].planes.set_u64(*d, l, v);
                }
            }
            Op::Bra { target } => return Ok(self.branch(warp, gi, pc, active, *target)),
            Op::Brx { index, table } => return self.branch_table(warp, gi, pc, active, *index, *table),
            Op::Call(site) => return self.call(warp, gi, pc, active, site),
            Op::Ret => return Ok(self.ret(warp, gi, pc, active)),
            Op::Exit => {
                if let Some(r) = warp.bulk.iter().find(|r| active >> r.lane & 1 == 1) {
                    let text = "the thread ends while its bulk copy still reads shared memory".into();
                    return stop(FaultKind::Misuse(text), Some(r.lane));
                }
                return Ok(self.exit(warp, gi, pc, active));
            }
            Op::Ld(m) => self.load(warp, frame, m, active, pc, flags)?,
            Op::St(m) => self.store(warp, frame, m, active, pc, flags)?,
            Op::Atom(a) => self.atomic(warp, frame, a, active, pc, flags)?,
            Op::IsSpace { d, a, space } => self.is_space(warp, frame, *d, *a, *space, active),
            Op::Cvta { d, a, space, to, .. } => self.cvta(warp, frame, *d, *a, *space, *to, active),
            Op::Shfl { .. }
            | Op::Vote { .. }
            | Op::Match { .. }
            | Op::Redux { .. }
            | Op::Elect { .. }
            | Op::WarpSync { .. } => {
                return self.collective(warp, gi, &instr.op, active);
            }
            Op::ActiveMask { d } => {
                warp.frames[frame].planes.put(*d, &[active; 32], active);
            }
            Op::Bar(b) => return self.barrier(warp, gi, b, active),
            Op::Fence(f) => self.fence(warp, *f),
            Op::CpAsync { dst, src, bytes, src_bytes, ignore } => {
                self.copy_async(warp, frame, [dst, src], *bytes, *src_bytes, *ignore, active, pc)?;
            }
            Op::CpCommit => {
                for l in super::warp::lanes(active) {
                    warp.committed[l] += 1;
                }
            }
            Op::CpWait { pending } => self.copy_wait(warp, *pending, active)?,
            Op::LdMatrix { count, trans, d, addr, space } => {
                return self.load_matrix(warp, gi, (*count, *trans), d, addr, *space, active, pc);
            }
            Op::StMatrix { count, trans, s, addr, space } => {
                return self.store_matrix(warp, gi, (*count, *trans), s, addr, *space, active, pc);
            }
            Op::MovMatrix { d, a } => return self.move_matrix(warp, gi, *d, *a, active),
            Op::Mma(m) => return self.mma(warp, gi, m, active),
            Op::Wmma(w) => return self.wmma(warp, gi, w, active, pc),
            Op::Trap => return stop(FaultKind::Trap, Some(active.trailing_zeros() as usize)),
            Op::Sleep | Op::Hint => {}
            Op::Hopper(h) => return self.hopper(warp, gi, pc, h, active),
        }
        Ok(Flow::Next)
    }

    fn check_guard(&self, warp: &Warp, frame: usize, instr: &Instr, mask: u32) -> Step<()> {
        let f = &warp.frames[frame];
        match f.init.get(instr.guard as usize) {
            Some(&init) if init & mask != mask => {
                let lane = (mask & !init).trailing_zeros() as usize;
                stop(FaultKind::UninitialisedRegister { register: self.register(f.func, instr.guard) }, Some(lane))
            }
            _ => Ok(()),
        }
    }

    /// Notes an access to registers of matrix operations. Moves rename: what is moved is as old as its source.
    fn touch(&self, warp: &mut Warp, instr: &Instr, pc: u32) {
        let Some(t) = &mut warp.fence else { return };
        let deps = &self.env.program.deps[pc as usize];
        if instr.kind == Kind::Move {
            let dirty = deps.reads.iter().any(|r| t.planes.contains(r));
            t.planes.retain(|p| !deps.writes.contains(p));
            if dirty {
                t.planes.extend(&deps.writes);
            }
            return;
        }
        for &p in deps.reads.iter().chain(&deps.writes) {
            if !t.planes.contains(&p) {
                t.planes.push(p);
            }
        }
    }

    /// Accumulators in flight may be renamed by moves, and taken by further matrix operations; nothing else may touch them.
    fn check_flight(&self, warp: &mut Warp, frame: usize, instr: &Instr, pc: u32) -> Step<()> {
        if matches!(&instr.op, Op::Hopper(h) if matches!(**h, crate::decode::hopper::Hopper::Wgmma(_))) {
            return Ok(());
        }
        let deps = &self.env.program.deps[pc as usize];
        let read = deps.reads.iter().copied().find(|&r| warp.in_flight(frame, r));
        if let (Some(_), Kind::Move) = (read, instr.kind) {
            for &w in &deps.writes {
                warp.set_flight(frame, w);
            }
            return Ok(());
        }
        let busy = |w: u32| warp.in_flight(frame, w) || warp.is_read(frame, w);
        match read.or_else(|| deps.writes.iter().copied().find(|&w| busy(w))) {
            Some(r) => {
                let func = warp.frames[frame].func;
                stop(FaultKind::RegisterInFlight { register: self.register(func, r) }, None)
            }
            None => Ok(()),
        }
    }

    pub fn register(&self, func: u32, plane: u32) -> String {
        let names = &self.env.program.funcs[func as usize].names;
        match names.partition_point(|n| n.0 <= plane).checked_sub(1) {
            Some(i) => names[i].1.clone(),
            None => "?".into(),
        }
    }

    /// The careful path: an unsure value may be copied and computed with, but not used as an address, a condition, or a result.
    fn tracked(
        &mut self,
        warp: &mut Warp,
        gi: usize,
        pc: u32,
        instr: &Instr,
        active: u32,
        flags: &mut FlagTable,
    ) -> Step<Flow> {
        let frame = warp.groups[gi].frame as usize;
        let deps = &self.env.program.deps[pc as usize];
        let f = &warp.frames[frame];
        let mut bad = 0;
        let harmless = match &instr.op {
            Op::Alu { .. }
            | Op::Special { .. }
            | Op::FrameAddress { .. }
            | Op::FunctionAddress { .. }
            | Op::Cvta { .. } => true,
            Op::St(m) => m.space == crate::parse::ast::Space::Local,
            _ => false,
        };
        if !f.init.is_empty() {
            for &r in &deps.reads {
                let missing = active & !f.init[r as usize];
                if missing != 0 {
                    let address = matches!(&instr.op, Op::St(m) if r == m.addr.base);
                    if !harmless || address {
                        let kind = FaultKind::UninitialisedRegister { register: self.register(f.func, r) };
                        return stop(kind, Some(missing.trailing_zeros() as usize));
                    }
                    bad |= missing;
                }
            }
        }
        warp.poison = bad;
        let flow = self.execute(warp, gi, pc, instr, active, flags)?;
        if !deps.writes.is_empty() {
            let bad = warp.poison;
            if let Some(f) = warp.frames.get_mut(frame)
                && !f.init.is_empty()
            {
                for &w in &deps.writes {
                    let slot = &mut f.init[w as usize];
                    *slot = (*slot & !active) | (active & !bad);
                }
            }
        }
        Ok(flow)
    }

    fn branch(&mut self, warp: &mut Warp, gi: usize, pc: u32, active: u32, target: u32) -> Flow {
        let rest = warp.groups[gi].mask & !active;
        if rest == 0 {
            return Flow::Jump(target);
        }
        self.counters.divergent_branches += 1;
        let g = warp.groups[gi];
        warp.groups[gi].mask = active;
        warp.groups[gi].pc = target;
        warp.groups.push(super::warp::Group { pc: pc + 1, mask: rest, ..g });
        Flow::Choose
    }

    fn branch_table(&mut self, warp: &mut Warp, gi: usize, pc: u32, active: u32, index: u32, table: u32) -> Step<Flow> {
        let g = warp.groups[gi];
        let table = &self.env.program.tables[table as usize];
        let picks = *warp.frames[g.frame as usize].planes.get(index);
        let mut left = active;
        let mut parts = Vec::new();
        while left != 0 {
            let l = left.trailing_zeros() as usize;
            let Some(&to) = table.get(picks[l] as usize) else {
                return stop(FaultKind::BranchIndex { index: picks[l], entries: table.len() as u32 }, Some(l));
            };
            let same = super::warp::lanes(left).filter(|&k| picks[k] == picks[l]).fold(0, |m, k| m | 1 << k);
            parts.push((to, same));
            left &= !same;
        }
        if parts.len() == 1 && active == g.mask {
            return Ok(Flow::Jump(parts[0].0));
        }
        self.counters.divergent_branches += 1;
        if g.mask & !active != 0 {
            parts.push((pc + 1, g.mask & !active));
        }
        warp.groups[gi].pc = parts[0].0;
        warp.groups[gi].mask = parts[0].1;
        for &(to, mask) in &parts[1..] {
            warp.groups.push(super::warp::Group { pc: to, mask, ..g });
        }
        Ok(Flow::Choose)
    }

    /// Lanes leave the kernel.
    fn exit(&mut self, warp: &mut Warp, gi: usize, pc: u32, active: u32) -> Flow {
        warp.alive &= !active;
        {
            let mut b = self.cluster_barrier.borrow_mut();
            b.alive -= active.count_ones().min(b.alive);
            b.settle();
        }
        let g = &mut warp.groups[gi];
        g.mask &= !active;
        g.pc = pc + 1;
        if g.mask == 0 {
            warp.groups.swap_remove(gi);
        }
        // Those who waited for the lanes that left look again.
        for g in &mut warp.groups {
            if g.wait == Wait::Converge {
                g.wait = Wait::Ready;
            }
        }
        Flow::Choose
    }
}
