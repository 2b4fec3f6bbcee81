//! How "right" is decided: four comparisons, and gradient checks in f64. Public, so that a trainer can hold its own ops to them.

pub mod compare;
pub mod gradient;

use crate::rng::Stream;

/// Deterministic values from N(0, 1), for tests and benches.
pub fn normal(name: &str, len: usize) -> Vec<f32> {
    let stream = Stream::named(0, 0, name);
    (0..len as u64).map(|e| stream.normal(e) as f32).collect()
}

/// Deterministic integers from `-limit ..= limit`: sums of their products stay exact in f32 while below 2²⁴.
pub fn integers(name: &str, len: usize, limit: u32) -> Vec<f32> {
    let stream = Stream::named(0, 0, name);
    (0..len as u64).map(|e| (stream.bits(e) % (2 * limit + 1)) as f32 - limit as f32).collect()
}
