//! Shifts, bit fields, byte permutes, three-input logic and dot products.

use super::context::{Context, Res};
use super::integer::{arity, need_ty};
use super::mods::Mods;
use super::program::*;
use crate::exec::lanes::{AluFn, alu};
use crate::parse::ast::{Inst, Ty};

pub fn decode(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    match m.name {
        "shl" | "shr" => shift(c, inst, m),
        "shf" => funnel(c, inst, m),
        "lop3" => lop3(c, inst, m),
        "prmt" => prmt(c, inst, m),
        "dp4a" | "dp2a" => dot(c, inst, m),
        _ => field(c, inst, m),
    }
}

fn shift(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let ty = need_ty(c, m)?;
    arity(c, inst, 3)?;
    // Amounts beyond the width give what the shifted-in bits give.
    let f = match (m.name, ty) {
        ("shl", Ty::B16) => alu!(|a: u16, n: u32| -> u16 { if n > 15 { 0 } else { a << n } }),
        ("shl", Ty::B32) => alu!(|a: u32, n: u32| -> u32 { if n > 31 { 0 } else { a << n } }),
        ("shl", Ty::B64) => alu!(|a: u64, n: u32| -> u64 { if n > 63 { 0 } else { a << n } }),
        ("shr", Ty::B16 | Ty::U16) => alu!(|a: u16, n: u32| -> u16 { if n > 15 { 0 } else { a >> n } }),
        ("shr", Ty::B32 | Ty::U32) => alu!(|a: u32, n: u32| -> u32 { if n > 31 { 0 } else { a >> n } }),
        ("shr", Ty::B64 | Ty::U64) => alu!(|a: u64, n: u32| -> u64 { if n > 63 { 0 } else { a >> n } }),
        ("shr", Ty::S16) => alu!(|a: i16, n: u32| -> i16 { a >> n.min(15) }),
        ("shr", Ty::S32) => alu!(|a: i32, n: u32| -> i32 { a >> n.min(31) }),
        ("shr", Ty::S64) => alu!(|a: i64, n: u32| -> i64 { a >> n.min(63) }),
        _ => return c.err(format!("`{}` does not exist for this type", inst.opcode)),
    };
    let a = c.src(&inst.operands[1], ty)?;
    let n = c.src(&inst.operands[2], Ty::U32)?;
    let d = c.dst(&inst.operands[0], ty)?;
    c.alu(f, &[d], &[a, n], 0, Kind::Integer);
    Ok(())
}

fn funnel(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let left = m.has("l");
    let right = m.has("r");
    let clamp = m.has("clamp");
    let wrap = m.has("wrap");
    let ty = need_ty(c, m)?;
    arity(c, inst, 4)?;
    if left == right || clamp == wrap || ty != Ty::B32 {
        return c.err(format!("`{}` is not a funnel shift", inst.opcode));
    }
    // Operand a holds the low half, b the high half.
    let f = match (left, clamp) {
        (true, false) => {
            alu!(|a: u32, b: u32, n: u32| -> u32 { (((u64::from(b) << 32 | u64::from(a)) << (n & 31)) >> 32) as u32 })
        }
        (true, true) => alu!(|a: u32, b: u32, n: u32| -> u32 {
            (((u128::from(b) << 32 | u128::from(a)) << n.min(32)) >> 32) as u32
        }),
        (false, false) => {
            alu!(|a: u32, b: u32, n: u32| -> u32 { ((u64::from(b) << 32 | u64::from(a)) >> (n & 31)) as u32 })
        }
        (false, true) => {
            alu!(|a: u32, b: u32, n: u32| -> u32 { ((u64::from(b) << 32 | u64::from(a)) >> n.min(32)) as u32 })
        }
    };
    let mut s = [0; 3];
    for (slot, op) in s.iter_mut().zip(&inst.operands[1..]) {
        *slot = c.src(op, Ty::U32)?;
    }
    let d = c.dst(&inst.operands[0], Ty::U32)?;
    c.alu(f, &[d], &s, 0, Kind::Integer);
    Ok(())
}

fn lop3(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let boolean = m.one(&[("or", false), ("and", true)]);
    let ty = need_ty(c, m)?;
    arity(c, inst, if boolean.is_some() { 6 } else { 5 })?;
    let crate::parse::ast::Operand::Int(table) = inst.operands[4] else {
        return c.err("the look-up table of lop3 must be a constant");
    };
    if ty != Ty::B32 || table > 255 {
        return c.err(format!("`{}` is not a three-input logic operation", inst.opcode));
    }
    let f = alu!(lut |a: u32, b: u32, e: u32| -> u32 {
        let pick = |bit: u32, v: u32| if lut >> bit & 1 == 1 { v } else { 0 };
        pick(0, !a & !b & !e) | pick(1, !a & !b & e) | pick(2, !a & b & !e) | pick(3, !a & b & e)
            | pick(4, a & !b & !e) | pick(5, a & !b & e) | pick(6, a & b & !e) | pick(7, a & b & e)
    });
    let mut s = [0; 3];
    for (slot, op) in s.iter_mut().zip(&inst.operands[1..4]) {
        *slot = c.src(op, Ty::B32)?;
    }
    let Some(and) = boolean else {
        let d = c.dst(&inst.operands[0], Ty::B32)?;
        c.alu(f, &[d], &s, table as u32, Kind::Integer);
        return Ok(());
    };
    // `d|p`: the predicate says whether the result is non-zero, combined with q.
    let (d, p) = match &inst.operands[0] {
        crate::parse::ast::Operand::Pair(d, p) => ((**d).clone(), (**p).clone()),
        _ => return c.err("expected `d|p`"),
    };
    let q = c.src(&inst.operands[5], Ty::Pred)?;
    let t = c.planes(1);
    c.writes.push(t);
    c.alu(f, &[t], &s, table as u32, Kind::Integer);
    if let Some(last) = c.code.last_mut() {
        last.part = true;
    }
    let dp = c.dst(&p, Ty::Pred)?;
    c.reads.extend([t, q]);
    let g = if and {
        alu!(|r: u32, q: bool| -> bool { (r != 0) & q })
    } else {
        alu!(|r: u32, q: bool| -> bool { (r != 0) | q })
    };
    c.alu(g, &[dp], &[t, q], 0, Kind::Integer);
    if let Some(last) = c.code.last_mut() {
        last.part = true;
    }
    let dd = c.dst(&d, Ty::B32)?;
    c.reads.push(t);
    c.alu(alu!(|r: u32| -> u32 { r }), &[dd], &[t], 0, Kind::Integer);
    Ok(())
}

fn prmt(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let mode = m.one(&[("f4e", 1u32), ("b4e", 2), ("rc8", 3), ("ecl", 4), ("ecr", 5), ("rc16", 6)]).unwrap_or(0);
    let ty = need_ty(c, m)?;
    arity(c, inst, 4)?;
    if ty != Ty::B32 {
        return c.err(format!("`{}` does not exist for this type", inst.opcode));
    }
    let f = alu!(mode |a: u32, b: u32, s: u32| -> u32 {
        let bytes = u64::from(b) << 32 | u64::from(a);
        let byte = |i: u32| (bytes >> (8 * (i & 7))) as u8;
        let k = s & 3;
        let mut out = 0;
        for i in 0..4u32 {
            let v = match mode {
                0 => {
                    let sel = s >> (4 * i) & 15;
                    let v = byte(sel & 7);
                    if sel & 8 != 0 { ((v as i8) >> 7) as u8 } else { v }
                }
                1 => byte(k + i),
                2 => byte(k.wrapping_sub(i)),
                3 => byte(k),
                4 => byte(k.max(i)),
                5 => byte(k.min(i)),
                _ => byte((k & 1) * 2 + (i & 1)),
            };
            out |= u32::from(v) << (8 * i);
        }
        out
    });
    let mut s = [0; 3];
    for (slot, op) in s.iter_mut().zip(&inst.operands[1..]) {
        *slot = c.src(op, Ty::B32)?;
    }
    let d = c.dst(&inst.operands[0], Ty::B32)?;
    c.alu(f, &[d], &s, mode, Kind::Integer);
    Ok(())
}

fn byte_at(v: u32, i: u32, signed: bool) -> i32 {
    let b = (v >> (8 * i)) as u8;
    if signed { i32::from(b as i8) } else { i32::from(b) }
}

fn half_at(v: u32, i: u32, signed: bool) -> i32 {
    let h = (v >> (16 * i)) as u16;
    if signed { i32::from(h as i16) } else { i32::from(h) }
}

fn dot(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let hi = m.has("hi");
    m.has("lo");
    let (Some(at), Some(bt)) = (m.ty(), m.ty()) else {
        return c.err(format!("`{}` names two types", inst.opcode));
    };
    if !matches!((at, bt), (Ty::U32 | Ty::S32, Ty::U32 | Ty::S32)) {
        return c.err(format!("`{}` does not exist for these types", inst.opcode));
    }
    arity(c, inst, 4)?;
    let imm = u32::from(at.signed()) | u32::from(bt.signed()) << 1 | u32::from(hi) << 2;
    let f = if m.name == "dp4a" {
        alu!(imm |a: u32, b: u32, e: u32| -> u32 {
            (0..4).fold(e, |s, i| s.wrapping_add((byte_at(a, i, imm & 1 != 0) * byte_at(b, i, imm & 2 != 0)) as u32))
        })
    } else {
        alu!(imm |a: u32, b: u32, e: u32| -> u32 {
            let base = if imm & 4 != 0 { 2 } else { 0 };
            (0..2).fold(e, |s, i| {
                s.wrapping_add(half_at(a, i, imm & 1 != 0).wrapping_mul(byte_at(b, base + i, imm & 2 != 0)) as u32)
            })
        })
    };
    let a = c.src(&inst.operands[1], Ty::B32)?;
    let b = c.src(&inst.operands[2], Ty::B32)?;
    let e = c.src(&inst.operands[3], Ty::B32)?;
    let d = c.dst(&inst.operands[0], Ty::B32)?;
    c.alu(f, &[d], &[a, b, e], imm, Kind::Integer);
    Ok(())
}

#[inline(never)]
fn bfe_signed(a: i64, bits: u32, pos: u32, len: u32) -> i64 {
    let (pos, len) = (pos & 0xFF, len & 0xFF);
    if len == 0 {
        return 0;
    }
    // Bits beyond the top repeat the sign.
    let value = a << (64 - bits) >> (64 - bits);
    let shifted = value >> pos.min(63);
    if len >= 64 { shifted } else { shifted << (64 - len) >> (64 - len) }
}

#[inline(never)]
fn bfe_unsigned(a: u64, bits: u32, pos: u32, len: u32) -> u64 {
    let (pos, len) = (pos & 0xFF, len & 0xFF);
    if pos >= bits || len == 0 {
        return 0;
    }
    let shifted = a >> pos;
    if len >= 64 { shifted } else { shifted & ((1 << len) - 1) }
}

#[inline(never)]
fn bfi(a: u64, b: u64, bits: u32, pos: u32, len: u32) -> u64 {
    let (pos, len) = (pos & 0xFF, len & 0xFF);
    if pos >= bits || len == 0 {
        return b;
    }
    let ones = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
    let mask = ones << pos;
    (b & !mask) | (a << pos & mask)
}

#[inline(never)]
fn fns(mask: u32, base: u32, offset: i32) -> u32 {
    let base = base & 31;
    if offset == 0 {
        return if mask >> base & 1 == 1 { base } else { u32::MAX };
    }
    let mut left = offset.unsigned_abs();
    let mut pos = base as i32;
    let step = offset.signum();
    while (0..32).contains(&pos) {
        if mask >> pos & 1 == 1 {
            left -= 1;
            if left == 0 {
                return pos as u32;
            }
        }
        pos += step;
    }
    u32::MAX
}

fn field(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let amount = m.has("shiftamt");
    let clamp = m.has("clamp");
    let wrap = m.has("wrap");
    let ty = need_ty(c, m)?;
    let u = Ty::U32;
    let (f, operands, result): (AluFn, Vec<Ty>, Ty) = match (m.name, ty) {
        ("bfe", Ty::U32) => {
            (alu!(|a: u32, p: u32, l: u32| -> u32 { bfe_unsigned(u64::from(a), 32, p, l) as u32 }), vec![ty, u, u], ty)
        }
        ("bfe", Ty::S32) => {
            (alu!(|a: i32, p: u32, l: u32| -> i32 { bfe_signed(i64::from(a), 32, p, l) as i32 }), vec![ty, u, u], ty)
        }
        ("bfe", Ty::U64) => (alu!(|a: u64, p: u32, l: u32| -> u64 { bfe_unsigned(a, 64, p, l) }), vec![ty, u, u], ty),
        ("bfe", Ty::S64) => (alu!(|a: i64, p: u32, l: u32| -> i64 { bfe_signed(a, 64, p, l) }), vec![ty, u, u], ty),
        ("bfi", Ty::B32) => (
            alu!(|a: u32, b: u32, p: u32, l: u32| -> u32 { bfi(u64::from(a), u64::from(b), 32, p, l) as u32 }),
            vec![ty, ty, u, u],
            ty,
        ),
        ("bfi", Ty::B64) => {
            (alu!(|a: u64, b: u64, p: u32, l: u32| -> u64 { bfi(a, b, 64, p, l) }), vec![ty, ty, u, u], ty)
        }
        ("bfind", _) => {
            let f = match (ty, amount) {
                (Ty::U32, false) => alu!(|a: u32| -> u32 { 31u32.wrapping_sub(a.leading_zeros()) }),
                (Ty::U64, false) => alu!(|a: u64| -> u32 { 63u32.wrapping_sub(a.leading_zeros()) }),
                (Ty::S32, false) => {
                    alu!(|a: i32| -> u32 { 31u32.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros()) })
                }
                (Ty::S64, false) => {
                    alu!(|a: i64| -> u32 { 63u32.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros()) })
                }
                (Ty::U32, true) => alu!(|a: u32| -> u32 { if a == 0 { u32::MAX } else { a.leading_zeros() } }),
                (Ty::U64, true) => alu!(|a: u64| -> u32 { if a == 0 { u32::MAX } else { a.leading_zeros() } }),
                (Ty::S32, true) => alu!(|a: i32| -> u32 {
                    let v = if a < 0 { !a } else { a };
                    if v == 0 { u32::MAX } else { v.leading_zeros() }
                }),
                (Ty::S64, true) => alu!(|a: i64| -> u32 {
                    let v = if a < 0 { !a } else { a };
                    if v == 0 { u32::MAX } else { v.leading_zeros() }
                }),
                _ => return c.err(format!("`{}` does not exist for this type", inst.opcode)),
            };
            (f, vec![ty], u)
        }
        ("fns", Ty::B32) => (alu!(|a: u32, b: u32, o: i32| -> u32 { fns(a, b, o) }), vec![u, u, Ty::S32], ty),
        ("bmsk", Ty::B32) if clamp => (
            alu!(|a: u32, b: u32| -> u32 {
                let ones = (1u64 << b.min(32)) - 1;
                if a > 31 { 0 } else { (ones << a) as u32 }
            }),
            vec![u, u],
            ty,
        ),
        ("bmsk", Ty::B32) if wrap => {
            (alu!(|a: u32, b: u32| -> u32 { ((1u32 << (b & 31)) - 1) << (a & 31) }), vec![u, u], ty)
        }
        ("szext", Ty::U32) if clamp || wrap => (
            alu!(clamp |a: u32, b: u32| -> u32 {
                let n = if clamp != 0 { b.min(32) } else { b & 31 };
                (u64::from(a) & ((1u64 << n) - 1)) as u32
            }),
            vec![ty, u],
            ty,
        ),
        ("szext", Ty::S32) if clamp || wrap => (
            alu!(clamp |a: i32, b: u32| -> i32 {
                let n = if clamp != 0 { b.min(32) } else { b & 31 };
                if n == 0 { 0 } else { a << (32 - n) >> (32 - n) }
            }),
            vec![ty, u],
            ty,
        ),
        _ => return c.err(format!("`{}` does not exist in this form", inst.opcode)),
    };
    arity(c, inst, operands.len() + 1)?;
    let mut s = [0; 4];
    for (i, t) in operands.iter().enumerate() {
        s[i] = c.src(&inst.operands[i + 1], *t)?;
    }
    let d = c.dst(&inst.operands[0], result)?;
    c.alu(f, &[d], &s[..operands.len()], u32::from(clamp), Kind::Integer);
    Ok(())
}
