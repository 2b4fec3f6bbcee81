//! Instructions that exist from sm_90 on: mbarriers, bulk and tensor copies, `wgmma`, clusters.

use super::context::{Context, Res};
use super::matrix::{elem, elem_bits};
use super::mbarrier::{Arrival, MbarWait};
use super::mods::Mods;
use super::program::*;
use super::tensormap::Field;
use crate::parse::ast::{Inst, Operand, Space, Ty};

#[derive(Debug, Clone)]
pub enum Hopper {
    /// `griddepcontrol`: launches run one after another here, so both forms are already satisfied.
    GridDependency,
    SetMaxNreg {
        increase: bool,
        wanted: u32,
    },
    MbarInit {
        addr: Addr,
        count: u32,
    },
    MbarInval {
        addr: Addr,
    },
    MbarArrive {
        d: u32,
        addr: Addr,
        count: u32,
        expect: u32,
        how: Arrival,
    },
    MbarExpect {
        addr: Addr,
        tx: u32,
    },
    MbarComplete {
        addr: Addr,
        tx: u32,
    },
    MbarWait {
        addr: Addr,
        wait: MbarWait,
    },
    MbarPending {
        d: u32,
        a: u32,
    },
    CpAsyncArrive {
        addr: Addr,
        noinc: bool,
    },
    BulkLoad {
        dst: Addr,
        src: Addr,
        size: u32,
        mbar: Addr,
        mask: u32,
    },
    BulkPeer {
        dst: Addr,
        src: Addr,
        size: u32,
        mbar: Addr,
    },
    BulkStore {
        dst: Addr,
        src: Addr,
        size: u32,
        reduce: Option<(AtomOp, Ty)>,
    },
    TensorLoad {
        dst: Addr,
        map: Addr,
        coords: Vec<u32>,
        mbar: Addr,
        mask: u32,
    },
    TensorStore {
        map: Addr,
        coords: Vec<u32>,
        src: Addr,
        reduce: Option<AtomOp>,
    },
    /// A hint: its address must make sense, nothing is read. A tensor map where there are coordinates.
    Prefetch {
        addr: Addr,
        size: u32,
        coords: Vec<u32>,
    },
    MapReplace {
        addr: Addr,
        space: Space,
        field: Field,
        ord: u32,
        value: u32,
    },
    MapCopy {
        dst: Addr,
        src: Addr,
    },
    MapAcquire {
        addr: Addr,
    },
    BulkCommit,
    BulkWait {
        pending: u32,
    },
    WgFence,
    WgCommit,
    WgWait {
        pending: u32,
    },
    Wgmma(Box<Wgmma>),
    Mapa {
        d: u32,
        a: u32,
        b: u32,
        planes: u8,
        generic: bool,
    },
    CtaRank {
        d: u32,
        a: u32,
        planes: u8,
    },
    ClusterArrive {
        aligned: bool,
        release: bool,
    },
    ClusterWait {
        aligned: bool,
    },
    /// `st.async`, and `red.async` where there is an operation.
    AsyncStore {
        addr: Addr,
        values: Vec<u32>,
        mbar: Addr,
        ty: Ty,
        reduce: Option<AtomOp>,
    },
}

#[derive(Debug, Clone)]
pub struct Wgmma {
    pub n: usize,
    pub k: usize,
    pub a_elem: Elem,
    pub b_elem: Elem,
    pub acc: Acc,
    pub satfinite: bool,
    pub d: Vec<u32>,
    /// A in registers, or one descriptor.
    pub a: Vec<u32>,
    pub a_descriptor: bool,
    pub b: u32,
    /// Predicate: false makes D = A·B.
    pub scale_d: u32,
    pub negate_a: bool,
    pub negate_b: bool,
    /// A is M-major, B is N-major.
    pub trans_a: bool,
    pub trans_b: bool,
}

pub(super) fn emit(c: &mut Context, h: Hopper, kind: Kind) -> Res<()> {
    c.needs_sm90 = true;
    c.emit(Op::Hopper(Box::new(h)), kind);
    Ok(())
}

pub(super) fn operand<'i>(c: &Context, inst: &'i Inst, i: usize) -> Res<&'i Operand> {
    match inst.operands.get(i) {
        Some(o) => Ok(o),
        None => c.err(format!("`{}` has too few operands", inst.opcode)),
    }
}

pub(super) fn addr(c: &mut Context, inst: &Inst, i: usize) -> Res<Addr> {
    let o = operand(c, inst, i)?.clone();
    Ok(c.address(&o)?.0)
}

/// The bulk forms of `cp.async`, `cp.reduce.async`; `.async` is consumed.
pub fn bulk(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    if m.has("commit_group") {
        return emit(c, Hopper::BulkCommit, Kind::Async);
    }
    if m.has("wait_group") {
        m.has("read");
        let Operand::Int(n) = *operand(c, inst, 0)? else {
            return c.err("the number of groups must be a constant");
        };
        return emit(c, Hopper::BulkWait { pending: n.min(1 << 20) as u32 }, Kind::Async);
    }
    let reducing = m.has("reduce");
    let reduce = if reducing {
        m.one(&[
            ("add", AtomOp::Add),
            ("min", AtomOp::Min),
            ("max", AtomOp::Max),
            ("and", AtomOp::And),
            ("or", AtomOp::Or),
            ("xor", AtomOp::Xor),
            ("inc", AtomOp::Inc),
            ("dec", AtomOp::Dec),
        ])
    } else {
        None
    };
    if reducing && reduce.is_none() {
        return c.err(format!("`{}` names no operation", inst.opcode));
    }
    let policy = m.has("L2::cache_hint");
    let to_group = m.has("bulk_group");
    let to_barrier = m.has("mbarrier::complete_tx::bytes");
    let multicast = m.has("multicast::cluster");
    let prefetch = m.has("prefetch");
    // The spaces appear in the order destination, source.
    let tensor = m.has("tensor");
    let dims = m.one(&[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]).unwrap_or(0);
    m.has("tile");
    let (cta, cluster, global) = (m.has("shared::cta"), m.has("shared::cluster"), m.has("global"));
    let _ = policy;
    m.has("L2");
    if tensor {
        let coords = |c: &mut Context, o: &Operand| -> Res<(Addr, Vec<u32>)> {
            let Operand::Address(map, rest) = o else { return c.err("expected [tensorMap, {coordinates}]") };
            let (map, _) = c.address_of(map)?;
            let Some(Operand::Vector(v)) = rest.first() else { return c.err("expected [tensorMap, {coordinates}]") };
            if v.len() != dims {
                return c.err(format!("`{}` wants {dims} coordinates", inst.opcode));
            }
            let v = v.clone();
            Ok((map, v.iter().map(|x| c.src(x, Ty::S32)).collect::<Res<Vec<u32>>>()?))
        };
        if prefetch && global {
            let (map, coords) = coords(c, operand(c, inst, 0)?)?;
            return emit(c, Hopper::Prefetch { addr: map, size: NONE, coords }, Kind::Async);
        }
        if to_barrier && global && (cta || cluster) && reduce.is_none() {
            let dst = addr(c, inst, 0)?;
            let (map, coords) = coords(c, operand(c, inst, 1)?)?;
            let mbar = addr(c, inst, 2)?;
            let mask = if multicast { c.src(operand(c, inst, 3)?, Ty::U16)? } else { NONE };
            return emit(c, Hopper::TensorLoad { dst, map, coords, mbar, mask }, Kind::Async);
        }
        if to_group && global && cta {
            let (map, coords) = coords(c, operand(c, inst, 0)?)?;
            let src = addr(c, inst, 1)?;
            return emit(c, Hopper::TensorStore { map, coords, src, reduce }, Kind::Async);
        }
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    let reduce = match reduce {
        Some(op) => {
            m.has("noftz");
            match m.ty() {
                Some(t) => Some((op, t)),
                None => return c.err(format!("`{}` names no type", inst.opcode)),
            }
        }
        None => None,
    };
    let dst = addr(c, inst, 0)?;
    if prefetch && global {
        let size = c.src(operand(c, inst, 1)?, Ty::U32)?;
        return emit(c, Hopper::Prefetch { addr: dst, size, coords: Vec::new() }, Kind::Async);
    }
    let src = addr(c, inst, 1)?;
    let size = c.src(operand(c, inst, 2)?, Ty::U32)?;
    if to_barrier && global && reduce.is_none() {
        let mbar = addr(c, inst, 3)?;
        let mask = if multicast { c.src(operand(c, inst, 4)?, Ty::U16)? } else { NONE };
        return emit(c, Hopper::BulkLoad { dst, src, size, mbar, mask }, Kind::Async);
    }
    if to_barrier && cta && cluster && reduce.is_none() {
        let mbar = addr(c, inst, 3)?;
        return emit(c, Hopper::BulkPeer { dst, src, size, mbar }, Kind::Async);
    }
    if to_group && global && cta {
        return emit(c, Hopper::BulkStore { dst, src, size, reduce }, Kind::Async);
    }
    c.err(format!("`{}` does not exist in this form", inst.opcode))
}

pub fn cluster(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    match m.name {
        "barrier" => {
            let aligned = m.has("aligned");
            if m.has("arrive") {
                let release = !m.has("relaxed");
                m.has("release");
                return emit(c, Hopper::ClusterArrive { aligned, release }, Kind::Barrier);
            }
            if m.has("wait") {
                m.has("acquire");
                return emit(c, Hopper::ClusterWait { aligned }, Kind::Barrier);
            }
            c.err(format!("unknown instruction `{}`", inst.opcode))
        }
        "mapa" => {
            let generic = !m.has("shared::cluster");
            let Some(ty) = m.ty() else { return c.err("mapa names no type") };
            let a = c.src(operand(c, inst, 1)?, ty)?;
            let b = c.src(operand(c, inst, 2)?, Ty::U32)?;
            let d = c.dst(operand(c, inst, 0)?, ty)?;
            emit(c, Hopper::Mapa { d, a, b, planes: ty.bytes() as u8 / 4, generic }, Kind::Integer)
        }
        _ => {
            m.has("shared::cluster");
            let Some(ty) = m.ty() else { return c.err("getctarank names no type") };
            let a = c.src(operand(c, inst, 1)?, ty)?;
            let d = c.dst(operand(c, inst, 0)?, Ty::U32)?;
            emit(c, Hopper::CtaRank { d, a, planes: ty.bytes() as u8 / 4 }, Kind::Integer)
        }
    }
}

pub fn setmaxnreg(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let (increase, decrease) = (m.has("inc"), m.has("dec"));
    if increase == decrease || !(m.has("sync") & m.has("aligned") & m.has("u32")) {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    match inst.operands.first() {
        Some(Operand::Int(n)) if (24..=256).contains(n) && n % 8 == 0 => {
            emit(c, Hopper::SetMaxNreg { increase, wanted: *n as u32 }, Kind::Other)
        }
        _ => c.err("the register count must be a multiple of 8 from 24 to 256"),
    }
}

pub fn wgmma(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let refuse = |c: &Context| c.err(format!("`{}` does not exist in this form", inst.opcode));
    if m.has("fence") || m.has("commit_group") || m.has("wait_group") {
        let which = inst.opcode.split('.').nth(1).unwrap_or("");
        m.has("sync");
        m.has("aligned");
        let h = match which {
            "fence" => Hopper::WgFence,
            "commit_group" => Hopper::WgCommit,
            _ => {
                let Operand::Int(n) = *operand(c, inst, 0)? else {
                    return c.err("the number of groups must be a constant");
                };
                Hopper::WgWait { pending: n.min(1 << 20) as u32 }
            }
        };
        return emit(c, h, Kind::Matrix);
    }
    if m.has("sp") {
        return c.err(format!("`{}`: sparse matrices are not covered", inst.opcode));
    }
    if !(m.has("mma_async") & m.has("sync") & m.has("aligned")) {
        return refuse(c);
    }
    let satfinite = m.has("satfinite");
    let shape = m.next().and_then(|s| {
        let (n, k) = s.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse::<usize>().ok()?, k.parse::<usize>().ok()?))
    });
    let (Some((n, k)), Some(acc), Some(a_elem), Some(b_elem)) =
        (shape, m.next(), m.next().and_then(elem), m.next().and_then(elem))
    else {
        return refuse(c);
    };
    let acc = match acc {
        "f32" => Acc::F32,
        "f16" => Acc::F16,
        "s32" => Acc::S32,
        _ => return refuse(c),
    };
    let fp8 = |e| matches!(e, Elem::E4m3 | Elem::E5m2);
    let int8 = |e| matches!(e, Elem::S8 | Elem::U8);
    let legal = match (a_elem, b_elem, acc) {
        (Elem::F16, Elem::F16, Acc::F32 | Acc::F16) | (Elem::Bf16, Elem::Bf16, Acc::F32) => k == 16,
        (Elem::Tf32, Elem::Tf32, Acc::F32) => k == 8,
        (a, b, Acc::F32 | Acc::F16) if fp8(a) && fp8(b) => k == 32,
        (a, b, Acc::S32) if int8(a) && int8(b) => k == 32 && (n <= 24 || n % 16 == 0),
        (Elem::B1, Elem::B1, Acc::S32) => {
            k == 256 && (n <= 24 || n % 16 == 0) && !satfinite && m.has("and") && m.has("popc")
        }
        _ => false,
    };
    let legal = legal && (acc == Acc::S32 || !satfinite);
    if !legal || n == 0 || n % 8 != 0 || n > 256 {
        return refuse(c);
    }
    let float = acc != Acc::S32;
    let half = elem_bits(a_elem) == 16;
    // Single bits are read as bytes of eight.
    let k = if a_elem == Elem::B1 { 32 } else { k };
    let Operand::Vector(d_ops) = operand(c, inst, 0)?.clone() else { return refuse(c) };
    let (a_ops, a_descriptor) = match operand(c, inst, 1)? {
        Operand::Vector(v) => (v.clone(), false),
        o => (vec![o.clone()], true),
    };
    let want = 4 + if float { 2 } else { 0 } + if half { 1 + usize::from(a_descriptor) } else { 0 };
    let regs = if acc == Acc::F16 { n / 4 } else { n / 2 };
    if inst.operands.len() != want || d_ops.len() != regs || (!a_descriptor && a_ops.len() != 4) {
        return refuse(c);
    }
    let acc_ty = if acc == Acc::F32 { Ty::F32 } else { Ty::B32 };
    let a_ty = if a_descriptor { Ty::B64 } else { Ty::B32 };
    let a = a_ops.iter().map(|o| c.src(o, a_ty)).collect::<Res<Vec<u32>>>()?;
    let b = c.src(operand(c, inst, 2)?, Ty::B64)?;
    let scale_d = c.src(operand(c, inst, 3)?, Ty::Pred)?;
    let constant = |c: &Context, i: usize, legal: [i64; 2]| -> Res<bool> {
        match operand(c, inst, i)? {
            Operand::Int(v) if legal.contains(&(*v as i64)) => Ok(*v as i64 == legal[1]),
            _ => c.err(format!("operand {i} of wgmma must be {} or {}", legal[0], legal[1])),
        }
    };
    let (mut negate_a, mut negate_b, mut trans_a, mut trans_b) = (false, false, false, false);
    if float {
        negate_a = constant(c, 4, [1, -1])?;
        negate_b = constant(c, 5, [1, -1])?;
    }
    if half {
        if a_descriptor {
            trans_a = constant(c, 6, [0, 1])?;
            trans_b = constant(c, 7, [0, 1])?;
        } else {
            trans_b = constant(c, 6, [0, 1])?;
        }
    }
    // The accumulators are read too, unless scale-d is false: they need not be initialised then, so they are no reads here.
    let d = d_ops.iter().map(|o| c.dst(o, acc_ty)).collect::<Res<Vec<u32>>>()?;
    let w = Wgmma {
        n,
        k,
        a_elem,
        b_elem,
        acc,
        satfinite,
        d,
        a,
        a_descriptor,
        b,
        scale_d,
        negate_a,
        negate_b,
        trans_a,
        trans_b,
    };
    emit(c, Hopper::Wgmma(Box::new(w)), Kind::Matrix)
}
