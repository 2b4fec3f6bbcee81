//! The reference: one product each, by `gemm`, or by [`thin`](crate::ops::thin) where one side of the weight is narrow.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::ops::thin::{self, Lies, is_narrow};
use crate::tensor::Tensor;

pub fn forward<T: Real>(desc: &Desc, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, y: &Tensor) -> Result<()> {
    let Desc { m, n, k, .. } = *desc;
    let (x, weight) = (In::<T>::of(OP, x)?, In::<T>::of(OP, weight)?);
    let bias = bias.map(|b| In::<T>::of(OP, b)).transpose()?;
    let mut out = Out::<T>::of(OP, y)?;
    affine(&mut out, (&x, &weight), bias.as_deref(), [m, n, k]);
    out.finish()
}

/// `out = x Wᵀ + b`.
pub(crate) fn affine<T: Real>(out: &mut [T], (x, weight): (&[T], &[T]), bias: Option<&[T]>, [m, n, k]: [usize; 3]) {
    let weight = Mat::new(weight, n, k);
    if is_narrow(n) {
        thin::project(out, x, weight);
        if let Some(bias) = bias {
            for_rows(
                out,
                n,
                #[inline(always)]
                |_, row| {
                    for (o, &b) in row.iter_mut().zip(bias) {
                        *o += b;
                    }
                },
            );
        }
        return;
    }
    match bias {
        Some(bias) => for_rows(out, n, |_, row| row.copy_from_slice(bias)),
        None if is_narrow(k) => out.fill(T::of(0.0)),
        None => {}
    }
    if is_narrow(k) {
        return thin::expand(out, x, weight.t(), T::of(1.0));
    }
    let keep = bias.is_some().then(|| T::of(1.0));
    gemm(MatMut::new(out, m, n), keep, Mat::new(x, m, k), weight.t(), T::of(1.0));
}

pub fn weight_gradient<T: Real>(desc: &Desc, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, .. } = *desc;
    let (dy, x) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, x)?);
    let mut out = Out::<T>::into(OP, target)?;
    let (dy, x, add) = (Mat::new(&dy, m, n), Mat::new(&x, m, k), target.accumulate);
    if is_narrow(n) {
        thin::gather(&mut out, Lies::Straight, add, dy, x, T::of(1.0));
    } else if is_narrow(k) {
        thin::gather(&mut out, Lies::Transposed, add, x, dy, T::of(1.0));
    } else {
        gemm(MatMut::new(&mut out, n, k), add.then(|| T::of(1.0)), dy.t(), x, T::of(1.0));
    }
    out.finish()
}

pub fn input_gradient<T: Real>(desc: &Desc, dy: &Tensor, weight: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, .. } = *desc;
    let (dy, weight) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, weight)?);
    let mut out = Out::<T>::into(OP, target)?;
    let (weight, add) = (Mat::new(&weight, n, k), target.accumulate);
    if is_narrow(n) {
        if !add {
            out.fill(T::of(0.0));
        }
        thin::expand(&mut out, &dy, weight, T::of(1.0));
    } else if is_narrow(k) && !add {
        thin::project(&mut out, &dy, weight.t());
    } else {
        gemm(MatMut::new(&mut out, m, k), add.then(|| T::of(1.0)), Mat::new(&dy, m, n), weight, T::of(1.0));
    }
    out.finish()
}
