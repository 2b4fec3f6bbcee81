//! Host memory: cache-line-aligned blocks, taken from and given back to a pool, so that a training step allocates nothing
//! after its first run and page faults stay out of the timings.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::error::{Error, Result};

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

// SAFETY: 1. any bit pattern is a valid array of bytes, all zeros included; 2. size equals alignment, so there is no padding;
// 3. it holds no reference and no interior mutability.
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above, and it is `Copy` and `'static`.
unsafe impl bytemuck::Pod for Line {}

/// Blocks up to this size are kept for reuse; larger ones go back to the system at once.
const POOLED_LINES: usize = (64 << 20) / 64;

#[derive(Default)]
pub(crate) struct HostPool {
    free: Mutex<HashMap<usize, Vec<Vec<Line>>>>,
}

impl HostPool {
    /// A block of at least `bytes` bytes; contents are whatever the last user left (NaN patterns in debug builds).
    pub fn take(&self, bytes: usize) -> Result<Vec<Line>> {
        let lines = size_class(bytes.div_ceil(64));
        if let Some(mut block) = self.lock().get_mut(&lines).and_then(Vec::pop) {
            if cfg!(debug_assertions) {
                bytemuck::cast_slice_mut::<Line, u8>(&mut block).fill(0xFF);
            }
            return Ok(block);
        }
        bytemuck::allocation::try_zeroed_vec(lines).map_err(|()| Error::OutOfMemory {
            device: "cpu".into(),
            requested: bytes,
            free: None,
        })
    }

    pub fn give_back(&self, block: Vec<Line>) {
        if !block.is_empty() && block.len() <= POOLED_LINES {
            self.lock().entry(block.len()).or_default().push(block);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Vec<Vec<Line>>>> {
        self.free.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Sizes are rounded up to an eighth of their power of two, so that blocks of nearly equal size serve each other.
fn size_class(lines: usize) -> usize {
    if lines <= 8 {
        return lines;
    }
    let step = (lines.next_power_of_two() / 16).max(1);
    lines.next_multiple_of(step)
}
