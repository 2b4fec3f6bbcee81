//! The reference: each row's maximum, sum and quotients.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::error::Result;
use crate::graph::{Csr, Ints};
use crate::ops::host::{In, Out, Real};
use crate::ops::rows::{RowSlices, for_graph_rows, nothing};
use crate::tensor::Tensor;

pub fn forward<T: Real>(desc: &Desc, graph: &Csr, scores: &Tensor, p: &Tensor) -> Result<()> {
    let offsets = Ints::of(OP, graph.offsets())?;
    let scores = In::<T>::of(OP, scores)?;
    let scores: &[T] = &scores;
    let mut out = Out::<T>::of(OP, p)?;
    let h = desc.heads;
    let rows = RowSlices { values: &mut out[..], begins: |row| offsets.at(row) * h };
    for_graph_rows(
        (&offsets, desc.v, desc.e),
        h,
        rows,
        nothing(),
        #[inline(always)]
        |row, p, _| {
            let own = &scores[offsets.at(row) * h..][..p.len()];
            if own.is_empty() {
                return;
            }
            for head in 0..h {
                let mut most = own[head];
                for e in 1..own.len() / h {
                    most = most.maximum(own[e * h + head]);
                }
                let mut sum = T::of(0.0);
                for e in 0..own.len() / h {
                    let v = (own[e * h + head] - most).exp();
                    p[e * h + head] = v;
                    sum += v;
                }
                for e in 0..own.len() / h {
                    p[e * h + head] = p[e * h + head] / sum;
                }
            }
        },
    );
    out.finish()
}

pub fn backward<T: Real>(desc: &Desc, graph: &Csr, p: &Tensor, dp: &Tensor, target: &Target) -> Result<()> {
    let offsets = Ints::of(OP, graph.offsets())?;
    let (p, dp) = (In::<T>::of(OP, p)?, In::<T>::of(OP, dp)?);
    let (p, dp): (&[T], &[T]) = (&p, &dp);
    let mut out = Out::<T>::into(OP, target)?;
    let (h, add) = (desc.heads, target.accumulate);
    let rows = RowSlices { values: &mut out[..], begins: |row| offsets.at(row) * h };
    for_graph_rows(
        (&offsets, desc.v, desc.e),
        h,
        rows,
        nothing(),
        #[inline(always)]
        |row, ds, _| {
            let first = offsets.at(row) * h;
            let (p, dp) = (&p[first..first + ds.len()], &dp[first..first + ds.len()]);
            for head in 0..h {
                let mut along = T::of(0.0);
                for e in 0..ds.len() / h {
                    along += p[e * h + head] * dp[e * h + head];
                }
                for e in 0..ds.len() / h {
                    let at = e * h + head;
                    let value = p[at] * (dp[at] - along);
                    ds[at] = if add { ds[at] + value } else { value };
                }
            }
        },
    );
    out.finish()
}
