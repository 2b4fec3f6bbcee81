//! The reference. A thread takes a block of rows and multiplies it, normalised, with one block of columns after another; what lies clearly above the
//! threshold in the small product is an edge, and what lies near it is decided by its similarity. Edges are listed, and put into their rows when
//! all are known; where the list has no room for them, they are counted, and the product runs again and puts them at once.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use rayon::prelude::*;

use super::pick::keep_top;
use super::{Desc, OP, require_finite};
use crate::device::{Device, HostWrite, Mat, MatMut, gemm_alone};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Csr, Pattern, Width};
use crate::ops::host::{Real, vectorised};
use crate::ops::pieces::{Held, PIECE, Values};
use crate::tensor::Tensor;

/// Rows and columns of a tile of the product: half a megabyte in f32, which stays in the second-level cache.
const ROWS: usize = 256;
const COLS: usize = 512;
/// Features that a tile's product takes at a time, so that a thread's copies of rows stay small whatever their length.
const DEPTH: usize = 256;
/// Columns that are looked at together.
const GLANCE: usize = 32;
/// Bytes of listed edges, 8 each.
const LIST: usize = 16 << 20;

/// One side of the pairs.
struct Side<'a, T> {
    values: Values<'a, T>,
    squares: &'a [f64],
    f: usize,
}

impl<T: Real> Side<'_, T> {
    /// `width` features from `column` on of as many rows as `out` has room for, from row `first` on. Rows have length 1, or are zeros.
    #[inline(always)]
    fn normalised(&self, first: usize, (column, width): (usize, usize), out: &mut [T]) {
        let mut room = [T::of(0.0); PIECE];
        for (i, out) in out.chunks_mut(width).enumerate() {
            let square = self.squares[first + i];
            let scale = if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 };
            for (block, out) in out.chunks_mut(PIECE).enumerate() {
                let at = (first + i) * self.f + column + block * PIECE;
                let from = self.values.piece(at, &mut room[..out.len()]);
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

pub fn graph<T: Real>(desc: &Desc, a: &Tensor, b: &Tensor) -> Result<Csr> {
    graph_within::<T>(desc, a, b, LIST / size_of::<Edge>())
}

/// With room for so many listed edges.
pub(super) fn graph_within<T: Real>(desc: &Desc, a: &Tensor, b: &Tensor, room: usize) -> Result<Csr> {
    let (a, b) = (Held::<T>::of(OP, a)?, Held::<T>::of(OP, b)?);
    let (a, b) = (a.values(), b.values());
    let a_squares = squares(a, desc.v, desc.f);
    require_finite(&a_squares, "features")?;
    let b_squares = if desc.among { Vec::new() } else { squares(b, desc.n, desc.f) };
    require_finite(&b_squares, "reference")?;
    let a = Side { values: a, squares: &a_squares, f: desc.f };
    let b = Side { values: b, squares: if desc.among { &a_squares } else { &b_squares }, f: desc.f };
    if let Some(k) = desc.top_k {
        let chosen = blocks(desc, |first, rows| most_similar(desc, &a, &b, (first, rows), k));
        let degrees = chosen.iter().flatten().map(|row| row.len() as u32);
        let mut rows = Rows::new(desc, degrees)?;
        rows.put(chosen.iter().flatten().enumerate(), false)?;
        return rows.finish(desc);
    }
    // Of a pair the smaller number looks for the larger.
    let half = desc.among;
    let found = Counts::new(desc.v, room);
    let listed = blocks(desc, |first, rows| list(desc, &a, &b, (first, rows), half, &found));
    let mut rows = Rows::new(desc, found.degrees.iter().map(|d| d.load(Ordering::Relaxed)))?;
    if found.fit() {
        rows.put(listed.iter().flatten().enumerate(), half)?;
    } else {
        drop(listed);
        rows.put_again(desc, &a, &b)?;
    }
    rows.finish(desc)
}

/// What `of` makes of each block of rows, given its first row and their number.
fn blocks<R: Send>(desc: &Desc, of: impl Fn(usize, usize) -> R + Sync) -> Vec<R> {
    let blocks = (0..desc.v.div_ceil(ROWS)).into_par_iter().with_max_len(1);
    blocks.map(|k| of(k * ROWS, ROWS.min(desc.v - k * ROWS))).collect()
}

/// A column, and the similarity where it is wanted.
type Edge = (u32, f32);

/// What all blocks have found so far. Counts are whole numbers, so that the order in which they come does not matter.
struct Counts {
    degrees: Vec<AtomicU32>,
    all: AtomicUsize,
    room: usize,
}

impl Counts {
    fn new(rows: usize, room: usize) -> Self {
        Counts { degrees: (0..rows).map(|_| AtomicU32::new(0)).collect(), all: AtomicUsize::new(0), room }
    }

    fn add(&self, row: usize, more: usize) {
        self.degrees[row].fetch_add(more as u32, Ordering::Relaxed);
    }

    /// Whether all that was found so far can be listed.
    fn fit(&self) -> bool {
        self.all.load(Ordering::Relaxed) <= self.room
    }
}

/// Counts the edges of a block's rows, and lists them as long as there is room for all.
fn list<T: Real>(
    desc: &Desc,
    a: &Side<T>,
    b: &Side<T>,
    (first, rows): (usize, usize),
    half: bool,
    found: &Counts,
) -> Vec<Vec<Edge>> {
    let mut listed = vec![Vec::new(); rows];
    let mut counts = vec![0usize; rows];
    for_tiles(desc, a, b, (first, rows), half, |tile| {
        let mut more = 0;
        let keep = found.fit();
        tile.for_edges(any, |r, edge| {
            more += 1;
            counts[r] += 1;
            if half {
                found.add(edge.0 as usize, 1);
            }
            if keep {
                listed[r].push(edge);
            }
        });
        found.all.fetch_add(more, Ordering::Relaxed);
        if !keep {
            listed = vec![Vec::new(); rows];
        }
    });
    for (r, count) in counts.into_iter().enumerate() {
        found.add(first + r, count);
    }
    listed
}

/// The k most similar of each row of a block.
fn most_similar<T: Real>(
    desc: &Desc,
    a: &Side<T>,
    b: &Side<T>,
    (first, rows): (usize, usize),
    k: usize,
) -> Vec<Vec<Edge>> {
    let mut best: Vec<Vec<Edge>> = vec![Vec::new(); rows];
    // What is below the least of k edges has no chance any more; of equals the smaller column stays, and columns rise.
    let mut floors = vec![desc.threshold; rows];
    for_tiles(desc, a, b, (first, rows), false, |tile| {
        tile.for_edges(|r| floors[r], |r, edge| best[r].push(edge));
        for (row, floor) in best.iter_mut().zip(&mut floors) {
            keep_top(row, k);
            if row.len() == k {
                *floor = row.iter().fold(f32::INFINITY, |least, &(_, w)| least.min(w));
            }
        }
    });
    best.iter_mut().for_each(Vec::shrink_to_fit);
    best
}

/// Calls `see` for the product of a block of rows with one block of columns after the other, from the first row on if only one half is wanted.
fn for_tiles<T: Real>(
    desc: &Desc,
    a: &Side<T>,
    b: &Side<T>,
    (first, rows): (usize, usize),
    half: bool,
    mut see: impl FnMut(&Tile<T>),
) {
    let depth = DEPTH.min(desc.f.max(1));
    let mut own = vec![T::of(0.0); rows * depth];
    let mut other = vec![T::of(0.0); COLS.min(desc.n) * depth];
    let mut product = vec![T::of(0.0); rows * COLS.min(desc.n)];
    let begin = if half { first } else { 0 };
    let mut column = begin;
    while column < desc.n {
        let cols = COLS.min(desc.n - column);
        let product = &mut product[..rows * cols];
        for done in (0..desc.f).step_by(depth) {
            let width = depth.min(desc.f - done);
            let (own, other) = (&mut own[..rows * width], &mut other[..cols * width]);
            vectorised(
                #[inline(always)]
                || {
                    // Rows that are taken whole are still there from the tile before.
                    if column == begin || width < desc.f {
                        a.normalised(first, (done, width), own);
                    }
                    b.normalised(column, (done, width), other);
                },
            );
            let keep = (done > 0).then_some(T::of(1.0));
            let (own, other) = (Mat::new(own, rows, width), Mat::new(other, cols, width).t());
            gemm_alone(MatMut::new(product, rows, cols), keep, own, other, T::of(1.0));
        }
        see(&Tile { desc, a, b, first, column, cols, half, product });
        column += cols;
    }
}

/// A block of the product of normalised rows.
struct Tile<'a, T> {
    desc: &'a Desc,
    a: &'a Side<'a, T>,
    b: &'a Side<'a, T>,
    /// Of the rows and of the columns, the first, and the number of columns.
    first: usize,
    column: usize,
    cols: usize,
    half: bool,
    product: &'a [T],
}

impl<T: Real> Tile<'_, T> {
    /// Calls `see` for every edge whose similarity is not below the floor of its row: the row, counted from the block's first, and the edge.
    /// Columns rise within a row.
    fn for_edges(&self, floor: impl Fn(usize) -> f32, mut see: impl FnMut(usize, Edge)) {
        let Tile { desc, a, b, first, column, half, .. } = *self;
        for (r, row) in self.product.chunks(self.cols).enumerate() {
            let low = T::of(f64::from(floor(r).max(desc.threshold) - desc.band()));
            scan(row, low, |c| {
                let (i, j) = (first + r, column + c);
                if desc.among && (j == i || half && j < i) || a.squares[i] == 0.0 || b.squares[j] == 0.0 {
                    return;
                }
                let clear = row[c].to_f64() > f64::from(desc.threshold + desc.band());
                let exact = if clear && !desc.weighted && desc.top_k.is_none() { 1.0 } else { similarity(a, i, b, j) };
                if clear || exact > desc.threshold {
                    see(r, (j as u32, exact));
                }
            });
        }
    }
}

/// No floor above the threshold.
fn any(_: usize) -> f32 {
    -1.0
}

/// Calls `see` for every column of a row of the product that is above `low`.
fn scan<T: Real>(row: &[T], low: T, mut see: impl FnMut(usize)) {
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

/// Compressed rows being put together, where they will stay.
struct Rows {
    offsets: Vec<i64>,
    max_degree: usize,
    indices: Tensor,
    /// Similarities, where edges have them.
    values: Option<Tensor>,
}

impl Rows {
    fn new(desc: &Desc, degrees: impl Iterator<Item = u32>) -> Result<Self> {
        let (mut offsets, mut max_degree) = (vec![0i64], 0);
        for degree in degrees {
            offsets.push(offsets[offsets.len() - 1] + i64::from(degree));
            max_degree = max_degree.max(degree as usize);
        }
        let edges = offsets[desc.v] as usize;
        let array = |dtype| Tensor::empty(&Device::cpu(), &[edges], dtype);
        let values = desc.weighted.then(|| array(DType::F32)).transpose()?;
        Ok(Rows { offsets, max_degree, indices: array(DType::I32)?, values })
    }

    fn held_values(&self) -> Result<Option<HostWrite<'_, f32>>> {
        self.values.as_ref().map(|values| values.write(OP)).transpose()
    }

    /// The listed edges of every row; with the mirror image of each if only one half was listed.
    fn put<'a>(&mut self, rows: impl Iterator<Item = (usize, &'a Vec<Edge>)> + Clone, half: bool) -> Result<()> {
        let (mut indices, mut values) = (self.indices.write::<i32>(OP)?, self.held_values()?);
        let mut next = self.offsets.clone();
        let mut put = |row: usize, column: usize, weight: f32| {
            let at = next[row] as usize;
            next[row] += 1;
            indices[at] = column as i32;
            if let Some(values) = &mut values {
                values[at] = weight;
            }
        };
        if half {
            // Smaller neighbours first, in their order, then the larger ones: rows come out sorted.
            for (i, found) in rows.clone() {
                found.iter().for_each(|&(j, w)| put(j as usize, i, w));
            }
        }
        for (i, found) in rows {
            found.iter().for_each(|&(j, w)| put(i, j as usize, w));
        }
        Ok(())
    }

    /// Runs the product again, each row beside all columns, and puts the edges at once. Each block of rows has its own stretch of the arrays.
    fn put_again<T: Real>(&mut self, desc: &Desc, a: &Side<T>, b: &Side<T>) -> Result<()> {
        let (mut indices, mut values) = (self.indices.write::<i32>(OP)?, self.held_values()?);
        let (mut indices, mut values) = (&mut indices[..], values.as_deref_mut());
        let offsets = &self.offsets;
        let mut stretches = Vec::new();
        for first in (0..desc.v).step_by(ROWS) {
            let rows = ROWS.min(desc.v - first);
            let edges = (offsets[first + rows] - offsets[first]) as usize;
            let own = indices.split_off_mut(..edges).unwrap_or_default();
            let weights = values.as_mut().and_then(|values| values.split_off_mut(..edges));
            stretches.push((first, rows, own, weights));
        }
        stretches.into_par_iter().with_max_len(1).for_each(|(first, rows, indices, mut values)| {
            let mut next: Vec<usize> = (0..rows).map(|r| (offsets[first + r] - offsets[first]) as usize).collect();
            for_tiles(desc, a, b, (first, rows), false, |tile| {
                tile.for_edges(any, |r, (column, weight)| {
                    indices[next[r]] = column as i32;
                    if let Some(values) = &mut values {
                        values[next[r]] = weight;
                    }
                    next[r] += 1;
                });
            });
        });
        Ok(())
    }

    fn finish(self, desc: &Desc) -> Result<Csr> {
        let pattern = Pattern {
            rows: desc.v,
            edges: self.indices.numel(),
            max_degree: self.max_degree,
            offsets: offsets_tensor(&Device::cpu(), &self.offsets)?,
            indices: self.indices,
            order: None,
        };
        Ok(Csr::trusted(desc.n, pattern, self.values))
    }
}

/// As narrow as they may be.
fn offsets_tensor(device: &Device, offsets: &[i64]) -> Result<Tensor> {
    let last = offsets.last().map_or(0, |&last| last as usize);
    if Width::Fitting.dtype(last) == DType::I64 {
        return Tensor::from_slice(device, &[offsets.len()], offsets);
    }
    let narrow: Vec<i32> = offsets.iter().map(|&o| o as i32).collect();
    Tensor::from_slice(device, &[offsets.len()], &narrow)
}
