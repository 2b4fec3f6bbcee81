//! The launch plans: the products of the linear layers, in f32.

use super::{Desc, OP, Side};
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::product::{Layout, Product};
use crate::tensor::Tensor;

/// `target += 4w · M Mᵀ M`, by way of the Gram matrix.
pub fn run(desc: &Desc, matrix: &Tensor, gram: &Tensor, target: &Target) -> Result<()> {
    let Desc { rows, cols, dtype, .. } = *desc;
    let (device, m, square) = (matrix.device(), matrix.address()?, gram.address()?);
    let written = Target { tensor: gram.clone(), accumulate: false };
    let product = match desc.side {
        Side::Rows => {
            Product::new(OP, Layout::Nt, dtype, [rows, rows, cols], [m, m, 0]).write_into(device, &written)?;
            Product::new(OP, Layout::Nn, dtype, [rows, cols, rows], [square, m, 0])
        }
        Side::Columns => {
            Product::new(OP, Layout::Tn, dtype, [cols, cols, rows], [m, m, 0]).sum_into(device, &written)?;
            Product::new(OP, Layout::Nn, dtype, [rows, cols, cols], [m, square, 0])
        }
    };
    Product { scale: desc.factor, ..product }.write_into(device, target)
}
