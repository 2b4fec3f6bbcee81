//! The reference: rows in parallel, their losses added up in row order.

use rayon::prelude::*;

use super::{Desc, OP, Statistics};
use crate::autograd::Target;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::host::{In, Out, Real, for_rows, vectorised};
use crate::ops::lanes::fold;
use crate::tensor::Tensor;

/// A row is summed in this many interleaved parts.
const LANES: usize = 16;
/// Elements that one task looks at.
const BLOCK: usize = 16 * 1024;

pub fn forward<T: Real>(
    desc: &Desc,
    logits: &Tensor,
    targets: &Tensor,
    statistics: &Statistics,
    loss: &Tensor,
) -> Result<()> {
    let Desc { m, c, .. } = *desc;
    let classes = Classes::of(desc, targets)?;
    let x = In::<T>::of(OP, logits)?;
    let mut lse = Out::<T>::of(OP, &statistics.lse)?;
    let mut losses = vec![T::of(0.0); m];
    let rows = (BLOCK / c).max(1);
    lse.par_chunks_mut(rows).zip(losses.par_chunks_mut(rows)).zip(x.par_chunks(rows * c)).enumerate().for_each(
        |(block, ((lse, losses), x))| {
            vectorised(
                #[inline(always)]
                || {
                    for (i, x) in x.chunks_exact(c).enumerate() {
                        if let Some(y) = classes.0[block * rows + i] {
                            (lse[i], losses[i]) = row_loss(x, y, desc.label_smoothing);
                        } else {
                            lse[i] = T::of(0.0);
                        }
                    }
                },
            );
        },
    );
    let n = desc.denominator.unwrap_or(classes.0.iter().flatten().count() as u64);
    let inverse = if n == 0 { 0.0 } else { 1.0 / n as f64 };
    let sum: f64 = losses.iter().map(|l| l.to_f64()).sum();
    let mut out = Out::<T>::of(OP, loss)?;
    out[0] = T::of(sum * inverse);
    out.finish()?;
    lse.finish()?;
    let mut out = Out::<T>::of(OP, &statistics.inverse)?;
    out[0] = T::of(inverse);
    out.finish()
}

pub fn backward<T: Real>(
    desc: &Desc,
    logits: &Tensor,
    targets: &Tensor,
    statistics: &Statistics,
    dy: &Tensor,
    target: &Target,
) -> Result<()> {
    let classes = Classes::of(desc, targets)?;
    let (x, lse) = (In::<T>::of(OP, logits)?, In::<T>::of(OP, &statistics.lse)?);
    let scale = In::<T>::of(OP, dy)?[0] * In::<T>::of(OP, &statistics.inverse)?[0];
    let (hit, each) = (T::of(1.0 - desc.label_smoothing), T::of(desc.label_smoothing / desc.c as f64));
    let (x, lse, add): (&[T], &[T], bool) = (&x, &lse, target.accumulate);
    let mut out = Out::<T>::into(OP, target)?;
    for_rows(
        &mut out,
        desc.c,
        #[inline(always)]
        |i, row| {
            let Some(y) = classes.0[i] else {
                if !add {
                    row.fill(T::of(0.0));
                }
                return;
            };
            let (x, lse) = (&x[i * desc.c..][..desc.c], lse[i]);
            let gradient = |x: T| scale * ((x - lse).exp() - each);
            if add {
                for (o, &x) in row.iter_mut().zip(x) {
                    *o += gradient(x);
                }
            } else {
                for (o, &x) in row.iter_mut().zip(x) {
                    *o = gradient(x);
                }
            }
            row[y] += -(scale * hit);
        },
    );
    out.finish()
}

/// Log-sum-exp and loss of one row.
#[inline(always)]
fn row_loss<T: Real>(x: &[T], y: usize, smoothing: f64) -> (T, T) {
    let mut lanes = [T::of(f64::NEG_INFINITY); LANES];
    let chunks = x.chunks_exact(LANES);
    for (m, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *m = x.maximum(*m);
    }
    for chunk in chunks {
        for (m, &x) in lanes.iter_mut().zip(chunk) {
            *m = x.maximum(*m);
        }
    }
    let max = fold(lanes, |a, b| a.maximum(b));
    let (mut sums, mut totals) = ([T::of(0.0); LANES], [T::of(0.0); LANES]);
    for chunk in x.chunks(LANES) {
        for ((sum, total), &x) in sums.iter_mut().zip(&mut totals).zip(chunk) {
            *sum += (x - max).exp();
            *total += x - max;
        }
    }
    let log_sum = fold(sums, |a, b| a + b).ln();
    let mut loss = log_sum - (x[y] - max);
    if smoothing > 0.0 {
        let mean = log_sum - fold(totals, |a, b| a + b) * T::of(1.0 / x.len() as f64);
        loss = T::of(1.0 - smoothing) * loss + T::of(smoothing) * mean;
    }
    (max + log_sum, loss)
}

/// The class of each row; `None` where it is ignored.
struct Classes(Vec<Option<usize>>);

impl Classes {
    fn of(desc: &Desc, targets: &Tensor) -> Result<Self> {
        match desc.target_dtype {
            DType::I32 => Classes::checked(desc, targets.read::<i32>(OP)?.iter().map(|&y| i64::from(y))),
            _ => Classes::checked(desc, targets.read::<i64>(OP)?.iter().copied()),
        }
    }

    fn checked(desc: &Desc, targets: impl Iterator<Item = i64>) -> Result<Self> {
        let class = |(row, y): (usize, i64)| {
            if desc.ignore_index == Some(y) {
                return Ok(None);
            }
            match usize::try_from(y) {
                Ok(y) if y < desc.c => Ok(Some(y)),
                _ => {
                    let ignored = desc.ignore_index.map(|i| format!(", or {i} to ignore the row")).unwrap_or_default();
                    let expected = format!("a class in 0..{}{ignored}", desc.c);
                    Err(Error::value(OP, "targets", expected, format!("{y} in row {row}")))
                }
            }
        };
        Ok(Classes(targets.enumerate().map(class).collect::<Result<_>>()?))
    }
}
