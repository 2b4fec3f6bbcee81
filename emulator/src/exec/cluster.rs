//! The blocks of a cluster run together and reach into each other's shared memory.

use std::cell::RefCell;
use std::rc::Rc;

use super::block::{Block, Env, FlagTable, Reuse, Status};
use super::hopper::ClusterBarrier;
use crate::check::counters::Counters;
use crate::check::fault::Fault;
use crate::memory::shared::Shared;

pub struct Cluster<'a> {
    blocks: Vec<Block<'a>>,
    finished: Vec<bool>,
}

impl<'a> Cluster<'a> {
    /// The cluster of a number, in grid order.
    pub fn new(env: &'a Env<'a>, index: u64, spare: &mut Vec<Reuse>) -> Cluster<'a> {
        let c = env.cluster.map(u64::from);
        let grid = env.grid.map(u64::from);
        let across = [grid[0] / c[0], grid[1] / c[1]];
        let at = [index % across[0], index / across[0] % across[1], index / (across[0] * across[1])];
        let n = (c[0] * c[1] * c[2]) as usize;
        let barrier = Rc::new(RefCell::new(ClusterBarrier::default()));
        let mut blocks = Vec::with_capacity(n);
        for rank in 0..n as u64 {
            let inside = [rank % c[0], rank / c[0] % c[1], rank / (c[0] * c[1])];
            let [x, y, z] = [0, 1, 2].map(|i| at[i] * c[i] + inside[i]);
            let mut b = Block::new(env, x + grid[0] * (y + grid[1] * z), spare.pop().unwrap_or_default());
            barrier.borrow_mut().alive += env.block.iter().product::<u32>();
            b.rank = rank as usize;
            b.peers = (0..n).map(|_| Shared::default()).collect();
            b.cluster_barrier = Rc::clone(&barrier);
            blocks.push(b);
        }
        Cluster { finished: vec![false; n], blocks }
    }

    pub fn executed(&self) -> u64 {
        self.blocks.iter().map(|b| b.executed).sum()
    }

    pub fn run(&mut self, flags: &mut FlagTable, rounds: u32) -> Result<Status, Box<Fault>> {
        if let [only] = self.blocks.as_mut_slice() {
            return only.run(flags, rounds);
        }
        for _ in 0..rounds {
            let before = self.executed();
            let mut moved = false;
            for i in 0..self.blocks.len() {
                if self.finished[i] {
                    continue;
                }
                self.lend(i);
                let status = self.blocks[i].run(flags, 2);
                self.give_back(i);
                match status? {
                    Status::Finished => {
                        self.finished[i] = true;
                        moved = true;
                    }
                    Status::Running => moved = true,
                    Status::Stuck => {}
                }
            }
            if self.finished.iter().all(|f| *f) {
                return Ok(Status::Finished);
            }
            if !moved && self.executed() == before {
                return Ok(Status::Stuck);
            }
        }
        Ok(Status::Running)
    }

    /// The memory of a block that has ended is out of reach.
    fn lend(&mut self, to: usize) {
        for j in 0..self.blocks.len() {
            if j != to && !self.finished[j] {
                let s = std::mem::take(&mut self.blocks[j].shared);
                self.blocks[to].peers[j] = s;
            }
        }
    }

    fn give_back(&mut self, from: usize) {
        for j in 0..self.blocks.len() {
            if j != from && !self.finished[j] {
                let s = std::mem::take(&mut self.blocks[from].peers[j]);
                self.blocks[j].shared = s;
            }
        }
    }

    pub fn deadlock(&self) -> Box<Fault> {
        let i = self.finished.iter().position(|f| !f).unwrap_or(0);
        self.blocks[i].deadlock()
    }

    pub fn limit_fault(&self, instructions: u64) -> Box<Fault> {
        let i = self.finished.iter().position(|f| !f).unwrap_or(0);
        self.blocks[i].endless(instructions)
    }

    /// Adds up what the blocks did and keeps their buffers.
    pub fn finish(self, counters: &mut Counters, printed: &mut String, spare: &mut Vec<Reuse>) {
        for b in self.blocks {
            counters.add(&b.counters);
            printed.push_str(&b.printed);
            spare.push(b.into_reuse());
        }
    }
}
