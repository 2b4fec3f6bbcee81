//! Bulk and tensor copies: the async proxy's own reads and writes.

use super::block::{Block, Step, stop};
use super::lanes::LANES;
use super::mbarrier::Landing;
use super::warp::Warp;
use crate::check::clocks::Foreign;
use crate::check::fault::{FaultKind, Memory};
use crate::check::race::NO_LANE;
use crate::decode::program::*;
use crate::memory::shared::{ASYNC, INIT, PENDING, REDUCING};
use crate::parse::ast::{Space, Ty};
use crate::tensor_map::{Swizzle, TensorMap, TensorType};

/// Shared memory that an asynchronous operation still reads.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The thread whose copy it is.
    pub lane: usize,
    pub group: u32,
    pub chunks: Vec<u32>,
}

fn misuse<T>(text: String, lane: usize) -> Step<T> {
    stop(FaultKind::Misuse(text), Some(lane))
}

impl Block<'_> {
    /// The destination of an asynchronous write must be free: nothing in flight to it, nothing still reading it.
    fn reserve(&mut self, warp: &Warp, rank: usize, p: &Landing, lane: usize, pc: u32) -> Step<()> {
        let (offset, bytes) = (p.dst, p.data.len() as u32);
        let address = u64::from(offset);
        let shared = self.living(rank, offset, true, lane)?;
        if offset < SHARED_START || offset as usize + bytes as usize > shared.data.len() {
            return stop(FaultKind::OutOfBounds { memory: Memory::Shared, address, bytes, write: true }, Some(lane));
        }
        let (all, any) = shared.states(offset, bytes);
        // Reductions may follow each other.
        let joins = p.reduce.is_some() && all & REDUCING != 0;
        if any & PENDING != 0 && !joins {
            return stop(FaultKind::AsyncNotWaited { memory: Memory::Shared, address, write: true }, Some(lane));
        }
        if p.reduce.is_some() && all & INIT == 0 {
            return stop(FaultKind::UninitialisedMemory { memory: Memory::Shared, address, bytes }, Some(lane));
        }
        if shared.being_read(offset, bytes) {
            return stop(FaultKind::AsyncOverwrite { memory: Memory::Shared, address }, Some(lane));
        }
        if rank == self.rank {
            self.shared_note_write(warp.id, offset, bytes, pc, p.reduce.is_some(), lane, NO_LANE)?;
        } else {
            self.remote_record(warp.id, rank, offset, bytes, pc, p.reduce.is_some(), true, lane)?;
        }
        let state = PENDING | if p.reduce.is_some() { REDUCING } else { 0 };
        for s in &mut self.shared_of(rank).state[offset as usize..(offset + bytes) as usize] {
            *s |= state;
        }
        Ok(())
    }

    /// Sends bytes to a place in the cluster and counts them at the mbarrier beside it.
    pub fn send(
        &mut self,
        warp: &Warp,
        rank: usize,
        pieces: Vec<Landing>,
        mbar: u32,
        total: u32,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        for p in &pieces {
            self.reserve(warp, rank, p, lane, pc)?;
        }
        let (own, me) = (rank == self.rank, warp.id);
        let clock = self.seen[me][me];
        let index = self.index as u32;
        let Some(b) = self.shared_of(rank).mbarriers.get_mut(&mbar) else {
            return misuse(format!("no mbarrier is initialised at shared address {mbar:#x}"), lane);
        };
        if own {
            b.brought.seen[me] = b.brought.seen[me].max(clock);
            b.place = Some((me, pc));
        } else {
            b.copies.join(&Foreign::one(index, me, clock));
        }
        b.inflight.extend(pieces);
        self.transact(rank, mbar, -i64::from(total), lane)
    }

    /// `st.async` and `red.async`: one value of a lane to another block, counted by an mbarrier of that block.
    pub fn send_value(
        &mut self,
        warp: &Warp,
        [dst, mbar]: [u64; 2],
        data: Vec<u8>,
        reduce: Option<(AtomOp, Ty)>,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        if self.peers.len() < 2 {
            return misuse("an asynchronous store needs a cluster of several blocks".into(), lane);
        }
        let bytes = data.len() as u32;
        let (rank, offset) = self.place_shared(dst & !WINDOW_MASK, bytes, lane, true)?;
        let (there, mbar) = self.resolve_shared(mbar, lane)?;
        if rank != there {
            return misuse("the value and its mbarrier belong to different blocks".into(), lane);
        }
        if reduce.is_some() && rank == self.rank {
            return misuse("an asynchronous reduction goes to another block of the cluster".into(), lane);
        }
        let landing = Landing { dst: offset, data, reduce, source: None };
        self.send(warp, rank, vec![landing], mbar, bytes, lane, pc)?;
        self.seen[warp.id][warp.id] += 1;
        Ok(())
    }

    /// The blocks that a copy goes to: the one its address names, or all in the mask.
    fn targets(&self, warp: &Warp, frame: usize, mask: u32, rank: usize, lane: usize) -> Step<Vec<usize>> {
        if mask == NONE {
            return Ok(vec![rank]);
        }
        let bits = warp.frames[frame].planes.get(mask)[lane] & 0xFFFF;
        let n = self.peers.len();
        if bits == 0 || (bits >> n) != 0 {
            return misuse(format!("multicast mask {bits:#x} in a cluster of {n} blocks"), lane);
        }
        Ok((0..n).filter(|r| bits >> r & 1 == 1).collect())
    }

    fn global_bytes(&mut self, warp: &mut Warp, address: u64, bytes: u32, lane: usize, pc: u32) -> Step<Vec<u8>> {
        let Some(i) = self.env.view.locate(address, u64::from(bytes), &mut warp.hint) else {
            return stop(FaultKind::OutOfBounds { memory: Memory::Global, address, bytes, write: false }, Some(lane));
        };
        let alloc = &self.env.view.allocations[i];
        let at = address - alloc.base;
        if (0..u64::from(bytes)).any(|b| alloc.initialised(at + b, 1) == 0) {
            return stop(FaultKind::UninitialisedMemory { memory: Memory::Global, address, bytes }, Some(lane));
        }
        let mut out = vec![0; bytes as usize];
        alloc.copy_out(&mut out, at);
        self.global_read(warp, i, at, bytes, pc, false, lane)?;
        Ok(out)
    }

    pub fn bulk_load(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        [dst, src, mbar]: [u64; 3],
        size: u32,
        mask: u32,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        if size == 0 || size > 1 << 20 || size % 16 != 0 || dst % 16 != 0 || src % 16 != 0 {
            return misuse(
                format!("a bulk copy of {size} bytes from {src:#x} to {dst:#x}: all must be multiples of 16"),
                lane,
            );
        }
        let (rank, offset) = self.resolve_shared(dst, lane)?;
        let (_, mbar) = self.resolve_shared(mbar, lane)?;
        let data = self.global_bytes(warp, src, size, lane, pc)?;
        let source = self.hold_source(vec![(src, src + u64::from(size))]);
        self.counters.load_sectors += u64::from(size / 32);
        self.counters.ideal_sectors += u64::from(size / 32);
        for r in self.targets(warp, frame, mask, rank, lane)? {
            let landing = Landing { dst: offset, data: data.clone(), reduce: None, source: source.clone() };
            self.send(warp, r, vec![landing], mbar, size, lane, pc)?;
        }
        self.seen[warp.id][warp.id] += 1;
        Ok(())
    }

    /// A hint has no effect, but what it names must be there.
    pub fn bulk_prefetch(&mut self, warp: &mut Warp, at: u64, size: u32, dims: usize, lane: usize) -> Step<()> {
        if dims > 0 {
            let map = self.tensor_map(warp, at, lane)?;
            if map.dims.len() != dims {
                return misuse(format!("{dims} coordinates for a tensor of {} dimensions", map.dims.len()), lane);
            }
            return Ok(());
        }
        if size % 16 != 0 || at % 16 != 0 {
            return misuse(format!("a prefetch of {size} bytes at {at:#x}: both must be multiples of 16"), lane);
        }
        Ok(())
    }

    pub fn bulk_peer(
        &mut self,
        warp: &mut Warp,
        [dst, src, mbar]: [u64; 3],
        size: u32,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        let (rank, offset) = self.resolve_shared(dst, lane)?;
        let (_, mbar) = self.resolve_shared(mbar, lane)?;
        if size == 0 || size > 1 << 20 || size % 16 != 0 || dst % 16 != 0 || src % 16 != 0 {
            return misuse(format!("a bulk copy of {size} bytes: sizes and addresses must be multiples of 16"), lane);
        }
        let from = (src & 0xFF_FFFF) as u32;
        let data = self.async_read(warp, from, size, lane, pc)?;
        let source = self.hold_tile(u64::from(from), u64::from(size));
        self.send(warp, rank, vec![Landing { dst: offset, data, reduce: None, source }], mbar, size, lane, pc)?;
        self.seen[warp.id][warp.id] += 1;
        Ok(())
    }

    /// A read of shared memory by the async proxy: initialised, ordered, and fenced if the generic proxy wrote it.
    pub fn async_read(&mut self, warp: &Warp, offset: u32, bytes: u32, lane: usize, pc: u32) -> Step<Vec<u8>> {
        let mut at = offset;
        while at < offset + bytes {
            let n = (offset + bytes - at).min(16 - at % 16);
            self.async_check(warp, at, n, lane, pc, None)?;
            at += n;
        }
        Ok(self.shared.data[offset as usize..(offset + bytes) as usize].to_vec())
    }

    /// `group`: the time of the warpgroup's matrix operation that reads, if it is one.
    pub fn async_check(&mut self, warp: &Warp, at: u32, n: u32, lane: usize, pc: u32, group: Option<u32>) -> Step<()> {
        let me = warp.id;
        if at < SHARED_START || (at + n) as usize > self.shared.data.len() {
            let kind =
                FaultKind::OutOfBounds { memory: Memory::Shared, address: u64::from(at), bytes: n, write: false };
            return stop(kind, Some(lane));
        }
        self.shared_read_by(me, at, n, u32::MAX, pc, lane, NO_LANE, group)?;
        if self.shared.state[at as usize] & ASYNC == 0 {
            let (w, clock) = self.shared.shadow.last_write(at);
            let fenced = clock <= self.proxy_fenced[w] || clock <= self.proxy_seen[me][w];
            if clock != 0 && !fenced {
                let kind = FaultKind::MissingProxyFence { address: u64::from(at), warp: w as u32 };
                return stop(kind, Some(lane));
            }
        }
        Ok(())
    }

    /// Marks shared memory as read by something asynchronous until its group is waited for.
    pub fn hold(&mut self, offset: u32, bytes: u32) -> Vec<u32> {
        let chunks: Vec<u32> = (offset / 16..=(offset + bytes - 1) / 16).collect();
        for &c in &chunks {
            self.shared.readers[c as usize] += 1;
        }
        chunks
    }

    /// Ends the reads of finished groups; they count as reads of this moment.
    pub fn let_go(&mut self, warp: &Warp, done: Vec<Reading>, pc: u32) {
        let me = warp.id;
        for r in done {
            for c in r.chunks {
                let n = &mut self.shared.readers[c as usize];
                *n = n.saturating_sub(1);
                // Nothing can have written it meanwhile: that would have been a fault.
                let bytes = 16.min(self.shared.data.len() as u32 - c * 16);
                let _ = self.shared_note(me, c * 16, bytes, pc, r.lane, NO_LANE, None);
            }
        }
    }

    pub fn bulk_store(
        &mut self,
        warp: &mut Warp,
        [dst, src]: [u64; 2],
        size: u32,
        reduce: Option<(AtomOp, Ty)>,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        if size == 0 || size > 1 << 20 || size % 16 != 0 || dst % 16 != 0 || src % 16 != 0 {
            return misuse(
                format!("a bulk copy of {size} bytes from {src:#x} to {dst:#x}: all must be multiples of 16"),
                lane,
            );
        }
        let (rank, offset) = self.resolve_shared(src, lane)?;
        if rank != self.rank {
            return misuse("a bulk store reads the block's own shared memory".into(), lane);
        }
        let data = self.async_read(warp, offset, size, lane, pc)?;
        let chunks = self.hold(offset, size);
        warp.bulk.push(Reading { lane, group: warp.bulk_committed[lane], chunks });
        self.write_global_row(warp, dst, &data, reduce, lane, pc)
    }

    fn write_global_row(
        &mut self,
        warp: &mut Warp,
        address: u64,
        data: &[u8],
        reduce: Option<(AtomOp, Ty)>,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        let bytes = data.len() as u32;
        let Some(i) = self.env.view.locate(address, u64::from(bytes), &mut warp.hint) else {
            return stop(FaultKind::OutOfBounds { memory: Memory::Global, address, bytes, write: true }, Some(lane));
        };
        let at = address - self.env.view.allocations[i].base;
        let mut at_lane = [0; LANES];
        at_lane[lane] = address;
        self.spare_sources(&at_lane, 1 << lane, bytes)?;
        self.global_write(warp, i, at, bytes, pc, reduce.is_some(), lane)?;
        self.counters.store_sectors += u64::from(bytes).div_ceil(32);
        self.counters.ideal_sectors += u64::from(bytes).div_ceil(32);
        let alloc = &self.env.view.allocations[i];
        match reduce {
            None => alloc.copy_in(at, data),
            Some((op, ty)) => {
                let n = ty.bytes() as usize;
                for (j, piece) in data.chunks_exact(n).enumerate() {
                    let mut b = [0; 8];
                    b[..n].copy_from_slice(piece);
                    let o = at + (j * n) as u64;
                    let old = u128::from(alloc.read(o, n as u32));
                    let new = super::atomic::apply(op, ty, old, u128::from(u64::from_le_bytes(b)), 0);
                    alloc.write(o, n as u32, new as u64);
                }
            }
        }
        Ok(())
    }

    /// Reads a tensor map from wherever its generic address points.
    fn tensor_map(&self, warp: &Warp, address: u64, lane: usize) -> Step<TensorMap> {
        let at = (address & !WINDOW_MASK) as usize;
        let space = super::special::space_of(address);
        let mut b = [0; 128];
        let found = match space {
            Space::Param => self.env.params.get(at..at + 128),
            Space::Const => self.env.constants.get(at..at + 128),
            _ => None,
        };
        if let Some(s) = found {
            b.copy_from_slice(s);
        } else if space == Space::Global {
            let Some(i) = self.env.view.locate(address, 128, &mut { warp.hint }) else {
                let kind = FaultKind::OutOfBounds { memory: Memory::Global, address, bytes: 128, write: false };
                return stop(kind, Some(lane));
            };
            let alloc = &self.env.view.allocations[i];
            alloc.copy_out(&mut b, address - alloc.base);
            if self.changed_maps.contains(&address) {
                let text =
                    format!("the tensor map at {address:#x} was changed, and no fence.proxy.tensormap acquired it");
                return misuse(text, lane);
            }
        }
        if address % 64 != 0 {
            let kind = FaultKind::Misaligned { memory: Memory::Parameter, address, bytes: 64, write: false };
            return stop(kind, Some(lane));
        }
        match TensorMap::from_bytes(&b) {
            Some(m) => Ok(m),
            None => misuse(format!("there is no tensor map at {address:#x}"), lane),
        }
    }

    /// Calls `row(shared offset of the row, address of its first element inside the tensor, first and last index inside)` for
    /// every inner row of the box at these coordinates. A row wholly outside has an empty range.
    fn rows(map: &TensorMap, coords: &[i64]) -> Vec<(u32, u64, u32, u32)> {
        let counts = map.counts();
        let es = map.ty.bytes();
        let mut out = Vec::new();
        let outer: u32 = counts[1..].iter().product();
        for r in 0..outer {
            let mut left = r;
            let mut address = map.address as i64;
            let mut inside = true;
            for d in 1..counts.len() {
                let i = left % counts[d];
                left /= counts[d];
                let c = coords[d] + i64::from(i * map.steps[d]);
                inside &= c >= 0 && c < map.dims[d] as i64;
                address = address.wrapping_add(c.wrapping_mul(map.strides[d - 1] as i64));
            }
            let fits = |i: u32| {
                let c = coords[0] + i64::from(i);
                c >= 0 && c < map.dims[0] as i64
            };
            let first = (0..counts[0]).find(|&i| inside && fits(i)).unwrap_or(counts[0]);
            let end = (first..counts[0]).find(|&i| !fits(i)).unwrap_or(counts[0]);
            let c = coords[0] + i64::from(first.min(counts[0] - 1));
            let start = address.wrapping_add(c.wrapping_mul(i64::from(es)));
            out.push((r * counts[0] * es, start as u64, first, end));
        }
        out
    }

    fn check_tile(&self, map: &TensorMap, coords: &[i64], offset: u32, lane: usize) -> Step<()> {
        if coords.len() != map.dims.len() {
            return misuse(format!("{} coordinates for a tensor of {} dimensions", coords.len(), map.dims.len()), lane);
        }
        if offset % 128 != 0 {
            let kind =
                FaultKind::Misaligned { memory: Memory::Shared, address: u64::from(offset), bytes: 128, write: true };
            return stop(kind, Some(lane));
        }
        Ok(())
    }

    pub fn tensor_load(
        &mut self,
        warp: &mut Warp,
        frame: usize,
        [dst, map, mbar]: [u64; 3],
        coords: &[i64],
        mask: u32,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        let map = self.tensor_map(warp, map, lane)?;
        let (rank, offset) = self.resolve_shared(dst, lane)?;
        let (_, mbar) = self.resolve_shared(mbar, lane)?;
        self.check_tile(&map, coords, offset, lane)?;
        let es = map.ty.bytes();
        let mut tile = vec![0u8; map.bytes() as usize];
        if map.nan_fill {
            fill_nan(&mut tile, map.ty);
        }
        let mut ranges = Vec::new();
        for (at, start, first, end) in Self::rows(&map, coords) {
            if first == end {
                continue;
            }
            let bytes = (end - first) * es;
            let row = self.global_bytes(warp, start, bytes, lane, pc)?;
            ranges.push((start, start + u64::from(bytes)));
            let to = (at + first * es) as usize;
            tile[to..to + row.len()].copy_from_slice(&row);
            self.counters.load_sectors += u64::from(bytes).div_ceil(32);
            self.counters.ideal_sectors += u64::from(bytes).div_ceil(32);
        }
        let pieces: Vec<(u32, Vec<u8>)> = if map.swizzle == Swizzle::None {
            vec![(offset, tile)]
        } else {
            let place = |i: usize| map.swizzle.apply(offset + 16 * i as u32);
            tile.chunks(16).enumerate().map(|(i, c)| (place(i), c.to_vec())).collect()
        };
        let source = self.hold_source(ranges);
        for r in self.targets(warp, frame, mask, rank, lane)? {
            let land = |(dst, data): &(u32, Vec<u8>)| Landing {
                dst: *dst,
                data: data.clone(),
                reduce: None,
                source: source.clone(),
            };
            let landings = pieces.iter().map(land).collect();
            self.send(warp, r, landings, mbar, map.bytes(), lane, pc)?;
        }
        self.seen[warp.id][warp.id] += 1;
        Ok(())
    }

    pub fn tensor_store(
        &mut self,
        warp: &mut Warp,
        [map, src]: [u64; 2],
        coords: &[i64],
        reduce: Option<AtomOp>,
        lane: usize,
        pc: u32,
    ) -> Step<()> {
        let map = self.tensor_map(warp, map, lane)?;
        let (rank, offset) = self.resolve_shared(src, lane)?;
        self.check_tile(&map, coords, offset, lane)?;
        if rank != self.rank {
            return misuse("a tensor store reads the block's own shared memory".into(), lane);
        }
        let es = map.ty.bytes();
        let total = map.bytes();
        if let Some(op) = reduce
            && !reduces(op, map.ty)
        {
            return misuse(format!("the reduction {op:?} does not exist for elements of type {:?}", map.ty), lane);
        }
        let reduce = reduce.map(|op| (op, scalar(map.ty)));
        for (at, start, first, end) in Self::rows(&map, coords) {
            if first == end {
                continue;
            }
            let mut row = Vec::new();
            for i in first..end {
                let place = map.swizzle.apply(offset + at + i * es);
                row.extend(self.async_read(warp, place, es, lane, pc)?);
            }
            self.write_global_row(warp, start, &row, reduce, lane, pc)?;
        }
        let chunks = self.hold(offset, total);
        warp.bulk.push(Reading { lane, group: warp.bulk_committed[lane], chunks });
        Ok(())
    }

    pub fn bulk_wait(&mut self, warp: &mut Warp, pending: u32, active: u32, pc: u32) {
        let committed = warp.bulk_committed;
        let over = |r: &Reading| active >> r.lane & 1 == 1 && r.group.saturating_add(pending) < committed[r.lane];
        let (done, left): (Vec<Reading>, Vec<Reading>) = std::mem::take(&mut warp.bulk).into_iter().partition(over);
        warp.bulk = left;
        self.let_go(warp, done, pc);
    }

    /// Coordinates of a lane.
    pub fn coordinates_of(&self, warp: &Warp, frame: usize, planes: &[u32], lane: usize) -> Vec<i64> {
        let p = &warp.frames[frame].planes;
        planes.iter().map(|&c| i64::from(p.get(c)[lane] as i32)).collect()
    }

    /// One lane's value of a 32-bit operand, or a default.
    pub fn scalar(&self, warp: &Warp, frame: usize, plane: u32, lane: usize, default: u32) -> u32 {
        debug_assert!(lane < LANES);
        if plane == NONE { default } else { warp.frames[frame].planes.get(plane)[lane] }
    }
}

fn fill_nan(tile: &mut [u8], ty: TensorType) {
    let pattern: &[u8] = match ty {
        TensorType::F16 => &[0xFF, 0x7F],
        TensorType::Bf16 => &[0xFF, 0x7F],
        TensorType::F64 => &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F],
        _ => &[0xFF, 0xFF, 0xFF, 0x7F],
    };
    for (i, b) in tile.iter_mut().enumerate() {
        *b = pattern[i % pattern.len()];
    }
}

/// The ISA's table of tensor reductions.
fn reduces(op: AtomOp, ty: TensorType) -> bool {
    use TensorType as T;
    match op {
        AtomOp::Add => matches!(ty, T::U32 | T::S32 | T::U64 | T::F32 | T::F16 | T::Bf16),
        AtomOp::Min | AtomOp::Max => matches!(ty, T::U32 | T::S32 | T::U64 | T::S64 | T::F16 | T::Bf16),
        AtomOp::Inc | AtomOp::Dec => ty == T::U32,
        _ => matches!(ty, T::U32 | T::S32 | T::U64 | T::S64),
    }
}

fn scalar(ty: TensorType) -> Ty {
    match ty {
        TensorType::U8 => Ty::U8,
        TensorType::U16 => Ty::U16,
        TensorType::U32 => Ty::U32,
        TensorType::S32 => Ty::S32,
        TensorType::U64 => Ty::U64,
        TensorType::S64 => Ty::S64,
        TensorType::F16 => Ty::F16,
        TensorType::F32 => Ty::F32,
        TensorType::F64 => Ty::F64,
        TensorType::Bf16 => Ty::Bf16,
    }
}
