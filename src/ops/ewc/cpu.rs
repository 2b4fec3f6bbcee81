//! The reference.

use rayon::prelude::*;

use super::{OP, PIECE, Spring};
use crate::error::Result;
use crate::ops::host::{Real, for_rows};
use crate::tensor::Tensor;

pub fn observe<T: Real>(squares: &Tensor, gradients: &Tensor) -> Result<bool> {
    let mut squares = squares.write::<T>(OP)?;
    let gradients = gradients.read::<T>(OP)?;
    let gradients: &[T] = &gradients;
    for_rows(
        &mut squares,
        PIECE,
        #[inline(always)]
        |piece, squares| {
            for (s, &g) in squares.iter_mut().zip(&gradients[piece * PIECE..]) {
                *s += g * g;
            }
        },
    );
    Ok(gradients.iter().all(|g| g.to_f64().is_finite()))
}

pub fn pull<T: Real>(spring: &Spring, gradients: &Tensor, c: f64) -> Result<()> {
    let (params, anchor) = (spring.params.read::<T>(OP)?, spring.anchor.read::<T>(OP)?);
    let squares = spring.squares.read::<T>(OP)?;
    let (params, anchor, squares): (&[T], &[T], &[T]) = (&params, &anchor, &squares);
    let mut gradients = gradients.write::<T>(OP)?;
    let factor = T::of(2.0 * c);
    for_rows(
        &mut gradients,
        PIECE,
        #[inline(always)]
        |piece, gradients| {
            let at = piece * PIECE;
            let (params, anchor) = (&params[at..][..gradients.len()], &anchor[at..][..gradients.len()]);
            let squares = &squares[at..][..gradients.len()];
            for i in 0..gradients.len() {
                gradients[i] += factor * squares[i] * (params[i] - anchor[i]);
            }
        },
    );
    Ok(())
}

pub fn penalty<T: Real>(spring: &Spring) -> Result<f64> {
    let (params, anchor) = (spring.params.read::<T>(OP)?, spring.anchor.read::<T>(OP)?);
    let squares = spring.squares.read::<T>(OP)?;
    let (params, anchor, squares): (&[T], &[T], &[T]) = (&params, &anchor, &squares);
    let piece = |first: usize| {
        let mut sum = 0.0;
        for i in first..(first + PIECE).min(params.len()) {
            let away = params[i].to_f64() - anchor[i].to_f64();
            sum += squares[i].to_f64() * away * away;
        }
        sum
    };
    let pieces: Vec<f64> = (0..params.len().div_ceil(PIECE)).into_par_iter().map(|k| piece(k * PIECE)).collect();
    Ok(pieces.into_iter().sum())
}
