//! The operations. One folder each: `mod.rs` (what it is, validation, the tape), `cpu.rs` (the reference), `gpu.rs` (the plan).

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod block_score;
pub mod block_sparse;
#[cfg(test)]
pub(crate) mod check;
pub mod column_gate;
pub mod column_sum;
pub mod cosine_graph;
pub mod cross_entropy;
pub mod deformable_sample;
pub mod dual_rank;
pub mod edge_softmax;
pub mod embedding;
pub mod ewc;
pub mod frozen_linear;
pub mod frozen_linear_segmented;
pub mod granular_scale;
pub mod graph_attention;
mod halves;
mod host;
pub mod join;
pub mod kronecker;
mod lanes;
pub mod linear;
pub mod magnitude;
mod math;
pub mod multiply;
pub mod norm;
pub mod orthogonality;
pub mod patch_embedding;
mod pieces;
mod plan;
pub mod pool;
mod product;
pub mod proximal;
mod rows;
pub mod scale_add;
pub mod sddmm;
pub mod spmm;
mod target;
mod thin;
pub mod topology;

pub use activation::{Activation, activation};
pub use attention::{AttentionOptions, attention};
pub use block_score::{BlockNorm, GradientScore, block_norms, gradient_scores};
pub use block_sparse::{Transposed, block_sparse_linear, dds, dsd, sdd};
pub use column_gate::column_gate;
pub use cosine_graph::{CosineOptions, cosine_graph, cosine_graph_between};
pub use cross_entropy::{CrossEntropyOptions, cross_entropy};
pub use deformable_sample::{Level, Sampling, deformable_sample};
pub use dual_rank::{DualRank, dual_rank};
pub use edge_softmax::edge_softmax;
pub use embedding::embedding;
pub use frozen_linear::{After, BlockUpdate, LowRank, Mid, Updates, frozen_linear, frozen_linear_with};
pub use frozen_linear_segmented::{Bank, Segments, frozen_linear_segmented};
pub use granular_scale::{Gate, GateInput, GranularScale, TokenWeights, Update, granular_scale};
pub use graph_attention::graph_attention;
pub use join::join;
pub use kronecker::kronecker;
pub use linear::linear;
pub use magnitude::magnitude;
pub use multiply::multiply;
pub use norm::{layer_norm, rms_norm};
pub use patch_embedding::patch_embedding;
pub use pool::{Pooling, pool};
pub use proximal::{Threshold, shrink_blocks, soft_threshold};
pub use scale_add::{scale, scale_add};
pub use sddmm::sddmm;
pub use spmm::{Reduce, spmm, spmm_arg};
pub use topology::pattern_from_mask;

use crate::autograd::Tape;
use crate::error::{Error, Result};
use crate::rng::Dropout;

/// The dropout of one call: `None` when its probability is 0 or the tape does not train.
pub(crate) fn dropout_of(op: &'static str, tape: &Tape, p: f64, site: u32) -> Result<Option<Dropout>> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::value(op, "dropout", "a probability in [0, 1)", p));
    }
    Ok(tape.stream(site).filter(|_| p > 0.0).map(|stream| Dropout::new(p, stream)))
}
