//! The launch plans: one launch forward; backward one for `D`, which the gradients of rule and left are sums of, and one for each side.

use super::{Desc, Factors, OP};
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, blocks, by_dtype, launch};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/kronecker.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub rule: u64,
    pub left: u64,
    pub right: u64,
    /// W, or its gradient.
    pub w: u64,
    /// `D`, `[h·n, h, h·r]` in f32.
    pub dots: u64,
    pub rule_gradient: u64,
    pub left_gradient: u64,
    pub right_gradient: u64,
    pub n: u64,
    pub k: u64,
    pub h: u64,
    pub r: u64,
}

const _: () = assert!(size_of::<Params>() == 96 && std::mem::offset_of!(Params, n) == 64);

macro_rules! per_dtype {
    ($pass:literal, $tile:literal) => {
        [
            KernelId::of(concat!("kronecker_", $pass, "_f32_", $tile, "_sm80")),
            KernelId::of(concat!("kronecker_", $pass, "_f16_", $tile, "_sm80")),
            KernelId::of(concat!("kronecker_", $pass, "_bf16_", $tile, "_sm80")),
        ]
    };
}

const FORWARD: PerDType = per_dtype!("fwd", "t256");
const DOTS: PerDType = per_dtype!("dots", "w32");
const LEFT: PerDType = per_dtype!("left", "t256");
const RIGHT: PerDType = per_dtype!("right", "t256");

fn params(desc: &Desc, factors: &Factors, w: &Tensor) -> Result<Params> {
    Ok(Params {
        rule: factors.rule.address()?,
        left: factors.left.address()?,
        right: factors.right.address()?,
        w: w.address()?,
        dots: 0,
        rule_gradient: 0,
        left_gradient: 0,
        right_gradient: 0,
        n: desc.n as u64,
        k: desc.k as u64,
        h: desc.h as u64,
        r: desc.r as u64,
    })
}

/// `each` results of one block.
fn over(desc: &Desc, kernels: &PerDType, results: usize, lanes: u32, params: &Params) -> Result<LaunchSpec> {
    let kernel = by_dtype(OP, desc.dtype, kernels)?;
    Ok(launch(kernel, blocks(results as u64, u64::from(kernel.row().threads / lanes)), params))
}

pub fn forward(desc: &Desc, factors: &Factors, w: &Tensor) -> Result<Plan> {
    let params = params(desc, factors, w)?;
    Ok(Plan::from_iter([over(desc, &FORWARD, w.numel(), 1, &params)?]))
}

pub fn backward(desc: &Desc, factors: &Factors, dw: &Tensor, out: &Factors) -> Result<()> {
    let parts = desc.n * desc.h * desc.h;
    let dots = Tensor::empty(dw.device(), &[parts, desc.ranks()], DType::F32)?;
    let params = Params {
        dots: dots.address()?,
        rule_gradient: out.rule.address()?,
        left_gradient: out.left.address()?,
        right_gradient: out.right.address()?,
        ..params(desc, factors, dw)?
    };
    let small = out.left.numel() + out.rule.numel();
    dw.device().run(&Plan::from_iter([
        over(desc, &DOTS, parts, 32, &params)?,
        over(desc, &LEFT, small, 1, &params)?,
        over(desc, &RIGHT, out.right.numel(), 1, &params)?,
    ]))
}
