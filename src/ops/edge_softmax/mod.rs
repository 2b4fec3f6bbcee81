//! Softmax over the edges of each row of a graph, head by head.
//!
//! ```text
//! p[e, h] = exp(s[e, h] − m) / Σ_{e' in the row of e} exp(s[e', h] − m)        m: the largest score of the row
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | graph | v rows, e edges | see [`crate::graph`] |
//! | `s`, `p` | `[e, h]`, or `[e]` for one head | f32, f16, bf16 (f64 on the CPU) |
//!
//! Backward: `ds = p ⊙ (dp − Σ_row p ⊙ dp)`. Kept for it: p.
//!
//! The order of a sum is decided by the graph's shape alone. A NaN among the scores of a row makes the row NaN, and so do scores of −∞ alone.
//!
//! Cost: about `4·e·h` operations; scores are read once (twice where rows are long) and as many numbers written.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for scores that do not fit the graph.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Csr;
use crate::ops::host::with_real;
use crate::ops::rows::require_graph;
use crate::tensor::Tensor;

const OP: &str = "edge_softmax";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub v: usize,
    pub e: usize,
    pub heads: usize,
    pub dtype: DType,
}

impl Desc {
    pub fn new(graph: &Csr, scores: &Tensor) -> Result<Self> {
        let e = graph.edges();
        let heads = match *scores.dims() {
            [edges] if edges == e => 1,
            [edges, heads] if edges == e && heads > 0 => heads,
            _ => return Err(Error::shape(OP, "scores", format!("[{e}] or [{e}, h]"), scores.dims())),
        };
        if !scores.dtype().is_float() {
            let expected = "a float type".into();
            return Err(Error::DType { op: OP, argument: "scores", expected, got: scores.dtype() });
        }
        scores.require_contiguous(OP, "scores")?;
        require_graph(OP, graph, scores)?;
        Ok(Desc { v: graph.rows(), e, heads, dtype: scores.dtype() })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        4 * self.e as u64 * self.heads as u64
    }

    /// Bytes that the forward pass must move at least.
    pub fn bytes(&self) -> u64 {
        2 * self.e as u64 * self.heads as u64 * self.dtype.size() as u64 + 4 * self.v as u64
    }
}

/// `p = softmax(s)` over each row's edges; see the module for shapes and errors.
pub fn edge_softmax(tape: &mut Tape, graph: &Csr, scores: &Var) -> Result<Var> {
    let desc = Desc::new(graph, scores.tensor())?;
    let p = Tensor::empty(scores.tensor().device(), scores.dims(), desc.dtype)?;
    if p.numel() > 0 {
        if p.device().is_cpu() {
            with_real!(desc.dtype, OP, T => cpu::forward::<T>(&desc, graph, scores.tensor(), &p))?;
        } else {
            gpu::forward(&desc, graph, scores.tensor(), &p)?;
        }
    }
    let kept = p.clone();
    Ok(tape.record(p, &[scores], |_| Node { desc, graph: graph.clone(), p: Saved::Held(kept) }))
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    graph: Csr,
    p: Saved,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        vec![&self.p]
    }

    fn backward(&self, dp: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let Some(target) = sinks.open(0)? else { return Ok(()) };
        if dp.numel() == 0 {
            return Ok(());
        }
        backward(&self.desc, &self.graph, &self.p.get()?, dp, &target)
    }
}

fn backward(desc: &Desc, graph: &Csr, p: &Tensor, dp: &Tensor, target: &Target) -> Result<()> {
    if dp.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::backward::<T>(desc, graph, p, dp, target));
    }
    gpu::backward(desc, graph, p, dp, target)
}
