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

pub fn forward<T: Real>(desc: &Desc, x: &Tensor, operands: &Operands, h: Option<&Tensor>, y: &Tensor) -> Result<()> {
    let Desc { m, n, k, r, .. } = *desc;
    let x = In::<T>::of(OP, x)?;
    let weight = In::<T>::of(OP, operands.weight)?;
    let mut out = Out::<T>::of(OP, y)?;
    let bias = operands.bias.map(|b| In::<T>::of(OP, b)).transpose()?;
    affine(&mut out, (&x, &weight), bias.as_deref(), [m, n, k]);
    if let (Some(a), Some(b), Some(h)) = (operands.a, operands.b, h) {
        let (a, b) = (In::<T>::of(OP, a)?, In::<T>::of(OP, b)?);
        let dropped = desc.dropout.map(|d| masked(&x, &d));
        let kept = dropped.as_deref().unwrap_or(&x);
        let mut low = Out::<T>::of(OP, h)?;
        thin::project(&mut low, kept, Mat::new(&a, r, k));
        let scale = T::of(desc.scale);
        low.iter_mut().for_each(|v| *v *= scale);
        thin::expand(&mut out, &low, Mat::new(&b, n, r).t(), T::of(1.0));
        low.finish()?;
    }
    if let Some(sparse) = operands.sparse {
        dense_into(sparse.update.product(), &sparse.values, &x, &mut out, true)?;
    }
    out.finish()
}

pub fn project<T: Real>(desc: &Desc, dy: &Tensor, b: &Tensor, u: &Tensor) -> Result<()> {
    let (dy, b) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, b)?);
    let mut out = Out::<T>::of(OP, u)?;
    thin::project(&mut out, &dy, Mat::new(&b, desc.n, desc.r).t());
    out.finish()
}

pub fn input_gradient<T: Real>(
    desc: &Desc,
    dy: &Tensor,
    weight: &Tensor,
    updates: Backward,
    target: &Target,
) -> Result<()> {
    let Desc { m, n, k, r, .. } = *desc;
    let (dy, weight) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, weight)?);
    let mut out = Out::<T>::into(OP, target)?;
    let keep = target.accumulate.then(|| T::of(1.0));
    gemm(MatMut::new(&mut out, m, k), keep, Mat::new(&dy, m, n), Mat::new(&weight, n, k), T::of(1.0));
    if let Some((a, u)) = updates.low_rank {
        let (a, u) = (In::<T>::of(OP, a)?, In::<T>::of(OP, u)?);
        let (a, scale) = (Mat::new(&a, r, k), T::of(desc.scale));
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
    let Desc { m, k, r, .. } = *desc;
    let (u, x) = (In::<T>::of(OP, u)?, In::<T>::of(OP, x)?);
    let dropped = desc.dropout.map(|d| masked(&x, &d));
    let x = dropped.as_deref().unwrap_or(&x);
    let mut out = Out::<T>::into(OP, target)?;
    let (u, x) = (Mat::new(&u, m, r), Mat::new(x, m, k));
    thin::gather(&mut out, Lies::Straight, target.accumulate, u, x, T::of(desc.scale));
    out.finish()
}

pub fn b_gradient<T: Real>(desc: &Desc, dy: &Tensor, h: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, n, r, .. } = *desc;
    let (dy, h) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, h)?);
    let mut out = Out::<T>::into(OP, target)?;
    let (h, dy) = (Mat::new(&h, m, r), Mat::new(&dy, m, n));
    thin::gather(&mut out, Lies::Transposed, target.accumulate, h, dy, T::of(1.0));
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
