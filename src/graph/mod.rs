//! Graphs between the rows of tensors, as compressed sparse rows.
//!
//! Row i of a graph lists the edges that *arrive* at node i; the column of an edge is the node it comes from. So
//! `y[i] = Σ_{j → i} w_ij x[j]` is the product of the graph, as a matrix, with x.
//!
//! | array | length | dtype |
//! |---|---|---|
//! | offsets | rows + 1: row i owns the edges `offsets[i] .. offsets[i + 1]` | i32, or i64 from 2³¹ edges on |
//! | indices | edges: the column of each | i32, or i64 from 2³¹ nodes on |
//! | values | edges, optional: a weight for each | f32 |
//!
//! [`Adjacency`] is a graph in host memory, where graphs are made and changed; [`Csr`] is one on a device, where ops read it.
//! Both exist only validated: offsets that rise from 0 to the number of edges, columns in range. No op checks that again.

mod adjacency;
mod batch;
mod csr;
mod normalise;
#[cfg(test)]
mod tests;

pub use adjacency::Adjacency;
pub use csr::{Csr, Width};
pub(crate) use csr::{HeldInts, Ints, Pattern};
pub use normalise::Normalisation;
