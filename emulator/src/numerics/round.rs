//! f32 and f64 arithmetic in the four IEEE directions.
//!
//! Directed f32 results come from f64: the operation is done there, its error's sign is found exactly, and the f64 result is
//! rounded to odd, which a second rounding to f32 cannot spoil.

use super::format::{self, Rnd};

/// The other neighbour or the odd one: given a nearest-rounded `v` and the sign of (exact - v), a value rounded to odd.
#[inline(always)]
fn to_odd(v: f64, error: f64) -> f64 {
    if error == 0.0 || !error.is_finite() || !v.is_finite() || v.to_bits() & 1 == 1 {
        return v;
    }
    if v == 0.0 {
        return v;
    }
    // `v` is even and inexact: the odd neighbour lies on the side of the error.
    let away = (error > 0.0) == (v > 0.0);
    f64::from_bits(if away { v.to_bits() + 1 } else { v.to_bits() - 1 })
}

#[inline(always)]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let bb = s - a;
    (s, (a - (s - bb)) + (b - bb))
}

/// a + b, rounded to odd at f64 precision.
#[inline(always)]
pub fn add_odd(a: f64, b: f64) -> f64 {
    let (s, e) = two_sum(a, b);
    to_odd(s, e)
}

/// Rounds an exact or odd f64 to f32.
#[inline(always)]
pub fn to_f32(v: f64, rnd: Rnd) -> f32 {
    match rnd {
        Rnd::Near => v as f32,
        _ => f32::from_bits(format::F32.round(v, rnd)),
    }
}

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub fn flush(v: f32) -> f32 {
    if v.abs() < f32::MIN_POSITIVE { f32::from_bits(v.to_bits() & 0x8000_0000) } else { v }
}

/// To [0, 1]; NaN becomes +0.
#[inline(always)]
pub fn saturate(v: f32) -> f32 {
    if v > 0.0 { if v < 1.0 { v } else { 1.0 } } else { 0.0 }
}

#[inline(always)]
pub fn saturate64(v: f64) -> f64 {
    if v > 0.0 { if v < 1.0 { v } else { 1.0 } } else { 0.0 }
}

/// PTX returns one canonical NaN from f32 arithmetic.
#[inline(always)]
pub fn canonical(v: f32) -> f32 {
    if v.is_nan() { f32::from_bits(0x7FFF_FFFF) } else { v }
}

/// A zero sum of opposite terms is -0 when rounding down.
#[inline(always)]
fn zero_sign(sum: f64, a: f64, b: f64, rnd: Rnd) -> f64 {
    if rnd == Rnd::Down && sum == 0.0 && !(a == 0.0 && b == 0.0 && a.is_sign_positive() && b.is_sign_positive()) {
        -0.0
    } else {
        sum
    }
}

#[inline(never)]
pub fn add32(a: f32, b: f32, rnd: Rnd) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    to_f32(zero_sign(add_odd(a, b), a, b, rnd), rnd)
}

#[inline(never)]
pub fn mul32(a: f32, b: f32, rnd: Rnd) -> f32 {
    to_f32(f64::from(a) * f64::from(b), rnd)
}

#[inline(never)]
pub fn fma32(a: f32, b: f32, c: f32, rnd: Rnd) -> f32 {
    let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
    to_f32(zero_sign(add_odd(p, c), p, c, rnd), rnd)
}

#[inline(never)]
pub fn div32(a: f32, b: f32, rnd: Rnd) -> f32 {
    if rnd == Rnd::Near {
        return a / b;
    }
    let (x, y) = (f64::from(a), f64::from(b));
    let q = x / y;
    let r = (-q).mul_add(y, x);
    to_f32(to_odd(q, if y < 0.0 { -r } else { r }), rnd)
}

#[inline(never)]
pub fn sqrt32(a: f32, rnd: Rnd) -> f32 {
    if rnd == Rnd::Near {
        return a.sqrt();
    }
    let x = f64::from(a);
    let s = x.sqrt();
    to_f32(to_odd(s, (-s).mul_add(s, x)), rnd)
}

/// Moves a nearest-rounded f64 to the wanted neighbour, given the sign of its error.
fn direct64(v: f64, error: f64, rnd: Rnd) -> f64 {
    if error == 0.0 || error.is_nan() || v.is_nan() {
        return v;
    }
    if v.is_infinite() {
        // A finite operation overflowed.
        let inward = match rnd {
            Rnd::Zero => true,
            Rnd::Down => v > 0.0,
            Rnd::Up => v < 0.0,
            _ => false,
        };
        return if inward { f64::MAX.copysign(v) } else { v };
    }
    let up = |v: f64| v.next_up();
    let down = |v: f64| v.next_down();
    match rnd {
        Rnd::Near | Rnd::Away => v,
        Rnd::Down if error < 0.0 => down(v),
        Rnd::Up if error > 0.0 => up(v),
        Rnd::Zero if v > 0.0 && error < 0.0 => down(v),
        Rnd::Zero if v < 0.0 && error > 0.0 => up(v),
        _ => v,
    }
}

/// The error of an overflow to infinity points back to the finite numbers.
fn overflow_error(v: f64, inputs_finite: bool, error: f64) -> f64 {
    if v.is_infinite() && inputs_finite { -v.signum() } else { error }
}

#[inline(never)]
pub fn add64(a: f64, b: f64, rnd: Rnd) -> f64 {
    let (s, e) = two_sum(a, b);
    let e = overflow_error(s, a.is_finite() && b.is_finite(), e);
    direct64(zero_sign(s, a, b, rnd), e, rnd)
}

#[inline(never)]
pub fn mul64(a: f64, b: f64, rnd: Rnd) -> f64 {
    let p = a * b;
    let e = overflow_error(p, a.is_finite() && b.is_finite(), a.mul_add(b, -p));
    direct64(p, e, rnd)
}

#[inline(never)]
pub fn fma64(a: f64, b: f64, c: f64, rnd: Rnd) -> f64 {
    let r = a.mul_add(b, c);
    if rnd == Rnd::Near {
        return r;
    }
    // The exact error of an fma as a sum of two terms; its sign is the sign of the larger.
    let p = a * b;
    let pe = a.mul_add(b, -p);
    let (s, se) = two_sum(p, c);
    let (t, te) = two_sum(se, pe);
    let e = ((s - r) + t) + te;
    let e = overflow_error(r, a.is_finite() && b.is_finite() && c.is_finite(), e);
    direct64(zero_sign(r, p, c, rnd), e, rnd)
}

#[inline(never)]
pub fn div64(a: f64, b: f64, rnd: Rnd) -> f64 {
    let q = a / b;
    let r = (-q).mul_add(b, a);
    let e = overflow_error(q, a.is_finite() && b.is_finite() && b != 0.0, if b < 0.0 { -r } else { r });
    direct64(q, e, rnd)
}

#[inline(never)]
pub fn sqrt64(a: f64, rnd: Rnd) -> f64 {
    let s = a.sqrt();
    direct64(s, (-s).mul_add(s, a), rnd)
}
