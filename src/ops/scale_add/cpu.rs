//! The reference: one pass, a row of z at a time. Each row takes the scale into a variable of its own: what a closure captures is
//! loaded again after every store.

use super::{Desc, OP};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::tensor::Tensor;

/// Elements that one step of the loop takes.
const CHUNK: usize = 2048;

pub fn run<T: Real>(desc: &Desc, base: Option<&Tensor>, z: &Tensor, y: &Tensor) -> Result<()> {
    let z = In::<T>::of(OP, z)?;
    let (z, scale): (&[T], T) = (&z, T::of(desc.scale));
    let Some(base) = base else {
        let mut out = Out::<T>::of(OP, y)?;
        for_rows(
            &mut out,
            CHUNK,
            #[inline(always)]
            |i, row| {
                let s = scale;
                for (o, &z) in row.iter_mut().zip(&z[i * CHUNK..]) {
                    *o = s * z;
                }
            },
        );
        return out.finish();
    };
    if base.buffer().id() == y.buffer().id() {
        let mut out = Out::<T>::adding(OP, y)?;
        for_rows(
            &mut out,
            CHUNK,
            #[inline(always)]
            |i, row| {
                let s = scale;
                for (o, &z) in row.iter_mut().zip(&z[i * CHUNK..]) {
                    *o += s * z;
                }
            },
        );
        return out.finish();
    }
    let base = In::<T>::of(OP, base)?;
    let mut out = Out::<T>::of(OP, y)?;
    let x: &[T] = &base;
    if desc.outer == 1 {
        for_rows(
            &mut out,
            CHUNK,
            #[inline(always)]
            |i, row| {
                let s = scale;
                let (x, z) = (&x[i * CHUNK..], &z[i * CHUNK..]);
                for ((o, &x), &z) in row.iter_mut().zip(x).zip(z) {
                    *o = x + s * z;
                }
            },
        );
    } else {
        for_rows(
            &mut out,
            desc.inner,
            #[inline(always)]
            |i, row| {
                let s = scale;
                let x = &x[i * desc.inner..];
                for ((o, &x), &z) in row.iter_mut().zip(x).zip(z) {
                    *o = x + s * z;
                }
            },
        );
    }
    out.finish()
}
