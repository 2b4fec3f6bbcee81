//! `mma.sync`: fragments to matrices, the product, and back.
//!
//! Products are exact. Sums are f32 (or the accumulator's type) with one rounding for each addition, k ascending from C; with
//! [`Numerics::Descending`] k descends, so that a test can show that its result does not depend on the order. Hardware adds
//! several products at once with aligned, truncated significands: results that are exact in f32 agree, others may differ in the
//! last bits.

use super::block::{Block, Step};
use super::grid::Numerics;
use super::lanes::Planes;
use super::step::Flow;
use super::warp::Warp;
use crate::decode::matrix::elem_bits;
use crate::decode::program::*;
use crate::numerics::format::{E4M3, E5M2, F16, Rnd};
use crate::numerics::half::f16_to_f32;
use crate::numerics::simd;

/// One element of a fragment register as f32.
#[inline(always)]
pub fn float_elem(e: Elem, word: u32, i: usize) -> f32 {
    match e {
        Elem::F16 => f16_to_f32((word >> (16 * i)) as u16),
        Elem::Bf16 => f32::from_bits((word >> (16 * i)) << 16),
        // The low 13 bits of a tf32 operand are ignored.
        Elem::Tf32 => f32::from_bits(word & 0xFFFF_E000),
        Elem::E4m3 => E4M3.value(word >> (8 * i) & 0xFF) as f32,
        Elem::E5m2 => E5M2.value(word >> (8 * i) & 0xFF) as f32,
        _ => 0.0,
    }
}

#[inline(always)]
pub fn int_elem(e: Elem, word: u32, i: usize) -> i32 {
    match e {
        Elem::S8 => i32::from((word >> (8 * i)) as i8),
        Elem::U8 => (word >> (8 * i) & 0xFF) as i32,
        Elem::S4 => ((word >> (4 * i)) << 28) as i32 >> 28,
        Elem::U4 => (word >> (4 * i) & 0xF) as i32,
        _ => 0,
    }
}

/// Calls `f(row, k, register, lane, index)` for every element of the A fragment.
#[inline(always)]
fn each_a(m: &Mma, per: usize, mut f: impl FnMut(usize, usize, usize, usize, usize)) {
    let halves = m.m / 8;
    for j in 0..m.a.len() {
        for lane in 0..32 {
            for i in 0..per {
                f(lane / 4 + 8 * (j % halves), j / halves * 4 * per + (lane % 4) * per + i, j, lane, i);
            }
        }
    }
}

#[inline(always)]
fn each_b(m: &Mma, per: usize, mut f: impl FnMut(usize, usize, usize, usize, usize)) {
    for j in 0..m.b.len() {
        for lane in 0..32 {
            for i in 0..per {
                f(j * 4 * per + (lane % 4) * per + i, lane / 4, j, lane, i);
            }
        }
    }
}

/// Row and column of accumulator element `i` of a lane.
#[inline(always)]
fn acc_place(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2), (lane % 4) * 2 + i % 2)
}

impl Block<'_> {
    pub fn mma(&mut self, warp: &mut Warp, gi: usize, m: &Mma, active: u32) -> Step<Flow> {
        if let Some(flow) = self.whole_warp(warp, gi, active)? {
            return Ok(flow);
        }
        self.counters.tensor_macs += (m.m * m.n * m.k) as u64;
        let frame = warp.groups[gi].frame as usize;
        let p = &mut warp.frames[frame].planes;
        match m.d_acc {
            Acc::F64 => mma_f64(p, m, self.env.numerics),
            Acc::S32 if m.a_elem == Elem::B1 => mma_bits(p, m),
            Acc::S32 => mma_int(p, m),
            Acc::F32 | Acc::F16 if m.m * m.k == 32 => mma_quarters(p, m, self.env.numerics),
            Acc::F32 | Acc::F16 => mma_float(p, m, self.env.numerics),
        }
        Ok(Flow::Next)
    }
}

fn mma_float(p: &mut Planes, m: &Mma, numerics: Numerics) {
    let per = 32 / elem_bits(m.a_elem);
    let mut a = [0f32; 16 * 64];
    let mut b = [0f32; 64 * 8];
    let flip = |k: usize| if numerics == Numerics::Descending { m.k - 1 - k } else { k };
    each_a(m, per, |row, k, j, lane, i| a[row * m.k + flip(k)] = float_elem(m.a_elem, p.get(m.a[j])[lane], i));
    each_b(m, per, |k, col, j, lane, i| b[flip(k) * m.n + col] = float_elem(m.b_elem, p.get(m.b[j])[lane], i));
    let mut d = [0f32; 16 * 8];
    let elements = m.m * m.n / 32;
    for lane in 0..32 {
        for i in 0..elements {
            let (row, col) = acc_place(lane, i);
            d[row * 8 + col] = if m.c_acc == Acc::F16 {
                f16_to_f32((p.get(m.c[i / 2])[lane] >> (16 * (i % 2))) as u16)
            } else {
                f32::from_bits(p.get(m.c[i])[lane])
            };
        }
    }
    simd::matrix(&mut d, &a, &b, m.m, m.n, m.k);
    for lane in 0..32 {
        for i in 0..elements {
            let (row, col) = acc_place(lane, i);
            let v = d[row * 8 + col];
            if m.d_acc == Acc::F16 {
                let h = F16.round(f64::from(v), Rnd::Near);
                let w = &mut p.0[m.d[i / 2] as usize][lane];
                *w = if i % 2 == 0 { h } else { *w & 0xFFFF | h << 16 };
            } else {
                p.0[m.d[i] as usize][lane] = crate::numerics::round::canonical(v).to_bits();
            }
        }
    }
}

fn mma_int(p: &mut Planes, m: &Mma) {
    let per = 32 / elem_bits(m.a_elem);
    let mut a = [0i32; 16 * 64];
    let mut b = [0i32; 64 * 8];
    each_a(m, per, |row, k, j, lane, i| a[row * m.k + k] = int_elem(m.a_elem, p.get(m.a[j])[lane], i));
    each_b(m, per, |k, col, j, lane, i| b[k * m.n + col] = int_elem(m.b_elem, p.get(m.b[j])[lane], i));
    for lane in 0..32 {
        for i in 0..m.m * m.n / 32 {
            let (row, col) = acc_place(lane, i);
            let sum: i64 = (0..m.k).map(|k| i64::from(a[row * m.k + k]) * i64::from(b[k * m.n + col])).sum();
            let c = i64::from(p.get(m.c[i])[lane] as i32);
            let r = if m.satfinite { (c + sum).clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { c + sum };
            p.0[m.d[i] as usize][lane] = r as u32;
        }
    }
}

fn mma_f64(p: &mut Planes, m: &Mma, numerics: Numerics) {
    let mut a = [0f64; 16 * 16];
    let mut b = [0f64; 16 * 8];
    each_a(m, 1, |row, k, j, lane, _| a[row * m.k + k] = f64::from_bits(p.u64_at(m.a[j], lane)));
    each_b(m, 1, |k, col, j, lane, _| b[k * m.n + col] = f64::from_bits(p.u64_at(m.b[j], lane)));
    for lane in 0..32 {
        for i in 0..m.m * m.n / 32 {
            let (row, col) = acc_place(lane, i);
            let mut sum = f64::from_bits(p.u64_at(m.c[i], lane));
            for k in 0..m.k {
                let k = if numerics == Numerics::Descending { m.k - 1 - k } else { k };
                sum = fma_rounded(a[row * m.k + k], b[k * m.n + col], sum, m.rnd);
            }
            p.set_u64(m.d[i], lane, sum.to_bits());
        }
    }
}

/// a·b + c, rounded once in the direction asked for.
pub fn fma_rounded(a: f64, b: f64, c: f64, rnd: Rnd) -> f64 {
    match rnd {
        Rnd::Near => a.mul_add(b, c),
        _ => crate::numerics::round::fma64(a, b, c, rnd),
    }
}

/// Bits: combined, counted and added.
fn mma_bits(p: &mut Planes, m: &Mma) {
    let halves = m.m / 8;
    // Words of 32 bits along k.
    let (mut a, mut b) = ([[0u32; 8]; 16], [[0u32; 8]; 8]);
    for lane in 0..32 {
        let (group, word) = (lane / 4, lane % 4);
        for (j, &r) in m.a.iter().enumerate() {
            a[group + 8 * (j % halves)][j / halves * 4 + word] = p.get(r)[lane];
        }
        for (j, &r) in m.b.iter().enumerate() {
            b[group][j * 4 + word] = p.get(r)[lane];
        }
    }
    for lane in 0..32 {
        for i in 0..m.m * m.n / 32 {
            let (row, col) = acc_place(lane, i);
            let ones = |(x, y): (&u32, &u32)| if m.xor { x ^ y } else { x & y }.count_ones();
            let sum: u32 = a[row].iter().zip(&b[col]).take(m.k / 32).map(ones).sum();
            p.0[m.d[i] as usize][lane] = p.get(m.c[i])[lane].wrapping_add(sum);
        }
    }
}

/// Row and column of accumulator element `i` of a lane in the form of four small products.
fn quarter_place(acc: Acc, lane: usize, i: usize) -> (usize, usize) {
    let low = lane / 16 * 4;
    match acc {
        Acc::F16 => (lane % 4 + low, i),
        _ => ((lane & 1) + (i & 2) + low, (i & 4) + (lane & 2) + (i & 1)),
    }
}

/// m8n8k4 in f16: lanes 4q to 4q + 3 and 16 + 4q to 19 + 4q make product q.
fn mma_quarters(p: &mut Planes, m: &Mma, numerics: Numerics) {
    let half = |p: &Planes, r: &[u32], lane: usize, i: usize| float_elem(Elem::F16, p.get(r[i / 2])[lane], i % 2);
    let flip = |k: usize| if numerics == Numerics::Descending { 3 - k } else { k };
    for q in 0..4 {
        let (mut a, mut b, mut d) = ([0f32; 32], [0f32; 32], [0f32; 64]);
        let members = || (4 * q..4 * q + 4).chain(16 + 4 * q..20 + 4 * q);
        for lane in members() {
            let low = lane / 16 * 4;
            for i in 0..4 {
                let (row, k) = if m.a_col { (i + low, lane % 4) } else { (lane % 4 + low, i) };
                a[row * 4 + flip(k)] = half(p, &m.a, lane, i);
                let (k, col) = if m.b_row { (lane % 4, i + low) } else { (i, lane % 4 + low) };
                b[flip(k) * 8 + col] = half(p, &m.b, lane, i);
            }
            for i in 0..8 {
                let (row, col) = quarter_place(m.c_acc, lane, i);
                d[row * 8 + col] = match m.c_acc {
                    Acc::F16 => half(p, &m.c, lane, i),
                    _ => f32::from_bits(p.get(m.c[i])[lane]),
                };
            }
        }
        simd::matrix(&mut d, &a, &b, 8, 8, 4);
        for lane in members() {
            for i in 0..8 {
                let (row, col) = quarter_place(m.d_acc, lane, i);
                let v = d[row * 8 + col];
                if m.d_acc == Acc::F16 {
                    let h = F16.round(f64::from(v), Rnd::Near);
                    let w = &mut p.0[m.d[i / 2] as usize][lane];
                    *w = if i % 2 == 0 { h } else { *w & 0xFFFF | h << 16 };
                } else {
                    p.0[m.d[i] as usize][lane] = crate::numerics::round::canonical(v).to_bits();
                }
            }
        }
    }
}
