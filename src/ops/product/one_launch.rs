//! A product and its low-rank update in one launch on Hopper: `kernels/tile/hopper_one_launch.cuh`.

use super::hopper::{self, CLUSTER, MMA_STEP, ROWS, STEP, STORE_ROWS};
use super::{Layout, Product, Traffic};
use crate::device::{Device, LaunchSpec, Plan, Swizzle, TensorMap, TensorMaps};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::aligned;
use crate::tensor::Tensor;

/// What follows the eight maps in `struct OneLaunchParams` of `kernels/tile/hopper_one_launch.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct OneLaunchParams {
    pub bias: u64,
    pub held: u64,
    pub progress: u64,
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub rank: u64,
    pub seed: u64,
    pub pairs: u32,
    pub columns: u32,
    pub steps: u32,
    pub low_steps: u32,
    pub step: u32,
    pub site: u32,
    pub threshold: u32,
    pub low_scale: f32,
    pub width: u32,
    pub drawers: u32,
    pub activation: u32,
    pub keeps: u32,
    unused: [u32; 4],
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<OneLaunchParams>() == 128 && offset_of!(OneLaunchParams, pairs) == 64);
    assert!(offset_of!(OneLaunchParams, width) == 96);
};

/// By tile, as `hopper::TILES` has them, then f16 and bf16.
static KERNELS: [[KernelId; 2]; 2] = [
    [KernelId::of("frozen_linear_lora_f16_128x256x64_sm90a"), KernelId::of("frozen_linear_lora_bf16_128x256x64_sm90a")],
    [KernelId::of("frozen_linear_lora_f16_128x128x64_sm90a"), KernelId::of("frozen_linear_lora_bf16_128x128x64_sm90a")],
];

/// Warps of a block that multiply.
const WARPS: usize = 8;
/// Largest rank: h of a tile's rows is one stage of the ring.
const MAX_RANK: usize = STEP;

/// `h = scale · dropout(x) Aᵀ`, which is `down`, and `y = x W₀ᵀ + bias + h Bᵀ`, which is `base`: both read x.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct OneLaunch {
    pub(super) down: Product,
    pub(super) base: Product,
    /// Of `hopper::TILES`.
    pub(super) tile: usize,
}

impl OneLaunch {
    /// With the tile that the base product would have alone; the reason, if the two cannot or should not be one launch.
    pub fn new(down: Product, base: Product) -> std::result::Result<Self, String> {
        let mut refusals = hopper::TILES.iter().map(|tile| hopper::refusal(&base, tile, |_| ()));
        let tile = refusals.position(|refusal| refusal.is_none()).ok_or("the base product has a portable kernel")?;
        OneLaunch::of_tile(down, base, tile)
    }

    pub fn of_tile(down: Product, base: Product, tile: usize) -> std::result::Result<Self, String> {
        let rank = down.n;
        if rank > MAX_RANK {
            return Err(format!("takes ranks up to {MAX_RANK}, and this is {rank}"));
        }
        // The base product alone was judged by `hopper::refusal`, which knows nothing of A.
        if !aligned(&[down.b]) || !rank.is_multiple_of(8) {
            return Err("the copy engine takes rows of whole 16 bytes that start at multiples of 16".into());
        }
        if base.rider.is_some() {
            return Err("nothing block-sparse rides on it".into());
        }
        if base.layout != Layout::Nt || base.scale != 1.0 || base.dropout.is_some() {
            return Err("makes y alone".into());
        }
        Ok(OneLaunch { down, base, tile })
    }

    pub fn run(&self, device: &Device) -> Result<()> {
        let (pairs, _) = hopper::pairs_and_columns(&self.base, &hopper::TILES[self.tile]);
        let progress = Tensor::zeros(device, &[1 + pairs * CLUSTER], DType::I32)?;
        device.run(&Plan::from_iter([self.spec(progress.address()?)?]))
    }

    /// Columns of a tile of h.
    fn width(&self) -> usize {
        self.down.n.next_power_of_two().max(MMA_STEP)
    }

    /// How many clusters make h, the first ones: those with a tile of out less than the others, if they can make all of it in the time of
    /// a tile. Reading x makes 256 rows of h, however few columns, take a quarter of one.
    pub(super) fn drawers(&self) -> usize {
        let tile = &hopper::TILES[self.tile];
        let (pairs, _) = hopper::pairs_and_columns(&self.base, tile);
        let (turns, clusters) = (hopper::turns(&self.base, tile), hopper::clusters(&self.base, tile));
        let idle = turns.next_multiple_of(clusters) - turns;
        if pairs <= 4 * idle { idle } else { clusters }
    }

    /// `progress` is a counter and one number for each 128 rows of whole pairs of tiles, all zero.
    pub fn spec(&self, progress: u64) -> Result<LaunchSpec> {
        let OneLaunch { down, base, tile } = *self;
        let (m, n, k, rank) = (base.m, base.n, base.k, down.n);
        let tile = (&hopper::TILES[tile], KERNELS[tile][usize::from(base.dtype == DType::BF16)]);
        let (pairs, columns) = hopper::pairs_and_columns(&base, tile.0);
        // The kernel counts turns, and those of a whole band, in 32 bits.
        if hopper::turns(&base, tile.0) > i32::MAX as usize || columns > 1 << 28 {
            return Err(Error::SizeOverflow { op: base.op, dims: vec![m, n, k] });
        }
        let map = |address: u64, rows: usize, cols: usize, tile_rows: usize| TensorMap {
            address,
            dtype: base.dtype,
            rows: rows as u64,
            cols: cols as u64,
            tile_rows: tile_rows as u32,
            swizzle: Swizzle::B128,
        };
        let up = base.low_rank.map_or(0, |l| l.b);
        let width = self.width();
        let low_out = TensorMap {
            swizzle: [Swizzle::B32, Swizzle::B64, Swizzle::B128][width.ilog2() as usize - 4],
            ..map(down.out, m, rank, STORE_ROWS)
        };
        let maps = [
            map(down.out, m, rank, ROWS),
            map(up, n, rank, STEP),
            map(base.a, m, k, ROWS),
            map(base.b, n, k, STEP),
            map(base.out, m, n, STORE_ROWS),
            map(down.b, rank, k, width),
            low_out,
            map(base.activated.map_or(base.out, |a| a.to), m, n, STORE_ROWS),
        ];
        let keep = down.dropout.map_or(1.0, |d| f64::from(d.keep_scale));
        let (stream, threshold) = down.dropout.map_or((None, 0), |d| (Some(d.stream), d.threshold));
        let params = OneLaunchParams {
            bias: base.bias,
            held: base.held,
            progress,
            m: m as u64,
            n: n as u64,
            k: k as u64,
            rank: rank as u64,
            seed: stream.map_or(0, |s| s.seed),
            pairs: pairs as u32,
            columns: columns as u32,
            steps: k.div_ceil(STEP) as u32,
            low_steps: rank.div_ceil(MMA_STEP) as u32,
            step: stream.map_or(0, |s| s.step),
            site: stream.map_or(0, |s| s.site),
            threshold,
            low_scale: (down.scale * keep) as f32,
            width: width as u32,
            drawers: self.drawers() as u32,
            activation: base.activated.map_or(0, |a| a.activation.code()),
            keeps: u32::from(hopper::keeps(&base)),
            unused: [0; 4],
        };
        Ok(LaunchSpec { maps: TensorMaps::from_slice(&maps), ..hopper::persistent(&base, tile, &params) })
    }

    /// Of the launch, without what threads read themselves: the bias, and how far the others are.
    #[cfg_attr(not(test), allow(dead_code))]
    pub fn traffic(&self) -> Traffic {
        let tile = &hopper::TILES[self.tile];
        let Traffic { loaded, stored, macs } = hopper::traffic(&self.base, tile);
        let (m, k, rank) = (self.base.m as u64, self.base.k, self.down.n as u64);
        let rows = (self.base.m.div_ceil(ROWS * CLUSTER) * ROWS * CLUSTER) as u64;
        let line = hopper::row_sectors(k);
        // A turn of h is drawn, and each warp says when its rows are there; a cluster that draws does so once in vain.
        let (pairs, _) = hopper::pairs_and_columns(&self.base, tile);
        let counted = pairs * (1 + CLUSTER * WARPS) + self.drawers();
        Traffic {
            loaded: loaded + m * line + rows / ROWS as u64 * rank * line,
            stored: stored + m * hopper::row_sectors(self.down.n) + counted as u64,
            macs: macs + rows * (self.width() * k.next_multiple_of(STEP)) as u64,
        }
    }
}
