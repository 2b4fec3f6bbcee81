//! Sums, products and softmax over the edges of a graph, and the graph of similar rows.

use super::products::{GEMM_STAGES, GEMM_STEP, ring};
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

const fn cosine_tile(symbol: &'static str) -> Row {
    Row { symbol, threads: 256, shared_bytes: ring(128), max_registers: 128 }
}

pub const COSINE_GRAPH: Family = Family {
    source: "cosine_graph.cu",
    class: Class::Portable,
    defines: &[
        ("COSINE_GRAPH_ROW_THREADS", 256),
        ("COSINE_GRAPH_TILE", 128),
        ("COSINE_GRAPH_STEP", GEMM_STEP),
        ("COSINE_GRAPH_STAGES", GEMM_STAGES),
        ("COSINE_GRAPH_SHARED", ring(128)),
    ],
    kernels: &[
        plain("cosine_graph_scan_u32_t256_sm80", 48),
        plain("cosine_graph_place_u32_t256_sm80", 32),
        plain("cosine_graph_order_u32_t256_sm80", 40),
        plain("cosine_graph_norms_f32_t256_sm80", 40),
        plain("cosine_graph_unit_f32_t256_sm80", 40),
        cosine_tile("cosine_graph_pairs_f32_128x128x32_sm80"),
        plain("cosine_graph_weights_f32_t256_sm80", 48),
        plain("cosine_graph_norms_f16_t256_sm80", 40),
        plain("cosine_graph_unit_f16_t256_sm80", 40),
        cosine_tile("cosine_graph_pairs_f16_128x128x32_sm80"),
        plain("cosine_graph_weights_f16_t256_sm80", 48),
        plain("cosine_graph_norms_bf16_t256_sm80", 40),
        plain("cosine_graph_unit_bf16_t256_sm80", 40),
        cosine_tile("cosine_graph_pairs_bf16_128x128x32_sm80"),
        plain("cosine_graph_weights_bf16_t256_sm80", 48),
    ],
};
