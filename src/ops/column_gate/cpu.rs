//! The reference: one pass, a row of b at a time.

use super::OP;
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::tensor::Tensor;

pub fn product<T: Real>(a: &Tensor, b: &Tensor, target: &Target) -> Result<()> {
    let (inner, accumulate) = (b.numel(), target.accumulate);
    let (a, b) = (In::<T>::of(OP, a)?, In::<T>::of(OP, b)?);
    let (a, b): (&[T], &[T]) = (&a, &b);
    let mut out = Out::<T>::into(OP, target)?;
    for_rows(
        &mut out,
        inner,
        #[inline(always)]
        |i, row| {
            let a = &a[i * inner..];
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
