//! What a launch did, in numbers that are the same on every machine.

use crate::decode::program::{KIND_NAMES, KINDS};

/// Counters of a launch. Instructions are counted once for each warp.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    pub instructions: [u64; KINDS],
    /// 32-byte sectors of global memory touched by loads and stores, and the least that the bytes asked for would need.
    pub load_sectors: u64,
    pub store_sectors: u64,
    pub ideal_sectors: u64,
    /// Shared-memory wavefronts beyond the first of each access.
    pub bank_conflicts: u64,
    pub shared_wavefronts: u64,
    pub local_accesses: u64,
    /// Multiply-adds done by matrix instructions.
    pub tensor_macs: u64,
    pub barriers: u64,
    pub divergent_branches: u64,
}

impl Counters {
    pub fn total(&self) -> u64 {
        self.instructions.iter().sum()
    }

    /// Instructions of one class: `"ld.global"`, `"matrix"` …
    pub fn kind(&self, name: &str) -> u64 {
        KIND_NAMES.iter().position(|k| *k == name).map_or(0, |i| self.instructions[i])
    }

    /// Classes with their counts, zero ones left out.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        KIND_NAMES.iter().copied().zip(self.instructions).filter(|(_, n)| *n > 0)
    }

    pub(crate) fn add(&mut self, o: &Counters) {
        for (a, b) in self.instructions.iter_mut().zip(o.instructions) {
            *a += b;
        }
        self.load_sectors += o.load_sectors;
        self.store_sectors += o.store_sectors;
        self.ideal_sectors += o.ideal_sectors;
        self.bank_conflicts += o.bank_conflicts;
        self.shared_wavefronts += o.shared_wavefronts;
        self.local_accesses += o.local_accesses;
        self.tensor_macs += o.tensor_macs;
        self.barriers += o.barriers;
        self.divergent_branches += o.divergent_branches;
    }
}

/// The outcome of a launch that finished.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    pub counters: Counters,
    /// What the kernel printed, in block order.
    pub printed: String,
}
