//! The reference: products by `gemm`, a row of the gate at a time.

use super::{Desc, OP, PIECE, Slopes};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm};
use crate::error::Result;
use crate::ops::frozen_linear::masked;
use crate::ops::host::{In, Out, Real, for_row_pairs, for_rows};
use crate::tensor::Tensor;

/// Columns `first .. first + r` of a matrix whose rows are `[a, t]`.
fn half<T>(data: &[T], first: usize, m: usize, r: usize) -> Mat<'_, T> {
    Mat { row_stride: 2 * r, ..Mat::new(data.get(first..).unwrap_or_default(), m, r) }
}

pub fn project<T: Real>(desc: &Desc, x: &Tensor, stacked: &Tensor, projected: &Tensor) -> Result<()> {
    let Desc { m, k, r, .. } = *desc;
    let (x, stacked) = (In::<T>::of(OP, x)?, In::<T>::of(OP, stacked)?);
    let mut out = Out::<T>::of(OP, projected)?;
    match &desc.dropout {
        None => {
            let weight = Mat::new(&stacked, 2 * r, k).t();
            gemm(MatMut::new(&mut out, m, 2 * r), None, Mat::new(&x, m, k), weight, T::of(1.0));
        }
        Some(dropout) => {
            let dropped = masked(&x, dropout);
            for (first, x) in [(0, &dropped[..]), (r, &x[..])] {
                let out = MatMut { row_stride: 2 * r, ..MatMut::new(&mut out[first..], m, r) };
                gemm(out, None, Mat::new(x, m, k), Mat::new(&stacked[first * k..], r, k).t(), T::of(1.0));
            }
        }
    }
    out.finish()
}

/// μ and ρ of a row.
#[inline(always)]
fn measure<T: Real>(a: &[T], eps: f64) -> (T, T) {
    let count = T::of(a.len() as f64);
    let (mut sum, mut squares) = (T::of(0.0), T::of(0.0));
    for &v in a {
        sum += v;
    }
    let mean = sum / count;
    for &v in a {
        squares += (v - mean) * (v - mean);
    }
    (mean, T::of(1.0) / (squares / count + T::of(eps)).sqrt())
}

/// NaN stays.
#[inline(always)]
fn relu<T: Real>(t: T) -> T {
    let zero = T::of(0.0);
    if t <= zero { zero } else { t }
}

pub fn forward<T: Real>(desc: &Desc, projected: &Tensor, [gamma, beta]: [&Tensor; 2], h: &Tensor) -> Result<()> {
    let (projected, gamma, beta) = (In::<T>::of(OP, projected)?, In::<T>::of(OP, gamma)?, In::<T>::of(OP, beta)?);
    let mut out = Out::<T>::of(OP, h)?;
    let (projected, gamma, beta, r): (&[T], &[T], &[T], usize) = (&projected, &gamma, &beta, desc.r);
    for_rows(
        &mut out,
        r,
        #[inline(always)]
        |i, row| {
            let (a, t) = projected[2 * r * i..][..2 * r].split_at(r);
            let (mean, rho) = measure(a, desc.eps);
            for ((((h, &a), &t), &g), &b) in row.iter_mut().zip(a).zip(t).zip(gamma).zip(beta) {
                *h = relu(t) * ((a - mean) * rho * g + b);
            }
        },
    );
    out.finish()
}

pub fn backward<T: Real>(
    desc: &Desc,
    projected: &Tensor,
    [gamma, beta]: [&Tensor; 2],
    dh: &Tensor,
    slopes: &Slopes,
) -> Result<()> {
    let (projected, dh) = (In::<T>::of(OP, projected)?, In::<T>::of(OP, dh)?);
    let (gamma, beta) = (In::<T>::of(OP, gamma)?, In::<T>::of(OP, beta)?);
    let (mut out, mut partial) = (Out::<T>::of(OP, &slopes.projected)?, Out::<T>::of(OP, &slopes.partial)?);
    let (projected, dh, gamma, beta): (&[T], &[T], &[T], &[T]) = (&projected, &dh, &gamma, &beta);
    let (r, count, zero) = (desc.r, T::of(desc.r as f64), T::of(0.0));
    for_row_pairs(
        (&mut out, PIECE * 2 * r),
        (&mut partial, 2 * r),
        #[inline(always)]
        |piece, rows, sums| {
            sums.fill(zero);
            let (d_gamma, d_beta) = sums.split_at_mut(r);
            for (i, row) in rows.chunks_exact_mut(2 * r).enumerate() {
                let i = piece * PIECE + i;
                let (a, t) = projected[2 * r * i..][..2 * r].split_at(r);
                let dh = &dh[r * i..][..r];
                let (da, dt) = row.split_at_mut(r);
                let (mean, rho) = measure(a, desc.eps);
                let (mut sum, mut along) = (zero, zero);
                for c in 0..r {
                    let (standard, du) = ((a[c] - mean) * rho, dh[c] * relu(t[c]));
                    d_gamma[c] += du * standard;
                    d_beta[c] += du;
                    sum += du * gamma[c];
                    along += du * gamma[c] * standard;
                    dt[c] = if t[c] <= zero { zero } else { dh[c] * (standard * gamma[c] + beta[c]) };
                }
                let (centre, along) = (sum / count, along / count);
                for c in 0..r {
                    let (standard, du) = ((a[c] - mean) * rho, dh[c] * relu(t[c]));
                    da[c] = rho * (du * gamma[c] - centre - standard * along);
                }
            }
        },
    );
    out.finish()?;
    partial.finish()
}

/// `d[S; T] (+)= [da, dt]ᵀ [dropout(x), x]`.
pub fn stacked_gradient<T: Real>(desc: &Desc, slopes: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, k, r, .. } = *desc;
    let (slopes, x) = (In::<T>::of(OP, slopes)?, In::<T>::of(OP, x)?);
    let mut out = Out::<T>::into(OP, target)?;
    let keep = target.accumulate.then(|| T::of(1.0));
    match &desc.dropout {
        None => {
            let slopes = Mat::new(&slopes, m, 2 * r).t();
            gemm(MatMut::new(&mut out, 2 * r, k), keep, slopes, Mat::new(&x, m, k), T::of(1.0));
        }
        Some(dropout) => {
            let dropped = masked(&x, dropout);
            for (first, x) in [(0, &dropped[..]), (r, &x[..])] {
                let out = MatMut::new(&mut out[first * k..], r, k);
                gemm(out, keep, half(&slopes, first, m, r).t(), Mat::new(x, m, k), T::of(1.0));
            }
        }
    }
    out.finish()
}

/// `dx (+)= mask ⊙ (da S) + dt T`.
pub fn input_gradient<T: Real>(desc: &Desc, slopes: &Tensor, stacked: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, k, r, .. } = *desc;
    let (slopes, stacked) = (In::<T>::of(OP, slopes)?, In::<T>::of(OP, stacked)?);
    let mut out = Out::<T>::into(OP, target)?;
    let keep = target.accumulate.then(|| T::of(1.0));
    match &desc.dropout {
        None => {
            let weight = Mat::new(&stacked, 2 * r, k);
            gemm(MatMut::new(&mut out, m, k), keep, Mat::new(&slopes, m, 2 * r), weight, T::of(1.0));
        }
        Some(dropout) => {
            let weight = |first: usize| Mat::new(&stacked[first * k..], r, k);
            let mut through = vec![T::of(0.0); m * k];
            gemm(MatMut::new(&mut through, m, k), None, half(&slopes, 0, m, r), weight(0), T::of(1.0));
            let through = masked(&through, dropout);
            gemm(MatMut::new(&mut out, m, k), keep, half(&slopes, r, m, r), weight(r), T::of(1.0));
            for_rows(&mut out, k, |i, row| {
                for (o, &v) in row.iter_mut().zip(&through[i * k..]) {
                    *o += v;
                }
            });
        }
    }
    out.finish()
}
