//! Products on host memory in which one extent is a rank.
//!
//! ```text
//! project:  out [m, r]  = x [m, k] · Aᵀ            expand:  out [m, n] += s · h [m, r] · B            gather:  out [r, k] (+)= s · hᵀ · x
//! ```
//!
//! A general product packs its operands into panels, which for a rank of 8 takes longer than the product. Up to [`NARROW`] rows are
//! taken four at a time instead: what has the rank is read once for the four, and each row of the rest once. A row of out is summed
//! first and added once, whatever the rank, in an order that does not know which rows went together.

use rayon::prelude::*;

use super::host::{Real, for_rows, fuses, vectorised};
use super::lanes::fold;
use crate::device::{Mat, MatMut, gemm};

/// Ranks above this fill the panels of a general product.
const NARROW: usize = 16;

/// Whether a product with this extent is one of those that are taken row by row.
pub(crate) fn is_narrow(rank: usize) -> bool {
    rank <= NARROW
}

/// Rows that are taken at once.
const TILE: usize = 4;
/// Columns of a gathered sum, and of an expanded one, that are taken at once.
const GATHERED: usize = 64;
const EXPANDED: usize = 32;
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

/// `a · b + sum`, in one instruction where the machine has one.
#[inline(always)]
fn add_product<T: Real, const FUSED: bool>(a: T, b: T, sum: T) -> T {
    if FUSED { a.mul_add(b, sum) } else { sum + a * b }
}

/// `out = x · Aᵀ`, A `[r, k]`.
pub(crate) fn project<T: Real>(out: &mut [T], x: &[T], a: Mat<T>) {
    let (r, k) = (a.rows, a.cols);
    let m = out.len() / r;
    if r > NARROW {
        return gemm(MatMut::new(out, m, r), None, Mat::new(x, m, k), a.t(), T::of(1.0));
    }
    let a: &[T] = &row_major(a);
    let fused = fuses();
    let some = |(block, out): (usize, &mut [T])| {
        let x = &x[block * TOGETHER * k..][..out.len() / r * k];
        vectorised(
            #[inline(always)]
            || {
                if fused {
                    project_rows::<T, true>(out, x, a, [r, k]);
                } else {
                    project_rows::<T, false>(out, x, a, [r, k]);
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

#[inline(always)]
fn project_rows<T: Real, const FUSED: bool>(out: &mut [T], x: &[T], a: &[T], [r, k]: [usize; 2]) {
    let rows = out.len() / r;
    let mut i = 0;
    while i + TILE <= rows {
        project_tile::<T, FUSED, TILE>(&mut out[i * r..], &x[i * k..], a, [r, k]);
        i += TILE;
    }
    while i < rows {
        project_tile::<T, FUSED, 1>(&mut out[i * r..], &x[i * k..], a, [r, k]);
        i += 1;
    }
}

/// ROWS rows of x, and two of A at a time.
#[inline(always)]
fn project_tile<T: Real, const FUSED: bool, const ROWS: usize>(out: &mut [T], x: &[T], a: &[T], [r, k]: [usize; 2]) {
    let mut j = 0;
    while j + 2 <= r {
        dots::<T, FUSED, ROWS, 2>(&mut out[j..], x, &a[j * k..], [r, k]);
        j += 2;
    }
    if j < r {
        dots::<T, FUSED, ROWS, 1>(&mut out[j..], x, &a[j * k..], [r, k]);
    }
}

/// `out[i][j] = x[i] · a[j]`: running sums enough that none waits for the one before, of which each is ordered as it would be alone.
#[inline(always)]
fn dots<T: Real, const FUSED: bool, const ROWS: usize, const COLS: usize>(
    out: &mut [T],
    x: &[T],
    a: &[T],
    [r, k]: [usize; 2],
) {
    let mut sums = [[[T::of(0.0); LANES]; COLS]; ROWS];
    let whole = k / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        for i in 0..ROWS {
            let Some(x) = x[i * k + at..].first_chunk::<LANES>() else { break };
            for j in 0..COLS {
                let Some(a) = a[j * k + at..].first_chunk::<LANES>() else { break };
                for l in 0..LANES {
                    sums[i][j][l] = add_product::<T, FUSED>(x[l], a[l], sums[i][j][l]);
                }
            }
        }
    }
    for i in 0..ROWS {
        for j in 0..COLS {
            let mut sums = sums[i][j];
            for l in 0..k - whole {
                sums[l] = add_product::<T, FUSED>(x[i * k + whole + l], a[j * k + whole + l], sums[l]);
            }
            out[i * r + j] = fold(sums, |a, b| a + b);
        }
    }
}

/// `out += scale · h · B`, B `[r, n]`.
pub(crate) fn expand<T: Real>(out: &mut [T], h: &[T], b: Mat<T>, scale: T) {
    let (r, n) = (b.rows, b.cols);
    if r > NARROW {
        let m = out.len() / n;
        return gemm(MatMut::new(out, m, n), Some(T::of(1.0)), Mat::new(h, m, r), b, scale);
    }
    let b: &[T] = &row_major(b);
    let fused = fuses();
    for_rows(
        out,
        TILE * n,
        #[inline(always)]
        |four, rows| {
            let h = &h[four * TILE * r..][..rows.len() / n * r];
            if fused {
                expand_rows::<T, true>(rows, h, b, scale, [r, n]);
            } else {
                expand_rows::<T, false>(rows, h, b, scale, [r, n]);
            }
        },
    );
}

#[inline(always)]
fn expand_rows<T: Real, const FUSED: bool>(rows: &mut [T], h: &[T], b: &[T], scale: T, [r, n]: [usize; 2]) {
    if h.len() == TILE * r {
        return expand_tile::<T, FUSED, TILE>(rows, h, b, scale, [r, n]);
    }
    for (row, h) in rows.chunks_mut(n).zip(h.chunks(r)) {
        expand_tile::<T, FUSED, 1>(row, h, b, scale, [r, n]);
    }
}

#[inline(always)]
fn expand_tile<T: Real, const FUSED: bool, const ROWS: usize>(
    out: &mut [T],
    h: &[T],
    b: &[T],
    scale: T,
    [r, n]: [usize; 2],
) {
    let whole = n / EXPANDED * EXPANDED;
    for first in (0..whole).step_by(EXPANDED) {
        let mut sums = [[T::of(0.0); EXPANDED]; ROWS];
        for j in 0..r {
            let Some(b) = b[j * n + first..].first_chunk::<EXPANDED>() else { break };
            for i in 0..ROWS {
                let h = h[i * r + j];
                for c in 0..EXPANDED {
                    sums[i][c] = add_product::<T, FUSED>(h, b[c], sums[i][c]);
                }
            }
        }
        for i in 0..ROWS {
            let Some(out) = out[i * n + first..].first_chunk_mut::<EXPANDED>() else { break };
            for c in 0..EXPANDED {
                out[c] += scale * sums[i][c];
            }
        }
    }
    for i in 0..ROWS {
        for c in whole..n {
            let mut sum = T::of(0.0);
            for j in 0..r {
                sum = add_product::<T, FUSED>(h[i * r + j], b[j * n + c], sum);
            }
            out[i * n + c] += scale * sum;
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
    let fused = fuses();
    let part = |(h, x): (&[T], &[T])| {
        let mut sums = vec![T::of(0.0); r * k];
        vectorised(
            #[inline(always)]
            || {
                if fused {
                    add_outer::<T, true>(&mut sums, h, x, [r, k]);
                } else {
                    add_outer::<T, false>(&mut sums, h, x, [r, k]);
                }
            },
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

/// `sums [r, k] += hᵀ x`, row after row of h and x, of which four are taken at once.
#[inline(always)]
fn add_outer<T: Real, const FUSED: bool>(sums: &mut [T], h: &[T], x: &[T], [r, k]: [usize; 2]) {
    let rows = x.len() / k;
    for first in (0..k).step_by(GATHERED) {
        let width = GATHERED.min(k - first);
        let mut i = 0;
        while i + TILE <= rows && width == GATHERED {
            let line = |at: usize| x[(i + at) * k + first..].first_chunk::<GATHERED>();
            let (Some(x0), Some(x1), Some(x2), Some(x3)) = (line(0), line(1), line(2), line(3)) else { break };
            for j in 0..r {
                let [h0, h1, h2, h3] = [0, 1, 2, 3].map(|at| h[(i + at) * r + j]);
                let Some(sums) = sums[j * k + first..].first_chunk_mut::<GATHERED>() else { break };
                for c in 0..GATHERED {
                    let two = add_product::<T, FUSED>(h1, x1[c], add_product::<T, FUSED>(h0, x0[c], sums[c]));
                    sums[c] = add_product::<T, FUSED>(h3, x3[c], add_product::<T, FUSED>(h2, x2[c], two));
                }
            }
            i += TILE;
        }
        for i in i..rows {
            let x = &x[i * k + first..][..width];
            for j in 0..r {
                let h = h[i * r + j];
                for (sum, &x) in sums[j * k + first..][..width].iter_mut().zip(x) {
                    *sum = add_product::<T, FUSED>(h, x, *sum);
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
