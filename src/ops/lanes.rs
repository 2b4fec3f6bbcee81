//! Sums in a fixed order that vector units can follow.

use super::host::Real;

/// Running sums kept side by side: two of the widest registers for `f32`.
const LANES: usize = 32;

/// `Σ term(a[i])`: element i goes to running sum `i mod LANES`, and those are then added pairwise. The order depends on the
/// length alone.
#[inline(always)]
pub(crate) fn sum<T: Real>(a: &[T], term: impl Fn(T) -> T) -> T {
    let mut sums = [T::of(0.0); LANES];
    let (chunks, rest) = a.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            sums[i] += term(chunk[i]);
        }
    }
    for i in 0..rest.len() {
        sums[i] += term(rest[i]);
    }
    fold(sums, |a, b| a + b)
}

/// `(Σ first, Σ second)` over elements of three equally long slices, ordered as in [`sum`].
#[inline(always)]
pub(crate) fn sum_pair<T: Real>(a: &[T], b: &[T], c: &[T], term: impl Fn(T, T, T) -> (T, T)) -> (T, T) {
    let (mut first, mut second) = ([T::of(0.0); LANES], [T::of(0.0); LANES]);
    let ((a, a_rest), (b, b_rest), (c, c_rest)) =
        (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), c.as_chunks::<LANES>());
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for i in 0..LANES {
            let (u, v) = term(a[i], b[i], c[i]);
            first[i] += u;
            second[i] += v;
        }
    }
    for (i, ((&a, &b), &c)) in a_rest.iter().zip(b_rest).zip(c_rest).enumerate() {
        let (u, v) = term(a, b, c);
        first[i] += u;
        second[i] += v;
    }
    (fold(first, |a, b| a + b), fold(second, |a, b| a + b))
}

/// `Σ a[i] · b[i]`, ordered as in [`sum`].
#[inline(always)]
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let mut sums = [T::of(0.0); LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    for (i, (&a, &b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[i] += a * b;
    }
    fold(sums, |a, b| a + b)
}

/// Joins the upper half to the lower until one is left: steps that do not wait for one another. N is a power of two.
#[inline(always)]
pub(crate) fn fold<T: Copy, const N: usize>(mut lanes: [T; N], join: impl Fn(T, T) -> T) -> T {
    let mut half = N / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::integers;

    #[test]
    fn every_length_is_summed_whole() {
        for len in [0, 1, 3, 31, 32, 33, 64, 100] {
            let v = integers("lanes", len, 9);
            let plain: f32 = v.iter().sum();
            assert_eq!(sum(&v, |x| x), plain);
            let squares: f32 = v.iter().map(|x| x * x).sum();
            assert_eq!(dot(&v, &v), squares);
            assert_eq!(sum_pair(&v, &v, &v, |a, b, c| (a * b, c)), (squares, plain));
        }
    }
}
