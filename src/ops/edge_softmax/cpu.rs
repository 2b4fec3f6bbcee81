//! The reference: each row's maximum, sum and quotients.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::error::Result;
use crate::graph::{Csr, HeldInts};
use crate::ops::host::Real;
use crate::ops::pieces::{Held, Written};
use crate::ops::rows::{RowPanels, Rows, for_graph_rows, nothing};
use crate::tensor::Tensor;

pub fn forward<T: Real>(desc: &Desc, graph: &Csr, scores: &Tensor, p: &Tensor) -> Result<()> {
    let offsets = HeldInts::of(OP, graph.offsets())?;
    let offsets = offsets.values();
    let scores = Held::<T>::of(OP, scores)?;
    let scores = scores.values();
    let mut out = Written::<T>::of(OP, p)?;
    let h = desc.heads;
    for_graph_rows(
        Rows { offsets, rows: desc.v, edges: desc.e },
        h,
        RowPanels { panel: out.panel(), begins: |row| offsets.at(row) * h },
        nothing(),
        #[inline(always)]
        |row, p, _| {
            if p.is_empty() {
                return;
            }
            let (first, edges) = (offsets.at(row) * h, p.len() / h);
            for head in 0..h {
                let mut most = scores.at(first + head);
                for e in 1..edges {
                    most = most.maximum(scores.at(first + e * h + head));
                }
                let mut sum = T::of(0.0);
                for e in 0..edges {
                    let v = (scores.at(first + e * h + head) - most).exp();
                    p[e * h + head] = v;
                    sum += v;
                }
                for e in 0..edges {
                    p[e * h + head] = p[e * h + head] / sum;
                }
            }
        },
    );
    Ok(())
}

pub fn backward<T: Real>(desc: &Desc, graph: &Csr, p: &Tensor, dp: &Tensor, target: &Target) -> Result<()> {
    let offsets = HeldInts::of(OP, graph.offsets())?;
    let offsets = offsets.values();
    let (p, dp) = (Held::<T>::of(OP, p)?, Held::<T>::of(OP, dp)?);
    let (p, dp) = (p.values(), dp.values());
    let mut out = Written::<T>::into(OP, target)?;
    let (h, add) = (desc.heads, target.accumulate);
    for_graph_rows(
        Rows { offsets, rows: desc.v, edges: desc.e },
        h,
        RowPanels { panel: out.panel(), begins: |row| offsets.at(row) * h },
        nothing(),
        #[inline(always)]
        |row, ds, _| {
            let first = offsets.at(row) * h;
            for head in 0..h {
                let mut along = T::of(0.0);
                for e in 0..ds.len() / h {
                    let at = first + e * h + head;
                    along += p.at(at) * dp.at(at);
                }
                for e in 0..ds.len() / h {
                    let at = e * h + head;
                    let value = p.at(first + at) * (dp.at(first + at) - along);
                    ds[at] = if add { ds[at] + value } else { value };
                }
            }
        },
    );
    Ok(())
}
