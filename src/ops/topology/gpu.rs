//! The launch plans: count and scan, then, once the number of blocks is known, both orders.

use super::OP;
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::{blocks, launch};
use crate::tensor::Tensor;
use crate::tensor::block_sparse::{Index, Topology};

/// Mirrors `struct TopologyParams` in `kernels/topology.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
struct TopologyParams {
    mask: u64,
    offsets: u64,
    t_offsets: u64,
    columns: u64,
    rows: u64,
    t_rows: u64,
    t_blocks: u64,
    numbers: u64,
    grid_rows: u32,
    grid_columns: u32,
}

const _: () = assert!(size_of::<TopologyParams>() == 72 && std::mem::offset_of!(TopologyParams, grid_rows) == 64);

const COUNT: KernelId = KernelId::of("topology_count_u8_t256_sm80");
const SCAN: KernelId = KernelId::of("topology_scan_u32_t256_sm80");
const FILL: KernelId = KernelId::of("topology_fill_u32_t256_sm80");
const TURN: KernelId = KernelId::of("topology_turn_u32_t256_sm80");

pub fn topology(mask: &Tensor, shape: [usize; 2], block: usize) -> Result<Topology> {
    let (device, [rows, columns]) = (mask.device(), [mask.dims()[0], mask.dims()[1]]);
    let array = |len: usize| Tensor::empty(device, &[len], DType::I32);
    let (offsets, t_offsets) = (array(rows + 1)?, array(columns + 1)?);
    let mut params = TopologyParams {
        mask: mask.address()?,
        offsets: offsets.address()?,
        t_offsets: t_offsets.address()?,
        columns: 0,
        rows: 0,
        t_rows: 0,
        t_blocks: 0,
        numbers: 0,
        grid_rows: rows as u32,
        grid_columns: columns as u32,
    };
    // One warp a line, eight of them a block of threads.
    let over = |kernel, lines: usize, params: &TopologyParams| launch(kernel, blocks(lines as u64, 8), params);
    let scan: LaunchSpec = launch(SCAN, 2, &params);
    device.run(&Plan::from_iter([over(COUNT, rows.max(columns), &params), scan]))?;
    let row_offsets = words(&offsets)?;
    let nnz = row_offsets.last().copied().unwrap_or(0) as usize;
    let [in_rows, in_columns, t_rows, t_blocks] = [array(nnz)?, array(nnz)?, array(nnz)?, array(nnz)?];
    let numbers = array(rows * columns)?;
    params.rows = in_rows.address()?;
    params.columns = in_columns.address()?;
    params.t_rows = t_rows.address()?;
    params.t_blocks = t_blocks.address()?;
    params.numbers = numbers.address()?;
    device.run(&Plan::from_iter([over(FILL, rows, &params), over(TURN, columns, &params)]))?;
    let index = Index {
        row_offsets,
        columns: words(&in_columns)?,
        rows: words(&in_rows)?,
        t_offsets: words(&t_offsets)?,
        t_rows: words(&t_rows)?,
        t_blocks: words(&t_blocks)?,
    };
    Topology::of_index(shape, block, index)
}

/// Indices as a kernel wrote them.
fn words(tensor: &Tensor) -> Result<Vec<u32>> {
    let values = tensor.to_vec::<i32>()?;
    let checked: Option<Vec<u32>> = values.iter().map(|&v| u32::try_from(v).ok()).collect();
    checked.ok_or_else(|| Error::value(OP, "index", "numbers below 2³¹", "a larger one"))
}
