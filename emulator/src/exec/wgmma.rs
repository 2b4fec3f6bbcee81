//! `wgmma`: each warp of a warpgroup computes its 16 rows of the 64.
//!
//! The sums are computed when the instruction is issued, from shared memory as it is then; until the group is waited for, the
//! accumulators may not be used and the tiles may not be overwritten, so no program can tell the difference.

use super::block::{Block, Step, stop};
use super::bulk::Reading;
use super::grid::Numerics;
use super::mma::{float_elem, int_elem};
use super::step::Flow;
use super::warp::Warp;
use crate::check::fault::FaultKind;
use crate::decode::hopper::{Hopper, Wgmma};
use crate::decode::matrix::elem_bits;
use crate::decode::program::*;
use crate::numerics::format::{F16, Rnd};
use crate::numerics::half::f16_to_f32;
use crate::numerics::simd;
use crate::tensor_map::Swizzle;

/// A matrix in shared memory, as its descriptor says.
struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: Swizzle,
    /// Where the swizzle's pattern starts, as an offset from a whole one.
    base: u32,
    /// Bytes of one element; M- or N-major.
    es: u32,
    transposed: bool,
}

impl Descriptor {
    fn new(bits: u64, es: u32, transposed: bool, lane: usize) -> Step<Descriptor> {
        let field = |shift: u32| ((bits >> shift & 0x3FFF) << 4) as u32;
        let swizzle = [Swizzle::None, Swizzle::B128, Swizzle::B64, Swizzle::B32][(bits >> 62) as usize];
        let base = ((bits >> 49 & 7) as u32) << 7;
        if base != 0 && swizzle == Swizzle::None {
            let text = "a matrix descriptor without swizzle has a base offset".into();
            return stop(FaultKind::Misuse(text), Some(lane));
        }
        Ok(Descriptor { start: field(0), leading: field(16), stride: field(32), swizzle, base, es, transposed })
    }

    /// Address of element (row of M or N, index along K).
    #[inline(always)]
    fn place(&self, r: u32, k: u32) -> u32 {
        let es = self.es;
        let t = 16 / es;
        let w = self.swizzle.bytes();
        let linear = match (self.transposed, self.swizzle) {
            (false, Swizzle::None) => (r % 8) * 16 + (r / 8) * self.stride + (k / t) * self.leading + (k % t) * es,
            (false, _) => (r % 8) * w + (r / 8) * self.stride + k * es,
            (true, Swizzle::None) => (r % t) * es + (r / t) * self.stride + (k % 8) * 16 + (k / 8) * self.leading,
            (true, _) => {
                let span = w / es;
                (r % span) * es + (r / span) * self.leading + (k % 8) * w + (k / 8) * self.stride
            }
        };
        self.swizzle.apply(self.start.wrapping_add(linear).wrapping_sub(self.base)).wrapping_add(self.base)
    }
}

/// A committed or open group of matrix operations of one warp.
#[derive(Debug, Clone)]
pub struct Flight {
    pub group: u32,
    pub planes: Vec<u32>,
    /// Registers that hold A.
    pub a_planes: Vec<u32>,
    pub reading: Reading,
}

impl Block<'_> {
    /// Reads `rows` × `k` elements as raw words (one element each), checking every piece once.
    fn matrix_words(
        &mut self,
        warp: &Warp,
        d: &Descriptor,
        first: u32,
        rows: u32,
        k: u32,
        chunks: &mut Vec<u32>,
        pc: u32,
    ) -> Step<Vec<u32>> {
        let mut out = vec![0u32; (rows * k) as usize];
        let mut known = Vec::new();
        let mut last = u32::MAX;
        for r in 0..rows {
            for i in 0..k {
                let at = d.place(first + r, i);
                let chunk = at / 16;
                if chunk != last {
                    last = chunk;
                    known.push(chunk);
                }
                let o = at as usize;
                let Some(s) = self.shared.data.get(o..o + d.es as usize) else {
                    self.async_check(warp, at, d.es, 0, pc, None)?;
                    continue;
                };
                let mut b = [0; 4];
                b[..s.len()].copy_from_slice(s);
                out[(r * k + i) as usize] = u32::from_le_bytes(b);
            }
        }
        known.sort_unstable();
        known.dedup();
        for &c in &known {
            self.async_check(warp, c * 16, 16, 0, pc, Some(self.wg_committed[warp.id] + 1))?;
        }
        chunks.extend(known);
        Ok(out)
    }

    pub fn wgmma(&mut self, warp: &mut Warp, gi: usize, w: &Wgmma, active: u32, pc: u32) -> Step<Flow> {
        if let Some(flow) = self.whole_warp(warp, gi, active)? {
            return Ok(flow);
        }
        if self.warps.len() < (warp.id / 4 + 1) * 4 {
            return stop(FaultKind::Misuse("a warpgroup needs four warps".into()), Some(0));
        }
        self.check_fence(warp, gi, w, pc)?;
        self.counters.tensor_macs += (16 * w.n * w.k) as u64;
        let frame = warp.groups[gi].frame as usize;
        let bits = elem_bits(w.a_elem).max(8);
        let es = bits as u32 / 8;
        let first = (warp.id % 4 * 16) as u32;
        let mut chunks = Vec::new();
        let (n, k) = (w.n as u32, w.k as u32);
        let uniform = |p: &super::lanes::Planes, plane: u32| -> Step<u64> {
            let v = p.u64_at(plane, 0);
            match (1..32).find(|&l| p.u64_at(plane, l) != v) {
                Some(l) => stop(FaultKind::Misuse("the lanes hold different matrix descriptors".into()), Some(l)),
                None => Ok(v),
            }
        };
        let b_desc = Descriptor::new(uniform(&warp.frames[frame].planes, w.b)?, es, w.trans_b, 0)?;
        let b_words = self.matrix_words(warp, &b_desc, 0, n, k, &mut chunks, pc)?;
        let a_words = if w.a_descriptor {
            let d = Descriptor::new(uniform(&warp.frames[frame].planes, w.a[0])?, es, w.trans_a, 0)?;
            self.matrix_words(warp, &d, first, 16, k, &mut chunks, pc)?
        } else {
            let p = &warp.frames[frame].planes;
            let per = 32 / bits;
            let mut out = vec![0u32; 16 * w.k];
            for (j, &reg) in w.a.iter().enumerate() {
                for lane in 0..32 {
                    for i in 0..per {
                        let row = lane / 4 + 8 * (j % 2);
                        let col = j / 2 * 4 * per + (lane % 4) * per + i;
                        let shifted = p.get(reg)[lane] >> (bits * i % 32);
                        out[row * w.k + col] = shifted & (u32::MAX >> (32 - bits));
                    }
                }
            }
            out
        };
        let p = &mut warp.frames[frame].planes;
        let keep = p.mask(w.scale_d) & 1 == 1;
        if w.acc == Acc::S32 {
            integer(p, w, keep, &a_words, &b_words);
        } else {
            float(p, w, keep, &a_words, &b_words, self.env.numerics);
        }
        for &c in &chunks {
            self.shared.readers[c as usize] += 1;
        }
        let group = self.wg_committed[warp.id];
        for &d in &w.d {
            warp.set_flight(frame, d);
        }
        let a_planes = if w.a_descriptor { Vec::new() } else { w.a.clone() };
        for &a in &a_planes {
            warp.set_reading(a);
        }
        let reading = Reading { lane: 0, group, chunks };
        warp.flights.push(Flight { group, planes: w.d.clone(), a_planes, reading });
        Ok(Flow::Next)
    }

    /// Registers of a matrix operation must have been fenced since anything else used them; operations of one shape may share
    /// their accumulators.
    fn check_fence(&self, warp: &mut Warp, gi: usize, w: &Wgmma, pc: u32) -> Step<()> {
        let func = warp.frames[warp.groups[gi].frame as usize].func;
        let Some(t) = &mut warp.fence else {
            return stop(FaultKind::Misuse("wgmma without a wgmma.fence before it".into()), Some(0));
        };
        let a: &[u32] = if w.a_descriptor { &[] } else { &w.a };
        let used = |p: &u32| w.d.contains(p) || a.contains(p);
        let mut bad = t.planes.iter().copied().find(used);
        for &earlier in t.operations.iter().filter(|&&e| e != pc) {
            if let Op::Hopper(h) = &self.env.program.code[earlier as usize].op
                && let Hopper::Wgmma(e) = &**h
                && (e.n, e.k, e.acc, e.a_elem) != (w.n, w.k, w.acc, w.a_elem)
            {
                bad = bad.or(e.d.iter().copied().find(used));
            }
        }
        if !t.operations.contains(&pc) {
            t.operations.push(pc);
        }
        match bad {
            Some(p) => stop(FaultKind::MissingMatrixFence { register: self.register(func, p) }, Some(0)),
            None => Ok(()),
        }
    }

    /// Have all four warps committed this many groups?
    pub fn warpgroup_ready(&self, warp: usize, groups: u32) -> bool {
        let first = warp / 4 * 4;
        self.wg_committed[first..].iter().take(4).all(|&n| n >= groups)
    }

    pub fn wgmma_wait(&mut self, warp: &mut Warp, frame: usize, pending: u32) -> Flow {
        let me = warp.id;
        let limit = self.wg_committed[me];
        let over = limit.saturating_sub(pending);
        // The operations belong to the warpgroup: they are not over before all its warps have issued them.
        if !self.warpgroup_ready(me, over) {
            return Flow::Retry(super::warp::Wait::Warpgroup { groups: over });
        }
        let time = &mut self.seen[me][crate::check::race::MAX_WARPS + me / 4];
        *time = (*time).max(over);
        let (done, left): (Vec<Flight>, Vec<Flight>) =
            std::mem::take(&mut warp.flights).into_iter().partition(|f| f.group.saturating_add(pending) < limit);
        warp.flights = left;
        warp.clear_flight();
        let planes: Vec<u32> = warp.flights.iter().flat_map(|f| f.planes.iter().copied()).collect();
        for p in planes {
            warp.set_flight(frame, p);
        }
        let reading: Vec<u32> = warp.flights.iter().flat_map(|f| f.a_planes.iter().copied()).collect();
        for p in reading {
            warp.set_reading(p);
        }
        let mut chunks: Vec<u32> = done.into_iter().flat_map(|f| f.reading.chunks).collect();
        let first = me / 4 * 4;
        for sibling in self.warps.iter_mut().skip(first).take(4) {
            for f in sibling.flights.iter_mut().filter(|f| f.group < over) {
                chunks.append(&mut f.reading.chunks);
            }
        }
        for c in chunks {
            let n = &mut self.shared.readers[c as usize];
            *n = n.saturating_sub(1);
        }
        Flow::Next
    }
}

/// Row within the warp's sixteen, and column, of accumulator element `i` of a lane.
#[inline(always)]
fn acc_place(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2 % 2), i / 4 * 8 + (lane % 4) * 2 + i % 2)
}

fn float(p: &mut super::lanes::Planes, w: &Wgmma, keep: bool, a: &[u32], b: &[u32], numerics: Numerics) {
    let (n, k) = (w.n, w.k);
    let flip = |i: usize| if numerics == Numerics::Descending { k - 1 - i } else { i };
    let sign = |v: f32, negate: bool| if negate { -v } else { v };
    let mut x = vec![0f32; 16 * k];
    let mut y = vec![0f32; k * n];
    for r in 0..16 {
        for i in 0..k {
            x[r * k + flip(i)] = sign(float_elem(w.a_elem, a[r * k + i], 0), w.negate_a);
        }
    }
    for c in 0..n {
        for i in 0..k {
            y[flip(i) * n + c] = sign(float_elem(w.b_elem, b[c * k + i], 0), w.negate_b);
        }
    }
    let mut d = vec![0f32; 16 * n];
    if keep {
        for lane in 0..32 {
            for i in 0..n / 2 {
                let (r, c) = acc_place(lane, i);
                d[r * n + c] = if w.acc == Acc::F16 {
                    f16_to_f32((p.get(w.d[i / 2])[lane] >> (16 * (i % 2))) as u16)
                } else {
                    f32::from_bits(p.get(w.d[i])[lane])
                };
            }
        }
    }
    simd::matrix(&mut d, &x, &y, 16, n, k);
    for lane in 0..32 {
        for i in 0..n / 2 {
            let (r, c) = acc_place(lane, i);
            let v = d[r * n + c];
            if w.acc == Acc::F16 {
                let h = F16.round(f64::from(v), Rnd::Near);
                let slot = &mut p.0[w.d[i / 2] as usize][lane];
                *slot = if i % 2 == 0 { h } else { *slot & 0xFFFF | h << 16 };
            } else {
                p.0[w.d[i] as usize][lane] = crate::numerics::round::canonical(v).to_bits();
            }
        }
    }
}

fn integer(p: &mut super::lanes::Planes, w: &Wgmma, keep: bool, a: &[u32], b: &[u32]) {
    let k = w.k;
    for lane in 0..32 {
        for i in 0..w.n / 2 {
            let (r, c) = acc_place(lane, i);
            let sum: i64 = (0..k)
                .map(|j| match w.a_elem {
                    Elem::B1 => i64::from((a[r * k + j] & b[c * k + j]).count_ones()),
                    _ => {
                        i64::from(int_elem(w.a_elem, a[r * k + j], 0)) * i64::from(int_elem(w.b_elem, b[c * k + j], 0))
                    }
                })
                .sum();
            let slot = &mut p.0[w.d[i] as usize][lane];
            let total = sum + if keep { i64::from(*slot as i32) } else { 0 };
            let total = if w.satfinite { total.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { total };
            *slot = total as u32;
        }
    }
}
