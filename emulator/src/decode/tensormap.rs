//! Tensor maps that a kernel changes: `tensormap.replace`, the copy to global memory, and the fence before their use.

use super::context::{Context, Res};
use super::hopper::Hopper;
use super::integer::arity;
use super::mods::Mods;
use super::moves::space_of;
use super::program::*;
use crate::parse::ast::{Inst, Operand, Space, Ty};

/// What `tensormap.replace` changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Address,
    Rank,
    Box,
    Dim,
    Stride,
    Step,
    Element,
    Interleave,
    Swizzle,
    Fill,
}

pub fn decode(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let refuse = |c: &Context| c.err(format!("`{}` does not exist in this form", inst.opcode));
    if m.has("cp_fenceproxy") {
        let from = m.has("global") & m.has("shared::cta") & m.has("tensormap::generic") & m.has("release");
        let scope = ["cta", "cluster", "gpu", "sys"].iter().any(|s| m.has(s));
        arity(c, inst, 3)?;
        if !(from && scope && m.has("sync") && m.has("aligned")) || inst.operands[2] != Operand::Int(128) {
            return refuse(c);
        }
        let (dst, _) = c.address(&inst.operands[0])?;
        let (src, _) = c.address(&inst.operands[1])?;
        c.emit(Op::Hopper(Box::new(Hopper::MapCopy { dst, src })), Kind::Async);
        return Ok(());
    }
    let field = m.one(&[
        ("global_address", Field::Address),
        ("rank", Field::Rank),
        ("box_dim", Field::Box),
        ("global_dim", Field::Dim),
        ("global_stride", Field::Stride),
        ("element_stride", Field::Step),
        ("elemtype", Field::Element),
        ("interleave_layout", Field::Interleave),
        ("swizzle_mode", Field::Swizzle),
        ("fill_mode", Field::Fill),
    ]);
    let whole = m.has("replace") & m.has("tile") & m.has("b1024");
    let space = space_of(m).unwrap_or(Space::Generic);
    let (Some(field), Some(ty), true) = (field, m.ty(), whole) else { return refuse(c) };
    let wide = matches!(field, Field::Address | Field::Stride);
    let ordinal = matches!(field, Field::Box | Field::Dim | Field::Stride | Field::Step);
    arity(c, inst, 2 + usize::from(ordinal))?;
    if ty != (if wide { Ty::B64 } else { Ty::B32 }) {
        return refuse(c);
    }
    let ord = match (ordinal, &inst.operands[1]) {
        (false, _) => 0,
        (true, Operand::Int(n)) if *n < 5 => *n as u32,
        _ => return c.err("the ordinal of a tensor map's field is a constant from 0 to 4"),
    };
    let value = &inst.operands[inst.operands.len() - 1];
    let fixed = matches!(field, Field::Element | Field::Interleave | Field::Swizzle | Field::Fill);
    if fixed && !matches!(value, Operand::Int(_)) {
        return c.err(format!("the new value of `{}` must be a constant", inst.opcode));
    }
    let value = c.src(&value.clone(), ty)?;
    let (addr, _) = c.address(&inst.operands[0])?;
    c.emit(Op::Hopper(Box::new(Hopper::MapReplace { addr, space, field, ord, value })), Kind::Async);
    Ok(())
}

/// `fence.proxy.tensormap::generic`: a release is an ordinary fence, an acquire names the map.
pub fn fence(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let (release, acquire) = (m.has("release"), m.has("acquire"));
    let scope = m.one(&[("cta", Fence::Cta), ("cluster", Fence::Cluster), ("gpu", Fence::Gpu), ("sys", Fence::Gpu)]);
    let (Some(scope), true) = (scope, release != acquire) else {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    };
    if release {
        c.emit(Op::Fence(scope), Kind::Barrier);
        return Ok(());
    }
    arity(c, inst, 2)?;
    let (addr, _) = c.address(&inst.operands[0])?;
    c.emit(Op::Hopper(Box::new(Hopper::MapAcquire { addr })), Kind::Barrier);
    Ok(())
}
