//! The reference: one product each.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
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
    if let Some(bias) = bias {
        for_rows(out, n, |_, row| row.copy_from_slice(bias));
    }
    let keep = bias.is_some().then(|| T::of(1.0));
    gemm(MatMut::new(out, m, n), keep, Mat::new(x, m, k), Mat::new(weight, n, k).t(), T::of(1.0));
}

pub fn weight_gradient<T: Real>(desc: &Desc, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, .. } = *desc;
    let (dy, x) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, x)?);
    let mut out = Out::<T>::into(OP, target)?;
    let keep = target.accumulate.then(|| T::of(1.0));
    gemm(MatMut::new(&mut out, n, k), keep, Mat::new(&dy, m, n).t(), Mat::new(&x, m, k), T::of(1.0));
    out.finish()
}

pub fn input_gradient<T: Real>(desc: &Desc, dy: &Tensor, weight: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, .. } = *desc;
    let (dy, weight) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, weight)?);
    let mut out = Out::<T>::into(OP, target)?;
    let keep = target.accumulate.then(|| T::of(1.0));
    gemm(MatMut::new(&mut out, m, k), keep, Mat::new(&dy, m, n), Mat::new(&weight, n, k), T::of(1.0));
    out.finish()
}
