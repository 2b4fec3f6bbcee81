//! The reference: each row edge by edge, in registers for blocks of columns.

use super::{By, Divide, Gather, OP, Reduce};
use crate::autograd::Target;
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::Ints;
use crate::ops::host::{In, Out, Real};
use crate::ops::rows::{RowSlices, for_graph_rows, nothing};
use crate::tensor::Tensor;

/// Columns that are added up side by side: four of the widest registers for `f32`.
const BLOCK: usize = 64;

/// The operands of a gather, read.
struct Operands<'a, T: Real> {
    offsets: Ints<'a>,
    indices: Ints<'a>,
    order: Option<Ints<'a>>,
    weights: Option<In<'a, T>>,
    degrees: Option<Ints<'a>>,
    heads: usize,
    by: By,
}

impl<'a, T: Real> Operands<'a, T> {
    fn of(gather: &'a Gather) -> Result<Self> {
        let pattern = gather.pattern;
        let degrees = match gather.divide {
            Divide::Gathered(offsets) => Some(Ints::of(OP, offsets)?),
            _ => None,
        };
        Ok(Operands {
            offsets: Ints::of(OP, &pattern.offsets)?,
            indices: Ints::of(OP, &pattern.indices)?,
            order: pattern.order.as_ref().map(|o| Ints::of(OP, o)).transpose()?,
            weights: gather.weights.map(|w| In::of(OP, w)).transpose()?,
            degrees,
            heads: gather.heads,
            by: gather.by,
        })
    }

    #[inline(always)]
    fn number(&self, e: usize) -> usize {
        self.order.as_ref().map_or(e, |order| order.at(e))
    }

    /// The row of x that edge e gathers.
    #[inline(always)]
    fn gathered(&self, e: usize) -> usize {
        match self.by {
            By::Nodes => self.indices.at(e),
            By::Edges => self.number(e),
        }
    }

    /// Factor of edge e, which gathers row j.
    #[inline(always)]
    fn factor(&self, e: usize, j: usize, head: usize) -> T {
        let s = self.weights.as_ref().map_or(T::of(1.0), |w| w[self.number(e) * self.heads + head]);
        self.degrees.as_ref().map_or(s, |offsets| s / T::of((offsets.at(j + 1) - offsets.at(j)) as f64))
    }
}

pub fn sum<T: Real>(gather: &Gather, target: &Target) -> Result<()> {
    let operands = Operands::<T>::of(gather)?;
    let x = In::<T>::of(OP, gather.x)?;
    let x: &[T] = &x;
    let picked = gather.picked.map(|p| Ints::of(OP, p)).transpose()?;
    let mut out = Out::<T>::into(OP, target)?;
    let (f, d, add) = (gather.f(), gather.f() / gather.heads, target.accumulate);
    let mean = matches!(gather.divide, Divide::Row);
    let rows = RowSlices { values: &mut out[..], begins: |row| row * f };
    let shape = (&operands.offsets, gather.pattern.rows, gather.pattern.edges);
    for_graph_rows(
        shape,
        f,
        rows,
        nothing(),
        #[inline(always)]
        |row, y, _| {
            let (first, last) = (operands.offsets.at(row), operands.offsets.at(row + 1));
            let by = if mean { T::of((last - first).max(1) as f64) } else { T::of(1.0) };
            for (head, y) in y.chunks_mut(d.max(1)).enumerate() {
                for (block, y) in y.chunks_mut(BLOCK).enumerate() {
                    let column = head * d + block * BLOCK;
                    if let (Ok(y), None) = (<&mut [T; BLOCK]>::try_from(&mut *y), &picked) {
                        let sums = whole_block(&operands, (x, f), (head, column), first..last);
                        for c in 0..BLOCK {
                            let value = if mean { sums[c] / by } else { sums[c] };
                            y[c] = if add { y[c] + value } else { value };
                        }
                        continue;
                    }
                    let mut sums = [T::of(0.0); BLOCK];
                    for e in first..last {
                        let j = operands.gathered(e);
                        let s = operands.factor(e, j, head);
                        let from = &x[j * f + column..][..y.len()];
                        for c in 0..from.len() {
                            let counts = match &picked {
                                Some(picked) => picked.at(j * f + column + c) == operands.number(e),
                                None => true,
                            };
                            if counts {
                                sums[c] += s * from[c];
                            }
                        }
                    }
                    for c in 0..y.len() {
                        let value = if mean { sums[c] / by } else { sums[c] };
                        y[c] = if add { y[c] + value } else { value };
                    }
                }
            }
        },
    );
    out.finish()
}

/// The sums of a whole block of columns: loops of known length over an array that nothing else indexes, which stays in registers.
#[inline(always)]
fn whole_block<T: Real>(
    operands: &Operands<T>,
    (x, f): (&[T], usize),
    (head, column): (usize, usize),
    edges: std::ops::Range<usize>,
) -> [T; BLOCK] {
    let mut sums = [T::of(0.0); BLOCK];
    for e in edges {
        let j = operands.gathered(e);
        let s = operands.factor(e, j, head);
        let Some(from) = x[j * f + column..].first_chunk::<BLOCK>() else {
            unreachable!("a whole block of columns lies within a row")
        };
        for c in 0..BLOCK {
            sums[c] += s * from[c];
        }
    }
    sums
}

pub fn extremum<T: Real>(gather: &Gather, reduce: Reduce, y: &Tensor, picked: &Tensor) -> Result<()> {
    if picked.dtype() == DType::I64 {
        let mut picked = picked.write::<i64>(OP)?;
        return extremum_into::<T, i64>(gather, reduce, y, &mut picked, -1, |e| e as i64);
    }
    let mut picked = picked.write::<i32>(OP)?;
    extremum_into::<T, i32>(gather, reduce, y, &mut picked, -1, |e| e as i32)
}

fn extremum_into<T: Real, I: Copy + Send + Sync + PartialEq>(
    gather: &Gather,
    reduce: Reduce,
    y: &Tensor,
    picked: &mut [I],
    none: I,
    number: impl Fn(usize) -> I + Sync,
) -> Result<()> {
    let operands = Operands::<T>::of(gather)?;
    let x = In::<T>::of(OP, gather.x)?;
    let x: &[T] = &x;
    let mut out = Out::<T>::of(OP, y)?;
    let (f, d) = (gather.f(), gather.f() / gather.heads);
    let lowest = reduce == Reduce::Min;
    let rows = RowSlices { values: &mut out[..], begins: |row| row * f };
    let args = RowSlices { values: picked, begins: |row| row * f };
    let shape = (&operands.offsets, gather.pattern.rows, gather.pattern.edges);
    for_graph_rows(
        shape,
        f,
        rows,
        args,
        #[inline(always)]
        |row, y, args| {
            y.fill(T::of(0.0));
            args.fill(none);
            for e in operands.offsets.at(row)..operands.offsets.at(row + 1) {
                let j = operands.gathered(e);
                let own = number(operands.number(e));
                for head in 0..operands.heads {
                    let s = operands.factor(e, j, head);
                    for c in head * d..(head + 1) * d {
                        let v = s * x[j * f + c];
                        let better = if lowest { v < y[c] } else { v > y[c] };
                        // The first of equals stays, and so does a NaN, which alone is not equal to itself.
                        if args[c] == none || (is_number(y[c]) && (better || !is_number(v))) {
                            (y[c], args[c]) = (v, own);
                        }
                    }
                }
            }
        },
    );
    out.finish()
}

#[inline(always)]
fn is_number<T: Real>(v: T) -> bool {
    v.partial_cmp(&v).is_some()
}
