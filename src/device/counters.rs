//! What an emulated device counts while kernels run: numbers that are the same on every machine, and no times.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kernels::KernelId;

/// Bytes of a sector, the unit in which global memory is reached.
pub const SECTOR: u64 = 32;

/// What the launches of one kernel did. An instruction counts once for each warp that executes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    pub launches: u64,
    pub instructions: u64,
    /// The instructions by class (`ld.global`, `matrix` …), classes that did not occur left out.
    pub classes: BTreeMap<&'static str, u64>,
    /// Sectors of global memory that each warp's loads touched, asynchronous copies included; no cache is assumed.
    pub load_sectors: u64,
    pub store_sectors: u64,
    /// The least sectors that the bytes asked for would fill.
    pub ideal_sectors: u64,
    /// Wavefronts of shared memory, and those among them that a conflict of banks added.
    pub shared_wavefronts: u64,
    pub bank_conflicts: u64,
    /// Loads and stores of local memory: spilled registers and arrays that are no registers.
    pub local_accesses: u64,
    /// Multiply-adds of matrix instructions.
    pub tensor_macs: u64,
    pub barriers: u64,
    pub divergent_branches: u64,
}

impl Counters {
    /// Bytes that crossed between the kernel and global memory, in whole sectors.
    pub fn global_bytes(&self) -> u64 {
        SECTOR * (self.load_sectors + self.store_sectors)
    }

    /// Sectors beyond those that the bytes asked for would fill.
    pub fn uncoalesced_sectors(&self) -> u64 {
        (self.load_sectors + self.store_sectors).saturating_sub(self.ideal_sectors)
    }

    pub fn add(&mut self, other: &Counters) {
        let pairs = [
            (&mut self.launches, other.launches),
            (&mut self.instructions, other.instructions),
            (&mut self.load_sectors, other.load_sectors),
            (&mut self.store_sectors, other.store_sectors),
            (&mut self.ideal_sectors, other.ideal_sectors),
            (&mut self.shared_wavefronts, other.shared_wavefronts),
            (&mut self.bank_conflicts, other.bank_conflicts),
            (&mut self.local_accesses, other.local_accesses),
            (&mut self.tensor_macs, other.tensor_macs),
            (&mut self.barriers, other.barriers),
            (&mut self.divergent_branches, other.divergent_branches),
        ];
        for (own, more) in pairs {
            *own += more;
        }
        for (class, more) in &other.classes {
            *self.classes.entry(class).or_default() += more;
        }
    }
}

/// The counters of each kernel that was launched, in the order of the table.
pub type KernelCounters = Vec<(KernelId, Counters)>;

/// Everything that `kernels` did together.
pub fn total(kernels: &[(KernelId, Counters)]) -> Counters {
    let mut sum = Counters::default();
    kernels.iter().for_each(|(_, counters)| sum.add(counters));
    sum
}
