//! The launch plans. Forward is two launches: h, for all slots at once, then the product with the frozen weight, to whose tiles each
//! slot's update is added; on Hopper that is a third launch, and the product has its own kernel. Backward makes u and dx likewise, and one sum over tokens for each slot that has rows and each factor.

use super::{Desc, Factors, OP};
use crate::autograd::Target;
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::column_sum::column_sum;
use crate::ops::product::{Layout, Product, Segmented};
use crate::rng::Dropout;
use crate::tensor::Tensor;

/// `left[i] · B_g`, with the factor of the slot if `scales` are given; b is the bank of all B_g.
fn segmented(desc: &Desc, left: &Tensor, depth: usize, b: &Tensor, scales: Option<&Tensor>) -> Result<Segmented> {
    Ok(Segmented {
        a: left.address()?,
        b: b.address()?,
        depth,
        offsets: desc.segments.on_device().address()?,
        scales: scales.map_or(Ok(0), Tensor::address)?,
        slots: desc.segments.slots(),
    })
}

pub fn forward(
    desc: &Desc,
    x: &Tensor,
    (weight, bias): (&Tensor, Option<&Tensor>),
    factors: &Factors,
    (h, y): (&Tensor, &Tensor),
) -> Result<()> {
    let Desc { m, n, k, r, dtype, dropout, .. } = *desc;
    let down = Product {
        segmented: Some(segmented(desc, x, k, &factors.a, Some(&factors.scales))?),
        dropout,
        ..Product::new(OP, Layout::Nt, dtype, [m, r, 0], [0, 0, h.address()?])
    };
    let base = Product {
        segmented: Some(segmented(desc, h, r, &factors.b, None)?),
        bias: bias.map_or(Ok(0), Tensor::address)?,
        ..Product::new(OP, Layout::Nt, dtype, [m, n, k], [x.address()?, weight.address()?, y.address()?])
    };
    x.device().run(&Plan::from_iter([down.spec()?]))?;
    x.device().run(&base.on(x.device()).launches()?)
}

/// `u[i] = s_g · dy[i] B_g`.
pub fn project(desc: &Desc, dy: &Tensor, factors: &Factors, u: &Tensor) -> Result<()> {
    let product = Product::new(OP, Layout::Nn, desc.dtype, [desc.m, desc.r, 0], [0, 0, u.address()?]);
    let segmented = Some(segmented(desc, dy, desc.n, &factors.b, Some(&factors.scales))?);
    u.device().run(&Plan::from_iter([Product { segmented, ..product }.spec()?]))
}

/// `dx (+)= dy W₀ + mask ⊙ (u A_g)`.
pub fn input_gradient(
    desc: &Desc,
    dy: &Tensor,
    weight: &Tensor,
    (u, a): (&Tensor, &Tensor),
    target: &Target,
) -> Result<()> {
    let Desc { m, n, k, r, dtype, dropout, .. } = *desc;
    let product = Product::new(OP, Layout::Nn, dtype, [m, k, n], [dy.address()?, weight.address()?, 0]);
    let segmented = Some(segmented(desc, u, r, a, None)?);
    Product { segmented, dropout, ..product }.write_into(dy.device(), target)
}

/// `target += leftᵀ dropout(right)`.
pub fn gather(
    dtype: DType,
    &[rows, cols]: &[usize; 2],
    (left, right): (&Tensor, &Tensor),
    dropout: Option<Dropout>,
    target: &Target,
) -> Result<()> {
    let addresses = [left.address()?, right.address()?, 0];
    let product = Product::new(OP, Layout::Tn, dtype, [rows, cols, left.rows()], addresses);
    Product { dropout, ..product }.sum_into(left.device(), target)
}

pub fn bias_gradient(desc: &Desc, dy: &Tensor, target: &Target) -> Result<()> {
    column_sum(dy, 1, desc.n, 1.0, target)
}
