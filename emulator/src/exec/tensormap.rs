//! Tensor maps that a kernel changes. A changed map in global memory may be used only after a fence that acquires it.

use super::block::{Block, Step, stop};
use super::warp::{Warp, lanes};
use crate::check::fault::FaultKind;
use crate::decode::tensormap::Field;
use crate::parse::ast::Space;
use crate::tensor_map::TensorMap;

fn misuse<T>(text: String, lane: usize) -> Step<T> {
    stop(FaultKind::Misuse(text), Some(lane))
}

impl Block<'_> {
    /// Changes one field of the map that each lane names; `values`: the new values of the lanes.
    pub fn map_replace(
        &mut self,
        warp: &mut Warp,
        addresses: &[u64; 32],
        space: Space,
        (field, ord): (Field, u32),
        values: &[u64; 32],
        active: u32,
        pc: u32,
    ) -> Step<()> {
        let mut a = *addresses;
        for (space, mask) in self.split(space, &mut a, active) {
            for l in lanes(mask) {
                let mut bytes = self.map_bytes(warp, space, a[l], l, pc)?;
                if !TensorMap::patch(&mut bytes, field, ord as usize, values[l]) {
                    return misuse(
                        format!("there is no tensor map at {:#x}, or {} is no {field:?}", a[l], values[l]),
                        l,
                    );
                }
                self.map_write(warp, space, a[l], &bytes, l, pc)?;
            }
        }
        Ok(())
    }

    /// Copies a map from shared to global memory.
    pub fn map_copy(&mut self, warp: &mut Warp, dst: u64, src: u64, pc: u32) -> Step<()> {
        let bytes = self.map_bytes(warp, Space::Shared, src, 0, pc)?;
        self.map_write(warp, Space::Global, dst, &bytes, 0, pc)
    }

    fn map_bytes(&mut self, warp: &mut Warp, space: Space, at: u64, lane: usize, pc: u32) -> Step<[u8; 128]> {
        let mut bytes = [0; 128];
        for (i, piece) in bytes.chunks_exact_mut(8).enumerate() {
            let v = self.fetch(warp, space, at + 8 * i as u64, 8, lane, pc)?;
            piece.copy_from_slice(&v.to_le_bytes());
        }
        Ok(bytes)
    }

    fn map_write(
        &mut self,
        warp: &mut Warp,
        space: Space,
        at: u64,
        bytes: &[u8; 128],
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        if at % 128 != 0 {
            return misuse(format!("the tensor map at {at:#x} is not aligned to 128 bytes"), lane);
        }
        for (i, piece) in bytes.chunks_exact(8).enumerate() {
            let v = u64::from_le_bytes(piece.try_into().unwrap_or_default());
            self.deposit(warp, space, at + 8 * i as u64, 8, v, lane, pc)?;
        }
        if space == Space::Global {
            self.changed_maps.insert(at);
        }
        Ok(())
    }
}
