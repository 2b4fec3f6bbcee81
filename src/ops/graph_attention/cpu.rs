//! The reference: each row's scores twice, for their maximum and for the sum; nothing an edge wide is kept forward.

use super::{Desc, OP, Operands, Slopes};
use crate::error::Result;
use crate::graph::{Csr, HeldInts};
use crate::ops::host::Real;
use crate::ops::pieces::{Held, PIECE, Written};
use crate::ops::rows::{RowPanels, Rows, for_graph_rows};
use crate::tensor::Tensor;

#[inline(always)]
fn leaky<T: Real>(z: T, slope: T) -> T {
    if z > T::of(0.0) { z } else { slope * z }
}

pub fn forward<T: Real>(desc: &Desc, graph: &Csr, operands: &Operands, y: &Tensor, lse: &Tensor) -> Result<()> {
    let (offsets, indices) = (HeldInts::of(OP, graph.offsets())?, HeldInts::of(OP, graph.indices())?);
    let (offsets, indices) = (offsets.values(), indices.values());
    let (left, right) = (Held::<T>::of(OP, operands.left)?, Held::<T>::of(OP, operands.right)?);
    let x = Held::<T>::of(OP, operands.x)?;
    let (left, right, x) = (left.values(), right.values(), x.values());
    let (mut y, mut lse) = (Written::<T>::of(OP, y)?, Written::<T>::of(OP, lse)?);
    let (f, h, slope) = (desc.f, desc.heads, T::of(desc.slope));
    let d = f / h;
    for_graph_rows(
        Rows { offsets, rows: desc.v, edges: desc.e },
        f,
        RowPanels { panel: y.panel(), begins: |row| row * f },
        RowPanels { panel: lse.panel(), begins: |row| row * h },
        #[inline(always)]
        |row, y, lse| {
            let (first, last) = (offsets.at(row), offsets.at(row + 1));
            y.fill(T::of(0.0));
            let mut room = [T::of(0.0); PIECE];
            for head in 0..h {
                let own = left.at(row * h + head);
                let score = |e: usize| leaky(own + right.at(indices.at(e) * h + head), slope);
                let mut most = T::of(f64::NEG_INFINITY);
                for e in first..last {
                    most = most.maximum(score(e));
                }
                let mut sum = T::of(0.0);
                let y = &mut y[head * d..(head + 1) * d];
                for e in first..last {
                    let w = (score(e) - most).exp();
                    sum += w;
                    let at = indices.at(e) * f + head * d;
                    for (block, y) in y.chunks_mut(PIECE).enumerate() {
                        let from = x.piece(at + block * PIECE, &mut room[..y.len()]);
                        for c in 0..y.len() {
                            y[c] += w * from[c];
                        }
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
    Ok(())
}

pub fn edges<T: Real>(desc: &Desc, graph: &Csr, operands: &Operands, slopes: &Slopes) -> Result<()> {
    let (offsets, indices) = (HeldInts::of(OP, graph.offsets())?, HeldInts::of(OP, graph.indices())?);
    let (offsets, indices) = (offsets.values(), indices.values());
    let (left, right) = (Held::<T>::of(OP, operands.left)?, Held::<T>::of(OP, operands.right)?);
    let x = Held::<T>::of(OP, operands.x)?;
    let (left, right, x) = (left.values(), right.values(), x.values());
    let (y, dy, lse) = (Held::<T>::of(OP, slopes.y)?, Held::<T>::of(OP, slopes.dy)?, Held::<T>::of(OP, slopes.lse)?);
    let (y, dy, lse) = (y.values(), dy.values(), lse.values());
    let (mut alpha, mut dz) = (Written::<T>::of(OP, slopes.alpha)?, Written::<T>::of(OP, slopes.dz)?);
    let (f, h, slope) = (desc.f, desc.heads, T::of(desc.slope));
    let d = f / h;
    for_graph_rows(
        Rows { offsets, rows: desc.v, edges: desc.e },
        f,
        RowPanels { panel: alpha.panel(), begins: |row| offsets.at(row) * h },
        RowPanels { panel: dz.panel(), begins: |row| offsets.at(row) * h },
        #[inline(always)]
        |row, alpha, dz| {
            for head in 0..h {
                let at = row * f + head * d;
                let along = dy.dot(at, y, at, d);
                let (own, whole) = (left.at(row * h + head), lse.at(row * h + head));
                for (k, e) in (offsets.at(row)..offsets.at(row + 1)).enumerate() {
                    let j = indices.at(e);
                    let z = own + right.at(j * h + head);
                    let a = (leaky(z, slope) - whole).exp();
                    let towards = dy.dot(at, x, j * f + head * d, d);
                    alpha[k * h + head] = a;
                    let bend = if z > T::of(0.0) { T::of(1.0) } else { slope };
                    dz[k * h + head] = a * (towards - along) * bend;
                }
            }
        },
    );
    Ok(())
}
