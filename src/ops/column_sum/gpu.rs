//! The launch plans: one launch, or two with partial sums between them when there are many rows.

use super::{Desc, OP};
use crate::autograd::Target;
use crate::device::{LaunchSpec, Plan};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;
use crate::ops::plan::{aligned, blocks, launch, pack};
use crate::tensor::Tensor;

/// Mirrors `struct Params` in `kernels/column_sum.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Params {
    /// `[batch, rows, cols]`
    pub x: u64,
    /// `[batch, pieces, cols]`
    pub out: u64,
    pub batch: u64,
    pub rows: u64,
    pub cols: u64,
    /// Rows that one block adds.
    pub piece: u64,
    pub pieces: u64,
    pub scale: f32,
    pub accumulate: u32,
    /// 16-byte loads are allowed.
    pub vector: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Params>() == 72 && std::mem::offset_of!(Params, scale) == 56);

const F32: KernelId = KernelId::of("column_sum_fwd_f32_t256_sm80");
const F16: KernelId = KernelId::of("column_sum_fwd_f16_t256_sm80");
const BF16: KernelId = KernelId::of("column_sum_fwd_bf16_t256_sm80");
const F16_TO_F32: KernelId = KernelId::of("column_sum_widen_f16_t256_sm80");
const BF16_TO_F32: KernelId = KernelId::of("column_sum_widen_bf16_t256_sm80");
const F32_TO_F16: KernelId = KernelId::of("column_sum_narrow_f16_t256_sm80");
const F32_TO_BF16: KernelId = KernelId::of("column_sum_narrow_bf16_t256_sm80");

/// More rows than this are split into pieces of `PIECE`, so that few columns still fill the machine.
const WHOLE: usize = 512;
const PIECE: usize = 128;

fn kernel(from: DType, to: DType) -> Result<KernelId> {
    match (from, to) {
        (DType::F32, DType::F32) => Ok(F32),
        (DType::F16, DType::F16) => Ok(F16),
        (DType::BF16, DType::BF16) => Ok(BF16),
        (DType::F16, DType::F32) => Ok(F16_TO_F32),
        (DType::BF16, DType::F32) => Ok(BF16_TO_F32),
        (DType::F32, DType::F16) => Ok(F32_TO_F16),
        (DType::F32, DType::BF16) => Ok(F32_TO_BF16),
        (got, to) => {
            let expected = format!("a dtype with a kernel that sums into {to}");
            Err(Error::DType { op: OP, argument: "x", expected, got })
        }
    }
}

pub fn run(desc: &Desc, x: &Tensor, target: &Target) -> Result<()> {
    if desc.rows <= WHOLE {
        let spec = stage(desc, x, &target.tensor, desc.rows, target.accumulate)?;
        return x.device().run(&Plan::from_iter([spec]));
    }
    let pieces = desc.rows.div_ceil(PIECE);
    let partial = Tensor::empty(x.device(), &[desc.batch, pieces, desc.cols], DType::F32)?;
    let second = Desc { rows: pieces, dtype: DType::F32, ..*desc };
    let first = Desc { scale: 1.0, ..*desc };
    x.device().run(&Plan::from_iter([
        stage(&first, x, &partial, PIECE, false)?,
        stage(&second, &partial, &target.tensor, pieces, target.accumulate)?,
    ]))
}

/// Adds up pieces of `piece` rows.
fn stage(desc: &Desc, x: &Tensor, out: &Tensor, piece: usize, accumulate: bool) -> Result<LaunchSpec> {
    let kernel = kernel(desc.dtype, out.dtype())?;
    let (from, to) = (x.address()?, out.address()?);
    let vector = aligned(&[from]) && desc.cols.is_multiple_of(pack(desc.dtype));
    let pieces = desc.rows.div_ceil(piece.max(1)).max(1);
    let params = Params {
        x: from,
        out: to,
        batch: desc.batch as u64,
        rows: desc.rows as u64,
        cols: desc.cols as u64,
        piece: piece as u64,
        pieces: pieces as u64,
        scale: desc.scale as f32,
        accumulate: u32::from(accumulate),
        vector: u32::from(vector),
        reserved: 0,
    };
    let tile = 32 * if vector { pack(desc.dtype) } else { 1 };
    let tiles = (desc.cols.div_ceil(tile) * pieces) as u64 * desc.batch as u64;
    Ok(launch(kernel, blocks(tiles, 1), &params))
}
