//! The reference: patches unfolded into rows, one matrix product, and sums in the order of the tokens.

use super::{Desc, OP, Operands, Sum};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::tensor::Tensor;

pub fn forward<T: Real>(desc: &Desc, pixels: &Tensor, operands: &Operands, y: &Tensor) -> Result<()> {
    let (rows, k, d) = (desc.b * desc.patches(), desc.k(), desc.d);
    let part = |tensor: Option<&'_ Tensor>| tensor.map(|x| In::<T>::of(OP, x).map(|x| x.to_vec())).transpose();
    let (bias, cls, positions) = (part(operands.bias)?, part(operands.cls)?, part(operands.positions)?);
    let weight = In::<T>::of(OP, operands.weight)?;
    let unfolded = unfold(desc, &In::<T>::of(OP, pixels)?);
    let mut product = vec![T::of(0.0); rows * d];
    let lhs = Mat::new(&unfolded, rows, k);
    gemm(MatMut::new(&mut product, rows, d), None, lhs, Mat::new(&weight, d, k).t(), T::of(1.0));
    let mut out = Out::<T>::of(OP, y)?;
    for_rows(
        &mut out,
        d,
        #[inline(always)]
        |row, out| {
            let (item, token) = (row / desc.t(), row % desc.t());
            let add = |out: &mut [T], values: &[T]| {
                for (o, &v) in out.iter_mut().zip(values) {
                    *o += v;
                }
            };
            match &cls {
                Some(cls) if token == 0 => out.copy_from_slice(cls),
                _ => {
                    let start = (item * desc.patches() + token - desc.first()) * d;
                    out.copy_from_slice(&product[start..start + d]);
                    if let Some(bias) = &bias {
                        add(out, bias);
                    }
                }
            }
            if let Some(positions) = &positions {
                add(out, &positions[token * d..][..d]);
            }
        },
    );
    out.finish()
}

pub fn pixel_gradient<T: Real>(desc: &Desc, dy: &Tensor, weight: &Tensor, target: &Target) -> Result<()> {
    let (rows, k, d) = (desc.b * desc.patches(), desc.k(), desc.d);
    let (dy, weight) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, weight)?);
    let mut unfolded = vec![T::of(0.0); rows * k];
    // One product for each image: with a class token in front, the patches of two images are not adjacent.
    let size = desc.patches() * d;
    for (item, out) in unfolded.chunks_mut((desc.patches() * k).max(1)).enumerate() {
        let dy = &dy[(item * desc.t() + desc.first()) * d..][..size];
        let out = MatMut::new(out, desc.patches(), k);
        gemm(out, None, Mat::new(dy, desc.patches(), d), Mat::new(&weight, d, k), T::of(1.0));
    }
    let mut out = Out::<T>::into(OP, target)?;
    let add = target.accumulate;
    for_rows(
        &mut out,
        desc.patch,
        #[inline(always)]
        |strip, out| {
            let values = &unfolded[strip_start(desc, strip)..][..desc.patch];
            if add {
                for (o, &v) in out.iter_mut().zip(values) {
                    *o += v;
                }
            } else {
                out.copy_from_slice(values);
            }
        },
    );
    out.finish()
}

pub fn token_sums<T: Real>(desc: &Desc, sum: &Sum, dy: &Tensor, target: &Target) -> Result<()> {
    let d = desc.d;
    let dy = In::<T>::of(OP, dy)?;
    let dy: &[T] = &dy;
    let add = target.accumulate;
    let mut out = Out::<T>::into(OP, target)?;
    for_rows(
        &mut out,
        d,
        #[inline(always)]
        |group, out| {
            if !add {
                out.fill(T::of(0.0));
            }
            for item in 0..desc.b {
                let start = (item * desc.t() + sum.base + group) * d;
                for row in dy[start..start + sum.inner * d].chunks_exact(d) {
                    for (o, &g) in out.iter_mut().zip(row) {
                        *o += g;
                    }
                }
            }
        },
    );
    out.finish()
}

/// `[b · patches, k]`
fn unfold<T: Real>(desc: &Desc, pixels: &[T]) -> Vec<T> {
    let mut out = vec![T::of(0.0); pixels.len()];
    for (strip, values) in pixels.chunks_exact(desc.patch).enumerate() {
        out[strip_start(desc, strip)..][..desc.patch].copy_from_slice(values);
    }
    out
}

/// Where strip number `strip` of an image's memory (one row of pixels of one patch) lies in `[b · patches, k]`.
#[inline(always)]
fn strip_start(desc: &Desc, strip: usize) -> usize {
    let ([down, across], p) = (desc.grid, desc.patch);
    let (column, rest) = (strip % across, strip / across);
    let (line, rest) = (rest % p, rest / p);
    let (row, rest) = (rest % down, rest / down);
    let (channel, item) = (rest % desc.c, rest / desc.c);
    (((item * down + row) * across + column) * desc.c + channel) * p * p + line * p
}
