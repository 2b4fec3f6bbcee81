//! `wmma`: element e of a matrix, counted row by row, is the e-th of the warp's slots: lane by lane, register by register,
//! lowest bits first. Where there are more slots than elements the matrix repeats. The ISA leaves the layout open; programs
//! that depend on one are wrong on some machine.

use super::block::{Block, Step, stop};
use super::lanes::Planes;
use super::mma::{float_elem, int_elem};
use super::step::Flow;
use super::warp::Warp;
use crate::check::fault::{FaultKind, Memory};
use crate::decode::program::*;
use crate::decode::wmma::{Fragment, Wmma};
use crate::exec::grid::Numerics;
use crate::memory::shared::INIT;
use crate::numerics::format::{F16, Rnd};
use crate::numerics::half::f16_to_f32;
use crate::numerics::simd;
use crate::parse::ast::Space;

impl Fragment {
    fn total(&self) -> usize {
        self.rows * self.cols
    }

    /// Elements in one register, and in one lane.
    fn per(&self) -> usize {
        if self.bits == 64 { 1 } else { 32 / self.bits }
    }

    fn lane(&self, e: usize) -> usize {
        e / (self.regs.len() * self.per())
    }

    fn get(&self, p: &Planes, e: usize) -> u64 {
        let reg = self.regs[e / self.per() % self.regs.len()];
        let lane = self.lane(e);
        if self.bits == 64 {
            return p.u64_at(reg, lane);
        }
        let mask = u32::MAX >> (32 - self.bits);
        u64::from(p.get(reg)[lane] >> (self.bits * (e % self.per())) & mask)
    }

    /// Writes every copy of an element.
    fn put(&self, p: &mut Planes, e: usize, v: u64) {
        for slot in (e..32 * self.regs.len() * self.per()).step_by(self.total()) {
            let reg = self.regs[slot / self.per() % self.regs.len()];
            let lane = self.lane(slot);
            if self.bits == 64 {
                p.set_u64(reg, lane, v);
                continue;
            }
            let shift = self.bits * (slot % self.per());
            let mask = (u32::MAX >> (32 - self.bits)) << shift;
            let w = &mut p.0[reg as usize][lane];
            *w = *w & !mask | (v as u32) << shift & mask;
        }
    }
}

impl Block<'_> {
    pub fn wmma(&mut self, warp: &mut Warp, gi: usize, w: &Wmma, active: u32, pc: u32) -> Step<Flow> {
        if let Some(flow) = self.whole_warp(warp, gi, active)? {
            return Ok(flow);
        }
        let frame = warp.groups[gi].frame as usize;
        match w {
            Wmma::Load { fragment, row, space, addr, stride } => {
                let (space, base, stride) = self.matrix_base(warp, frame, fragment, *space, addr, *stride)?;
                for e in 0..fragment.total() {
                    let (at, shift) = place(fragment, *row, base, stride, e);
                    let v = self.fetch(warp, space, at, fragment.bits.max(8) as u32 / 8, fragment.lane(e), pc)?;
                    fragment.put(&mut warp.frames[frame].planes, e, v >> shift);
                }
            }
            Wmma::Store { fragment, row, space, addr, stride } => {
                let (space, base, stride) = self.matrix_base(warp, frame, fragment, *space, addr, *stride)?;
                for e in 0..fragment.total() {
                    let (at, _) = place(fragment, *row, base, stride, e);
                    let v = fragment.get(&warp.frames[frame].planes, e);
                    self.deposit(warp, space, at, fragment.bits as u32 / 8, v, fragment.lane(e), pc)?;
                }
            }
            Wmma::Multiply { a, b, .. } => {
                self.counters.tensor_macs += (a.rows * a.cols * b.cols) as u64;
                multiply(&mut warp.frames[frame].planes, w, self.env.numerics);
            }
        }
        Ok(Flow::Next)
    }

    /// Space, address and stride, which all lanes must agree on.
    fn matrix_base(
        &mut self,
        warp: &Warp,
        frame: usize,
        f: &Fragment,
        space: Space,
        addr: &Addr,
        stride: u32,
    ) -> Step<(Space, u64, u64)> {
        let mut a = self.addresses(warp, frame, addr);
        let strides = *warp.frames[frame].planes.get(stride);
        if let Some(l) = (1..32).find(|&l| a[l] != a[0] || strides[l] != strides[0]) {
            return stop(FaultKind::Misuse("the lanes name different matrices or strides".into()), Some(l));
        }
        let parts = self.split(space, &mut a, u32::MAX);
        let space = parts.iter().find(|p| p.1 != 0).map_or(Space::Global, |p| p.0);
        let bytes = (f.regs.len() * f.bits.max(32) / 8) as u64;
        let memory = if space == Space::Shared { Memory::Shared } else { Memory::Global };
        if a[0] % bytes != 0 {
            let kind = FaultKind::Misaligned { memory, address: a[0], bytes: bytes as u32, write: false };
            return stop(kind, Some(0));
        }
        Ok((space, a[0], u64::from(strides[0])))
    }

    pub fn fetch(&mut self, warp: &mut Warp, space: Space, at: u64, n: u32, lane: usize, pc: u32) -> Step<u64> {
        if space == Space::Shared {
            let offset = self.shared_check(at, n, lane, false)?;
            self.shared_read(warp.id, offset, n, u32::MAX, pc, lane)?;
            return Ok(self.shared.read(offset, n));
        }
        let i = self.global_check(warp, at, n, lane, false)?;
        let alloc = &self.env.view.allocations[i];
        let offset = at - alloc.base;
        if alloc.initialised(offset, n) != (1u32 << n) - 1 {
            let kind = FaultKind::UninitialisedMemory { memory: Memory::Global, address: at, bytes: n };
            return stop(kind, Some(lane));
        }
        self.global_read(warp, i, offset, n, pc, false, lane)?;
        Ok(self.env.view.allocations[i].read(offset, n))
    }

    pub fn deposit(
        &mut self,
        warp: &mut Warp,
        space: Space,
        at: u64,
        n: u32,
        v: u64,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        if space == Space::Shared {
            let offset = self.shared_check(at, n, lane, true)?;
            self.shared_write(warp.id, offset, n, pc, false, lane)?;
            self.shared.write(offset, n, v);
            self.shared.set_state(offset, n, INIT);
            return Ok(());
        }
        let mut addresses = [0; 32];
        addresses[lane] = at;
        self.spare_sources(&addresses, 1 << lane, n)?;
        let i = self.global_check(warp, at, n, lane, true)?;
        let offset = at - self.env.view.allocations[i].base;
        self.global_write(warp, i, offset, n, pc, false, lane)?;
        let alloc = &self.env.view.allocations[i];
        alloc.write(offset, n, v);
        alloc.mark(offset, n);
        Ok(())
    }
}

/// Address of an element, and its shift within the byte where it is smaller than one.
fn place(f: &Fragment, row: bool, base: u64, stride: u64, e: usize) -> (u64, u32) {
    let (r, c) = ((e / f.cols) as u64, (e % f.cols) as u64);
    let index = if row { r * stride + c } else { c * stride + r };
    let bit = index.wrapping_mul(f.bits as u64);
    (base.wrapping_add(bit / 8), (bit % 8) as u32)
}

fn multiply(p: &mut Planes, w: &Wmma, numerics: Numerics) {
    let Wmma::Multiply { d, a, b, c, elem, d_acc, c_acc, satfinite, xor, rnd } = w else { return };
    let (m, n, k) = (a.rows, b.cols, a.cols);
    let flip = |i: usize| if numerics == Numerics::Descending { k - 1 - i } else { i };
    match d_acc {
        Acc::F64 => {
            for e in 0..m * n {
                let mut sum = f64::from_bits(c.get(p, e));
                for i in 0..k {
                    let x = f64::from_bits(a.get(p, e / n * k + flip(i)));
                    let y = f64::from_bits(b.get(p, flip(i) * n + e % n));
                    sum = super::mma::fma_rounded(x, y, sum, *rnd);
                }
                d.put(p, e, sum.to_bits());
            }
        }
        Acc::S32 => {
            let sums: Vec<u64> = (0..m * n)
                .map(|e| {
                    let pair = |i: usize| (a.get(p, e / n * k + i) as u32, b.get(p, i * n + e % n) as u32);
                    let sum: i64 = (0..k)
                        .map(|i| match (pair(i), *elem) {
                            ((x, y), Elem::B1) => i64::from(if *xor { x ^ y } else { x & y }),
                            ((x, y), t) => i64::from(int_elem(t, x, 0)) * i64::from(int_elem(t, y, 0)),
                        })
                        .sum();
                    let all = sum + i64::from(c.get(p, e) as i32);
                    let all = if *satfinite { all.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { all };
                    u64::from(all as u32)
                })
                .collect();
            sums.into_iter().enumerate().for_each(|(e, v)| d.put(p, e, v));
        }
        Acc::F32 | Acc::F16 => {
            let mut x = vec![0f32; m * k];
            let mut y = vec![0f32; k * n];
            for e in 0..m * k {
                x[e / k * k + flip(e % k)] = float_elem(*elem, a.get(p, e) as u32, 0);
            }
            for e in 0..k * n {
                y[flip(e / n) * n + e % n] = float_elem(*elem, b.get(p, e) as u32, 0);
            }
            let start = |e: usize| match c_acc {
                Acc::F16 => f16_to_f32(c.get(p, e) as u16),
                _ => f32::from_bits(c.get(p, e) as u32),
            };
            let mut sums: Vec<f32> = (0..m * n).map(start).collect();
            simd::matrix(&mut sums, &x, &y, m, n, k);
            for (e, v) in sums.into_iter().enumerate() {
                let bits = match d_acc {
                    Acc::F16 => F16.round(f64::from(v), Rnd::Near),
                    _ => crate::numerics::round::canonical(v).to_bits(),
                };
                d.put(p, e, u64::from(bits));
            }
        }
    }
}
