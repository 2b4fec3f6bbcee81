//! The inner loop of every product here: both operands in panels, and a tile of sums that stays in registers from a line's first block
//! to its last.
//!
//! ```text
//!                              B, a panel of 16 columns    
//!                              +--------------------------+
//!                         p -> |##########################|   one step: a row of the panel, as vectors,
//!                              |                          |
//!      A, a panel of 6 rows    +--------------------------+
//!      +------------------+    +--------------------------+
//!      |     #            |    |                          |   times six numbers of A, each to all lanes,
//!      |     #            |    |      sums [6][16]        |   added to six rows of sums
//!      +------------------+    +--------------------------+
//!            p
//! ```
//!
//! A panel keeps what one step reads side by side, `[depth][width]`, so that a tile reads two streams from front to back whatever the
//! operands' layout, and several blocks of a line are several stretches of them. Packing moves each element once in a call.

use rayon::prelude::*;

use super::stored::{Stored, View};
use crate::device::MatMut;
use crate::ops::host::{Real, fuses, vectorised};

/// Extents of a tile. With one register of 16 `f32` in a row, or two of 8, six rows are about as many sums as a core has under way, and
/// with the operands fit into sixteen registers. A block's edge is whole rows of 16.
pub(in crate::ops::block_sparse) const ROWS: usize = 6;
pub(in crate::ops::block_sparse) const COLS: usize = 16;

/// Matrices of `depth` rows, cut into panels of `width` columns: `[matrix][panel][depth][width]`, zero where a matrix ends earlier.
pub(in crate::ops::block_sparse) struct Panels<T> {
    data: Vec<T>,
    panels: usize,
    depth: usize,
    width: usize,
}

impl<T: Real> Panels<T> {
    /// Of `count` matrices of `[depth, at most cols]`.
    pub fn of(
        stored: Stored<'_, T>,
        count: usize,
        [depth, cols]: [usize; 2],
        width: usize,
        matrix: impl Fn(usize) -> View + Sync,
    ) -> Self {
        let panels = cols.div_ceil(width);
        let mut data = vec![T::of(0.0); count * panels * depth * width];
        data.par_chunks_mut((depth * width).max(1)).enumerate().for_each(|(i, to)| {
            stored.fill(to, width, matrix(i / panels), i % panels * width);
        });
        Panels { data, panels, depth, width }
    }

    /// `len` steps from `start` of one panel.
    pub fn steps(&self, matrix: usize, panel: usize, (start, len): (usize, usize)) -> &[T] {
        let first = (matrix * self.panels + panel) * self.depth + start;
        &self.data[first * self.width..(first + len) * self.width]
    }
}

/// `out = scale · Σ A B` over `count` stretches of a panel of A and one of B, added to what `out` holds if `keep`. The sum goes from
/// step to step in their order.
pub(in crate::ops::block_sparse) fn tile<'a, T: Real>(
    count: usize,
    stretch: impl Fn(usize) -> (&'a [T], &'a [T]),
    out: MatMut<'_, T>,
    keep: bool,
    scale: T,
) {
    if fuses() {
        vectorised(
            #[inline(always)]
            || sum::<T, true>(count, stretch, out, keep, scale),
        );
    } else {
        vectorised(
            #[inline(always)]
            || sum::<T, false>(count, stretch, out, keep, scale),
        );
    }
}

#[inline(always)]
fn sum<'a, T: Real, const FUSED: bool>(
    count: usize,
    stretch: impl Fn(usize) -> (&'a [T], &'a [T]),
    out: MatMut<'_, T>,
    keep: bool,
    scale: T,
) {
    let mut sums = [[T::of(0.0); COLS]; ROWS];
    for i in 0..count {
        let (a, b) = stretch(i);
        for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b.as_chunks::<COLS>().0) {
            for r in 0..ROWS {
                for c in 0..COLS {
                    sums[r][c] = if FUSED { a[r].mul_add(b[c], sums[r][c]) } else { a[r] * b[c] + sums[r][c] };
                }
            }
        }
    }
    for (row, sums) in out.data.chunks_mut(out.row_stride).take(out.rows).zip(&sums) {
        for (o, &sum) in row[..out.cols].iter_mut().zip(sums) {
            *o = if keep { *o + scale * sum } else { scale * sum };
        }
    }
}
