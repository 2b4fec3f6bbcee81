//! The launch plans: lengths of rows, copies of them of length 1 in f16, and the product of these tile by tile. Pairs that are edges are counted and
//! listed, the counts become offsets, and the pairs are put into their rows, which are then sorted. Where the list had no room for all, the
//! product runs again and puts them at once. The host learns how many pairs there are, to make room for them, and the largest degree.
//!
//! With `top_k` a band of rows at a time sees all columns, and the host keeps the most similar of each row.

use super::pick::keep_top;
use super::{Desc, OP, require_finite};
use crate::device::{Device, LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::graph::{Adjacency, Csr, Pattern, Width};
use crate::kernels::KernelId;
use crate::ops::plan::{PerDType, blocks, by_dtype, launch, per_dtype};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/cosine_graph.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    pub a: u64,
    pub b: u64,
    pub a_squares: u64,
    pub b_squares: u64,
    pub a_unit: u64,
    pub b_unit: u64,
    pub degrees: u64,
    pub cursors: u64,
    pub offsets: u64,
    pub unsorted: u64,
    pub indices: u64,
    pub weights: u64,
    pub list: u64,
    pub capacity: u64,
    pub found: u64,
    pub a_first: u64,
    pub a_rows: u64,
    pub b_first: u64,
    pub b_rows: u64,
    pub rows: u64,
    pub cols: u64,
    pub f: u64,
    pub width: u64,
    pub threshold: f32,
    pub band: f32,
    pub flags: u32,
    pub reserved: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Params>() == 200 && offset_of!(Params, capacity) == 104 && offset_of!(Params, threshold) == 184);
};

const MIRROR: u32 = 1;
const TRIANGLE: u32 = 2;
const PUT: u32 = 4;
const WIDE_OFFSETS: u32 = 8;

const NORMS: PerDType = per_dtype!("cosine_graph_norms", "t256");
const UNIT: PerDType = per_dtype!("cosine_graph_unit", "t256");
const PAIRS: PerDType = per_dtype!("cosine_graph_pairs", "128x128x32");
const WEIGHTS: PerDType = per_dtype!("cosine_graph_weights", "t256");
const SCAN: KernelId = KernelId::of("cosine_graph_scan_u32_t256_sm80");
const PLACE: KernelId = KernelId::of("cosine_graph_place_u32_t256_sm80");
const ORDER: KernelId = KernelId::of("cosine_graph_order_u32_t256_sm80");

/// Bytes of copies in f16 at a time, of both sides together.
const COPIES: usize = 32 << 20;
/// Bytes of listed pairs, 8 each.
const LIST: usize = 32 << 20;
/// Pairs of a tile, each way.
const TILE: usize = 128;
/// Rows of the copies have at most so many columns, which the tile product counts in 32 bits.
const LONGEST_ROW: usize = 1 << 24;

/// Twice the error of f16 in a product of two rows of length 1: each number is off by at most 2^-11 of itself, or 2^-25 where that is more, and the
/// sum of f products in f32 by f roundings, which tensor cores may do downwards.
pub(super) fn band(f: usize) -> f32 {
    0.001 + (f as f32 + 8.0) * 2.4e-7
}

/// Rows of a panel of either side, whole tiles: all of them where their copies fit.
fn panel_rows(desc: &Desc) -> usize {
    let fitting = COPIES / (2 * width(desc.f).max(8));
    if desc.among && desc.v <= fitting || !desc.among && desc.v.max(desc.n) <= fitting / 2 {
        return desc.v.max(desc.n);
    }
    (fitting / 2 / TILE * TILE).max(TILE)
}

fn width(f: usize) -> usize {
    f.next_multiple_of(8)
}

/// What there is room for besides operands and results.
pub(super) struct Room {
    /// Listed pairs.
    pub pairs: usize,
    /// Rows of a panel of copies: whole tiles, or all.
    pub panel: usize,
}

/// Rows of both sides, and the squares of their lengths in f64.
struct Sides {
    a: Tensor,
    a_squares: Tensor,
    b: Tensor,
    b_squares: Tensor,
}

pub fn graph(desc: &Desc, a: &Tensor, b: &Tensor) -> Result<Csr> {
    graph_within(desc, a, b, &Room { pairs: LIST / 8, panel: panel_rows(desc) })
}

pub(super) fn graph_within(desc: &Desc, a: &Tensor, b: &Tensor, room: &Room) -> Result<Csr> {
    if desc.f > LONGEST_ROW {
        return Err(Error::value(OP, "features", format!("at most {LONGEST_ROW} columns on a GPU"), desc.f));
    }
    let a_squares = squares(desc, a, desc.v, "features")?;
    let b_squares = if desc.among { a_squares.clone() } else { squares(desc, b, desc.n, "reference")? };
    let sides = Sides { a: a.clone(), a_squares, b: b.clone(), b_squares };
    match desc.top_k {
        None => all_pairs(desc, &sides, room),
        Some(k) => most_similar(desc, &sides, room, k),
    }
}

/// Every pair above the threshold.
fn all_pairs(desc: &Desc, sides: &Sides, room: &Room) -> Result<Csr> {
    let device = sides.a.device();
    // No more than there are pairs.
    let pairs = (desc.v as u64).saturating_mul(desc.n as u64) / if desc.among { 2 } else { 1 };
    let listed = room.pairs.min(usize::try_from(pairs).unwrap_or(usize::MAX));
    let list = Tensor::empty(device, &[listed, 2], DType::I32)?;
    let found = Tensor::zeros(device, &[2], DType::I64)?;
    let degrees = Tensor::zeros(device, &[desc.v], DType::I32)?;
    let cursors = Tensor::zeros(device, &[desc.v], DType::I32)?;
    let params = Params {
        a: sides.a.address()?,
        b: sides.b.address()?,
        a_squares: sides.a_squares.address()?,
        b_squares: sides.b_squares.address()?,
        degrees: degrees.address()?,
        cursors: cursors.address()?,
        list: list.address()?,
        capacity: listed as u64,
        found: found.address()?,
        rows: desc.v as u64,
        cols: desc.n as u64,
        f: desc.f as u64,
        width: width(desc.f) as u64,
        threshold: desc.threshold,
        band: band(desc.f),
        flags: if desc.among { MIRROR } else { 0 },
        ..Params::default()
    };
    let copies = Copies::new(desc, room.panel, device)?;
    // Rows without columns have no direction.
    if desc.f > 0 {
        copies.product(desc, &params)?;
    }
    let pairs = found.to_vec::<i64>()?[0] as u64;
    let edges = pairs as usize * if desc.among { 2 } else { 1 };
    let offsets = Tensor::empty(device, &[desc.v + 1], Width::Fitting.dtype(edges))?;
    let indices = Tensor::empty(device, &[edges], DType::I32)?;
    let params = Params {
        offsets: offsets.address()?,
        indices: indices.address()?,
        flags: params.flags | if offsets.dtype() == DType::I64 { WIDE_OFFSETS } else { 0 },
        ..params
    };
    device.run(&Plan::from_iter([launch(SCAN, 1, &params)]))?;
    if edges > 0 {
        let unsorted = Tensor::empty(device, &[edges], DType::I32)?;
        let params = Params { unsorted: unsorted.address()?, ..params };
        if pairs <= params.capacity {
            let params = Params { capacity: pairs, ..params };
            device.run(&Plan::from_iter([over(PLACE, pairs, &params)]))?;
        } else {
            copies.product(desc, &Params { flags: params.flags | PUT, ..params })?;
        }
        device.run(&Plan::from_iter([launch(ORDER, blocks(desc.v as u64, 1), &params)]))?;
    }
    let values = if desc.weighted {
        let values = Tensor::empty(device, &[edges], DType::F32)?;
        if edges > 0 {
            let params = Params { weights: values.address()?, ..params };
            let kernel = by_dtype(OP, desc.dtype, &WEIGHTS)?;
            device.run(&Plan::from_iter([launch(kernel, blocks(desc.v as u64, ROWS_EACH), &params)]))?;
        }
        Some(values)
    } else {
        None
    };
    let max_degree = found.to_vec::<i64>()?[1] as usize;
    Ok(Csr::trusted(desc.n, Pattern { rows: desc.v, edges, max_degree, offsets, indices, order: None }, values))
}

/// The k most similar of each row, chosen on the host from one band of rows after the other: no more than the list's room of pairs is there at a
/// time, or those of one tile's rows.
fn most_similar(desc: &Desc, sides: &Sides, room: &Room, k: usize) -> Result<Csr> {
    let (mut offsets, mut indices, mut values) = (vec![0], Vec::new(), Vec::new());
    let rows = (room.pairs / desc.n.max(1) / TILE * TILE).max(TILE);
    for first in (0..desc.v).step_by(rows) {
        let rows = rows.min(desc.v - first);
        let band = Desc { v: rows, among: false, top_k: None, weighted: true, ..*desc };
        let (a, a_squares) = (sides.a.slice(0, first, rows)?, sides.a_squares.slice(0, first, rows)?);
        let sides = Sides { a, a_squares, b: sides.b.clone(), b_squares: sides.b_squares.clone() };
        let all = all_pairs(&band, &sides, room)?.to_host()?;
        for i in 0..rows {
            let edges = (all.offsets()[i]..all.offsets()[i + 1]).map(|e| (all.indices()[e] as u32, all.value(e)));
            let mut found: Vec<(u32, f32)> = edges.filter(|&(j, _)| !desc.among || j as usize != first + i).collect();
            keep_top(&mut found, k);
            indices.extend(found.iter().map(|&(j, _)| j as usize));
            values.extend(found.iter().map(|&(_, w)| w));
            offsets.push(indices.len());
        }
    }
    let graph = Adjacency::new((desc.v, desc.n), offsets, indices, desc.weighted.then_some(values))?;
    Csr::new(&graph, sides.a.device())
}

/// Rows that a block of the weights' kernel takes: a warp each.
const ROWS_EACH: u64 = 8;

/// Room for a panel of rows of length 1 of either side; one where both are the same rows.
struct Copies {
    a: Tensor,
    b: Tensor,
    rows: usize,
}

impl Copies {
    fn new(desc: &Desc, rows: usize, device: &Device) -> Result<Self> {
        let room = |all: usize| Tensor::empty(device, &[rows.min(all), width(desc.f)], DType::F16);
        let a = room(desc.v)?;
        let b = if desc.among && rows >= desc.v { a.clone() } else { room(desc.n)? };
        Ok(Copies { a, b, rows })
    }

    /// The product of all rows with all rows, panel by panel.
    fn product(&self, desc: &Desc, params: &Params) -> Result<()> {
        let device = self.a.device();
        for a_first in (0..desc.v).step_by(self.rows.max(1)) {
            let rows = self.rows.min(desc.v - a_first);
            let a = Params { a_unit: self.a.address()?, a_first: a_first as u64, a_rows: rows as u64, ..*params };
            device.run(&Plan::from_iter([copy(desc, &a)?]))?;
            // Of rows among themselves a pair of panels is met once.
            let from = if desc.among { a_first } else { 0 };
            for b_first in (from..desc.n).step_by(self.rows.max(1)) {
                let cols = self.rows.min(desc.n - b_first);
                let same = desc.among && b_first == a_first;
                let mut plan = Plan::new();
                let b_unit = if same { self.a.address()? } else { self.b.address()? };
                if !same {
                    let (x, x_squares) = (params.b, params.b_squares);
                    let (first, rows) = (b_first as u64, cols as u64);
                    let b = Params { a: x, a_squares: x_squares, a_unit: b_unit, a_first: first, a_rows: rows, ..a };
                    plan.push(copy(desc, &b)?);
                }
                let flags = a.flags | if same { TRIANGLE } else { 0 };
                let pair = Params { b_unit, b_first: b_first as u64, b_rows: cols as u64, flags, ..a };
                plan.push(launch(by_dtype(OP, desc.dtype, &PAIRS)?, blocks(tiles(&pair), 1), &pair));
                device.run(&plan)?;
            }
        }
        Ok(())
    }
}

fn copy(desc: &Desc, params: &Params) -> Result<LaunchSpec> {
    Ok(over(by_dtype(OP, desc.dtype, &UNIT)?, params.a_rows * params.width / 8, params))
}

/// Tiles of a product of panels. A triangle of n rows of tiles is folded into lines of n + 1.
fn tiles(params: &Params) -> u64 {
    let [down, across] = [params.a_rows, params.b_rows].map(|rows| rows.div_ceil(TILE as u64));
    if params.flags & TRIANGLE != 0 { across.div_ceil(2) * (across + 1) } else { down.saturating_mul(across) }
}

/// One thread for each of `units`.
fn over(kernel: KernelId, units: u64, params: &Params) -> LaunchSpec {
    launch(kernel, blocks(units, u64::from(kernel.row().threads)), params)
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
        device.run(&Plan::from_iter([over(by_dtype(OP, desc.dtype, &NORMS)?, rows as u64, &params)]))?;
    }
    require_finite(&out.to_vec::<f64>()?, argument)?;
    Ok(out)
}
