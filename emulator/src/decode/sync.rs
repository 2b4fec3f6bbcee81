//! Barriers, fences and warp-wide instructions.

use super::context::{Context, Res};
use super::integer::{arity, need_ty};
use super::mods::Mods;
use super::program::*;
use crate::parse::ast::{Inst, Operand, Ty};

pub fn bar(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let old = m.name == "bar";
    if m.has("warp") {
        m.has("sync");
        arity(c, inst, 1)?;
        let mask = c.src(&inst.operands[0], Ty::B32)?;
        c.emit(Op::WarpSync { mask }, Kind::Barrier);
        return Ok(());
    }
    if m.has("cluster") {
        return c.err(format!("`{}` is not supported", inst.opcode));
    }
    m.has("cta");
    let aligned = m.has("aligned") || old;
    let ops = &inst.operands;
    if m.has("red") {
        let op = m.one(&[("popc", BarOp::Popc), ("and", BarOp::And), ("or", BarOp::Or)]);
        let (Some(op), Some(ty)) = (op, m.ty()) else {
            return c.err(format!("`{}` names no reduction", inst.opcode));
        };
        if ops.len() != 3 && ops.len() != 4 {
            return c.err(format!("`{}` takes 3 or 4 operands", inst.opcode));
        }
        let id = c.src(&ops[1], Ty::U32)?;
        let count = if ops.len() == 4 { c.src(&ops[2], Ty::U32)? } else { NONE };
        let p = c.src(&ops[ops.len() - 1], Ty::Pred)?;
        let d = c.dst(&ops[0], ty)?;
        c.emit(Op::Bar(Box::new(Bar { op, aligned, id, count, d, p })), Kind::Barrier);
        return Ok(());
    }
    let Some(op) = m.one(&[("sync", BarOp::Sync), ("arrive", BarOp::Arrive)]) else {
        return c.err(format!("`{}` is not a barrier", inst.opcode));
    };
    if ops.is_empty() || ops.len() > 2 || (op == BarOp::Arrive && ops.len() != 2) {
        return c.err(format!("`{}` has the wrong number of operands", inst.opcode));
    }
    let id = c.src(&ops[0], Ty::U32)?;
    let count = if ops.len() == 2 { c.src(&ops[1], Ty::U32)? } else { NONE };
    c.emit(Op::Bar(Box::new(Bar { op, aligned, id, count, d: NONE, p: NONE })), Kind::Barrier);
    Ok(())
}

pub fn fence(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    if m.name == "membar" {
        let fence = m.one(&[("cta", Fence::Cta), ("gl", Fence::Gpu), ("sys", Fence::Gpu)]);
        let Some(fence) = fence else {
            return c.err(format!("`{}` is not supported", inst.opcode));
        };
        c.emit(Op::Fence(fence), Kind::Barrier);
        return Ok(());
    }
    if m.has("mbarrier_init") {
        m.has("release");
        m.has("cluster");
        c.emit(Op::Fence(Fence::MbarrierInit), Kind::Barrier);
        return Ok(());
    }
    if m.has("proxy") {
        if m.has("async") || m.has("async::global") || m.has("async::shared::cta") || m.has("async::shared::cluster") {
            m.has("global");
            m.has("shared::cta");
            c.emit(Op::Fence(Fence::ProxyAsync), Kind::Barrier);
            return Ok(());
        }
        if m.has("tensormap::generic") {
            return super::tensormap::fence(c, inst, m);
        }
        if m.has("alias") {
            c.emit(Op::Fence(Fence::Other), Kind::Barrier);
            return Ok(());
        }
        return c.err(format!("`{}` is not supported", inst.opcode));
    }
    for s in ["sc", "acq_rel", "acquire", "release", "sync_restrict::shared::cta", "sync_restrict::shared::cluster"] {
        m.has(s);
    }
    let fence = m.one(&[("cta", Fence::Cta), ("cluster", Fence::Cluster), ("gpu", Fence::Gpu), ("sys", Fence::Gpu)]);
    let Some(fence) = fence else {
        return c.err(format!("`{}` names no scope", inst.opcode));
    };
    c.emit(Op::Fence(fence), Kind::Barrier);
    Ok(())
}

pub fn shfl(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    if !m.has("sync") {
        return c.err("the form without .sync does not exist on these architectures");
    }
    let mode =
        m.one(&[("up", ShflMode::Up), ("down", ShflMode::Down), ("bfly", ShflMode::Bfly), ("idx", ShflMode::Idx)]);
    let (Some(mode), Some(ty)) = (mode, m.ty()) else {
        return c.err(format!("`{}` names no mode", inst.opcode));
    };
    arity(c, inst, 5)?;
    if ty != Ty::B32 {
        return c.err(format!("`{}` does not exist for this type", inst.opcode));
    }
    let (d, p) = pair(&inst.operands[0]);
    let a = c.src(&inst.operands[1], Ty::B32)?;
    let b = c.src(&inst.operands[2], Ty::B32)?;
    let clamp = c.src(&inst.operands[3], Ty::B32)?;
    let mask = c.src(&inst.operands[4], Ty::B32)?;
    let d = c.dst(&d, Ty::B32)?;
    let p = match p {
        Some(p) => c.dst(&p, Ty::Pred)?,
        None => NONE,
    };
    c.emit(Op::Shfl { mode, d, p, a, b, c: clamp, mask }, Kind::Warp);
    Ok(())
}

fn pair(op: &Operand) -> (Operand, Option<Operand>) {
    match op {
        Operand::Pair(d, p) => ((**d).clone(), Some((**p).clone())),
        d => (d.clone(), None),
    }
}

pub fn vote(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    if !m.has("sync") {
        return c.err("the form without .sync does not exist on these architectures");
    }
    let mode =
        m.one(&[("all", VoteMode::All), ("any", VoteMode::Any), ("uni", VoteMode::Uni), ("ballot", VoteMode::Ballot)]);
    let (Some(mode), Some(ty)) = (mode, m.ty()) else {
        return c.err(format!("`{}` names no mode", inst.opcode));
    };
    arity(c, inst, 3)?;
    let (p, negate) = match &inst.operands[1] {
        Operand::Not(inner) => ((**inner).clone(), true),
        p => (p.clone(), false),
    };
    let p = c.src(&p, Ty::Pred)?;
    let mask = c.src(&inst.operands[2], Ty::B32)?;
    let d = c.dst(&inst.operands[0], ty)?;
    c.emit(Op::Vote { mode, d, p, negate, mask }, Kind::Warp);
    Ok(())
}

pub fn matching(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let all = m.has("all");
    let any = m.has("any");
    m.has("sync");
    let ty = need_ty(c, m)?;
    arity(c, inst, 3)?;
    if all == any || !matches!(ty, Ty::B32 | Ty::B64) {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    let (d, p) = pair(&inst.operands[0]);
    let a = c.src(&inst.operands[1], ty)?;
    let mask = c.src(&inst.operands[2], Ty::B32)?;
    let d = c.dst(&d, Ty::B32)?;
    let p = match p {
        Some(p) => c.dst(&p, Ty::Pred)?,
        None => NONE,
    };
    c.emit(Op::Match { all, wide: ty == Ty::B64, d, p, a, mask }, Kind::Warp);
    Ok(())
}

pub fn redux(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    m.has("sync");
    let op = m.one(&[
        ("add", ReduxOp::Add),
        ("min", ReduxOp::Min),
        ("max", ReduxOp::Max),
        ("and", ReduxOp::And),
        ("or", ReduxOp::Or),
        ("xor", ReduxOp::Xor),
    ]);
    let (Some(op), Some(ty)) = (op, m.ty()) else {
        return c.err(format!("`{}` names no operation", inst.opcode));
    };
    arity(c, inst, 3)?;
    let bitwise = matches!(op, ReduxOp::And | ReduxOp::Or | ReduxOp::Xor);
    if !(if bitwise { ty == Ty::B32 } else { matches!(ty, Ty::U32 | Ty::S32) }) {
        return c.err(format!("`{}` does not exist for this type", inst.opcode));
    }
    let a = c.src(&inst.operands[1], ty)?;
    let mask = c.src(&inst.operands[2], Ty::B32)?;
    let d = c.dst(&inst.operands[0], ty)?;
    c.emit(Op::Redux { op, signed: ty.signed(), d, a, mask }, Kind::Warp);
    Ok(())
}

pub fn elect(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    m.has("sync");
    arity(c, inst, 2)?;
    c.needs_sm90 = true;
    let mask = c.src(&inst.operands[1], Ty::B32)?;
    let (d, p) = pair(&inst.operands[0]);
    let Some(p) = p else {
        return c.err("elect.sync writes `d|p`");
    };
    let d = c.dst(&d, Ty::B32)?;
    let p = c.dst(&p, Ty::Pred)?;
    c.emit(Op::Elect { d, p, mask }, Kind::Warp);
    Ok(())
}

pub fn activemask(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    need_ty(c, m)?;
    arity(c, inst, 1)?;
    let d = c.dst(&inst.operands[0], Ty::B32)?;
    c.emit(Op::ActiveMask { d }, Kind::Warp);
    Ok(())
}
