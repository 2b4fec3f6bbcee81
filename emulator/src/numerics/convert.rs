//! Conversions between integers and floats.

use super::format::Rnd;

/// Rounds to an integral value.
#[inline(always)]
pub fn integral(v: f64, rnd: Rnd) -> f64 {
    match rnd {
        Rnd::Near => v.round_ties_even(),
        Rnd::Away => v.round(),
        Rnd::Zero => v.trunc(),
        Rnd::Down => v.floor(),
        Rnd::Up => v.ceil(),
    }
}

/// Float to signed integer of `bits` bits: clamped, NaN gives zero (or the most negative value for 64 bits and f64 sources, as
/// the ISA's table says for the widest types).
#[inline(always)]
pub fn to_signed(v: f64, rnd: Rnd, bits: u32) -> i64 {
    if v.is_nan() {
        return if bits == 64 { i64::MIN } else { 0 };
    }
    let r = integral(v, rnd);
    let max = (i64::MAX >> (64 - bits)) as f64;
    let min = (i64::MIN >> (64 - bits)) as f64;
    if bits == 64 { r as i64 } else { r.clamp(min, max) as i64 }
}

#[inline(always)]
pub fn to_unsigned(v: f64, rnd: Rnd, bits: u32) -> u64 {
    if v.is_nan() {
        return if bits == 64 { 1 << 63 } else { 0 };
    }
    let r = integral(v, rnd);
    if bits == 64 { r as u64 } else { r.clamp(0.0, (u64::MAX >> (64 - bits)) as f64) as u64 }
}

/// A 64-bit integer as an f64 rounded to odd, for a second rounding to f32 or narrower.
#[inline(always)]
pub fn u64_to_odd(v: u64) -> f64 {
    if v >> 53 == 0 {
        return v as f64;
    }
    let shift = 11 - v.leading_zeros();
    let kept = v >> shift;
    let lost = v & ((1 << shift) - 1) != 0;
    (kept | u64::from(lost)) as f64 * (1u64 << shift) as f64
}

#[inline(always)]
pub fn i64_to_odd(v: i64) -> f64 {
    let m = u64_to_odd(v.unsigned_abs());
    if v < 0 { -m } else { m }
}

/// A 64-bit integer to f64 in the given direction.
pub fn u64_to_f64(v: u64, negative: bool, rnd: Rnd) -> f64 {
    let near = v as f64;
    let back = near as u128;
    let exact = u128::from(v);
    let down = back > exact;
    let up = back < exact;
    let r = match rnd {
        Rnd::Near | Rnd::Away => near,
        Rnd::Zero if down => near.next_down(),
        Rnd::Down if !negative && down => near.next_down(),
        Rnd::Down if negative && up => near.next_up(),
        Rnd::Up if !negative && up => near.next_up(),
        Rnd::Up if negative && down => near.next_down(),
        _ => near,
    };
    if negative { -r } else { r }
}
