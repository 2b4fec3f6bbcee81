//! Changes that graph learners make to a graph before they use it.

use super::Adjacency;
use crate::error::{Error, Result};

const OP: &str = "graph";

/// How the edges of a graph are weighted before features are added up along them. Degrees are sums of edge weights (1 where there are
/// none), and one below 1 counts as 1, so that a node without edges divides by nothing small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Normalisation {
    /// `w_ij / √(out-degree of j · in-degree of i)`: graph convolution (Kipf and Welling, 2017).
    Symmetric,
    /// `w_ij / in-degree of i`: a mean over neighbours.
    RandomWalk,
}

impl Adjacency {
    fn require_square(&self, argument: &'static str) -> Result<()> {
        if self.rows() == self.cols() {
            return Ok(());
        }
        Err(Error::shape(OP, argument, "as many rows as columns", &[self.rows(), self.cols()]))
    }

    /// With an edge of weight 1 from every node to itself, in place of those there were.
    pub fn with_self_loops(&self) -> Result<Adjacency> {
        self.require_square("self loops")?;
        let mut rows = Rows::of(self, self.rows());
        for i in 0..self.rows() {
            let mut edges: Vec<(usize, f32)> = self.row(i).filter(|&(j, _)| j != i).collect();
            let at = edges.partition_point(|&(j, _)| j < i);
            edges.insert(at, (i, 1.0));
            rows.push(edges);
        }
        Ok(rows.finish())
    }

    pub fn without_self_loops(&self) -> Adjacency {
        let mut rows = Rows::of(self, 0);
        for i in 0..self.rows() {
            rows.push(self.row(i).filter(|&(j, _)| j != i));
        }
        rows.finish()
    }

    /// With the reverse of every edge that lacks one, of the same weight; sorted. Where both directions were there, each keeps its own
    /// weight, and parallel edges become one, of the first's weight.
    pub fn symmetric(&self) -> Result<Adjacency> {
        self.require_square("symmetric")?;
        let (turned, _) = self.transpose();
        let mut rows = Rows::of(self, self.edges());
        for i in 0..self.rows() {
            // Stable: an edge comes before the reverse of its opposite.
            let mut edges: Vec<(usize, f32)> = self.row(i).chain(turned.row(i)).collect();
            edges.sort_by_key(|&(j, _)| j);
            edges.dedup_by_key(|&mut (j, _)| j);
            rows.push(edges);
        }
        Ok(rows.finish())
    }

    /// The edges weighted by the degrees of their ends.
    pub fn normalised(&self, how: Normalisation) -> Adjacency {
        let (mut arriving, mut leaving) = (vec![0f64; self.rows()], vec![0f64; self.cols()]);
        for (i, sum) in arriving.iter_mut().enumerate() {
            for (j, w) in self.row(i) {
                *sum += f64::from(w);
                leaving[j] += f64::from(w);
            }
        }
        let mut values = Vec::with_capacity(self.edges());
        for (i, &own) in arriving.iter().enumerate() {
            for (j, w) in self.row(i) {
                let by = match how {
                    Normalisation::Symmetric => (own.max(1.0) * leaving[j].max(1.0)).sqrt(),
                    Normalisation::RandomWalk => own.max(1.0),
                };
                values.push((f64::from(w) / by) as f32);
            }
        }
        let shape = (self.rows(), self.cols());
        Adjacency::trusted(shape, self.offsets().to_vec(), self.indices().to_vec(), Some(values))
    }

    /// Source and weight of the edges of row `i`.
    fn row(&self, i: usize) -> impl Iterator<Item = (usize, f32)> {
        (self.offsets()[i]..self.offsets()[i + 1]).map(|e| (self.indices()[e], self.value(e)))
    }
}

/// Rows being put together; weights are kept if the graph had them.
struct Rows {
    shape: (usize, usize),
    offsets: Vec<usize>,
    indices: Vec<usize>,
    values: Option<Vec<f32>>,
}

impl Rows {
    fn of(graph: &Adjacency, more: usize) -> Self {
        Rows {
            shape: (graph.rows(), graph.cols()),
            offsets: vec![0],
            indices: Vec::with_capacity(graph.edges() + more),
            values: graph.values().map(|_| Vec::with_capacity(graph.edges() + more)),
        }
    }

    fn push(&mut self, edges: impl IntoIterator<Item = (usize, f32)>) {
        for (j, w) in edges {
            self.indices.push(j);
            if let Some(values) = &mut self.values {
                values.push(w);
            }
        }
        self.offsets.push(self.indices.len());
    }

    fn finish(self) -> Adjacency {
        Adjacency::trusted(self.shape, self.offsets, self.indices, self.values)
    }
}
