//! The launch plans: lengths of rows, then one bit a pair, their number in each row, and, once the host has added those up, the columns. Where the
//! bits of all rows do not fit, bands of rows are counted first and listed in a second round.

use super::cpu::offsets_tensor;
use super::pick::keep_top;
use super::{Desc, OP, require_finite};
use crate::device::{Device, LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::Result;
use crate::graph::{Adjacency, Csr, Pattern};
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, blocks, by_dtype, launch};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/cosine_graph.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub a: u64,
    pub b: u64,
    pub a_squares: u64,
    pub b_squares: u64,
    pub mask: u64,
    pub degrees: u64,
    pub offsets: u64,
    pub indices: u64,
    pub weights: u64,
    pub rows: u64,
    pub first: u64,
    pub band_rows: u64,
    pub cols: u64,
    pub f: u64,
    pub words: u64,
    pub threshold: f32,
    pub band: f32,
    pub among: u32,
    pub mirror: u32,
    pub wide_offsets: u32,
    pub reserved: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Params>() == 144 && offset_of!(Params, rows) == 72 && offset_of!(Params, threshold) == 120);
};

const NORMS: PerDType = [
    KernelId::of("cosine_graph_norms_f32_t256_sm80"),
    KernelId::of("cosine_graph_norms_f16_t256_sm80"),
    KernelId::of("cosine_graph_norms_bf16_t256_sm80"),
];
const MASK: PerDType = [
    KernelId::of("cosine_graph_mask_f32_64x64x16_sm80"),
    KernelId::of("cosine_graph_mask_f16_64x64x16_sm80"),
    KernelId::of("cosine_graph_mask_bf16_64x64x16_sm80"),
];
const WEIGHTS: PerDType = [
    KernelId::of("cosine_graph_weights_f32_w32_sm80"),
    KernelId::of("cosine_graph_weights_f16_w32_sm80"),
    KernelId::of("cosine_graph_weights_bf16_w32_sm80"),
];
const COUNT: KernelId = KernelId::of("cosine_graph_count_u32_w32_sm80");
const FILL: KernelId = KernelId::of("cosine_graph_fill_u32_w32_sm80");

/// Bytes of bits at a time.
const MASK_BYTES: usize = 32 << 20;
/// Pairs of a tile, each way.
const TILE: usize = 64;
/// Rows that a block of a row kernel takes.
const ROWS_EACH: u64 = 8;

/// Rows of a band: whole tiles whose bits fit.
pub(super) fn band_rows(rows: usize, words: usize) -> usize {
    let fitting = MASK_BYTES / (4 * words.max(1));
    if rows <= fitting { rows } else { (fitting / TILE * TILE).max(TILE) }
}

pub fn graph(desc: &Desc, a: &Tensor, b: &Tensor) -> Result<Csr> {
    let device = a.device();
    let a_squares = squares(desc, a, desc.v, "features")?;
    let b_squares = if desc.among { a_squares.clone() } else { squares(desc, b, desc.n, "reference")? };
    let words = desc.n.div_ceil(32);
    let band = band_rows(desc.v, words);
    let mask = Tensor::empty(device, &[band, words], DType::I32)?;
    let degrees = Tensor::zeros(device, &[desc.v], DType::I32)?;
    let params = Params {
        a: a.address()?,
        b: b.address()?,
        a_squares: a_squares.address()?,
        b_squares: b_squares.address()?,
        mask: mask.address()?,
        degrees: degrees.address()?,
        rows: desc.v as u64,
        cols: desc.n as u64,
        f: desc.f as u64,
        words: words as u64,
        threshold: desc.threshold,
        band: desc.band(),
        among: u32::from(desc.among),
        mirror: u32::from(desc.among && band == desc.v),
        ..Params::default()
    };
    let nothing = desc.v == 0 || desc.n == 0;
    let bands: Vec<(usize, usize)> =
        if nothing { Vec::new() } else { (0..desc.v).step_by(band).map(|i| (i, band.min(desc.v - i))).collect() };
    for &(first, rows) in &bands {
        let params = Params { first: first as u64, band_rows: rows as u64, ..params };
        device.run(&Plan::from_iter([mask_spec(desc, &params)?, rows_spec(COUNT, &params)]))?;
    }
    let mut offsets = vec![0i64; desc.v + 1];
    let mut max_degree = 0;
    for (i, degree) in degrees.to_vec::<i32>()?.into_iter().enumerate() {
        offsets[i + 1] = offsets[i] + i64::from(degree);
        max_degree = max_degree.max(degree as usize);
    }
    let edges = offsets[desc.v] as usize;
    let offsets = offsets_tensor(device, &offsets)?;
    let indices = Tensor::empty(device, &[edges], DType::I32)?;
    let params = Params {
        offsets: offsets.address()?,
        indices: indices.address()?,
        wide_offsets: u32::from(offsets.dtype() == DType::I64),
        ..params
    };
    for &(first, rows) in &bands {
        let params = Params { first: first as u64, band_rows: rows as u64, ..params };
        let mut plan = Plan::new();
        if bands.len() > 1 {
            plan.push(mask_spec(desc, &params)?);
        }
        plan.push(rows_spec(FILL, &params));
        device.run(&plan)?;
    }
    let values = if desc.weighted || desc.top_k.is_some() {
        let values = Tensor::empty(device, &[edges], DType::F32)?;
        if edges > 0 {
            let params = Params { band_rows: desc.v as u64, weights: values.address()?, ..params };
            device.run(&Plan::from_iter([rows_spec(by_dtype(OP, desc.dtype, &WEIGHTS)?, &params)]))?;
        }
        Some(values)
    } else {
        None
    };
    let pattern = Pattern { rows: desc.v, edges, max_degree, offsets, indices, order: None };
    let all = Csr::trusted(desc.n, pattern, values);
    match desc.top_k {
        None => Ok(all),
        Some(k) => top(desc, &all.to_host()?, k, device),
    }
}

fn squares(desc: &Desc, x: &Tensor, rows: usize, argument: &'static str) -> Result<Tensor> {
    let device = x.device();
    let out = Tensor::empty(device, &[rows], DType::F64)?;
    if rows > 0 {
        let params = Params {
            a: x.address()?,
            a_squares: out.address()?,
            rows: rows as u64,
            f: desc.f as u64,
            ..Params::default()
        };
        let kernel = by_dtype(OP, desc.dtype, &NORMS)?;
        device.run(&Plan::from_iter([launch(
            kernel,
            blocks(rows as u64, u64::from(kernel.row().threads)),
            &params,
        )]))?;
    }
    require_finite(&out.to_vec::<f64>()?, argument)?;
    Ok(out)
}

fn mask_spec(desc: &Desc, params: &Params) -> Result<LaunchSpec> {
    let tiles = params.band_rows.div_ceil(TILE as u64).saturating_mul(params.cols.div_ceil(TILE as u64));
    Ok(launch(by_dtype(OP, desc.dtype, &MASK)?, blocks(tiles, 1), params))
}

fn rows_spec(kernel: KernelId, params: &Params) -> LaunchSpec {
    launch(kernel, blocks(params.band_rows, ROWS_EACH), params)
}

/// The k most similar of each row, chosen on the host.
fn top(desc: &Desc, all: &Adjacency, k: usize, device: &Device) -> Result<Csr> {
    let (mut offsets, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
    for i in 0..all.rows() {
        let mut found: Vec<(u32, f32)> =
            (all.offsets()[i]..all.offsets()[i + 1]).map(|e| (all.indices()[e] as u32, all.value(e))).collect();
        keep_top(&mut found, k);
        indices.extend(found.iter().map(|&(j, _)| j as usize));
        values.extend(found.iter().map(|&(_, w)| w));
        offsets.push(indices.len());
    }
    let graph = Adjacency::new((desc.v, desc.n), offsets, indices, desc.weighted.then_some(values))?;
    Csr::new(&graph, device)
}
