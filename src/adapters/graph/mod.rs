//! Layers and networks that learn on the graph between samples. The graph is given, and not differentiated.

mod attention;
mod conv;
mod ga_net;
mod reference;
#[cfg(test)]
mod tests;

pub use attention::GraphAttention;
pub use conv::GraphConv;
pub use ga_net::{Fusion, GaNet, GaNetConfig};
pub use reference::Reference;

use crate::error::Result;
use crate::rng::Stream;
use crate::tensor::{Init, ParamId, ParamSetBuilder};

/// Declares a weight `[n, k]` drawn from U(−√(6 / (k + n)), √(6 / (k + n))), what is called Xavier.
fn xavier(params: &mut ParamSetBuilder, name: &str, [n, k]: [usize; 2], seed: u64) -> Result<ParamId> {
    let bound = (6.0 / (n + k).max(1) as f64).sqrt();
    let stream = Stream::named(seed, 0, name);
    let values = (0..(n * k) as u64).map(|e| ((2.0 * stream.uniform(e) - 1.0) * bound) as f32).collect();
    params.add(name, &[n, k], Init::Values(values))
}
