//! The reference: one dot product an edge and head.

use super::{OP, Pairs};
use crate::autograd::Target;
use crate::error::Result;
use crate::graph::Ints;
use crate::ops::host::{In, Out, Real};
use crate::ops::lanes::dot;
use crate::ops::rows::{RowSlices, for_graph_rows, nothing};

pub fn dots<T: Real>(pairs: &Pairs, target: &Target) -> Result<()> {
    let pattern = pairs.pattern;
    let offsets = Ints::of(OP, &pattern.offsets)?;
    let indices = Ints::of(OP, &pattern.indices)?;
    let picked = pairs.picked.map(|p| Ints::of(OP, p)).transpose()?;
    let (a, b) = (In::<T>::of(OP, pairs.a)?, In::<T>::of(OP, pairs.b)?);
    let (a, b): (&[T], &[T]) = (&a, &b);
    let mut out = Out::<T>::into(OP, target)?;
    let (f, heads, add) = (pairs.a.cols(), pairs.heads, target.accumulate);
    let d = f / heads;
    let rows = RowSlices { values: &mut out[..], begins: |row| offsets.at(row) * heads };
    for_graph_rows(
        (&offsets, pattern.rows, pattern.edges),
        f,
        rows,
        nothing(),
        #[inline(always)]
        |row, out, _| {
            let (first, last) = (offsets.at(row), offsets.at(row + 1));
            let by = if pairs.mean { T::of((last - first) as f64) } else { T::of(1.0) };
            for (e, out) in (first..last).zip(out.chunks_mut(heads)) {
                let j = indices.at(e);
                for (head, out) in out.iter_mut().enumerate() {
                    let (own, other) = (row * f + head * d, j * f + head * d);
                    let (u, v) = (&a[own..own + d], &b[other..other + d]);
                    let value = match &picked {
                        None => dot(u, v),
                        Some(picked) => {
                            let mut sum = T::of(0.0);
                            for c in 0..d {
                                if picked.at(own + c) == e {
                                    sum += u[c] * v[c];
                                }
                            }
                            sum
                        }
                    };
                    let value = if pairs.mean { value / by } else { value };
                    *out = if add { *out + value } else { value };
                }
            }
        },
    );
    out.finish()
}
