//! Instructions that exchange values between the lanes of a warp.

use super::block::{Block, Step, stop};
use super::lanes::{LANES, Plane};
use super::step::Flow;
use super::warp::{Warp, lanes};
use crate::check::fault::FaultKind;
use crate::decode::program::*;

impl Block<'_> {
    /// Runs a collective once for each member mask that the lanes name.
    pub fn collective(&mut self, warp: &mut Warp, gi: usize, op: &Op, active: u32) -> Step<Flow> {
        let g = warp.groups[gi];
        let frame = g.frame as usize;
        let mask_plane = match op {
            Op::Shfl { mask, .. }
            | Op::Vote { mask, .. }
            | Op::Match { mask, .. }
            | Op::Redux { mask, .. }
            | Op::Elect { mask, .. }
            | Op::WarpSync { mask } => *mask,
            _ => return Ok(Flow::Next),
        };
        let masks = *warp.frames[frame].planes.get(mask_plane);
        // First check that everyone is here, then act: a half-done instruction could not be repeated.
        let mut left = active;
        let mut sets: Vec<u32> = Vec::new();
        while left != 0 {
            let l = left.trailing_zeros() as usize;
            let members = masks[l] & warp.alive;
            if members >> l & 1 == 0 {
                return stop(
                    FaultKind::Misuse(format!("lane {l} is not in its own member mask {:#010x}", masks[l])),
                    Some(l),
                );
            }
            if let Some(k) = lanes(members & active).find(|&k| masks[k] != masks[l]) {
                let text =
                    format!("lanes {l} and {k} name different member masks {:#010x} and {:#010x}", masks[l], masks[k]);
                return stop(FaultKind::Misuse(text), Some(l));
            }
            if members & !active != 0 {
                if members & !g.mask != 0 {
                    return self.converge(warp, gi, members);
                }
                // The missing lanes stand here too, but their guard is false: they will never take part.
                return stop(FaultKind::Divergent { arrived: members & active, expected: members }, Some(l));
            }
            sets.push(members);
            left &= !members;
        }
        for members in sets {
            self.exchange(warp, frame, op, members)?;
        }
        Ok(Flow::Next)
    }

    fn exchange(&mut self, warp: &mut Warp, frame: usize, op: &Op, members: u32) -> Step<()> {
        let p = &mut warp.frames[frame].planes;
        match *op {
            Op::Shfl { mode, d, p: valid, a, b, c, .. } => {
                let (src, bs, cs) = (*p.get(a), *p.get(b), *p.get(c));
                let mut out: Plane = [0; LANES];
                let mut ok = 0u32;
                for l in lanes(members) {
                    let lane = l as u32;
                    let bval = bs[l] & 31;
                    let cval = cs[l] & 31;
                    let segment = cs[l] >> 8 & 31;
                    let max = (lane & segment) | (cval & !segment);
                    let min = lane & segment;
                    let (j, inside) = match mode {
                        ShflMode::Up => (lane.wrapping_sub(bval), lane as i32 - bval as i32 >= max as i32),
                        ShflMode::Down => (lane + bval, lane + bval <= max),
                        ShflMode::Bfly => (lane ^ bval, lane ^ bval <= max),
                        ShflMode::Idx => {
                            let j = min | (bval & !segment);
                            (j, j <= max)
                        }
                    };
                    let from = if inside { j } else { lane };
                    if members >> from & 1 == 0 {
                        let text = format!("lane {l} reads lane {from}, which does not take part");
                        return stop(FaultKind::Misuse(text), Some(l));
                    }
                    out[l] = src[from as usize];
                    ok |= u32::from(inside) << l;
                }
                p.put(d, &out, members);
                if valid != NONE {
                    p.set_mask(valid, ok, members);
                }
            }
            Op::Vote { mode, d, p: pred, negate, .. } => {
                let m = p.mask(pred);
                let votes = (if negate { !m } else { m }) & members;
                match mode {
                    VoteMode::Ballot => p.put(d, &[votes; LANES], members),
                    VoteMode::All => p.set_mask(d, if votes == members { u32::MAX } else { 0 }, members),
                    VoteMode::Any => p.set_mask(d, if votes != 0 { u32::MAX } else { 0 }, members),
                    VoteMode::Uni => p.set_mask(d, if votes == 0 || votes == members { u32::MAX } else { 0 }, members),
                }
            }
            Op::Match { all, wide, d, p: pred, a, .. } => {
                let value = |l: usize| if wide { p.u64_at(a, l) } else { u64::from(p.get(a)[l]) };
                let same = |v: u64| lanes(members).filter(|&k| value(k) == v).fold(0u32, |m, k| m | 1 << k);
                let mut out: Plane = [0; LANES];
                let mut agreed = false;
                for l in lanes(members) {
                    let m = same(value(l));
                    agreed = m == members;
                    out[l] = if all && !agreed { 0 } else { m };
                }
                p.put(d, &out, members);
                if pred != NONE {
                    p.set_mask(pred, if agreed { u32::MAX } else { 0 }, members);
                }
            }
            Op::Redux { op, signed, d, a, .. } => {
                let v = *p.get(a);
                let r = lanes(members).map(|l| v[l]).reduce(|x, y| match (op, signed) {
                    (ReduxOp::Add, _) => x.wrapping_add(y),
                    (ReduxOp::And, _) => x & y,
                    (ReduxOp::Or, _) => x | y,
                    (ReduxOp::Xor, _) => x ^ y,
                    (ReduxOp::Min, false) => x.min(y),
                    (ReduxOp::Max, false) => x.max(y),
                    (ReduxOp::Min, true) => (x as i32).min(y as i32) as u32,
                    (ReduxOp::Max, true) => (x as i32).max(y as i32) as u32,
                });
                p.put(d, &[r.unwrap_or(0); LANES], members);
            }
            Op::Elect { d, p: pred, .. } => {
                let leader = members.trailing_zeros();
                p.put(d, &[leader; LANES], members);
                p.set_mask(pred, 1 << leader, members);
            }
            _ => super::barrier::sync_lanes(&mut self.epochs[warp.id], members),
        }
        Ok(())
    }
}
