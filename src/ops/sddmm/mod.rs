//! Products of pairs of nodes on the edges of a graph: a dense product sampled at the places of a sparse matrix.
//!
//! ```text
//! s[e, h] = Σ_{c in head h} a[i, c] b[j, c]        for edge e from j to i
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | graph | v rows, e edges | see [`crate::graph`] |
//! | `a` | `[v, f]` | f32, f16, bf16 (f64 on the CPU) |
//! | `b` | `[columns of the graph, f]` | as a |
//! | `s` | `[e, h]`, h dividing f | as a |
//!
//! Backward: `da[i] = Σ_{e: j → i} ds_e b[j]` and `db[j] = Σ_{e: j → i} ds_e a[i]`, both sums over edges as in [`spmm`](super::spmm()). Kept for it: b only if a
//! learns, and the reverse.
//!
//! Cost: `2·e·f` floating-point operations; e rows of b are gathered. The gradient of a sum's weights is this op.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit the graph.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Csr, Pattern};
use crate::ops::host::with_real;
use crate::ops::rows::require_graph;
use crate::ops::spmm::{By, Divide, Gather, sum_into};
use crate::tensor::Tensor;

const OP: &str = "sddmm";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub v: usize,
    pub e: usize,
    pub f: usize,
    pub heads: usize,
    pub dtype: DType,
}

impl Desc {
    pub fn new(graph: &Csr, a: &Tensor, b: &Tensor, heads: usize) -> Result<Self> {
        let &[_, f] = a.dims() else {
            return Err(Error::shape(OP, "a", "[v, f]", a.dims()));
        };
        a.require_dims(OP, "a", &[graph.rows(), f])?;
        b.require_dims(OP, "b", &[graph.cols(), f])?;
        if !a.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "a", expected: "a float type".into(), got: a.dtype() });
        }
        b.require_dtype(OP, "b", a.dtype())?;
        b.require_device(OP, "b", a.device())?;
        a.require_contiguous(OP, "a")?;
        b.require_contiguous(OP, "b")?;
        require_graph(OP, graph, a)?;
        if heads == 0 || !f.is_multiple_of(heads) {
            return Err(Error::value(OP, "heads", format!("a number that divides {f}"), heads));
        }
        Ok(Desc { v: graph.rows(), e: graph.edges(), f, heads, dtype: a.dtype() })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        2 * self.e as u64 * self.f as u64
    }

    /// Bytes that are gathered and written, with indices of 32 bits.
    pub fn bytes(&self) -> u64 {
        let (v, e, f) = (self.v as u64, self.e as u64, self.f as u64);
        ((e + v) * f + e * self.heads as u64) * self.dtype.size() as u64 + 4 * (e + v)
    }
}

const A: usize = 0;
const B: usize = 1;

/// `s[e, h] = ⟨a[i], b[j]⟩` in head h; see the module for shapes and errors.
pub fn sddmm(tape: &mut Tape, graph: &Csr, a: &Var, b: &Var, heads: usize) -> Result<Var> {
    let desc = Desc::new(graph, a.tensor(), b.tensor(), heads)?;
    let s = Tensor::empty(a.tensor().device(), &[desc.e, heads], desc.dtype)?;
    let pairs = Pairs { pattern: graph.pattern(), heads, a: a.tensor(), b: b.tensor(), mean: false, picked: None };
    dots_into(&pairs, &Target { tensor: s.clone(), accumulate: false })?;
    Ok(tape.record(s, &[a, b], |wants| Node {
        heads,
        graph: graph.clone(),
        a: (wants.input(B) || wants.weights).then(|| a.save()),
        b: (wants.input(A) || wants.weights).then(|| b.save()),
    }))
}

#[derive(Debug)]
struct Node {
    heads: usize,
    graph: Csr,
    a: Option<Saved>,
    b: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.a.iter().chain(&self.b).collect()
    }

    fn backward(&self, ds: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let sum = |pattern: &Pattern, x: &Tensor, target: &Target| {
            let (by, divide) = (By::Nodes, Divide::Nothing);
            let gather = Gather { pattern, by, weights: Some(ds), heads: self.heads, x, divide, picked: None };
            sum_into(&gather, target)
        };
        if let (Some(b), Some(target)) = (&self.b, sinks.open(A)?) {
            sum(self.graph.pattern(), &b.get()?, &target)?;
        }
        if let (Some(a), Some(target)) = (&self.a, sinks.open(B)?) {
            sum(self.graph.transposed()?, &a.get()?, &target)?;
        }
        Ok(())
    }
}

/// Products on edges, whatever they are for.
pub(crate) struct Pairs<'a> {
    pub pattern: &'a Pattern,
    pub heads: usize,
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    /// Divide by the degree of the row.
    pub mean: bool,
    /// `[v, f]`: only columns that picked the edge count.
    pub picked: Option<&'a Tensor>,
}

/// `target[e, h] (+)= …`.
pub(crate) fn dots_into(pairs: &Pairs, target: &Target) -> Result<()> {
    if target.tensor.numel() == 0 {
        return Ok(());
    }
    if pairs.a.device().is_cpu() {
        return with_real!(pairs.a.dtype(), OP, T => cpu::dots::<T>(pairs, target));
    }
    gpu::dots(pairs, target)
}
