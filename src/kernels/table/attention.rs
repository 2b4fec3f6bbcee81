//! Attention, by the width of a head.

use super::{Class, Family, Row};

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

pub const ATTENTION_32: Family = Family {
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

pub const ATTENTION_64: Family = Family {
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

pub const ATTENTION_128: Family = Family {
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
