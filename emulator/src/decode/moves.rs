//! `mov`, address conversions and their kin.

use super::context::{Context, Res, Symbol, planes_of, special_register};
use super::integer::{arity, need_ty};
use super::mods::Mods;
use super::program::*;
use crate::exec::lanes::{AluFn, alu};
use crate::parse::ast::{Inst, Operand, Space, Ty};

fn copy(ty: Ty) -> AluFn {
    match (ty, ty.bytes()) {
        (Ty::Pred, _) => alu!(|a: bool| -> bool { a }),
        (_, 1 | 2 | 4) => alu!(|a: u32| -> u32 { a }),
        (_, 8) => alu!(|a: u64| -> u64 { a }),
        _ => alu!(|a: u128| -> u128 { a }),
    }
}

pub fn mov(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let ty = need_ty(c, m)?;
    arity(c, inst, 2)?;
    match (&inst.operands[0], &inst.operands[1]) {
        (Operand::Vector(parts), src) => return unpack(c, inst, ty, parts, src),
        (_, Operand::Vector(parts)) => return pack(c, inst, ty, parts),
        _ => {}
    }
    if let Operand::Name(name) = &inst.operands[1] {
        if let Some(which) = special_register(name) {
            let d = c.dst(&inst.operands[0], ty)?;
            c.emit(Op::Special { d, which, planes: planes_of(ty) as u8 }, Kind::Move);
            return Ok(());
        }
        match c.lookup(name) {
            Some(Symbol::Frame { offset, .. }) if planes_of(ty) == 2 => {
                let d = c.dst(&inst.operands[0], ty)?;
                c.emit(Op::FrameAddress { d, offset }, Kind::Move);
                return Ok(());
            }
            Some(Symbol::Function(function)) if planes_of(ty) == 2 => {
                let d = c.dst(&inst.operands[0], ty)?;
                c.emit(Op::FunctionAddress { d, function }, Kind::Move);
                return Ok(());
            }
            _ => {}
        }
    }
    let s = c.src(&inst.operands[1], ty)?;
    let d = c.dst(&inst.operands[0], ty)?;
    c.alu(copy(ty), &[d], &[s], 0, Kind::Move);
    Ok(())
}

fn part_type(c: &Context, whole: Ty, n: usize) -> Res<Ty> {
    Ok(match (whole.bytes() as usize, n) {
        (4, 2) => Ty::B16,
        (4, 4) => Ty::B8,
        (2, 2) => Ty::B8,
        (8, 2) => Ty::B32,
        (8, 4) => Ty::B16,
        (16, 2) => Ty::B64,
        (16, 4) => Ty::B32,
        _ => return c.err("this vector does not fill the register"),
    })
}

/// `mov.b64 {lo, hi}, x`: one step for each part. The source is copied first, for a part may be the source itself.
fn unpack(c: &mut Context, _inst: &Inst, ty: Ty, parts: &[Operand], src: &Operand) -> Res<()> {
    let part = part_type(c, ty, parts.len())?;
    let s = c.src(src, ty)?;
    let reads = c.reads.clone();
    let safe = c.planes(planes_of(ty));
    c.writes.extend((0..planes_of(ty)).map(|i| safe + i));
    c.alu(copy(ty), &[safe], &[s], 0, Kind::Move);
    if let Some(last) = c.code.last_mut() {
        last.part = true;
    }
    let f = match part.bytes() {
        1 => alu!(k |a: u32| -> u32 { a >> (8 * k) & 0xFF }),
        2 => alu!(k |a: u32| -> u32 { a >> (16 * k) & 0xFFFF }),
        4 => alu!(|a: u32| -> u32 { a }),
        _ => alu!(|a: u64| -> u64 { a }),
    };
    drop(reads);
    for (i, p) in parts.iter().enumerate() {
        if *p == Operand::Sink {
            continue;
        }
        let d = c.dst(p, part)?;
        let byte = i as u32 * part.bytes();
        let plane = safe + byte / 4;
        c.reads.push(plane);
        if part.bytes() == 8 {
            c.reads.push(plane + 1);
        }
        let within = if part.bytes() < 4 { byte % 4 / part.bytes() } else { 0 };
        c.alu(f, &[d], &[plane], within, Kind::Move);
        if i > 0
            && let Some(last) = c.code.last_mut()
        {
            last.part = true;
        }
    }
    Ok(())
}

/// `mov.b64 x, {lo, hi}`.
fn pack(c: &mut Context, inst: &Inst, ty: Ty, parts: &[Operand]) -> Res<()> {
    let part = part_type(c, ty, parts.len())?;
    let mut s = [0; 4];
    for (i, p) in parts.iter().enumerate() {
        s[i] = c.src(p, part)?;
    }
    let f = match (ty.bytes(), parts.len()) {
        (4, 2) => alu!(|a: u16, b: u16| -> u32 { u32::from(a) | u32::from(b) << 16 }),
        (2, 2) => alu!(|a: u8, b: u8| -> u16 { u16::from(a) | u16::from(b) << 8 }),
        (4, 4) => alu!(|a: u8, b: u8, d: u8, e: u8| -> u32 { u32::from_le_bytes([a, b, d, e]) }),
        (8, 2) => alu!(|a: u32, b: u32| -> u64 { u64::from(a) | u64::from(b) << 32 }),
        (8, 4) => alu!(|a: u16, b: u16, d: u16, e: u16| -> u64 {
            u64::from(a) | u64::from(b) << 16 | u64::from(d) << 32 | u64::from(e) << 48
        }),
        (16, 2) => alu!(|a: u64, b: u64| -> u128 { u128::from(a) | u128::from(b) << 64 }),
        _ => alu!(|a: u32, b: u32, d: u32, e: u32| -> u128 {
            u128::from(a) | u128::from(b) << 32 | u128::from(d) << 64 | u128::from(e) << 96
        }),
    };
    let d = c.dst(&inst.operands[0], ty)?;
    c.alu(f, &[d], &s[..parts.len()], 0, Kind::Move);
    Ok(())
}

pub fn space_of(m: &mut Mods) -> Option<Space> {
    m.one(&[
        ("global", Space::Global),
        ("shared::cta", Space::Shared),
        ("shared::cluster", Space::Shared),
        ("shared", Space::Shared),
        ("local", Space::Local),
        ("const", Space::Const),
        ("param::entry", Space::Param),
        ("param::func", Space::Param),
        ("param", Space::Param),
    ])
}

pub fn cvta(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let to = m.has("to");
    let Some(space) = space_of(m) else {
        return c.err(format!("`{}` names no state space", inst.opcode));
    };
    let ty = need_ty(c, m)?;
    arity(c, inst, 2)?;
    if ty != Ty::U64 {
        return c.err("only 64-bit generic addresses are supported");
    }
    let a = c.src(&inst.operands[1], ty)?;
    let d = c.dst(&inst.operands[0], ty)?;
    c.emit(Op::Cvta { d, a, space, to }, Kind::Integer);
    Ok(())
}

pub fn isspacep(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let Some(space) = space_of(m) else {
        return c.err(format!("`{}` names no state space", inst.opcode));
    };
    arity(c, inst, 2)?;
    let a = c.src(&inst.operands[1], Ty::U64)?;
    let d = c.dst(&inst.operands[0], Ty::Pred)?;
    c.emit(Op::IsSpace { d, a, space }, Kind::Compare);
    Ok(())
}
