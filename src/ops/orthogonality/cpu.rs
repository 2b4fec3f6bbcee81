//! The reference: two products.

use super::{Desc, OP, Side};
use crate::autograd::Target;
use crate::device::{Mat, MatMut, gemm};
use crate::error::Result;
use crate::ops::host::{In, Out, Real};
use crate::tensor::Tensor;

/// `target += 4w · M Mᵀ M`, by way of the Gram matrix.
pub fn run<T: Real>(desc: &Desc, matrix: &Tensor, gram: &Tensor, target: &Target) -> Result<()> {
    let (matrix, r) = (In::<T>::of(OP, matrix)?, desc.r());
    let m = Mat::new(&matrix, desc.rows, desc.cols);
    let (mut square, mut out) = (Out::<T>::of(OP, gram)?, Out::<T>::into(OP, target)?);
    let (left, right) = match desc.side {
        Side::Rows => (m, m.t()),
        Side::Columns => (m.t(), m),
    };
    gemm(MatMut::new(&mut square, r, r), None, left, right, T::of(1.0));
    let square = Mat::new(&square, r, r);
    let (left, right) = match desc.side {
        Side::Rows => (square, m),
        Side::Columns => (m, square),
    };
    gemm(MatMut::new(&mut out, desc.rows, desc.cols), Some(T::of(1.0)), left, right, T::of(desc.factor));
    out.finish()
}
