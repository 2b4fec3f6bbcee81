//! `ldmatrix`, `stmatrix`, `movmatrix`: 8 × 8 tiles of 16-bit elements, one row of 16 bytes from each of eight lanes.

use super::block::{Block, Step, stop};
use super::lanes::{LANES, Plane};
use super::step::Flow;
use super::traffic;
use super::warp::Warp;
use crate::check::fault::FaultKind;
use crate::decode::program::*;
use crate::memory::shared::INIT;
use crate::parse::ast::Space;

impl Block<'_> {
    /// True when every lane of the warp takes part, which `.aligned` demands.
    pub fn whole_warp(&mut self, warp: &Warp, gi: usize, active: u32) -> Step<Option<Flow>> {
        if active == u32::MAX {
            return Ok(None);
        }
        let g = warp.groups[gi];
        if active == g.mask && g.mask != warp.alive {
            return self.converge(warp, gi, warp.alive).map(Some);
        }
        stop(
            FaultKind::Divergent { arrived: active, expected: u32::MAX },
            Some((!active).trailing_zeros() as usize & 31),
        )
    }

    pub fn load_matrix(
        &mut self,
        warp: &mut Warp,
        gi: usize,
        (count, trans): (u8, bool),
        d: &[u32; 4],
        addr: &Addr,
        space: Space,
        active: u32,
        pc: u32,
    ) -> Step<Flow> {
        if let Some(flow) = self.whole_warp(warp, gi, active)? {
            return Ok(flow);
        }
        let frame = warp.groups[gi].frame as usize;
        let a = self.shared_rows(warp, frame, addr, space);
        let me = warp.id;
        for j in 0..count as usize {
            let mut rows = [[0u32; 4]; 8];
            let mut offsets = [0u32; LANES];
            for r in 0..8 {
                let lane = j * 8 + r;
                let offset = self.shared_check(a[lane], 16, lane, false)?;
                self.shared_read(me, offset, 16, 0xFFFF, pc, lane)?;
                offsets[r] = offset;
                for (w, slot) in rows[r].iter_mut().enumerate() {
                    *slot = self.shared.read(offset + 4 * w as u32, 4) as u32;
                }
            }
            let (total, conflicts) = traffic::wavefronts(&offsets, 0xFF, 16);
            self.counters.shared_wavefronts += total;
            self.counters.bank_conflicts += conflicts;
            let mut out: Plane = [0; LANES];
            for (l, slot) in out.iter_mut().enumerate() {
                *slot = if trans {
                    let half = |row: usize| rows[row][(l / 4) / 2] >> (16 * ((l / 4) % 2)) & 0xFFFF;
                    half(2 * (l % 4)) | half(2 * (l % 4) + 1) << 16
                } else {
                    rows[l / 4][l % 4]
                };
            }
            if d[j] != NONE {
                warp.frames[frame].planes.put(d[j], &out, u32::MAX);
            }
        }
        Ok(Flow::Next)
    }

    pub fn store_matrix(
        &mut self,
        warp: &mut Warp,
        gi: usize,
        (count, trans): (u8, bool),
        s: &[u32; 4],
        addr: &Addr,
        space: Space,
        active: u32,
        pc: u32,
    ) -> Step<Flow> {
        if let Some(flow) = self.whole_warp(warp, gi, active)? {
            return Ok(flow);
        }
        let frame = warp.groups[gi].frame as usize;
        let a = self.shared_rows(warp, frame, addr, space);
        let me = warp.id;
        for j in 0..count as usize {
            let v = *warp.frames[frame].planes.get(s[j]);
            let mut offsets = [0u32; LANES];
            for r in 0..8 {
                let lane = j * 8 + r;
                let offset = self.shared_check(a[lane], 16, lane, true)?;
                self.shared_write(me, offset, 16, pc, false, lane)?;
                offsets[r] = offset;
                for w in 0..4usize {
                    let word = if trans {
                        let half = |col: usize| v[col * 4 + r / 2] >> (16 * (r % 2)) & 0xFFFF;
                        half(2 * w) | half(2 * w + 1) << 16
                    } else {
                        v[r * 4 + w]
                    };
                    self.shared.write(offset + 4 * w as u32, 4, u64::from(word));
                }
                self.shared.set_state(offset, 16, INIT);
            }
            let (total, conflicts) = traffic::wavefronts(&offsets, 0xFF, 16);
            self.counters.shared_wavefronts += total;
            self.counters.bank_conflicts += conflicts;
        }
        Ok(Flow::Next)
    }

    pub fn move_matrix(&mut self, warp: &mut Warp, gi: usize, d: u32, a: u32, active: u32) -> Step<Flow> {
        if let Some(flow) = self.whole_warp(warp, gi, active)? {
            return Ok(flow);
        }
        let frame = warp.groups[gi].frame as usize;
        let v = *warp.frames[frame].planes.get(a);
        let mut out: Plane = [0; LANES];
        for (l, slot) in out.iter_mut().enumerate() {
            let (row, pair) = (l / 4, l % 4);
            let half = |from: usize| v[from * 4 + row / 2] >> (16 * (row % 2)) & 0xFFFF;
            *slot = half(2 * pair) | half(2 * pair + 1) << 16;
        }
        warp.frames[frame].planes.put(d, &out, u32::MAX);
        Ok(Flow::Next)
    }
}
