//! The reference: blocks of rows, added in order.

use rayon::prelude::*;

use super::{Desc, OP};
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows, vectorised};
use crate::tensor::Tensor;

pub fn run<T: Real>(desc: &Desc, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { batch, rows, cols, .. } = *desc;
    let x = In::<T>::of(OP, x)?;
    let mut out = Out::<T>::into(OP, target)?;
    let scale = T::of(desc.scale);
    for b in 0..batch {
        let part = &x[b * rows * cols..(b + 1) * rows * cols];
        ordered(
            rows,
            &mut out[b * cols..(b + 1) * cols],
            target.accumulate,
            scale,
            #[inline(always)]
            |row, first, sums| {
                let from = &part[row * cols + first..];
                for (s, &v) in sums.iter_mut().zip(from) {
                    *s += v;
                }
            },
        );
    }
    out.finish()
}

/// Rows that are added one by one before their sum joins the others.
const BLOCK: usize = 256;
/// Columns that one thread takes while their running sums stay in the first-level cache.
const TILE: usize = 1024;

/// `out[c] (+)= scale · Σ_row term(row, c)`. `add(row, first, sums)` adds the terms of columns `first ..` to `sums`; make it
/// `#[inline(always)]`. Work is split by columns or by blocks of rows, whichever there are more of; the bits are the same.
pub(crate) fn ordered<T: Real>(
    rows: usize,
    out: &mut [T],
    accumulate: bool,
    scale: T,
    add: impl Fn(usize, usize, &mut [T]) + Sync,
) {
    let (cols, blocks) = (out.len(), rows.div_ceil(BLOCK));
    let block_sum = |block: usize, first: usize, sums: &mut [T]| {
        vectorised(
            #[inline(always)]
            || {
                for row in block * BLOCK..rows.min((block + 1) * BLOCK) {
                    add(row, first, sums);
                }
            },
        )
    };
    let finish = |out: &mut [T], total: &[T]| {
        for (o, &t) in out.iter_mut().zip(total) {
            *o = if accumulate { *o + scale * t } else { scale * t };
        }
    };
    let by_columns = |tile: usize, out: &mut [T]| {
        let (mut total, mut sums) = ([T::of(0.0); TILE], [T::of(0.0); TILE]);
        let width = out.len();
        for block in 0..blocks {
            sums[..width].fill(T::of(0.0));
            block_sum(block, tile * TILE, &mut sums[..width]);
            for (t, &s) in total.iter_mut().zip(&sums[..width]) {
                *t += s;
            }
        }
        finish(out, &total[..width]);
    };
    let tiles = cols.div_ceil(TILE);
    // Two thousand elements are too few to wake another thread for.
    if rows * cols < 32 * BLOCK || tiles.max(blocks) == 1 {
        for (tile, out) in out.chunks_mut(TILE).enumerate() {
            by_columns(tile, out);
        }
    } else if tiles >= blocks {
        out.par_chunks_mut(TILE).enumerate().for_each(|(tile, out)| by_columns(tile, out));
    } else {
        let mut partial = vec![T::of(0.0); blocks * cols];
        partial.par_chunks_mut(cols).enumerate().for_each(|(block, sums)| block_sum(block, 0, sums));
        let mut total = vec![T::of(0.0); cols];
        for sums in partial.chunks(cols) {
            for (t, &s) in total.iter_mut().zip(sums) {
                *t += s;
            }
        }
        for_rows(out, cols, |_, out| finish(out, &total));
    }
}
