//! The four checks. A test names the one it uses; no tolerance is a matter of taste.
//!
//! | check | data | criterion |
//! |---|---|---|
//! | exact | integers whose every partial sum is representable | equal bits |
//! | bound | random, rounded through the storage dtype | per element: a-priori rounding bound of an f32 accumulation, of roundings on the way, and of the output |
//! | ratio | realistic scales | error at most 2× (forward) or 3× (backward) that of plain same-precision arithmetic |
//! | norm | large shapes | relative norm per row and per column |

use crate::dtype::DType;

/// What a check found. `error` and `limit` are in the check's own unit; the check passes when `error <= limit`.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub check: &'static str,
    pub error: f64,
    pub limit: f64,
    /// Where the largest excess lies, and both values there.
    pub worst: Option<(usize, f64, f64)>,
}

impl Outcome {
    /// False for NaN.
    pub fn ok(&self) -> bool {
        self.error <= self.limit
    }
}

/// Equal bits. Unit: elements that differ. Minus zero equals zero; NaN equals nothing.
pub fn exact(got: &[f64], want: &[f64]) -> Outcome {
    let mut out = Outcome { check: "exact", error: 0.0, limit: 0.0, worst: None };
    if got.len() != want.len() {
        out.error = f64::INFINITY;
        return out;
    }
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        if g != w {
            out.error += 1.0;
            out.worst.get_or_insert((i, g, w));
        }
    }
    out
}

/// Every element within its own a-priori bound. Unit: error over bound, limit 1.
///
/// `magnitude[i]` is the sum of the absolute values of the terms that add up to element i (computed in f64), `terms` how many
/// there are, `dtype` the storage type of the result. The bound is `γ(terms) · magnitude + u · |want|`, with
/// `γ(n) = n·u₃₂ / (1 − n·u₃₂)` (Higham, "Accuracy and Stability of Numerical Algorithms", §3.1) for accumulation in f32 in any
/// order, and one rounding to the storage type.
pub fn bound(got: &[f64], want: &[f64], magnitude: &[f64], terms: usize, dtype: DType) -> Outcome {
    bound_chain(got, want, magnitude, &Chain { terms, inner: 0, storage: dtype, output: dtype })
}

/// How a multilinear result came about, as far as its rounding bound is concerned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chain {
    /// Operations in f32 one after the other; products in a row add up their terms.
    pub terms: usize,
    /// Values on the way that are rounded to the storage type, as `h = x Aᵀ` is before it meets B.
    pub inner: usize,
    pub storage: DType,
    /// What the result is rounded to: f32 for a parameter's gradient, whatever the storage type.
    pub output: DType,
}

/// As [`bound`], for results with roundings on the way: each adds `u_storage · magnitude`.
pub fn bound_chain(got: &[f64], want: &[f64], magnitude: &[f64], chain: &Chain) -> Outcome {
    if magnitude.len() != want.len() {
        return Outcome { check: "bound", error: f64::INFINITY, limit: 1.0, worst: None };
    }
    let n = (chain.terms + 2) as f64 * chain.output.accumulator().unit_roundoff();
    let gamma = n / (1.0 - n);
    let (storage, output) = (chain.storage.unit_roundoff(), chain.output.unit_roundoff());
    let inner = (1.0 + storage).powi(chain.inner as i32) - 1.0;
    let share = (gamma + inner + gamma * inner) * (1.0 + output);
    let smallest = match chain.output {
        DType::F16 => 2f64.powi(-25),
        _ => f64::from(f32::MIN_POSITIVE),
    };
    per_element("bound", got, want, 1.0, |i| share * magnitude[i] + output * want[i].abs() + smallest)
}

/// The largest error at most `factor` times that of `plain`, a straightforward computation in the same precision, plus one
/// rounding of the largest value. Unit: error over the plain computation's, limit `factor`.
pub fn ratio(got: &[f64], want: &[f64], plain: &[f64], factor: f64, dtype: DType) -> Outcome {
    let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let allowed = plain.iter().zip(want).fold(0.0f64, |m, (p, w)| m.max((p - w).abs()));
    let allowed = allowed.max(dtype.unit_roundoff() * largest).max(f64::MIN_POSITIVE);
    per_element("ratio", got, want, factor, |_| allowed)
}

/// Relative Euclidean norm of the error per row and per column of a `[rows, cols]` result, so that one bad row cannot hide.
/// Unit: the worst relative norm. Rows of tiny norm are measured against the mean row.
pub fn norm(got: &[f64], want: &[f64], cols: usize, limit: f64) -> Outcome {
    let mut out = Outcome { check: "norm", error: 0.0, limit, worst: None };
    if got.len() != want.len() || cols == 0 || !want.len().is_multiple_of(cols) {
        out.error = f64::INFINITY;
        return out;
    }
    let rows = want.len() / cols;
    let line = |get: &dyn Fn(usize) -> usize, len: usize| {
        (0..len).map(get).fold((0.0, 0.0), |(e, w), i| (e + (got[i] - want[i]).powi(2), w + want[i].powi(2)))
    };
    let total: f64 = want.iter().map(|w| w * w).sum();
    let mut see = |at: usize, (error, size): (f64, f64), mean: f64| {
        let relative = (error / size.max(mean).max(f64::MIN_POSITIVE)).sqrt();
        // Once NaN, always NaN.
        if relative > out.error || relative.is_nan() {
            out.error = relative;
            out.worst = Some((at, got[at], want[at]));
        }
    };
    for r in 0..rows {
        see(r * cols, line(&|j| r * cols + j, cols), total / rows.max(1) as f64);
    }
    for c in 0..cols {
        see(c, line(&|i| i * cols + c, rows), total / cols as f64);
    }
    out
}

fn per_element(check: &'static str, got: &[f64], want: &[f64], limit: f64, allowed: impl Fn(usize) -> f64) -> Outcome {
    let mut out = Outcome { check, error: 0.0, limit, worst: None };
    if got.len() != want.len() {
        out.error = f64::INFINITY;
        return out;
    }
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        // Equal infinities are right; a NaN on either side never is.
        let error = if g == w { 0.0 } else { (g - w).abs() / allowed(i) };
        if error > out.error || error.is_nan() {
            out.error = error;
            out.worst = Some((i, g, w));
            if error.is_nan() {
                break;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_accepts_the_right_and_rejects_the_wrong() {
        let want = [1.0, -2.0, 3.0, 4.0];
        let mut wrong = want;
        wrong[2] = 3.001;
        assert!(exact(&want, &want).ok() && !exact(&wrong, &want).ok());
        let magnitude = [8.0; 4];
        assert!(bound(&want, &want, &magnitude, 16, DType::F32).ok());
        assert!(!bound(&wrong, &want, &magnitude, 16, DType::F32).ok());
        assert!(bound(&wrong, &want, &magnitude, 16, DType::BF16).ok());
        let through = |inner| Chain { terms: 16, inner, storage: DType::BF16, output: DType::F32 };
        assert!(bound_chain(&wrong, &want, &magnitude, &through(1)).ok());
        assert!(!bound_chain(&wrong, &want, &magnitude, &through(0)).ok());
        let plain = [1.0, -2.0, 3.0006, 4.0];
        assert!(ratio(&wrong, &want, &plain, 2.0, DType::F32).ok());
        assert!(!ratio(&wrong, &want, &want, 2.0, DType::F32).ok());
        assert!(norm(&wrong, &want, 2, 1e-3).ok() && !norm(&wrong, &want, 2, 1e-4).ok());
    }

    #[test]
    fn nan_and_missing_elements_fail_every_check() {
        let (want, nan) = ([1.0, 2.0], [1.0, f64::NAN]);
        assert!(!exact(&nan, &want).ok() && !exact(&want[..1], &want).ok());
        assert!(
            !bound(&nan, &want, &want, 4, DType::BF16).ok() && !bound(&want[..1], &want, &want, 4, DType::F32).ok()
        );
        assert!(!ratio(&nan, &want, &want, 3.0, DType::F32).ok());
        assert!(!norm(&nan, &want, 2, 1.0).ok() && !norm(&want[..1], &want, 2, 1.0).ok());
        // A NaN that right rows and columns follow.
        let (want, nan) = ([1.0, 2.0, 3.0, 4.0], [f64::NAN, 2.0, 3.0, 4.0]);
        assert!(!norm(&nan, &want, 2, 1.0).ok());
    }
}
