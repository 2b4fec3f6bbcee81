//! The reference.

use super::Threshold;
use crate::error::Result;
use crate::ops::host::{Out, Real, for_rows};
use crate::ops::lanes::sum;
use crate::tensor::Tensor;

pub fn shrink_blocks<T: Real>(
    op: &'static str,
    master: &Tensor,
    working: Option<&Tensor>,
    threshold: Threshold,
    blocks: usize,
) -> Result<()> {
    let mut values = master.write::<T>(op)?;
    let given = match threshold {
        Threshold::Uniform(_) => None,
        Threshold::PerBlock(t) => Some(t.read::<f32>(op)?),
    };
    let each: Option<&[f32]> = given.as_deref();
    let uniform = if let Threshold::Uniform(t) = threshold { t } else { 0.0 };
    let len = values.len() / blocks;
    for_rows(
        &mut values,
        len,
        #[inline(always)]
        |e, block| {
            let t = T::of(each.map_or(uniform, |t| f64::from(t[e])));
            let norm = sum(block, |v| v * v).sqrt();
            let rest = T::of(1.0) - t / norm;
            // A norm of zero leaves nothing to shrink; NaN passes both comparisons.
            let factor = if norm == T::of(0.0) || rest < T::of(0.0) { T::of(0.0) } else { rest };
            for v in block {
                *v = factor * *v;
            }
        },
    );
    copy(op, &values, working)
}

pub fn soft_threshold<T: Real>(
    op: &'static str,
    master: &Tensor,
    working: Option<&Tensor>,
    threshold: f64,
) -> Result<()> {
    let mut values = master.write::<T>(op)?;
    let t = T::of(threshold);
    for_rows(
        &mut values,
        4096,
        #[inline(always)]
        |_, row| {
            for v in row {
                let (down, up) = (*v - t, *v + t);
                // What lies between the thresholds becomes zero; NaN stays.
                let within = if up < T::of(0.0) { up } else { *v * T::of(0.0) };
                *v = if down > T::of(0.0) { down } else { within };
            }
        },
    );
    copy(op, &values, working)
}

/// Rounds the values into the working copy.
fn copy<T: Real>(op: &'static str, values: &[T], working: Option<&Tensor>) -> Result<()> {
    let Some(working) = working else { return Ok(()) };
    let mut out = Out::<T>::of(op, working)?;
    out.copy_from_slice(values);
    out.finish()
}
