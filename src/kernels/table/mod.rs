//! The table of kernels: pure data, compiled into the crate and into build.rs. It is the single source of tile constants: build.rs
//! passes each family's defines to nvcc, and a kernel source refuses to compile without them.

mod adapters;
mod attention;
mod block_sparse;
mod graph;
mod products;

use adapters::{DEFORMABLE_SAMPLE, DUAL_RANK, MAGNITUDE};
use attention::{ATTENTION_32, ATTENTION_64, ATTENTION_128};
use block_sparse::{
    BLOCK_SCORE, BLOCK_SPARSE_16, BLOCK_SPARSE_32, BLOCK_SPARSE_64, BLOCK_SPARSE_128, BLOCK_SPARSE_HOPPER_16,
    BLOCK_SPARSE_HOPPER_32, BLOCK_SPARSE_HOPPER_64, BLOCK_SPARSE_HOPPER_128, PROXIMAL, TOPOLOGY,
};
use graph::{COSINE_GRAPH, EDGE_SOFTMAX, GRAPH_ATTENTION, SDDMM, SPMM};
use products::{
    FROZEN_LINEAR, FROZEN_LINEAR_HOPPER_128, FROZEN_LINEAR_HOPPER_256, GEMM_STAGES, GEMM_STEP, ONE_LAUNCH_HOPPER_128,
    ONE_LAUNCH_HOPPER_256, RIDE, RIDE_HOPPER, SEGMENTS, f32_product, ring, small_product,
};

/// Which GPUs a kernel runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// compute_80 and later, also through its PTX.
    Portable,
    /// sm_90a alone.
    Hopper,
}

/// One source file in `kernels/` and the entry points it must define.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub source: &'static str,
    pub class: Class,
    pub defines: &'static [(&'static str, u32)],
    pub kernels: &'static [Row],
}

/// One entry point: `{op}_{pass}_{dtype}_{tile}_{arch}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub symbol: &'static str,
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// More registers than this fail a test.
    pub max_registers: u32,
}

/// A portable kernel of 256 threads without dynamic shared memory.
const fn plain(symbol: &'static str, max_registers: u32) -> Row {
    Row { symbol, threads: 256, shared_bytes: 0, max_registers }
}

const ACTIVATION: Family = Family {
    source: "activation.cu",
    class: Class::Portable,
    defines: &[("ACTIVATION_THREADS", 256)],
    kernels: &[
        plain("activation_fwd_f32_t256_sm80", 48),
        plain("activation_fwd_f16_t256_sm80", 48),
        plain("activation_fwd_bf16_t256_sm80", 48),
        plain("activation_bwd_f32_t256_sm80", 48),
        plain("activation_bwd_f16_t256_sm80", 48),
        plain("activation_bwd_bf16_t256_sm80", 48),
    ],
};

const ADAMW: Family = Family {
    source: "adamw.cu",
    class: Class::Portable,
    defines: &[("ADAMW_THREADS", 256), ("ADAMW_MAX_GROUPS", 8)],
    kernels: &[
        plain("adamw_norm_f32_t256_sm80", 48),
        plain("adamw_step_f32_t256_sm80", 56),
        plain("adamw_step_f16_t256_sm80", 56),
        plain("adamw_step_bf16_t256_sm80", 56),
    ],
};

const COLUMN_SUM: Family = Family {
    source: "column_sum.cu",
    class: Class::Portable,
    defines: &[("COLUMN_SUM_THREADS", 256)],
    kernels: &[
        plain("column_sum_fwd_f32_t256_sm80", 48),
        plain("column_sum_fwd_f16_t256_sm80", 48),
        plain("column_sum_fwd_bf16_t256_sm80", 48),
        plain("column_sum_widen_f16_t256_sm80", 48),
        plain("column_sum_widen_bf16_t256_sm80", 48),
        plain("column_sum_narrow_f16_t256_sm80", 48),
        plain("column_sum_narrow_bf16_t256_sm80", 48),
    ],
};

const NORM: Family = Family {
    source: "norm.cu",
    class: Class::Portable,
    defines: &[("NORM_THREADS", 256), ("NORM_FORWARD_CHUNKS", 8), ("NORM_BACKWARD_CHUNKS", 4)],
    kernels: &[
        plain("norm_fwd_f32_warp_sm80", 80),
        plain("norm_fwd_f16_warp_sm80", 80),
        plain("norm_fwd_bf16_warp_sm80", 80),
        plain("norm_fwd_f32_block_sm80", 80),
        plain("norm_fwd_f16_block_sm80", 80),
        plain("norm_fwd_bf16_block_sm80", 80),
        plain("norm_bwd_f32_warp_sm80", 80),
        plain("norm_bwd_f16_warp_sm80", 80),
        plain("norm_bwd_bf16_warp_sm80", 80),
        plain("norm_bwd_f32_block_sm80", 80),
        plain("norm_bwd_f16_block_sm80", 80),
        plain("norm_bwd_bf16_block_sm80", 80),
        plain("norm_gamma_f32_t256_sm80", 64),
        plain("norm_gamma_f16_t256_sm80", 64),
        plain("norm_gamma_bf16_t256_sm80", 64),
    ],
};

const POOL: Family = Family {
    source: "pool.cu",
    class: Class::Portable,
    defines: &[("POOL_THREADS", 256)],
    kernels: &[
        plain("pool_fwd_f32_t256_sm80", 40),
        plain("pool_fwd_f16_t256_sm80", 40),
        plain("pool_fwd_bf16_t256_sm80", 40),
        plain("pool_bwd_f32_t256_sm80", 40),
        plain("pool_bwd_f16_t256_sm80", 40),
        plain("pool_bwd_bf16_t256_sm80", 40),
    ],
};

const COLUMN_GATE: Family = Family {
    source: "column_gate.cu",
    class: Class::Portable,
    defines: &[("COLUMN_GATE_THREADS", 256)],
    kernels: &[
        plain("column_gate_fwd_f32_t256_sm80", 40),
        plain("column_gate_fwd_f16_t256_sm80", 40),
        plain("column_gate_fwd_bf16_t256_sm80", 40),
        plain("column_gate_widen_f16_t256_sm80", 40),
        plain("column_gate_widen_bf16_t256_sm80", 40),
    ],
};

const JOIN: Family = Family {
    source: "join.cu",
    class: Class::Portable,
    defines: &[("JOIN_THREADS", 256)],
    kernels: &[
        plain("join_copy_f32_t256_sm80", 40),
        plain("join_copy_f16_t256_sm80", 40),
        plain("join_copy_bf16_t256_sm80", 40),
    ],
};

const KRONECKER: Family = Family {
    source: "kronecker.cu",
    class: Class::Portable,
    defines: &[("KRONECKER_THREADS", 256)],
    kernels: &[
        plain("kronecker_fwd_f32_t256_sm80", 48),
        plain("kronecker_dots_f32_w32_sm80", 48),
        plain("kronecker_left_f32_t256_sm80", 48),
        plain("kronecker_right_f32_t256_sm80", 48),
        plain("kronecker_fwd_f16_t256_sm80", 48),
        plain("kronecker_dots_f16_w32_sm80", 48),
        plain("kronecker_left_f16_t256_sm80", 48),
        plain("kronecker_right_f16_t256_sm80", 48),
        plain("kronecker_fwd_bf16_t256_sm80", 48),
        plain("kronecker_dots_bf16_w32_sm80", 48),
        plain("kronecker_left_bf16_t256_sm80", 48),
        plain("kronecker_right_bf16_t256_sm80", 48),
    ],
};

const SCALE_ADD: Family = Family {
    source: "scale_add.cu",
    class: Class::Portable,
    defines: &[("SCALE_ADD_THREADS", 256)],
    kernels: &[
        plain("scale_add_fwd_f32_t256_sm80", 40),
        plain("scale_add_fwd_f16_t256_sm80", 40),
        plain("scale_add_fwd_bf16_t256_sm80", 40),
        plain("scale_add_widen_f16_t256_sm80", 40),
        plain("scale_add_widen_bf16_t256_sm80", 40),
    ],
};

const CROSS_ENTROPY: Family = Family {
    source: "cross_entropy.cu",
    class: Class::Portable,
    defines: &[("CROSS_ENTROPY_THREADS", 256)],
    kernels: &[
        plain("cross_entropy_sum_f32_t256_sm80", 40),
        plain("cross_entropy_rows_f32_w32_sm80", 40),
        plain("cross_entropy_rows_f16_w32_sm80", 40),
        plain("cross_entropy_rows_bf16_w32_sm80", 40),
        plain("cross_entropy_bwd_f32_w32_sm80", 48),
        plain("cross_entropy_bwd_f16_w32_sm80", 48),
        plain("cross_entropy_bwd_bf16_w32_sm80", 48),
        plain("cross_entropy_rows_f32_t256_sm80", 40),
        plain("cross_entropy_rows_f16_t256_sm80", 40),
        plain("cross_entropy_rows_bf16_t256_sm80", 40),
        plain("cross_entropy_bwd_f32_t256_sm80", 48),
        plain("cross_entropy_bwd_f16_t256_sm80", 48),
        plain("cross_entropy_bwd_bf16_t256_sm80", 48),
    ],
};

const EMBEDDING: Family = Family {
    source: "embedding.cu",
    class: Class::Portable,
    defines: &[("EMBEDDING_FORWARD_THREADS", 256), ("EMBEDDING_BACKWARD_THREADS", 128), ("EMBEDDING_COLUMNS", 512)],
    kernels: &[
        plain("embedding_fwd_f32_t256_sm80", 32),
        Row { symbol: "embedding_bwd_f32_c512_sm80", threads: 128, shared_bytes: 0, max_registers: 40 },
        plain("embedding_fwd_f16_t256_sm80", 32),
        Row { symbol: "embedding_bwd_f16_c512_sm80", threads: 128, shared_bytes: 0, max_registers: 40 },
        plain("embedding_fwd_bf16_t256_sm80", 32),
        Row { symbol: "embedding_bwd_bf16_c512_sm80", threads: 128, shared_bytes: 0, max_registers: 40 },
    ],
};

/// A gate's kernels take a row with a short or a long block, and keep what they read of it in registers.
const fn gate_forward(symbol: &'static str, threads: u32) -> Row {
    Row { symbol, threads, shared_bytes: 0, max_registers: 80 }
}

const fn gate_backward(symbol: &'static str, threads: u32) -> Row {
    Row { symbol, threads, shared_bytes: 0, max_registers: 128 }
}

const GRANULAR_SCALE: Family = Family {
    source: "granular_scale.cu",
    class: Class::Portable,
    defines: &[
        ("GRANULAR_SHORT", 64),
        ("GRANULAR_LONG", 256),
        ("GRANULAR_CHUNKS", 2),
        ("GRANULAR_SAMPLE_THREADS", 256),
        ("GRANULAR_TILE", 64),
        ("GRANULAR_TILE_SHARED", ring(64)),
        ("GEMM_STEP", GEMM_STEP),
        ("GEMM_STAGES", GEMM_STAGES),
        ("GEMM_F32_STEP", 16),
    ],
    kernels: &[
        gate_forward("granular_scale_fwd_f32_t64_sm80", 64),
        gate_forward("granular_scale_fwd_f32_t256_sm80", 256),
        gate_backward("granular_scale_bwd_f32_t64_sm80", 64),
        gate_backward("granular_scale_bwd_f32_t256_sm80", 256),
        gate_forward("granular_scale_fwd_f16_t64_sm80", 64),
        gate_forward("granular_scale_fwd_f16_t256_sm80", 256),
        gate_backward("granular_scale_bwd_f16_t64_sm80", 64),
        gate_backward("granular_scale_bwd_f16_t256_sm80", 256),
        gate_forward("granular_scale_fwd_bf16_t64_sm80", 64),
        gate_forward("granular_scale_fwd_bf16_t256_sm80", 256),
        gate_backward("granular_scale_bwd_bf16_t64_sm80", 64),
        gate_backward("granular_scale_bwd_bf16_t256_sm80", 256),
        f32_product("granular_scale_up_f32_64x64x16_sm80"),
        small_product("granular_scale_up_f16_64x64x32_sm80"),
        small_product("granular_scale_up_bf16_64x64x32_sm80"),
        plain("granular_scale_samples_f32_w32_sm80", 40),
        plain("granular_scale_logits_f32_w32_sm80", 40),
    ],
};

const EWC: Family = Family {
    source: "ewc.cu",
    class: Class::Portable,
    defines: &[("EWC_THREADS", 256), ("EWC_PIECE", 4096)],
    kernels: &[
        plain("ewc_observe_f32_t256_sm80", 32),
        plain("ewc_pull_f32_t256_sm80", 32),
        plain("ewc_penalty_f32_t256_sm80", 40),
    ],
};

const PATCH_EMBEDDING: Family = Family {
    source: "patch_embedding.cu",
    class: Class::Portable,
    defines: &[("PATCH_EMBEDDING_THREADS", 256), ("PATCH_EMBEDDING_TILE", 64), ("PATCH_EMBEDDING_STEP", 16)],
    kernels: &[
        plain("patch_embedding_fwd_f32_t64_sm80", 96),
        plain("patch_embedding_dpixels_f32_t64_sm80", 96),
        plain("patch_embedding_sums_f32_c32_sm80", 40),
        plain("patch_embedding_fwd_f16_t64_sm80", 96),
        plain("patch_embedding_dpixels_f16_t64_sm80", 96),
        plain("patch_embedding_sums_f16_c32_sm80", 40),
        plain("patch_embedding_fwd_bf16_t64_sm80", 96),
        plain("patch_embedding_dpixels_bf16_t64_sm80", 96),
        plain("patch_embedding_sums_bf16_c32_sm80", 40),
    ],
};

pub const FAMILIES: &[Family] = &[
    ACTIVATION,
    ADAMW,
    ATTENTION_32,
    ATTENTION_64,
    ATTENTION_128,
    BLOCK_SCORE,
    BLOCK_SPARSE_16,
    BLOCK_SPARSE_32,
    BLOCK_SPARSE_64,
    BLOCK_SPARSE_128,
    BLOCK_SPARSE_HOPPER_16,
    BLOCK_SPARSE_HOPPER_32,
    BLOCK_SPARSE_HOPPER_64,
    BLOCK_SPARSE_HOPPER_128,
    COLUMN_GATE,
    COLUMN_SUM,
    COSINE_GRAPH,
    CROSS_ENTROPY,
    DEFORMABLE_SAMPLE,
    DUAL_RANK,
    EDGE_SOFTMAX,
    EMBEDDING,
    EWC,
    FROZEN_LINEAR,
    FROZEN_LINEAR_HOPPER_128,
    FROZEN_LINEAR_HOPPER_256,
    GRANULAR_SCALE,
    GRAPH_ATTENTION,
    JOIN,
    KRONECKER,
    MAGNITUDE,
    NORM,
    ONE_LAUNCH_HOPPER_128,
    ONE_LAUNCH_HOPPER_256,
    PATCH_EMBEDDING,
    POOL,
    PROXIMAL,
    RIDE,
    RIDE_HOPPER[0],
    RIDE_HOPPER[1],
    RIDE_HOPPER[2],
    RIDE_HOPPER[3],
    RIDE_HOPPER[4],
    RIDE_HOPPER[5],
    RIDE_HOPPER[6],
    RIDE_HOPPER[7],
    SCALE_ADD,
    SDDMM,
    SEGMENTS,
    SPMM,
    TOPOLOGY,
];
