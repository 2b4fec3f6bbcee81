//! The reference: one pass.

use super::OP;
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::tensor::Tensor;

/// Elements that one step of the loop takes.
const CHUNK: usize = 2048;

pub fn run<T: Real>(x: &Tensor, z: &Tensor, target: &Target) -> Result<()> {
    let (x, z) = (In::<T>::of(OP, x)?, In::<T>::of(OP, z)?);
    let (x, z): (&[T], &[T]) = (&x, &z);
    let mut out = Out::<T>::into(OP, target)?;
    if target.accumulate {
        for_rows(
            &mut out,
            CHUNK,
            #[inline(always)]
            |i, row| {
                for ((o, &x), &z) in row.iter_mut().zip(&x[i * CHUNK..]).zip(&z[i * CHUNK..]) {
                    *o += x * z;
                }
            },
        );
    } else {
        for_rows(
            &mut out,
            CHUNK,
            #[inline(always)]
            |i, row| {
                for ((o, &x), &z) in row.iter_mut().zip(&x[i * CHUNK..]).zip(&z[i * CHUNK..]) {
                    *o = x * z;
                }
            },
        );
    }
    out.finish()
}
