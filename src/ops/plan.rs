//! What every `gpu.rs` shares: the kernel of a dtype, how many blocks, whether 16-byte accesses are allowed.

use crate::device::{LaunchSpec, Params, TensorMaps};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::KernelId;

/// The kernels of one pass for f32, f16 and bf16.
pub(crate) type PerDType = [KernelId; 3];

/// The kernels `{name}_{f32, f16, bf16}_{tile}_sm80`; those of f32 may have a tile of their own.
macro_rules! per_dtype {
    ($name:expr, $tile:expr) => {
        $crate::ops::plan::per_dtype!($name, $tile, $tile)
    };
    ($name:expr, $tile:expr, $tile_f32:expr) => {
        [
            $crate::kernels::KernelId::of(concat!($name, "_f32_", $tile_f32, "_sm80")),
            $crate::kernels::KernelId::of(concat!($name, "_f16_", $tile, "_sm80")),
            $crate::kernels::KernelId::of(concat!($name, "_bf16_", $tile, "_sm80")),
        ]
    };
}
pub(crate) use per_dtype;

pub(crate) fn by_dtype(op: &'static str, dtype: DType, kernels: &PerDType) -> Result<KernelId> {
    match dtype {
        DType::F32 => Ok(kernels[0]),
        DType::F16 => Ok(kernels[1]),
        DType::BF16 => Ok(kernels[2]),
        got => Err(Error::DType { op, argument: "x", expected: "f32, f16 or bf16 on a GPU".into(), got }),
    }
}

/// Blocks for `items` at `each` a block. Kernels loop by the grid's size, so that a count beyond the limit of a grid is right too.
pub(crate) fn blocks(items: u64, each: u64) -> u32 {
    items.div_ceil(each.max(1)).min(i32::MAX as u64) as u32
}

/// A one-dimensional launch with the kernel's own number of threads.
pub(crate) fn launch<T: bytemuck::NoUninit>(kernel: KernelId, blocks: u32, params: &T) -> LaunchSpec {
    LaunchSpec {
        kernel,
        grid: [blocks, 1, 1],
        block: [kernel.row().threads, 1, 1],
        cluster: [1, 1, 1],
        shared_bytes: kernel.row().shared_bytes,
        maps: TensorMaps::new(),
        params: Params::of(params),
    }
}

/// Elements in 16 bytes.
pub(crate) fn pack(dtype: DType) -> usize {
    16 / dtype.size()
}

/// Whether all addresses are multiples of 16. Absent operands have address 0.
pub(crate) fn aligned(addresses: &[u64]) -> bool {
    addresses.iter().all(|a| a % 16 == 0)
}
