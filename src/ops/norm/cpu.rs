//! The reference: one row at a time, which stays in the first-level cache between its passes.

use super::{Desc, Kind, OP, Statistics};
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::column_sum::ordered;
use crate::ops::host::{In, Out, Real, for_row_pairs, for_rows};
use crate::ops::lanes;
use crate::tensor::Tensor;

pub fn forward<T: Real>(
    desc: &Desc,
    x: &Tensor,
    (gamma, beta): (&Tensor, Option<&Tensor>),
    statistics: Statistics,
    y: &Tensor,
) -> Result<()> {
    let (x, gamma) = (In::<T>::of(OP, x)?, In::<T>::of(OP, gamma)?);
    let beta = beta.map(|b| In::<T>::of(OP, b)).transpose()?;
    let mut out = Out::<T>::of(OP, y)?;
    let (x, gamma, beta): (&[T], &[T], Option<&[T]>) = (&x, &gamma, beta.as_deref());
    let d = desc.d;
    match statistics {
        Statistics::Written(stored) => {
            let mut stored = Out::<T>::of(OP, stored)?;
            for_row_pairs(
                (&mut out, d),
                (&mut stored, desc.kind.statistics()),
                #[inline(always)]
                |i, row, stored| {
                    let x = &x[i * d..(i + 1) * d];
                    measure(desc, x, stored);
                    normalise(x, of_row(desc.kind, stored, 0), gamma, beta, row);
                },
            );
            stored.finish()?;
        }
        Statistics::Given(stored) => {
            let stored = In::<T>::of(OP, stored)?;
            for_rows(
                &mut out,
                d,
                #[inline(always)]
                |i, row| normalise(&x[i * d..(i + 1) * d], of_row(desc.kind, &stored, i), gamma, beta, row),
            );
        }
    }
    out.finish()
}

/// Writes μ and ρ (ρ alone for RMS) of a row. The mean square deviation is taken from the mean already known: the difference of
/// two squares would cancel.
#[inline(always)]
fn measure<T: Real>(desc: &Desc, row: &[T], stored: &mut [T]) {
    let (count, eps, one) = (T::of(desc.d as f64), T::of(desc.eps), T::of(1.0));
    match desc.kind {
        Kind::Layer => {
            let mean = lanes::sum(row, |v| v) / count;
            let variance = lanes::sum(row, |v| (v - mean) * (v - mean)) / count;
            stored[0] = mean;
            stored[1] = one / (variance + eps).sqrt();
        }
        Kind::Rms => stored[0] = one / (lanes::sum(row, |v| v * v) / count + eps).sqrt(),
    }
}

/// `(x − μ)·ρ·γ + β` of a row.
#[inline(always)]
fn normalise<T: Real>(x: &[T], (mean, rho): (T, T), gamma: &[T], beta: Option<&[T]>, row: &mut [T]) {
    let values = row.iter_mut().zip(x).zip(gamma);
    match beta {
        Some(beta) => {
            for (((o, &x), &g), &b) in values.zip(beta) {
                *o = (x - mean) * rho * g + b;
            }
        }
        None => {
            for ((o, &x), &g) in values {
                *o = (x - mean) * rho * g;
            }
        }
    }
}

/// μ (0 for RMS) and ρ of row i.
#[inline(always)]
fn of_row<T: Real>(kind: Kind, stored: &[T], i: usize) -> (T, T) {
    match kind {
        Kind::Layer => (stored[2 * i], stored[2 * i + 1]),
        Kind::Rms => (T::of(0.0), stored[i]),
    }
}

pub fn input_gradient<T: Real>(
    desc: &Desc,
    dy: &Tensor,
    x: &Tensor,
    statistics: &Tensor,
    gamma: &Tensor,
    target: &Target,
) -> Result<()> {
    let (dy, x) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, x)?);
    let (stored, gamma) = (In::<T>::of(OP, statistics)?, In::<T>::of(OP, gamma)?);
    let mut out = Out::<T>::into(OP, target)?;
    let (dy, x, gamma): (&[T], &[T], &[T]) = (&dy, &x, &gamma);
    let (d, count) = (desc.d, T::of(desc.d as f64));
    for_rows(
        &mut out,
        d,
        #[inline(always)]
        |i, row| {
            let (mean, rho) = of_row(desc.kind, &stored, i);
            let (dy, x) = (&dy[i * d..(i + 1) * d], &x[i * d..(i + 1) * d]);
            let (sum, along) = lanes::sum_pair(dy, x, gamma, |dy, x, g| (dy * g, dy * g * ((x - mean) * rho)));
            let centre = match desc.kind {
                Kind::Layer => sum / count,
                Kind::Rms => T::of(0.0),
            };
            let along = along / count;
            let dx = |dy: T, x: T, g: T| rho * (dy * g - centre - (x - mean) * rho * along);
            let values = row.iter_mut().zip(dy).zip(x).zip(gamma);
            if target.accumulate {
                for (((o, &dy), &x), &g) in values {
                    *o += dx(dy, x, g);
                }
            } else {
                for (((o, &dy), &x), &g) in values {
                    *o = dx(dy, x, g);
                }
            }
        },
    );
    out.finish()
}

pub fn gamma_gradient<T: Real>(
    desc: &Desc,
    dy: &Tensor,
    x: &Tensor,
    statistics: &Tensor,
    target: &Target,
) -> Result<()> {
    let (dy, x, stored) = (In::<T>::of(OP, dy)?, In::<T>::of(OP, x)?, In::<T>::of(OP, statistics)?);
    let mut out = Out::<T>::into(OP, target)?;
    let (dy, x): (&[T], &[T]) = (&dy, &x);
    ordered(
        desc.m,
        &mut out,
        target.accumulate,
        T::of(1.0),
        #[inline(always)]
        |row, first, sums| {
            let (mean, rho) = of_row(desc.kind, &stored, row);
            let at = row * desc.d + first;
            for ((s, &dy), &x) in sums.iter_mut().zip(&dy[at..]).zip(&x[at..]) {
                *s += dy * ((x - mean) * rho);
            }
        },
    );
    out.finish()
}
