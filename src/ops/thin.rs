//! Products on host memory in which one extent is a rank.
//!
//! ```text
//! project:  out [m, r]  = x [m, k] · Aᵀ            expand:  out [m, n] += s · h [m, r] · B            gather:  out [r, k] (+)= s · hᵀ · x
//! ```
//!
//! A general product packs its operands into panels, which for a rank of 8 takes longer than the product. Up to [`NARROW`] the rows
//! are taken one by one instead: what has the rank stays in the first-level cache and each row of the rest is read once. A row of
//! out is summed first and added once, whatever the rank.

use rayon::prelude::*;

use super::host::{Real, for_rows, vectorised};
use super::lanes::fold;
use crate::device::{Mat, MatMut, gemm};

/// Ranks above this fill the panels of a general product.
const NARROW: usize = 16;

/// Whether a product with this extent is one of those that are taken row by row.
pub(crate) fn is_narrow(rank: usize) -> bool {
    rank <= NARROW
}

/// Columns that are summed at once.
const COLUMNS: usize = 64;
/// Rows whose products are summed before they are joined to others', and the most such parts. Constants, so that the order of a sum
/// depends on its shape alone.
const ROWS: usize = 128;
const PARTS: usize = 64;
/// Elements of a row that are summed side by side.
const LANES: usize = 16;
/// Rows that a thread takes at a time.
const TOGETHER: usize = 16;
/// Elements of x below which one thread is faster than two.
const PARALLEL_FROM: usize = 64 * 1024;

/// `out = x · Aᵀ`, A `[r, k]`.
pub(crate) fn project<T: Real>(out: &mut [T], x: &[T], a: Mat<T>) {
    let (r, k) = (a.rows, a.cols);
    let m = out.len() / r;
    if r > NARROW {
        return gemm(MatMut::new(out, m, r), None, Mat::new(x, m, k), a.t(), T::of(1.0));
    }
    let a: &[T] = &row_major(a);
    let some = |(block, out): (usize, &mut [T])| {
        vectorised(
            #[inline(always)]
            || {
                for (i, out) in out.chunks_mut(r).enumerate() {
                    let row = block * TOGETHER + i;
                    dots(out, &x[row * k..][..k], a);
                }
            },
        )
    };
    if m * k < PARALLEL_FROM {
        out.chunks_mut(TOGETHER * r).enumerate().for_each(some);
    } else {
        out.par_chunks_mut(TOGETHER * r).enumerate().for_each(some);
    }
}

/// `out[j] = x · a[j]`, of which each sum is ordered as it would be alone.
#[inline(always)]
fn dots<T: Real>(out: &mut [T], x: &[T], a: &[T]) {
    let k = x.len();
    let (eights, rest) = out.as_chunks_mut::<8>();
    for (i, eight) in eights.iter_mut().enumerate() {
        *eight = dots_of(x, &a[8 * i * k..][..8 * k]);
    }
    let done = 8 * eights.len();
    for (j, one) in rest.iter_mut().enumerate() {
        [*one] = dots_of(x, &a[(done + j) * k..][..k]);
    }
}

/// Products of x with J rows of its length: running sums enough that none waits for the one before.
#[inline(always)]
fn dots_of<T: Real, const J: usize>(x: &[T], a: &[T]) -> [T; J] {
    let (k, mut sums) = (x.len(), [[T::of(0.0); LANES]; J]);
    let (chunks, rest) = x.as_chunks::<LANES>();
    for (c, x) in chunks.iter().enumerate() {
        for j in 0..J {
            let Some(a) = a[j * k + c * LANES..].first_chunk::<LANES>() else { break };
            for i in 0..LANES {
                sums[j][i] += x[i] * a[i];
            }
        }
    }
    for (j, sums) in sums.iter_mut().enumerate() {
        let a = &a[j * k + chunks.len() * LANES..][..rest.len()];
        for i in 0..rest.len() {
            sums[i] += rest[i] * a[i];
        }
    }
    sums.map(|sums| fold(sums, |a, b| a + b))
}

/// `out += scale · h · B`, B `[r, n]`.
pub(crate) fn expand<T: Real>(out: &mut [T], h: &[T], b: Mat<T>, scale: T) {
    let (r, n) = (b.rows, b.cols);
    if r > NARROW {
        let m = out.len() / n;
        return gemm(MatMut::new(out, m, n), Some(T::of(1.0)), Mat::new(h, m, r), b, scale);
    }
    let b: &[T] = &row_major(b);
    for_rows(
        out,
        n,
        #[inline(always)]
        |i, row| {
            let h = &h[i * r..][..r];
            for (c, out) in row.chunks_mut(COLUMNS).enumerate() {
                let mut sums = [T::of(0.0); COLUMNS];
                for (j, &h) in h.iter().enumerate() {
                    add_scaled(&mut sums, h, &b[j * n + c * COLUMNS..][..out.len()]);
                }
                let s = scale;
                for (o, sum) in out.iter_mut().zip(sums) {
                    *o += s * sum;
                }
            }
        },
    );
}

/// `sums += h · from`, in whole registers where `from` is long enough.
#[inline(always)]
fn add_scaled<T: Real>(sums: &mut [T; COLUMNS], h: T, from: &[T]) {
    if let Some(from) = from.as_array::<COLUMNS>() {
        for i in 0..COLUMNS {
            sums[i] += h * from[i];
        }
    } else {
        for (sum, &v) in sums.iter_mut().zip(from) {
            *sum += h * v;
        }
    }
}

/// Where a gathered sum `[r, k]` lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lies {
    Straight,
    /// As `[k, r]`.
    Transposed,
}

/// `out = scale · hᵀ · x`, or added to what `out` holds; h `[m, r]`, x `[m, k]`.
pub(crate) fn gather<T: Real>(out: &mut [T], lies: Lies, add: bool, h: Mat<T>, x: Mat<T>, scale: T) {
    let (m, r, k) = (h.rows, h.cols, x.cols);
    if r > NARROW {
        let keep = add.then(|| T::of(1.0));
        return match lies {
            Lies::Straight => gemm(MatMut::new(out, r, k), keep, h.t(), x, scale),
            Lies::Transposed => gemm(MatMut::new(out, k, r), keep, x.t(), h, scale),
        };
    }
    if !add {
        out.fill(T::of(0.0));
    }
    let rows = m.div_ceil(PARTS).max(ROWS);
    let part = |(h, x): (&[T], &[T])| {
        let mut sums = vec![T::of(0.0); r * k];
        vectorised(
            #[inline(always)]
            || add_outer(&mut sums, h, x, r, k),
        );
        sums
    };
    let parts: Vec<Vec<T>> = if m * k < PARALLEL_FROM {
        h.data.chunks(rows * r).zip(x.data.chunks(rows * k)).map(part).collect()
    } else {
        h.data.par_chunks(rows * r).zip(x.data.par_chunks(rows * k)).map(part).collect()
    };
    for sums in parts {
        for (j, sums) in sums.chunks(k).enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                let at = if lies == Lies::Straight { j * k + c } else { c * r + j };
                out[at] += scale * sum;
            }
        }
    }
}

/// `sums [r, k] += hᵀ x`, four rows of h and x at a time.
#[inline(always)]
fn add_outer<T: Real>(sums: &mut [T], h: &[T], x: &[T], r: usize, k: usize) {
    let rows = x.len() / k;
    for first in (0..k).step_by(COLUMNS) {
        let width = COLUMNS.min(k - first);
        let mut i = 0;
        while i + 4 <= rows && width == COLUMNS {
            let line = |at: usize| x[(i + at) * k + first..].first_chunk::<COLUMNS>();
            let (Some(x0), Some(x1), Some(x2), Some(x3)) = (line(0), line(1), line(2), line(3)) else { break };
            for j in 0..r {
                let [h0, h1, h2, h3] = [0, 1, 2, 3].map(|at| h[(i + at) * r + j]);
                let Some(sums) = sums[j * k + first..].first_chunk_mut::<COLUMNS>() else { break };
                for c in 0..COLUMNS {
                    sums[c] += (h0 * x0[c] + h1 * x1[c]) + (h2 * x2[c] + h3 * x3[c]);
                }
            }
            i += 4;
        }
        for i in i..rows {
            let x = &x[i * k + first..][..width];
            for j in 0..r {
                let h = h[i * r + j];
                for (sum, &x) in sums[j * k + first..][..width].iter_mut().zip(x) {
                    *sum += h * x;
                }
            }
        }
    }
}

/// The elements row by row: those of the matrix itself if they lie so.
fn row_major<'a, T: Real>(mat: Mat<'a, T>) -> std::borrow::Cow<'a, [T]> {
    if mat.col_stride == 1 && mat.row_stride == mat.cols {
        return mat.data.into();
    }
    let mut out = Vec::with_capacity(mat.rows * mat.cols);
    for i in 0..mat.rows {
        out.extend((0..mat.cols).map(|j| mat.data[i * mat.row_stride + j * mat.col_stride]));
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::integers;

    #[test]
    fn every_shape_is_exact_on_both_sides_of_the_limit() {
        for (m, k, r) in [(0, 5, 2), (1, 1, 1), (7, 130, 3), (261, 64, 16), (262, 70, 17), (1030, 129, 8)] {
            let draw = |name: &str, len: usize| integers(name, len, 3);
            let (x, h, a, b) = (draw("x", m * k), draw("h", m * r), draw("a", r * k), draw("b", k * r));
            let sum = |len: usize, term: &dyn Fn(usize) -> f32| (0..len).map(term).sum::<f32>();

            let mut low = vec![f32::NAN; m * r];
            project(&mut low, &x, Mat::new(&b, k, r).t());
            assert!((0..m * r).all(|at| low[at] == sum(k, &|l| x[at / r * k + l] * b[l * r + at % r])));

            let mut out = x.clone();
            expand(&mut out, &h, Mat::new(&a, r, k), -2.0);
            assert!((0..m * k).all(|at| out[at] == x[at] - 2.0 * sum(r, &|j| h[at / k * r + j] * a[j * k + at % k])));

            for (lies, add) in [(Lies::Straight, false), (Lies::Transposed, true)] {
                let mut out = if add { a.clone() } else { vec![f32::NAN; r * k] };
                gather(&mut out, lies, add, Mat::new(&h, m, r), Mat::new(&x, m, k), 2.0);
                let right = |at: usize| {
                    let (j, c) = if lies == Lies::Straight { (at / k, at % k) } else { (at % r, at / r) };
                    let held = if add { a[at] } else { 0.0 };
                    out[at] == held + 2.0 * sum(m, &|i| h[i * r + j] * x[i * k + c])
                };
                assert!((0..r * k).all(right), "{m} x {k}, rank {r}, {lies:?}");
            }
        }
    }
}
