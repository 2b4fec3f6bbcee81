//! Special registers, address conversions, groups that must converge.

use super::block::Block;
use super::lanes::LANES;
use super::step::Flow;
use super::warp::{Wait, Warp, lanes};
use crate::decode::program::*;
use crate::parse::ast::Space;

/// The window a generic address points into.
pub fn space_of(address: u64) -> Space {
    match address & WINDOW_MASK {
        SHARED_WINDOW => Space::Shared,
        LOCAL_WINDOW => Space::Local,
        CONST_WINDOW => Space::Const,
        PARAM_WINDOW => Space::Param,
        _ => Space::Global,
    }
}

fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Const => CONST_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Generic => 0,
    }
}

impl Block<'_> {
    /// Waits until all the lanes asked for stand here.
    pub fn converge(&mut self, warp: &Warp, gi: usize, wanted: u32) -> super::block::Step<Flow> {
        debug_assert!(wanted & !warp.groups[gi].mask != 0);
        Ok(Flow::Retry(Wait::Converge))
    }

    pub fn special(&self, warp: &mut Warp, frame: usize, d: u32, which: Special, planes: u8, active: u32) {
        let e = self.env;
        let axis = |v: [u32; 3], a: u8| u64::from(v[a as usize % 3]);
        let clock = warp.executed + self.executed;
        let lane_mask = |l: usize, which: Special| {
            let bit = 1u64 << l;
            match which {
                Special::LaneMaskEq => bit,
                Special::LaneMaskLt => bit - 1,
                Special::LaneMaskLe => bit * 2 - 1,
                Special::LaneMaskGe => 0xFFFF_FFFF & !(bit - 1),
                _ => 0xFFFF_FFFF & !(bit * 2 - 1),
            }
        };
        let mut v = [0u64; LANES];
        for (l, slot) in v.iter_mut().enumerate() {
            let t = (warp.id * 32 + l) as u32;
            *slot = match which {
                Special::Tid(0) => u64::from(t % e.block[0]),
                Special::Tid(1) => u64::from(t / e.block[0] % e.block[1]),
                Special::Tid(_) => u64::from(t / (e.block[0] * e.block[1])),
                Special::Ntid(a) => axis(e.block, a),
                Special::Ctaid(a) => axis(self.ctaid, a),
                Special::Nctaid(a) => axis(e.grid, a),
                Special::LaneId => l as u64,
                Special::WarpId => warp.id as u64,
                Special::NWarpId => 64,
                Special::SmId => self.index % 132,
                Special::NSmId => 132,
                Special::GridId => 1,
                Special::LaneMaskEq
                | Special::LaneMaskLt
                | Special::LaneMaskLe
                | Special::LaneMaskGe
                | Special::LaneMaskGt => lane_mask(l, which),
                Special::Clock | Special::Clock64 | Special::GlobalTimer | Special::GlobalTimerLo => clock,
                Special::ClockHi | Special::GlobalTimerHi => clock >> 32,
                Special::DynamicSmem => u64::from(e.shared_bytes),
                Special::TotalSmem => self.shared.data.len() as u64 - u64::from(SHARED_START),
                Special::ClusterId(a) => axis(self.ctaid, a) / axis(e.cluster, a),
                Special::NClusterId(a) => axis(e.grid, a) / axis(e.cluster, a),
                Special::ClusterCtaId(a) => axis(self.ctaid, a) % axis(e.cluster, a),
                Special::ClusterCtaRank => self.rank as u64,
                Special::Fixed(v) => u64::from(v),
                Special::IsExplicitCluster => u64::from(self.peers.len() > 1),
                Special::ClusterNCtaId(a) => axis(e.cluster, a),
                Special::ClusterNCtaRank => self.peers.len() as u64,
            };
        }
        let p = &mut warp.frames[frame].planes;
        p.put(d, &v.map(|x| x as u32), active);
        if planes >= 2 {
            p.put(d + 1, &v.map(|x| (x >> 32) as u32), active);
        }
    }

    pub fn cvta(&self, warp: &mut Warp, frame: usize, d: u32, a: u32, space: Space, to: bool, active: u32) {
        let p = &mut warp.frames[frame].planes;
        let w = window(space);
        for l in lanes(active) {
            let v = p.u64_at(a, l);
            let out = if !to {
                v | w
            } else if v & WINDOW_MASK == w {
                v & !WINDOW_MASK
            } else {
                // Not an address of that space: any use of it must fault.
                v
            };
            p.set_u64(d, l, out);
        }
    }

    pub fn is_space(&self, warp: &mut Warp, frame: usize, d: u32, a: u32, space: Space, active: u32) {
        let p = &mut warp.frames[frame].planes;
        let mut m = 0;
        for l in lanes(active) {
            m |= u32::from(space_of(p.u64_at(a, l)) == space) << l;
        }
        p.set_mask(d, m, active);
    }
}
