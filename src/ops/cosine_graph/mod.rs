//! The graph of similar rows.
//!
//! ```text
//! j → i    where    cos(x_i, x_j) = x_i · x_j / (|x_i| |x_j|) > threshold,    i ≠ j
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `x` | `[v, f]` | f32, f16, bf16 (f64 on the CPU) |
//! | graph | v rows and columns; values, if weighted, are the similarities | f32 |
//!
//! The threshold, rounded to f32, is strict: a similarity equal to it makes no edge. A similarity is computed in f64 and rounded to f32 once; the
//! product of all rows with all rows runs tile by tile on normalised rows, in f32 on the CPU and in f16 on a GPU's tensor cores, and pairs within its
//! rounding error of the threshold are decided by the similarity itself. So the set of edges does not depend on the device. With `top_k` each row
//! keeps its k most similar, of equals the one with the smaller number; `symmetric` then adds the reverse of every edge kept.
//!
//! A row of zeros has no direction, and no edge, whatever the threshold. The graph is not differentiated.
//!
//! Memory: never v × v. On the CPU tiles of the product and at most 16 MB of listed edges; on a GPU at most 32 MB of rows in f16 and 32 MB of listed
//! pairs, and the columns once more until they are sorted. Where there are more, the product runs twice: counted, then put into rows. With `top_k`
//! the chosen edges are held twice; a GPU lists the pairs above the threshold of one band of rows after the other, 4 million or those of 128 rows.
//!
//! Cost: `v²·f` multiply-adds, half of that where every pair is computed once. Source: GA-Net (`S_ij > 0.7`, both directions).
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::NotContiguous`] for features that do not fit; [`Error::Value`] for a threshold outside
//! −1 to 1, a top_k of 0, and for a feature that is not finite, with its row.

mod cpu;
mod gpu;
mod pick;
#[cfg(test)]
mod tests;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::Csr;
use crate::ops::host::with_real;
use crate::tensor::Tensor;

const OP: &str = "cosine_graph";

/// Which pairs become edges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineOptions {
    /// From −1 to 1; similarities must be greater.
    pub threshold: f64,
    /// The most edges that arrive at a row, before the graph is made symmetric.
    pub top_k: Option<usize>,
    /// With the reverse of every edge. Without `top_k` the graph has them anyway.
    pub symmetric: bool,
    /// Edges have their similarity as value.
    pub weighted: bool,
}

/// As in GA-Net: similarity above 0.7, both directions, no weights.
impl Default for CosineOptions {
    fn default() -> Self {
        CosineOptions { threshold: 0.7, top_k: None, symmetric: true, weighted: false }
    }
}

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    /// Rows of the graph.
    pub v: usize,
    /// Columns.
    pub n: usize,
    pub f: usize,
    /// Whether rows and columns are the same nodes, so that a pair is computed once and no node is its own neighbour.
    pub among: bool,
    pub threshold: f32,
    pub top_k: Option<usize>,
    pub weighted: bool,
    pub dtype: DType,
}

impl Desc {
    pub fn new(a: &Tensor, b: Option<&Tensor>, options: &CosineOptions) -> Result<Self> {
        let &[v, f] = a.dims() else {
            return Err(Error::shape(OP, "features", "[v, f]", a.dims()));
        };
        let n = match b {
            None => v,
            Some(b) => {
                let n = b.dims().first().copied().unwrap_or(0);
                b.require_dims(OP, "reference", &[n, f])?;
                b.require_dtype(OP, "reference", a.dtype())?;
                b.require_device(OP, "reference", a.device())?;
                b.require_contiguous(OP, "reference")?;
                n
            }
        };
        if !a.dtype().is_float() {
            return Err(Error::DType { op: OP, argument: "features", expected: "a float type".into(), got: a.dtype() });
        }
        a.require_contiguous(OP, "features")?;
        if !(-1.0..=1.0).contains(&options.threshold) {
            return Err(Error::value(OP, "threshold", "from -1 to 1", options.threshold));
        }
        if options.top_k == Some(0) {
            return Err(Error::value(OP, "top_k", "at least 1", 0));
        }
        if v.max(n) > i32::MAX as usize {
            return Err(Error::SizeOverflow { op: OP, dims: vec![v, n] });
        }
        let CosineOptions { threshold, top_k, weighted, .. } = *options;
        Ok(Desc { v, n, f, among: b.is_none(), threshold: threshold as f32, top_k, weighted, dtype: a.dtype() })
    }

    /// More than the error of a product of normalised rows in f32: a rounding for each of f terms and for normalising both rows.
    fn band(&self) -> f32 {
        (self.f as f32 + 8.0) * 1.2e-7
    }

    /// Floating-point operations, where every pair is computed once.
    pub fn flops(&self) -> u64 {
        let pairs = self.v as u64 * self.n as u64;
        (if self.among { pairs / 2 } else { pairs }) * 2 * self.f as u64
    }
}

/// The graph among the rows of `features`; see the module for what an edge is.
pub fn cosine_graph(features: &Tensor, options: &CosineOptions) -> Result<Csr> {
    let desc = Desc::new(features, None, options)?;
    let graph = graph(&desc, features, features)?;
    if options.symmetric && options.top_k.is_some() {
        return Csr::new(&graph.to_host()?.symmetric()?, features.device());
    }
    Ok(graph)
}

/// From the rows of `reference`, `[n, f]`, to those of `features`, `[v, f]`: what a prediction against a fixed graph needs. `symmetric` has no
/// meaning here.
pub fn cosine_graph_between(features: &Tensor, reference: &Tensor, options: &CosineOptions) -> Result<Csr> {
    graph(&Desc::new(features, Some(reference), options)?, features, reference)
}

fn graph(desc: &Desc, a: &Tensor, b: &Tensor) -> Result<Csr> {
    if a.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::graph::<T>(desc, a, b));
    }
    gpu::graph(desc, a, b)
}

/// Squares of the rows' lengths must be finite.
fn require_finite(squares: &[f64], argument: &'static str) -> Result<()> {
    match squares.iter().position(|s| !s.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::value(OP, argument, "finite numbers", format!("not so in row {i}"))),
    }
}
