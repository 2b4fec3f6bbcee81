//! The reference: one task per batch item and head, on packed copies of that head, so that every inner loop runs over whole
//! vectors of contiguous numbers.

use rayon::prelude::*;

use super::{Desc, K, OP, Operands, Q, V};
use crate::autograd::Sinks;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows, vectorised};
use crate::ops::lanes::fold;
use crate::tensor::Tensor;

/// Packed rows are padded with zeros to a multiple of this.
const LANES: usize = 16;
/// Scores that one task holds at a time: a tile of queries against all keys.
const TILE_ELEMENTS: usize = 64 * 1024;

pub fn forward<T: Real>(desc: &Desc, operands: &Operands, y: &Tensor, lse: &Tensor) -> Result<()> {
    let Desc { t, h, d, .. } = *desc;
    let inputs = Inputs::<T>::of(operands)?;
    let sizes = Sizes::of(desc);
    let mut statistics = Out::<T>::of(OP, lse)?;
    // Each task owns one head's rows of y, padded, then their log-sum-exps; the heads are woven together afterwards.
    let rows = t * sizes.d;
    let mut heads = vec![T::of(0.0); desc.b * h * (rows + t)];
    heads.par_chunks_mut(rows + t).enumerate().for_each_init(
        || Scratch::new(&sizes),
        |scratch, (index, out)| {
            let (y, lse) = out.split_at_mut(rows);
            let head = Head { desc, sizes, inputs: &inputs, index };
            vectorised(
                #[inline(always)]
                || head.forward(scratch, y, lse),
            );
        },
    );
    let mut out = Out::<T>::of(OP, y)?;
    for_rows(&mut out, desc.width(), |row, out| {
        let (item, i) = (row / t, row % t);
        for (head, out) in out.chunks_mut(d).enumerate() {
            let start = (item * h + head) * (rows + t) + i * sizes.d;
            out.copy_from_slice(&heads[start..start + d]);
        }
    });
    for_rows(&mut statistics, h, |row, out| {
        let (item, i) = (row / t, row % t);
        for (head, out) in out.iter_mut().enumerate() {
            *out = heads[(item * h + head) * (rows + t) + rows + i];
        }
    });
    out.finish()?;
    statistics.finish()
}

pub fn backward<T: Real>(
    desc: &Desc,
    operands: &Operands,
    dy: &Tensor,
    lse: &Tensor,
    sinks: &mut Sinks<'_>,
) -> Result<()> {
    let Desc { t, s, h, d, .. } = *desc;
    let wanted = [Q, K, V].map(|i| sinks.wants(i));
    let sizes = Sizes::of(desc);
    let lengths = [t, s, s].map(|n| n * sizes.d);
    let parts = [0, 1, 2].map(|i| if wanted[i] { lengths[i] } else { 0 });
    let each: usize = parts.iter().sum();
    let mut heads = vec![T::of(0.0); desc.b * h * each];
    {
        let inputs = Inputs::<T>::of(operands)?;
        let (dy, lse) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, lse)?);
        heads.par_chunks_mut(each.max(1)).enumerate().for_each_init(
            || (Scratch::new(&sizes), Packed::new(&sizes)),
            |(scratch, packed), (index, out)| {
                let (dq, rest) = out.split_at_mut(parts[0]);
                let (dk, dv) = rest.split_at_mut(parts[1]);
                let head = Head { desc, sizes, inputs: &inputs, index };
                vectorised(
                    #[inline(always)]
                    || head.backward(scratch, packed, &dy, &lse, dq, dk, dv),
                );
            },
        );
    }
    let starts = [0, parts[0], parts[0] + parts[1]];
    for input in [Q, K, V] {
        let Some(target) = sinks.open(input)? else { continue };
        let n = [t, s, s][input];
        let mut out = Out::<T>::into(OP, &target)?;
        for_rows(&mut out, desc.width(), |row, out| {
            let (item, i) = (row / n, row % n);
            for (head, out) in out.chunks_mut(d).enumerate() {
                let start = (item * h + head) * each + starts[input] + i * sizes.d;
                let values = &heads[start..start + d];
                if target.accumulate {
                    for (o, &v) in out.iter_mut().zip(values) {
                        *o += v;
                    }
                } else {
                    out.copy_from_slice(values);
                }
            }
        });
        out.finish()?;
    }
    Ok(())
}

/// Padded lengths, and how many queries a task takes at once.
#[derive(Clone, Copy)]
struct Sizes {
    t: usize,
    s: usize,
    /// d, padded.
    d: usize,
    /// s, padded: the length of a row of scores.
    row: usize,
    tile: usize,
}

impl Sizes {
    fn of(desc: &Desc) -> Self {
        let row = desc.s.next_multiple_of(LANES).max(LANES);
        let tile = (TILE_ELEMENTS / row).clamp(4, 64).min(desc.t.max(1));
        Sizes { t: desc.t, s: desc.s, d: desc.d.next_multiple_of(LANES), row, tile }
    }
}

/// Working memory that both passes use.
struct Scratch<T> {
    /// Kᵀ `[d, row]`
    keys: Vec<T>,
    /// V `[s, d]`
    values: Vec<T>,
    /// Scores, then probabilities `[tile, row]`
    scores: Vec<T>,
}

impl<T: Real> Scratch<T> {
    fn new(sizes: &Sizes) -> Self {
        let zeros = |n: usize| vec![T::of(0.0); n];
        let Sizes { s, d, row, tile, .. } = *sizes;
        Scratch { keys: zeros(d * row), values: zeros(s * d), scores: zeros(tile * row) }
    }
}

/// What backward needs besides.
struct Packed<T> {
    /// Q, dy `[t, d]`; K `[s, d]`; Vᵀ `[d, row]`
    q: Vec<T>,
    dy: Vec<T>,
    k: Vec<T>,
    values: Vec<T>,
    /// dP, then dS `[tile, row]`
    slopes: Vec<T>,
}

impl<T: Real> Packed<T> {
    fn new(sizes: &Sizes) -> Self {
        let zeros = |n: usize| vec![T::of(0.0); n];
        let Sizes { t, s, d, row, tile } = *sizes;
        Packed { q: zeros(t * d), dy: zeros(t * d), k: zeros(s * d), values: zeros(d * row), slopes: zeros(tile * row) }
    }
}

struct Inputs<'a, T: Real> {
    q: In<'a, T>,
    k: In<'a, T>,
    v: In<'a, T>,
    mask: Option<Mask<'a, T>>,
}

enum Mask<'a, T: Real> {
    Added(In<'a, T>),
    Kept(crate::device::HostRead<'a, u8>),
}

impl<'a, T: Real> Inputs<'a, T> {
    fn of(operands: &Operands<'a>) -> Result<Self> {
        let mask = match operands.mask {
            None => None,
            Some(mask) if mask.dtype() == DType::U8 => Some(Mask::Kept(mask.read::<u8>(OP)?)),
            Some(mask) => Some(Mask::Added(In::of(OP, mask)?)),
        };
        Ok(Inputs { q: In::of(OP, operands.q)?, k: In::of(OP, operands.k)?, v: In::of(OP, operands.v)?, mask })
    }
}

/// One head of one batch item.
struct Head<'a, T: Real> {
    desc: &'a Desc,
    sizes: Sizes,
    inputs: &'a Inputs<'a, T>,
    /// `item · h + head`
    index: usize,
}

impl<T: Real> Head<'_, T> {
    /// Where row 0 of this head lies in a `[b, n, h·d]` tensor.
    #[inline(always)]
    fn start(&self, n: usize) -> usize {
        (self.index / self.desc.h) * n * self.desc.width() + (self.index % self.desc.h) * self.desc.d
    }

    /// `out [n, d]`, padded, from this head's rows of `source`.
    #[inline(always)]
    fn pack_rows(&self, source: &[T], n: usize, out: &mut [T]) {
        let (start, d) = (self.start(n), self.desc.d);
        for (i, out) in out.chunks_mut(self.sizes.d).take(n).enumerate() {
            out[..d].copy_from_slice(&source[start + i * self.desc.width()..][..d]);
        }
    }

    /// `out [d, row]`, padded, from this head's s rows of `source`.
    #[inline(always)]
    fn pack_columns(&self, source: &[T], out: &mut [T]) {
        let (start, d, row) = (self.start(self.desc.s), self.desc.d, self.sizes.row);
        // Sixteen columns at a time, so that each line written is filled while it is at hand.
        for first in (0..self.desc.s).step_by(LANES) {
            for j in first..(first + LANES).min(self.desc.s) {
                let from = &source[start + j * self.desc.width()..][..d];
                for (c, &v) in from.iter().enumerate() {
                    out[c * row + j] = v;
                }
            }
        }
    }

    /// Scores of queries `first .. first + rows` from their packed or strided rows: scaled, masked, −∞ in the padding.
    #[inline(always)]
    fn scores(&self, q: &[T], stride: usize, first: usize, rows: usize, keys: &[T], scores: &mut [T]) {
        let Sizes { s, row, .. } = self.sizes;
        let hidden = T::of(f64::NEG_INFINITY);
        let scale = T::of(self.desc.scale);
        product(scores, By::Rows(q, stride), keys, [rows, self.desc.d, row], false);
        for (i, line) in scores.chunks_mut(row).take(rows).enumerate() {
            for x in line.iter_mut() {
                *x *= scale;
            }
            if let (Some(mask), Some(at)) = (&self.inputs.mask, &self.desc.mask) {
                let item = (self.index / self.desc.h) * at.batch_stride + (self.index % self.desc.h) * at.head_stride;
                let start = item + (first + i) * s;
                match mask {
                    Mask::Added(values) => {
                        for (x, &m) in line.iter_mut().zip(&values[start..start + s]) {
                            *x += m;
                        }
                    }
                    Mask::Kept(keep) => {
                        let keep = &keep[start..start + s];
                        for (x, &k) in line.iter_mut().zip(keep) {
                            *x = if k == 0 { hidden } else { *x };
                        }
                    }
                }
            }
            line[self.desc.visible(first + i)..].fill(hidden);
        }
    }

    #[inline(always)]
    fn forward(&self, scratch: &mut Scratch<T>, y: &mut [T], lse: &mut [T]) {
        let Sizes { t, s, d, row, tile } = self.sizes;
        self.pack_columns(&self.inputs.k, &mut scratch.keys);
        self.pack_rows(&self.inputs.v, s, &mut scratch.values);
        let (start, stride) = (self.start(t), self.desc.width());
        for first in (0..t).step_by(tile) {
            let rows = tile.min(t - first);
            let q = &self.inputs.q[start + first * stride..];
            self.scores(q, stride, first, rows, &scratch.keys, &mut scratch.scores);
            let lse = &mut lse[first..first + rows];
            let mut weights = [T::of(0.0); 64];
            for ((line, lse), weight) in scratch.scores.chunks_mut(row).zip(&mut *lse).zip(&mut weights) {
                (*lse, *weight) = softmax(line);
            }
            let y = &mut y[first * d..(first + rows) * d];
            product(y, By::Rows(&scratch.scores, row), &scratch.values, [rows, s, d], false);
            for (y, &weight) in y.chunks_mut(d).zip(&weights) {
                if weight == T::of(0.0) {
                    // Nothing is seen: zeros, even where V holds NaN.
                    y.fill(weight);
                } else {
                    for v in y.iter_mut() {
                        *v *= weight;
                    }
                }
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn backward(
        &self,
        scratch: &mut Scratch<T>,
        packed: &mut Packed<T>,
        dy: &[T],
        lse: &[T],
        dq: &mut [T],
        dk: &mut [T],
        dv: &mut [T],
    ) {
        let Sizes { t, s, d, row, tile } = self.sizes;
        let scale = T::of(self.desc.scale);
        let through_scores = !dq.is_empty() || !dk.is_empty();
        self.pack_columns(&self.inputs.k, &mut scratch.keys);
        self.pack_rows(&self.inputs.q, t, &mut packed.q);
        self.pack_rows(dy, t, &mut packed.dy);
        if through_scores {
            self.pack_columns(&self.inputs.v, &mut packed.values);
            self.pack_rows(&self.inputs.k, s, &mut packed.k);
        }
        let (item, head) = (self.index / self.desc.h, self.index % self.desc.h);
        for first in (0..t).step_by(tile) {
            let rows = tile.min(t - first);
            let (q, dy) = (&packed.q[first * d..(first + rows) * d], &packed.dy[first * d..(first + rows) * d]);
            let scores = &mut scratch.scores[..rows * row];
            self.scores(q, d, first, rows, &scratch.keys, scores);
            for (i, line) in scores.chunks_mut(row).enumerate() {
                let lse = lse[(item * t + first + i) * self.desc.h + head];
                for x in line.iter_mut() {
                    *x = (*x - lse).exp();
                }
            }
            if !dv.is_empty() {
                product(dv, By::Columns(scores, row), dy, [s, rows, d], true);
            }
            if !through_scores {
                continue;
            }
            let slopes = &mut packed.slopes[..rows * row];
            product(slopes, By::Rows(dy, d), &packed.values, [rows, self.desc.d, row], false);
            for (p, slope) in scores.chunks(row).zip(slopes.chunks_mut(row)) {
                let mean = sum_of_products(p, slope);
                for (x, &p) in slope.iter_mut().zip(p) {
                    *x = p * (*x - mean) * scale;
                }
            }
            if !dq.is_empty() {
                let dq = &mut dq[first * d..(first + rows) * d];
                product(dq, By::Rows(slopes, row), &packed.k, [rows, s, d], false);
            }
            if !dk.is_empty() {
                product(dk, By::Columns(slopes, row), q, [s, rows, d], true);
            }
        }
    }
}

/// Turns scores into `exp(score − max)`. Returns the row's log-sum-exp and the reciprocal of the sum, which the caller multiplies
/// in later; `(+∞, 0)` for a row that sees nothing, so that backward's `exp(−∞ − lse)` is 0.
#[inline(always)]
fn softmax<T: Real>(line: &mut [T]) -> (T, T) {
    let mut lanes = [T::of(f64::NEG_INFINITY); LANES];
    for chunk in line.chunks_exact(LANES) {
        for (m, &x) in lanes.iter_mut().zip(chunk) {
            *m = x.maximum(*m);
        }
    }
    let max = fold(lanes, |a, b| a.maximum(b));
    if max == T::of(f64::NEG_INFINITY) {
        line.fill(T::of(0.0));
        return (T::of(f64::INFINITY), T::of(0.0));
    }
    let mut lanes = [T::of(0.0); LANES];
    for chunk in line.chunks_exact_mut(LANES) {
        for (sum, x) in lanes.iter_mut().zip(chunk) {
            *x = (*x - max).exp();
            *sum += *x;
        }
    }
    let sum = fold(lanes, |a, b| a + b);
    (max + sum.ln(), T::of(1.0) / sum)
}

#[inline(always)]
fn sum_of_products<T: Real>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::of(0.0); LANES];
    for (a, b) in a.chunks_exact(LANES).zip(b.chunks_exact(LANES)) {
        for (sum, (&a, &b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    fold(lanes, |a, b| a + b)
}

/// The left operand of a product: element (i, p) at `i · stride + p`, or at `p · stride + i`.
#[derive(Clone, Copy)]
enum By<'a, T> {
    Rows(&'a [T], usize),
    Columns(&'a [T], usize),
}

/// `out[i, j] (+)= Σ_p lhs(i, p) · rhs[p, j]` for sizes `[m, k, n]`, with n a multiple of [`LANES`] and the length of the rows of
/// `out` and `rhs`. Terms are added in the order of p.
#[inline(always)]
fn product<T: Real>(out: &mut [T], lhs: By<'_, T>, rhs: &[T], [m, k, n]: [usize; 3], add: bool) {
    let rhs = &rhs[..k * n];
    let mut j = 0;
    while j + 2 * LANES <= n {
        columns::<T, { 2 * LANES }>(out, lhs, rhs, [m, k, n], j, add);
        j += 2 * LANES;
    }
    if j < n {
        columns::<T, LANES>(out, lhs, rhs, [m, k, n], j, add);
    }
}

#[inline(always)]
fn columns<T: Real, const W: usize>(
    out: &mut [T],
    lhs: By<'_, T>,
    rhs: &[T],
    [m, k, n]: [usize; 3],
    j: usize,
    add: bool,
) {
    let mut i = 0;
    while i + 4 <= m {
        block::<T, 4, W>(&mut out[i * n + j..], lhs, i, rhs, [k, n], j, add);
        i += 4;
    }
    while i < m {
        block::<T, 1, W>(&mut out[i * n + j..], lhs, i, rhs, [k, n], j, add);
        i += 1;
    }
}

/// R rows of W columns, whose sums stay in registers.
#[inline(always)]
fn block<T: Real, const R: usize, const W: usize>(
    out: &mut [T],
    lhs: By<'_, T>,
    i: usize,
    rhs: &[T],
    [k, n]: [usize; 2],
    j: usize,
    add: bool,
) {
    let mut sums = [[T::of(0.0); W]; R];
    if add {
        for (r, sums) in sums.iter_mut().enumerate() {
            sums.copy_from_slice(&out[r * n..][..W]);
        }
    }
    match lhs {
        By::Rows(values, stride) => {
            let lines: [&[T]; R] = std::array::from_fn(|r| &values[(i + r) * stride..][..k]);
            for (p, rhs) in rhs.chunks_exact(n).enumerate() {
                add_row(&mut sums, std::array::from_fn(|r| lines[r][p]), &rhs[j..][..W]);
            }
        }
        By::Columns(values, stride) => {
            for (line, rhs) in values.chunks(stride).zip(rhs.chunks_exact(n)) {
                let line = &line[i..][..R];
                add_row(&mut sums, std::array::from_fn(|r| line[r]), &rhs[j..][..W]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        out[r * n..][..W].copy_from_slice(sums);
    }
}

#[inline(always)]
fn add_row<T: Real, const R: usize, const W: usize>(sums: &mut [[T; W]; R], lhs: [T; R], rhs: &[T]) {
    for (sums, lhs) in sums.iter_mut().zip(lhs) {
        for (sum, &v) in sums.iter_mut().zip(rhs) {
            *sum += lhs * v;
        }
    }
}
