//! Sums, products and softmax over the edges of a graph, and the graph of similar rows.

use super::{Class, Family, Row, plain};

pub const SPMM: Family = Family {
    source: "spmm.cu",
    class: Class::Portable,
    defines: &[("SPMM_THREADS", 256)],
    kernels: &[
        plain("spmm_sum_f32_t256_sm80", 104),
        plain("spmm_pick_f32_t256_sm80", 120),
        plain("spmm_max_f32_t256_sm80", 88),
        plain("spmm_sumjoin_f32_t256_sm80", 80),
        plain("spmm_maxjoin_f32_t256_sm80", 72),
        plain("spmm_sum_f16_t256_sm80", 104),
        plain("spmm_pick_f16_t256_sm80", 120),
        plain("spmm_max_f16_t256_sm80", 88),
        plain("spmm_sumjoin_f16_t256_sm80", 80),
        plain("spmm_maxjoin_f16_t256_sm80", 72),
        plain("spmm_sum_bf16_t256_sm80", 104),
        plain("spmm_pick_bf16_t256_sm80", 120),
        plain("spmm_max_bf16_t256_sm80", 88),
        plain("spmm_sumjoin_bf16_t256_sm80", 80),
        plain("spmm_maxjoin_bf16_t256_sm80", 72),
    ],
};

pub const SDDMM: Family = Family {
    source: "sddmm.cu",
    class: Class::Portable,
    defines: &[("SDDMM_THREADS", 256)],
    kernels: &[
        plain("sddmm_fwd_f32_t256_sm80", 128),
        plain("sddmm_fwd_f16_t256_sm80", 128),
        plain("sddmm_fwd_bf16_t256_sm80", 128),
    ],
};

pub const EDGE_SOFTMAX: Family = Family {
    source: "edge_softmax.cu",
    class: Class::Portable,
    defines: &[("EDGE_SOFTMAX_THREADS", 256)],
    kernels: &[
        plain("edge_softmax_fwd_f32_t256_sm80", 64),
        plain("edge_softmax_bwd_f32_t256_sm80", 64),
        plain("edge_softmax_fwd_f16_t256_sm80", 64),
        plain("edge_softmax_bwd_f16_t256_sm80", 64),
        plain("edge_softmax_fwd_bf16_t256_sm80", 64),
        plain("edge_softmax_bwd_bf16_t256_sm80", 64),
    ],
};

pub const GRAPH_ATTENTION: Family = Family {
    source: "graph_attention.cu",
    class: Class::Portable,
    defines: &[("GRAPH_ATTENTION_THREADS", 256)],
    kernels: &[
        plain("graph_attention_fwd_f32_t256_sm80", 96),
        plain("graph_attention_join_f32_t256_sm80", 72),
        plain("graph_attention_edges_f32_t256_sm80", 128),
        plain("graph_attention_fwd_f16_t256_sm80", 96),
        plain("graph_attention_join_f16_t256_sm80", 72),
        plain("graph_attention_edges_f16_t256_sm80", 128),
        plain("graph_attention_fwd_bf16_t256_sm80", 96),
        plain("graph_attention_join_bf16_t256_sm80", 72),
        plain("graph_attention_edges_bf16_t256_sm80", 128),
    ],
};

/// The tile kernels take 128 threads, those of rows 256.
const fn cosine_tile(symbol: &'static str) -> Row {
    Row { symbol, threads: 128, shared_bytes: 0, max_registers: 128 }
}

pub const COSINE_GRAPH: Family = Family {
    source: "cosine_graph.cu",
    class: Class::Portable,
    defines: &[
        ("COSINE_GRAPH_THREADS", 128),
        ("COSINE_GRAPH_ROW_THREADS", 256),
        ("COSINE_GRAPH_TILE", 64),
        ("COSINE_GRAPH_STEP", 16),
    ],
    kernels: &[
        plain("cosine_graph_count_u32_w32_sm80", 32),
        plain("cosine_graph_fill_u32_w32_sm80", 32),
        plain("cosine_graph_norms_f32_t256_sm80", 40),
        cosine_tile("cosine_graph_mask_f32_64x64x16_sm80"),
        plain("cosine_graph_weights_f32_w32_sm80", 48),
        plain("cosine_graph_norms_f16_t256_sm80", 40),
        cosine_tile("cosine_graph_mask_f16_64x64x16_sm80"),
        plain("cosine_graph_weights_f16_w32_sm80", 48),
        plain("cosine_graph_norms_bf16_t256_sm80", 40),
        cosine_tile("cosine_graph_mask_bf16_64x64x16_sm80"),
        plain("cosine_graph_weights_bf16_w32_sm80", 48),
    ],
};
