//! 16-bit values to and from the types that the reference computes in, many at a time: widening is exact, narrowing rounds to nearest,
//! ties to even.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Slices of one length each.
pub(crate) trait Halves: Sized {
    fn widen_f16(from: &[f16], to: &mut [Self]);
    fn narrow_f16(from: &[Self], to: &mut [f16]);
    fn widen_bf16(from: &[bf16], to: &mut [Self]);
    fn narrow_bf16(from: &[Self], to: &mut [bf16]);
}

impl Halves for f32 {
    fn widen_f16(from: &[f16], to: &mut [f32]) {
        // By the processor's own instructions, where it has them.
        from.convert_to_f32_slice(to);
    }

    fn narrow_f16(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }

    #[inline(always)]
    fn widen_bf16(from: &[bf16], to: &mut [f32]) {
        // A bf16 is the upper half of an f32.
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }

    #[inline(always)]
    fn narrow_bf16(from: &[f32], to: &mut [bf16]) {
        for (to, from) in to.iter_mut().zip(from) {
            let bits = from.to_bits();
            // Half of the last place that stays, less one bit where that place is even: what is cut off carries into it if it is more.
            let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
            // The payload of a NaN may lie in the cut-off half alone; the quiet bit keeps it a NaN.
            let kept = if from.is_nan() { bits | 0x0040_0000 } else { rounded };
            *to = bf16::from_bits((kept >> 16) as u16);
        }
    }
}

/// No op computes in f64 for 16-bit tensors; only a target of another type comes this way.
impl Halves for f64 {
    fn widen_f16(from: &[f16], to: &mut [f64]) {
        from.convert_to_f64_slice(to);
    }

    fn narrow_f16(from: &[f64], to: &mut [f16]) {
        to.convert_from_f64_slice(from);
    }

    fn widen_bf16(from: &[bf16], to: &mut [f64]) {
        from.convert_to_f64_slice(to);
    }

    fn narrow_bf16(from: &[f64], to: &mut [bf16]) {
        to.convert_from_f64_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All 65536 values of either type, wide and back, and the middles between neighbours with what lies beside them.
    #[test]
    fn every_value_and_every_tie_is_that_of_one_element_at_a_time() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let halves: Vec<f16> = all.iter().map(|&bits| f16::from_bits(bits)).collect();
        let brains: Vec<bf16> = all.iter().map(|&bits| bf16::from_bits(bits)).collect();
        let mut wide = vec![0f32; all.len()];
        let same = |a: f32, b: f32| a == b || (a.is_nan() && b.is_nan());
        f32::widen_f16(&halves, &mut wide);
        assert!(wide.iter().zip(&halves).all(|(&w, h)| same(w, h.to_f32())));
        f32::widen_bf16(&brains, &mut wide);
        assert!(wide.iter().zip(&brains).all(|(&w, b)| same(w, b.to_f32())));

        // Every upper half of an f32 with lower halves around each place at which either type may round.
        let lower = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF];
        let values: Vec<f32> =
            all.iter().flat_map(|&high| lower.map(|low| f32::from_bits(u32::from(high) << 16 | low))).collect();
        let (mut as_half, mut as_brain) = (vec![f16::ZERO; values.len()], vec![bf16::ZERO; values.len()]);
        f32::narrow_f16(&values, &mut as_half);
        f32::narrow_bf16(&values, &mut as_brain);
        for ((&value, half), brain) in values.iter().zip(as_half).zip(as_brain) {
            // From f32, not f64: half's conversions from f64 forget the lowest bits of what becomes subnormal.
            assert!(same(half.to_f32(), f16::from_f32(value).to_f32()), "{value:e}");
            assert!(same(brain.to_f32(), bf16::from_f32(value).to_f32()), "{value:e}");
        }
    }
}
