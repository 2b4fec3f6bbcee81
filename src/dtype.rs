//! Element types, known at run time.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F32,
    F16,
    BF16,
    /// CPU only: gradient checks.
    F64,
    U8,
    I32,
    I64,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::U8 => 1,
            DType::F16 | DType::BF16 => 2,
            DType::F32 | DType::I32 => 4,
            DType::F64 | DType::I64 => 8,
        }
    }

    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
    }

    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F64 => "f64",
            DType::U8 => "u8",
            DType::I32 => "i32",
            DType::I64 => "i64",
        }
    }

    /// Rounding unit of a float format: half the distance from 1 to the next number; 0 for integers.
    pub const fn unit_roundoff(self) -> f64 {
        match self {
            DType::F16 => 1.0 / 2048.0,
            DType::BF16 => 1.0 / 256.0,
            DType::F32 => 1.0 / 16_777_216.0,
            DType::F64 => 1.0 / 9_007_199_254_740_992.0,
            DType::U8 | DType::I32 | DType::I64 => 0.0,
        }
    }

    /// The type in which gradients of this type's parameters, losses and statistics are kept.
    pub const fn accumulator(self) -> DType {
        match self {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [DType::F32, DType::F16, DType::BF16, DType::F64, DType::U8, DType::I32, DType::I64]
            .into_iter()
            .find(|d| d.name() == text)
            .ok_or_else(|| Error::value("dtype", "name", "f32, f16, bf16, f64, u8, i32 or i64", text))
    }
}

/// A Rust type that a tensor can hold.
pub trait Element: bytemuck::Pod + Send + Sync + fmt::Debug {
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),* $(,)?) => {
        $(impl Element for $rust { const DTYPE: DType = DType::$dtype; })*
    };
}

elements! { f32 => F32, f16 => F16, bf16 => BF16, f64 => F64, u8 => U8, i32 => I32, i64 => I64 }
