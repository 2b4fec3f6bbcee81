//! Block-sparse products, scores and steps of blocks, and the index of a pattern.

use super::products::hopper_row;
use super::{Class, Family, Row, plain};

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
pub const BLOCK_SPARSE_16: Family = block_sparse!(16);
pub const BLOCK_SPARSE_32: Family = block_sparse!(32);
pub const BLOCK_SPARSE_64: Family = block_sparse!(64);
pub const BLOCK_SPARSE_128: Family = block_sparse!(128);

pub const BLOCK_SCORE: Family = Family {
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

pub const PROXIMAL: Family = Family {
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

pub const TOPOLOGY: Family = Family {
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

/// Ring, panels of out, and barriers of the products along lines of blocks: 256 rows of x and a block to 64 of the sum.
const fn hopper_lines(block: u32, stages: u32) -> u32 {
    let span = if block < 64 { block } else { 64 };
    stages * (64 / span) * (256 + block) * span * 2 + 2 * 128 * span * 2 + stages * 16
}

/// Ring and barriers of the products sampled in strips: 64 of m, of a block's rows and of 256 columns.
const fn hopper_strips(block: u32, stages: u32) -> u32 {
    stages * (block + 256) * 64 * 2 + stages * 16
}

macro_rules! block_sparse_hopper {
    ($block:literal) => {
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
                hopper_row(concat!("block_sparse_lines_nn_f16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_lines_nt_f16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_lines_tn_f16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_lines_tt_f16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_lines_nn_bf16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_lines_nt_bf16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_lines_tn_bf16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_lines_tt_bf16_b", $block, "_sm90a"), hopper_lines($block, 4)),
                hopper_row(concat!("block_sparse_strips_nn_f16_b", $block, "_sm90a"), hopper_strips($block, 4)),
                hopper_row(concat!("block_sparse_strips_nt_f16_b", $block, "_sm90a"), hopper_strips($block, 4)),
                hopper_row(concat!("block_sparse_strips_tn_f16_b", $block, "_sm90a"), hopper_strips($block, 4)),
                hopper_row(concat!("block_sparse_strips_tt_f16_b", $block, "_sm90a"), hopper_strips($block, 4)),
                hopper_row(concat!("block_sparse_strips_nn_bf16_b", $block, "_sm90a"), hopper_strips($block, 4)),
                hopper_row(concat!("block_sparse_strips_nt_bf16_b", $block, "_sm90a"), hopper_strips($block, 4)),
                hopper_row(concat!("block_sparse_strips_tn_bf16_b", $block, "_sm90a"), hopper_strips($block, 4)),
                hopper_row(concat!("block_sparse_strips_tt_bf16_b", $block, "_sm90a"), hopper_strips($block, 4)),
            ],
        }
    };
}

pub const BLOCK_SPARSE_HOPPER_16: Family = block_sparse_hopper!(16);
pub const BLOCK_SPARSE_HOPPER_32: Family = block_sparse_hopper!(32);
pub const BLOCK_SPARSE_HOPPER_64: Family = block_sparse_hopper!(64);
pub const BLOCK_SPARSE_HOPPER_128: Family = block_sparse_hopper!(128);
