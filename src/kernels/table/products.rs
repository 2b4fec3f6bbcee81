//! Dense products: of linears, with what is low-rank or block-sparse beside them.

use super::{Class, Family, Row};

/// Bytes of the ring of tiles of a product of 16-bit operands: two operands, `edge` by 32, in 4 stages.
pub const fn ring(edge: u32) -> u32 {
    GEMM_STAGES * 2 * edge * GEMM_STEP * 2
}
pub const GEMM_STAGES: u32 = 4;
pub const GEMM_STEP: u32 = 32;

const fn large_product(symbol: &'static str) -> Row {
    Row { symbol, threads: 256, shared_bytes: ring(128), max_registers: 128 }
}

pub const fn small_product(symbol: &'static str) -> Row {
    Row { symbol, threads: 128, shared_bytes: ring(64), max_registers: 112 }
}

pub const fn f32_product(symbol: &'static str) -> Row {
    Row { symbol, threads: 128, shared_bytes: 0, max_registers: 112 }
}

pub const FROZEN_LINEAR: Family = Family {
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

pub const RIDE: Family = Family {
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

pub const SEGMENTS: Family = Family {
    source: "segments.cu",
    class: Class::Portable,
    defines: FROZEN_LINEAR.defines,
    kernels: &[
        Row { max_registers: 208, ..large_product("segments_nt_f16_128x128x32_sm80") },
        Row { max_registers: 208, ..large_product("segments_nt_bf16_128x128x32_sm80") },
        large_ride("segments_nn_f16_128x128x32_sm80"),
        large_ride("segments_nn_bf16_128x128x32_sm80"),
        Row { max_registers: 144, ..small_product("segments_nt_f16_64x64x32_sm80") },
        Row { max_registers: 144, ..small_product("segments_nt_bf16_64x64x32_sm80") },
        small_ride("segments_nn_f16_64x64x32_sm80"),
        small_ride("segments_nn_bf16_64x64x32_sm80"),
        f32_ride("segments_nt_f32_64x64x16_sm80"),
        f32_ride("segments_nn_f32_64x64x16_sm80"),
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

macro_rules! ride_hopper {
    ($block:literal, $cols:literal, $stages:literal) => {
        Family {
            source: "ride_hopper.cu",
            class: Class::Hopper,
            defines: &[
                ("BLOCK", $block),
                ("HOPPER_COLS", $cols),
                ("HOPPER_STAGES", $stages),
                ("HOPPER_SHARED", hopper_ring($cols, $stages)),
            ],
            kernels: &[
                hopper_row(concat!("ride_nt_f16_128x", $cols, "x64b", $block, "_sm90a"), hopper_ring($cols, $stages)),
                hopper_row(concat!("ride_nn_f16_128x", $cols, "x64b", $block, "_sm90a"), hopper_ring($cols, $stages)),
                hopper_row(concat!("ride_nt_bf16_128x", $cols, "x64b", $block, "_sm90a"), hopper_ring($cols, $stages)),
                hopper_row(concat!("ride_nn_bf16_128x", $cols, "x64b", $block, "_sm90a"), hopper_ring($cols, $stages)),
            ],
        }
    };
}

pub const RIDE_HOPPER: [Family; 8] = [
    ride_hopper!(16, 256, 4),
    ride_hopper!(32, 256, 4),
    ride_hopper!(64, 256, 4),
    ride_hopper!(128, 256, 4),
    ride_hopper!(16, 128, 6),
    ride_hopper!(32, 128, 6),
    ride_hopper!(64, 128, 6),
    ride_hopper!(128, 128, 6),
];

pub const FROZEN_LINEAR_HOPPER_256: Family = frozen_linear_hopper!(256, 4);
pub const FROZEN_LINEAR_HOPPER_128: Family = frozen_linear_hopper!(128, 6);

macro_rules! one_launch_hopper {
    ($cols:literal, $stages:literal) => {
        Family {
            source: "one_launch_hopper.cu",
            class: Class::Hopper,
            defines: &[
                ("HOPPER_COLS", $cols),
                ("HOPPER_STAGES", $stages),
                ("HOPPER_SHARED", one_launch_ring($cols, $stages)),
            ],
            kernels: &[
                hopper_row(concat!("frozen_linear_lora_f16_128x", $cols, "x64_sm90a"), one_launch_ring($cols, $stages)),
                hopper_row(
                    concat!("frozen_linear_lora_bf16_128x", $cols, "x64_sm90a"),
                    one_launch_ring($cols, $stages),
                ),
            ],
        }
    };
}

/// And two numbers of turns.
const fn one_launch_ring(cols: u32, stages: u32) -> u32 {
    hopper_ring(cols, stages) + 8
}

pub const ONE_LAUNCH_HOPPER_256: Family = one_launch_hopper!(256, 4);
pub const ONE_LAUNCH_HOPPER_128: Family = one_launch_hopper!(128, 6);

pub const fn hopper_row(symbol: &'static str, shared_bytes: u32) -> Row {
    Row { symbol, threads: 384, shared_bytes, max_registers: 168 }
}
