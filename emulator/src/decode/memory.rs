//! Loads, stores, atomics and asynchronous copies.

use super::context::{Context, Res, Symbol, planes_of};
use super::integer::need_ty;
use super::mods::Mods;
use super::moves::space_of;
use super::program::*;
use crate::parse::ast::{Inst, Operand, Space, Ty};

const HINTS: [&str; 17] = [
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::evict_normal",
    "L2::evict_first",
    "L2::evict_last",
    "unified",
];

/// Cache hints steer no result here. True if a cache-policy operand follows.
pub fn skip_hints(m: &mut Mods) -> bool {
    for h in HINTS {
        m.has(h);
    }
    for h in ["L2::64B", "L2::128B", "L2::256B"] {
        m.has(h);
    }
    m.has("L2::cache_hint")
}

pub fn order(m: &mut Mods) -> Order {
    let mut o = WEAK;
    m.has("weak");
    m.has("mmio");
    if m.has("volatile") || m.has("relaxed") {
        o.strong = true;
    }
    if m.has("acquire") {
        o = Order { acquire: true, strong: true, ..WEAK };
    }
    if m.has("release") {
        o = Order { release: true, strong: true, ..WEAK };
    }
    if m.has("acq_rel") || m.has("sc") {
        o = Order { acquire: true, release: true, strong: true, ..WEAK };
    }
    o.cta = m.has("cta");
    for s in ["cluster", "gpu", "sys"] {
        m.has(s);
    }
    o
}

/// Settles which memory an access goes to: parameters and results of functions live in the frame.
pub fn settle(c: &Context, space: Option<Space>, addr: Addr, symbol: Option<&Symbol>) -> Res<Space> {
    Ok(match (space, symbol) {
        (Some(Space::Param), Some(Symbol::Frame { .. })) => Space::Local,
        (Some(Space::Param), None) if !c.entry => Space::Local,
        (Some(s), Some(Symbol::Fixed { space: declared, .. })) if s != *declared => {
            return c.err(format!("the variable is in {declared:?} memory, the instruction names {s:?}"));
        }
        (Some(s), _) => s,
        (None, Some(Symbol::Fixed { space, .. })) => *space,
        (None, Some(Symbol::Frame { .. })) => Space::Local,
        (None, _) => {
            let _ = addr;
            Space::Generic
        }
    })
}

pub fn load_store(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let store = m.name == "st";
    let policy = skip_hints(m);
    if store && m.has("async") {
        return super::mbarrier::async_store(c, inst, m);
    }
    if m.has("bulk") {
        return c.err(format!("`{}` exists from sm_100 on", inst.opcode));
    }
    let space = space_of(m);
    let order = order(m);
    let count = m.one(&[("v2", 2u8), ("v4", 4), ("v8", 8)]).unwrap_or(1);
    let ty = need_ty(c, m)?;
    if inst.operands.len() != 2 + usize::from(policy) {
        return c.err(format!("`{}` takes {} operands", inst.opcode, 2 + usize::from(policy)));
    }
    let (value, address) =
        if store { (&inst.operands[1], &inst.operands[0]) } else { (&inst.operands[0], &inst.operands[1]) };
    let (addr, symbol) = c.address(address)?;
    let space = settle(c, space, addr, symbol.as_ref())?;
    let values: Vec<Operand> = match value {
        Operand::Vector(v) => v.clone(),
        v => vec![v.clone()],
    };
    if values.len() != usize::from(count) {
        return c.err(format!("`{}` moves {count} values, found {}", inst.opcode, values.len()));
    }
    let bytes = ty.bytes() * u32::from(count);
    if bytes > 32 || ty == Ty::Pred {
        return c.err(format!("`{}` moves too much", inst.opcode));
    }
    let mut regs = [NONE; 8];
    // 8- and 16-bit values may live in wider registers.
    let held = if ty.bytes() < 2 { Ty::U16 } else { ty };
    let mut planes = planes_of(ty);
    for (slot, v) in regs.iter_mut().zip(&values) {
        if store {
            *slot = c.src(v, held)?;
        } else if *v != Operand::Sink {
            *slot = c.dst(v, held)?;
            planes = planes.max(c.declared_planes(v));
        }
    }
    let all = if bytes == 32 { u32::MAX } else { (1 << bytes) - 1 };
    let mem = Mem {
        space,
        addr,
        elem: ty.bytes() as u8,
        count,
        planes: planes as u8,
        signed: ty.signed(),
        regs,
        used: inst.used_bytes.map_or(all, |u| u & all),
        order,
    };
    let kind = match (space, store) {
        (Space::Shared, false) => Kind::LoadShared,
        (Space::Shared, true) => Kind::StoreShared,
        (Space::Local, _) => Kind::Local,
        (Space::Param | Space::Const, _) => Kind::Param,
        (_, false) => Kind::LoadGlobal,
        (_, true) => Kind::StoreGlobal,
    };
    let op = if store { Op::St(Box::new(mem)) } else { Op::Ld(Box::new(mem)) };
    c.emit(op, kind);
    Ok(())
}

pub fn atomic(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let red = m.name == "red";
    let policy = skip_hints(m);
    if red && m.has("async") {
        return super::mbarrier::async_store(c, inst, m);
    }
    let space = space_of(m);
    let mut order = order(m);
    order.strong = true;
    m.has("noftz");
    let count = m.one(&[("v2", 2usize), ("v4", 4), ("v8", 8)]).unwrap_or(1);
    let op = m.one(&[
        ("add", AtomOp::Add),
        ("min", AtomOp::Min),
        ("max", AtomOp::Max),
        ("and", AtomOp::And),
        ("or", AtomOp::Or),
        ("xor", AtomOp::Xor),
        ("exch", AtomOp::Exch),
        ("cas", AtomOp::Cas),
        ("inc", AtomOp::Inc),
        ("dec", AtomOp::Dec),
    ]);
    let Some(op) = op else {
        return c.err(format!("`{}` names no operation", inst.opcode));
    };
    let ty = need_ty(c, m)?;
    let bits = matches!(ty, Ty::B32 | Ty::B64);
    let legal = match op {
        AtomOp::Add => {
            matches!(
                ty,
                Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 | Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::F32 | Ty::F64
            )
        }
        AtomOp::Min | AtomOp::Max => {
            matches!(ty, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64)
                || (count > 1 && matches!(ty, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2))
        }
        AtomOp::And | AtomOp::Or | AtomOp::Xor => bits,
        AtomOp::Exch => bits || ty == Ty::B128,
        AtomOp::Cas => bits || matches!(ty, Ty::B16 | Ty::B128),
        AtomOp::Inc | AtomOp::Dec => ty == Ty::U32,
    };
    if !legal {
        return c.err(format!("`{}` does not exist for this type", inst.opcode));
    }
    let first = usize::from(!red);
    let want = first + 2 + usize::from(op == AtomOp::Cas) + usize::from(policy);
    if inst.operands.len() != want {
        return c.err(format!("`{}` takes {want} operands, found {}", inst.opcode, inst.operands.len()));
    }
    let list = |o: &Operand| match o {
        Operand::Vector(v) => v.clone(),
        o => vec![o.clone()],
    };
    let (addr, symbol) = c.address(&inst.operands[first])?;
    let space = settle(c, space, addr, symbol.as_ref())?;
    if !matches!(space, Space::Generic | Space::Global | Space::Shared) {
        return c.err("atomics work on global and shared memory");
    }
    let mut a = Vec::new();
    for v in list(&inst.operands[first + 1]) {
        a.push(c.src(&v, ty)?);
    }
    let b = if op == AtomOp::Cas { c.src(&inst.operands[first + 2], ty)? } else { NONE };
    let mut d = Vec::new();
    if !red {
        for v in list(&inst.operands[0]) {
            d.push(c.dst(&v, ty)?);
        }
    }
    if a.len() != count || (!red && d.len() != count) {
        return c.err(format!("`{}` works on {count} values", inst.opcode));
    }
    c.emit(Op::Atom(Box::new(Atom { space, addr, op, ty, d, a, b, order })), Kind::Atomic);
    Ok(())
}

fn shared_address(c: &mut Context, op: &Operand, space: &mut Option<Space>) -> Res<Addr> {
    let (addr, symbol) = c.address(op)?;
    *space = Some(settle(c, *space, addr, symbol.as_ref())?);
    Ok(addr)
}

pub fn cp(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    if !m.has("async") {
        return c.err(format!("`{}` is not supported", inst.opcode));
    }
    if m.has("bulk") {
        return super::hopper::bulk(c, inst, m);
    }
    if m.has("mbarrier") {
        return super::mbarrier::cp_async_mbarrier(c, inst, m);
    }
    if m.has("commit_group") {
        c.emit(Op::CpCommit, Kind::Async);
        return Ok(());
    }
    if m.has("wait_all") {
        c.emit(Op::CpWait { pending: NONE }, Kind::Async);
        return Ok(());
    }
    if m.has("wait_group") {
        let Some(Operand::Int(n)) = inst.operands.first() else {
            return c.err("the number of groups must be a constant");
        };
        c.emit(Op::CpWait { pending: (*n).min(1 << 20) as u32 }, Kind::Async);
        return Ok(());
    }
    let cg = m.has("cg");
    let ca = m.has("ca");
    let policy = skip_hints(m);
    if !(m.has("shared") || m.has("shared::cta")) || !m.has("global") || !(cg || ca) {
        // `skip_hints` consumed the cache operator only when `has` above had not.
        return c.err(format!("`{}` is not a copy from global to shared memory", inst.opcode));
    }
    let n = inst.operands.len() - usize::from(policy && inst.operands.len() > 3);
    if !(3..=5).contains(&n) {
        return c.err(format!("`{}` takes 3 or 4 operands", inst.opcode));
    }
    let Operand::Int(bytes) = inst.operands[2] else {
        return c.err("the size of the copy must be a constant");
    };
    if !(bytes == 16 || (ca && matches!(bytes, 4 | 8))) {
        return c.err(format!("`{}` cannot copy {bytes} bytes", inst.opcode));
    }
    let dst = shared_address(c, &inst.operands[0], &mut Some(Space::Shared))?;
    let src = shared_address(c, &inst.operands[1], &mut Some(Space::Global))?;
    let (mut src_bytes, mut ignore) = (NONE, NONE);
    if n >= 4 {
        let pred = matches!(&inst.operands[3], Operand::Name(name)
            if matches!(c.lookup(name), Some(Symbol::Reg { ty: Ty::Pred, .. })));
        if pred {
            ignore = c.src(&inst.operands[3], Ty::Pred)?;
        } else {
            src_bytes = c.src(&inst.operands[3], Ty::U32)?;
        }
    }
    c.emit(Op::CpAsync { dst, src, bytes: bytes as u8, src_bytes, ignore }, Kind::Async);
    Ok(())
}

/// `prefetch`, `prefetchu`, `applypriority`, `discard`: they move no value a program can see.
pub fn hint(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    for p in
        ["L1", "L2", "tensormap", "global", "local", "param", "const", "L2::evict_normal", "L2::evict_last", "L2::128B"]
    {
        m.has(p);
    }
    if let Some(a @ Operand::Address(..)) = inst.operands.first() {
        c.address(&a.clone())?;
    }
    c.emit(Op::Hint, Kind::Other);
    Ok(())
}

/// `createpolicy`: a cache policy is an opaque value.
pub fn policy(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    while m.next().is_some() {}
    let Some(d) = inst.operands.first() else {
        return c.err("createpolicy has no destination");
    };
    let d = c.dst(d, Ty::B64)?;
    let zero = c.constant(0, 2);
    c.alu(crate::exec::lanes::alu!(|a: u64| -> u64 { a }), &[d], &[zero], 0, Kind::Other);
    Ok(())
}
