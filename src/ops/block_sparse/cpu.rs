//! The reference: tiles of sums over a line's blocks, shared out so that threads have equal work whatever the rows look like.

mod panels;
mod stored;

use rayon::prelude::*;

use self::panels::{COLS, Panels, ROWS, tile};
use self::stored::{Held, Stored, View};
use super::desc::{Dense, Sampled, Side};
use crate::autograd::Target;
use crate::device::MatMut;
use crate::error::Result;
use crate::ops::host::{Out, Real};
use crate::tensor::Tensor;
use crate::tensor::block_sparse::{DIRECT, Item, Topology};

pub fn dense<T: Real>(desc: &Dense, values: &Tensor, dense: &Tensor, target: &Target) -> Result<()> {
    let dense = Held::<T>::of(desc.op, dense)?;
    let mut out = Out::<T>::into(desc.op, target)?;
    stored_into(desc, values, dense.stored(), &mut out, target.accumulate)?;
    out.finish()
}

/// As [`dense`] on slices: added to `out` if `keep`.
pub fn dense_into<T: Real>(desc: &Dense, values: &Tensor, dense: &[T], out: &mut [T], keep: bool) -> Result<()> {
    stored_into(desc, values, Stored::Wide(dense), out, keep)
}

fn stored_into<T: Real>(
    desc: &Dense,
    values: &Tensor,
    operand: Stored<'_, T>,
    out: &mut [T],
    keep: bool,
) -> Result<()> {
    let values = Held::<T>::of(desc.op, values)?;
    let [lines, depth] = desc.lines_and_depth();
    let call = Call { desc, values: values.stored(), operand, lines, depth, keep };
    match desc.side {
        Side::Right => call.right(out),
        Side::Left => call.left(out),
    }
    Ok(())
}

/// One product on slices.
struct Call<'a, T> {
    desc: &'a Dense,
    values: Stored<'a, T>,
    operand: Stored<'a, T>,
    lines: usize,
    depth: usize,
    keep: bool,
}

impl<T: Real> Call<'_, T> {
    /// Y `[m, lines]`: threads share the rows of D, so that all have every block to do.
    fn right(&self, out: &mut [T]) {
        let (b, m, lines) = (self.desc.pattern.block(), self.desc.m, self.lines);
        let rows = self.operand(ROWS);
        let values = self.values(COLS);
        let offsets = self.offsets();
        let rows_each = m.div_ceil(8).next_multiple_of(ROWS).min(32 * ROWS);
        out.par_chunks_mut(rows_each * lines).enumerate().for_each(|(chunk, out)| {
            let (first, count) = (chunk * rows_each / ROWS, out.len() / lines);
            for left in (0..lines).step_by(COLS) {
                let (line, panel) = (left / b, left % b / COLS);
                let blocks = offsets[line] as usize..offsets[line + 1] as usize;
                for top in (0..count).step_by(ROWS) {
                    let stretch = |i: usize| {
                        let (e, at, len) = self.block(blocks.start + i);
                        (rows.steps(0, first + top / ROWS, (at, len)), values.steps(e, panel, (0, len)))
                    };
                    let to = place(&mut out[top * lines + left..], [count - top, lines - left], lines);
                    tile(blocks.len(), stretch, to, self.keep, T::of(self.desc.scale));
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
        let columns = self.operand(COLS);
        let values = self.values(ROWS);
        tasks.into_par_iter().for_each(|(item, out)| {
            let (_, height) = self.line(item.line);
            let keep = self.keep && item.piece == DIRECT;
            for left in (0..m).step_by(COLS) {
                for top in (0..height).step_by(ROWS) {
                    let stretch = |i: usize| {
                        let (e, at, len) = self.block(item.first as usize + i);
                        (values.steps(e, top / ROWS, (0, len)), columns.steps(0, left / COLS, (at, len)))
                    };
                    let to = place(&mut out[top * m + left..], [height - top, m - left], m);
                    tile(item.count as usize, stretch, to, keep, T::of(self.desc.scale));
                }
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

    /// Where each line's blocks begin.
    fn offsets(&self) -> &[u32] {
        let topology = self.desc.pattern.topology();
        if self.desc.by_column() { topology.t_offsets() } else { topology.row_offsets() }
    }

    /// The block at `p` of the lines' order, and where and how far it reaches along the sum.
    fn block(&self, p: usize) -> (usize, usize, usize) {
        let (b, topology) = (self.desc.pattern.block(), self.desc.pattern.topology());
        let (e, other) = if self.desc.by_column() {
            (topology.t_blocks()[p] as usize, topology.t_rows()[p])
        } else {
            (p, topology.columns()[p])
        };
        let at = other as usize * b;
        (e, at, b.min(self.depth - at))
    }

    /// The dense operand, with its rows along the sum.
    fn operand(&self, width: usize) -> Panels<T> {
        let m = self.desc.m;
        let along = self.desc.dense_t == (self.desc.side == Side::Left);
        let view = View::new(0, m, if along { self.depth } else { m }, along);
        Panels::of(self.operand, 1, [self.depth, m], width, |_| view)
    }

    /// The blocks, each with its rows along the sum and its columns along the line.
    fn values(&self, width: usize) -> Panels<T> {
        let (b, along) = (self.desc.pattern.block(), !self.desc.by_column());
        Panels::of(self.values, self.desc.pattern.nnz(), [b, b], width, |e| View::new(e * b * b, b, b, along))
    }
}

/// Where a tile goes, of an output of which `rest` rows and columns are left.
fn place<T>(data: &mut [T], rest: [usize; 2], row_stride: usize) -> MatMut<'_, T> {
    MatMut { data, rows: rest[0].min(ROWS), cols: rest[1].min(COLS), row_stride }
}

pub fn sampled<T: Real>(desc: &Sampled, a: &Tensor, b: &Tensor, target: &Target) -> Result<()> {
    let mut out = Out::<T>::into(desc.op, target)?;
    let operands = Operands::<T>::new(desc, a, b)?;
    let (topology, edge) = (desc.pattern.topology(), desc.pattern.block());
    out.par_chunks_mut(edge * edge).enumerate().for_each(|(e, block)| {
        operands.block(topology, e, target.accumulate, block, T::of(desc.scale));
    });
    out.finish()
}

/// Tokens of a panel that a tile takes at a time: what all tiles of a block read of B stays in the first-level cache.
const TOKENS: usize = 256;

/// op(A) `[n, m]` and op(B) `[m, k]` of a sampled product.
pub(crate) struct Operands<T> {
    /// By rows of blocks.
    a: Panels<T>,
    b: Panels<T>,
    m: usize,
}

impl<T: Real> Operands<T> {
    pub fn new(desc: &Sampled, a: &Tensor, b: &Tensor) -> Result<Self> {
        let (a, b) = (Held::of(desc.op, a)?, Held::of(desc.op, b)?);
        let ([n, k], m, edge) = (desc.pattern.shape(), desc.m, desc.pattern.block());
        // Both with their rows along m.
        let row_of_blocks = |i: usize| {
            let (start, cols) = (i * edge, edge.min(n - i * edge));
            if desc.a_t { View::new(start, cols, n, false) } else { View::new(start * m, cols, m, true) }
        };
        let columns = View::new(0, k, if desc.b_t { m } else { k }, desc.b_t);
        Ok(Operands {
            a: Panels::of(a.stored(), n.div_ceil(edge), [m, edge], ROWS, row_of_blocks),
            b: Panels::of(b.stored(), 1, [m, k], COLS, |_| columns),
            m,
        })
    }

    /// Block e of the product, `out [b, b]`. What lies beyond the edge becomes zero, unless it is kept.
    pub fn block(&self, topology: &Topology, e: usize, keep: bool, out: &mut [T], scale: T) {
        let ([n, k], b) = (topology.shape(), topology.block());
        let (row, column) = (topology.rows()[e] as usize, topology.columns()[e] as usize);
        let (rows, cols) = (b.min(n - row * b), b.min(k - column * b));
        if !keep {
            out.fill(T::of(0.0));
        }
        for start in (0..self.m).step_by(TOKENS) {
            let tokens = (start, TOKENS.min(self.m - start));
            for left in (0..cols).step_by(COLS) {
                for top in (0..rows).step_by(ROWS) {
                    let panel = (column * b + left) / COLS;
                    let stretch = |_| (self.a.steps(row, top / ROWS, tokens), self.b.steps(0, panel, tokens));
                    let to = place(&mut out[top * b + left..], [rows - top, cols - left], b);
                    tile(1, stretch, to, true, scale);
                }
            }
        }
    }
}
