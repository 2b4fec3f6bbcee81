//! mbarriers, and the stores that count at one.

use super::context::{Context, Res};
use super::hopper::{Hopper, addr, emit, operand};
use super::mods::Mods;
use super::program::*;
use crate::parse::ast::{Inst, Operand, Ty};

/// What an arrival at an mbarrier does besides.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    pub drop: bool,
    pub release: bool,
    /// The scope is the cluster.
    pub wide: bool,
    /// It promises not to complete the phase.
    pub incomplete: bool,
}

/// `mbarrier.test_wait` and, blocking, `mbarrier.try_wait`.
#[derive(Debug, Clone, Copy)]
pub struct MbarWait {
    pub d: u32,
    pub state: u32,
    pub parity: bool,
    pub blocking: bool,
    pub acquire: bool,
    pub wide: bool,
}

/// Spaces, sizes and the scope. True if the scope is the cluster.
fn scopes(m: &mut Mods) -> bool {
    for s in ["cta", "shared", "shared::cta", "shared::cluster", "b64"] {
        m.has(s);
    }
    m.has("cluster")
}

pub fn mbarrier(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let old = |c: &mut Context, h: Hopper| {
        c.emit(Op::Hopper(Box::new(h)), Kind::Barrier);
        Ok(())
    };
    if m.has("init") {
        scopes(m);
        let addr = addr(c, inst, 0)?;
        let count = c.src(operand(c, inst, 1)?, Ty::U32)?;
        return old(c, Hopper::MbarInit { addr, count });
    }
    if m.has("inval") {
        scopes(m);
        let addr = addr(c, inst, 0)?;
        return old(c, Hopper::MbarInval { addr });
    }
    if m.has("pending_count") {
        scopes(m);
        let a = c.src(operand(c, inst, 1)?, Ty::B64)?;
        let d = c.dst(operand(c, inst, 0)?, Ty::U32)?;
        return old(c, Hopper::MbarPending { d, a });
    }
    let (test, blocking) = (m.has("test_wait"), m.has("try_wait"));
    if test || blocking {
        let parity = m.has("parity");
        let acquire = !m.has("relaxed");
        m.has("acquire");
        let wide = scopes(m);
        let addr = addr(c, inst, 1)?;
        let state = c.src(operand(c, inst, 2)?, if parity { Ty::U32 } else { Ty::B64 })?;
        if let Some(hint) = inst.operands.get(3) {
            c.src(hint, Ty::U32)?;
        }
        let d = c.dst(operand(c, inst, 0)?, Ty::Pred)?;
        let wait = MbarWait { d, state, parity, blocking, acquire, wide };
        // Older than Hopper, but for the blocking form.
        c.needs_sm90 |= blocking;
        c.emit(Op::Hopper(Box::new(Hopper::MbarWait { addr, wait })), Kind::Barrier);
        return Ok(());
    }
    let (arrive, drop) = (m.has("arrive"), m.has("arrive_drop"));
    if arrive || drop {
        let expect_tx = m.has("expect_tx");
        let incomplete = m.has("noComplete");
        let release = !m.has("relaxed");
        m.has("release");
        let wide = scopes(m);
        // Without a destination the address comes first.
        let first = matches!(inst.operands.first(), Some(Operand::Address(..)));
        let at = usize::from(!first);
        let addr = addr(c, inst, at)?;
        let extra = match inst.operands.get(at + 1) {
            Some(o) => c.src(o, Ty::U32)?,
            None => NONE,
        };
        if expect_tx && extra == NONE {
            return c.err("expect_tx needs a byte count");
        }
        let d = match inst.operands.first() {
            Some(o @ Operand::Name(_)) => c.dst(o, Ty::B64)?,
            _ => NONE,
        };
        let (count, expect) = if expect_tx { (NONE, extra) } else { (extra, NONE) };
        let how = Arrival { drop, release, wide, incomplete };
        c.emit(Op::Hopper(Box::new(Hopper::MbarArrive { d, addr, count, expect, how })), Kind::Barrier);
        return Ok(());
    }
    let (expect, complete) = (m.has("expect_tx"), m.has("complete_tx"));
    if expect || complete {
        m.has("relaxed");
        scopes(m);
        let addr = addr(c, inst, 0)?;
        let tx = c.src(operand(c, inst, 1)?, Ty::U32)?;
        let h = if expect { Hopper::MbarExpect { addr, tx } } else { Hopper::MbarComplete { addr, tx } };
        return emit(c, h, Kind::Barrier);
    }
    c.err(format!("unknown instruction `{}`", inst.opcode))
}

/// `st.async` and `red.async`; `.async` is consumed.
pub fn async_store(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let red = m.name == "red";
    if m.has("mmio") || m.has("release") || m.has("global") {
        return c.err(format!("`{}` exists from sm_100 on", inst.opcode));
    }
    m.has("weak");
    m.has("relaxed");
    scopes(m);
    m.has("mbarrier::complete_tx::bytes");
    let count = m.one(&[("v2", 2usize), ("v4", 4)]).unwrap_or(1);
    let reduce = m.one(&[
        ("add", AtomOp::Add),
        ("min", AtomOp::Min),
        ("max", AtomOp::Max),
        ("and", AtomOp::And),
        ("or", AtomOp::Or),
        ("xor", AtomOp::Xor),
        ("inc", AtomOp::Inc),
        ("dec", AtomOp::Dec),
    ]);
    let Some(ty) = m.ty() else { return c.err(format!("`{}` names no type", inst.opcode)) };
    let legal = match (red, reduce) {
        (false, None) => matches!(ty.bytes(), 4 | 8) && !matches!(ty, Ty::Pred | Ty::F16x2 | Ty::Bf16x2),
        (true, Some(AtomOp::Add)) => count == 1 && matches!(ty, Ty::U32 | Ty::S32 | Ty::U64),
        (true, Some(AtomOp::Min | AtomOp::Max)) => count == 1 && matches!(ty, Ty::U32 | Ty::S32),
        (true, Some(AtomOp::Inc | AtomOp::Dec)) => count == 1 && ty == Ty::U32,
        (true, Some(_)) => count == 1 && ty == Ty::B32,
        _ => false,
    };
    if !legal {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    let at = addr(c, inst, 0)?;
    let values = match operand(c, inst, 1)?.clone() {
        Operand::Vector(v) => v,
        v => vec![v],
    };
    if values.len() != count {
        return c.err(format!("`{}` stores {count} values", inst.opcode));
    }
    let values = values.iter().map(|v| c.src(v, ty)).collect::<Res<Vec<u32>>>()?;
    let mbar = addr(c, inst, 2)?;
    emit(c, Hopper::AsyncStore { addr: at, values, mbar, ty, reduce }, Kind::Async)
}

pub fn cp_async_mbarrier(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    m.has("arrive");
    let noinc = m.has("noinc");
    scopes(m);
    let addr = addr(c, inst, 0)?;
    // This one is older than Hopper.
    c.emit(Op::Hopper(Box::new(Hopper::CpAsyncArrive { addr, noinc })), Kind::Async);
    Ok(())
}
