//! Calls of device functions.

use super::block::{Block, Step, stop};
use super::step::Flow;
use super::warp::{Frame, Group, LOCAL_LIMIT, Wait, Warp, lanes, reset_init};
use crate::check::fault::FaultKind;
use crate::decode::program::*;

/// Function pointers are tagged numbers.
const FUNCTION_TAG: u64 = 0x0500_0000_0000_0000;

pub fn function_pointer(f: u32) -> u64 {
    FUNCTION_TAG | u64::from(f)
}

impl Block<'_> {
    pub fn call(&mut self, warp: &mut Warp, gi: usize, pc: u32, active: u32, site: &CallSite) -> Step<Flow> {
        let g = warp.groups[gi];
        let frame = g.frame as usize;
        if let Some(builtin) = site.builtin {
            return self.builtin(warp, frame, builtin, site, active);
        }
        let function = if site.pointer == NONE {
            site.function
        } else {
            let planes = &warp.frames[frame].planes;
            let first = active.trailing_zeros() as usize;
            let pointer = planes.u64_at(site.pointer, first);
            let here = lanes(active).filter(|&l| planes.u64_at(site.pointer, l) == pointer).fold(0, |m, l| m | 1 << l);
            if pointer & WINDOW_MASK != FUNCTION_TAG || (pointer & !WINDOW_MASK) >= self.env.program.funcs.len() as u64
            {
                return stop(FaultKind::BadCall { pointer }, Some(first));
            }
            if here != active {
                // One target at a time: the other lanes come back to this instruction.
                warp.groups[gi].mask = here;
                warp.groups[gi].pc = pc;
                warp.groups.push(Group { pc, mask: g.mask & !here, ..g });
                return Ok(Flow::Choose);
            }
            (pointer & !WINDOW_MASK) as u32
        };
        let callee = &self.env.program.funcs[function as usize];
        if site.args.len() != callee.params.len() || site.results.len() != callee.returns.len() {
            return stop(
                FaultKind::Misuse(format!("`{}` is called with the wrong number of parameters", callee.name)),
                None,
            );
        }
        let caller = &warp.frames[frame];
        let (caller_base, depth) = (caller.base, caller.depth);
        let size = self.env.program.funcs[caller.func as usize].frame_bytes;
        let base = caller_base + size;
        if base + callee.frame_bytes > LOCAL_LIMIT {
            return stop(FaultKind::StackOverflow { limit: LOCAL_LIMIT }, Some(active.trailing_zeros() as usize));
        }
        warp.grow_local(base + callee.frame_bytes);
        for l in lanes(active) {
            // A fresh frame holds nothing, except the arguments.
            let start = l * warp.local_bytes as usize;
            let own = start + base as usize;
            warp.local_init[own..own + callee.frame_bytes as usize].fill(0);
            for (&(from, n), &(to, m)) in site.args.iter().zip(&callee.params) {
                let n = n.min(m) as usize;
                let (src, dst) = (start + (caller_base + from) as usize, own + to as usize);
                warp.local.copy_within(src..src + n, dst);
                warp.local_init.copy_within(src..src + n, dst);
            }
        }
        let slot = match warp.free_frames.pop() {
            Some(s) => s,
            None => {
                warp.frames.push(Frame::default());
                (warp.frames.len() - 1) as u32
            }
        };
        let f = &mut warp.frames[slot as usize];
        f.planes.0.clone_from(&callee.template);
        f.init.clear();
        reset_init(f, callee);
        f.func = function;
        f.base = base;
        f.depth = depth + 1;
        f.parent = g.frame;
        f.site = pc;
        f.lanes = active;
        let inner = Group { pc: callee.start, mask: active, frame: slot, wait: Wait::Ready };
        let rest = g.mask & !active;
        warp.groups[gi] = inner;
        if rest != 0 {
            warp.groups.push(Group { pc: pc + 1, mask: rest, ..g });
        }
        Ok(Flow::Choose)
    }

    pub fn ret(&mut self, warp: &mut Warp, gi: usize, pc: u32, active: u32) -> Flow {
        let g = warp.groups[gi];
        let f = &warp.frames[g.frame as usize];
        let (parent, site, base) = (f.parent, f.site, f.base);
        let callee = &self.env.program.funcs[f.func as usize];
        let caller_base = warp.frames[parent as usize].base;
        if let Op::Call(call) = &self.env.program.code[site as usize].op {
            for l in lanes(active) {
                let start = l * warp.local_bytes as usize;
                for (&(to, n), &(from, m)) in call.results.iter().zip(&callee.returns) {
                    let n = n.min(m) as usize;
                    let (src, dst) = (start + (base + from) as usize, start + (caller_base + to) as usize);
                    warp.local.copy_within(src..src + n, dst);
                    warp.local_init.copy_within(src..src + n, dst);
                }
            }
        }
        let f = &mut warp.frames[g.frame as usize];
        f.lanes &= !active;
        if f.lanes & warp.alive == 0 {
            warp.free_frames.push(g.frame);
        }
        let rest = g.mask & !active;
        warp.groups[gi] = Group { pc: site + 1, mask: active, frame: parent, wait: Wait::Ready };
        if rest != 0 {
            warp.groups.push(Group { pc: pc + 1, mask: rest, ..g });
        }
        Flow::Choose
    }
}
