//! `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.

use super::context::{Context, Res};
use super::integer::arity;
use super::mods::Mods;
use super::program::*;
use crate::numerics::format::Rnd;
use crate::parse::ast::{Inst, Operand, Space, Ty};

fn list(op: &Operand) -> Vec<Operand> {
    match op {
        Operand::Vector(v) => v.clone(),
        o => vec![o.clone()],
    }
}

fn count(m: &mut Mods) -> u8 {
    m.one(&[("x1", 1u8), ("x2", 2), ("x4", 4)]).unwrap_or(0)
}

/// The space after the optional state-space modifiers; generic when there are none.
fn shared(m: &mut Mods) -> Space {
    if m.has("shared") || m.has("shared::cta") { Space::Shared } else { Space::Generic }
}

pub fn ldmatrix(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let ok = m.has("sync") & m.has("aligned") & m.has("m8n8") & m.has("b16");
    let count = count(m);
    let trans = m.has("trans");
    let space = shared(m);
    arity(c, inst, 2)?;
    let regs = list(&inst.operands[0]);
    if !ok || count == 0 || regs.len() != usize::from(count) {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    let (addr, _) = c.address(&inst.operands[1])?;
    let mut d = [NONE; 4];
    for (slot, r) in d.iter_mut().zip(&regs) {
        *slot = c.dst(r, Ty::B32)?;
    }
    c.emit(Op::LdMatrix { count, trans, d, addr, space }, Kind::LoadShared);
    Ok(())
}

pub fn stmatrix(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let ok = m.has("sync") & m.has("aligned") & m.has("m8n8") & m.has("b16");
    let count = count(m);
    let trans = m.has("trans");
    let space = shared(m);
    arity(c, inst, 2)?;
    c.needs_sm90 = true;
    let regs = list(&inst.operands[1]);
    if !ok || count == 0 || regs.len() != usize::from(count) {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    let (addr, _) = c.address(&inst.operands[0])?;
    let mut s = [NONE; 4];
    for (slot, r) in s.iter_mut().zip(&regs) {
        *slot = c.src(r, Ty::B32)?;
    }
    c.emit(Op::StMatrix { count, trans, s, addr, space }, Kind::StoreShared);
    Ok(())
}

pub fn movmatrix(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let ok = m.has("sync") & m.has("aligned") & m.has("m8n8") & m.has("trans") & m.has("b16");
    arity(c, inst, 2)?;
    if !ok {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    let a = c.src(&inst.operands[1], Ty::B32)?;
    let d = c.dst(&inst.operands[0], Ty::B32)?;
    c.emit(Op::MovMatrix { d, a }, Kind::Warp);
    Ok(())
}

fn acc(name: &str) -> Option<Acc> {
    Some(match name {
        "f32" => Acc::F32,
        "f16" => Acc::F16,
        "s32" => Acc::S32,
        "f64" => Acc::F64,
        _ => return None,
    })
}

pub fn elem(name: &str) -> Option<Elem> {
    Some(match name {
        "f16" => Elem::F16,
        "bf16" => Elem::Bf16,
        "tf32" => Elem::Tf32,
        "e4m3" => Elem::E4m3,
        "e5m2" => Elem::E5m2,
        "s8" => Elem::S8,
        "u8" => Elem::U8,
        "s4" => Elem::S4,
        "u4" => Elem::U4,
        "b1" => Elem::B1,
        "f64" => Elem::F64,
        _ => return None,
    })
}

/// Bits of one element.
pub fn elem_bits(e: Elem) -> usize {
    match e {
        Elem::F64 => 64,
        Elem::Tf32 => 32,
        Elem::F16 | Elem::Bf16 => 16,
        Elem::E4m3 | Elem::E5m2 | Elem::S8 | Elem::U8 => 8,
        Elem::S4 | Elem::U4 => 4,
        Elem::B1 => 1,
    }
}

pub fn shape(name: &str) -> Option<(usize, usize, usize)> {
    let rest = name.strip_prefix('m')?;
    let (m, rest) = rest.split_once('n')?;
    let (n, k) = rest.split_once('k')?;
    Some((m.parse().ok()?, n.parse().ok()?, k.parse().ok()?))
}

fn legal_shape(a: Elem, b: Elem, s: (usize, usize, usize)) -> bool {
    let integer = |e| matches!(e, Elem::S8 | Elem::U8);
    let nibble = |e| matches!(e, Elem::S4 | Elem::U4);
    let fp8 = |e| matches!(e, Elem::E4m3 | Elem::E5m2);
    match (a, b) {
        (Elem::F16, Elem::F16) => matches!(s, (8, 8, 4) | (16, 8, 8) | (16, 8, 16)),
        (Elem::Bf16, Elem::Bf16) => matches!(s, (16, 8, 8) | (16, 8, 16)),
        (Elem::Tf32, Elem::Tf32) => matches!(s, (16, 8, 4) | (16, 8, 8)),
        (Elem::F64, Elem::F64) => matches!(s, (8, 8, 4) | (16, 8, 4) | (16, 8, 8) | (16, 8, 16)),
        (a, b) if integer(a) && integer(b) => matches!(s, (8, 8, 16) | (16, 8, 16) | (16, 8, 32)),
        (a, b) if nibble(a) && nibble(b) => matches!(s, (8, 8, 32) | (16, 8, 32) | (16, 8, 64)),
        (a, b) if fp8(a) && fp8(b) => matches!(s, (16, 8, 16) | (16, 8, 32)),
        (Elem::B1, Elem::B1) => matches!(s, (8, 8, 128) | (16, 8, 128) | (16, 8, 256)),
        _ => false,
    }
}

pub fn mma(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let refuse = |c: &Context| c.err(format!("`{}` does not exist in this form", inst.opcode));
    if m.has("sp") || m.has("sp::ordered_metadata") {
        return c.err(format!("`{}`: sparse matrices are not covered", inst.opcode));
    }
    if !(m.has("sync") & m.has("aligned")) {
        return refuse(c);
    }
    let satfinite = m.has("satfinite");
    let (Some(s), Some(a_order), Some(b_order)) = (m.next().and_then(shape), m.next(), m.next()) else {
        return refuse(c);
    };
    let (Some(d_acc), Some(a_elem), Some(b_elem), Some(c_acc)) =
        (m.next().and_then(acc), m.next().and_then(elem), m.next().and_then(elem), m.next().and_then(acc))
    else {
        return refuse(c);
    };
    let (xor, and, popc) = (m.has("xor"), m.has("and"), m.has("popc"));
    let bitwise = if a_elem == Elem::B1 { xor != and && popc } else { !xor && !and && !popc };
    let rnd = m.rnd();
    if m.left().is_some() || !bitwise || (rnd.is_some() && a_elem != Elem::F64) || (satfinite && d_acc != Acc::S32) {
        return refuse(c);
    }
    // Four products of quarter-warps, from the first tensor cores.
    let volta = a_elem == Elem::F16 && s == (8, 8, 4);
    let accumulators = match a_elem {
        Elem::F16 if volta => {
            matches!((d_acc, c_acc), (Acc::F32, Acc::F32) | (Acc::F16, Acc::F16) | (Acc::F32, Acc::F16))
        }
        Elem::F16 => matches!((d_acc, c_acc), (Acc::F32, Acc::F32) | (Acc::F16, Acc::F16)),
        Elem::Bf16 | Elem::Tf32 => (d_acc, c_acc) == (Acc::F32, Acc::F32),
        Elem::E4m3 | Elem::E5m2 => matches!((d_acc, c_acc), (Acc::F32, Acc::F32) | (Acc::F16, Acc::F16)),
        Elem::F64 => (d_acc, c_acc) == (Acc::F64, Acc::F64),
        _ => (d_acc, c_acc) == (Acc::S32, Acc::S32),
    };
    let (a_col, b_row) = (a_order == "col", b_order == "row");
    let orders = matches!(a_order, "row" | "col") && matches!(b_order, "row" | "col") && (volta || !(a_col || b_row));
    if !orders || !legal_shape(a_elem, b_elem, s) || !accumulators {
        return refuse(c);
    }
    if matches!(a_elem, Elem::E4m3 | Elem::E5m2) || (a_elem == Elem::F64 && s.0 == 16) {
        c.needs_sm90 = true;
    }
    arity(c, inst, 4)?;
    let bits = elem_bits(a_elem);
    let wide = a_elem == Elem::F64;
    let ab_ty = if wide { Ty::F64 } else { Ty::B32 };
    let reg_bits = if wide { 64 } else { 32 };
    let acc_ty = |acc| match acc {
        Acc::F64 => Ty::F64,
        Acc::F32 => Ty::F32,
        _ => Ty::B32,
    };
    let products = if volta { 4 } else { 1 };
    let acc_regs = |acc| products * s.0 * s.1 / 32 / if acc == Acc::F16 { 2 } else { 1 };
    let want = [
        acc_regs(d_acc),
        products * s.0 * s.2 * bits / 32 / reg_bits,
        products * s.1 * s.2 * bits / 32 / reg_bits,
        acc_regs(c_acc),
    ];
    let lists: Vec<Vec<Operand>> = inst.operands.iter().map(list).collect();
    for (l, w) in lists.iter().zip(want) {
        if l.len() != w {
            return c.err(format!("`{}` wants fragments of {want:?} registers", inst.opcode));
        }
    }
    let mut regs = |i: usize, ty: Ty| -> Res<Vec<u32>> { lists[i].iter().map(|o| c.src(o, ty)).collect() };
    let a = regs(1, ab_ty)?;
    let b = regs(2, ab_ty)?;
    let cc = regs(3, acc_ty(c_acc))?;
    let d = lists[0].iter().map(|o| c.dst(o, acc_ty(d_acc))).collect::<Res<Vec<u32>>>()?;
    let rnd = rnd.unwrap_or(Rnd::Near);
    let (m, n, k) = s;
    let mma = Mma { m, n, k, a_elem, b_elem, d_acc, c_acc, satfinite, a_col, b_row, xor, rnd, d, a, b, c: cc };
    c.emit(Op::Mma(Box::new(mma)), Kind::Matrix);
    Ok(())
}
