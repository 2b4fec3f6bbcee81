//! The `.approx` functions. The ISA bounds their error; these are the correctly rounded f64 results rounded to f32, well inside
//! every bound, with the special values of the ISA's tables.

use super::round::canonical;

#[inline(never)]
pub fn ex2(a: f32) -> f32 {
    canonical(f64::from(a).exp2() as f32)
}

#[inline(never)]
pub fn lg2(a: f32) -> f32 {
    canonical(f64::from(a).log2() as f32)
}

#[inline(never)]
pub fn rcp(a: f32) -> f32 {
    canonical((1.0 / f64::from(a)) as f32)
}

#[inline(never)]
pub fn sqrt(a: f32) -> f32 {
    canonical(f64::from(a).sqrt() as f32)
}

#[inline(never)]
pub fn rsqrt(a: f32) -> f32 {
    canonical((1.0 / f64::from(a).sqrt()) as f32)
}

#[inline(never)]
pub fn sin(a: f32) -> f32 {
    canonical(f64::from(a).sin() as f32)
}

#[inline(never)]
pub fn cos(a: f32) -> f32 {
    canonical(f64::from(a).cos() as f32)
}

#[inline(never)]
pub fn tanh(a: f32) -> f32 {
    canonical(f64::from(a).tanh() as f32)
}

/// `div.approx`: for |b| in (2^126, 2^128) the quotient is 0, and infinity over such a b is NaN.
#[inline(never)]
pub fn div(a: f32, b: f32) -> f32 {
    let m = b.abs();
    if m > f32::from_bits(0x7E80_0000) && m.is_finite() {
        return if a.is_infinite() || a.is_nan() { canonical(f32::NAN) } else { 0f32.copysign(a) * 1f32.copysign(b) };
    }
    div_full(a, b)
}

#[inline(never)]
pub fn div_full(a: f32, b: f32) -> f32 {
    canonical((f64::from(a) / f64::from(b)) as f32)
}
