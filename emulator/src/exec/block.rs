//! One block: its shared memory, barriers and warps, and the order in which they run.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};

use super::barrier::Barrier;
use super::hopper::ClusterBarrier;
use super::mbarrier::Mbarrier;
use super::registers::Registers;
use super::source::Source;
use super::warp::{Group, Wait, Warp};
use crate::check::clocks::Foreign;
use crate::check::counters::Counters;
use crate::check::fault::{Fault, FaultKind, OtherAccess};
use crate::check::race::{NOTHING, Seen};
use crate::decode::program::Program;
use crate::memory::global::View;
use crate::memory::shared::Shared;

/// What all blocks of a launch share.
pub struct Env<'a> {
    pub program: &'a Program,
    pub view: &'a View,
    pub files: &'a std::collections::HashMap<u32, String>,
    pub inlines: &'a [Vec<(u32, u32)>],
    pub constants: &'a [u8],
    pub params: &'a [u8],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub shared_bytes: u32,
    pub registers: u32,
    pub seed: u64,
    pub limit: u64,
    pub numerics: crate::exec::grid::Numerics,
}

/// Why a lane, a warp or a block stopped; the place is added by the caller.
#[derive(Debug)]
pub struct Stop {
    pub kind: FaultKind,
    pub lane: Option<u32>,
}

pub type Step<T> = Result<T, Box<Stop>>;

pub fn stop<T>(kind: FaultKind, lane: Option<usize>) -> Step<T> {
    Err(Box::new(Stop { kind, lane: lane.map(|l| l as u32) }))
}

/// A small generator: the order of warps and blocks is all it decides.
#[derive(Debug, Clone, Copy)]
pub struct Rng(pub u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed ^ 0x9E37_79B9_7F4A_7C15)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// An order on its way from one thread to another.
pub type Carried = Option<(Box<Seen>, Foreign)>;

/// Adds one order to another.
pub fn carry(into: &mut Carried, seen: &Seen, foreign: &Foreign) {
    match into {
        Some((s, f)) => {
            for (a, b) in s.iter_mut().zip(seen) {
                *a = (*a).max(*b);
            }
            f.join(foreign);
        }
        none => *none = Some((Box::new(*seen), foreign.clone())),
    }
}

/// Flags of one launch that order blocks, kept by the thread that runs them.
pub type FlagTable = std::collections::HashMap<u64, (Box<Seen>, Foreign)>;

pub struct Block<'a> {
    pub env: &'a Env<'a>,
    pub index: u64,
    pub ctaid: [u32; 3],
    pub shared: Shared,
    pub barriers: [Barrier; 16],
    pub warps: Vec<Warp>,
    pub seen: Vec<Seen>,
    pub foreign: Vec<Foreign>,
    pub generation: u32,
    pub only_full_barriers: bool,
    pub counters: Counters,
    pub printed: String,
    pub rng: Rng,
    pub executed: u64,
    /// A read of memory never written, kept back until it is known whether another warp would have written it: then the
    /// missing order between the two is the better diagnosis.
    pub suspect: Option<Box<Fault>>,
    /// Place in the cluster; the shared memories of its blocks, this one's slot empty while it runs.
    pub rank: usize,
    pub peers: Vec<Shared>,
    /// The numbers of the cluster's blocks.
    pub members: Vec<u64>,
    pub cluster_barrier: Rc<RefCell<ClusterBarrier>>,
    /// For each warp: which initialisations of mbarriers in other blocks are ordered before now.
    pub inits: Vec<Foreign>,
    pub init_released: Vec<Option<Foreign>>,
    /// Times of the lanes of each warp: they advance where the warp synchronises.
    pub epochs: Vec<[u32; 32]>,
    /// Global memory that copies on their way still read.
    pub sources: Vec<Weak<Source>>,
    pub source_limit: usize,
    /// The same for its own shared memory and copies to other blocks.
    pub tiles: Vec<Weak<Source>>,
    pub registers: Registers,
    /// Tensor maps in global memory that were changed and not acquired since.
    pub changed_maps: BTreeSet<u64>,
    /// For each warp: its time at its last proxy fence, and what was ordered before that fence.
    pub proxy_fenced: Vec<u32>,
    pub proxy_seen: Vec<Seen>,
    /// For each warp: what a fence made ready to be released, and what was read from flags and awaits a fence. Barriers carry
    /// both on: it is enough that one thread fences what another has read or will publish.
    pub released: Vec<Carried>,
    pub acquired: Vec<Carried>,
    /// Groups of matrix operations that each warp has committed.
    pub wg_committed: Vec<u32>,
}

/// What is kept from one block to the next on a core.
#[derive(Default)]
pub struct Reuse {
    pub shared: Shared,
    pub warps: Vec<Warp>,
    pub program: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Running,
    Finished,
    /// Every warp waits for something that no warp of this block can do.
    Stuck,
}

impl<'a> Block<'a> {
    pub fn new(env: &'a Env<'a>, index: u64, reuse: Reuse) -> Block<'a> {
        let threads = env.block.iter().product::<u32>() as usize;
        let count = threads.div_ceil(32);
        let mut shared = reuse.shared;
        let bytes = (env.program.dynamic_shared.max(env.program.static_shared) + env.shared_bytes) as usize;
        let groups = if env.program.warpgroups { count.div_ceil(4) } else { 0 };
        shared.reset(bytes, env.program.shared_granule, count, groups);
        let mut warps = reuse.warps;
        let this = env.program as *const Program as usize;
        if reuse.program != this {
            warps.clear();
        }
        warps.resize_with(count, Warp::default);
        let mut seen = vec![NOTHING; count];
        for (w, warp) in warps.iter_mut().enumerate() {
            let lanes = (threads - w * 32).min(32);
            warp.start(env.program, w, if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 });
            seen[w][w] = 1;
        }
        let cluster_barrier = Rc::new(RefCell::new(ClusterBarrier::new(threads as u32)));
        let (gx, gy) = (u64::from(env.grid[0]), u64::from(env.grid[1]));
        let ctaid = [(index % gx) as u32, (index / gx % gy) as u32, (index / (gx * gy)) as u32];
        Block {
            env,
            index,
            ctaid,
            shared,
            barriers: Default::default(),
            warps,
            seen,
            foreign: vec![Foreign::default(); count],
            generation: 1,
            only_full_barriers: true,
            counters: Counters::default(),
            printed: String::new(),
            rng: Rng::new(env.seed.wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add(index)),
            executed: 0,
            suspect: None,
            rank: 0,
            peers: vec![Shared::default()],
            members: vec![index],
            cluster_barrier,
            inits: vec![Foreign::default(); count],
            init_released: vec![None; count],
            epochs: vec![[1; 32]; count],
            sources: Vec::new(),
            source_limit: 64,
            tiles: Vec::new(),
            registers: Registers::new(env, count),
            changed_maps: BTreeSet::new(),
            proxy_fenced: vec![0; count],
            proxy_seen: vec![NOTHING; count],
            released: vec![None; count],
            acquired: vec![None; count],
            wg_committed: vec![0; count],
        }
    }

    pub fn into_reuse(self) -> Reuse {
        Reuse { shared: self.shared, warps: self.warps, program: self.env.program as *const Program as usize }
    }

    /// Runs every warp for a while. With `patience` the block may come back before it is done.
    pub fn run(&mut self, flags: &mut FlagTable, rounds: u32) -> Result<Status, Box<Fault>> {
        let n = self.warps.len();
        for _ in 0..rounds {
            let mut progress = false;
            let first = self.rng.below(n);
            let stride = if n > 2 && self.rng.next() & 1 == 1 { n - 1 } else { 1 };
            let mut w = first;
            for _ in 0..n {
                if !self.warps[w].finished() {
                    let budget = 64 + self.rng.below(1024) as u32;
                    let alive = self.warps[w].alive;
                    match self.run_warp(w, budget, flags) {
                        Ok(moved) => progress |= moved,
                        Err(f) => {
                            self.suspend(w, f)?;
                            progress = true;
                        }
                    }
                    if self.warps[w].alive != alive {
                        self.settle_barriers();
                    }
                }
                w = (w + stride) % n;
            }
            let finished = self.warps.iter().all(|w| w.finished() || w.groups.is_empty());
            if (finished || !progress)
                && let Some(f) = self.suspect.take()
            {
                return Err(f);
            }
            if finished {
                self.check_leftovers()?;
                self.check_registers()?;
                self.check_visitors()?;
                return Ok(Status::Finished);
            }
            if !progress {
                return Ok(Status::Stuck);
            }
            if self.executed > self.env.limit {
                return Err(self.limit_fault(self.executed));
            }
        }
        Ok(Status::Running)
    }

    /// A block may not end before its copies were waited for.
    fn check_leftovers(&self) -> Result<(), Box<Fault>> {
        let open = |b: &Mbarrier| b.tx != 0 || !b.inflight.is_empty() || !b.ready.is_empty();
        let mut left: Vec<_> = self.shared.mbarriers.iter().filter(|(_, b)| open(b)).collect();
        left.sort_by_key(|(offset, _)| **offset);
        let Some((offset, b)) = left.first() else { return Ok(()) };
        let copies = b.inflight.len() + b.ready.len();
        let text = format!(
            "the block ends while the mbarrier at {offset:#x} has {copies} copies that nobody waited for and {} bytes missing",
            b.tx
        );
        Err(self.fault(b.place, Stop { kind: FaultKind::Misuse(text), lane: None }))
    }

    /// A launch that goes on and on is reported where the warp that ran most stands.
    pub fn limit_fault(&self, instructions: u64) -> Box<Fault> {
        let busy = self.warps.iter().enumerate().filter(|(_, w)| !w.groups.is_empty());
        let place = busy.max_by_key(|(w, warp)| (warp.executed, usize::MAX - w)).map(|(w, warp)| (w, warp.groups[0]));
        let lane = place.map(|(_, g)| g.mask.trailing_zeros());
        self.fault(place.map(|(w, g)| (w, g.pc)), Stop { kind: FaultKind::InstructionLimit { instructions }, lane })
    }

    /// Stops a warp that read what was never written, and lets the others show whether they would have written it.
    fn suspend(&mut self, w: usize, fault: Box<Fault>) -> Result<(), Box<Fault>> {
        match (&fault.kind, &self.suspect) {
            (FaultKind::UninitialisedMemory { .. }, None) if self.warps.len() > 1 => {}
            (FaultKind::Race { .. } | FaultKind::AsyncNotWaited { .. }, _) | (_, None) => return Err(fault),
            (_, Some(first)) => return Err(first.clone()),
        }
        self.warps[w].groups.clear();
        self.suspect = Some(fault);
        Ok(())
    }

    /// Describes why nothing can move.
    pub fn deadlock(&self) -> Box<Fault> {
        // A warp whose own lanes wait for each other is the nearer cause.
        for (w, warp) in self.warps.iter().enumerate() {
            // Unless the missing lanes wait for something that other threads owe them.
            let owed = |g: &Group| matches!(g.wait, Wait::Phase { .. } | Wait::Registers { .. } | Wait::Cluster { .. });
            if let Some(g) = warp.groups.iter().find(|g| g.wait == Wait::Converge)
                && !warp.groups.iter().any(owed)
            {
                let kind = FaultKind::Divergent { arrived: g.mask, expected: warp.alive };
                return self.fault_at(Some(w), g.pc, Stop { kind, lane: Some(g.mask.trailing_zeros()) });
            }
        }
        let mut parts = Vec::new();
        // The place of the fault: bytes that never come are nearer the cause than a barrier, and that than the cluster's.
        let mut nearest: Option<(u32, usize, u32, u32)> = None;
        for (w, warp) in self.warps.iter().enumerate() {
            for g in &warp.groups {
                let what = match g.wait {
                    Wait::Barrier { id, .. } => format!("at barrier {id}"),
                    Wait::Cluster { .. } => "at the cluster barrier".into(),
                    Wait::Warpgroup { .. } => "for the other warps of its warpgroup".into(),
                    Wait::Registers { more } => {
                        format!("for {more} registers, {} are free", self.registers.free)
                    }
                    Wait::Phase { offset, .. } => match self.shared.mbarriers.get(&offset) {
                        Some(b) => format!(
                            "for the mbarrier at {offset:#x} (phase {}, {} of {} arrivals and {} bytes missing)",
                            b.phase, b.pending, b.expected, b.tx
                        ),
                        None => format!("for the mbarrier at {offset:#x}"),
                    },
                    Wait::Ready | Wait::Converge => continue,
                };
                let rank = match g.wait {
                    Wait::Phase { offset, .. } if self.shared.mbarriers.get(&offset).is_some_and(|b| b.tx != 0) => 0,
                    Wait::Cluster { .. } => 2,
                    _ => 1,
                };
                let line = self.env.program.places[g.pc as usize].line;
                nearest = nearest.filter(|n| n.0 <= rank).or(Some((rank, w, g.pc, g.mask.trailing_zeros())));
                parts.push(format!("warp {w} waits {what} (PTX line {line})"));
            }
        }
        let (_, w, pc, lane) = nearest.unwrap_or((0, 0, 0, 0));
        self.fault_at(Some(w), pc, Stop { kind: FaultKind::Deadlock { waiting: parts.join("; ") }, lane: Some(lane) })
    }

    pub fn fault(&self, warp: Option<(usize, u32)>, s: Stop) -> Box<Fault> {
        self.fault_at(warp.map(|w| w.0), warp.map_or(u32::MAX, |w| w.1), s)
    }

    fn fault_at(&self, warp: Option<usize>, pc: u32, s: Stop) -> Box<Fault> {
        let place = self.env.program.places.get(pc as usize);
        Box::new(Fault {
            kind: s.kind,
            kernel: self.env.program.name.clone(),
            block: Some(self.ctaid),
            warp: warp.map(|w| w as u32),
            lane: s.lane,
            line: place.map(|p| p.line),
            source: place.and_then(|_| self.source(pc)),
            inlined_at: self.inlined_at(pc),
        })
    }

    /// CUDA file and line of an instruction.
    pub fn source(&self, pc: u32) -> Option<(String, u32)> {
        let place = self.env.program.places.get(pc as usize)?;
        let file = self.env.files.get(&place.file)?;
        (place.source_line != 0).then(|| (file.clone(), place.source_line))
    }

    /// The call sites around an inlined instruction.
    fn inlined_at(&self, pc: u32) -> Vec<(String, u32)> {
        let chain = self.env.program.places.get(pc as usize).and_then(|p| self.env.inlines.get(p.inlined as usize));
        let name = |&(file, line): &(u32, u32)| Some((self.env.files.get(&file)?.clone(), line));
        chain.into_iter().flatten().filter_map(name).collect()
    }

    pub fn other(&self, block: [u32; 3], warp: Option<u32>, pc: Option<u32>, wrote: bool) -> Box<OtherAccess> {
        let line = pc.and_then(|pc| self.env.program.places.get(pc as usize)).map(|p| p.line);
        Box::new(OtherAccess { block, warp, lane: None, wrote, line, source: pc.and_then(|pc| self.source(pc)) })
    }

    /// Coordinates of a block from its number.
    pub fn coordinates(&self, index: u64) -> [u32; 3] {
        let (gx, gy) = (u64::from(self.env.grid[0]), u64::from(self.env.grid[1]));
        [(index % gx) as u32, (index / gx % gy) as u32, (index / (gx * gy)) as u32]
    }
}
