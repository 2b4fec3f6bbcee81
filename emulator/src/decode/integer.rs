//! Integer arithmetic, logic and shifts.

use super::context::{Context, Res};
use super::mods::Mods;
use super::program::*;
use crate::exec::lanes::{AluFn, Args, Lane, Planes, alu};
use crate::parse::ast::{Inst, Ty};

/// The same expression for every integer type.
macro_rules! ints {
    ($ty:expr, |$($v:ident),+| $body:block) => {
        match $ty {
            Ty::U16 | Ty::B16 => Some(alu!(|$($v: u16),+| -> u16 $body)),
            Ty::S16 => Some(alu!(|$($v: i16),+| -> i16 $body)),
            Ty::U32 | Ty::B32 => Some(alu!(|$($v: u32),+| -> u32 $body)),
            Ty::S32 => Some(alu!(|$($v: i32),+| -> i32 $body)),
            Ty::U64 | Ty::B64 => Some(alu!(|$($v: u64),+| -> u64 $body)),
            Ty::S64 => Some(alu!(|$($v: i64),+| -> i64 $body)),
            _ => None,
        }
    };
}

/// The same expression for the untyped sizes, and predicates.
macro_rules! bits {
    ($ty:expr, |$($v:ident),+| $body:block) => {
        match $ty {
            Ty::Pred => Some(alu!(|$($v: bool),+| -> bool $body)),
            Ty::B16 | Ty::U16 | Ty::S16 => Some(alu!(|$($v: u16),+| -> u16 $body)),
            Ty::B32 | Ty::U32 | Ty::S32 => Some(alu!(|$($v: u32),+| -> u32 $body)),
            Ty::B64 | Ty::U64 | Ty::S64 => Some(alu!(|$($v: u64),+| -> u64 $body)),
            _ => None,
        }
    };
}

/// Both halves of a packed pair of 16-bit integers.
macro_rules! pairs {
    ($ty:expr, |$a:ident, $b:ident| $body:expr) => {
        match $ty {
            Ty::U16x2 => Some(alu!(|a: u32, b: u32| -> u32 { crate::numerics::half::both(a, b, |$a, $b| $body) })),
            Ty::S16x2 => Some(alu!(|a: u32, b: u32| -> u32 {
                crate::numerics::half::both(a, b, |x, y| {
                    let ($a, $b) = (x as i16, y as i16);
                    ($body) as u16
                })
            })),
            _ => None,
        }
    };
}

/// Division by zero leaves an unspecified value; all ones, as the hardware gives.
fn div_alu(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 => Some(alu!(|a: u16, b: u16| -> u16 { a.checked_div(b).unwrap_or(u16::MAX) })),
        Ty::U32 => Some(alu!(|a: u32, b: u32| -> u32 { a.checked_div(b).unwrap_or(u32::MAX) })),
        Ty::U64 => Some(alu!(|a: u64, b: u64| -> u64 { a.checked_div(b).unwrap_or(u64::MAX) })),
        Ty::S16 => Some(alu!(|a: i16, b: i16| -> i16 { if b == 0 { -1 } else { a.wrapping_div(b) } })),
        Ty::S32 => Some(alu!(|a: i32, b: i32| -> i32 { if b == 0 { -1 } else { a.wrapping_div(b) } })),
        Ty::S64 => Some(alu!(|a: i64, b: i64| -> i64 { if b == 0 { -1 } else { a.wrapping_div(b) } })),
        _ => None,
    }
}

fn rem_alu(ty: Ty) -> Option<AluFn> {
    ints!(ty, |a, b| { if b == 0 { a } else { a.wrapping_rem(b) } })
}

fn sat_add(ty: Ty, sub: bool) -> Option<AluFn> {
    match (ty, sub) {
        (Ty::S32, false) => Some(alu!(|a: i32, b: i32| -> i32 { a.saturating_add(b) })),
        (Ty::S32, true) => Some(alu!(|a: i32, b: i32| -> i32 { a.saturating_sub(b) })),
        _ => None,
    }
}

fn mul_hi(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 => Some(alu!(|a: u16, b: u16| -> u16 { ((u32::from(a) * u32::from(b)) >> 16) as u16 })),
        Ty::S16 => Some(alu!(|a: i16, b: i16| -> i16 { ((i32::from(a) * i32::from(b)) >> 16) as i16 })),
        Ty::U32 => Some(alu!(|a: u32, b: u32| -> u32 { ((u64::from(a) * u64::from(b)) >> 32) as u32 })),
        Ty::S32 => Some(alu!(|a: i32, b: i32| -> i32 { ((i64::from(a) * i64::from(b)) >> 32) as i32 })),
        Ty::U64 => Some(alu!(|a: u64, b: u64| -> u64 { ((u128::from(a) * u128::from(b)) >> 64) as u64 })),
        Ty::S64 => Some(alu!(|a: i64, b: i64| -> i64 { ((i128::from(a) * i128::from(b)) >> 64) as i64 })),
        _ => None,
    }
}

fn mul_wide(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 => Some(alu!(|a: u16, b: u16| -> u32 { u32::from(a) * u32::from(b) })),
        Ty::S16 => Some(alu!(|a: i16, b: i16| -> i32 { i32::from(a) * i32::from(b) })),
        Ty::U32 => Some(alu!(|a: u32, b: u32| -> u64 { u64::from(a) * u64::from(b) })),
        Ty::S32 => Some(alu!(|a: i32, b: i32| -> i64 { i64::from(a) * i64::from(b) })),
        Ty::U64 => Some(alu!(|a: u64, b: u64| -> u128 { u128::from(a) * u128::from(b) })),
        Ty::S64 => Some(alu!(|a: i64, b: i64| -> u128 { (i128::from(a) * i128::from(b)) as u128 })),
        _ => None,
    }
}

fn mad_wide(ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 => Some(alu!(|a: u16, b: u16, c: u32| -> u32 { (u32::from(a) * u32::from(b)).wrapping_add(c) })),
        Ty::S16 => Some(alu!(|a: i16, b: i16, c: i32| -> i32 { (i32::from(a) * i32::from(b)).wrapping_add(c) })),
        Ty::U32 => Some(alu!(|a: u32, b: u32, c: u64| -> u64 { (u64::from(a) * u64::from(b)).wrapping_add(c) })),
        Ty::S32 => Some(alu!(|a: i32, b: i32, c: i64| -> i64 { (i64::from(a) * i64::from(b)).wrapping_add(c) })),
        _ => None,
    }
}

fn mad_hi(ty: Ty, sat: bool) -> Option<AluFn> {
    if sat {
        return (ty == Ty::S32).then(|| {
            alu!(|a: i32, b: i32, c: i32| -> i32 { (((i64::from(a) * i64::from(b)) >> 32) as i32).saturating_add(c) })
        });
    }
    match ty {
        Ty::U16 => Some(alu!(|a: u16, b: u16, c: u16| -> u16 {
            (((u32::from(a) * u32::from(b)) >> 16) as u16).wrapping_add(c)
        })),
        Ty::S16 => Some(alu!(|a: i16, b: i16, c: i16| -> i16 {
            (((i32::from(a) * i32::from(b)) >> 16) as i16).wrapping_add(c)
        })),
        Ty::U32 => Some(alu!(|a: u32, b: u32, c: u32| -> u32 {
            (((u64::from(a) * u64::from(b)) >> 32) as u32).wrapping_add(c)
        })),
        Ty::S32 => Some(alu!(|a: i32, b: i32, c: i32| -> i32 {
            (((i64::from(a) * i64::from(b)) >> 32) as i32).wrapping_add(c)
        })),
        Ty::U64 => Some(alu!(|a: u64, b: u64, c: u64| -> u64 {
            (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c)
        })),
        Ty::S64 => Some(alu!(|a: i64, b: i64, c: i64| -> i64 {
            (((i128::from(a) * i128::from(b)) >> 64) as i64).wrapping_add(c)
        })),
        _ => None,
    }
}

/// Twice the width, for results of `.wide`.
fn widened(ty: Ty) -> Ty {
    match ty {
        Ty::U16 => Ty::U32,
        Ty::S16 => Ty::S32,
        Ty::U32 => Ty::U64,
        Ty::S32 => Ty::S64,
        _ => Ty::B128,
    }
}

/// The instruction with equally typed operands and result.
fn plain(c: &mut Context, inst: &Inst, ty: Ty, n: usize, f: Option<AluFn>, kind: Kind) -> Res<()> {
    let Some(f) = f else {
        return c.err(format!("`{}` does not exist for this type", inst.opcode));
    };
    arity(c, inst, n + 1)?;
    let mut s = [0; 4];
    for (slot, op) in s.iter_mut().zip(&inst.operands[1..]) {
        *slot = c.src(op, ty)?;
    }
    let d = c.dst(&inst.operands[0], ty)?;
    c.alu(f, &[d], &s[..n], 0, kind);
    Ok(())
}

pub fn arity(c: &Context, inst: &Inst, n: usize) -> Res<()> {
    if inst.operands.len() != n {
        return c.err(format!("`{}` takes {n} operands, found {}", inst.opcode, inst.operands.len()));
    }
    Ok(())
}

pub fn need_ty(c: &Context, m: &mut Mods) -> Res<Ty> {
    match m.ty() {
        Some(t) => Ok(t),
        None => c.err(format!("`{}` names no type", m.opcode)),
    }
}

/// Decodes an integer instruction; false when the name or type is another family's.
pub fn decode(c: &mut Context, inst: &Inst, m: &mut Mods, peek: Option<Ty>) -> Res<bool> {
    let int_type = peek.is_some_and(|t| t.integer() || matches!(t, Ty::U16x2 | Ty::S16x2));
    match m.name {
        "add" | "sub" | "min" | "max" | "mul" | "mad" | "div" | "rem" | "abs" | "neg" | "sad" if int_type => {}
        "addc" | "subc" | "madc" | "mul24" | "mad24" | "and" | "or" | "xor" | "not" | "cnot" | "lop3" | "shl"
        | "shr" | "shf" | "popc" | "clz" | "brev" | "bfe" | "bfi" | "bfind" | "fns" | "bmsk" | "szext" | "prmt"
        | "dp4a" | "dp2a" => {}
        _ => return Ok(false),
    }
    match m.name {
        "add" | "sub" | "addc" | "subc" => add(c, inst, m),
        "mul" | "mad" | "madc" | "mul24" | "mad24" => multiply(c, inst, m),
        "shl" | "shr" | "shf" | "bfe" | "bfi" | "bfind" | "bmsk" | "szext" | "fns" | "prmt" | "lop3" | "dp4a"
        | "dp2a" => super::bitfield::decode(c, inst, m),
        _ => simple(c, inst, m),
    }?;
    Ok(true)
}

fn simple(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let relu = m.has("relu");
    let ty = need_ty(c, m)?;
    let k = Kind::Integer;
    match m.name {
        "min" | "max" => {
            let max = m.name == "max";
            let f = match (ty, relu, max) {
                (Ty::U16x2 | Ty::S16x2, false, true) => pairs!(ty, |a, b| a.max(b)),
                (Ty::U16x2 | Ty::S16x2, false, false) => pairs!(ty, |a, b| a.min(b)),
                (Ty::S16x2, true, true) => pairs!(ty, |a, b| a.max(b).clamp(0, 0x7FFF)),
                (Ty::S16x2, true, false) => pairs!(ty, |a, b| a.min(b).clamp(0, 0x7FFF)),
                (Ty::S32, true, true) => Some(alu!(|a: i32, b: i32| -> i32 { a.max(b).max(0) })),
                (Ty::S32, true, false) => Some(alu!(|a: i32, b: i32| -> i32 { a.min(b).max(0) })),
                (_, true, _) => None,
                (_, false, true) => ints!(ty, |a, b| { a.max(b) }),
                (_, false, false) => ints!(ty, |a, b| { a.min(b) }),
            };
            plain(c, inst, ty, 2, f, k)
        }
        "div" => plain(c, inst, ty, 2, div_alu(ty), k),
        "rem" => plain(c, inst, ty, 2, rem_alu(ty), k),
        "abs" => {
            let f = match ty {
                Ty::S16 => Some(alu!(|a: i16| -> i16 { a.wrapping_abs() })),
                Ty::S32 => Some(alu!(|a: i32| -> i32 { a.wrapping_abs() })),
                Ty::S64 => Some(alu!(|a: i64| -> i64 { a.wrapping_abs() })),
                _ => None,
            };
            plain(c, inst, ty, 1, f, k)
        }
        "neg" => plain(c, inst, ty, 1, ints!(ty, |a| { a.wrapping_neg() }), k),
        "sad" => {
            let f = match ty {
                Ty::U16 => Some(alu!(|a: u16, b: u16, d: u16| -> u16 { a.abs_diff(b).wrapping_add(d) })),
                Ty::U32 => Some(alu!(|a: u32, b: u32, d: u32| -> u32 { a.abs_diff(b).wrapping_add(d) })),
                Ty::U64 => Some(alu!(|a: u64, b: u64, d: u64| -> u64 { a.abs_diff(b).wrapping_add(d) })),
                Ty::S16 => Some(alu!(|a: i16, b: i16, d: i16| -> i16 { (a.abs_diff(b) as i16).wrapping_add(d) })),
                Ty::S32 => Some(alu!(|a: i32, b: i32, d: i32| -> i32 { (a.abs_diff(b) as i32).wrapping_add(d) })),
                Ty::S64 => Some(alu!(|a: i64, b: i64, d: i64| -> i64 { (a.abs_diff(b) as i64).wrapping_add(d) })),
                _ => None,
            };
            plain(c, inst, ty, 3, f, k)
        }
        "and" => plain(c, inst, ty, 2, bits!(ty, |a, b| { a & b }), k),
        "or" => plain(c, inst, ty, 2, bits!(ty, |a, b| { a | b }), k),
        "xor" => plain(c, inst, ty, 2, bits!(ty, |a, b| { a ^ b }), k),
        "not" => plain(c, inst, ty, 1, bits!(ty, |a| { !a }), k),
        "cnot" => {
            let f = match ty {
                Ty::B16 => Some(alu!(|a: u16| -> u16 { u16::from(a == 0) })),
                Ty::B32 => Some(alu!(|a: u32| -> u32 { u32::from(a == 0) })),
                Ty::B64 => Some(alu!(|a: u64| -> u64 { u64::from(a == 0) })),
                _ => None,
            };
            plain(c, inst, ty, 1, f, k)
        }
        _ => {
            // popc, clz, brev
            arity(c, inst, 2)?;
            let f = match (m.name, ty) {
                ("popc", Ty::B32) => alu!(|a: u32| -> u32 { a.count_ones() }),
                ("popc", Ty::B64) => alu!(|a: u64| -> u32 { a.count_ones() }),
                ("clz", Ty::B32) => alu!(|a: u32| -> u32 { a.leading_zeros() }),
                ("clz", Ty::B64) => alu!(|a: u64| -> u32 { a.leading_zeros() }),
                ("brev", Ty::B32) => alu!(|a: u32| -> u32 { a.reverse_bits() }),
                ("brev", Ty::B64) => alu!(|a: u64| -> u64 { a.reverse_bits() }),
                _ => return c.err(format!("`{}` does not exist for this type", inst.opcode)),
            };
            let s = c.src(&inst.operands[1], ty)?;
            let d = c.dst(&inst.operands[0], if m.name == "brev" { ty } else { Ty::U32 })?;
            c.alu(f, &[d], &[s], 0, k);
            Ok(())
        }
    }
}

/// Additions with carries: bit 0 of the immediate reads the carry, bit 1 writes it, bit 2 subtracts.
fn carry<T: Lane + Copy>(p: &mut Planes, x: &Args, active: u32, wide: fn(T) -> u64, make: fn(u64) -> T, bits: u32) {
    let (a, b) = (T::load(p, x.s[0]), T::load(p, x.s[1]));
    let cc = p.mask(x.s[2]);
    let (reads, writes, sub) = (x.imm & 1 != 0, x.imm & 2 != 0, x.imm & 4 != 0);
    let mut out = [T::ZERO; 32];
    let mut carries = 0u32;
    for i in 0..32 {
        let cin = u128::from(reads) * u128::from(cc >> i & 1);
        let (u, v) = (u128::from(wide(a[i])), u128::from(wide(b[i])));
        // A borrow is kept as a set bit, as a carry is.
        let r = if sub { u.wrapping_sub(v).wrapping_sub(cin) } else { u + v + cin };
        out[i] = make(r as u64);
        carries |= ((r >> bits & 1) as u32) << i;
    }
    T::store(p, x.d[0], &out, active);
    if writes {
        p.set_mask(x.d[1], carries, active);
    }
}

fn carry32(p: &mut Planes, x: &Args, active: u32) {
    carry::<u32>(p, x, active, u64::from, |v| v as u32, 32);
}

fn carry64(p: &mut Planes, x: &Args, active: u32) {
    carry::<u64>(p, x, active, |v| v, |v| v, 64);
}

fn add(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let sub = m.name.starts_with("sub");
    let reads = m.name.ends_with('c');
    let writes = m.has("cc");
    let sat = m.has("sat");
    let ty = need_ty(c, m)?;
    if reads || writes {
        arity(c, inst, 3)?;
        let f: AluFn = match ty {
            Ty::U32 | Ty::S32 => carry32,
            Ty::U64 | Ty::S64 => carry64,
            _ => return c.err(format!("`{}` does not exist for this type", inst.opcode)),
        };
        let a = c.src(&inst.operands[1], ty)?;
        let b = c.src(&inst.operands[2], ty)?;
        let d = c.dst(&inst.operands[0], ty)?;
        let cc = c.cc;
        if reads {
            c.reads.push(cc);
        }
        if writes {
            c.writes.push(cc);
        }
        let imm = u32::from(reads) | u32::from(writes) << 1 | u32::from(sub) << 2;
        c.alu(f, &[d, cc], &[a, b, cc], imm, Kind::Integer);
        return Ok(());
    }
    let f = match (sat, sub) {
        (true, _) => sat_add(ty, sub),
        (false, false) if matches!(ty, Ty::U16x2 | Ty::S16x2) => pairs!(ty, |a, b| a.wrapping_add(b)),
        (false, false) => ints!(ty, |a, b| { a.wrapping_add(b) }),
        (false, true) => ints!(ty, |a, b| { a.wrapping_sub(b) }),
    };
    plain(c, inst, ty, 2, f, Kind::Integer)
}

fn mul24(ty: Ty, hi: bool, mad: bool) -> Option<AluFn> {
    Some(match (ty, hi, mad) {
        (Ty::U32, false, false) => alu!(|a: u32, b: u32| -> u32 { (a & 0xFF_FFFF).wrapping_mul(b & 0xFF_FFFF) }),
        (Ty::S32, false, false) => alu!(|a: i32, b: i32| -> i32 { ((a << 8) >> 8).wrapping_mul((b << 8) >> 8) }),
        (Ty::U32, false, true) => {
            alu!(|a: u32, b: u32, d: u32| -> u32 { (a & 0xFF_FFFF).wrapping_mul(b & 0xFF_FFFF).wrapping_add(d) })
        }
        (Ty::S32, false, true) => {
            alu!(|a: i32, b: i32, d: i32| -> i32 { ((a << 8) >> 8).wrapping_mul((b << 8) >> 8).wrapping_add(d) })
        }
        (Ty::U32, true, false) => {
            alu!(|a: u32, b: u32| -> u32 { ((u64::from(a & 0xFF_FFFF) * u64::from(b & 0xFF_FFFF)) >> 16) as u32 })
        }
        (Ty::S32, true, false) => {
            alu!(|a: i32, b: i32| -> i32 { ((i64::from((a << 8) >> 8) * i64::from((b << 8) >> 8)) >> 16) as i32 })
        }
        // The upper 32 of the 48 bits of the product; the addend joins them.
        (Ty::U32, true, true) => alu!(|a: u32, b: u32, d: u32| -> u32 {
            (((u64::from(a & 0xFF_FFFF) * u64::from(b & 0xFF_FFFF)) >> 16) as u32).wrapping_add(d)
        }),
        (Ty::S32, true, true) => alu!(|a: i32, b: i32, d: i32| -> i32 {
            (((i64::from((a << 8) >> 8) * i64::from((b << 8) >> 8)) >> 16) as i32).wrapping_add(d)
        }),
        _ => return None,
    })
}

/// `mad24.hi.sat.s32`: the addition saturates.
fn sat24(ty: Ty, high_mad: bool) -> Option<AluFn> {
    (ty == Ty::S32 && high_mad).then_some(alu!(|a: i32, b: i32, d: i32| -> i32 {
        (((i64::from((a << 8) >> 8) * i64::from((b << 8) >> 8)) >> 16) as i32).saturating_add(d)
    }))
}

fn multiply(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let mad = m.name.starts_with("mad");
    let lo = m.has("lo");
    let hi = m.has("hi");
    let wide = m.has("wide");
    let writes = m.has("cc");
    let reads = m.name == "madc";
    let sat = m.has("sat");
    let ty = need_ty(c, m)?;
    if u32::from(lo) + u32::from(hi) + u32::from(wide) != 1 {
        return c.err(format!("`{}` needs one of .lo, .hi and .wide", inst.opcode));
    }
    if m.name.ends_with("24") {
        return plain(
            c,
            inst,
            ty,
            if mad { 3 } else { 2 },
            if sat { sat24(ty, hi && mad) } else { mul24(ty, hi, mad) },
            Kind::Integer,
        );
    }
    if reads || writes {
        // The product first, then an addition with carries.
        arity(c, inst, 4)?;
        let f = if hi { mul_hi(ty) } else { ints!(ty, |a, b| { a.wrapping_mul(b) }) };
        let (Some(f), false) = (f, wide) else {
            return c.err(format!("`{}` does not exist for this type", inst.opcode));
        };
        let add: AluFn = if ty.bytes() == 4 { carry32 } else { carry64 };
        let a = c.src(&inst.operands[1], ty)?;
        let b = c.src(&inst.operands[2], ty)?;
        let product = c.planes(2);
        c.writes.extend([product, product + 1]);
        c.alu(f, &[product], &[a, b], 0, Kind::Integer);
        if let Some(last) = c.code.last_mut() {
            last.part = true;
        }
        let e = c.src(&inst.operands[3], ty)?;
        let d = c.dst(&inst.operands[0], ty)?;
        let cc = c.cc;
        c.reads.extend([product, product + 1]);
        if reads {
            c.reads.push(cc);
        }
        if writes {
            c.writes.push(cc);
        }
        c.alu(add, &[d, cc], &[product, e, cc], u32::from(reads) | u32::from(writes) << 1, Kind::Integer);
        return Ok(());
    }
    if wide {
        let f = if mad { mad_wide(ty) } else { mul_wide(ty) };
        let Some(f) = f else {
            return c.err(format!("`{}` does not exist for this type", inst.opcode));
        };
        arity(c, inst, if mad { 4 } else { 3 })?;
        let a = c.src(&inst.operands[1], ty)?;
        let b = c.src(&inst.operands[2], ty)?;
        let e = if mad { c.src(&inst.operands[3], widened(ty))? } else { 0 };
        let d = c.dst(&inst.operands[0], widened(ty))?;
        c.alu(f, &[d], &[a, b, e], 0, Kind::Integer);
        return Ok(());
    }
    let f = match (mad, hi) {
        (false, false) => ints!(ty, |a, b| { a.wrapping_mul(b) }),
        (false, true) => mul_hi(ty),
        (true, false) => ints!(ty, |a, b, d| { a.wrapping_mul(b).wrapping_add(d) }),
        (true, true) => mad_hi(ty, sat),
    };
    plain(c, inst, ty, if mad { 3 } else { 2 }, f, Kind::Integer)
}
