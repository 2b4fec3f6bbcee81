//! Attention over the edges of a graph in one pass: scores, softmax and sum, without a tensor of edges times features.
//!
//! ```text
//! z_e = left[i, h] + right[j, h]          for edge e from j to i
//! α_e = softmax over the edges of row i of leaky(z_e)          leaky(z) = z for z > 0, else slope · z
//! y[i, h, :] = Σ_e α_e x[j, h, :]
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | graph | v rows, n columns, e edges | see [`crate::graph`] |
//! | `left` | `[v, h]` | f32, f16, bf16 (f64 on the CPU) |
//! | `right` | `[n, h]` | as left |
//! | `x` | `[n, f]`, h dividing f | as left |
//! | `y` | `[v, f]`; 0 in rows without edges | as left |
//!
//! Backward, with `D_i = dy_i · y_i`: `dz_e = α_e (dy_i · x_j − D_i) leaky'(z_e)`, `dleft = Σ_row dz`, `dright = Σ_column dz`,
//! `dx_j = Σ_column α_e dy_i`. Kept for it: the operands, y, and one number a row and head; α is made again. While it runs, two numbers an edge and
//! head are alive (α and dz), in f32.
//!
//! Source: Veličković et al., "Graph attention networks", 2018. Cost: `2·e·f` operations and e·h exponentials forward.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit;
//! [`Error::Value`] for a slope that is not finite.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Csr, Pattern};
use crate::ops::host::with_real;
use crate::ops::rows::require_graph;
use crate::ops::spmm::{By, Divide, Gather, sum_into};
use crate::tensor::Tensor;

const OP: &str = "graph_attention";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub v: usize,
    pub e: usize,
    pub f: usize,
    pub heads: usize,
    pub slope: f64,
    pub dtype: DType,
}

impl Desc {
    pub fn new(graph: &Csr, left: &Tensor, right: &Tensor, x: &Tensor, slope: f64) -> Result<Self> {
        let &[_, heads] = left.dims() else {
            return Err(Error::shape(OP, "left", "[v, h]", left.dims()));
        };
        let &[_, f] = x.dims() else {
            return Err(Error::shape(OP, "x", "[n, f]", x.dims()));
        };
        if heads == 0 || !f.is_multiple_of(heads) {
            return Err(Error::shape(OP, "left", format!("[v, h] with an h that divides {f}"), left.dims()));
        }
        if !x.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "x", expected: "a float type".into(), got: x.dtype() });
        }
        let (v, n) = (graph.rows(), graph.cols());
        for (name, tensor, dims) in [("left", left, [v, heads]), ("right", right, [n, heads]), ("x", x, [n, f])] {
            tensor.require_dims(OP, name, &dims)?;
            tensor.require_dtype(OP, name, x.dtype())?;
            tensor.require_device(OP, name, x.device())?;
            tensor.require_contiguous(OP, name)?;
        }
        require_graph(OP, graph, x)?;
        if !slope.is_finite() {
            return Err(Error::value(OP, "slope", "a finite number", slope));
        }
        Ok(Desc { v, e: graph.edges(), f, heads, slope, dtype: x.dtype() })
    }

    /// Floating-point operations of the forward pass.
    pub fn flops(&self) -> u64 {
        2 * self.e as u64 * (self.f + 4 * self.heads) as u64
    }

    /// Bytes that are gathered and written, with indices of 32 bits.
    pub fn bytes(&self) -> u64 {
        let (v, e, width) = (self.v as u64, self.e as u64, (self.f + self.heads) as u64);
        (e + v) * width * self.dtype.size() as u64 + 4 * (e + v)
    }
}

const LEFT: usize = 0;
const RIGHT: usize = 1;
const X: usize = 2;

/// `y = Σ softmax(leaky(left + right)) x` over edges; see the module for shapes and errors.
pub fn graph_attention(tape: &mut Tape, graph: &Csr, left: &Var, right: &Var, x: &Var, slope: f64) -> Result<Var> {
    let desc = Desc::new(graph, left.tensor(), right.tensor(), x.tensor(), slope)?;
    let device = x.tensor().device();
    let y = Tensor::empty(device, &[desc.v, desc.f], desc.dtype)?;
    let lse = Tensor::empty(device, &[desc.v, desc.heads], desc.dtype.accumulator())?;
    let operands = Operands { left: left.tensor(), right: right.tensor(), x: x.tensor() };
    if y.numel() > 0 {
        if device.is_cpu() {
            with_real!(desc.dtype, OP, T => cpu::forward::<T>(&desc, graph, &operands, &y, &lse))?;
        } else {
            gpu::forward(&desc, graph, &operands, &y, &lse)?;
        }
    }
    let kept = y.clone();
    Ok(tape.record(y, &[left, right, x], |_| Node {
        desc,
        graph: graph.clone(),
        left: left.save(),
        right: right.save(),
        x: x.save(),
        y: Saved::Held(kept),
        lse: Saved::Held(lse),
    }))
}

pub(crate) struct Operands<'a> {
    pub left: &'a Tensor,
    pub right: &'a Tensor,
    pub x: &'a Tensor,
}

#[derive(Debug)]
struct Node {
    desc: Desc,
    graph: Csr,
    left: Saved,
    right: Saved,
    x: Saved,
    y: Saved,
    lse: Saved,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        vec![&self.left, &self.right, &self.x, &self.y, &self.lse]
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let desc = &self.desc;
        let (left, right, x) = (self.left.get()?, self.right.get()?, self.x.get()?);
        let (y, lse) = (self.y.get()?, self.lse.get()?);
        let edges = [desc.e, desc.heads];
        let alpha = Tensor::empty(dy.device(), &edges, desc.dtype.accumulator())?;
        let dz = Tensor::empty(dy.device(), &edges, desc.dtype.accumulator())?;
        if alpha.numel() > 0 {
            let operands = Operands { left: &left, right: &right, x: &x };
            let slopes = Slopes { y: &y, lse: &lse, dy, alpha: &alpha, dz: &dz };
            if dy.device().is_cpu() {
                with_real!(desc.dtype, OP, T => cpu::edges::<T>(desc, &self.graph, &operands, &slopes))?;
            } else {
                gpu::edges(desc, &self.graph, &operands, &slopes)?;
            }
        }
        let gather = |pattern, by, weights| {
            let (x, heads) = if by == By::Edges { (&dz, 1) } else { (dy, desc.heads) };
            Gather { pattern, by, weights, heads, x, divide: Divide::Nothing, picked: None }
        };
        let (own, turned): (&Pattern, _) = (self.graph.pattern(), self.graph.transposed()?);
        if let Some(target) = sinks.open(LEFT)? {
            sum_into(&gather(own, By::Edges, None), &target)?;
        }
        if let Some(target) = sinks.open(RIGHT)? {
            sum_into(&gather(turned, By::Edges, None), &target)?;
        }
        if let Some(target) = sinks.open(X)? {
            sum_into(&gather(turned, By::Nodes, Some(&alpha)), &target)?;
        }
        Ok(())
    }
}

/// What the backward pass over edges reads besides the operands, and what it writes.
pub(crate) struct Slopes<'a> {
    pub y: &'a Tensor,
    pub lse: &'a Tensor,
    pub dy: &'a Tensor,
    pub alpha: &'a Tensor,
    pub dz: &'a Tensor,
}
