//! The reference: the product with the frozen weight by `gemm`, the updates run by run.

use super::{Desc, Factors, OP};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm};
use crate::error::Result;
use crate::ops::frozen_linear::cpu::{apply_mask, masked};
use crate::ops::host::{In, Out, Real};
use crate::ops::linear::cpu::affine;
use crate::ops::thin::{self, Lies};
use crate::rng::Dropout;
use crate::tensor::Tensor;

pub fn forward<T: Real>(
    desc: &Desc,
    x: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    factors: &Factors,
    (h, y): (&Tensor, &Tensor),
) -> Result<()> {
    let Desc { m, n, k, r, .. } = *desc;
    let (x, weight) = (In::<T>::of(OP, x)?, In::<T>::of(OP, weight)?);
    let (a, b) = (In::<T>::of(OP, &factors.a)?, In::<T>::of(OP, &factors.b)?);
    let bias = bias.map(|b| In::<T>::of(OP, b)).transpose()?;
    let (mut out, mut low) = (Out::<T>::of(OP, y)?, Out::<T>::of(OP, h)?);
    affine(&mut out, (&x, &weight), bias.as_deref(), [m, n, k]);
    let scales = In::<f32>::of(OP, &factors.scales)?;
    for (slot, first, rows) in desc.segments.runs() {
        let x = &x[first * k..][..rows * k];
        let dropped = desc.dropout.map(|d| masked(x, &d));
        let low = &mut low[first * r..][..rows * r];
        thin::project(low, dropped.as_deref().unwrap_or(x), Mat::new(&a[slot * r * k..][..r * k], r, k));
        scale(low, scales[slot]);
        let b = Mat::new(&b[slot * n * r..][..n * r], n, r);
        thin::expand(&mut out[first * n..][..rows * n], low, b.t(), T::of(1.0));
    }
    low.finish()?;
    out.finish()
}

pub fn project<T: Real>(desc: &Desc, dy: &Tensor, factors: &Factors, u: &Tensor) -> Result<()> {
    let Desc { n, r, .. } = *desc;
    let (dy, b) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, &factors.b)?);
    let scales = In::<f32>::of(OP, &factors.scales)?;
    let mut out = Out::<T>::of(OP, u)?;
    for (slot, first, rows) in desc.segments.runs() {
        let out = &mut out[first * r..][..rows * r];
        thin::project(out, &dy[first * n..][..rows * n], Mat::new(&b[slot * n * r..][..n * r], n, r).t());
        scale(out, scales[slot]);
    }
    out.finish()
}

fn scale<T: Real>(values: &mut [T], by: f32) {
    let by = T::of(f64::from(by));
    values.iter_mut().for_each(|v| *v *= by);
}

pub fn input_gradient<T: Real>(
    desc: &Desc,
    dy: &Tensor,
    weight: &Tensor,
    (u, a): (&Tensor, &Tensor),
    target: &Target,
) -> Result<()> {
    let Desc { m, n, k, r, .. } = *desc;
    let (dy, weight) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, weight)?);
    let (u, a) = (In::<T>::of(OP, u)?, In::<T>::of(OP, a)?);
    let mut out = Out::<T>::into(OP, target)?;
    let keep = target.accumulate.then(|| T::of(1.0));
    gemm(MatMut::new(&mut out, m, k), keep, Mat::new(&dy, m, n), Mat::new(&weight, n, k), T::of(1.0));
    for (slot, first, rows) in desc.segments.runs() {
        let (out, u) = (&mut out[first * k..][..rows * k], &u[first * r..][..rows * r]);
        let a = Mat::new(&a[slot * r * k..][..r * k], r, k);
        let Some(dropout) = &desc.dropout else {
            thin::expand(out, u, a, T::of(1.0));
            continue;
        };
        let mut through = vec![T::of(0.0); rows * k];
        thin::expand(&mut through, u, a, T::of(1.0));
        apply_mask(&mut through, dropout);
        out.iter_mut().zip(through).for_each(|(o, v)| *o += v);
    }
    out.finish()
}

/// `target += leftᵀ dropout(right)`.
pub fn gather<T: Real>(
    &[rows, cols]: &[usize; 2],
    (left, right): (&Tensor, &Tensor),
    dropout: Option<Dropout>,
    target: &Target,
) -> Result<()> {
    let (left, right) = (In::<T>::of(OP, left)?, In::<T>::of(OP, right)?);
    let dropped = dropout.map(|d| masked(&right, &d));
    let right = dropped.as_deref().unwrap_or(&right);
    let m = right.len() / cols;
    let mut out = Out::<T>::into(OP, target)?;
    let (left, right) = (Mat::new(&left, m, rows), Mat::new(right, m, cols));
    // The rank is the narrower side.
    if rows <= cols {
        thin::gather(&mut out, Lies::Straight, target.accumulate, left, right, T::of(1.0));
    } else {
        thin::gather(&mut out, Lies::Transposed, target.accumulate, right, left, T::of(1.0));
    }
    out.finish()
}
