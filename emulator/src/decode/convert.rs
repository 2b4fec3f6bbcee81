//! `cvt` in all its forms.

use super::context::{Context, Res, planes_of};
use super::integer::{arity, need_ty};
use super::mods::Mods;
use super::program::*;
use crate::exec::lanes::{AluFn, Args, Lane, Planes, alu};
use crate::numerics::convert::*;
use crate::numerics::format::{self, Format, Rnd};
use crate::numerics::half::{f16_to_f32, f32_to_bf16};
use crate::numerics::round::{canonical, flush};
use crate::parse::ast::{Inst, Operand, Ty};

const FTZ: u32 = 1 << 16;
const SAT: u32 = 1 << 17;
const RELU: u32 = 1 << 18;
const FINITE: u32 = 1 << 19;
/// The float is rounded to an integral float.
const INTEGRAL: u32 = 1 << 20;
const WIDE: u32 = 1 << 21;

const TYPES: [Ty; 15] = [
    Ty::U8,
    Ty::U16,
    Ty::U32,
    Ty::U64,
    Ty::S8,
    Ty::S16,
    Ty::S32,
    Ty::S64,
    Ty::F16,
    Ty::Bf16,
    Ty::F32,
    Ty::F64,
    Ty::Tf32,
    Ty::E4m3x2,
    Ty::E5m2x2,
];
const DIRECTIONS: [Rnd; 5] = [Rnd::Near, Rnd::Away, Rnd::Zero, Rnd::Down, Rnd::Up];

fn index<T: PartialEq>(list: &[T], v: &T) -> u32 {
    list.iter().position(|x| x == v).unwrap_or(0) as u32
}

fn format_of(ty: Ty) -> Option<Format> {
    Some(match ty {
        Ty::F16 | Ty::F16x2 => format::F16,
        Ty::Bf16 | Ty::Bf16x2 => format::BF16,
        Ty::F32 => format::F32,
        Ty::Tf32 => format::TF32,
        Ty::E4m3x2 => format::E4M3,
        Ty::E5m2x2 => format::E5M2,
        _ => return None,
    })
}

enum Number {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
}

fn read(bits: u64, ty: Ty) -> Number {
    match ty {
        Ty::U8 => Number::Unsigned(bits & 0xFF),
        Ty::U16 => Number::Unsigned(bits & 0xFFFF),
        Ty::U32 => Number::Unsigned(bits & 0xFFFF_FFFF),
        Ty::U64 => Number::Unsigned(bits),
        Ty::S8 => Number::Signed(i64::from(bits as i8)),
        Ty::S16 => Number::Signed(i64::from(bits as i16)),
        Ty::S32 => Number::Signed(i64::from(bits as i32)),
        Ty::S64 => Number::Signed(bits as i64),
        Ty::F16 => Number::Float(f64::from(f16_to_f32(bits as u16))),
        Ty::Bf16 => Number::Float(f64::from(f32::from_bits((bits as u32) << 16))),
        Ty::F64 => Number::Float(f64::from_bits(bits)),
        _ => Number::Float(f64::from(f32::from_bits(bits as u32))),
    }
}

/// One lane of a conversion between the plain types.
#[inline(never)]
fn convert(bits: u64, m: u32) -> u64 {
    let (from, to) = (TYPES[(m & 15) as usize], TYPES[(m >> 4 & 15) as usize]);
    let rnd = DIRECTIONS[(m >> 8 & 7) as usize];
    let mut v = read(bits, from);
    if let (Number::Float(f), Ty::F32) = (&v, from)
        && m & FTZ != 0
    {
        v = Number::Float(f64::from(flush(*f as f32)));
    }
    let width = to.bytes() * 8;
    if to.integer() {
        let nan_is_min = from == Ty::F64 || width == 64;
        let out = match v {
            Number::Float(f) if f.is_nan() => {
                if nan_is_min {
                    1u64 << (width - 1)
                } else {
                    0
                }
            }
            Number::Float(f) if to.signed() => to_signed(f, rnd, width) as u64,
            Number::Float(f) => to_unsigned(f, rnd, width),
            Number::Signed(i) if m & SAT != 0 => saturate_integer(i128::from(i), to, width),
            Number::Unsigned(u) if m & SAT != 0 => saturate_integer(i128::from(u), to, width),
            Number::Signed(i) => i as u64,
            Number::Unsigned(u) => u,
        };
        // The register above the type's width holds the extension.
        let shift = 64 - width;
        return if to.signed() { ((out << shift) as i64 >> shift) as u64 } else { out << shift >> shift };
    }
    if to == Ty::F64 {
        let f = match v {
            Number::Float(f) if m & INTEGRAL != 0 => integral(f, rnd),
            Number::Float(f) => f,
            Number::Signed(i) => u64_to_f64(i.unsigned_abs(), i < 0, rnd),
            Number::Unsigned(u) => u64_to_f64(u, false, rnd),
        };
        let f = if m & SAT != 0 { crate::numerics::round::saturate64(f) } else { f };
        return f.to_bits();
    }
    let f = match v {
        Number::Float(f) if m & INTEGRAL != 0 => integral(f, rnd),
        Number::Float(f) => f,
        Number::Signed(i) => i64_to_odd(i),
        Number::Unsigned(u) => u64_to_odd(u),
    };
    u64::from(narrow(f, to, rnd, m))
}

fn saturate_integer(v: i128, to: Ty, width: u32) -> u64 {
    let (min, max) = if to.signed() {
        (i128::from(i64::MIN >> (64 - width)), i128::from(i64::MAX >> (64 - width)))
    } else {
        (0, i128::from(u64::MAX >> (64 - width)))
    };
    v.clamp(min, max) as u64
}

/// Rounds to a narrow format and applies what follows.
#[inline(never)]
fn narrow(f: f64, to: Ty, rnd: Rnd, m: u32) -> u32 {
    let Some(fmt) = format_of(to) else { return 0 };
    let mut f = f;
    if m & RELU != 0 && f < 0.0 {
        f = 0.0;
    }
    if m & RELU != 0 && f == 0.0 {
        f = 0.0;
    }
    if m & SAT != 0 {
        f = if f > 0.0 { f.min(1.0) } else { 0.0 };
    }
    let bits = if m & FINITE != 0 { fmt.round_finite(f, rnd) } else { fmt.round(f, rnd) };
    match to {
        Ty::F32 if m & FTZ != 0 => flush(f32::from_bits(bits)).to_bits(),
        Ty::Tf32 => bits << 13,
        _ => bits,
    }
}

fn convert_lanes(p: &mut Planes, x: &Args, active: u32) {
    let from = TYPES[(x.imm & 15) as usize];
    let a: [u64; 32] = if from.bytes() == 8 { u64::load(p, x.s[0]) } else { u32::load(p, x.s[0]).map(u64::from) };
    let out = a.map(|v| convert(v, x.imm));
    if x.imm & WIDE != 0 {
        u64::store(p, x.d[0], &out, active);
    } else {
        u32::store(p, x.d[0], &out.map(|v| v as u32), active);
    }
}

/// Common conversions without the general machinery.
fn fast(to: Ty, from: Ty, rnd: Option<Rnd>) -> Option<AluFn> {
    Some(match (to, from, rnd) {
        (Ty::U32 | Ty::S32, Ty::U64 | Ty::S64 | Ty::U32 | Ty::S32, None) => alu!(|a: u32| -> u32 { a }),
        (Ty::U16 | Ty::S16, Ty::U32 | Ty::S32 | Ty::U64 | Ty::S64 | Ty::U16 | Ty::S16, None) => {
            alu!(|a: u16| -> u16 { a })
        }
        (Ty::U64 | Ty::S64, Ty::U32, None) => alu!(|a: u32| -> u64 { u64::from(a) }),
        (Ty::U64 | Ty::S64, Ty::S32, None) => alu!(|a: i32| -> i64 { i64::from(a) }),
        (Ty::U64 | Ty::S64, Ty::U16, None) => alu!(|a: u16| -> u64 { u64::from(a) }),
        (Ty::U32 | Ty::S32, Ty::U16, None) => alu!(|a: u16| -> u32 { u32::from(a) }),
        (Ty::U32 | Ty::S32, Ty::S16, None) => alu!(|a: i16| -> i32 { i32::from(a) }),
        (Ty::U32 | Ty::S32, Ty::U8, None) => alu!(|a: u8| -> u32 { u32::from(a) }),
        (Ty::U32 | Ty::S32, Ty::S8, None) => alu!(|a: i8| -> i32 { i32::from(a) }),
        (Ty::F32, Ty::F16, None) => alu!(|a: u16| -> f32 { canonical(f16_to_f32(a)) }),
        (Ty::F32, Ty::Bf16, None) => alu!(|a: u16| -> f32 { canonical(f32::from_bits(u32::from(a) << 16)) }),
        (Ty::F32, Ty::S32, Some(Rnd::Near)) => alu!(|a: i32| -> f32 { a as f32 }),
        (Ty::F32, Ty::U32, Some(Rnd::Near)) => alu!(|a: u32| -> f32 { a as f32 }),
        (Ty::F64, Ty::F32, None) => alu!(|a: f32| -> f64 { f64::from(a) }),
        (Ty::F32, Ty::F64, Some(Rnd::Near)) => alu!(|a: f64| -> f32 { canonical(a as f32) }),
        (Ty::Bf16, Ty::F32, Some(Rnd::Near)) => alu!(|a: f32| -> u16 { f32_to_bf16(a) }),
        (Ty::F16, Ty::F32, Some(Rnd::Near)) => {
            alu!(|a: f32| -> u16 { format::F16.round(f64::from(a), Rnd::Near) as u16 })
        }
        _ => return None,
    })
}

pub fn decode(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let irnd = m.integer_rnd();
    let away = m.has("rna");
    let frnd = if away { Some(Rnd::Away) } else { m.rnd() };
    let mut imm = 0;
    for (name, bit) in [("ftz", FTZ), ("sat", SAT), ("relu", RELU), ("satfinite", FINITE)] {
        if m.has(name) {
            imm |= bit;
        }
    }
    if m.has("pack") {
        return pack(c, inst, m, imm & SAT != 0);
    }
    let to = need_ty(c, m)?;
    let from = need_ty(c, m)?;
    match (to, from) {
        (Ty::F16x2 | Ty::Bf16x2, Ty::F32) => return pair(c, inst, to, frnd, imm),
        (Ty::E4m3x2 | Ty::E5m2x2, Ty::F32) => return pair(c, inst, to, frnd, imm),
        (Ty::E4m3x2 | Ty::E5m2x2, Ty::F16x2) => return halves_to_fp8(c, inst, to, imm),
        (Ty::F16x2, Ty::E4m3x2 | Ty::E5m2x2) => return fp8_to_halves(c, inst, from, imm),
        _ => {}
    }
    arity(c, inst, 2)?;
    if !TYPES[..13].contains(&to) || !TYPES[..12].contains(&from) {
        return c.err(format!("`{}` does not exist for these types", inst.opcode));
    }
    let float_to_float = to.bytes() > 1 && !to.integer() && !from.integer();
    let same_size = to.bytes() == from.bytes();
    let legal = match (to.integer(), from.integer()) {
        (true, true) => irnd.is_none() && frnd.is_none(),
        (true, false) => irnd.is_some() && frnd.is_none(),
        (false, true) => irnd.is_none() && frnd.is_some(),
        (false, false) if irnd.is_some() => same_size && frnd.is_none() && to != Ty::Tf32,
        (false, false) if to.bytes() > from.bytes() || to == from => frnd.is_none(),
        (false, false) => frnd.is_some(),
    };
    if !legal {
        return c.err(format!("`{}` has the wrong rounding modifier", inst.opcode));
    }
    if irnd.is_some() && float_to_float {
        imm |= INTEGRAL;
    }
    let rnd = irnd.or(frnd);
    let wide = c.declared_planes(&inst.operands[0]) >= 2;
    let source = source_type(c, &inst.operands[1], from);
    let s = c.src(&inst.operands[1], source)?;
    let d = c.dst(&inst.operands[0], if to.bytes() == 1 { Ty::U16 } else { to })?;
    if imm == 0
        && (planes_of(to) == 2) == wide
        && let Some(f) = fast(to, from, rnd)
    {
        c.alu(f, &[d], &[s], 0, Kind::Convert);
        return Ok(());
    }
    imm |= index(&TYPES, &from) | index(&TYPES, &to) << 4 | index(&DIRECTIONS, &rnd.unwrap_or(Rnd::Zero)) << 8;
    if wide {
        imm |= WIDE;
    }
    c.alu(convert_lanes, &[d], &[s], imm, Kind::Convert);
    Ok(())
}

/// The width to read the operand with: 8-bit sources live in wider registers.
fn source_type(_c: &Context, _op: &Operand, from: Ty) -> Ty {
    if from.bytes() == 1 { Ty::U16 } else { from }
}

/// Two f32 packed into one register, the first operand above.
fn pair(c: &mut Context, inst: &Inst, to: Ty, rnd: Option<Rnd>, imm: u32) -> Res<()> {
    arity(c, inst, 3)?;
    let Some(rnd) = rnd else {
        return c.err(format!("`{}` needs a rounding modifier", inst.opcode));
    };
    let fp8 = to.bytes() == 2;
    if fp8 && (imm & FINITE == 0 || rnd != Rnd::Near) {
        return c.err(format!("`{}` needs .rn.satfinite", inst.opcode));
    }
    let a = c.src(&inst.operands[1], Ty::F32)?;
    let b = c.src(&inst.operands[2], Ty::F32)?;
    let d = c.dst(&inst.operands[0], if fp8 { Ty::B16 } else { Ty::B32 })?;
    let f = match (to, rnd, imm) {
        (Ty::Bf16x2, Rnd::Near, 0) => {
            alu!(|a: f32, b: f32| -> u32 { u32::from(f32_to_bf16(a)) << 16 | u32::from(f32_to_bf16(b)) })
        }
        _ => alu!(m |a: f32, b: f32| -> u32 {
            let to = [Ty::F16x2, Ty::Bf16x2, Ty::E4m3x2, Ty::E5m2x2][(m & 3) as usize];
            let rnd = DIRECTIONS[(m >> 8 & 7) as usize];
            let shift = to.bytes() * 4;
            narrow(f64::from(a), to, rnd, m) << shift | narrow(f64::from(b), to, rnd, m)
        }),
    };
    let which = index(&[Ty::F16x2, Ty::Bf16x2, Ty::E4m3x2, Ty::E5m2x2], &to);
    c.alu(f, &[d], &[a, b], imm | which | index(&DIRECTIONS, &rnd) << 8, Kind::Convert);
    Ok(())
}

fn halves_to_fp8(c: &mut Context, inst: &Inst, to: Ty, imm: u32) -> Res<()> {
    arity(c, inst, 2)?;
    let s = c.src(&inst.operands[1], Ty::B32)?;
    let d = c.dst(&inst.operands[0], Ty::B16)?;
    let f = alu!(m |a: u32| -> u16 {
        let to = if m & 1 == 0 { Ty::E4m3x2 } else { Ty::E5m2x2 };
        let one = |h: u32| narrow(f64::from(f16_to_f32(h as u16)), to, Rnd::Near, m);
        (one(a >> 16) << 8 | one(a & 0xFFFF)) as u16
    });
    c.alu(f, &[d], &[s], imm | u32::from(to == Ty::E5m2x2), Kind::Convert);
    Ok(())
}

fn fp8_to_halves(c: &mut Context, inst: &Inst, from: Ty, imm: u32) -> Res<()> {
    arity(c, inst, 2)?;
    let s = c.src(&inst.operands[1], Ty::B16)?;
    let d = c.dst(&inst.operands[0], Ty::B32)?;
    let f = alu!(m |a: u16| -> u32 {
        let fmt = if m & 1 == 0 { format::E4M3 } else { format::E5M2 };
        let one = |b: u32| narrow(fmt.value(b), Ty::F16, Rnd::Near, m);
        one(u32::from(a >> 8)) << 16 | one(u32::from(a & 0xFF))
    });
    c.alu(f, &[d], &[s], imm | u32::from(from == Ty::E5m2x2), Kind::Convert);
    Ok(())
}

/// `cvt.pack.sat.dtype.s32 d, a, b` and its form with a third operand.
fn pack(c: &mut Context, inst: &Inst, m: &mut Mods, sat: bool) -> Res<()> {
    let to = need_ty(c, m)?;
    let from = need_ty(c, m)?;
    let third = m.ty();
    let bytes = to.bytes();
    let legal = match third {
        None => bytes == 2,
        Some(t) => bytes == 1 && t == Ty::B32,
    };
    if !sat || from != Ty::S32 || !to.integer() || !legal {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    arity(c, inst, if third.is_some() { 4 } else { 3 })?;
    let a = c.src(&inst.operands[1], Ty::S32)?;
    let b = c.src(&inst.operands[2], Ty::S32)?;
    let e = match third {
        Some(_) => c.src(&inst.operands[3], Ty::B32)?,
        None => c.constant(0, 1),
    };
    let d = c.dst(&inst.operands[0], Ty::B32)?;
    let f = alu!(m |a: i32, b: i32, e: u32| -> u32 {
        let to = TYPES[(m & 15) as usize];
        let width = to.bytes() * 8;
        let ones = (1u64 << width) - 1;
        let one = |v: i32| (saturate_integer(i128::from(v), to, width) & ones) as u32;
        // The earlier contents move up to make room for the two new values.
        (u64::from(e) << (2 * width)) as u32 | one(a) << width | one(b)
    });
    c.alu(f, &[d], &[a, b, e], index(&TYPES, &to), Kind::Convert);
    Ok(())
}
