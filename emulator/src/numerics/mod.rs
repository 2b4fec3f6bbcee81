//! Arithmetic with PTX's rounding, saturation and flushing rules, bit-exact where the ISA defines the bits.

pub mod approx;
pub mod convert;
pub mod format;
pub mod half;
pub mod round;
pub mod simd;
