//! The reference: one pass, a row of b at a time, or pieces of it where b is as long as a.

use super::OP;
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::tensor::Tensor;

/// Elements that one step takes where nothing repeats.
const CHUNK: usize = 2048;

pub fn product<T: Real>(a: &Tensor, b: &Tensor, target: &Target) -> Result<()> {
    let (repeats, accumulate) = (b.numel() < a.numel(), target.accumulate);
    let step = if repeats { b.numel() } else { CHUNK };
    let (a, b) = (In::<T>::of(OP, a)?, In::<T>::of(OP, b)?);
    let (a, b): (&[T], &[T]) = (&a, &b);
    let mut out = Out::<T>::into(OP, target)?;
    for_rows(
        &mut out,
        step,
        #[inline(always)]
        |i, row| {
            let a = &a[i * step..];
            let b = if repeats { b } else { &b[i * step..] };
            if accumulate {
                for ((o, &a), &b) in row.iter_mut().zip(a).zip(b) {
                    *o += a * b;
                }
            } else {
                for ((o, &a), &b) in row.iter_mut().zip(a).zip(b) {
                    *o = a * b;
                }
            }
        },
    );
    out.finish()
}
