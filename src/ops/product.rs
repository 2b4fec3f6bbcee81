//! Plans of the matrix products that the linear layers are made of: see `kernels/tile/gemm.cuh` for the formula.
//!
//! ```text
//! out[m, n] = out_scale · ( mask ⊙ low_scale · (A1 · B1) + A2 · B2 ) + bias + held      activated[m, n] = φ(out)
//! ```

mod forecast;
pub(crate) mod hopper;
pub(crate) mod one_launch;
#[cfg(all(test, feature = "emulator"))]
mod tests;

pub use forecast::Forecast;

use crate::autograd::Target;
use crate::device::{Device, LaunchSpec, Launcher, Plan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops::activation::Activation;
use crate::ops::column_sum::column_sum;
use crate::ops::plan::{PerDType, aligned, by_dtype, launch, pack, per_dtype};
use crate::ops::scale_add::into_dtype;
use crate::rng::Dropout;
use crate::tensor::Tensor;

/// How operands lie in memory, row-major and contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `A [m, k]`, `B [n, k]`
    Nt,
    /// `A [m, k]`, `B [k, n]`
    Nn,
    /// `A [k, m]`, `B [k, n]`, k being the tokens that a gradient sums over; out is f32.
    Tn,
}

/// The first product, `low_scale · (A1 · B1)`, laid out as the second one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LowRankFactors {
    pub a: u64,
    pub b: u64,
    pub rank: usize,
    pub scale: f64,
}

/// A block-sparse product on the same accumulators: see `kernels/tile/ride.cuh` and `kernels/tile/hopper_ride.cuh`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rider {
    pub values: u64,
    /// Of the lines of blocks that the columns of out lie in.
    pub offsets: u64,
    pub others: u64,
    /// 0 where a block's position is its number.
    pub blocks: u64,
    pub b: usize,
    pub nnz: usize,
    pub scale: f64,
}

impl Rider {
    /// Whether kernels can take it along: whole 16-byte reads, and a scale that the low-rank sums can be divided by.
    pub fn can_ride(&self) -> bool {
        let moderate = (2f64.powi(-32)..=2f64.powi(32)).contains(&self.scale.abs());
        aligned(&[self.values]) && moderate
    }
}

/// A low-rank product whose second factor depends on the row: see `kernels/tile/segments.cuh`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Segmented {
    /// `[m, depth]`
    pub a: u64,
    /// `[slots, n, depth]` for nt, `[slots, depth, n]` for nn.
    pub b: u64,
    pub depth: usize,
    /// `[slots + 1]`, `u32`: the rows of each slot.
    pub offsets: u64,
    /// `[slots]`, f32, or 0.
    pub scales: u64,
    pub slots: usize,
}

/// A function of out, and where its values go: if that is out itself, they take its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Activated {
    pub activation: Activation,
    pub to: u64,
}

/// One product on addresses. Address 0 is an absent operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Product {
    pub op: &'static str,
    pub layout: Layout,
    pub dtype: DType,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: u64,
    pub b: u64,
    pub out: u64,
    pub bias: u64,
    /// Added to the result, and laid out as it; for a sum that is added to what out holds, out itself.
    pub held: u64,
    /// nt.
    pub activated: Option<Activated>,
    pub low_rank: Option<LowRankFactors>,
    /// nt and nn.
    pub rider: Option<Rider>,
    /// nt and nn, in place of a low-rank product; `k` may be 0.
    pub segmented: Option<Segmented>,
    /// nt: of A. nn: of the low-rank product. tn: of B. With segments it acts on the update alone, in nt on its A.
    pub dropout: Option<Dropout>,
    pub scale: f64,
    /// Elements from one row of a, b and out to the next, where they are columns of wider matrices.
    pub strides: Option<[usize; 3]>,
    pub gpu: Gpu,
}

/// What a plan knows of the GPU that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Compute capability times ten: 80, 90.
    pub capability: u32,
    pub multiprocessors: u32,
}

impl Gpu {
    /// Any: for plans that take the portable kernels.
    pub const ANY: Gpu = Gpu { capability: 80, multiprocessors: 1 };

    /// The GPU behind a device; [`Gpu::ANY`] for the CPU.
    pub fn of(device: &Device) -> Self {
        let gpu = |l: &dyn Launcher| Gpu { capability: l.capability(), multiprocessors: l.multiprocessors() };
        device.launcher().map_or(Gpu::ANY, gpu)
    }
}

/// What a launch does, computed from its plan: held against what the emulator counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// 32-byte sectors of global memory that blocks of threads read and write. What one sends to both of a cluster is read once.
    pub loaded: u64,
    pub stored: u64,
    /// Multiply-adds of the tensor cores, those of tiles beyond the edges included.
    pub macs: u64,
}

impl Traffic {
    pub fn bytes(&self) -> u64 {
        32 * (self.loaded + self.stored)
    }
}

/// A kernel that could compute a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Tile, and the class if it is not the portable one.
    pub name: &'static str,
    /// Why it is not taken; `None` for the one that is.
    pub refusal: Option<String>,
}

/// Mirrors `struct GemmParams` in `kernels/tile/gemm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct GemmParams {
    pub a1: u64,
    pub b1: u64,
    pub a2: u64,
    pub b2: u64,
    pub bias: u64,
    pub held: u64,
    pub out: u64,
    pub activated: u64,
    pub m: u64,
    pub n: u64,
    pub k1: u64,
    pub k2: u64,
    /// tn: how much of k one block sums over.
    pub split: u64,
    pub stride_a: u64,
    pub stride_b: u64,
    pub stride_out: u64,
    pub seed: u64,
    pub step: u32,
    pub site: u32,
    pub threshold: u32,
    pub flags: u32,
    pub low_scale: f32,
    pub out_scale: f32,
    /// 0 for none, else 1 + its number.
    pub activation: u32,
    pub unused: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<GemmParams>() == 168 && offset_of!(GemmParams, m) == 64 && offset_of!(GemmParams, seed) == 128);
    assert!(offset_of!(GemmParams, flags) == 148 && offset_of!(GemmParams, activation) == 160);
};

/// Mirrors `struct RideParams` in `kernels/tile/ride.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct RideParams {
    pub gemm: GemmParams,
    pub values: u64,
    pub offsets: u64,
    pub others: u64,
    pub blocks: u64,
    pub b: u32,
    pub scale: f32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(
        size_of::<RideParams>() == 208 && offset_of!(RideParams, values) == 168 && offset_of!(RideParams, b) == 200
    );
};

/// Mirrors `struct SegmentParams` in `kernels/tile/segments.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct SegmentParams {
    pub gemm: GemmParams,
    pub offsets: u64,
    pub scales: u64,
    pub slots: u32,
    pub depth: u32,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<SegmentParams>() == 192 && offset_of!(SegmentParams, offsets) == 168);
    assert!(offset_of!(SegmentParams, slots) == 184);
};

pub(crate) const VECTOR_A1: u32 = 1;
pub(crate) const VECTOR_B1: u32 = 2;
pub(crate) const VECTOR_A2: u32 = 4;
pub(crate) const VECTOR_B2: u32 = 8;
pub(crate) const DROPOUT: u32 = 16;
pub(crate) const PAIRS: u32 = 32;

/// A tile of out that one block computes, and the kernels that do: by layout, then by dtype.
struct Tile {
    name: &'static str,
    edge: usize,
    step: usize,
    kernels: [PerDType; 3],
    /// With a rider: nt and nn.
    riding: [PerDType; 2],
    /// With segments: nt and nn.
    segmented: [PerDType; 2],
}

/// In order of preference. f32 has one tile and stands in the last.
static TILES: [Tile; 2] = [
    Tile {
        name: "128x128x32",
        edge: 128,
        step: 32,
        kernels: [
            per_dtype!("frozen_linear_nt", "128x128x32", "64x64x16"),
            per_dtype!("frozen_linear_nn", "128x128x32", "64x64x16"),
            per_dtype!("frozen_linear_tn", "128x128x32", "64x64x16"),
        ],
        riding: [per_dtype!("ride_nt", "128x128x32", "64x64x16"), per_dtype!("ride_nn", "128x128x32", "64x64x16")],
        segmented: [
            per_dtype!("segments_nt", "128x128x32", "64x64x16"),
            per_dtype!("segments_nn", "128x128x32", "64x64x16"),
        ],
    },
    Tile {
        name: "64x64",
        edge: 64,
        step: 16,
        kernels: [
            per_dtype!("frozen_linear_nt", "64x64x32", "64x64x16"),
            per_dtype!("frozen_linear_nn", "64x64x32", "64x64x16"),
            per_dtype!("frozen_linear_tn", "64x64x32", "64x64x16"),
        ],
        riding: [per_dtype!("ride_nt", "64x64x32", "64x64x16"), per_dtype!("ride_nn", "64x64x32", "64x64x16")],
        segmented: [
            per_dtype!("segments_nt", "64x64x32", "64x64x16"),
            per_dtype!("segments_nn", "64x64x32", "64x64x16"),
        ],
    },
];

/// The kernels' 16-byte path counts the elements of a tile in 32 bits; longer rows take the other one.
const LONGEST_VECTOR_ROW: usize = 1 << 24;

/// Fewer blocks than this leave most of a GPU idle.
const ENOUGH_BLOCKS: usize = 96;
/// tn cuts k until there are about this many blocks, into pieces of at least `PIECE`. Both are constants, so that the order of a
/// sum depends on its shape alone and not on the GPU.
const WANTED_BLOCKS: usize = 256;
const PIECE: usize = 256;

impl Product {
    pub fn new(op: &'static str, layout: Layout, dtype: DType, [m, n, k]: [usize; 3], [a, b, out]: [u64; 3]) -> Self {
        Product {
            op,
            layout,
            dtype,
            m,
            n,
            k,
            a,
            b,
            out,
            bias: 0,
            held: 0,
            activated: None,
            low_rank: None,
            rider: None,
            segmented: None,
            dropout: None,
            scale: 1.0,
            strides: None,
            gpu: Gpu::ANY,
        }
    }

    /// For the GPU behind a device, so that its own kernels may be chosen.
    pub fn on(self, device: &Device) -> Self {
        Product { gpu: Gpu::of(device), ..self }
    }

    /// What the kernels of one tile take, all of k in one piece: for a kernel that does more with the sums.
    pub fn params(&self) -> GemmParams {
        self.params_in_pieces(self.k)
    }

    /// The launch, writing to `out`; tn takes all of k in one piece.
    pub fn spec(&self) -> Result<LaunchSpec> {
        if let Some(tile) = hopper::choose(self) {
            return hopper::spec(self, tile);
        }
        self.spec_in_pieces(self.choose()?, self.k)
    }

    /// The launches. Where a GPU has a better kernel for a product without its segments, these are added to what that wrote.
    pub fn launches(self) -> Result<Plan> {
        let base = Product { segmented: None, dropout: None, ..self };
        if self.segmented.is_none() || hopper::choose(&base).is_none() {
            return Ok(Plan::from_iter([self.spec()?]));
        }
        let update = Product { a: 0, b: 0, k: 0, bias: 0, held: self.out, ..self };
        Ok(Plan::from_iter([base.spec()?, update.spec()?]))
    }

    /// Writes or adds a result that has the operands' dtype.
    pub fn write_into(self, device: &Device, target: &Target) -> Result<()> {
        if self.m == 0 {
            return Ok(());
        }
        into_dtype(target, self.dtype, |target| device.run(&self.on(device).into_target(target)?.launches()?))
    }

    /// The launch that writes to `out`, of tn in pieces as [`Product::sum_into`] cuts them, and how many there are.
    fn sum_spec(&self) -> Result<(LaunchSpec, usize)> {
        if self.layout != Layout::Tn {
            return Ok((self.spec()?, 1));
        }
        let tile = self.choose()?;
        let split = self.split(tile);
        Ok((self.spec_in_pieces(tile, split)?, self.k.div_ceil(split)))
    }

    /// Adds the product, a gradient summed over tokens (tn), to `target`, or writes it there: through an f32 workspace of pieces that
    /// are added in order, or straight when one piece is all.
    pub fn sum_into(self, device: &Device, target: &Target) -> Result<()> {
        let split = self.split(self.choose()?);
        self.sum_in_pieces(split, device, target)
    }

    /// As [`Product::sum_into`], in pieces of `split` tokens, a multiple of 32: short ones round less, for sums that much hangs on.
    pub fn sum_in_pieces(mut self, split: usize, device: &Device, target: &Target) -> Result<()> {
        let out = &target.tensor;
        if self.k == 0 {
            return if target.accumulate { Ok(()) } else { out.zero() };
        }
        let tile = self.choose()?;
        let pieces = self.k.div_ceil(split);
        if pieces == 1 && out.dtype() == DType::F32 {
            self = self.into_target(target)?;
            return device.run(&Plan::from_iter([self.spec_in_pieces(tile, split)?]));
        }
        let workspace = Tensor::empty(device, &[pieces, self.m, self.n], DType::F32)?;
        (self.out, self.held) = (workspace.address()?, 0);
        device.run(&Plan::from_iter([self.spec_in_pieces(tile, split)?]))?;
        column_sum(&workspace, 1, self.m * self.n, 1.0, target)
    }

    /// Writes to `target`, or adds to what it holds.
    fn into_target(self, target: &Target) -> Result<Self> {
        let out = target.tensor.address()?;
        Ok(Product { out, held: if target.accumulate { out } else { 0 }, ..self })
    }

    /// Whether its kernel applies a function to the result.
    pub fn activates(&self) -> bool {
        self.layout == Layout::Nt && (self.rider.is_none() || hopper::choose(self).is_none())
    }

    /// The kernels that there are, in order of preference, up to the one that is taken.
    pub fn candidates(&self) -> Vec<Candidate> {
        let hopper = hopper::TILES.iter().map(|tile| (tile.name, hopper::refusal(self, tile, |why| why.to_string())));
        let tiles = TILES.iter().map(|tile| (tile.name, self.reject(tile).map(String::from)));
        let mut open = true;
        let until_taken =
            hopper.chain(tiles).take_while(move |(_, refusal)| std::mem::replace(&mut open, refusal.is_some()));
        until_taken.map(|(name, refusal)| Candidate { name, refusal }).collect()
    }

    /// The portable tile.
    fn choose(&self) -> Result<&'static Tile> {
        let tile = TILES.iter().find(|tile| self.reject(tile).is_none()).unwrap_or(&TILES[TILES.len() - 1]);
        let (rows, cols) = (self.m.div_ceil(tile.edge), self.n.div_ceil(tile.edge));
        // The kernel counts tiles, eight rows of tiles at once, and steps of k in 32 bits.
        let fits = rows.checked_mul(cols).is_some_and(|tiles| tiles <= i32::MAX as usize)
            && cols <= 1 << 28
            && self.k.div_ceil(tile.step) <= 1 << 30;
        if fits {
            return Ok(tile);
        }
        Err(Error::SizeOverflow { op: self.op, dims: vec![self.m, self.n, self.k] })
    }

    fn reject(&self, tile: &Tile) -> Option<&'static str> {
        if tile.edge == 64 {
            return None;
        }
        if self.dtype == DType::F32 {
            return Some("f32 has one tile");
        }
        if self.m.min(self.n) <= 64 {
            return Some("half of each tile would be empty");
        }
        let pieces = if self.layout == Layout::Tn { self.k.div_ceil(PIECE) } else { 1 };
        let blocks = self.m.div_ceil(tile.edge).saturating_mul(self.n.div_ceil(tile.edge)).saturating_mul(pieces);
        (blocks < ENOUGH_BLOCKS).then_some("too few blocks to fill a GPU")
    }

    /// How much of k one block of a tn product takes.
    fn split(&self, tile: &Tile) -> usize {
        let tiles = self.m.div_ceil(tile.edge).saturating_mul(self.n.div_ceil(tile.edge)).max(1);
        let pieces = WANTED_BLOCKS.div_ceil(tiles).min(self.k.div_ceil(PIECE)).max(1);
        self.k.div_ceil(pieces).next_multiple_of(32)
    }

    fn spec_in_pieces(&self, tile: &Tile, split: usize) -> Result<LaunchSpec> {
        let kernel = by_dtype(self.op, self.dtype, &tile.kernels[self.layout as usize])?;
        let tiles = self.m.div_ceil(tile.edge) as u64 * self.n.div_ceil(tile.edge) as u64;
        let pieces = if self.layout == Layout::Tn { self.k.div_ceil(split.max(1)) as u64 } else { 1 };
        // A grid beyond the limit of launches is refused by the launcher.
        let blocks = u32::try_from(tiles * pieces).unwrap_or(u32::MAX);
        let gemm = self.params_in_pieces(split);
        if let Some(s) = self.segmented {
            let kernel = by_dtype(self.op, self.dtype, &tile.segmented[self.layout as usize])?;
            let (slots, depth) = (s.slots as u32, s.depth as u32);
            return Ok(launch(
                kernel,
                blocks,
                &SegmentParams { gemm, offsets: s.offsets, scales: s.scales, slots, depth },
            ));
        }
        let Some(rider) = self.rider else { return Ok(launch(kernel, blocks, &gemm)) };
        let Rider { values, offsets, others, blocks: numbers, b, scale, .. } = rider;
        let riding = RideParams { gemm, values, offsets, others, blocks: numbers, b: b as u32, scale: scale as f32 };
        Ok(launch(by_dtype(self.op, self.dtype, &tile.riding[self.layout as usize])?, blocks, &riding))
    }

    fn params_in_pieces(&self, split: usize) -> GemmParams {
        // Extents of an operand's rows in memory.
        let (row_a, row_b) = match self.layout {
            Layout::Nt => (self.k, self.k),
            Layout::Nn => (self.k, self.n),
            Layout::Tn => (self.m, self.n),
        };
        let [stride_a, stride_b, stride_out] = self.strides.unwrap_or([row_a, row_b, self.n]);
        let update = self.segmented.map(|s| LowRankFactors { a: s.a, b: s.b, rank: s.depth, scale: 1.0 });
        let low = self.low_rank.or(update).unwrap_or(LowRankFactors { a: 0, b: 0, rank: 0, scale: 0.0 });
        let low_row_b = if self.layout == Layout::Nt { low.rank } else { self.n };
        let vector = |address: u64, row: usize, flag: u32| {
            let whole = address != 0
                && row <= LONGEST_VECTOR_ROW
                && aligned(&[address])
                && row.is_multiple_of(pack(self.dtype));
            if whole { flag } else { 0 }
        };
        let out_size = if self.layout == Layout::Tn { 4 } else { self.dtype.size() as u64 };
        let activated = self.activated.map_or(0, |a| a.to);
        let pairs = [self.n, stride_out].iter().all(|n| n.is_multiple_of(2))
            && [self.out, activated].iter().all(|a| a.is_multiple_of(2 * out_size));
        // A row must be whole units long, and the next one start at one.
        let vector_row = |address: u64, row: usize, stride: usize, flag: u32| {
            if row.is_multiple_of(pack(self.dtype)) { vector(address, stride, flag) } else { 0 }
        };
        let flags = vector_row(self.a, row_a, stride_a, VECTOR_A2)
            | vector_row(self.b, row_b, stride_b, VECTOR_B2)
            | vector(low.a, low.rank, VECTOR_A1)
            | vector(low.b, low_row_b, VECTOR_B1)
            | if self.dropout.is_some() { DROPOUT } else { 0 }
            | if pairs { PAIRS } else { 0 };
        // The kernel's masks only drop; what is kept is scaled together with the sum it is part of.
        let keep = self.dropout.map_or(1.0, |d| f64::from(d.keep_scale));
        let of_update = self.layout == Layout::Nn || self.segmented.is_some();
        let (low_keep, out_keep) = if of_update { (keep, 1.0) } else { (1.0, keep) };
        let (stream, threshold) = self.dropout.map_or((None, 0), |d| (Some(d.stream), d.threshold));
        GemmParams {
            a1: low.a,
            b1: low.b,
            a2: self.a,
            b2: self.b,
            bias: self.bias,
            held: self.held,
            out: self.out,
            activated,
            m: self.m as u64,
            n: self.n as u64,
            // Segments have steps of their own.
            k1: if self.segmented.is_some() { 0 } else { low.rank as u64 },
            k2: self.k as u64,
            split: split as u64,
            stride_a: stride_a as u64,
            stride_b: stride_b as u64,
            stride_out: stride_out as u64,
            seed: stream.map_or(0, |s| s.seed),
            step: stream.map_or(0, |s| s.step),
            site: stream.map_or(0, |s| s.site),
            threshold,
            flags,
            // The rider's scale multiplies both sums.
            low_scale: (low.scale * low_keep / self.rider.map_or(1.0, |r| r.scale)) as f32,
            out_scale: (self.scale * out_keep) as f32,
            activation: self.activated.map_or(0, |a| a.activation.code()),
            unused: 0,
        }
    }
}
