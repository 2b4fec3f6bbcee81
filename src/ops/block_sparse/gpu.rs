//! The launch plans. A product with a sparse operand is one launch over the schedule's items, and a second that adds the pieces of
//! lines that were cut; a sampled product is one over strips of blocks, cut along its sum where there are few.

use std::ops::Range;

use super::desc::{Dense, Sampled, Side};
use super::hopper::{Lines, Strips, covered};
use crate::autograd::Target;
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::column_sum::column_sum;
use crate::ops::plan::{PerDType, aligned, blocks, by_dtype, launch, pack, per_dtype};
use crate::ops::product::{Gpu, Rider};
use crate::ops::target::{ACCUMULATE, WIDE, address_and_flags};
use crate::tensor::Tensor;
use crate::tensor::block_sparse::{Item, STRIP};

/// Mirrors `struct DenseParams` in `kernels/tile/block.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct DenseParams {
    pub values: u64,
    pub dense: u64,
    pub out: u64,
    pub pieces: u64,
    pub items: u64,
    pub others: u64,
    pub blocks: u64,
    pub m: u64,
    pub lines: u64,
    pub depth: u64,
    pub tiles: u32,
    pub flags: u32,
    pub scale: f32,
    pub padding: u32,
}

/// Mirrors `struct SampledParams` in `kernels/tile/block.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct SampledParams {
    pub a: u64,
    pub b: u64,
    pub out: u64,
    pub strips: u64,
    pub columns: u64,
    pub n: u64,
    pub k: u64,
    pub m: u64,
    pub split: u64,
    pub nnz: u64,
    pub first: u32,
    pub count: u32,
    pub flags: u32,
    pub scale: f32,
}

/// Mirrors `struct JoinParams` in `kernels/block_sparse.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct JoinParams {
    pieces: u64,
    out: u64,
    joints: u64,
    m: u64,
    lines: u64,
    count: u32,
    flags: u32,
    scale: f32,
    padding: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<DenseParams>() == 96 && offset_of!(DenseParams, m) == 56 && offset_of!(DenseParams, tiles) == 80);
    assert!(offset_of!(DenseParams, scale) == 88 && offset_of!(SampledParams, scale) == 92);
    assert!(size_of::<SampledParams>() == 96 && offset_of!(SampledParams, n) == 40);
    assert!(offset_of!(SampledParams, first) == 80);
    assert!(size_of::<JoinParams>() == 56 && offset_of!(JoinParams, m) == 24 && offset_of!(JoinParams, count) == 40);
};

pub(crate) const VECTOR_FIRST: u32 = 4;
pub(crate) const VECTOR_SECOND: u32 = 8;
pub(crate) const VECTOR_OUT: u32 = 16;
pub(crate) const LINES_FIRST: u32 = 32;

/// The kernels of one block edge: by layout of the two sides (n or t each), then by dtype.
struct Edge {
    dense: [PerDType; 4],
    sampled: [PerDType; 4],
    join: PerDType,
}

macro_rules! edge {
    ($edge:literal) => {
        Edge {
            dense: [
                per_dtype!("block_sparse_dense_nn", $edge),
                per_dtype!("block_sparse_dense_nt", $edge),
                per_dtype!("block_sparse_dense_tn", $edge),
                per_dtype!("block_sparse_dense_tt", $edge),
            ],
            sampled: [
                per_dtype!("block_sparse_sampled_nn", $edge),
                per_dtype!("block_sparse_sampled_nt", $edge),
                per_dtype!("block_sparse_sampled_tn", $edge),
                per_dtype!("block_sparse_sampled_tt", $edge),
            ],
            join: per_dtype!("block_sparse_join_t256", $edge),
        }
    };
}

static EDGES: [Edge; 4] = [edge!("b16"), edge!("b32"), edge!("b64"), edge!("b128")];

fn edge_of(b: usize) -> &'static Edge {
    // b is one of 16, 32, 64 and 128.
    &EDGES[(b / 16).trailing_zeros() as usize % EDGES.len()]
}

/// Extents of a tile: along m or the gathered columns, and along the block.
pub(super) fn tile(dtype: DType, b: usize) -> [usize; 2] {
    match dtype {
        DType::F32 => [if b >= 64 { 64 } else { 128 }, b.min(64)],
        _ => [128, b],
    }
}

/// `flag` if rows of `row` elements at `address` can be accessed 16 bytes at a time.
fn vector(address: u64, row: usize, dtype: DType, flag: u32) -> u32 {
    if aligned(&[address]) && row.is_multiple_of(pack(dtype)) { flag } else { 0 }
}

fn grid(op: &'static str, dims: [usize; 2], items: usize, tiles: usize) -> Result<u32> {
    let count = items.checked_mul(tiles).filter(|&c| c <= i32::MAX as usize);
    count.map(|c| c as u32).ok_or_else(|| Error::SizeOverflow { op, dims: dims.to_vec() })
}

/// The launches of a product, with the workspace that they share.
pub fn dense(desc: &Dense, values: &Tensor, dense: &Tensor, target: &Target) -> Result<(Plan, Option<Tensor>)> {
    let (x, out, gpu) = (dense.address()?, &target.tensor, Gpu::of(values.device()));
    let (values_at, out_at) = (values.address()?, out.address()?);
    let accumulate = target.accumulate;
    let on_hopper = Lines { desc, x, values: values_at, out: out_at, out_dtype: out.dtype(), accumulate, gpu };
    if on_hopper.refusal(|_| ()).is_none() {
        return Ok((Plan::from_iter([on_hopper.spec()?]), None));
    }
    let (b, m, pattern) = (desc.pattern.block(), desc.m, &desc.pattern);
    let [lines, depth] = desc.lines_and_depth();
    let (schedule, by_column) = (pattern.schedule(desc.by_column()), desc.by_column());
    let addresses = pattern.addresses()?;
    let [bm, bn] = tile(desc.dtype, b);
    let tiles = m.div_ceil(bm) * (b / bn);
    let blocks_of_threads = grid(desc.op, desc.out_dims(), schedule.items.len(), tiles)?;
    if depth.div_ceil(16) > 1 << 30 {
        return Err(Error::SizeOverflow { op: desc.op, dims: vec![lines, depth] });
    }
    let workspace = match schedule.pieces {
        0 => None,
        pieces => Some(Tensor::empty(values.device(), &[pieces, m, b], DType::F32)?),
    };
    // Whether the dense operand has the sum along its rows, or across.
    let across = desc.dense_t != (desc.side == Side::Left);
    let (out, mut flags) = address_and_flags(desc.op, desc.dtype, target)?;
    let lines_first = desc.side == Side::Left;
    let mut params = DenseParams {
        values: values_at,
        dense: x,
        out,
        pieces: workspace.as_ref().map_or(Ok(0), Tensor::address)?,
        items: if by_column { addresses.by_column } else { addresses.by_row },
        others: if by_column { addresses.t_rows } else { addresses.columns },
        blocks: if by_column { addresses.t_blocks } else { 0 },
        m: m as u64,
        lines: lines as u64,
        depth: depth as u64,
        tiles: tiles as u32,
        flags: 0,
        scale: desc.scale as f32,
        padding: 0,
    };
    flags |= if lines_first { LINES_FIRST } else { 0 };
    flags |= vector(params.values, b, desc.dtype, VECTOR_FIRST);
    flags |= vector(params.dense, if across { m } else { depth }, desc.dtype, VECTOR_SECOND);
    flags |= vector(out, if lines_first { m } else { lines }, target.tensor.dtype(), VECTOR_OUT);
    params.flags = flags;
    let edge = edge_of(b);
    let layout = usize::from(across) * 2 + usize::from(by_column);
    let mut plan =
        Plan::from_iter([launch(by_dtype(desc.op, desc.dtype, &edge.dense[layout])?, blocks_of_threads, &params)]);
    if workspace.is_some() {
        let joints = schedule.joints.len();
        let join = JoinParams {
            pieces: params.pieces,
            out,
            joints: if by_column { addresses.by_column_joints } else { addresses.by_row_joints },
            m: params.m,
            lines: params.lines,
            count: joints as u32,
            flags,
            scale: params.scale,
            padding: 0,
        };
        let kernel = by_dtype(desc.op, desc.dtype, &edge.join)?;
        let units = (joints * b) as u64 * params.m;
        plan.push(launch(kernel, blocks(units, u64::from(kernel.row().threads)), &join));
    }
    Ok((plan, workspace))
}

/// The same product as one that rides on a frozen one, whose columns are the lines.
pub fn rider(desc: &Dense, values: &Tensor) -> Result<Rider> {
    let addresses = desc.pattern.addresses()?;
    let by_column = desc.by_column();
    Ok(Rider {
        values: values.address()?,
        offsets: if by_column { addresses.t_offsets } else { addresses.row_offsets },
        others: if by_column { addresses.t_rows } else { addresses.columns },
        blocks: if by_column { addresses.t_blocks } else { 0 },
        b: desc.pattern.block(),
        nnz: desc.pattern.nnz(),
        scale: desc.scale,
    })
}

/// A sum is cut until there are about this many tiles, into pieces of at least `PIECE`. All are constants, so that the order of a sum
/// depends on its shape alone and not on the number of multiprocessors.
const WANTED_BLOCKS: usize = 256;
const WANTED_STRIPS: usize = 128;
const PIECE: usize = 256;

/// Blocks of threads for each piece of the sum.
fn tiles_of(desc: &Sampled, strips: &Range<usize>) -> usize {
    let [bm, bn] = tile(desc.dtype, desc.pattern.block());
    strips.len() * (STRIP / bm) * (desc.pattern.block() / bn)
}

/// How much of m one of `count` tiles sums over, so that there are about `wanted`.
fn split(m: usize, count: usize, wanted: usize) -> usize {
    let pieces = wanted.div_ceil(count.max(1)).min(m.div_ceil(PIECE)).max(1);
    m.div_ceil(pieces).next_multiple_of(64)
}

/// How much of m a piece takes, on Hopper or not.
pub(super) fn split_of(desc: &Sampled, strips: &Range<usize>, on_hopper: bool) -> usize {
    if on_hopper {
        return split(desc.m, strips.len(), WANTED_STRIPS);
    }
    let ([bm, bn], b) = (tile(desc.dtype, desc.pattern.block()), desc.pattern.block());
    let tiles = |item: &Item| busy_tiles(item, b, bm) * (b / bn);
    split(desc.m, desc.pattern.strips()[strips.clone()].iter().map(tiles).sum(), WANTED_BLOCKS)
}

/// Tiles of `bm` columns that have blocks to compute.
pub(super) fn busy_tiles(strip: &Item, b: usize, bm: usize) -> usize {
    (strip.count as usize * b).div_ceil(bm)
}

/// A sampled product as the Hopper kernels have it.
pub(super) fn strips<'a>(
    desc: &'a Sampled,
    a: &Tensor,
    b: &Tensor,
    strips: Range<usize>,
    target: &Target,
) -> Result<Strips<'a>> {
    Ok(Strips {
        desc,
        a: a.address()?,
        b: b.address()?,
        out: target.tensor.address()?,
        out_dtype: target.tensor.dtype(),
        accumulate: target.accumulate,
        split: split_of(desc, &strips, true),
        strips,
        gpu: Gpu::of(a.device()),
    })
}

/// Writes the blocks of `strips` to `target`, which holds them alone, or adds them.
pub fn sampled(desc: &Sampled, a: &Tensor, b: &Tensor, strips: Range<usize>, target: &Target) -> Result<()> {
    let (device, m) = (a.device(), desc.m);
    let mut on_hopper = self::strips(desc, a, b, strips.clone(), target)?;
    let taken = on_hopper.refusal(|_| ()).is_none();
    let split = split_of(desc, &strips, taken);
    let pieces = m.div_ceil(split);
    let aside = match pieces {
        1 => None,
        _ => {
            let tensor = Tensor::empty(device, &[pieces, target.tensor.numel()], DType::F32)?;
            Some(Target { tensor, accumulate: false })
        }
    };
    let to = aside.as_ref().unwrap_or(target);
    let spec = if taken {
        (on_hopper.out, on_hopper.out_dtype) = (to.tensor.address()?, to.tensor.dtype());
        on_hopper.accumulate = to.accumulate;
        on_hopper.spec()?
    } else {
        spec(desc, a, b, strips, split, to)?
    };
    device.run(&Plan::from_iter([spec]))?;
    aside.map_or(Ok(()), |aside| column_sum(&aside.tensor, 1, target.tensor.numel(), 1.0, target))
}

fn spec(
    desc: &Sampled,
    a: &Tensor,
    b: &Tensor,
    strips: Range<usize>,
    split: usize,
    target: &Target,
) -> Result<LaunchSpec> {
    let ([n, k], m, addresses) = (desc.pattern.shape(), desc.m, desc.pattern.addresses()?);
    let covered = covered(&desc.pattern.strips()[strips.clone()]);
    let (out, flags) = address_and_flags(desc.op, desc.dtype, target)?;
    let (a, b) = (a.address()?, b.address()?);
    let params = SampledParams {
        a,
        b,
        out,
        strips: addresses.strips + 16 * strips.start as u64,
        columns: addresses.columns,
        n: n as u64,
        k: k as u64,
        m: m as u64,
        split: split as u64,
        nnz: covered.len() as u64,
        first: covered.start as u32,
        count: strips.len() as u32,
        flags: flags
            | vector(out, desc.pattern.block(), target.tensor.dtype(), VECTOR_OUT)
            | vector(a, if desc.a_t { n } else { m }, desc.dtype, VECTOR_FIRST)
            | vector(b, if desc.b_t { m } else { k }, desc.dtype, VECTOR_SECOND),
        scale: desc.scale as f32,
    };
    let layout = usize::from(desc.a_t) * 2 + usize::from(desc.b_t);
    let kernel = by_dtype(desc.op, desc.dtype, &edge_of(desc.pattern.block()).sampled[layout])?;
    let grid = grid(desc.op, [n, k], tiles_of(desc, &strips), m.div_ceil(split))?;
    Ok(launch(kernel, grid, &params))
}

const _: () = assert!(ACCUMULATE == 1 && WIDE == 2);
