//! Shared memory of a block: bytes, what was written, what an asynchronous copy still owes, and the race shadow.

use std::collections::HashMap;

use crate::check::clocks::Brought;
use crate::check::race::SharedShadow;
use crate::exec::mbarrier::Mbarrier;

/// The byte was written.
pub const INIT: u8 = 1;
/// An asynchronous copy to the byte was issued and not waited for.
pub const PENDING: u8 = 2;
/// The byte was last written by the async proxy.
pub const ASYNC: u8 = 4;
/// What is on its way is a reduction: another may follow it.
pub const REDUCING: u8 = 8;

#[derive(Debug, Default)]
pub struct Shared {
    pub data: Vec<u8>,
    pub state: Vec<u8>,
    pub shadow: SharedShadow,
    pub mbarriers: HashMap<u32, Mbarrier>,
    /// How many asynchronous operations still read each piece of 16 bytes.
    pub readers: Vec<u16>,
    /// Orders that flags in this memory carry.
    pub flags: HashMap<u32, Box<Brought>>,
}

impl Shared {
    pub fn reset(&mut self, bytes: usize, shift: u32, warps: usize, groups: usize) {
        self.data.clear();
        self.data.resize(bytes, 0xFF);
        self.state.clear();
        self.state.resize(bytes, 0);
        self.shadow.reset(bytes, shift, warps, groups);
        self.mbarriers.clear();
        self.readers.clear();
        self.readers.resize(bytes / 16 + 1, 0);
        self.flags.clear();
    }

    #[inline]
    pub fn being_read(&self, offset: u32, bytes: u32) -> bool {
        self.readers[(offset / 16) as usize..=((offset + bytes - 1) / 16) as usize].iter().any(|&r| r != 0)
    }

    #[inline]
    pub fn read(&self, offset: u32, bytes: u32) -> u64 {
        let o = offset as usize;
        match bytes {
            4 => u64::from(u32::from_le_bytes(self.data[o..o + 4].try_into().unwrap_or_default())),
            8 => u64::from_le_bytes(self.data[o..o + 8].try_into().unwrap_or_default()),
            n => {
                let mut v = 0;
                for i in (0..n as usize).rev() {
                    v = v << 8 | u64::from(self.data[o + i]);
                }
                v
            }
        }
    }

    #[inline]
    pub fn write(&mut self, offset: u32, bytes: u32, value: u64) {
        let o = offset as usize;
        match bytes {
            4 => self.data[o..o + 4].copy_from_slice(&(value as u32).to_le_bytes()),
            8 => self.data[o..o + 8].copy_from_slice(&value.to_le_bytes()),
            n => {
                for i in 0..n as usize {
                    self.data[o + i] = (value >> (8 * i)) as u8;
                }
            }
        }
    }

    /// The conjunction and the disjunction of the states of some bytes.
    #[inline]
    pub fn states(&self, offset: u32, bytes: u32) -> (u8, u8) {
        let s = &self.state[offset as usize..(offset + bytes) as usize];
        if let Ok(four) = <[u8; 4]>::try_from(s)
            && u32::from_le_bytes(four) == 0x0101_0101
        {
            return (INIT, INIT);
        }
        s.iter().fold((0xFF, 0), |(a, o), &b| (a & b, o | b))
    }

    #[inline]
    pub fn set_state(&mut self, offset: u32, bytes: u32, state: u8) {
        self.state[offset as usize..(offset + bytes) as usize].fill(state);
    }
}
