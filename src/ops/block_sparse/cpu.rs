//! The reference: one small `gemm` for each block, shared out so that threads have equal work whatever the rows look like.

use rayon::prelude::*;

use super::desc::{Dense, Sampled, Side};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm_alone};
use crate::error::Result;
use crate::ops::host::{In, Out, Real};
use crate::tensor::Tensor;
use crate::tensor::block_sparse::{DIRECT, Item, Topology};

pub fn dense<T: Real>(desc: &Dense, values: &Tensor, dense: &Tensor, target: &Target) -> Result<()> {
    let dense = In::<T>::of(desc.op, dense)?;
    let mut out = Out::<T>::into(desc.op, target)?;
    dense_into(desc, values, &dense, &mut out, target.accumulate)?;
    out.finish()
}

/// As [`dense`] on slices: added to `out` if `keep`.
pub fn dense_into<T: Real>(desc: &Dense, values: &Tensor, dense: &[T], out: &mut [T], keep: bool) -> Result<()> {
    let values = In::<T>::of(desc.op, values)?;
    let [lines, depth] = desc.lines_and_depth();
    // op(D), as the product reads it.
    let stored = if desc.dense_t == (desc.side == Side::Left) {
        Mat::new(dense, desc.m, depth)
    } else {
        Mat::new(dense, depth, desc.m)
    };
    let operand = if desc.dense_t { stored.t() } else { stored };
    let call = Call { desc, values: &values, operand, lines, depth, keep };
    match desc.side {
        Side::Right => call.right(out),
        Side::Left => call.left(out),
    }
    Ok(())
}

/// One product on slices.
struct Call<'a, T> {
    desc: &'a Dense,
    values: &'a [T],
    operand: Mat<'a, T>,
    lines: usize,
    depth: usize,
    keep: bool,
}

impl<T: Real> Call<'_, T> {
    /// Y `[m, lines]`: threads share the rows of D, so that all have every block to do.
    fn right(&self, out: &mut [T]) {
        let rows_each = self.desc.m.div_ceil(8).next_multiple_of(16).min(256);
        out.par_chunks_mut(rows_each * self.lines).enumerate().for_each(|(chunk, out)| {
            let rows = out.len() / self.lines;
            if !self.keep {
                out.fill(T::of(0.0));
            }
            let operand = part(self.operand, (chunk * rows_each, rows), (0, self.depth));
            for item in &self.desc.pattern.schedule(self.desc.by_column()).items {
                let (start, width) = self.line(item.line);
                for (value, at, len) in self.blocks(item, width) {
                    let left = part(operand, (0, rows), (at, len));
                    let right = if self.desc.by_column() { value } else { value.t() };
                    let to = MatMut { data: &mut out[start..], rows, cols: width, row_stride: self.lines };
                    gemm_alone(to, Some(T::of(1.0)), left, right, T::of(self.desc.scale));
                }
            }
        });
    }

    /// Y `[lines, m]`: threads share the items of the schedule. Pieces of long lines are computed aside and added in order.
    fn left(&self, out: &mut [T]) {
        let (b, m) = (self.desc.pattern.block(), self.desc.m);
        let schedule = self.desc.pattern.schedule(self.desc.by_column());
        let mut aside = vec![T::of(0.0); schedule.pieces * b * m];
        let mut lines: Vec<Option<&mut [T]>> = out.chunks_mut(b * m).map(Some).collect();
        let mut pieces: Vec<Option<&mut [T]>> = aside.chunks_mut(b * m).map(Some).collect();
        let tasks: Vec<(&Item, &mut [T])> = schedule
            .items
            .iter()
            .filter_map(|item| {
                let slot = if item.piece == DIRECT {
                    &mut lines[item.line as usize]
                } else {
                    &mut pieces[item.piece as usize]
                };
                Some((item, slot.take()?))
            })
            .collect();
        tasks.into_par_iter().for_each(|(item, out)| {
            let (_, height) = self.line(item.line);
            if !self.keep || item.piece != DIRECT {
                out.fill(T::of(0.0));
            }
            for (value, at, len) in self.blocks(item, height) {
                let left = if self.desc.by_column() { value.t() } else { value };
                let right = part(self.operand, (at, len), (0, m));
                gemm_alone(MatMut::new(out, height, m), Some(T::of(1.0)), left, right, T::of(self.desc.scale));
            }
        });
        for joint in &schedule.joints {
            let (start, height) = self.line(joint.line);
            let line = &mut out[start * m..(start + height) * m];
            if !self.keep {
                line.fill(T::of(0.0));
            }
            for piece in joint.first..joint.first + joint.count {
                for (o, &v) in line.iter_mut().zip(&aside[piece as usize * b * m..]) {
                    *o += v;
                }
            }
        }
    }

    /// First element and extent of a line.
    fn line(&self, line: u32) -> (usize, usize) {
        let (b, start) = (self.desc.pattern.block(), line as usize * self.desc.pattern.block());
        (start, b.min(self.lines - start))
    }

    /// The blocks of an item: values as stored, cut at the matrix's edge, and where and how far they reach along the sum.
    fn blocks(&self, item: &Item, extent: usize) -> impl Iterator<Item = (Mat<'_, T>, usize, usize)> {
        let (b, topology, by_column) = (self.desc.pattern.block(), self.desc.pattern.topology(), self.desc.by_column());
        (item.first as usize..(item.first + item.count) as usize).map(move |p| {
            let (e, other) = if by_column {
                (topology.t_blocks()[p] as usize, topology.t_rows()[p])
            } else {
                (p, topology.columns()[p])
            };
            let at = other as usize * b;
            let len = b.min(self.depth - at);
            let (rows, cols) = if by_column { (len, extent) } else { (extent, len) };
            (part(block_of(self.values, e, b), (0, rows), (0, cols)), at, len)
        })
    }
}

fn block_of<T>(values: &[T], e: usize, b: usize) -> Mat<'_, T> {
    Mat::new(&values[e * b * b..(e + 1) * b * b], b, b)
}

/// `rows` rows from `top` and `cols` columns from `left`.
pub(crate) fn part<T>(m: Mat<'_, T>, (top, rows): (usize, usize), (left, cols): (usize, usize)) -> Mat<'_, T> {
    let start = if rows == 0 || cols == 0 { 0 } else { top * m.row_stride + left * m.col_stride };
    Mat { data: &m.data[start..], rows, cols, ..m }
}

pub fn sampled<T: Real>(desc: &Sampled, a: &Tensor, b: &Tensor, target: &Target) -> Result<()> {
    let (a, b) = (In::<T>::of(desc.op, a)?, In::<T>::of(desc.op, b)?);
    let mut out = Out::<T>::into(desc.op, target)?;
    let operands = Operands::new(desc, &a, &b);
    let (topology, edge) = (desc.pattern.topology(), desc.pattern.block());
    out.par_chunks_mut(edge * edge).enumerate().for_each(|(e, block)| {
        operands.block(topology, e, target.accumulate.then(|| T::of(1.0)), block, T::of(desc.scale));
    });
    out.finish()
}

/// op(A) `[n, m]` and op(B) `[m, k]` of a sampled product.
pub(crate) struct Operands<'a, T> {
    a: Mat<'a, T>,
    b: Mat<'a, T>,
}

impl<'a, T: Real> Operands<'a, T> {
    pub fn new(desc: &Sampled, a: &'a [T], b: &'a [T]) -> Self {
        let ([n, k], m) = (desc.pattern.shape(), desc.m);
        Operands {
            a: if desc.a_t { Mat::new(a, m, n).t() } else { Mat::new(a, n, m) },
            b: if desc.b_t { Mat::new(b, k, m).t() } else { Mat::new(b, m, k) },
        }
    }

    /// Block e of the product, `out [b, b]`. What lies beyond the edge becomes zero.
    pub fn block(&self, topology: &Topology, e: usize, keep: Option<T>, out: &mut [T], scale: T) {
        let ([n, k], b, m) = (topology.shape(), topology.block(), self.a.cols);
        let (top, left) = (topology.rows()[e] as usize * b, topology.columns()[e] as usize * b);
        let (rows, cols) = (b.min(n - top), b.min(k - left));
        if keep.is_none() && (rows < b || cols < b) {
            out.fill(T::of(0.0));
        }
        let (a, right) = (part(self.a, (top, rows), (0, m)), part(self.b, (0, m), (left, cols)));
        gemm_alone(MatMut { data: out, rows, cols, row_stride: b }, keep, a, right, scale);
    }
}
