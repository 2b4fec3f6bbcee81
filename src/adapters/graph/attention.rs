//! Attention over the edges of a graph, in heads.

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::graph::Csr;
use crate::ops::{graph_attention, linear, scale_add};
use crate::tensor::{Init, ParamId, ParamSetBuilder};

/// Slope of scores below zero, as published.
const SLOPE: f64 = 0.2;

/// `y_i = ‖_h Σ_{j → i} α_ij z_j^h + b` with `z = x Wᵀ` and `α = softmax_j leaky(l_i + r_j)`, where `l = z Lᵀ` and `r = z Rᵀ` have one number a head.
///
/// Source: Veličković et al., "Graph attention networks", 2018, whose scores read the features of their own head alone; here L and R,
/// `[heads, n]`, may read all of them.
#[derive(Clone, Debug)]
pub struct GraphAttention {
    weight: ParamId,
    left: ParamId,
    right: ParamId,
    bias: ParamId,
}

impl GraphAttention {
    /// Declares `<name>.{weight [n, k], left [heads, n], right [heads, n]}`, Xavier-uniform, and `<name>.bias [n]`, zero.
    ///
    /// # Errors
    /// [`Error::Value`] for a number of heads that does not divide n.
    pub fn declare(params: &mut ParamSetBuilder, name: &str, [k, n, heads]: [usize; 3], seed: u64) -> Result<Self> {
        if heads == 0 || !n.is_multiple_of(heads) {
            return Err(Error::value("graph_attention", "heads", format!("a number that divides {n}"), heads));
        }
        let mut weight = |part: &str, dims| super::xavier(params, &format!("{name}.{part}"), dims, seed);
        let (weight, left, right) =
            (weight("weight", [n, k])?, weight("left", [heads, n])?, weight("right", [heads, n])?);
        Ok(GraphAttention { weight, left, right, bias: params.add(format!("{name}.bias"), &[n], Init::Zeros)? })
    }

    /// `x [v, k]` to `[v, n]`, over a graph of v rows and columns. The graph's values are not read.
    pub fn forward(&self, tape: &mut Tape, graph: &Csr, x: &Var) -> Result<Var> {
        let [weight, left, right, bias] = [self.weight, self.left, self.right, self.bias].map(|id| tape.param(id));
        let z = linear(tape, x, &weight?, None)?;
        let l = linear(tape, &z, &left?, None)?;
        let r = linear(tape, &z, &right?, None)?;
        let y = graph_attention(tape, graph, &l, &r, &z, SLOPE)?;
        scale_add(tape, &y, &bias?, 1.0)
    }
}
