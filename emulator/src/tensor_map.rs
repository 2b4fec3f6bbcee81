//! Tensor maps: what a driver encodes for tiled tensor copies, with the same arguments and the same refusals.

use crate::decode::tensormap::Field;

/// Element type of a tensor map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F64,
    Bf16,
}

impl TensorType {
    const ALL: [TensorType; 10] = [
        TensorType::U8,
        TensorType::U16,
        TensorType::U32,
        TensorType::S32,
        TensorType::U64,
        TensorType::S64,
        TensorType::F16,
        TensorType::F32,
        TensorType::F64,
        TensorType::Bf16,
    ];

    pub fn bytes(self) -> u32 {
        match self {
            TensorType::U8 => 1,
            TensorType::U16 | TensorType::F16 | TensorType::Bf16 => 2,
            TensorType::U32 | TensorType::S32 | TensorType::F32 => 4,
            TensorType::U64 | TensorType::S64 | TensorType::F64 => 8,
        }
    }
}

/// How a tile lies in shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

impl Swizzle {
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Moves the 16-byte piece that holds an address of shared memory to its swizzled place.
    #[inline(always)]
    pub(crate) fn apply(self, address: u32) -> u32 {
        let mask = match self {
            Swizzle::None => return address,
            Swizzle::B32 => 1,
            Swizzle::B64 => 3,
            Swizzle::B128 => 7,
        };
        address ^ ((address >> 7 & mask) << 4)
    }
}

/// Why a tensor map cannot be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor map: {0}")]
pub struct TensorMapError(pub String);

/// A tiled view of a tensor in global memory. The innermost dimension comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    pub(crate) ty: TensorType,
    pub(crate) address: u64,
    pub(crate) dims: Vec<u64>,
    /// Bytes from one index to the next, from the second dimension on.
    pub(crate) strides: Vec<u64>,
    pub(crate) tile: Vec<u32>,
    pub(crate) steps: Vec<u32>,
    pub(crate) swizzle: Swizzle,
    pub(crate) nan_fill: bool,
}

const MAGIC: u32 = 0x5458_5450;

impl TensorMap {
    /// The arguments of the driver's tiled encode: type, address, sizes, strides in bytes (one fewer than sizes), box, element
    /// strides, swizzle, and whether elements outside the tensor read as NaN instead of zero.
    pub fn tiled(
        ty: TensorType,
        address: u64,
        dims: &[u64],
        strides: &[u64],
        tile: &[u32],
        element_strides: &[u32],
        swizzle: Swizzle,
        nan_fill: bool,
    ) -> Result<TensorMap, TensorMapError> {
        let no = |text: String| Err(TensorMapError(text));
        let rank = dims.len();
        if !(1..=5).contains(&rank) || strides.len() + 1 != rank || tile.len() != rank || element_strides.len() != rank
        {
            return no(format!("{rank} dimensions, {} strides, a box of {} sizes", strides.len(), tile.len()));
        }
        if address % 16 != 0 {
            return no(format!("address {address:#x} is not a multiple of 16"));
        }
        if let Some(d) = dims.iter().find(|d| **d == 0 || **d > 1 << 32) {
            return no(format!("size {d} is outside 1 to 2^32"));
        }
        if let Some(s) = strides.iter().find(|s| **s % 16 != 0 || **s >= 1 << 40) {
            return no(format!("stride {s} is not a multiple of 16 below 2^40"));
        }
        if let Some(b) = tile.iter().find(|b| !(1..=256).contains(*b)) {
            return no(format!("box size {b} is outside 1 to 256"));
        }
        if let Some(e) = element_strides.iter().find(|e| !(1..=8).contains(*e)) {
            return no(format!("element stride {e} is outside 1 to 8"));
        }
        let inner = tile[0] * ty.bytes();
        if inner % 16 != 0 {
            return no(format!("the inner row of the box has {inner} bytes, not a multiple of 16"));
        }
        if swizzle != Swizzle::None && inner > swizzle.bytes() {
            return no(format!("the inner row of the box has {inner} bytes, the swizzle spans {}", swizzle.bytes()));
        }
        if nan_fill && !matches!(ty, TensorType::F16 | TensorType::F32 | TensorType::F64 | TensorType::Bf16) {
            return no("only float elements can be filled with NaN".into());
        }
        let total = tile.iter().fold(u64::from(ty.bytes()), |n, b| n.saturating_mul(u64::from(*b)));
        if total > 256 << 10 {
            return no(format!("a box of {total} bytes does not fit shared memory"));
        }
        Ok(TensorMap {
            ty,
            address,
            dims: dims.to_vec(),
            strides: strides.to_vec(),
            tile: tile.to_vec(),
            // Without interleave the innermost dimension has no stride of its own: the driver ignores it.
            steps: std::iter::once(1).chain(element_strides[1..].iter().copied()).collect(),
            swizzle,
            nan_fill,
        })
    }

    /// The 128 bytes that a kernel takes as its `CUtensorMap` parameter. Only this emulator can read them.
    pub fn to_bytes(&self) -> [u8; 128] {
        let mut out = [0; 128];
        out[..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4] = TensorType::ALL.iter().position(|t| *t == self.ty).unwrap_or(0) as u8;
        out[5] = self.dims.len() as u8;
        out[6] = self.swizzle as u8;
        out[7] = u8::from(self.nan_fill);
        out[8..16].copy_from_slice(&self.address.to_le_bytes());
        for (i, d) in self.dims.iter().enumerate() {
            out[16 + 8 * i..24 + 8 * i].copy_from_slice(&d.to_le_bytes());
        }
        for (i, s) in self.strides.iter().enumerate() {
            out[56 + 8 * i..64 + 8 * i].copy_from_slice(&s.to_le_bytes());
        }
        for (i, b) in self.tile.iter().enumerate() {
            out[88 + 2 * i..90 + 2 * i].copy_from_slice(&(*b as u16).to_le_bytes());
        }
        for (i, e) in self.steps.iter().enumerate() {
            out[98 + i] = *e as u8;
        }
        out
    }

    /// Changes one field of a map's bytes, as `tensormap.replace` numbers the values. False where that cannot be.
    pub(crate) fn patch(b: &mut [u8; 128], field: Field, ord: usize, value: u64) -> bool {
        let long = |b: &mut [u8; 128], at: usize| b[at..at + 8].copy_from_slice(&value.to_le_bytes());
        match field {
            Field::Address => long(b, 8),
            Field::Dim => long(b, 16 + 8 * ord),
            Field::Stride if ord < 4 => long(b, 56 + 8 * ord),
            Field::Rank if value < 5 => b[5] = value as u8 + 1,
            Field::Box if value <= 256 => b[88 + 2 * ord..90 + 2 * ord].copy_from_slice(&(value as u16).to_le_bytes()),
            Field::Step if value <= 8 => b[98 + ord] = value as u8,
            // Plain types; those that flush or cut have no name here.
            Field::Element if value < 8 => b[4] = value as u8,
            Field::Element if value == 9 || value == 10 => b[4] = value as u8 - 1,
            Field::Swizzle if value < 4 => b[6] = value as u8,
            Field::Fill if value < 2 => b[7] = value as u8,
            Field::Interleave => return value == 0,
            _ => return false,
        }
        b[..4] == MAGIC.to_le_bytes()
    }

    pub(crate) fn from_bytes(b: &[u8; 128]) -> Option<TensorMap> {
        let word = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap_or_default());
        if b[..4] != MAGIC.to_le_bytes() {
            return None;
        }
        let rank = usize::from(b[5]);
        if !(1..=5).contains(&rank) {
            return None;
        }
        let ty = *TensorType::ALL.get(usize::from(b[4]))?;
        let dims: Vec<u64> = (0..rank).map(|i| word(16 + 8 * i)).collect();
        let strides: Vec<u64> = (0..rank - 1).map(|i| word(56 + 8 * i)).collect();
        let tile: Vec<u32> = (0..rank).map(|i| u32::from(b[88 + 2 * i]) | u32::from(b[89 + 2 * i]) << 8).collect();
        let steps: Vec<u32> = (0..rank).map(|i| u32::from(b[98 + i])).collect();
        let swizzle = *[Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128].get(usize::from(b[6]))?;
        // Bytes from anywhere: what could not have been encoded is no tensor map.
        TensorMap::tiled(ty, word(8), &dims, &strides, &tile, &steps, swizzle, b[7] != 0).ok()
    }

    /// Elements of the box along each dimension, element strides counted.
    pub(crate) fn counts(&self) -> Vec<u32> {
        self.tile.iter().zip(&self.steps).map(|(b, s)| b.div_ceil(*s)).collect()
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.counts().iter().product::<u32>() * self.ty.bytes()
    }
}
