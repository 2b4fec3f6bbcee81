//! The registers that the warps of a block own, and `setmaxnreg`, which moves them between warps.

use super::block::{Block, Env, Step, Stop, stop};
use super::step::Flow;
use super::warp::{Wait, Warp};
use crate::check::fault::{Fault, FaultKind};
use crate::decode::program::Program;

/// 32-bit registers of one block's multiprocessor.
pub const REGISTER_FILE: u32 = 65536;
/// Registers of a warp are handed out in pieces of this size.
const WARP_UNIT: u32 = 256;

/// Registers that a block of so many threads takes, allocation granularity counted.
pub fn block_registers(per_thread: u32, threads: u32) -> u32 {
    (per_thread * 32).next_multiple_of(WARP_UNIT) * threads.div_ceil(32)
}

#[derive(Debug)]
pub struct Registers {
    /// For each thread of each warp; none where the kernel was compiled without a limit, and `setmaxnreg` does nothing.
    owned: Option<Vec<u32>>,
    /// What warps gave back.
    pub free: u32,
    /// The `setmaxnreg` instructions that each warp has executed.
    trail: Vec<Vec<u32>>,
}

/// What a thread starts with: as launched, as compiled, or the most that the largest launch leaves to each.
fn initial(program: &Program, launched: u32) -> Option<u32> {
    let limits = &program.limits;
    let threads = limits.exact_threads.or(limits.max_threads).map(|t| t.iter().product::<u32>());
    let derived =
        threads.map(|t| (REGISTER_FILE / (t.max(1) * limits.min_blocks.unwrap_or(1).max(1))).min(255) / 8 * 8);
    let compiled = limits.max_registers.or(derived)?;
    Some(if launched == 0 { compiled } else { launched })
}

impl Registers {
    pub fn new(env: &Env, warps: usize) -> Registers {
        let owned = initial(env.program, env.registers).map(|n| vec![n; warps]);
        Registers { owned, free: 0, trail: vec![Vec::new(); warps] }
    }
}

impl Block<'_> {
    pub fn set_registers(
        &mut self,
        warp: &mut Warp,
        gi: usize,
        increase: bool,
        wanted: u32,
        active: u32,
        pc: u32,
    ) -> Step<Flow> {
        if let Some(flow) = self.whole_warp(warp, gi, active)? {
            return Ok(flow);
        }
        let me = warp.id;
        let Some(owned) = &mut self.registers.owned else { return Ok(Flow::Next) };
        let now = owned[me];
        if (increase && now > wanted) || (!increase && now < wanted) {
            let verb = if increase { "inc" } else { "dec" };
            let text = format!("setmaxnreg.{verb} to {wanted} registers in a warp that owns {now} for each thread");
            return stop(FaultKind::Misuse(text), Some(0));
        }
        let change = now.abs_diff(wanted) * 32;
        if !increase {
            self.registers.free += change;
        } else if change > self.registers.free {
            return Ok(Flow::Retry(Wait::Registers { more: change }));
        } else {
            self.registers.free -= change;
        }
        owned[me] = wanted;
        self.registers.trail[me].push(pc);
        Ok(Flow::Next)
    }

    /// All warps of a warpgroup must have executed the same `setmaxnreg` instructions.
    pub fn check_registers(&self) -> Result<(), Box<Fault>> {
        let trails = &self.registers.trail;
        for (w, trail) in trails.iter().enumerate() {
            let first = &trails[w / 4 * 4];
            if trail == first {
                continue;
            }
            let at = trail.iter().zip(first).position(|(a, b)| a != b).unwrap_or(trail.len().min(first.len()));
            let (warp, pc) = match trail.get(at) {
                Some(&pc) => (w, pc),
                None => (w / 4 * 4, first[at]),
            };
            let text = "not all warps of the warpgroup execute this setmaxnreg".into();
            return Err(self.fault(Some((warp, pc)), Stop { kind: FaultKind::Misuse(text), lane: Some(0) }));
        }
        Ok(())
    }
}
