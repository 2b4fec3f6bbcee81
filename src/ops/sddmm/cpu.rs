//! The reference: one dot product an edge and head.

use super::{OP, Pairs};
use crate::autograd::Target;
use crate::error::Result;
use crate::graph::HeldInts;
use crate::ops::host::Real;
use crate::ops::pieces::{Held, Written};
use crate::ops::rows::{RowPanels, Rows, for_graph_rows, nothing};

pub fn dots<T: Real>(pairs: &Pairs, target: &Target) -> Result<()> {
    let pattern = pairs.pattern;
    let (offsets, indices) = (HeldInts::of(OP, &pattern.offsets)?, HeldInts::of(OP, &pattern.indices)?);
    let (offsets, indices) = (offsets.values(), indices.values());
    let picked = pairs.picked.map(|p| HeldInts::of(OP, p)).transpose()?;
    let picked = picked.as_ref().map(HeldInts::values);
    let (a, b) = (Held::<T>::of(OP, pairs.a)?, Held::<T>::of(OP, pairs.b)?);
    let (a, b) = (a.values(), b.values());
    let mut out = Written::<T>::into(OP, target)?;
    let (f, heads, add) = (pairs.a.cols(), pairs.heads, target.accumulate);
    let d = f / heads;
    for_graph_rows(
        Rows { offsets, rows: pattern.rows, edges: pattern.edges },
        f,
        RowPanels { panel: out.panel(), begins: |row| offsets.at(row) * heads },
        nothing(),
        #[inline(always)]
        |row, out, _| {
            let (first, last) = (offsets.at(row), offsets.at(row + 1));
            let by = if pairs.mean { T::of((last - first) as f64) } else { T::of(1.0) };
            for (e, out) in (first..last).zip(out.chunks_mut(heads)) {
                let j = indices.at(e);
                for (head, out) in out.iter_mut().enumerate() {
                    let (own, other) = (row * f + head * d, j * f + head * d);
                    let value = match picked {
                        None => a.dot(own, b, other, d),
                        Some(picked) => {
                            let mut sum = T::of(0.0);
                            for c in 0..d {
                                if picked.at(own + c) == e {
                                    sum += a.at(own + c) * b.at(other + c);
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
    Ok(())
}
