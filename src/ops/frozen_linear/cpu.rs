//! The reference: the large products by `gemm`, those of a rank by [`thin`](crate::ops::thin), everything else by plain loops.

use super::{Backward, Desc, OP, Operands};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm};
use crate::error::Result;
use crate::ops::block_sparse::dense_into;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::ops::linear::cpu::affine;
use crate::ops::thin::{self, Lies};
use crate::rng::Dropout;
use crate::tensor::Tensor;

pub fn forward<T: Real>(desc: &Desc, x: &Tensor, operands: &Operands, y: &Tensor) -> Result<()> {
    let Desc { m, n, k, r, .. } = *desc;
    let x = In::<T>::of(OP, x)?;
    let weight = In::<T>::of(OP, operands.weight)?;
    let mut out = Out::<T>::of(OP, y)?;
    let bias = operands.bias.map(|b| In::<T>::of(OP, b)).transpose()?;
    affine(&mut out, (&x, &weight), bias.as_deref(), [m, n, k]);
    if let (Some(b), Some(h)) = (operands.b, operands.h) {
        let b = In::<T>::of(OP, b)?;
        let b = Mat::new(&b, n, r).t();
        match operands.a {
            Some(a) => {
                let mut made = Out::<T>::of(OP, h)?;
                low(desc, &x, a, &mut made)?;
                thin::expand(&mut out, &made, b, T::of(desc.h_scale));
                made.finish()?;
            }
            None => thin::expand(&mut out, &In::<T>::of(OP, h)?, b, T::of(desc.h_scale)),
        }
    }
    if let Some(sparse) = operands.sparse {
        dense_into(sparse.update.product(), &sparse.values, &x, &mut out, true)?;
    }
    if let Some(residual) = operands.residual {
        let residual = In::<T>::of(OP, residual)?;
        let residual: &[T] = &residual;
        for_rows(
            &mut out,
            n,
            #[inline(always)]
            |i, row| {
                for (o, &v) in row.iter_mut().zip(&residual[i * n..]) {
                    *o += v;
                }
            },
        );
    }
    out.finish()
}

/// `z = s · dropout(x) Aᵀ`.
fn low<T: Real>(desc: &Desc, x: &[T], a: &Tensor, z: &mut [T]) -> Result<()> {
    let a = In::<T>::of(OP, a)?;
    let dropped = desc.dropout.map(|d| masked(x, &d));
    thin::project(z, dropped.as_deref().unwrap_or(x), Mat::new(&a, desc.r, desc.k));
    scale(z, desc.z_scale);
    Ok(())
}

fn scale<T: Real>(values: &mut [T], by: f64) {
    if by != 1.0 {
        let by = T::of(by);
        values.iter_mut().for_each(|v| *v *= by);
    }
}

/// `z = dropout(x) Aᵀ + c`.
pub fn biased_low<T: Real>(desc: &Desc, x: &Tensor, (a, bias): (&Tensor, Option<&Tensor>), z: &Tensor) -> Result<()> {
    let x = In::<T>::of(OP, x)?;
    let mut out = Out::<T>::of(OP, z)?;
    low(desc, &x, a, &mut out)?;
    if let Some(bias) = bias {
        let bias = In::<T>::of(OP, bias)?;
        for row in out.chunks_exact_mut(desc.r) {
            for (v, &c) in row.iter_mut().zip(bias.iter()) {
                *v += c;
            }
        }
    }
    out.finish()
}

pub fn project<T: Real>(desc: &Desc, dy: &Tensor, b: &Tensor, u: &Tensor) -> Result<()> {
    let (dy, b) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, b)?);
    let mut out = Out::<T>::of(OP, u)?;
    thin::project(&mut out, &dy, Mat::new(&b, desc.n, desc.r).t());
    scale(&mut out, desc.h_scale);
    out.finish()
}

pub fn input_gradient<T: Real>(
    desc: &Desc,
    dy: &Tensor,
    weight: &Tensor,
    updates: Backward,
    target: &Target,
) -> Result<()> {
    let Desc { m, n, k, .. } = *desc;
    let (dy, weight) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, weight)?);
    let mut out = Out::<T>::into(OP, target)?;
    let keep = target.accumulate.then(|| T::of(1.0));
    gemm(MatMut::new(&mut out, m, k), keep, Mat::new(&dy, m, n), Mat::new(&weight, n, k), T::of(1.0));
    if let Some((a, u)) = updates.low_rank {
        let rank = u.cols();
        let (a, u) = (In::<T>::of(OP, a)?, In::<T>::of(OP, u)?);
        let (a, scale) = (Mat::new(&a, rank, k), T::of(desc.z_scale));
        match &desc.dropout {
            None => thin::expand(&mut out, &u, a, scale),
            Some(dropout) => {
                let mut through = vec![T::of(0.0); m * k];
                thin::expand(&mut through, &u, a, scale);
                apply_mask(&mut through, dropout);
                for_rows(&mut out, k, |i, row| {
                    for (o, &v) in row.iter_mut().zip(&through[i * k..]) {
                        *o += v;
                    }
                });
            }
        }
    }
    if let Some(sparse) = updates.sparse {
        dense_into(&sparse.update.back_product(), &sparse.values, &dy, &mut out, true)?;
    }
    out.finish()
}

pub fn a_gradient<T: Real>(desc: &Desc, u: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let (Desc { m, k, .. }, rank) = (*desc, u.cols());
    let (u, x) = (In::<T>::of(OP, u)?, In::<T>::of(OP, x)?);
    let dropped = desc.dropout.map(|d| masked(&x, &d));
    let x = dropped.as_deref().unwrap_or(&x);
    let mut out = Out::<T>::into(OP, target)?;
    let (u, x) = (Mat::new(&u, m, rank), Mat::new(x, m, k));
    thin::gather(&mut out, Lies::Straight, target.accumulate, u, x, T::of(desc.z_scale));
    out.finish()
}

pub fn b_gradient<T: Real>(desc: &Desc, dy: &Tensor, h: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, r, .. } = *desc;
    let (dy, h) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, h)?);
    let mut out = Out::<T>::into(OP, target)?;
    let (h, dy) = (Mat::new(&h, m, r), Mat::new(&dy, m, n));
    thin::gather(&mut out, Lies::Transposed, target.accumulate, h, dy, T::of(desc.h_scale));
    out.finish()
}

/// A copy of `x [m, k]` with dropped elements zeroed and kept ones scaled.
pub fn masked<T: Real>(x: &[T], dropout: &Dropout) -> Vec<T> {
    let mut out = x.to_vec();
    apply_mask(&mut out, dropout);
    out
}

/// Element (i, j) of a `[m, k]` matrix draws number `i·k + j`, whatever the tiling.
pub fn apply_mask<T: Real>(values: &mut [T], dropout: &Dropout) {
    // Rows are regrouped in fours of elements, so that each Philox block is drawn once.
    const BLOCK: usize = 1024;
    for_rows(
        values,
        BLOCK,
        #[inline(always)]
        |index, block| {
            let first = (index * BLOCK / 4) as u64;
            for (i, four) in block.chunks_mut(4).enumerate() {
                let factors = dropout.factors(first + i as u64);
                for (v, f) in four.iter_mut().zip(factors) {
                    *v *= T::of(f64::from(f));
                }
            }
        },
    );
}
