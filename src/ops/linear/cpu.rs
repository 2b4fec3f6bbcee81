//! The reference: one product each.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, add_column_sums, for_rows};
use crate::tensor::Tensor;

pub fn forward<T: Real>(desc: &Desc, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, y: &Tensor) -> Result<()> {
    let Desc { m, n, k, .. } = *desc;
    let (x, weight) = (In::<T>::of(OP, x)?, In::<T>::of(OP, weight)?);
    let bias = bias.map(|b| In::<T>::of(OP, b)).transpose()?;
    let mut out = Out::<T>::of(OP, y)?;
    if let Some(bias) = &bias {
        let bias: &[T] = bias;
        for_rows(&mut out, n, |_, row| row.copy_from_slice(bias));
    }
    let keep = bias.is_some().then(|| T::of(1.0));
    gemm(MatMut::new(&mut out, m, n), keep, Mat::new(&x, m, k), Mat::new(&weight, n, k).t(), T::of(1.0));
    out.finish()
}

pub fn weight_gradient<T: Real>(desc: &Desc, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, k, .. } = *desc;
    let (dy, x) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, x)?);
    let mut out = Out::<T>::into(OP, target)?;
    let keep = target.accumulate.then(|| T::of(1.0));
    gemm(MatMut::new(&mut out, n, k), keep, Mat::new(&dy, m, n).t(), Mat::new(&x, m, k), T::of(1.0));
    out.finish()
}

pub fn bias_gradient<T: Real>(desc: &Desc, dy: &Tensor, target: &Target) -> Result<()> {
    let dy = In::<T>::of(OP, dy)?;
    let mut out = Out::<T>::into(OP, target)?;
    if !target.accumulate {
        out.fill(T::of(0.0));
    }
    add_column_sums(&dy, desc.n, &mut out);
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
