//! Orders between blocks, for blocks that signal each other through global memory or within a cluster.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::race::{NOTHING, Seen};

/// For each other block, the newest time of each of its warps that is ordered before now.
#[derive(Debug, Clone, Default)]
pub struct Foreign {
    known: Rc<BTreeMap<u32, Vec<u32>>>,
}

impl Foreign {
    pub fn ordered(&self, block: u32, warp: usize, clock: u32) -> bool {
        self.known.get(&block).is_some_and(|v| v.get(warp).is_some_and(|&t| clock <= t))
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// What is known of a block's own warps.
    pub fn of(&self, block: u32) -> Option<&[u32]> {
        self.known.get(&block).map(Vec::as_slice)
    }

    pub fn join(&mut self, other: &Foreign) {
        if Rc::ptr_eq(&self.known, &other.known) || other.known.is_empty() {
            return;
        }
        if self.known.is_empty() {
            self.known = Rc::clone(&other.known);
            return;
        }
        let mine = Rc::make_mut(&mut self.known);
        for (b, times) in other.known.iter() {
            let slot = mine.entry(*b).or_default();
            if slot.len() < times.len() {
                slot.resize(times.len(), 0);
            }
            for (s, t) in slot.iter_mut().zip(times) {
                *s = (*s).max(*t);
            }
        }
    }

    /// What this block itself has done, added for others to know.
    pub fn with(&self, block: u32, seen: &[u32]) -> Foreign {
        let mut out = self.clone();
        Rc::make_mut(&mut out.known).insert(block, seen.to_vec());
        out
    }

    /// Only what one warp of a block did up to a time.
    pub fn one(block: u32, warp: usize, clock: u32) -> Foreign {
        let mut seen = NOTHING;
        seen[warp] = clock;
        Foreign::default().with(block, &seen)
    }
}

/// What an arrival or a flag brings to those who acquire it.
#[derive(Debug, Clone)]
pub struct Brought {
    /// Times of the block's own warps, and what they know of other blocks.
    pub seen: Seen,
    pub foreign: Foreign,
    /// What was released at a scope wider than the block: other blocks may take it, and this block takes theirs.
    pub wide: Foreign,
}

impl Default for Brought {
    fn default() -> Self {
        Brought { seen: NOTHING, foreign: Foreign::default(), wide: Foreign::default() }
    }
}

impl Brought {
    pub fn join_seen(&mut self, seen: &Seen) {
        for (a, b) in self.seen.iter_mut().zip(seen) {
            *a = (*a).max(*b);
        }
    }
}
