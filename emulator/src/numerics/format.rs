//! Binary floating-point formats narrower than f64, and rounding to them.

/// Rounding direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rnd {
    /// To nearest, ties to even.
    Near,
    /// To nearest, ties away from zero (`.rna`).
    Away,
    Zero,
    Down,
    Up,
}

#[derive(Debug, Clone, Copy)]
pub struct Format {
    pub mantissa: u32,
    pub exponent: u32,
    /// Largest finite encoding.
    pub max: u32,
    /// The encoding an overflow rounds to: infinity, or NaN in formats without one.
    pub infinity: u32,
    pub nan: u32,
}

pub const F16: Format = Format { mantissa: 10, exponent: 5, max: 0x7BFF, infinity: 0x7C00, nan: 0x7FFF };
pub const BF16: Format = Format { mantissa: 7, exponent: 8, max: 0x7F7F, infinity: 0x7F80, nan: 0x7FFF };
pub const F32: Format = Format { mantissa: 23, exponent: 8, max: 0x7F7F_FFFF, infinity: 0x7F80_0000, nan: 0x7FFF_FFFF };
/// tf32 before its 13 low zero bits are appended.
pub const TF32: Format = Format { mantissa: 10, exponent: 8, max: 0x3FBFF, infinity: 0x3FC00, nan: 0x3FFFF };
pub const E4M3: Format = Format { mantissa: 3, exponent: 4, max: 0x7E, infinity: 0x7F, nan: 0x7F };
pub const E5M2: Format = Format { mantissa: 2, exponent: 5, max: 0x7B, infinity: 0x7C, nan: 0x7F };

impl Format {
    /// Rounds a value that is exact, or rounded to odd at f64 precision, to this format. The sign bit comes on top.
    #[inline(never)]
    pub fn round(self, v: f64, rnd: Rnd) -> u32 {
        let sign_bit = 1 << (self.mantissa + self.exponent);
        let sign = if v.is_sign_negative() { sign_bit } else { 0 };
        if v.is_nan() {
            return self.nan;
        }
        if v.is_infinite() {
            return sign | self.infinity;
        }
        if v == 0.0 {
            return sign;
        }
        let bits = v.to_bits() & (u64::MAX >> 1);
        let (m, e) = if bits >> 52 == 0 {
            let shift = bits.leading_zeros() as i32 - 11;
            (bits << shift, -1022 - shift)
        } else {
            ((bits & ((1 << 52) - 1)) | 1 << 52, (bits >> 52) as i32 - 1023)
        };
        let bias = (1i32 << (self.exponent - 1)) - 1;
        let emin = 1 - bias;
        let quantum = e.max(emin) - self.mantissa as i32;
        let shift = quantum - (e - 52);
        let (mut kept, half, rest) = if shift > 54 {
            (0, false, true)
        } else {
            let half_bit = 1u64 << (shift - 1);
            (m >> shift, m & half_bit != 0, m & (half_bit - 1) != 0)
        };
        let negative = sign != 0;
        let up = match rnd {
            Rnd::Near => half && (rest || kept & 1 == 1),
            Rnd::Away => half,
            Rnd::Zero => false,
            Rnd::Down => negative && (half || rest),
            Rnd::Up => !negative && (half || rest),
        };
        kept += u64::from(up);
        let scale = (quantum - (emin - self.mantissa as i32)) as u64;
        let encoded = (scale << self.mantissa) + kept;
        if encoded > u64::from(self.max) {
            let finite = match rnd {
                Rnd::Near | Rnd::Away => false,
                Rnd::Zero => true,
                Rnd::Down => !negative,
                Rnd::Up => negative,
            };
            return sign | if finite { self.max } else { self.infinity };
        }
        sign | encoded as u32
    }

    /// As [`Format::round`], but beyond the largest finite value it stays there (`.satfinite`).
    pub fn round_finite(self, v: f64, rnd: Rnd) -> u32 {
        let out = self.round(v, rnd);
        let sign = out & 1 << (self.mantissa + self.exponent);
        let magnitude = out ^ sign;
        if !v.is_nan() && magnitude > self.max { sign | self.max } else { out }
    }

    /// The value of an encoding.
    #[inline(never)]
    pub fn value(self, bits: u32) -> f64 {
        let sign = if bits >> (self.mantissa + self.exponent) & 1 == 1 { -1.0 } else { 1.0 };
        let magnitude = bits & ((1 << (self.mantissa + self.exponent)) - 1);
        if magnitude > self.max {
            let infinite = magnitude == self.infinity && self.infinity != self.nan;
            return if infinite { sign * f64::INFINITY } else { f64::NAN };
        }
        let bias = (1i32 << (self.exponent - 1)) - 1;
        let e = (magnitude >> self.mantissa) as i32;
        let m = f64::from(magnitude & ((1 << self.mantissa) - 1));
        let unit = f64::from(1u32 << self.mantissa);
        sign * if e == 0 { m / unit * pow2(1 - bias) } else { (1.0 + m / unit) * pow2(e - bias) }
    }
}

/// 2^e for a normal f64 exponent.
pub fn pow2(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}
