//! A fixed graph to predict against.

use crate::error::Result;
use crate::graph::{Adjacency, Csr, Normalisation};
use crate::ops::{CosineOptions, cosine_graph, cosine_graph_between};
use crate::tensor::Tensor;

/// Nodes that stay, and the graph among them. A sample to be predicted reads from them and from itself, and nothing reads from it: what is
/// predicted for it does not depend on what else is asked.
#[derive(Clone, Debug)]
pub struct Reference {
    features: Tensor,
    options: CosineOptions,
    /// With self loops.
    graph: Adjacency,
}

impl Reference {
    /// The nodes of `features [n, f]`, joined as `options` say, each to itself as well.
    pub fn new(features: Tensor, options: CosineOptions) -> Result<Self> {
        let graph = cosine_graph(&features, &options)?.to_host()?.with_self_loops()?;
        Ok(Reference { features, options, graph })
    }

    /// No edges but from each node to itself.
    pub fn without_edges(features: Tensor) -> Result<Self> {
        let n = features.rows();
        let graph = Adjacency::empty(n, n)?.with_self_loops()?;
        // Nothing is more similar than the same, so a query finds no neighbour either.
        Ok(Reference { features, options: CosineOptions { threshold: 1.0, ..CosineOptions::default() }, graph })
    }

    /// Edges among the nodes, self loops not counted.
    pub fn edges(&self) -> usize {
        self.graph.edges() - self.graph.rows()
    }

    /// The nodes' own graph, normalised symmetrically: what training runs on.
    pub fn graph(&self) -> Result<Csr> {
        Csr::new(&self.graph.normalised(Normalisation::Symmetric), self.features.device())
    }

    /// The graph of the nodes and, after them, of `queries [q, f]`, normalised symmetrically. Nodes keep their weights: what arrives at a query
    /// counts for it, and of a node what leaves it among the nodes.
    pub fn graph_with(&self, queries: &Tensor) -> Result<Csr> {
        let between = cosine_graph_between(queries, &self.features, &self.options)?.to_host()?;
        let (n, q) = (self.graph.rows(), between.rows());
        let own = self.graph.normalised(Normalisation::Symmetric);
        let mut leaving = vec![0f64; n];
        for (e, &j) in self.graph.indices().iter().enumerate() {
            leaving[j] += f64::from(self.graph.value(e));
        }
        let mut offsets = own.offsets().to_vec();
        let mut indices = own.indices().to_vec();
        let mut values: Vec<f32> = (0..own.edges()).map(|e| own.value(e)).collect();
        for i in 0..q {
            let edges = between.offsets()[i]..between.offsets()[i + 1];
            let arriving = 1.0 + edges.clone().map(|e| f64::from(between.value(e))).sum::<f64>();
            for e in edges {
                let j = between.indices()[e];
                indices.push(j);
                values.push((f64::from(between.value(e)) / (arriving.max(1.0) * leaving[j].max(1.0)).sqrt()) as f32);
            }
            indices.push(n + i);
            values.push((1.0 / arriving.max(1.0)) as f32);
            offsets.push(indices.len());
        }
        Csr::new(&Adjacency::new((n + q, n + q), offsets, indices, Some(values))?, self.features.device())
    }
}
