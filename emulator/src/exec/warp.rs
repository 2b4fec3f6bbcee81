//! The state of a warp.
//!
//! Lanes that stand at the same instruction of the same call form a group. A divergent branch splits a group; groups that meet
//! again merge. The group with the lowest instruction runs first, which brings them together at the end of structured code,
//! and instructions that need several lanes at once wait for the groups to meet.

use super::bulk::Reading;
use super::copy::PendingCopy;
use super::lanes::{LANES, Planes};
use super::wgmma::Flight;
use crate::decode::program::{Func, Program};

/// One call of a function by some lanes.
#[derive(Debug, Default)]
pub struct Frame {
    pub func: u32,
    pub planes: Planes,
    /// Lanes whose value is initialised, for each plane that is watched.
    pub init: Vec<u32>,
    /// Start of this frame's part of local memory.
    pub base: u32,
    pub depth: u32,
    pub parent: u32,
    /// The call instruction, and its lanes that have not returned.
    pub site: u32,
    pub lanes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Ready,
    /// Until other lanes of the warp arrive at the same instruction.
    Converge,
    Barrier {
        id: u8,
        generation: u64,
    },
    /// Until a phase of an mbarrier completes.
    Phase {
        offset: u32,
        state: u64,
        parity: bool,
    },
    Cluster {
        generation: u64,
    },
    /// Until the block has so many registers free.
    Registers {
        more: u32,
    },
    /// Until the other warps of the warpgroup have committed as many groups of matrix operations.
    Warpgroup {
        groups: u32,
    },
}

#[derive(Debug, Clone, Copy)]
pub struct Group {
    pub pc: u32,
    pub mask: u32,
    pub frame: u32,
    pub wait: Wait,
}

/// Registers of matrix operations since the last fence.
#[derive(Debug, Default)]
pub struct Touched {
    /// Planes that something else read or wrote.
    pub planes: Vec<u32>,
    /// Matrix operations: instruction of each.
    pub operations: Vec<u32>,
}

#[derive(Debug, Default)]
pub struct Warp {
    pub id: usize,
    /// Lanes that exist, and those that have not exited.
    pub full: u32,
    pub alive: u32,
    pub groups: Vec<Group>,
    pub frames: Vec<Frame>,
    pub free_frames: Vec<u32>,
    /// Local memory: each lane's bytes in one piece, and whether they were written.
    pub local: Vec<u8>,
    pub local_init: Vec<u8>,
    pub local_bytes: u32,
    /// Lanes whose last load from local memory found bytes never written.
    pub poison: u32,
    pub copies: Vec<PendingCopy>,
    /// Groups of asynchronous copies committed by each lane.
    pub committed: [u32; LANES],
    /// Bulk copies that still read shared memory, and matrix operations not waited for.
    pub bulk: Vec<Reading>,
    pub bulk_committed: [u32; LANES],
    pub flights: Vec<Flight>,
    /// The last wait on an mbarrier that came back empty-handed: instruction, offset, phase or parity.
    pub refused: Option<(u32, u32, u64)>,
    /// What happened to the registers of matrix operations since the last `wgmma.fence`; none before the first.
    pub fence: Option<Touched>,
    /// Planes of the accumulators in flight, as bits; empty when there are none.
    flying: Vec<u64>,
    /// Planes of A fragments that matrix operations still read.
    flying_a: Vec<u32>,
    flying_frame: usize,
    pub cluster_generation: u64,
    /// Lanes between arriving and waiting at the cluster barrier.
    pub cluster_arrived: u32,
    pub executed: u64,
    pub hint: usize,
    /// The instruction being executed, for messages.
    pub pc: u32,
}

/// The most local memory a thread may use.
pub const LOCAL_LIMIT: u32 = 512 << 10;

impl Warp {
    /// Prepares the warp for a new block. Planes are reused: constants stay, registers are rewritten before they are read.
    pub fn start(&mut self, program: &Program, id: usize, lanes: u32) {
        let f = &program.funcs[0];
        let mut frame = self.frames.drain(..).next().unwrap_or_default();
        if frame.planes.0.len() != f.template.len() || frame.func != 0 {
            frame.planes.0.clone_from(&f.template);
        }
        reset_init(&mut frame, f);
        frame.func = 0;
        frame.base = 0;
        frame.depth = 0;
        frame.lanes = lanes;
        self.frames.push(frame);
        self.free_frames.clear();
        self.id = id;
        self.full = lanes;
        self.alive = lanes;
        self.groups.clear();
        self.groups.push(Group { pc: f.start, mask: lanes, frame: 0, wait: Wait::Ready });
        self.local_bytes = f.frame_bytes;
        self.local.clear();
        self.local.resize(f.frame_bytes as usize * LANES, 0xFF);
        self.local_init.clear();
        self.local_init.resize(f.frame_bytes as usize * LANES, 0);
        self.copies.clear();
        self.committed = [0; LANES];
        self.bulk.clear();
        self.bulk_committed = [0; LANES];
        self.cluster_arrived = 0;
        self.refused = None;
        self.flights.clear();
        self.fence = None;
        self.flying_a.clear();
        self.flying.clear();
        self.executed = 0;
        self.pc = f.start;
    }

    /// Grows every lane's local memory to at least `bytes`.
    pub fn grow_local(&mut self, bytes: u32) {
        if bytes <= self.local_bytes {
            return;
        }
        let (old, new) = (self.local_bytes as usize, bytes as usize);
        for (v, fill) in [(&mut self.local, 0xFFu8), (&mut self.local_init, 0)] {
            let mut grown = vec![fill; new * LANES];
            for l in 0..LANES {
                grown[l * new..l * new + old].copy_from_slice(&v[l * old..(l + 1) * old]);
            }
            *v = grown;
        }
        self.local_bytes = bytes;
    }

    #[inline]
    pub fn any_flight(&self) -> bool {
        !self.flying.is_empty()
    }

    pub fn clear_flight(&mut self) {
        self.flying.clear();
        self.flying_a.clear();
    }

    pub fn set_flight(&mut self, frame: usize, plane: u32) {
        if self.flying.is_empty() {
            self.flying.resize(self.frames[frame].planes.0.len().div_ceil(64), 0);
            self.flying_frame = frame;
        }
        if let Some(w) = self.flying.get_mut(plane as usize / 64) {
            *w |= 1 << (plane % 64);
        }
    }

    pub fn in_flight(&self, frame: usize, plane: u32) -> bool {
        frame == self.flying_frame && self.flying.get(plane as usize / 64).is_some_and(|w| w >> (plane % 64) & 1 == 1)
    }

    /// Marks a plane that a matrix operation reads as A: it may be read, but not written.
    pub fn set_reading(&mut self, plane: u32) {
        if !self.flying_a.contains(&plane) {
            self.flying_a.push(plane);
        }
    }

    pub fn is_read(&self, frame: usize, plane: u32) -> bool {
        frame == self.flying_frame && self.flying_a.contains(&plane)
    }

    pub fn finished(&self) -> bool {
        self.alive == 0
    }
}

pub fn reset_init(frame: &mut Frame, f: &Func) {
    if f.tracked.is_empty() {
        return;
    }
    frame.init.clear();
    frame.init.resize(f.template.len(), u32::MAX);
    for &t in &f.tracked {
        frame.init[t as usize] = 0;
    }
}

/// The lanes of a mask, lowest first.
#[inline(always)]
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut m = mask;
    std::iter::from_fn(move || {
        if m == 0 {
            return None;
        }
        let l = m.trailing_zeros() as usize;
        m &= m - 1;
        Some(l)
    })
}
