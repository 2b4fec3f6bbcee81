//! A whole launch: which block runs where and when.

use std::collections::HashMap;

use rayon::prelude::*;

use super::block::{Env, FlagTable, Reuse, Status};
use super::cluster::Cluster;
use crate::check::counters::{Counters, Report};
use crate::check::fault::Fault;
use crate::decode::program::Program;
use crate::memory::global::View;

/// The order in which matrix instructions add up products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Numerics {
    #[default]
    Ascending,
    Descending,
}

/// Everything a launch needs, checked already.
pub struct Launch<'a> {
    pub program: &'a Program,
    pub view: View,
    pub files: &'a HashMap<u32, String>,
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
    pub numerics: Numerics,
}

struct Done {
    order: u64,
    counters: Counters,
    printed: String,
}

/// Blocks of a communicating kernel that are resident together.
const RESIDENT: usize = 256;

pub fn run(l: &Launch) -> Result<Report, Box<Fault>> {
    // What is ordered and handed out are clusters; without clusters each is one block.
    let blocks = l.grid.iter().zip(l.cluster).map(|(&g, c)| u64::from(g / c)).product::<u64>();
    let env = Env {
        program: l.program,
        view: &l.view,
        files: l.files,
        inlines: l.inlines,
        constants: l.constants,
        params: l.params,
        grid: l.grid,
        block: l.block,
        cluster: l.cluster,
        shared_bytes: l.shared_bytes,
        registers: l.registers,
        seed: l.seed,
        limit: l.limit,
        numerics: l.numerics,
    };
    // A seeded permutation of the blocks: x -> (a x + b) mod n with a coprime to n.
    let mut rng = super::block::Rng::new(l.seed);
    let offset = rng.next() % blocks;
    let mut stride = if l.seed == 0 { 1 } else { (rng.next() % blocks) | 1 };
    while gcd(stride, blocks) != 1 {
        stride += 2;
    }
    let place = |i: u64| {
        ((u128::from(i) * u128::from(stride) + u128::from(if l.seed == 0 { 0 } else { offset })) % u128::from(blocks))
            as u64
    };
    let mut done = if l.program.communicates { together(&env, blocks, &place)? } else { apart(&env, blocks, &place)? };
    done.sort_by_key(|d| d.order);
    let mut report = Report::default();
    for d in done {
        report.counters.add(&d.counters);
        report.printed.push_str(&d.printed);
    }
    Ok(report)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Independent blocks, spread over the cores. Of several faults, the one first in block order is reported.
fn apart(env: &Env, blocks: u64, place: &(dyn Fn(u64) -> u64 + Sync)) -> Result<Vec<Done>, Box<Fault>> {
    let chunk = (blocks / (rayon::current_num_threads() as u64 * 8)).clamp(1, 64);
    let chunks = blocks.div_ceil(chunk);
    let results: Vec<Result<Done, (u64, Box<Fault>)>> = (0..chunks)
        .into_par_iter()
        .map_init(Vec::<Reuse>::new, |spare, c| {
            let mut flags = FlagTable::new();
            let mut sum = Done { order: c, counters: Counters::default(), printed: String::new() };
            for i in c * chunk..((c + 1) * chunk).min(blocks) {
                let mut b = Cluster::new(env, place(i), spare);
                loop {
                    match b.run(&mut flags, u32::MAX) {
                        Ok(Status::Finished) => break,
                        Ok(Status::Running) => {}
                        Ok(Status::Stuck) => return Err((i, b.deadlock())),
                        Err(f) => return Err((i, f)),
                    }
                }
                b.finish(&mut sum.counters, &mut sum.printed, spare);
            }
            Ok(sum)
        })
        .collect();
    let mut done = Vec::new();
    let mut worst: Option<(u64, Box<Fault>)> = None;
    for r in results {
        match r {
            Ok(d) => done.push(d),
            Err((i, f)) => {
                if worst.as_ref().is_none_or(|w| i < w.0) {
                    worst = Some((i, f));
                }
            }
        }
    }
    match worst {
        Some((_, f)) => Err(f),
        None => Ok(done),
    }
}

/// Blocks that may wait for each other take turns on one core, in an order that depends on the seed alone.
fn together(env: &Env, blocks: u64, place: &dyn Fn(u64) -> u64) -> Result<Vec<Done>, Box<Fault>> {
    let mut flags = FlagTable::new();
    let mut waiting = 0u64;
    let mut resident: Vec<(u64, Cluster)> = Vec::new();
    let mut spare: Vec<Reuse> = Vec::new();
    let mut done = Vec::new();
    let mut total = 0u64;
    while waiting < blocks || !resident.is_empty() {
        while resident.len() < RESIDENT && waiting < blocks {
            resident.push((waiting, Cluster::new(env, place(waiting), &mut spare)));
            waiting += 1;
        }
        let mut progress = false;
        let mut i = 0;
        while i < resident.len() {
            let before = resident[i].1.executed();
            let status = resident[i].1.run(&mut flags, 4)?;
            total += resident[i].1.executed() - before;
            progress |= resident[i].1.executed() != before;
            if status == Status::Finished {
                let (order, b) = resident.swap_remove(i);
                let mut d = Done { order, counters: Counters::default(), printed: String::new() };
                b.finish(&mut d.counters, &mut d.printed, &mut spare);
                done.push(d);
                progress = true;
            } else {
                i += 1;
            }
        }
        if !progress {
            return Err(resident[0].1.deadlock());
        }
        if total > env.limit {
            return Err(resident[0].1.limit_fault(total));
        }
    }
    Ok(done)
}
