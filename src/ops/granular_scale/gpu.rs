//! The launch plans: one launch each way, more for a gate that is the same for a whole sample; of a product, one for each head, and before
//! them the logits of the rows where a gate looks at a whole row of U.

use super::node::{Given, Gradients};
use super::product::{self, Head, heads};
use super::{Delta, Desc, GateInput, Kind, OP, Operands, Product};
use crate::autograd::Target;
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::Result;
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::ops::product::{GemmParams, Layout, Product as Gemm};
use crate::tensor::Tensor;

/// Mirrors `struct Common` in `kernels/granular_scale.cu`. Address 0 is an absent operand.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Common {
    pub hidden: u64,
    pub update: u64,
    pub bias: u64,
    pub residual: u64,
    /// Logits, w or z.
    pub gate: u64,
    /// Small: the gate of each sample.
    pub samples: u64,
    pub m: u64,
    pub k: u64,
    pub tokens: u64,
    pub seed: u64,
    pub step: u32,
    pub site: u32,
    pub threshold: u32,
    pub flags: u32,
    pub kind: u32,
    pub scale: f32,
    pub keep: f32,
    pub reserved: u32,
}

/// Mirrors `struct Forward`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Forward {
    pub common: Common,
    pub gate_bias: u64,
    pub rows: u64,
    pub y: u64,
    /// D, and `Wuᵀ w`: what stands for ΔH in a row's logit.
    pub narrow: u64,
    pub folded: u64,
    pub r: u64,
}

/// Mirrors `struct Up`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Up {
    pub gemm: GemmParams,
    pub forward: Forward,
    pub first_column: u64,
}

/// Mirrors `struct Backward`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Backward {
    pub common: Common,
    pub dy: u64,
    pub rows: u64,
    pub dl: u64,
    pub update_gradient: u64,
    pub hidden_gradient: u64,
    pub residual_gradient: u64,
    pub logit_gradient: u64,
    /// `[pieces, k]`
    pub bias_sums: u64,
    pub gate_sums: u64,
    pub residual_sums: u64,
    pub piece: u64,
}

/// Mirrors `struct Sample`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Sample {
    pub rows: u64,
    pub tokens: u64,
    pub samples: u64,
    pub dl: u64,
    pub count: u64,
    pub t: u64,
}

const _: () = assert!(size_of::<Common>() == 112 && std::mem::offset_of!(Common, seed) == 72);
const _: () = assert!(std::mem::offset_of!(Common, kind) == 96 && size_of::<Forward>() == 160);
const _: () = assert!(size_of::<Up>() == 336);
const _: () = assert!(size_of::<Backward>() == 200 && size_of::<Sample>() == 48);

/// Bits of `flags`.
const VECTOR: u32 = 1;
const ADD_RESIDUAL: u32 = 2;
const SIGMOID: u32 = 4;
const SEES_HIDDEN: u32 = 8;
const DROPOUT: u32 = 16;
const ROWS_ONLY: u32 = 32;
const NARROW_VECTOR: u32 = 64;

/// With a short and with a long block.
const FORWARD: [PerDType; 2] = [per_dtype!("granular_scale_fwd", "t64"), per_dtype!("granular_scale_fwd", "t256")];
const BACKWARD: [PerDType; 2] = [per_dtype!("granular_scale_bwd", "t64"), per_dtype!("granular_scale_bwd", "t256")];
/// Fused into the product that makes ΔH.
const UP: PerDType = [
    KernelId::of("granular_scale_up_f32_64x64x16_sm80"),
    KernelId::of("granular_scale_up_f16_64x64x32_sm80"),
    KernelId::of("granular_scale_up_bf16_64x64x32_sm80"),
];
/// Edge of its tiles.
const TILE: usize = 64;
/// Rows of Wu that are summed one after the other on the way to a logit: as many as the sums beside it have terms in a row.
const FOLD: usize = 32;
const SAMPLES: KernelId = KernelId::of("granular_scale_samples_f32_w32_sm80");
const LOGITS: KernelId = KernelId::of("granular_scale_logits_f32_w32_sm80");

/// Units that a thread keeps in registers.
const CHUNKS: usize = 2;

/// Rows that one block of backward takes: enough blocks to fill a GPU, each with enough rows that its partial sums are little
/// beside what it reads. A function of the shape alone, as the order of a sum must be.
fn piece(desc: &Desc) -> usize {
    (desc.m / 256).clamp(8, 64)
}

pub fn pieces(desc: &Desc) -> usize {
    desc.m.div_ceil(piece(desc))
}

/// The shortest block that holds a row in registers, or the longest there is.
fn kernel(desc: &Desc, kernels: &[PerDType; 2], vector: bool) -> Result<KernelId> {
    let unit = if vector { pack(desc.dtype) } else { 1 };
    let short = by_dtype(OP, desc.dtype, &kernels[0])?;
    if desc.k.div_ceil(unit) <= CHUNKS * short.row().threads as usize {
        return Ok(short);
    }
    by_dtype(OP, desc.dtype, &kernels[1])
}

fn address(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), Tensor::address)
}

/// What both passes say of a call, without its operands.
fn common(desc: &Desc, vector: bool) -> Common {
    let stream = desc.dropout.map(|d| d.stream);
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    Common {
        hidden: 0,
        update: 0,
        bias: 0,
        residual: 0,
        gate: 0,
        samples: 0,
        m: desc.m as u64,
        k: desc.k as u64,
        tokens: desc.tokens as u64,
        seed: stream.map_or(0, |s| s.seed),
        step: stream.map_or(0, |s| s.step),
        site: stream.map_or(0, |s| s.site),
        threshold: desc.dropout.map_or(0, |d| d.threshold),
        flags: flag(vector, VECTOR)
            | flag(desc.add_residual, ADD_RESIDUAL)
            | flag(desc.sigmoid, SIGMOID)
            | flag(desc.input == GateInput::Hidden, SEES_HIDDEN)
            | flag(desc.dropout.is_some(), DROPOUT),
        kind: desc.kind as u32,
        scale: desc.scale as f32,
        keep: desc.dropout.map_or(1.0, |d| d.keep_scale),
        reserved: 0,
    }
}

fn is_vector(desc: &Desc, addresses: &[u64]) -> bool {
    desc.k.is_multiple_of(pack(desc.dtype)) && aligned(addresses)
}

/// From the logits of rows to the gates of samples.
fn mean(desc: &Desc, operands: &Operands, samples: &Tensor) -> Result<Sample> {
    let (rows, tokens) = (address(operands.rows)?, address(operands.tokens)?);
    let (count, t) = (desc.samples() as u64, desc.tokens as u64);
    Ok(Sample { rows, tokens, samples: samples.address()?, dl: 0, count, t })
}

/// One number for each sample, from `rows` or for `dl`.
fn over_samples(desc: &Desc, kernel: KernelId, params: &Sample) -> LaunchSpec {
    launch(kernel, blocks(desc.samples() as u64, u64::from(kernel.row().threads / 32)), params)
}

pub fn forward(desc: &Desc, operands: &Operands, y: &Tensor) -> Result<()> {
    match (operands.delta, desc.product) {
        (Delta::Product { x, weight }, Some(product)) => fused(desc, operands, product, [x, weight], y),
        (Delta::Given(update), _) => on_rows(desc, operands, Some(update), y),
        _ => on_rows(desc, operands, None, y),
    }
}

/// The logits of all rows, and Small's gate of each sample, before ΔH is made: `ΔH_i · w = D_i · (Wuᵀ w)`.
fn look(desc: &Desc, operands: &Operands, product: Product, [x, weight]: [&Tensor; 2]) -> Result<Option<Tensor>> {
    let device = x.device();
    let (hidden, bias, residual) = (operands.hidden.address()?, address(operands.bias)?, address(operands.residual)?);
    let (gate, rows) = (address(operands.gate)?, address(operands.rows)?);
    let folded = match desc.input {
        GateInput::Updated => Some(folded(desc, product, weight, gate)?),
        GateInput::Hidden => None,
    };
    let common = common(desc, is_vector(desc, &[hidden, bias, residual, gate]));
    let whole_rows = product.r.is_multiple_of(pack(desc.dtype)) && aligned(&[x.address()?]);
    let flags = common.flags | ROWS_ONLY | if whole_rows { NARROW_VECTOR } else { 0 };
    let first = Forward {
        common: Common { hidden, bias, residual, gate, flags, ..common },
        gate_bias: address(operands.gate_bias)?,
        rows,
        y: 0,
        narrow: x.address()?,
        folded: address(folded.as_ref())?,
        r: product.r as u64,
    };
    let over_rows = launch(kernel(desc, &FORWARD, common.flags & VECTOR != 0)?, blocks(desc.m as u64, 1), &first);
    if desc.kind != Kind::Small {
        device.run(&Plan::from_iter([over_rows]))?;
        return Ok(None);
    }
    let samples = Tensor::empty(device, &[desc.samples()], DType::F32)?;
    let mean = mean(desc, operands, &samples)?;
    device.run(&Plan::from_iter([over_rows, over_samples(desc, SAMPLES, &mean)]))?;
    Ok(Some(samples))
}

/// `Wuᵀ w`, `[r]` in f32: head j's part from its rows of Wu and its columns of w.
fn folded(desc: &Desc, product: Product, weight: &Tensor, gate: u64) -> Result<Tensor> {
    let out = Tensor::empty(weight.device(), &[product.r], DType::F32)?;
    let size = desc.dtype.size();
    // Small's half for U.
    let seen = gate + if desc.kind == Kind::Small { (desc.k * size) as u64 } else { 0 };
    for Head { j, n, r } in heads(desc, product) {
        let addresses = [seen + (j * n * size) as u64, weight.address()? + (j * n * r * size) as u64, 0];
        let target = Target { tensor: out.slice(0, j * r, r)?, accumulate: false };
        Gemm::new(OP, Layout::Tn, desc.dtype, [1, r, n], addresses).sum_in_pieces(FOLD, weight.device(), &target)?;
    }
    Ok(out)
}

/// One launch for each head.
fn fused(desc: &Desc, operands: &Operands, product: Product, [x, weight]: [&Tensor; 2], y: &Tensor) -> Result<()> {
    let samples = if desc.kind.looks() { look(desc, operands, product, [x, weight])? } else { None };
    let (hidden, bias, residual) = (operands.hidden.address()?, address(operands.bias)?, address(operands.residual)?);
    let (gate, to) = (address(operands.gate)?, y.address()?);
    let n = desc.k / product.heads;
    // A unit must not reach into the next head.
    let vector = n.is_multiple_of(pack(desc.dtype)) && is_vector(desc, &[hidden, bias, residual, gate, to]);
    let samples = address(samples.as_ref())?;
    let common = Common { hidden, bias, residual, gate, samples, ..common(desc, vector) };
    let rows = address(operands.rows)?;
    let forward = Forward { common, gate_bias: 0, rows, y: to, narrow: 0, folded: 0, r: 0 };
    let kernel = by_dtype(OP, desc.dtype, &UP)?;
    let addresses = [x.address()?, weight.address()?, to];
    let tiles = desc.m.div_ceil(TILE) as u64 * n.div_ceil(TILE) as u64;
    let specs = heads(desc, product).map(|head| {
        let gemm = product::on_gpu(desc, product, head, addresses).params();
        launch(kernel, blocks(tiles, 1), &Up { gemm, forward, first_column: (head.j * n) as u64 })
    });
    y.device().run(&specs.collect::<Plan>())
}

fn on_rows(desc: &Desc, operands: &Operands, update: Option<&Tensor>, y: &Tensor) -> Result<()> {
    let (hidden, update, bias) = (operands.hidden.address()?, address(update)?, address(operands.bias)?);
    let (residual, gate, to) = (address(operands.residual)?, address(operands.gate)?, y.address()?);
    let vector = is_vector(desc, &[hidden, update, bias, residual, gate, to]);
    let kernel = kernel(desc, &FORWARD, vector)?;
    let rows = address(operands.rows)?;
    let common = Common { hidden, update, bias, residual, gate, ..common(desc, vector) };
    let gate_bias = address(operands.gate_bias)?;
    let params = Forward { common, gate_bias, rows, y: to, narrow: 0, folded: 0, r: 0 };
    let over_rows = |params: &Forward| launch(kernel, blocks(desc.m as u64, 1), params);
    if desc.kind != Kind::Small {
        return y.device().run(&Plan::from_iter([over_rows(&params)]));
    }
    let samples = Tensor::empty(y.device(), &[desc.samples()], DType::F32)?;
    let samples_at = samples.address()?;
    let first = Forward { common: Common { flags: common.flags | ROWS_ONLY, ..common }, ..params };
    let second = Forward { common: Common { samples: samples_at, ..common }, ..params };
    let mean = mean(desc, operands, &samples)?;
    y.device().run(&Plan::from_iter([over_rows(&first), over_samples(desc, SAMPLES, &mean), over_rows(&second)]))
}

pub fn backward(desc: &Desc, given: &Given, out: &Gradients) -> Result<()> {
    let device = given.dy.device();
    let (hidden, update, bias) = (address(given.hidden)?, address(given.update)?, address(given.bias)?);
    let (residual, gate, dy) = (address(given.residual)?, address(given.gate)?, given.dy.address()?);
    let gradients = [&out.update, &out.hidden, &out.residual, &out.logits].map(|t| address(t.as_ref()));
    let [update_gradient, hidden_gradient, residual_gradient, logit_gradient] = gradients;
    let (update_gradient, hidden_gradient) = (update_gradient?, hidden_gradient?);
    let (residual_gradient, logit_gradient) = (residual_gradient?, logit_gradient?);
    let vector = is_vector(
        desc,
        &[
            hidden,
            update,
            bias,
            residual,
            gate,
            dy,
            update_gradient,
            hidden_gradient,
            residual_gradient,
            logit_gradient,
        ],
    );
    let kernel = kernel(desc, &BACKWARD, vector)?;
    let (rows, dl) = (address(given.rows)?, address(out.rows.as_ref())?);
    let common = Common { hidden, update, bias, residual, gate, ..common(desc, vector) };
    let params = Backward {
        common,
        dy,
        rows,
        dl,
        update_gradient,
        hidden_gradient,
        residual_gradient,
        logit_gradient,
        bias_sums: address(out.bias_sums.as_ref())?,
        gate_sums: address(out.gate_sums.as_ref())?,
        residual_sums: address(out.residual_sums.as_ref())?,
        piece: piece(desc) as u64,
    };
    let over_rows = |params: &Backward| launch(kernel, blocks(pieces(desc) as u64, 1), params);
    if desc.kind != Kind::Small {
        return device.run(&Plan::from_iter([over_rows(&params)]));
    }
    let samples = Tensor::empty(device, &[desc.samples()], DType::F32)?;
    let samples_at = samples.address()?;
    let first = Backward { common: Common { flags: common.flags | ROWS_ONLY, ..common }, ..params };
    let second = Backward { common: Common { samples: samples_at, ..common }, ..params };
    let each = Sample {
        rows,
        tokens: address(given.tokens)?,
        samples: samples_at,
        dl,
        count: desc.samples() as u64,
        t: desc.tokens as u64,
    };
    device.run(&Plan::from_iter([
        over_rows(&first),
        over_samples(desc, SAMPLES, &each),
        over_samples(desc, LOGITS, &each),
        over_rows(&second),
    ]))
}
