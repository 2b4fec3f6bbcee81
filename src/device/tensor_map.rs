//! What the copy engine of a Hopper GPU is told of a matrix: plain data in a plan, encoded by the launcher that carries it out.

use crate::dtype::DType;

/// How a box lies in shared memory: lines of so many bytes, whose 16-byte chunks are permuted so that columns touch every bank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    B32,
    B64,
    B128,
}

impl Swizzle {
    /// For lines of 16, 32 or, if of any other number, 64 elements of 16 bits.
    pub(crate) const fn of_line(elements: usize) -> Self {
        match elements {
            16 => Swizzle::B32,
            32 => Swizzle::B64,
            _ => Swizzle::B128,
        }
    }

    /// Bytes of a line.
    pub const fn bytes(self) -> u64 {
        match self {
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }
}

/// A row-major matrix in global memory, copied by boxes of `tile_rows` rows and one line of shared memory.
///
/// What of a box lies outside the matrix is read as zero and not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub address: u64,
    pub dtype: DType,
    pub rows: u64,
    pub cols: u64,
    pub tile_rows: u32,
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// Bytes of a map as a kernel reads it.
    pub const BYTES: usize = 128;

    /// Bytes from one row to the next.
    pub fn stride(&self) -> u64 {
        self.cols.saturating_mul(self.dtype.size() as u64)
    }

    /// Elements of a line.
    pub fn tile_cols(&self) -> u32 {
        self.swizzle.bytes() as u32 / self.dtype.size() as u32
    }

    /// Why no launcher can encode this map: the limits of the driver.
    pub fn refusal(&self) -> Option<String> {
        if !matches!(self.dtype, DType::F16 | DType::BF16 | DType::F32) {
            return Some(format!("elements of {}", self.dtype));
        }
        if self.address == 0 || !self.address.is_multiple_of(16) {
            return Some(format!("address {:#x}, which is no multiple of 16", self.address));
        }
        if !self.stride().is_multiple_of(16) || self.stride() >= 1 << 40 {
            return Some(format!("rows of {} bytes; multiples of 16 below 2^40 are possible", self.stride()));
        }
        // Coordinates are signed 32-bit numbers.
        let most = i32::MAX as u64;
        if [self.rows, self.cols].iter().any(|&d| d == 0 || d > most) {
            return Some(format!("a matrix of [{}, {}]; from 1 to {most} is possible", self.rows, self.cols));
        }
        (self.tile_rows == 0 || self.tile_rows > 256).then(|| format!("boxes of {} rows", self.tile_rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_driver_would_refuse_is_refused_before() {
        let good =
            TensorMap { address: 4096, dtype: DType::BF16, rows: 3, cols: 72, tile_rows: 128, swizzle: Swizzle::B128 };
        assert_eq!((good.refusal(), good.stride(), good.tile_cols()), (None, 144, 64));
        for bad in [
            TensorMap { address: 4104, ..good },
            TensorMap { address: 0, ..good },
            TensorMap { cols: 9, ..good },
            TensorMap { rows: 0, ..good },
            TensorMap { rows: 1 << 31, ..good },
            TensorMap { tile_rows: 257, ..good },
            TensorMap { dtype: DType::I64, ..good },
        ] {
            assert!(bad.refusal().is_some(), "{bad:?}");
        }
    }
}
