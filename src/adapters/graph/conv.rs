//! Graph convolution: `Â X Wᵀ + b`.

use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::graph::Csr;
use crate::ops::{Reduce, linear, scale_add, spmm};
use crate::tensor::{Init, ParamId, ParamSetBuilder};

/// `y = Â x Wᵀ + b`, with the graph's values as Â: those of [`Adjacency::normalised`](crate::graph::Adjacency::normalised).
///
/// Source: Kipf and Welling, "Semi-supervised classification with graph convolutional networks", 2017.
#[derive(Clone, Debug)]
pub struct GraphConv {
    weight: ParamId,
    bias: ParamId,
    k: usize,
    n: usize,
}

impl GraphConv {
    /// Declares `<name>.weight [n, k]`, Xavier-uniform, and `<name>.bias [n]`, zero.
    pub fn declare(params: &mut ParamSetBuilder, name: &str, k: usize, n: usize, seed: u64) -> Result<Self> {
        Ok(GraphConv {
            weight: super::xavier(params, &format!("{name}.weight"), [n, k], seed)?,
            bias: params.add(format!("{name}.bias"), &[n], Init::Zeros)?,
            k,
            n,
        })
    }

    /// Whether edges are added up before the product, which is less work then. Both give the same but for rounding.
    pub fn aggregates_first(&self, graph: &Csr) -> bool {
        let product = |rows: usize| rows as u64 * self.k as u64 * self.n as u64;
        let sum = |width: usize| graph.edges() as u64 * width as u64;
        sum(self.k) + product(graph.rows()) < product(graph.cols()) + sum(self.n)
    }

    /// `x [columns of the graph, k]` to `[rows of the graph, n]`.
    pub fn forward(&self, tape: &mut Tape, graph: &Csr, x: &Var) -> Result<Var> {
        let (weight, bias) = (tape.param(self.weight)?, tape.param(self.bias)?);
        if self.aggregates_first(graph) {
            let sums = spmm(tape, graph, x, None, Reduce::Sum)?;
            return linear(tape, &sums, &weight, Some(&bias));
        }
        let products = linear(tape, x, &weight, None)?;
        let sums = spmm(tape, graph, &products, None, Reduce::Sum)?;
        scale_add(tape, &sums, &bias, 1.0)
    }
}
