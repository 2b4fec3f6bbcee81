//! Global memory that asynchronous copies still read: until they are waited for it may not change.

use std::rc::{Rc, Weak};

use super::block::{Block, Step, stop};
use super::warp::lanes;
use crate::check::fault::{FaultKind, Memory};

/// The source of a copy on its way; it lives as long as the copy has not landed.
#[derive(Debug)]
pub struct Source {
    low: u64,
    high: u64,
    /// Start and end of each piece.
    ranges: Vec<(u64, u64)>,
}

impl Source {
    fn meets(&self, address: u64, bytes: u64) -> bool {
        address < self.high
            && address + bytes > self.low
            && self.ranges.iter().any(|&(start, end)| address < end && address + bytes > start)
    }
}

impl Block<'_> {
    /// Holds the pieces of global memory that a copy reads.
    pub fn hold_source(&mut self, ranges: Vec<(u64, u64)>) -> Option<Rc<Source>> {
        let low = ranges.iter().map(|r| r.0).min()?;
        let high = ranges.iter().map(|r| r.1).max()?;
        let source = Rc::new(Source { low, high, ranges });
        // What has landed is cleared away now and then.
        if self.sources.len() >= self.source_limit {
            self.sources.retain(|s| s.strong_count() > 0);
            self.source_limit = 64 + 2 * self.sources.len();
        }
        self.sources.push(Rc::downgrade(&source));
        Some(source)
    }

    /// Holds a tile of the own shared memory that a copy to another block reads.
    pub fn hold_tile(&mut self, offset: u64, bytes: u64) -> Option<Rc<Source>> {
        let source = Rc::new(Source { low: offset, high: offset + bytes, ranges: vec![(offset, offset + bytes)] });
        self.tiles.push(Rc::downgrade(&source));
        Some(source)
    }

    /// Is a piece of shared memory still read by a copy to another block?
    pub fn tile_held(&mut self, offset: u32, bytes: u32) -> bool {
        self.tiles.retain(|t| t.strong_count() > 0);
        self.tiles.iter().filter_map(Weak::upgrade).any(|t| t.meets(u64::from(offset), u64::from(bytes)))
    }

    /// A write to global memory by these lanes must leave the sources alone.
    #[inline]
    pub fn spare_sources(&mut self, addresses: &[u64; 32], mask: u32, bytes: u32) -> Step<()> {
        if self.sources.is_empty() {
            return Ok(());
        }
        self.sources.retain(|s| s.strong_count() > 0);
        for s in self.sources.iter().filter_map(Weak::upgrade) {
            if let Some(l) = lanes(mask).find(|&l| s.meets(addresses[l], u64::from(bytes))) {
                return stop(FaultKind::AsyncOverwrite { memory: Memory::Global, address: addresses[l] }, Some(l));
            }
        }
        Ok(())
    }
}

/// Two lanes that give different values to one place in one instruction. All accesses have the same size and alignment.
#[inline]
pub fn collision(addresses: &[u64; 32], mask: u32, same: impl Fn(usize, usize) -> bool) -> Option<(usize, usize)> {
    let mut last = None;
    let rising = lanes(mask).all(|l| {
        let ok = last.is_none_or(|a| addresses[l] > a);
        last = Some(addresses[l]);
        ok
    });
    if rising {
        return None;
    }
    let mut order = [(u64::MAX, 0usize); 32];
    for l in lanes(mask) {
        order[l] = (addresses[l], l);
    }
    order.sort_unstable();
    let order = &order[..mask.count_ones() as usize];
    order.windows(2).find(|w| w[0].0 == w[1].0 && !same(w[0].1, w[1].1)).map(|w| (w[0].1, w[1].1))
}
