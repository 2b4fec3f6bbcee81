// The table of kernels: pure data, compiled into the crate and included by build.rs. It is the single source of tile constants:
// build.rs passes each family's defines to nvcc, and a kernel source refuses to compile without them.

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

/// Bytes of the ring of tiles of a product of 16-bit operands: two operands, `edge` by 32, in 4 stages.
const fn ring(edge: u32) -> u32 {
    GEMM_STAGES * 2 * edge * GEMM_STEP * 2
}
const GEMM_STAGES: u32 = 4;
const GEMM_STEP: u32 = 32;

const fn large_product(symbol: &'static str) -> Row {
    Row { symbol, threads: 256, shared_bytes: ring(128), max_registers: 128 }
}

const fn small_product(symbol: &'static str) -> Row {
    Row { symbol, threads: 128, shared_bytes: ring(64), max_registers: 112 }
}

const fn f32_product(symbol: &'static str) -> Row {
    Row { symbol, threads: 128, shared_bytes: 0, max_registers: 112 }
}

const FROZEN_LINEAR: Family = Family {
    source: "frozen_linear.cu",
    class: Class::Portable,
    defines: &[
        ("GEMM_LARGE", 128),
        ("GEMM_SMALL", 64),
        ("GEMM_STEP", GEMM_STEP),
        ("GEMM_STAGES", GEMM_STAGES),
        ("GEMM_LARGE_SHARED", ring(128)),
        ("GEMM_SMALL_SHARED", ring(64)),
        ("GEMM_F32_STEP", 16),
    ],
    kernels: &[
        large_product("frozen_linear_nt_f16_128x128x32_sm80"),
        large_product("frozen_linear_nn_f16_128x128x32_sm80"),
        large_product("frozen_linear_tn_f16_128x128x32_sm80"),
        large_product("frozen_linear_nt_bf16_128x128x32_sm80"),
        large_product("frozen_linear_nn_bf16_128x128x32_sm80"),
        large_product("frozen_linear_tn_bf16_128x128x32_sm80"),
        small_product("frozen_linear_nt_f16_64x64x32_sm80"),
        small_product("frozen_linear_nn_f16_64x64x32_sm80"),
        small_product("frozen_linear_tn_f16_64x64x32_sm80"),
        small_product("frozen_linear_nt_bf16_64x64x32_sm80"),
        small_product("frozen_linear_nn_bf16_64x64x32_sm80"),
        small_product("frozen_linear_tn_bf16_64x64x32_sm80"),
        f32_product("frozen_linear_nt_f32_64x64x16_sm80"),
        f32_product("frozen_linear_nn_f32_64x64x16_sm80"),
        f32_product("frozen_linear_tn_f32_64x64x16_sm80"),
    ],
};

const fn large_ride(symbol: &'static str) -> Row {
    Row { max_registers: 168, ..large_product(symbol) }
}

const fn small_ride(symbol: &'static str) -> Row {
    Row { max_registers: 128, ..small_product(symbol) }
}

const fn f32_ride(symbol: &'static str) -> Row {
    Row { max_registers: 136, ..f32_product(symbol) }
}

const RIDE: Family = Family {
    source: "ride.cu",
    class: Class::Portable,
    defines: FROZEN_LINEAR.defines,
    kernels: &[
        large_ride("ride_nt_f16_128x128x32_sm80"),
        large_ride("ride_nn_f16_128x128x32_sm80"),
        large_ride("ride_nt_bf16_128x128x32_sm80"),
        large_ride("ride_nn_bf16_128x128x32_sm80"),
        small_ride("ride_nt_f16_64x64x32_sm80"),
        small_ride("ride_nn_f16_64x64x32_sm80"),
        small_ride("ride_nt_bf16_64x64x32_sm80"),
        small_ride("ride_nn_bf16_64x64x32_sm80"),
        f32_ride("ride_nt_f32_64x64x16_sm80"),
        f32_ride("ride_nn_f32_64x64x16_sm80"),
    ],
};

/// Ring, panels of out, and barriers of a product on Hopper: 128 rows and so many columns a block, 64 of k a stage.
const fn hopper_ring(cols: u32, stages: u32) -> u32 {
    stages * (128 + cols) * 64 * 2 + 2 * 128 * 64 * 2 + stages * 16
}

macro_rules! frozen_linear_hopper {
    ($cols:literal, $stages:literal) => {
        Family {
            source: "frozen_linear_hopper.cu",
            class: Class::Hopper,
            defines: &[
                ("HOPPER_COLS", $cols),
                ("HOPPER_STAGES", $stages),
                ("HOPPER_SHARED", hopper_ring($cols, $stages)),
            ],
            kernels: &[
                hopper_row(concat!("frozen_linear_nt_f16_128x", $cols, "x64_sm90a"), hopper_ring($cols, $stages)),
                hopper_row(concat!("frozen_linear_nn_f16_128x", $cols, "x64_sm90a"), hopper_ring($cols, $stages)),
                hopper_row(concat!("frozen_linear_nt_bf16_128x", $cols, "x64_sm90a"), hopper_ring($cols, $stages)),
                hopper_row(concat!("frozen_linear_nn_bf16_128x", $cols, "x64_sm90a"), hopper_ring($cols, $stages)),
            ],
        }
    };
}

const FROZEN_LINEAR_HOPPER_256: Family = frozen_linear_hopper!(256, 4);
const FROZEN_LINEAR_HOPPER_128: Family = frozen_linear_hopper!(128, 6);

/// Ring, panels of out, and barriers of the products along lines of blocks: 256 rows of x and a block to 64 of the sum.
const fn hopper_lines(block: u32, stages: u32) -> u32 {
    let span = if block < 64 { block } else { 64 };
    stages * (64 / span) * (256 + block) * span * 2 + 2 * 128 * span * 2 + stages * 16
}

/// Ring and barriers of the products along strips: 64 tokens of a block's rows and of 256 columns.
const fn hopper_strips(block: u32, stages: u32) -> u32 {
    stages * (block + 256) * 64 * 2 + stages * 16
}

const fn hopper_row(symbol: &'static str, shared_bytes: u32) -> Row {
    Row { symbol, threads: 384, shared_bytes, max_registers: 168 }
}

macro_rules! block_sparse_hopper {
    ($block:literal $(, $strips:literal)*) => {
        Family {
            source: "block_sparse_hopper.cu",
            class: Class::Hopper,
            defines: &[
                ("BLOCK", $block),
                ("HOPPER_STAGES", 4),
                ("HOPPER_LINES_SHARED", hopper_lines($block, 4)),
                ("HOPPER_STRIPS_SHARED", hopper_strips($block, 4)),
            ],
            kernels: &[
                hopper_row(concat!("block_sparse_linear_rows_f16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_linear_columns_f16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_linear_rows_bf16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_linear_columns_bf16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                $(hopper_row($strips, hopper_strips($block, 4)),)*
            ],
        }
    };
}

const BLOCK_SPARSE_HOPPER_16: Family = block_sparse_hopper!(16);
const BLOCK_SPARSE_HOPPER_32: Family = block_sparse_hopper!(32);
const BLOCK_SPARSE_HOPPER_64: Family =
    block_sparse_hopper!(64, "block_sparse_linear_strips_f16_b64_sm90a", "block_sparse_linear_strips_bf16_b64_sm90a");
const BLOCK_SPARSE_HOPPER_128: Family = block_sparse_hopper!(
    128,
    "block_sparse_linear_strips_f16_b128_sm90a",
    "block_sparse_linear_strips_bf16_b128_sm90a"
);

const MULTIPLY: Family = Family {
    source: "multiply.cu",
    class: Class::Portable,
    defines: &[("MULTIPLY_THREADS", 256)],
    kernels: &[
        plain("multiply_fwd_f32_t256_sm80", 48),
        plain("multiply_fwd_f16_t256_sm80", 48),
        plain("multiply_fwd_bf16_t256_sm80", 48),
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

/// Shared memory of an attention kernel for heads of width d: so many rows of its own side and of the other side, d + 4 f32 long, and
/// so many rows of weights, 32 + 4 f32 long.
const fn attention_shared(d: u32, own: u32, other: u32, weights: u32) -> u32 {
    4 * ((own + other) * (d + 4) + weights * 36)
}

/// Forward takes 64 queries a block, backward 32 queries or 32 keys.
const fn attention_forward(symbol: &'static str, d: u32, max_registers: u32) -> Row {
    Row { symbol, threads: 256, shared_bytes: attention_shared(d, 64, 64, 64), max_registers }
}

const fn attention_dq(symbol: &'static str, d: u32, max_registers: u32) -> Row {
    Row { symbol, threads: 128, shared_bytes: attention_shared(d, 64, 64, 32), max_registers }
}

const fn attention_dkv(symbol: &'static str, d: u32, max_registers: u32) -> Row {
    Row { symbol, threads: 128, shared_bytes: attention_shared(d, 64, 64, 64), max_registers }
}

const ATTENTION_32: Family = Family {
    source: "attention.cu",
    class: Class::Portable,
    defines: &[
        ("ATTENTION_D", 32),
        ("ATTENTION_COLUMNS", 32),
        ("ATTENTION_FORWARD_THREADS", 256),
        ("ATTENTION_BACKWARD_THREADS", 128),
    ],
    kernels: &[
        attention_forward("attention_fwd_f32_d32_sm80", 32, 136),
        attention_dq("attention_dq_f32_d32_sm80", 32, 176),
        attention_dkv("attention_dkv_f32_d32_sm80", 32, 208),
        attention_forward("attention_fwd_f16_d32_sm80", 32, 136),
        attention_dq("attention_dq_f16_d32_sm80", 32, 176),
        attention_dkv("attention_dkv_f16_d32_sm80", 32, 208),
        attention_forward("attention_fwd_bf16_d32_sm80", 32, 136),
        attention_dq("attention_dq_bf16_d32_sm80", 32, 176),
        attention_dkv("attention_dkv_bf16_d32_sm80", 32, 208),
    ],
};

const ATTENTION_64: Family = Family {
    source: "attention.cu",
    class: Class::Portable,
    defines: &[
        ("ATTENTION_D", 64),
        ("ATTENTION_COLUMNS", 32),
        ("ATTENTION_FORWARD_THREADS", 256),
        ("ATTENTION_BACKWARD_THREADS", 128),
    ],
    kernels: &[
        attention_forward("attention_fwd_f32_d64_sm80", 64, 136),
        attention_dq("attention_dq_f32_d64_sm80", 64, 176),
        attention_dkv("attention_dkv_f32_d64_sm80", 64, 176),
        attention_forward("attention_fwd_f16_d64_sm80", 64, 136),
        attention_dq("attention_dq_f16_d64_sm80", 64, 176),
        attention_dkv("attention_dkv_f16_d64_sm80", 64, 176),
        attention_forward("attention_fwd_bf16_d64_sm80", 64, 136),
        attention_dq("attention_dq_bf16_d64_sm80", 64, 176),
        attention_dkv("attention_dkv_bf16_d64_sm80", 64, 176),
    ],
};

const ATTENTION_128: Family = Family {
    source: "attention.cu",
    class: Class::Portable,
    defines: &[
        ("ATTENTION_D", 128),
        ("ATTENTION_COLUMNS", 32),
        ("ATTENTION_FORWARD_THREADS", 256),
        ("ATTENTION_BACKWARD_THREADS", 128),
    ],
    kernels: &[
        attention_forward("attention_fwd_f32_d128_sm80", 128, 208),
        attention_dq("attention_dq_f32_d128_sm80", 128, 208),
        attention_dkv("attention_dkv_f32_d128_sm80", 128, 232),
        attention_forward("attention_fwd_f16_d128_sm80", 128, 208),
        attention_dq("attention_dq_f16_d128_sm80", 128, 208),
        attention_dkv("attention_dkv_f16_d128_sm80", 128, 232),
        attention_forward("attention_fwd_bf16_d128_sm80", 128, 208),
        attention_dq("attention_dq_bf16_d128_sm80", 128, 208),
        attention_dkv("attention_dkv_bf16_d128_sm80", 128, 232),
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

/// Block-sparse products: a tile is 128 by b, a step of the sum 64 long, or 32 where b is 128.
const fn block_step(b: u32) -> u32 {
    if b == 128 { 32 } else { 64 }
}
const fn block_stages(b: u32) -> u32 {
    if b == 128 { 4 } else { 3 }
}
const fn block_ring(b: u32) -> u32 {
    block_stages(b) * (128 + b) * block_step(b) * 2
}
const fn block_threads(b: u32) -> u32 {
    if b == 128 { 256 } else { 128 }
}
/// Blocks of threads that a multiprocessor must have room for.
const fn block_resident(b: u32) -> u32 {
    if b == 16 { 3 } else { 2 }
}
const fn block_f32_threads(b: u32) -> u32 {
    if b == 16 { 64 } else { 128 }
}

const fn block_product(symbol: &'static str, b: u32) -> Row {
    let max_registers = match b {
        16 => 168,
        128 => 128,
        _ => 240,
    };
    Row { symbol, threads: block_threads(b), shared_bytes: block_ring(b), max_registers }
}

const fn block_f32(symbol: &'static str, b: u32) -> Row {
    let max_registers = if b == 16 { 192 } else { 136 };
    Row { symbol, threads: block_f32_threads(b), shared_bytes: 0, max_registers }
}

macro_rules! block_sparse {
    ($b:literal) => {
        Family {
            source: "block_sparse.cu",
            class: Class::Portable,
            defines: &[
                ("BLOCK", $b),
                ("BLOCK_STEP", block_step($b)),
                ("BLOCK_STAGES", block_stages($b)),
                ("BLOCK_THREADS", block_threads($b)),
                ("BLOCK_RESIDENT", block_resident($b)),
                ("BLOCK_SHARED", block_ring($b)),
                ("BLOCK_F32_THREADS", block_f32_threads($b)),
                ("BLOCK_JOIN_THREADS", 256),
            ],
            kernels: &[
                block_f32(concat!("block_sparse_dense_nn_f32_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_dense_nn_f16_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_dense_nn_bf16_b", $b, "_sm80"), $b),
                block_f32(concat!("block_sparse_sampled_nn_f32_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_sampled_nn_f16_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_sampled_nn_bf16_b", $b, "_sm80"), $b),
                block_f32(concat!("block_sparse_dense_nt_f32_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_dense_nt_f16_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_dense_nt_bf16_b", $b, "_sm80"), $b),
                block_f32(concat!("block_sparse_sampled_nt_f32_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_sampled_nt_f16_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_sampled_nt_bf16_b", $b, "_sm80"), $b),
                block_f32(concat!("block_sparse_dense_tn_f32_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_dense_tn_f16_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_dense_tn_bf16_b", $b, "_sm80"), $b),
                block_f32(concat!("block_sparse_sampled_tn_f32_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_sampled_tn_f16_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_sampled_tn_bf16_b", $b, "_sm80"), $b),
                block_f32(concat!("block_sparse_dense_tt_f32_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_dense_tt_f16_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_dense_tt_bf16_b", $b, "_sm80"), $b),
                block_f32(concat!("block_sparse_sampled_tt_f32_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_sampled_tt_f16_b", $b, "_sm80"), $b),
                block_product(concat!("block_sparse_sampled_tt_bf16_b", $b, "_sm80"), $b),
                plain(concat!("block_sparse_join_t256_f32_b", $b, "_sm80"), 40),
                plain(concat!("block_sparse_join_t256_f16_b", $b, "_sm80"), 40),
                plain(concat!("block_sparse_join_t256_bf16_b", $b, "_sm80"), 40),
            ],
        }
    };
}
const BLOCK_SPARSE_16: Family = block_sparse!(16);
const BLOCK_SPARSE_32: Family = block_sparse!(32);
const BLOCK_SPARSE_64: Family = block_sparse!(64);
const BLOCK_SPARSE_128: Family = block_sparse!(128);

const BLOCK_SCORE: Family = Family {
    source: "block_score.cu",
    class: Class::Portable,
    defines: &[("BLOCK_SCORE_THREADS", 256)],
    kernels: &[
        plain("block_score_norm_f32_t256_sm80", 40),
        plain("block_score_norm_f16_t256_sm80", 40),
        plain("block_score_norm_bf16_t256_sm80", 40),
        plain("block_score_gradient_f32_t256_sm80", 40),
        plain("block_score_gradient_f16_t256_sm80", 40),
        plain("block_score_gradient_bf16_t256_sm80", 40),
    ],
};

const PROXIMAL: Family = Family {
    source: "proximal.cu",
    class: Class::Portable,
    defines: &[("PROXIMAL_THREADS", 256)],
    kernels: &[
        plain("proximal_blocks_f32_t256_sm80", 40),
        plain("proximal_blocks_f16_t256_sm80", 40),
        plain("proximal_blocks_bf16_t256_sm80", 40),
        plain("proximal_soft_f32_t256_sm80", 40),
        plain("proximal_soft_f16_t256_sm80", 40),
        plain("proximal_soft_bf16_t256_sm80", 40),
    ],
};

const TOPOLOGY: Family = Family {
    source: "topology.cu",
    class: Class::Portable,
    defines: &[("TOPOLOGY_THREADS", 256)],
    kernels: &[
        plain("topology_count_u8_t256_sm80", 40),
        plain("topology_scan_u32_t256_sm80", 40),
        plain("topology_fill_u32_t256_sm80", 40),
        plain("topology_turn_u32_t256_sm80", 40),
    ],
};

const SPMM: Family = Family {
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

const SDDMM: Family = Family {
    source: "sddmm.cu",
    class: Class::Portable,
    defines: &[("SDDMM_THREADS", 256)],
    kernels: &[
        plain("sddmm_fwd_f32_t256_sm80", 128),
        plain("sddmm_fwd_f16_t256_sm80", 128),
        plain("sddmm_fwd_bf16_t256_sm80", 128),
    ],
};

const EDGE_SOFTMAX: Family = Family {
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

const GRAPH_ATTENTION: Family = Family {
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

const COSINE_GRAPH: Family = Family {
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
    EDGE_SOFTMAX,
    EMBEDDING,
    FROZEN_LINEAR,
    FROZEN_LINEAR_HOPPER_128,
    FROZEN_LINEAR_HOPPER_256,
    GRANULAR_SCALE,
    GRAPH_ATTENTION,
    MULTIPLY,
    NORM,
    PATCH_EMBEDDING,
    POOL,
    PROXIMAL,
    RIDE,
    SCALE_ADD,
    SDDMM,
    SPMM,
    TOPOLOGY,
];
