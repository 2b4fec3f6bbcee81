//! f16 and bf16 arithmetic: done in f64 (rounded to odd where inexact), rounded once.

use super::format::{BF16, F16, Format, Rnd};
use super::round::add_odd;

/// One of the two 16-bit formats, as a type, so that packed operations are written once.
pub trait Half {
    const FORMAT: Format;
    const ONE: u16;
    #[inline(always)]
    fn value(bits: u16) -> f64 {
        f64::from(Self::single(bits))
    }
    fn single(bits: u16) -> f32;
    #[inline(always)]
    fn make(v: f64) -> u16 {
        Self::FORMAT.round(v, Rnd::Near) as u16
    }
}

pub struct IsF16;
pub struct IsBf16;

impl Half for IsF16 {
    const FORMAT: Format = F16;
    const ONE: u16 = 0x3C00;
    #[inline(always)]
    fn single(bits: u16) -> f32 {
        f16_to_f32(bits)
    }
}

impl Half for IsBf16 {
    const FORMAT: Format = BF16;
    const ONE: u16 = 0x3F80;
    #[inline(always)]
    fn single(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }
}

/// Exact.
#[inline(always)]
pub fn f16_to_f32(h: u16) -> f32 {
    let sign = u32::from(h & 0x8000) << 16;
    let body = u32::from(h & 0x7FFF);
    let magnitude = if body >= 0x7C00 {
        (body << 13) | 0x7F80_0000
    } else {
        // Place the bits as an f32 with a small exponent and scale: exact for normals and subnormals.
        (f32::from_bits(body << 13) * f32::from_bits(0x7780_0000)).to_bits()
    };
    f32::from_bits(sign | magnitude)
}

#[inline(always)]
pub fn f32_to_bf16(v: f32) -> u16 {
    let b = v.to_bits();
    if v.is_nan() {
        return 0x7FFF;
    }
    ((b + 0x7FFF + (b >> 16 & 1)) >> 16) as u16
}

/// What follows the rounding of a half-precision result.
#[derive(Clone, Copy)]
pub struct After {
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
}

pub fn flush<T: Half>(bits: u16) -> u16 {
    let smallest = 1 << T::FORMAT.mantissa;
    if u32::from(bits & 0x7FFF) < smallest { bits & 0x8000 } else { bits }
}

fn finish<T: Half>(exact: f64, after: After) -> u16 {
    let mut r = T::make(exact);
    if after.ftz {
        r = flush::<T>(r);
    }
    if after.sat {
        let v = T::value(r);
        r = if v > 0.0 { if v < 1.0 { r } else { T::ONE } } else { 0 };
    }
    if after.relu && (r & 0x8000 != 0) && !T::value(r).is_nan() {
        r = 0;
    }
    r
}

fn input<T: Half>(bits: u16, after: After) -> f64 {
    T::value(if after.ftz { flush::<T>(bits) } else { bits })
}

#[inline(never)]
pub fn add<T: Half>(a: u16, b: u16, after: After) -> u16 {
    finish::<T>(add_odd(input::<T>(a, after), input::<T>(b, after)), after)
}

#[inline(never)]
pub fn sub<T: Half>(a: u16, b: u16, after: After) -> u16 {
    finish::<T>(add_odd(input::<T>(a, after), -input::<T>(b, after)), after)
}

#[inline(never)]
pub fn mul<T: Half>(a: u16, b: u16, after: After) -> u16 {
    finish::<T>(input::<T>(a, after) * input::<T>(b, after), after)
}

#[inline(never)]
pub fn fma<T: Half>(a: u16, b: u16, c: u16, after: After) -> u16 {
    finish::<T>(add_odd(input::<T>(a, after) * input::<T>(b, after), input::<T>(c, after)), after)
}

/// min or max. `nan`: a NaN input gives NaN; otherwise the other input wins.
#[inline(never)]
pub fn extremum<T: Half>(a: u16, b: u16, max: bool, nan: bool, ftz: bool) -> u16 {
    let (a, b) = if ftz { (flush::<T>(a), flush::<T>(b)) } else { (a, b) };
    let (x, y) = (T::value(a), T::value(b));
    if x.is_nan() || y.is_nan() {
        let both = x.is_nan() && y.is_nan();
        return if nan || both {
            0x7FFF
        } else if x.is_nan() {
            b
        } else {
            a
        };
    }
    // -0 is below +0.
    let less = x < y || (x == y && a & 0x8000 > b & 0x8000);
    if less != max { a } else { b }
}

/// Applies a 16-bit operation to both halves.
#[inline(always)]
pub fn both(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}
