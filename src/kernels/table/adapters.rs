//! What single methods need besides the products.

use super::{Class, Family, Row, plain};

/// Eight columns of a row a lane, of several operands at once.
const fn gate(symbol: &'static str) -> Row {
    plain(symbol, 128)
}

pub const DUAL_RANK: Family = Family {
    source: "dual_rank.cu",
    class: Class::Portable,
    defines: &[("DUAL_RANK_THREADS", 256), ("DUAL_RANK_PIECE", 64)],
    kernels: &[
        gate("dual_rank_fwd_f32_w32_sm80"),
        gate("dual_rank_fwd_f16_w32_sm80"),
        gate("dual_rank_fwd_bf16_w32_sm80"),
        gate("dual_rank_bwd_f32_w32_sm80"),
        gate("dual_rank_bwd_f16_w32_sm80"),
        gate("dual_rank_bwd_bf16_w32_sm80"),
    ],
};

pub const MAGNITUDE: Family = Family {
    source: "magnitude.cu",
    class: Class::Portable,
    defines: &[("MAGNITUDE_THREADS", 256), ("MAGNITUDE_ROWS", 8), ("MAGNITUDE_RANK", 256)],
    kernels: &[
        plain("magnitude_norms_f32_r8_sm80", 80),
        plain("magnitude_norms_f16_r8_sm80", 80),
        plain("magnitude_norms_bf16_r8_sm80", 80),
        plain("magnitude_divide_f32_t256_sm80", 40),
        plain("magnitude_divide_f16_t256_sm80", 40),
        plain("magnitude_divide_bf16_t256_sm80", 40),
    ],
};

/// The gradient of the maps keeps a tile of sums for each of four warps, and a row that takes what belongs elsewhere.
const fn tiles(symbol: &'static str) -> Row {
    Row { symbol, threads: 128, shared_bytes: 0, max_registers: 80 }
}

pub const DEFORMABLE_SAMPLE: Family = Family {
    source: "deformable_sample.cu",
    class: Class::Portable,
    defines: &[
        ("DEFORMABLE_THREADS", 256),
        ("DEFORMABLE_LEVELS", 8),
        ("DEFORMABLE_TILE", 32),
        ("DEFORMABLE_TILE_THREADS", 128),
    ],
    kernels: &[
        plain("deformable_sample_fwd_f32_w32_sm80", 80),
        plain("deformable_sample_fwd_f16_w32_sm80", 80),
        plain("deformable_sample_fwd_bf16_w32_sm80", 80),
        plain("deformable_sample_bwd_f32_w32_sm80", 96),
        plain("deformable_sample_bwd_f16_w32_sm80", 96),
        plain("deformable_sample_bwd_bf16_w32_sm80", 96),
        tiles("deformable_sample_value_f32_t32_sm80"),
        tiles("deformable_sample_value_f16_t32_sm80"),
        tiles("deformable_sample_value_bf16_t32_sm80"),
    ],
};
