//! Shared memory as the blocks of a cluster see it: their own, and each other's.

use super::block::{Block, Step, Stop, stop};
use crate::check::fault::{Fault, FaultKind, Memory};
use crate::check::race::{Conflict, NO_LANE, Stamp, Who, stamp};
use crate::decode::program::*;
use crate::memory::shared::{INIT, PENDING, Shared};

impl Block<'_> {
    /// Which block of the cluster a shared address means, and the offset there.
    pub fn resolve_shared(&self, address: u64, lane: usize) -> Step<(usize, u32)> {
        let address = address & !WINDOW_MASK;
        let rank = (address >> 24) as usize;
        if rank == 0 {
            return Ok((self.rank, address as u32));
        }
        if rank > self.peers.len() {
            let kind = FaultKind::OutOfBounds { memory: Memory::Shared, address, bytes: 1, write: false };
            return stop(kind, Some(lane));
        }
        Ok((rank - 1, (address & 0xFF_FFFF) as u32))
    }

    /// The shared memory of a block of the cluster.
    pub fn shared_of(&mut self, rank: usize) -> &mut Shared {
        if rank == self.rank { &mut self.shared } else { &mut self.peers[rank] }
    }

    /// The same, for a block that must still run.
    pub fn living(&mut self, rank: usize, offset: u32, write: bool, lane: usize) -> Step<&mut Shared> {
        if rank != self.rank && self.peers[rank].data.is_empty() {
            let block = self.coordinates(self.members[rank]);
            return stop(FaultKind::BlockEnded { address: u64::from(offset), write, block }, Some(lane));
        }
        Ok(self.shared_of(rank))
    }

    /// Block and offset of an access, aligned and inside.
    #[inline]
    pub fn place_shared(&mut self, address: u64, bytes: u32, lane: usize, write: bool) -> Step<(usize, u32)> {
        if address >> 24 == 0 {
            return Ok((self.rank, self.shared_check(address, bytes, lane, write)?));
        }
        let (rank, offset) = self.resolve_shared(address, lane)?;
        if rank == self.rank {
            return Ok((rank, self.shared_check(u64::from(offset), bytes, lane, write)?));
        }
        let end = self.living(rank, offset, write, lane)?.data.len() as u64;
        if u64::from(offset) & u64::from(bytes - 1) != 0 {
            return stop(FaultKind::Misaligned { memory: Memory::Shared, address, bytes, write }, Some(lane));
        }
        if offset < SHARED_START || u64::from(offset) + u64::from(bytes) > end {
            return stop(FaultKind::OutOfBounds { memory: Memory::Shared, address, bytes, write }, Some(lane));
        }
        Ok((rank, offset))
    }

    /// The lane's time within its warp.
    #[inline]
    pub fn stamp(&self, me: usize, lane: usize) -> Stamp {
        stamp(lane, self.epochs[me][lane])
    }

    #[inline]
    pub fn who(&self, me: usize, pc: u32, atomic: bool, stamp: Stamp) -> Who<'_> {
        Who { block: self.index as u32, warp: me, seen: &self.seen[me], foreign: &self.foreign[me], pc, atomic, stamp }
    }

    /// Alignment and bounds of a shared access.
    #[inline]
    pub fn shared_check(&self, address: u64, bytes: u32, lane: usize, write: bool) -> Step<u32> {
        if address & u64::from(bytes - 1) != 0 {
            return stop(FaultKind::Misaligned { memory: Memory::Shared, address, bytes, write }, Some(lane));
        }
        if address < u64::from(SHARED_START) || address.saturating_add(u64::from(bytes)) > self.shared.data.len() as u64
        {
            return stop(FaultKind::OutOfBounds { memory: Memory::Shared, address, bytes, write }, Some(lane));
        }
        Ok(address as u32)
    }

    /// Everything a read of shared memory must satisfy. `used`: the bytes whose value matters.
    #[inline]
    pub fn shared_read(&mut self, me: usize, offset: u32, bytes: u32, used: u32, pc: u32, lane: usize) -> Step<()> {
        self.shared_read_by(me, offset, bytes, used, pc, lane, self.stamp(me, lane), None)
    }

    #[inline]
    pub fn shared_read_by(
        &mut self,
        me: usize,
        offset: u32,
        bytes: u32,
        used: u32,
        pc: u32,
        lane: usize,
        stamp: Stamp,
        group: Option<u32>,
    ) -> Step<()> {
        let (all, any) = self.shared.states(offset, bytes);
        if any & PENDING != 0 {
            let kind = FaultKind::AsyncNotWaited { memory: Memory::Shared, address: u64::from(offset), write: false };
            return stop(kind, Some(lane));
        }
        if all & INIT == 0 {
            let bad = (0..bytes).any(|b| used >> b & 1 == 1 && self.shared.state[(offset + b) as usize] & INIT == 0);
            if bad {
                let address = u64::from(offset);
                // Remembered, so that a later write by another warp is known to race with it.
                self.shared_note(me, offset, bytes, pc, lane, stamp, None)?;
                return stop(FaultKind::UninitialisedMemory { memory: Memory::Shared, address, bytes }, Some(lane));
            }
        }
        self.shared_note(me, offset, bytes, pc, lane, stamp, group)
    }

    /// Remembers a read, which must be ordered after all writes.
    #[inline]
    pub fn shared_note(
        &mut self,
        me: usize,
        offset: u32,
        bytes: u32,
        pc: u32,
        lane: usize,
        stamp: Stamp,
        group: Option<u32>,
    ) -> Step<()> {
        let (seen, foreign) = (&self.seen[me], &self.foreign[me]);
        let who = Who { block: self.index as u32, warp: me, seen, foreign, pc, atomic: false, stamp };
        let recorded = match group {
            None => self.shared.shadow.read(offset, bytes, &who),
            Some(time) => self.shared.shadow.read_group(offset, bytes, &who, time),
        };
        match recorded {
            Ok(()) => Ok(()),
            Err(c) => self.shared_race(offset, false, c, lane),
        }
    }

    #[inline]
    pub fn shared_write(&mut self, me: usize, offset: u32, bytes: u32, pc: u32, atomic: bool, lane: usize) -> Step<()> {
        let (_, any) = self.shared.states(offset, bytes);
        if any & PENDING != 0 {
            let kind = FaultKind::AsyncNotWaited { memory: Memory::Shared, address: u64::from(offset), write: true };
            return stop(kind, Some(lane));
        }
        if self.shared.being_read(offset, bytes) || (!self.tiles.is_empty() && self.tile_held(offset, bytes)) {
            let kind = FaultKind::AsyncOverwrite { memory: Memory::Shared, address: u64::from(offset) };
            return stop(kind, Some(lane));
        }
        self.shared_note_write(me, offset, bytes, pc, atomic, lane, self.stamp(me, lane))
    }

    /// Remembers a write, which must be ordered after all accesses.
    #[inline]
    pub fn shared_note_write(
        &mut self,
        me: usize,
        offset: u32,
        bytes: u32,
        pc: u32,
        atomic: bool,
        lane: usize,
        stamp: Stamp,
    ) -> Step<()> {
        let (seen, foreign) = (&self.seen[me], &self.foreign[me]);
        let who = Who { block: self.index as u32, warp: me, seen, foreign, pc, atomic, stamp };
        match self.shared.shadow.write(offset, bytes, &who) {
            Ok(()) => Ok(()),
            Err(c) => self.shared_race(offset, true, c, lane),
        }
    }

    /// Everything a read of another block's memory must satisfy.
    pub fn remote_read(
        &mut self,
        me: usize,
        rank: usize,
        offset: u32,
        bytes: u32,
        pc: u32,
        atomic: bool,
        lane: usize,
    ) -> Step<()> {
        let (all, any) = self.peers[rank].states(offset, bytes);
        let address = u64::from(offset);
        if any & PENDING != 0 {
            return stop(FaultKind::AsyncNotWaited { memory: Memory::Shared, address, write: false }, Some(lane));
        }
        self.remote_record(me, rank, offset, bytes, pc, atomic, false, lane)?;
        if all & INIT == 0 {
            return stop(FaultKind::UninitialisedMemory { memory: Memory::Shared, address, bytes }, Some(lane));
        }
        Ok(())
    }

    pub fn remote_write(
        &mut self,
        me: usize,
        rank: usize,
        offset: u32,
        bytes: u32,
        pc: u32,
        atomic: bool,
        lane: usize,
    ) -> Step<()> {
        let peer = &self.peers[rank];
        let address = u64::from(offset);
        if peer.states(offset, bytes).1 & PENDING != 0 {
            return stop(FaultKind::AsyncNotWaited { memory: Memory::Shared, address, write: true }, Some(lane));
        }
        if peer.being_read(offset, bytes) {
            return stop(FaultKind::AsyncOverwrite { memory: Memory::Shared, address }, Some(lane));
        }
        self.remote_record(me, rank, offset, bytes, pc, atomic, true, lane)
    }

    /// Checks an access to another block's memory against all earlier ones, and remembers it.
    pub fn remote_record(
        &mut self,
        me: usize,
        rank: usize,
        offset: u32,
        bytes: u32,
        pc: u32,
        atomic: bool,
        write: bool,
        lane: usize,
    ) -> Step<()> {
        let owner = self.members[rank] as u32;
        let who = Who {
            block: self.index as u32,
            warp: me,
            seen: &self.seen[me],
            foreign: &self.foreign[me],
            pc,
            atomic,
            stamp: NO_LANE,
        };
        let shadow = &mut self.peers[rank].shadow;
        let result = if write {
            shadow.remote_write(offset, bytes, owner, &who)
        } else {
            shadow.remote_read(offset, bytes, owner, &who)
        };
        match result {
            Ok(()) => Ok(()),
            Err(c) => self.shared_race(offset, write, c, lane),
        }
    }

    pub fn shared_race(&self, offset: u32, write: bool, c: Conflict, lane: usize) -> Step<()> {
        let block = c.block.map_or(self.ctaid, |b| self.coordinates(u64::from(b)));
        let mut other = self.other(block, Some(c.warp), Some(c.pc), c.wrote);
        other.lane = c.lane;
        stop(FaultKind::Race { memory: Memory::Shared, address: u64::from(offset), write, other }, Some(lane))
    }

    /// The block ends: every access to its memory from other blocks must be ordered before that.
    pub fn check_visitors(&self) -> Result<(), Box<Fault>> {
        if self.peers.len() == 1 {
            return Ok(());
        }
        let mut known = self.foreign[0].clone();
        for f in &self.foreign[1..] {
            known.join(f);
        }
        let Some((offset, access, write)) = self.shared.shadow.unfinished(&known) else { return Ok(()) };
        let kind = FaultKind::BlockEnded { address: u64::from(offset), write, block: self.ctaid };
        let mut fault = self.fault(Some((usize::from(access.warp), access.pc)), Stop { kind, lane: None });
        fault.block = Some(self.coordinates(u64::from(access.block)));
        Err(fault)
    }
}
