//! The launch plans: one launch each. What the host must know is read back: one flag, or one number a piece.

use super::{PIECE, Spring};
use crate::device::Plan;
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{blocks, launch};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/ewc.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct Params {
    params: u64,
    anchor: u64,
    squares: u64,
    gradients: u64,
    out: u64,
    n: u64,
    factor: f32,
    reserved: u32,
}

const _: () = assert!(size_of::<Params>() == 56 && std::mem::offset_of!(Params, factor) == 48);

const OBSERVE: KernelId = KernelId::of("ewc_observe_f32_t256_sm80");
const PULL: KernelId = KernelId::of("ewc_pull_f32_t256_sm80");
const PENALTY: KernelId = KernelId::of("ewc_penalty_f32_t256_sm80");

fn run(kernel: KernelId, on: &Tensor, each: u64, params: &Params) -> Result<()> {
    on.device().run(&Plan::from_iter([launch(kernel, blocks(params.n, each), params)]))
}

pub fn observe(squares: &Tensor, gradients: &Tensor) -> Result<bool> {
    let bad = Tensor::zeros(squares.device(), &[1], DType::I32)?;
    let params = Params {
        squares: squares.address()?,
        gradients: gradients.address()?,
        out: bad.address()?,
        n: squares.numel() as u64,
        ..Params::default()
    };
    run(OBSERVE, squares, u64::from(OBSERVE.row().threads), &params)?;
    Ok(bad.to_vec::<i32>()? == [0])
}

fn params(spring: &Spring) -> Result<Params> {
    Ok(Params {
        params: spring.params.address()?,
        anchor: spring.anchor.address()?,
        squares: spring.squares.address()?,
        n: spring.params.numel() as u64,
        ..Params::default()
    })
}

pub fn pull(spring: &Spring, gradients: &Tensor, c: f64) -> Result<()> {
    let params = Params { gradients: gradients.address()?, factor: (2.0 * c) as f32, ..params(spring)? };
    run(PULL, gradients, u64::from(PULL.row().threads), &params)
}

pub fn penalty(spring: &Spring) -> Result<f64> {
    let pieces = Tensor::empty(spring.params.device(), &[spring.params.numel().div_ceil(PIECE)], DType::F64)?;
    run(PENALTY, spring.params, PIECE as u64, &Params { out: pieces.address()?, ..params(spring)? })?;
    Ok(pieces.to_vec::<f64>()?.into_iter().sum())
}
