//! How "right" is decided: four comparisons, and gradient checks in f64. Public, so that a trainer can hold its own ops to them.

pub mod compare;
pub mod gradient;

use crate::device::{Mat, MatMut, gemm};
use crate::error::{Error, Result};
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

/// `out [m, n] = x [m, k] · wᵀ, w [n, k]`, by the `gemm` crate alone: what a linear layer on the CPU is measured against.
pub fn bare_product([m, n, k]: [usize; 3], x: &[f32], w: &[f32], out: &mut [f32]) -> Result<()> {
    for (argument, len, rows, cols) in [("x", x.len(), m, k), ("w", w.len(), n, k), ("out", out.len(), m, n)] {
        if rows.checked_mul(cols) != Some(len) {
            return Err(Error::shape("bare_product", argument, format!("[{rows}, {cols}]"), &[len]));
        }
    }
    gemm(MatMut::new(out, m, n), None, Mat::new(x, m, k), Mat::new(w, n, k).t(), 1.0);
    Ok(())
}
