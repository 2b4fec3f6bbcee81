//! What products with a block-sparse matrix will do on a GPU, computed from their plans: nothing is launched.

use super::desc::{Dense, Sampled, Side};
use super::gpu::{busy_tiles, split_of, tile};
use super::hopper::{Lines, Strips};
use crate::dtype::DType;
use crate::ops::product::{Gpu, Traffic};
use crate::tensor::BlockPattern;
use crate::tensor::block_sparse::DIRECT;

/// A pass of `y = x Sᵀ`.
#[derive(Clone, Debug)]
pub struct Foretold {
    /// `forward`, `input gradient` or `values gradient`.
    pub pass: &'static str,
    /// Why the Hopper kernel does not take it; `None` where it does.
    pub refusal: Option<String>,
    /// The tiles that all blocks of threads read and write, whatever the second-level cache makes of it.
    pub traffic: Traffic,
    /// Each operand and the result once, in bytes.
    pub compulsory: u64,
}

/// The passes of [`block_sparse_linear`](super::block_sparse_linear) for m rows of x: `y = x Sᵀ`, `dx = dy S` and the gradient of S in f32.
/// Operands are taken to be aligned.
pub fn foretold(gpu: Gpu, pattern: &BlockPattern, m: usize, dtype: DType) -> [Foretold; 3] {
    let line = |sparse_t| Dense {
        op: "block_sparse_linear",
        pattern: pattern.clone(),
        side: Side::Right,
        sparse_t,
        dense_t: false,
        scale: 1.0,
        m,
        dtype,
    };
    let sampled =
        Sampled { op: "block_sparse_linear", pattern: pattern.clone(), a_t: true, b_t: false, scale: 1.0, m, dtype };
    let pass = |pass, sparse_t| {
        let desc = line(sparse_t);
        let (traffic, refusal) = desc.traffic(gpu);
        Foretold { pass, refusal, traffic, compulsory: desc.compulsory() }
    };
    let (traffic, refusal) = sampled.traffic(gpu, DType::F32);
    [
        pass("forward", true),
        pass("input gradient", false),
        Foretold { pass: "values gradient", refusal, traffic, compulsory: sampled.compulsory(DType::F32) },
    ]
}

/// An address that every kernel takes.
const ALIGNED: u64 = 256;

/// Of 32 bytes each.
fn sectors(elements: usize, dtype: DType) -> u64 {
    (elements * dtype.size()).div_ceil(32) as u64
}

fn values(pattern: &BlockPattern) -> usize {
    pattern.nnz() * pattern.block() * pattern.block()
}

impl Dense {
    /// Of the kernel that takes the product, and why that is not the Hopper one.
    pub(super) fn traffic(&self, gpu: Gpu) -> (Traffic, Option<String>) {
        let hopper = Lines {
            desc: self,
            x: ALIGNED,
            values: ALIGNED,
            out: ALIGNED,
            out_dtype: self.dtype,
            accumulate: false,
            gpu,
        };
        match hopper.refusal(|why| why.to_string()) {
            None => (hopper.traffic(), None),
            reason => (self.portable_traffic(), reason),
        }
    }

    /// Each tile of y reads its rows of x where the line's blocks meet them, and the blocks. Pieces of a line go by way of an f32
    /// workspace. Indices are not counted.
    fn portable_traffic(&self) -> Traffic {
        let (b, m, schedule) = (self.pattern.block(), self.m, self.pattern.schedule(self.by_column()));
        let ([bm, bn], [lines, depth]) = (tile(self.dtype, b), self.lines_and_depth());
        let tiles = m.div_ceil(bm);
        let mut traffic = Traffic { loaded: 0, stored: 0, macs: 0 };
        for item in &schedule.items {
            for position in item.positions() {
                let along = b.min(depth - self.other(position) * b);
                traffic.loaded += sectors(m * along * (b / bn) + tiles * b * b, self.dtype);
            }
            if self.dtype != DType::F32 {
                traffic.macs += (tiles * bm * b * b * item.count as usize) as u64;
            }
            if item.piece != DIRECT {
                traffic.stored += sectors(m * b, DType::F32);
                traffic.loaded += sectors(m * b, DType::F32);
            }
        }
        traffic.stored += sectors(m * lines, self.dtype);
        traffic
    }

    fn compulsory(&self) -> u64 {
        let [lines, depth] = self.lines_and_depth();
        ((self.m * (lines + depth) + values(&self.pattern)) * self.dtype.size()) as u64
    }
}

impl Sampled {
    /// Of the kernel that takes the product into blocks of `out`, and why that is not the Hopper one.
    pub(super) fn traffic(&self, gpu: Gpu, out: DType) -> (Traffic, Option<String>) {
        let strips = 0..self.pattern.strips().len();
        let mut hopper = Strips {
            desc: self,
            a: ALIGNED,
            b: ALIGNED,
            out: ALIGNED,
            out_dtype: out,
            accumulate: false,
            split: split_of(self, &strips, true),
            strips: strips.clone(),
            gpu,
        };
        let reason = hopper.refusal(|why| why.to_string());
        let split = split_of(self, &strips, reason.is_none());
        let pieces = self.m.div_ceil(split.max(1));
        if pieces > 1 {
            hopper.out_dtype = DType::F32;
        }
        let mut traffic = if reason.is_none() { hopper.traffic() } else { self.portable_traffic() };
        if reason.is_some() {
            let size = if pieces > 1 { DType::F32 } else { out };
            traffic.stored += pieces as u64 * sectors(values(&self.pattern), size);
        }
        if pieces > 1 {
            // The pieces are added.
            traffic.loaded += pieces as u64 * sectors(values(&self.pattern), DType::F32);
            traffic.stored += sectors(values(&self.pattern), out);
        }
        (traffic, reason)
    }

    /// Each tile reads its columns of op(B), and the rows of op(A). What it writes and indices are not counted.
    fn portable_traffic(&self) -> Traffic {
        let (b, m, [n, k]) = (self.pattern.block(), self.m, self.pattern.shape());
        let ([bm, bn], step) = (tile(self.dtype, b), if b == 128 { 32 } else { 64 });
        let mut traffic = Traffic { loaded: 0, stored: 0, macs: 0 };
        for item in self.pattern.strips() {
            let tiles = busy_tiles(item, b, bm);
            traffic.loaded += sectors(tiles * m * b.min(n - item.line as usize * b), self.dtype);
            for position in item.positions() {
                let columns = b.min(k - self.pattern.topology().columns()[position] as usize * b);
                traffic.loaded += sectors(m * columns * (b / bn), self.dtype);
            }
            if self.dtype != DType::F32 {
                traffic.macs += (item.count as usize * b * b * m.next_multiple_of(step)) as u64;
            }
        }
        traffic
    }

    fn compulsory(&self, out: DType) -> u64 {
        let [n, k] = self.pattern.shape();
        (self.m * (n + k) * self.dtype.size() + values(&self.pattern) * out.size()) as u64
    }
}
