//! The reference. A thread takes a block of rows and multiplies it, normalised, with one block of columns after another; what lies clearly above the
//! threshold in the small product is an edge, and what lies near it is decided by its similarity.

use rayon::prelude::*;

use super::pick::keep_top;
use super::{Desc, OP, require_finite};
use crate::device::{Device, Mat, MatMut, gemm_alone};
use crate::error::Result;
use crate::graph::{Csr, Pattern};
use crate::ops::host::{Real, vectorised};
use crate::ops::pieces::{Held, PIECE, Values};
use crate::tensor::Tensor;

/// Rows and columns of a tile of the product: half a megabyte in f32, which stays in the second-level cache.
const ROWS: usize = 256;
const COLS: usize = 512;
/// Columns that are looked at together.
const GLANCE: usize = 32;

/// One side of the pairs.
struct Side<'a, T> {
    values: Values<'a, T>,
    squares: &'a [f64],
    f: usize,
}

impl<T: Real> Side<'_, T> {
    /// Rows `first .. first + out.len() / f`, each of length 1, or of zeros.
    #[inline(always)]
    fn normalised(&self, first: usize, out: &mut [T]) {
        let mut room = [T::of(0.0); PIECE];
        for (i, out) in out.chunks_mut(self.f.max(1)).enumerate() {
            let square = self.squares[first + i];
            let scale = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
            for (block, out) in out.chunks_mut(PIECE).enumerate() {
                let from = self.values.piece((first + i) * self.f + block * PIECE, &mut room[..out.len()]);
                for c in 0..out.len() {
                    out[c] = T::of(from[c].to_f64() * scale);
                }
            }
        }
    }
}

/// In f64, in the order of the columns. Products of two f32 are exact there, so that fused and separate arithmetic agree.
fn product<T: Real>(a: Values<T>, i: usize, b: Values<T>, j: usize, f: usize) -> f64 {
    let (mut left, mut right) = ([T::of(0.0); PIECE], [T::of(0.0); PIECE]);
    let (mut sum, mut c) = (0.0, 0);
    while c < f {
        let some = PIECE.min(f - c);
        let (left, right) = (a.piece(i * f + c, &mut left[..some]), b.piece(j * f + c, &mut right[..some]));
        for (u, v) in left.iter().zip(right) {
            sum += u.to_f64() * v.to_f64();
        }
        c += some;
    }
    sum
}

fn similarity<T: Real>(a: &Side<T>, i: usize, b: &Side<T>, j: usize) -> f32 {
    (product(a.values, i, b.values, j, a.f) / (a.squares[i] * b.squares[j]).sqrt()) as f32
}

fn squares<T: Real>(x: Values<T>, n: usize, f: usize) -> Vec<f64> {
    (0..n).into_par_iter().with_min_len(256).map(|i| product(x, i, x, i, f)).collect()
}

/// Edges found so far: columns, and similarities where they are wanted.
type Found = Vec<(u32, f32)>;

pub fn graph<T: Real>(desc: &Desc, a: &Tensor, b: &Tensor) -> Result<Csr> {
    let (a, b) = (Held::<T>::of(OP, a)?, Held::<T>::of(OP, b)?);
    let (a, b) = (a.values(), b.values());
    let a_squares = squares(a, desc.v, desc.f);
    require_finite(&a_squares, "features")?;
    let b_squares = if desc.among { Vec::new() } else { squares(b, desc.n, desc.f) };
    require_finite(&b_squares, "reference")?;
    let a = Side { values: a, squares: &a_squares, f: desc.f };
    let b = Side { values: b, squares: if desc.among { &a_squares } else { &b_squares }, f: desc.f };
    // Of a pair the smaller number looks for the larger, unless rows must see all to choose.
    let half = desc.among && desc.top_k.is_none();
    let blocks: Vec<Vec<Found>> = (0..desc.v.div_ceil(ROWS))
        .into_par_iter()
        .with_max_len(1)
        .map(|k| block(desc, &a, &b, k * ROWS, half))
        .collect();
    let rows: Vec<Found> = blocks.into_iter().flatten().collect();
    assemble(desc, &rows, half)
}

/// The edges of rows `first ..`, as many as a tile has.
fn block<T: Real>(desc: &Desc, a: &Side<T>, b: &Side<T>, first: usize, half: bool) -> Vec<Found> {
    let (f, rows) = (desc.f, ROWS.min(desc.v - first));
    let mut own = vec![T::of(0.0); rows * f];
    let mut other = vec![T::of(0.0); COLS * f];
    let mut tile = vec![T::of(0.0); ROWS * COLS.min(desc.n)];
    vectorised(
        #[inline(always)]
        || a.normalised(first, &mut own),
    );
    let mut found = vec![Found::new(); rows];
    let mut column = if half { first } else { 0 };
    while column < desc.n {
        let cols = COLS.min(desc.n - column);
        let other = &mut other[..cols * f];
        vectorised(
            #[inline(always)]
            || b.normalised(column, other),
        );
        let out = MatMut::new(&mut tile[..rows * cols], rows, cols);
        gemm_alone(out, None, Mat::new(&own, rows, f), Mat::new(other, cols, f).t(), T::of(1.0));
        for (r, (row, found)) in tile.chunks(cols).zip(&mut found).enumerate() {
            scan(desc, row, |c| {
                let (i, j) = (first + r, column + c);
                if desc.among && (j == i || half && j < i) || a.squares[i] == 0.0 || b.squares[j] == 0.0 {
                    return;
                }
                let clear = row[c].to_f64() > f64::from(desc.threshold + desc.band());
                let exact = if clear && !desc.weighted && desc.top_k.is_none() { 1.0 } else { similarity(a, i, b, j) };
                if clear || exact > desc.threshold {
                    found.push((j as u32, exact));
                }
            });
            if let Some(k) = desc.top_k {
                keep_top(found, k);
            }
        }
        column += cols;
    }
    found
}

/// Calls `see` for every column of a row of the product that is not clearly below the threshold.
fn scan<T: Real>(desc: &Desc, row: &[T], mut see: impl FnMut(usize)) {
    let low = T::of(f64::from(desc.threshold - desc.band()));
    for (block, values) in row.chunks(GLANCE).enumerate() {
        if vectorised(
            #[inline(always)]
            || any_above(values, low),
        ) {
            for (c, &v) in values.iter().enumerate() {
                if v > low {
                    see(block * GLANCE + c);
                }
            }
        }
    }
}

#[inline(always)]
fn any_above<T: Real>(values: &[T], low: T) -> bool {
    let mut any = false;
    for &v in values {
        any |= v > low;
    }
    any
}

/// Compressed rows of what was found; with the mirror image of every edge if only one half was.
fn assemble(desc: &Desc, rows: &[Found], half: bool) -> Result<Csr> {
    let mut offsets = vec![0i64; desc.v + 1];
    for (i, found) in rows.iter().enumerate() {
        offsets[i + 1] += found.len() as i64;
        if half {
            found.iter().for_each(|&(j, _)| offsets[j as usize + 1] += 1);
        }
    }
    let max_degree = offsets.iter().copied().max().unwrap_or(0) as usize;
    for i in 0..desc.v {
        offsets[i + 1] += offsets[i];
    }
    let edges = offsets[desc.v] as usize;
    let mut next = offsets.clone();
    let mut indices = vec![0i32; edges];
    let mut values = if desc.weighted { vec![0f32; edges] } else { Vec::new() };
    let mut put = |row: usize, column: usize, weight: f32| {
        let at = next[row] as usize;
        next[row] += 1;
        indices[at] = column as i32;
        if let Some(value) = values.get_mut(at) {
            *value = weight;
        }
    };
    if half {
        // Smaller neighbours first, in their order, then the larger ones: rows come out sorted.
        for (i, found) in rows.iter().enumerate() {
            found.iter().for_each(|&(j, w)| put(j as usize, i, w));
        }
    }
    for (i, found) in rows.iter().enumerate() {
        found.iter().for_each(|&(j, w)| put(i, j as usize, w));
    }
    let device = Device::cpu();
    let values = desc.weighted.then(|| Tensor::from_slice(&device, &[edges], &values)).transpose()?;
    let pattern = Pattern {
        rows: desc.v,
        edges,
        max_degree,
        offsets: offsets_tensor(&device, &offsets)?,
        indices: Tensor::from_slice(&device, &[edges], &indices)?,
        order: None,
    };
    Ok(Csr::trusted(desc.n, pattern, values))
}

/// As narrow as they may be.
pub(super) fn offsets_tensor(device: &Device, offsets: &[i64]) -> Result<Tensor> {
    match offsets.last() {
        Some(&last) if last > i64::from(i32::MAX) => Tensor::from_slice(device, &[offsets.len()], offsets),
        _ => {
            let narrow: Vec<i32> = offsets.iter().map(|&o| o as i32).collect();
            Tensor::from_slice(device, &[offsets.len()], &narrow)
        }
    }
}
