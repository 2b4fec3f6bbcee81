//! The launch plans. Without dropout `[a, t]` is one product, and so are the gradients of `[S; T]` and x. With dropout a and t are
//! matrices of their own, one after the other: the product that masks what S does to x takes whole matrices alone.

use super::{Desc, OP, PIECE, Slopes};
use crate::autograd::Target;
use crate::device::Plan;
use crate::error::Result;
use crate::ops::plan::{PerDType, blocks, by_dtype, launch, per_dtype};
use crate::ops::product::{Layout, LowRankFactors, Product};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/dual_rank.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub projected: u64,
    pub gamma: u64,
    pub beta: u64,
    /// dh `[m, r]`, in the backward pass.
    pub dh: u64,
    /// h `[m, r]`, or the gradient of `projected`.
    pub out: u64,
    /// `[pieces, 2r]`, f32: dγ and dβ of a piece of rows.
    pub partial: u64,
    pub m: u64,
    /// Elements from a row of a to the next, and of t.
    pub stride: u64,
    /// Elements from a to t.
    pub second: u64,
    pub r: u32,
    pub eps: f32,
}

const _: () = assert!(size_of::<Params>() == 80 && std::mem::offset_of!(Params, r) == 72);

const FORWARD: PerDType = per_dtype!("dual_rank_fwd", "w32");
const BACKWARD: PerDType = per_dtype!("dual_rank_bwd", "w32");

impl Desc {
    /// Elements from a row of a to the next, and from a to t.
    fn strides(&self) -> (usize, usize) {
        if self.dropout.is_some() { (self.r, self.m * self.r) } else { (2 * self.r, self.r) }
    }

    /// The address of t where a lies at `a`.
    fn second(&self, a: u64) -> u64 {
        a + (self.strides().1 * self.dtype.size()) as u64
    }

    fn params(&self, projected: &Tensor, [gamma, beta]: [&Tensor; 2], out: &Tensor) -> Result<Params> {
        let (stride, second) = self.strides();
        Ok(Params {
            projected: projected.address()?,
            gamma: gamma.address()?,
            beta: beta.address()?,
            dh: 0,
            out: out.address()?,
            partial: 0,
            m: self.m as u64,
            stride: stride as u64,
            second: second as u64,
            r: self.r as u32,
            eps: self.eps as f32,
        })
    }
}

pub fn project(desc: &Desc, x: &Tensor, stacked: &Tensor, projected: &Tensor) -> Result<Plan> {
    let Desc { m, k, r, dtype, .. } = *desc;
    let [x, weight, out] = [x.address()?, stacked.address()?, projected.address()?];
    if desc.dropout.is_none() {
        return Ok(Plan::from_iter([Product::new(OP, Layout::Nt, dtype, [m, 2 * r, k], [x, weight, out]).spec()?]));
    }
    let skill = Product::new(OP, Layout::Nt, dtype, [m, r, k], [x, weight, out]);
    let lower = weight + (r * k * dtype.size()) as u64;
    let task = Product::new(OP, Layout::Nt, dtype, [m, r, k], [x, lower, desc.second(out)]);
    Ok(Plan::from_iter([Product { dropout: desc.dropout, ..skill }.spec()?, task.spec()?]))
}

pub fn forward(desc: &Desc, projected: &Tensor, weights: [&Tensor; 2], h: &Tensor) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &FORWARD)?;
    let rows = u64::from(kernel.row().threads / 32);
    let params = desc.params(projected, weights, h)?;
    Ok(Plan::from_iter([launch(kernel, blocks(desc.m as u64, rows), &params)]))
}

pub fn backward(desc: &Desc, projected: &Tensor, weights: [&Tensor; 2], dh: &Tensor, slopes: &Slopes) -> Result<Plan> {
    let kernel = by_dtype(OP, desc.dtype, &BACKWARD)?;
    let params = desc.params(projected, weights, &slopes.projected)?;
    let params = Params { dh: dh.address()?, partial: slopes.partial.address()?, ..params };
    Ok(Plan::from_iter([launch(kernel, blocks(desc.m as u64, PIECE as u64), &params)]))
}

/// `d[S; T] (+)= [da, dt]ᵀ [dropout(x), x]`.
pub fn stacked_gradient(desc: &Desc, slopes: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, k, r, dtype, .. } = *desc;
    let (device, da, address) = (x.device(), slopes.address()?, x.address()?);
    if desc.dropout.is_none() {
        return Product::new(OP, Layout::Tn, dtype, [2 * r, k, m], [da, address, 0]).sum_into(device, target);
    }
    for (first, slope, dropout) in [(0, da, desc.dropout), (r, desc.second(da), None)] {
        let half = Target { tensor: target.tensor.slice(0, first, r)?, accumulate: target.accumulate };
        let product = Product::new(OP, Layout::Tn, dtype, [r, k, m], [slope, address, 0]);
        Product { dropout, ..product }.sum_into(device, &half)?;
    }
    Ok(())
}

/// `dx (+)= mask ⊙ (da S) + dt T`.
pub fn input_gradient(desc: &Desc, slopes: &Tensor, stacked: &Tensor, target: &Target) -> Result<()> {
    let Desc { m, k, r, dtype, .. } = *desc;
    let (device, da, weight) = (stacked.device(), slopes.address()?, stacked.address()?);
    if desc.dropout.is_none() {
        return Product::new(OP, Layout::Nn, dtype, [m, k, 2 * r], [da, weight, 0]).write_into(device, target);
    }
    let lower = weight + (r * k * dtype.size()) as u64;
    let mut product = Product::new(OP, Layout::Nn, dtype, [m, k, r], [desc.second(da), lower, 0]);
    product.low_rank = Some(LowRankFactors { a: da, b: weight, rank: r, scale: 1.0 });
    product.dropout = desc.dropout;
    product.write_into(device, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::ops::product::{DROPOUT, GemmParams};
    use crate::rng::{Dropout, Stream};

    #[test]
    fn one_product_without_dropout_and_two_with_it() {
        let device = Device::trace(80);
        let empty = |dims: &[usize]| Tensor::empty(&device, dims, DType::BF16).unwrap();
        let (x, stacked, projected) = (empty(&[40, 64]), empty(&[16, 64]), empty(&[40, 16]));
        let dropout = Dropout::new(0.5, Stream { seed: 1, step: 2, site: 3 });
        for dropout in [None, Some(dropout)] {
            let desc = Desc { m: 40, k: 64, r: 8, eps: 1e-5, dtype: DType::BF16, dropout };
            let plan = project(&desc, &x, &stacked, &projected).unwrap();
            let of = |i: usize| plan[i].params.read::<GemmParams>().unwrap();
            assert_eq!((plan.len(), of(0).n), if dropout.is_some() { (2, 8) } else { (1, 16) });
            assert_eq!(of(0).flags & DROPOUT != 0, dropout.is_some());
            let h = empty(&[40, 8]);
            let weights = [&empty(&[8]), &empty(&[8])].map(|t| t.clone());
            let plan = forward(&desc, &projected, [&weights[0], &weights[1]], &h).unwrap();
            let p: Params = plan[0].params.read().unwrap();
            assert_eq!((p.stride, p.second), if dropout.is_some() { (8, 320) } else { (16, 8) });
            assert_eq!(plan[0].grid, [5, 1, 1]);
        }
    }
}
