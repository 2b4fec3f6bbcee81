//! Which registers can be read before they are written?
//!
//! A lane follows one path through the control-flow graph, so a register written on every path to a read is initialised there.
//! Only registers that fail this, and those that copy out of local memory, are watched while the program runs: an ordinary
//! kernel pays nothing.

use super::hopper::{Hopper, Wgmma};
use super::program::*;
use crate::parse::ast::Space;

type Set = Vec<u64>;

fn has(s: &Set, i: u32) -> bool {
    s[i as usize / 64] >> (i % 64) & 1 == 1
}

fn add(s: &mut Set, i: u32) -> bool {
    let w = &mut s[i as usize / 64];
    let old = *w;
    *w |= 1 << (i % 64);
    *w != old
}

pub fn analyse(p: &mut Program) {
    for f in 0..p.funcs.len() {
        function(p, f);
    }
}

fn successors(p: &Program, at: u32, end: u32) -> Vec<u32> {
    let i = &p.code[at as usize];
    let mut out = Vec::new();
    let guarded = i.guard != NONE;
    match &i.op {
        Op::Bra { target } => out.push(*target),
        Op::Brx { table, .. } => out.extend(&p.tables[*table as usize]),
        Op::Ret | Op::Exit | Op::Trap => {}
        _ => out.push(at + 1),
    }
    if guarded {
        out.push(at + 1);
    }
    out.retain(|&s| s < end);
    out
}

fn function(p: &mut Program, f: usize) {
    let (start, end) = (p.funcs[f].start, p.funcs[f].end);
    let words = p.funcs[f].template.len().div_ceil(64);
    let n = (end - start) as usize;
    // Registers: what is named or written. Everything else is a constant.
    let mut assigned: Set = vec![u64::MAX; words];
    let clear = |s: &mut Set, i: u32| s[i as usize / 64] &= !(1 << (i % 64));
    for at in start..end {
        for &w in &p.deps[at as usize].writes {
            clear(&mut assigned, w);
        }
        for &r in &p.deps[at as usize].reads {
            if p.funcs[f].names.binary_search_by(|x| x.0.cmp(&r)).is_ok() {
                clear(&mut assigned, r);
            }
        }
    }
    // The carry flag starts clear.
    assigned[0] |= 1;
    // Block starts: the entry, branch targets, and what follows a branch.
    let mut leader = vec![false; n];
    leader[0] = true;
    for at in start..end {
        if matches!(p.code[at as usize].op, Op::Bra { .. } | Op::Brx { .. } | Op::Ret | Op::Exit | Op::Trap) {
            for s in successors(p, at, end) {
                leader[(s - start) as usize] = true;
            }
            if at + 1 < end {
                leader[(at + 1 - start) as usize] = true;
            }
        }
    }
    let mut state: Vec<Option<Set>> = vec![None; n];
    state[0] = Some(assigned);
    let mut work = vec![start];
    let mut watched: Set = vec![0; words];
    while let Some(block) = work.pop() {
        let Some(mut s) = state[(block - start) as usize].clone() else { continue };
        let mut at = block;
        loop {
            let i = &p.code[at as usize];
            for &r in &p.deps[at as usize].reads {
                if !has(&s, r) {
                    add(&mut watched, r);
                }
            }
            if i.guard == NONE {
                for &w in &p.deps[at as usize].writes {
                    add(&mut s, w);
                }
            }
            let next = successors(p, at, end);
            let last = next.len() != 1 || next[0] != at + 1 || leader[(at + 1 - start) as usize];
            if last {
                for t in next {
                    let slot = &mut state[(t - start) as usize];
                    let changed = match slot {
                        None => {
                            *slot = Some(s.clone());
                            true
                        }
                        Some(old) => {
                            let mut changed = false;
                            for (o, n) in old.iter_mut().zip(&s) {
                                let met = *o & n;
                                changed |= met != *o;
                                *o = met;
                            }
                            changed
                        }
                    };
                    if changed {
                        work.push(t);
                    }
                }
                break;
            }
            at += 1;
        }
    }
    // What copies from an unsure register, or out of local memory, is unsure too.
    let has_local = p.funcs[f].frame_bytes > 0;
    loop {
        let mut changed = false;
        for at in start..end {
            let d = &p.deps[at as usize];
            let from_local = match &p.code[at as usize].op {
                Op::Ld(m) => has_local && matches!(m.space, Space::Local | Space::Generic),
                _ => false,
            };
            if from_local || d.reads.iter().any(|&r| has(&watched, r)) {
                for &w in &d.writes {
                    changed |= add(&mut watched, w);
                }
            }
        }
        if !changed {
            break;
        }
    }
    for at in start..end {
        let d = &p.deps[at as usize];
        p.code[at as usize].track = d.reads.iter().chain(&d.writes).any(|&r| has(&watched, r));
    }
    p.funcs[f].tracked = (0..p.funcs[f].template.len() as u32).filter(|&i| has(&watched, i)).collect();
}

/// Marks the instructions that touch registers of asynchronous matrix operations, or registers moved into them.
pub fn watch(p: &mut Program) {
    if !p.warpgroups {
        return;
    }
    for f in 0..p.funcs.len() {
        let (start, end) = (p.funcs[f].start as usize, p.funcs[f].end as usize);
        let mut set: Set = vec![0; p.funcs[f].template.len().div_ceil(64)];
        for at in start..end {
            if let Some(w) = matrix(&p.code[at].op) {
                for &r in w.d.iter().chain(if w.a_descriptor { &[][..] } else { &w.a }) {
                    add(&mut set, r);
                }
            }
        }
        let mut changed = true;
        while changed {
            changed = false;
            for at in start..end {
                let d = &p.deps[at];
                if p.code[at].kind == Kind::Move && d.writes.iter().any(|&w| has(&set, w)) {
                    for &r in &d.reads {
                        changed |= add(&mut set, r);
                    }
                }
            }
        }
        for at in start..end {
            let d = &p.deps[at];
            let touches = d.reads.iter().chain(&d.writes).any(|&r| has(&set, r));
            p.code[at].watched = touches && matrix(&p.code[at].op).is_none();
        }
    }
}

fn matrix(op: &Op) -> Option<&Wgmma> {
    match op {
        Op::Hopper(h) => match &**h {
            Hopper::Wgmma(w) => Some(w),
            _ => None,
        },
        _ => None,
    }
}
