//! Comparison and selection.

use super::context::{Context, Res};
use super::integer::{arity, need_ty};
use super::mods::Mods;
use super::program::*;
use crate::exec::lanes::{AluFn, B, B2, H, H2, alu};
use crate::numerics::half::{self, Half, IsBf16, IsF16};
use crate::numerics::round::flush;
use crate::parse::ast::{Inst, Operand, Ty};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Unordered variants: true if an operand is NaN.
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

const CMPS: [(&str, Cmp); 18] = [
    ("eq", Cmp::Eq),
    ("ne", Cmp::Ne),
    ("lt", Cmp::Lt),
    ("le", Cmp::Le),
    ("gt", Cmp::Gt),
    ("ge", Cmp::Ge),
    ("equ", Cmp::Equ),
    ("neu", Cmp::Neu),
    ("ltu", Cmp::Ltu),
    ("leu", Cmp::Leu),
    ("gtu", Cmp::Gtu),
    ("geu", Cmp::Geu),
    ("num", Cmp::Num),
    ("nan", Cmp::Nan),
    // Unsigned comparisons of integers.
    ("lo", Cmp::Lt),
    ("ls", Cmp::Le),
    ("hi", Cmp::Gt),
    ("hs", Cmp::Ge),
];

macro_rules! int_cmp {
    ($t:ty, $cmp:expr) => {
        match $cmp {
            Cmp::Eq => Some(alu!(|a: $t, b: $t| -> bool { a == b })),
            Cmp::Ne => Some(alu!(|a: $t, b: $t| -> bool { a != b })),
            Cmp::Lt => Some(alu!(|a: $t, b: $t| -> bool { a < b })),
            Cmp::Le => Some(alu!(|a: $t, b: $t| -> bool { a <= b })),
            Cmp::Gt => Some(alu!(|a: $t, b: $t| -> bool { a > b })),
            Cmp::Ge => Some(alu!(|a: $t, b: $t| -> bool { a >= b })),
            _ => None,
        }
    };
}

/// `$get` turns an operand and the flush flag into something ordered like the numbers.
// The formatter moves a macro inside a macro further right each time.
#[rustfmt::skip]
macro_rules! float_cmp {
    ($t:ty, $cmp:expr, |$v:ident, $m:ident| $get:expr) => {{
        macro_rules! one {
            (|$a:ident, $b:ident| $e:expr) => {
                Some(alu!($m |a: $t, b: $t| -> bool {
                    let ($a, $b) = ({ let $v = a; $get }, { let $v = b; $get });
                    $e
                }))
            };
        }
        // Ordered comparisons are false for NaN, so no two of these forms are the same.
        #[allow(clippy::neg_cmp_op_on_partial_ord, clippy::double_comparisons)]
        match $cmp {
            Cmp::Eq => one!(|a, b| a == b),
            Cmp::Ne => one!(|a, b| a < b || a > b),
            Cmp::Lt => one!(|a, b| a < b),
            Cmp::Le => one!(|a, b| a <= b),
            Cmp::Gt => one!(|a, b| a > b),
            Cmp::Ge => one!(|a, b| a >= b),
            Cmp::Equ => one!(|a, b| !(a < b || a > b)),
            Cmp::Neu => one!(|a, b| a != b),
            Cmp::Ltu => one!(|a, b| !(a >= b)),
            Cmp::Leu => one!(|a, b| !(a > b)),
            Cmp::Gtu => one!(|a, b| !(a <= b)),
            Cmp::Geu => one!(|a, b| !(a < b)),
            Cmp::Num => one!(|a, b| !a.is_nan() && !b.is_nan()),
            Cmp::Nan => one!(|a, b| a.is_nan() || b.is_nan()),
        }
    }};
}

#[inline(always)]
fn f16_value(v: u16, m: u32) -> f32 {
    IsF16::single(if m & 1 != 0 { half::flush::<IsF16>(v) } else { v })
}

#[inline(always)]
fn bf16_value(v: u16) -> f32 {
    IsBf16::single(v)
}

fn comparison(cmp: Cmp, ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::U16 | Ty::B16 => int_cmp!(u16, cmp),
        Ty::S16 => int_cmp!(i16, cmp),
        Ty::U32 | Ty::B32 => int_cmp!(u32, cmp),
        Ty::S32 => int_cmp!(i32, cmp),
        Ty::U64 | Ty::B64 => int_cmp!(u64, cmp),
        Ty::S64 => int_cmp!(i64, cmp),
        Ty::F32 => float_cmp!(f32, cmp, |v, m| if m & 1 != 0 { flush(v) } else { v }),
        Ty::F64 => float_cmp!(f64, cmp, |v, _m| v),
        Ty::F16 => float_cmp!(H, cmp, |v, m| f16_value(v.0, m)),
        Ty::Bf16 => float_cmp!(B, cmp, |v, _m| bf16_value(v.0)),
        _ => None,
    }
}

/// Comparison of the upper halves of packed operands.
fn comparison_high(cmp: Cmp, ty: Ty) -> Option<AluFn> {
    match ty {
        Ty::F16x2 => float_cmp!(H2, cmp, |v, m| f16_value((v.0 >> 16) as u16, m)),
        Ty::Bf16x2 => float_cmp!(B2, cmp, |v, _m| bf16_value((v.0 >> 16) as u16)),
        _ => None,
    }
}

fn boolean(m: &mut Mods) -> Option<AluFn> {
    m.one(&[
        ("and", alu!(|a: bool, b: bool| -> bool { a & b })),
        ("or", alu!(|a: bool, b: bool| -> bool { a | b })),
        ("xor", alu!(|a: bool, b: bool| -> bool { a ^ b })),
    ])
}

/// Emits a helper step of the same instruction, under its guard.
fn step(c: &mut Context, f: AluFn, d: u32, s: &[u32], imm: u32) {
    c.reads.extend_from_slice(s);
    c.writes.push(d);
    c.alu(f, &[d], s, imm, Kind::Compare);
    if let Some(last) = c.code.last_mut() {
        last.part = true;
    }
}

fn count_last(c: &mut Context) {
    if let Some(last) = c.code.last_mut() {
        last.part = false;
    }
}

/// The comparison of two operands into a fresh predicate.
fn compare_into(c: &mut Context, inst: &Inst, cmp: Cmp, ty: Ty, ftz: bool, high: bool) -> Res<u32> {
    let f = if high { comparison_high(cmp, ty) } else { comparison(cmp, ty) };
    let Some(f) = f else {
        return c.err(format!("`{}` does not exist for this type", inst.opcode));
    };
    let a = c.src(&inst.operands[1], ty)?;
    let b = c.src(&inst.operands[2], ty)?;
    let t = c.planes(1);
    step(c, f, t, &[a, b], u32::from(ftz));
    Ok(t)
}

fn low_half(ty: Ty) -> Ty {
    match ty {
        Ty::F16x2 => Ty::F16,
        Ty::Bf16x2 => Ty::Bf16,
        t => t,
    }
}

fn not(c: &mut Context, p: u32) -> u32 {
    let t = c.planes(1);
    step(c, alu!(|a: bool| -> bool { !a }), t, &[p], 0);
    t
}

pub fn decode(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<bool> {
    match m.name {
        "setp" => setp(c, inst, m)?,
        "set" => set(c, inst, m)?,
        "selp" => selp(c, inst, m)?,
        "slct" => slct(c, inst, m)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn need_cmp(c: &Context, m: &mut Mods) -> Res<Cmp> {
    match m.one(&CMPS) {
        Some(cmp) => Ok(cmp),
        None => c.err(format!("`{}` names no comparison", m.opcode)),
    }
}

fn setp(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let cmp = need_cmp(c, m)?;
    let combine = boolean(m);
    let ftz = m.has("ftz");
    let ty = need_ty(c, m)?;
    arity(c, inst, if combine.is_some() { 4 } else { 3 })?;
    let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
    let (first, second) = match &inst.operands[0] {
        Operand::Pair(p, q) => ((**p).clone(), Some((**q).clone())),
        p => (p.clone(), None),
    };
    if combine.is_none() && second.is_none() && !packed {
        // The common form, in one step.
        let Some(f) = comparison(cmp, ty) else {
            return c.err(format!("`{}` does not exist for this type", inst.opcode));
        };
        let a = c.src(&inst.operands[1], ty)?;
        let b = c.src(&inst.operands[2], ty)?;
        let d = c.dst(&first, Ty::Pred)?;
        c.alu(f, &[d], &[a, b], u32::from(ftz), Kind::Compare);
        return Ok(());
    }
    let t = compare_into(c, inst, cmp, low_half(ty), ftz, false)?;
    // The second result is the negated comparison, or that of the upper halves.
    let u = match (&second, packed) {
        (None, _) => None,
        (Some(_), true) => Some(compare_into(c, inst, cmp, ty, ftz, true)?),
        (Some(_), false) => Some(not(c, t)),
    };
    let other = match combine {
        Some(_) => Some(c.src(&inst.operands[3], Ty::Pred)?),
        None => None,
    };
    let copy = alu!(|a: bool| -> bool { a });
    for (dst, value) in [(Some(first), Some(t)), (second, u)] {
        let (Some(dst), Some(value)) = (dst, value) else { continue };
        let d = c.dst(&dst, Ty::Pred)?;
        match (combine, other) {
            (Some(f), Some(o)) => step(c, f, d, &[value, o], 0),
            _ => step(c, copy, d, &[value], 0),
        }
    }
    count_last(c);
    Ok(())
}

fn set(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let cmp = need_cmp(c, m)?;
    let combine = boolean(m);
    let ftz = m.has("ftz");
    let dty = need_ty(c, m)?;
    let ty = need_ty(c, m)?;
    arity(c, inst, if combine.is_some() { 4 } else { 3 })?;
    let t = compare_into(c, inst, cmp, low_half(ty), ftz, false)?;
    let mut results = vec![t];
    if matches!(ty, Ty::F16x2 | Ty::Bf16x2) {
        results.push(compare_into(c, inst, cmp, ty, ftz, true)?);
    }
    if let Some(f) = combine {
        let o = c.src(&inst.operands[3], Ty::Pred)?;
        for r in &mut results {
            let d = c.planes(1);
            step(c, f, d, &[*r, o], 0);
            *r = d;
        }
    }
    let f = match (dty, results.len()) {
        (Ty::U32 | Ty::S32, 1) => alu!(|p: bool| -> u32 { if p { u32::MAX } else { 0 } }),
        (Ty::U16 | Ty::S16, 1) => alu!(|p: bool| -> u16 { if p { u16::MAX } else { 0 } }),
        (Ty::F32, 1) => alu!(|p: bool| -> f32 { if p { 1.0 } else { 0.0 } }),
        (Ty::F16, 1) => alu!(|p: bool| -> u16 { if p { 0x3C00 } else { 0 } }),
        (Ty::Bf16, 1) => alu!(|p: bool| -> u16 { if p { 0x3F80 } else { 0 } }),
        (Ty::F16x2, 2) => {
            alu!(|p: bool, q: bool| -> u32 { (if p { 0x3C00 } else { 0 }) | (if q { 0x3C00_0000 } else { 0 }) })
        }
        (Ty::Bf16x2, 2) => {
            alu!(|p: bool, q: bool| -> u32 { (if p { 0x3F80 } else { 0 }) | (if q { 0x3F80_0000 } else { 0 }) })
        }
        (Ty::U32 | Ty::S32, 2) => {
            alu!(|p: bool, q: bool| -> u32 { (if p { 0xFFFF } else { 0 }) | (if q { 0xFFFF_0000 } else { 0 }) })
        }
        _ => return c.err(format!("`{}` does not exist for these types", inst.opcode)),
    };
    let d = c.dst(&inst.operands[0], dty)?;
    step(c, f, d, &results, 0);
    count_last(c);
    Ok(())
}

fn selp(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let ty = need_ty(c, m)?;
    arity(c, inst, 4)?;
    let f = match ty.bytes() {
        2 => alu!(|a: u16, b: u16, p: bool| -> u16 { if p { a } else { b } }),
        4 => alu!(|a: u32, b: u32, p: bool| -> u32 { if p { a } else { b } }),
        8 => alu!(|a: u64, b: u64, p: bool| -> u64 { if p { a } else { b } }),
        _ => return c.err(format!("`{}` does not exist for this type", inst.opcode)),
    };
    let a = c.src(&inst.operands[1], ty)?;
    let b = c.src(&inst.operands[2], ty)?;
    let p = c.src(&inst.operands[3], Ty::Pred)?;
    let d = c.dst(&inst.operands[0], ty)?;
    c.alu(f, &[d], &[a, b, p], 0, Kind::Compare);
    Ok(())
}

fn slct(c: &mut Context, inst: &Inst, m: &mut Mods) -> Res<()> {
    let ftz = m.has("ftz");
    let ty = need_ty(c, m)?;
    let control = need_ty(c, m)?;
    arity(c, inst, 4)?;
    let a = c.src(&inst.operands[1], ty)?;
    let b = c.src(&inst.operands[2], ty)?;
    let s = c.src(&inst.operands[3], control)?;
    let f = match (ty.bytes(), control) {
        (2, Ty::S32) => alu!(|a: u16, b: u16, s: i32| -> u16 { if s >= 0 { a } else { b } }),
        (4, Ty::S32) => alu!(|a: u32, b: u32, s: i32| -> u32 { if s >= 0 { a } else { b } }),
        (8, Ty::S32) => alu!(|a: u64, b: u64, s: i32| -> u64 { if s >= 0 { a } else { b } }),
        (4, Ty::F32) => {
            alu!(m |a: u32, b: u32, s: f32| -> u32 { if (if m != 0 { flush(s) } else { s }) >= 0.0 { a } else { b } })
        }
        (8, Ty::F32) => {
            alu!(m |a: u64, b: u64, s: f32| -> u64 { if (if m != 0 { flush(s) } else { s }) >= 0.0 { a } else { b } })
        }
        _ => return c.err(format!("`{}` does not exist for these types", inst.opcode)),
    };
    let d = c.dst(&inst.operands[0], ty)?;
    c.alu(f, &[d], &[a, b, s], u32::from(ftz), Kind::Compare);
    Ok(())
}
