//! What plans foretell of time: products, and the launch that makes a product and its update together, on a GPU whose rates are known.
//! A model, held against nothing: tensor cores at the rate that a library's large products reach, or every operand moved once.

use super::hopper::{self, CLUSTER, MMA_STEP, ROWS, STEP};
use super::one_launch::OneLaunch;
use super::{Layout, Product};
use crate::dtype::DType;
use crate::error::Result;

/// Of an H200, in operations and bytes a second: what cuBLAS reaches on large 16-bit products, and copies.
pub(crate) const TENSOR_RATE: f64 = 790e12;
pub(crate) const BANDWIDTH: f64 = 4.3e12;

/// One launch, or a sum with the launch that joins its pieces.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    pub makes: &'static str,
    pub kernel: &'static str,
    /// Multiply-adds count twice.
    pub operations: u64,
    /// Every operand and result once, and what is written in pieces twice.
    pub bytes: u64,
    pub microseconds: f64,
}

impl Product {
    pub fn forecast(&self, makes: &'static str) -> Result<Forecast> {
        let (spec, pieces) = self.sum_spec()?;
        let busy = match hopper::choose(self) {
            Some(tile) => rounds(self, tile) * turn(self, tile),
            None => self.operations() as f64 / TENSOR_RATE,
        };
        let (operations, bytes) = (self.operations(), self.bytes(pieces));
        Ok(Forecast { makes, kernel: spec.kernel.symbol(), operations, bytes, microseconds: slower(busy, bytes) })
    }

    fn operations(&self) -> u64 {
        2 * (self.m * self.n) as u64 * (self.k + self.low_rank.map_or(0, |l| l.rank)) as u64
    }

    fn bytes(&self, pieces: usize) -> u64 {
        let (m, n, k) = (self.m as u64, self.n as u64, (self.k + self.low_rank.map_or(0, |l| l.rank)) as u64);
        let out = match self.layout {
            Layout::Tn => DType::F32.size() as u64 * if pieces > 1 { 2 * pieces as u64 + 1 } else { 1 },
            _ => self.dtype.size() as u64,
        };
        (m * k + n * k) * self.dtype.size() as u64 + m * n * out
    }
}

impl OneLaunch {
    pub fn forecast(&self, makes: &'static str) -> Result<Forecast> {
        let (base, tile) = (&self.base, &hopper::TILES[self.tile]);
        let clusters = hopper::clusters(base, tile);
        // Where not only idle clusters make h, all do, a quarter of a turn for each pair of tiles.
        let (pairs, _) = hopper::pairs_and_columns(base, tile);
        let more = if self.drawers() < clusters { 0.0 } else { pairs as f64 / 4.0 / clusters as f64 };
        let busy = (rounds(base, tile) + more) * turn(base, tile);
        let down = self.down.n as u64;
        let operations = base.operations() + 2 * (base.m * base.k) as u64 * down;
        let bytes = base.bytes(1) + (base.m + base.k) as u64 * down * base.dtype.size() as u64;
        let kernel = self.spec(0)?.kernel.symbol();
        Ok(Forecast { makes, kernel, operations, bytes, microseconds: slower(busy, bytes) })
    }
}

/// Turns of the busiest cluster.
fn rounds(p: &Product, tile: &hopper::Tile) -> f64 {
    hopper::turns(p, tile).div_ceil(hopper::clusters(p, tile)) as f64
}

/// Seconds of one turn of a cluster.
fn turn(p: &Product, tile: &hopper::Tile) -> f64 {
    let low = p.low_rank.map_or(0, |l| l.rank.next_multiple_of(MMA_STEP));
    let operations = 2 * ROWS * CLUSTER * tile.cols * (p.k.next_multiple_of(STEP) + low);
    operations as f64 * f64::from(p.gpu.multiprocessors) / CLUSTER as f64 / TENSOR_RATE
}

fn slower(busy: f64, bytes: u64) -> f64 {
    1e6 * busy.max(bytes as f64 / BANDWIDTH)
}
