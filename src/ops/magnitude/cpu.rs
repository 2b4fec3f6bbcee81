//! The reference: some rows of B·A at a time, by a product that stays in the cache.

use rayon::prelude::*;

use super::{Desc, Kind, OP};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm_alone};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, vectorised};
use crate::ops::lanes;
use crate::tensor::Tensor;

/// Rows at a time.
const ROWS: usize = 16;

pub fn norms<T: Real>(desc: &Desc, weight: &Tensor, [a, b]: [&Tensor; 2], norms: &Tensor) -> Result<()> {
    let Desc { k, r, .. } = *desc;
    let (weight, a, b) = (In::<T>::of(OP, weight)?, In::<T>::of(OP, a)?, In::<T>::of(OP, b)?);
    let mut out = Out::<T>::of(OP, norms)?;
    let (weight, a, b, scale): (&[T], &[T], &[T], T) = (&weight, &a, &b, T::of(desc.scale));
    out.par_chunks_mut(ROWS).enumerate().for_each(|(block, out)| {
        let (first, rows) = (block * ROWS, out.len());
        let mut sums = weight[first * k..(first + rows) * k].to_vec();
        let (b, a) = (Mat::new(&b[first * r..], rows, r), Mat::new(a, r, k));
        gemm_alone(MatMut::new(&mut sums, rows, k), Some(T::of(1.0)), b, a, scale);
        vectorised(
            #[inline(always)]
            || {
                for (norm, row) in out.iter_mut().zip(sums.chunks_exact(k)) {
                    *norm = lanes::sum(row, |v| v * v).sqrt();
                }
            },
        );
    });
    out.finish()
}

pub fn divide<T: Real>(x: &Tensor, norms: &Tensor, kind: Kind, target: &Target) -> Result<()> {
    let (x, norms) = (In::<T>::of(OP, x)?, In::<T>::of(OP, norms)?);
    let mut out = Out::<T>::into(OP, target)?;
    let (zero, without) = (T::of(0.0), T::of(if kind == Kind::Forward { 1.0 } else { 0.0 }));
    for ((o, &x), &norm) in out.iter_mut().zip(&x[..]).zip(&norms[..]) {
        let quotient = if norm == zero { without } else { x / norm };
        *o = if target.accumulate { *o + quotient } else { quotient };
    }
    out.finish()
}
