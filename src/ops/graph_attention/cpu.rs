//! The reference: each row's scores twice, for their maximum and for the sum; nothing an edge wide is kept forward.

use super::{Desc, OP, Operands, Slopes};
use crate::error::Result;
use crate::graph::{Csr, Ints};
use crate::ops::host::{In, Out, Real};
use crate::ops::lanes::dot;
use crate::ops::rows::{RowSlices, for_graph_rows};
use crate::tensor::Tensor;

#[inline(always)]
fn leaky<T: Real>(z: T, slope: T) -> T {
    if z > T::of(0.0) { z } else { slope * z }
}

pub fn forward<T: Real>(desc: &Desc, graph: &Csr, operands: &Operands, y: &Tensor, lse: &Tensor) -> Result<()> {
    let (offsets, indices) = (Ints::of(OP, graph.offsets())?, Ints::of(OP, graph.indices())?);
    let left = In::<T>::of(OP, operands.left)?;
    let right = In::<T>::of(OP, operands.right)?;
    let x = In::<T>::of(OP, operands.x)?;
    let (left, right, x): (&[T], &[T], &[T]) = (&left, &right, &x);
    let (mut y, mut lse) = (Out::<T>::of(OP, y)?, Out::<T>::of(OP, lse)?);
    let (f, h, slope) = (desc.f, desc.heads, T::of(desc.slope));
    let d = f / h;
    let rows = RowSlices { values: &mut y[..], begins: |row| row * f };
    let sums = RowSlices { values: &mut lse[..], begins: |row| row * h };
    for_graph_rows(
        (&offsets, desc.v, desc.e),
        f,
        rows,
        sums,
        #[inline(always)]
        |row, y, lse| {
            let (first, last) = (offsets.at(row), offsets.at(row + 1));
            y.fill(T::of(0.0));
            for head in 0..h {
                let score = |e: usize| leaky(left[row * h + head] + right[indices.at(e) * h + head], slope);
                let mut most = T::of(f64::NEG_INFINITY);
                for e in first..last {
                    most = most.maximum(score(e));
                }
                let mut sum = T::of(0.0);
                let y = &mut y[head * d..(head + 1) * d];
                for e in first..last {
                    let w = (score(e) - most).exp();
                    sum += w;
                    let from = &x[indices.at(e) * f + head * d..][..d];
                    for c in 0..d {
                        y[c] += w * from[c];
                    }
                }
                if first < last {
                    for v in y {
                        *v = *v / sum;
                    }
                }
                lse[head] = most + sum.ln();
            }
        },
    );
    y.finish()?;
    lse.finish()
}

pub fn edges<T: Real>(desc: &Desc, graph: &Csr, operands: &Operands, slopes: &Slopes) -> Result<()> {
    let (offsets, indices) = (Ints::of(OP, graph.offsets())?, Ints::of(OP, graph.indices())?);
    let left = In::<T>::of(OP, operands.left)?;
    let right = In::<T>::of(OP, operands.right)?;
    let x = In::<T>::of(OP, operands.x)?;
    let (left, right, x): (&[T], &[T], &[T]) = (&left, &right, &x);
    let (y, dy, lse) = (In::<T>::of(OP, slopes.y)?, In::<T>::of(OP, slopes.dy)?, In::<T>::of(OP, slopes.lse)?);
    let (y, dy, lse): (&[T], &[T], &[T]) = (&y, &dy, &lse);
    let (mut alpha, mut dz) = (Out::<T>::of(OP, slopes.alpha)?, Out::<T>::of(OP, slopes.dz)?);
    let (f, h, slope) = (desc.f, desc.heads, T::of(desc.slope));
    let d = f / h;
    let weights = RowSlices { values: &mut alpha[..], begins: |row| offsets.at(row) * h };
    let scores = RowSlices { values: &mut dz[..], begins: |row| offsets.at(row) * h };
    for_graph_rows(
        (&offsets, desc.v, desc.e),
        f,
        weights,
        scores,
        #[inline(always)]
        |row, alpha, dz| {
            for head in 0..h {
                let at = row * f + head * d;
                let along = dot(&dy[at..at + d], &y[at..at + d]);
                for (k, e) in (offsets.at(row)..offsets.at(row + 1)).enumerate() {
                    let j = indices.at(e);
                    let z = left[row * h + head] + right[j * h + head];
                    let a = (leaky(z, slope) - lse[row * h + head]).exp();
                    let towards = dot(&dy[at..at + d], &x[j * f + head * d..][..d]);
                    alpha[k * h + head] = a;
                    let bend = if z > T::of(0.0) { T::of(1.0) } else { slope };
                    dz[k * h + head] = a * (towards - along) * bend;
                }
            }
        },
    );
    alpha.finish()?;
    dz.finish()
}
