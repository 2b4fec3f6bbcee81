//! Elementary functions that the compiler can vectorise, for `f32`; the C library's for `f64`.

/// Arithmetic that the CPU reference is written in.
pub(crate) trait Math:
    PartialOrd
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + std::ops::MulAssign
    + std::iter::Sum
    + Copy
{
    fn of(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// `self · factor + term`, rounded once.
    fn mul_add(self, factor: Self, term: Self) -> Self;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
    /// NaN if either is: a maximum that swallows NaN hides defects.
    fn maximum(self, other: Self) -> Self;
}

impl Math for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        f64::mul_add(self, factor, term)
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn tanh(self) -> Self {
        f64::tanh(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn maximum(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }
}

impl Math for f32 {
    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, term: Self) -> Self {
        f32::mul_add(self, factor, term)
    }
    #[inline(always)]
    fn exp(self) -> Self {
        exp(self)
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        tanh(self)
    }
    #[inline(always)]
    fn erf(self) -> Self {
        erf(self)
    }
    #[inline(always)]
    fn maximum(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }
}

/// e^x, error below 2 units in the last place: x = n·ln 2 + r with |r| ≤ ln 2 / 2, Taylor to degree 7 on r.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Beyond these the result is 0 or infinite anyway; clamping keeps the exponent arithmetic in range. NaN passes.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -104.0 { -104.0 } else { clamped };
    // Adding and taking away 1.5·2²³ rounds to the nearest integer without a call.
    let shifted = clamped * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = (p * r * r + r) + 1.0;
    // 2^n in two halves, so that results below the normal range come out as such and those above as infinity.
    let n = (shifted.to_bits() as i32).wrapping_sub(12_582_912.0f32.to_bits() as i32);
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits((e.wrapping_add(127) << 23) as u32);
    p * scale(half) * scale(n.wrapping_sub(half))
}

/// Horner's rule, highest coefficient first. A plain loop, which unrolls: a call in it would keep the caller from vectorising.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut p = 0.0;
    for c in coefficients {
        p = p * x + c;
    }
    p
}

/// tanh x: a minimax odd polynomial below 0.6, where 1 − 2 / (e^{2x} + 1) would cancel; that form above.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let near = x * polynomial(x * x, [-0.005_863_216, 0.020_763_586, -0.053_771_846, 0.133_317_29, -0.333_332_84, 1.0]);
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.6 { near } else { far }
}

/// erf x, absolute error below 1.3e-7: a minimax odd polynomial below 1; above, 1 − e^{p(|x|)} with p a minimax fit of
/// ln erfc on [1, 4], beyond which erf is 1 in f32.
#[inline(always)]
fn erf(x: f32) -> f32 {
    // The fit's own leading coefficient: 2/√π rounded down. The nearest f32 lies above, and costs 3e-8 near 1.
    const LEADING: f32 = std::f32::consts::FRAC_2_SQRT_PI.next_down();
    let near = x * polynomial(
        x * x,
        [7.889_119e-5, -8.020_841e-4, 0.005_189_535, -0.026_854_444, 0.112_836, -0.376_126_26, LEADING],
    );
    let a = x.abs();
    let capped = if a > 4.0 { 4.0 } else { a };
    let log_erfc = polynomial(
        capped,
        [1.855_749e-4, -0.002_939_616, 0.021_805_352, -0.103_037_44, -0.638_225_6, -1.127_04, -3.537_089_2e-4],
    );
    let far = (1.0 - exp(log_erfc)).copysign(x);
    if a < 1.0 { near } else { far }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(range: std::ops::Range<f32>, ours: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> (f64, f64) {
        let (mut absolute, mut relative) = (0.0f64, 0.0f64);
        let n = 200_000;
        for i in 0..=n {
            let x = range.start + (range.end - range.start) * i as f32 / n as f32;
            let (got, want) = (f64::from(ours(x)), exact(f64::from(x)));
            absolute = absolute.max((got - want).abs());
            relative = relative.max((got - want).abs() / want.abs().max(1e-30));
        }
        (absolute, relative)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let (_, relative) = worst(-87.0..88.0, exp, f64::exp);
        assert!(relative < 2.0 / 8_388_608.0, "{relative:e}");
        assert_eq!((exp(0.0), exp(-200.0), exp(200.0)), (1.0, 0.0, f32::INFINITY));
        assert_eq!((exp(f32::NEG_INFINITY), exp(f32::INFINITY)), (0.0, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_erf_are_accurate_over_their_range() {
        assert!(worst(-12.0..12.0, tanh, f64::tanh).0 < 2.5e-7);
        assert!(worst(-6.0..6.0, erf, libm::erf).0 < 1.5e-7);
        assert!(worst(1e-6..0.9, erf, libm::erf).1 < 5e-7);
        assert!(tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
        assert_eq!((erf(10.0), erf(-10.0), tanh(30.0), tanh(-90.0)), (1.0, -1.0, 1.0, -1.0));
    }
}
