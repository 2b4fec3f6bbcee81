//! The table of cases, one file for each family of ops. `bench` times the same calls.

pub mod adamw;
pub mod attention;
pub mod block_sparse;
pub mod elementwise;
pub mod ewc;
pub mod gate;
pub mod graph;
pub mod linear;
pub mod loss;
pub mod low_rank;
pub mod norm;
pub mod tokens;

use super::case::Case;

/// Every case, families together.
pub fn all() -> Vec<Case> {
    let families = [
        linear::all,
        norm::all,
        elementwise::all,
        gate::all,
        low_rank::all,
        attention::all,
        tokens::all,
        loss::all,
        adamw::all,
        ewc::all,
        block_sparse::all,
        graph::all,
    ];
    families.into_iter().flat_map(|family| family()).collect()
}
