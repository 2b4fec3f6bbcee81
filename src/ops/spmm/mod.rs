//! Sums, means and extrema along the edges of a graph: the product of a sparse matrix with a dense one.
//!
//! ```text
//! Sum   y[i, c] = Σ_{e: j → i} w_e x[j, c]                 Mean  that over the number of edges of row i
//! Max   y[i, c] = max_{e: j → i} w_e x[j, c]               Min   likewise
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | graph | v rows, e edges | see [`crate::graph`] |
//! | `x` | `[columns of the graph, f]` | f32, f16, bf16 (f64 on the CPU) |
//! | `w` | `[e]`, or `[e, h]` for features in h heads of f / h columns | as x, or f32 |
//! | `y` | `[v, f]` | as x |
//!
//! Without weights those of the graph count, or 1. A row without edges gives 0. Of several largest terms the first counts, and a NaN
//! among the terms of an extremum is the extremum.
//!
//! Backward: `dx[j] = Σ_{e: j → i} w_e dy[i]` (over the degree of i for the mean, and only where e was picked for extrema), along the edges turned
//! round, which the graph builds once; `dw_e = ⟨dy[i], x[j]⟩` likewise. Kept for it: `x` only if the weights learn, the weights only if x
//! learns, and for extrema the number of the picked edge, one for each element of y.
//!
//! Every sum has an order that the graph's shape alone decides, and no float is added atomically: two runs give the same bits. On the CPU a row is
//! added edge by edge; on a GPU edges are dealt out evenly, whatever the degrees (`kernels/tile/csr.cuh`).
//!
//! Cost: `2·e·f` floating-point operations; e rows of x are gathered.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit the graph.

mod cpu;
pub(crate) mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Csr, Pattern};
use crate::ops::host::with_real;
use crate::ops::rows::require_graph;
use crate::ops::scale_add::into_dtype;
use crate::ops::sddmm;
use crate::tensor::Tensor;

const OP: &str = "spmm";

/// What becomes of the terms of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduce {
    Sum,
    Mean,
    Max,
    Min,
}

impl Reduce {
    fn is_extremum(self) -> bool {
        matches!(self, Reduce::Max | Reduce::Min)
    }
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    /// Rows of the graph.
    pub v: usize,
    pub e: usize,
    pub f: usize,
    pub heads: usize,
    pub reduce: Reduce,
    pub dtype: DType,
}

impl Desc {
    pub fn new(graph: &Csr, x: &Tensor, weights: Option<&Tensor>, reduce: Reduce) -> Result<Self> {
        let &[n, f] = x.dims() else {
            return Err(Error::shape(OP, "x", "[v, f]", x.dims()));
        };
        if n != graph.cols() {
            let expected = format!("[{}, f] for a graph of {} columns", graph.cols(), graph.cols());
            return Err(Error::shape(OP, "x", expected, x.dims()));
        }
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        x.require_contiguous(OP, "x")?;
        require_graph(OP, graph, x)?;
        let heads = match weights {
            None => 1,
            Some(weights) => heads_of(OP, graph.edges(), f, x, weights)?,
        };
        Ok(Desc { v: graph.rows(), e: graph.edges(), f, heads, reduce, dtype: x.dtype() })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        2 * self.e as u64 * self.f as u64
    }

    /// Bytes that are gathered and written, with indices of 32 bits: what the forward pass moves when no row of x is found in a cache.
    pub fn bytes(&self) -> u64 {
        let (v, e, f) = (self.v as u64, self.e as u64, self.f as u64);
        (e + v) * f * self.dtype.size() as u64 + 4 * (e + v)
    }
}

/// How many heads weights `[e]` or `[e, h]` have, which must divide the features.
fn heads_of(op: &'static str, e: usize, f: usize, x: &Tensor, weights: &Tensor) -> Result<usize> {
    let heads = match *weights.dims() {
        [edges] if edges == e => 1,
        [edges, heads] if edges == e && heads > 0 && f.is_multiple_of(heads) => heads,
        _ => {
            let expected = format!("[{e}] or [{e}, h] with an h that divides {f}");
            return Err(Error::shape(op, "weights", expected, weights.dims()));
        }
    };
    if weights.dtype() != x.dtype() && weights.dtype() != DType::F32 {
        let expected = format!("{} or f32", x.dtype());
        return Err(Error::DType { op, argument: "weights", expected, got: weights.dtype() });
    }
    weights.require_device(op, "weights", x.device())?;
    weights.require_contiguous(op, "weights")?;
    Ok(heads)
}

/// Positions of the inputs on the tape.
const X: usize = 0;
const WEIGHTS: usize = 1;

/// `y = reduce over edges of w ⊙ x`; see the module for shapes and errors.
pub fn spmm(tape: &mut Tape, graph: &Csr, x: &Var, weights: Option<&Var>, reduce: Reduce) -> Result<Var> {
    reduced(tape, graph, x, weights, reduce).map(|(y, _)| y)
}

/// As [`spmm`] with [`Reduce::Max`] or [`Reduce::Min`], and beside y the number of the edge that each element comes from, `[v, f]` in the dtype of the
/// graph's offsets; −1 in rows without edges.
///
/// # Errors
/// [`Error::Value`] for a sum or a mean, which comes from every edge.
pub fn spmm_arg(tape: &mut Tape, graph: &Csr, x: &Var, weights: Option<&Var>, reduce: Reduce) -> Result<(Var, Tensor)> {
    let refused = || Error::value(OP, "reduce", "Max or Min", format!("{reduce:?}"));
    if !reduce.is_extremum() {
        return Err(refused());
    }
    let (y, arg) = reduced(tape, graph, x, weights, reduce)?;
    Ok((y, arg.ok_or_else(refused)?))
}

fn reduced(
    tape: &mut Tape,
    graph: &Csr,
    x: &Var,
    weights: Option<&Var>,
    reduce: Reduce,
) -> Result<(Var, Option<Tensor>)> {
    let fixed = graph.values().map(|values| Var::constant(values.clone()));
    let weights = weights.or(fixed.as_ref());
    let desc = Desc::new(graph, x.tensor(), weights.map(Var::tensor), reduce)?;
    let y = Tensor::empty(x.tensor().device(), &[desc.v, desc.f], desc.dtype)?;
    let gather = Gather {
        pattern: graph.pattern(),
        by: By::Nodes,
        weights: weights.map(Var::tensor),
        heads: desc.heads,
        x: x.tensor(),
        divide: if reduce == Reduce::Mean { Divide::Row } else { Divide::Nothing },
        picked: None,
    };
    let picked = if reduce.is_extremum() {
        let picked = Tensor::empty(y.device(), &[desc.v, desc.f], graph.offsets().dtype())?;
        extremum(&gather, reduce, &y, &picked)?;
        Some(picked)
    } else {
        sum_into(&gather, &Target { tensor: y.clone(), accumulate: false })?;
        None
    };
    let none = Var::constant(y.clone());
    let arg = picked.clone();
    let y = tape.record(y, &[x, weights.unwrap_or(&none)], |wants| Node {
        desc,
        graph: graph.clone(),
        x: (wants.input(WEIGHTS) || wants.weights && weights.is_some()).then(|| x.save()),
        weights: weights.filter(|_| wants.input(X)).map(Var::save),
        picked: picked.map(Saved::Held),
    });
    Ok((y, arg))
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    graph: Csr,
    x: Option<Saved>,
    weights: Option<Saved>,
    picked: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.x.iter().chain(&self.weights).chain(&self.picked).collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let picked = self.picked.as_ref().map(Saved::get).transpose()?;
        let mean = self.desc.reduce == Reduce::Mean;
        if let (Some(x), Some(target)) = (&self.x, sinks.open(WEIGHTS)?) {
            let x = x.get()?;
            let pairs = sddmm::Pairs {
                pattern: self.graph.pattern(),
                heads: self.desc.heads,
                a: dy,
                b: &x,
                mean,
                picked: picked.as_ref(),
            };
            sddmm::dots_into(&pairs, &target)?;
        }
        if let Some(target) = sinks.open(X)? {
            let weights = self.weights.as_ref().map(Saved::get).transpose()?;
            let gather = Gather {
                pattern: self.graph.transposed()?,
                by: By::Nodes,
                weights: weights.as_ref(),
                heads: self.desc.heads,
                x: dy,
                divide: if mean { Divide::Gathered(self.graph.offsets()) } else { Divide::Nothing },
                picked: picked.as_ref(),
            };
            sum_into(&gather, &target)?;
        }
        Ok(())
    }
}

/// What an edge brings to its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The features of the node at its other end.
    Nodes,
    /// Features of its own: x is `[e, f]`.
    Edges,
}

/// What sums are divided by.
#[derive(Clone, Copy)]
pub(crate) enum Divide<'a> {
    Nothing,
    /// The degree of the row.
    Row,
    /// Each term by the degree of the node it comes from, by that node's offsets.
    Gathered(&'a Tensor),
}

/// One sum over edges, whatever it is for.
pub(crate) struct Gather<'a> {
    pub pattern: &'a Pattern,
    pub by: By,
    /// By the numbers of edges, `[e]` or `[e, heads]`.
    pub weights: Option<&'a Tensor>,
    pub heads: usize,
    pub x: &'a Tensor,
    pub divide: Divide<'a>,
    /// Of the gathered nodes, `[nodes, f]`: only terms whose edge was picked count.
    pub picked: Option<&'a Tensor>,
}

impl Gather<'_> {
    fn f(&self) -> usize {
        self.x.cols()
    }
}

/// `target[i] (+)= Σ_e …`. The target may be of another float type than x.
pub(crate) fn sum_into(gather: &Gather, target: &Target) -> Result<()> {
    let x = gather.x;
    if target.tensor.numel() == 0 {
        return Ok(());
    }
    if x.device().is_cpu() {
        return with_real!(x.dtype(), OP, T => cpu::sum::<T>(gather, target));
    }
    match target.tensor.dtype() {
        DType::F32 => gpu::sum(gather, target),
        _ => into_dtype(target, x.dtype(), |target| gpu::sum(gather, target)),
    }
}

fn extremum(gather: &Gather, reduce: Reduce, y: &Tensor, picked: &Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    if y.device().is_cpu() {
        return with_real!(y.dtype(), OP, T => cpu::extremum::<T>(gather, reduce, y, picked));
    }
    gpu::extremum(gather, reduce, y, picked)
}
