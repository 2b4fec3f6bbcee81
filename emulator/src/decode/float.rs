//! Single and double precision arithmetic.

use super::context::{Context, Res};
use super::integer::{arity, need_ty};
use super::mods::Mods;
use super::program::*;
use crate::exec::lanes::{AluFn, alu};
use crate::numerics::approx;
use crate::numerics::format::Rnd;
use crate::numerics::round::*;
use crate::parse::ast::{Inst, Ty};

/// Modifiers of an f32 operation, packed in the immediate: direction, flush, saturate.
const FTZ: u32 = 8;
const SAT: u32 = 16;
const NAN: u32 = 32;
const XORSIGN: u32 = 64;

fn code(r: Rnd) -> u32 {
    match r {
        Rnd::Near | Rnd::Away => 0,
        Rnd::Zero => 1,
        Rnd::Down => 2,
        Rnd::Up => 3,
    }
}

#[inline(always)]
fn dir(imm: u32) -> Rnd {
    match imm & 3 {
        0 => Rnd::Near,
        1 => Rnd::Zero,
        2 => Rnd::Down,
        _ => Rnd::Up,
    }
}

#[inline(always)]
fn pre(v: f32, imm: u32) -> f32 {
    if imm & FTZ != 0 { flush(v) } else { v }
}

#[inline(always)]
fn post(v: f32, imm: u32) -> f32 {
    let v = if imm & FTZ != 0 { flush(v) } else { v };
    if imm & SAT != 0 { saturate(v) } else { canonical(v) }
}

#[inline(always)]
fn post64(v: f64, imm: u32) -> f64 {
    if imm & SAT != 0 { saturate64(v) } else { v }
}

#[inline(never)]
fn extremum32(a: f32, b: f32, imm: u32, max: bool) -> f32 {
    let (a, b) = (pre(a, imm), pre(b, imm));
    let r = if a.is_nan() || b.is_nan() {
        if imm & NAN != 0 || (a.is_nan() && b.is_nan()) {
            return canonical(f32::NAN);
        }
        if a.is_nan() { b } else { a }
    } else {
        let (x, y) = if imm & XORSIGN != 0 { (a.abs(), b.abs()) } else { (a, b) };
        let less = x < y || (x == y && x.is_sign_negative());
        if less != max { x } else { y }
    };
    if imm & XORSIGN != 0 {
        f32::from_bits((r.to_bits() & 0x7FFF_FFFF) | ((a.to_bits() ^ b.to_bits()) & 0x8000_0000))
    } else {
        r
    }
}

fn extremum64(a: f64, b: f64, max: bool) -> f64 {
    if a.is_nan() {
        return b;
    }
    if b.is_nan() {
        return a;
    }
    let less = a < b || (a == b && a.is_sign_negative());
    if less != max { a } else { b }
}

/// Default rounding, no modifier: the common forms, as fast as the machine does them.
fn fast32(name: &str) -> Option<(AluFn, usize)> {
    Some(match name {
        "add" => (alu!(|a: f32, b: f32| -> f32 { canonical(a + b) }), 2),
        "sub" => (alu!(|a: f32, b: f32| -> f32 { canonical(a - b) }), 2),
        "mul" => (alu!(|a: f32, b: f32| -> f32 { canonical(a * b) }), 2),
        "fma" | "mad" => (fma_lanes, 3),
        _ => return None,
    })
}

/// Fused multiply-add on a warp: compiled for machines with the instruction and for those without.
fn fma_lanes(p: &mut crate::exec::lanes::Planes, x: &crate::exec::lanes::Args, active: u32) {
    use crate::exec::lanes::Lane;
    let (a, b, c) = (f32::load(p, x.s[0]), f32::load(p, x.s[1]), f32::load(p, x.s[2]));
    let out = crate::numerics::simd::fma(&a, &b, &c);
    f32::store(p, x.d[0], &out.map(canonical), active);
}

fn general32(name: &str) -> Option<(AluFn, usize)> {
    Some(match name {
        "add" => (alu!(m |a: f32, b: f32| -> f32 { post(add32(pre(a, m), pre(b, m), dir(m)), m) }), 2),
        "sub" => (alu!(m |a: f32, b: f32| -> f32 { post(add32(pre(a, m), -pre(b, m), dir(m)), m) }), 2),
        "mul" => (alu!(m |a: f32, b: f32| -> f32 { post(mul32(pre(a, m), pre(b, m), dir(m)), m) }), 2),
        "fma" | "mad" => {
            (alu!(m |a: f32, b: f32, c: f32| -> f32 { post(fma32(pre(a, m), pre(b, m), pre(c, m), dir(m)), m) }), 3)
        }
        "div" => (alu!(m |a: f32, b: f32| -> f32 { post(div32(pre(a, m), pre(b, m), dir(m)), m) }), 2),
        "rcp" => (alu!(m |a: f32| -> f32 { post(div32(1.0, pre(a, m), dir(m)), m) }), 1),
        "sqrt" => (alu!(m |a: f32| -> f32 { post(sqrt32(pre(a, m), dir(m)), m) }), 1),
        "min" => (alu!(m |a: f32, b: f32| -> f32 { extremum32(a, b, m, false) }), 2),
        "max" => (alu!(m |a: f32, b: f32| -> f32 { extremum32(a, b, m, true) }), 2),
        "neg" => (alu!(m |a: f32| -> f32 { -pre(a, m) }), 1),
        "abs" => (alu!(m |a: f32| -> f32 { pre(a, m).abs() }), 1),
        _ => return None,
    })
}

fn approx32(name: &str) -> Option<(AluFn, usize)> {
    Some(match name {
        "div" => (alu!(m |a: f32, b: f32| -> f32 { post(approx::div(pre(a, m), pre(b, m)), m) }), 2),
        "rcp" => (alu!(m |a: f32| -> f32 { post(approx::rcp(pre(a, m)), m) }), 1),
        "sqrt" => (alu!(m |a: f32| -> f32 { post(approx::sqrt(pre(a, m)), m) }), 1),
        "rsqrt" => (alu!(m |a: f32| -> f32 { post(approx::rsqrt(pre(a, m)), m) }), 1),
        "sin" => (alu!(m |a: f32| -> f32 { post(approx::sin(pre(a, m)), m) }), 1),
        "cos" => (alu!(m |a: f32| -> f32 { post(approx::cos(pre(a, m)), m) }), 1),
        "lg2" => (alu!(m |a: f32| -> f32 { post(approx::lg2(pre(a, m)), m) }), 1),
        "ex2" => (alu!(m |a: f32| -> f32 { post(approx::ex2(pre(a, m)), m) }), 1),
        "tanh" => (alu!(m |a: f32| -> f32 { post(approx::tanh(pre(a, m)), m) }), 1),
        _ => return None,
    })
}

fn general64(name: &str) -> Option<(AluFn, usize)> {
    Some(match name {
        "add" => (alu!(m |a: f64, b: f64| -> f64 { post64(add64(a, b, dir(m)), m) }), 2),
        "sub" => (alu!(m |a: f64, b: f64| -> f64 { post64(add64(a, -b, dir(m)), m) }), 2),
        "mul" => (alu!(m |a: f64, b: f64| -> f64 { post64(mul64(a, b, dir(m)), m) }), 2),
        "fma" | "mad" => (alu!(m |a: f64, b: f64, c: f64| -> f64 { fma64(a, b, c, dir(m)) }), 3),
        "div" => (alu!(m |a: f64, b: f64| -> f64 { div64(a, b, dir(m)) }), 2),
        "rcp" => (alu!(m |a: f64| -> f64 { div64(1.0, a, dir(m)) }), 1),
        "sqrt" => (alu!(m |a: f64| -> f64 { sqrt64(a, dir(m)) }), 1),
        "min" => (alu!(|a: f64, b: f64| -> f64 { extremum64(a, b, false) }), 2),
        "max" => (alu!(|a: f64, b: f64| -> f64 { extremum64(a, b, true) }), 2),
        "neg" => (alu!(|a: f64| -> f64 { -a }), 1),
        "abs" => (alu!(|a: f64| -> f64 { a.abs() }), 1),
        _ => return None,
    })
}

/// The 64-bit approximations read and write only the upper word: 20 bits of mantissa.
fn upper(v: f64) -> f64 {
    let v = if v.abs() < f64::MIN_POSITIVE { 0f64.copysign(v) } else { v };
    f64::from_bits(v.to_bits() & !0xFFFF_FFFF)
}

fn approx64(name: &str, ftz: bool) -> Option<(AluFn, usize)> {
    Some(match (name, ftz) {
        ("rcp", true) => (alu!(|a: f64| -> f64 { upper(1.0 / upper(a)) }), 1),
        ("rsqrt", true) => (alu!(|a: f64| -> f64 { upper(1.0 / upper(a).sqrt()) }), 1),
        ("rsqrt", false) => (alu!(|a: f64| -> f64 { 1.0 / a.sqrt() }), 1),
        _ => return None,
    })
}

fn test(name: &str, ty: Ty) -> Option<AluFn> {
    Some(match (name, ty) {
        ("finite", Ty::F32) => alu!(|a: f32| -> bool { a.is_finite() }),
        ("infinite", Ty::F32) => alu!(|a: f32| -> bool { a.is_infinite() }),
        ("number", Ty::F32) => alu!(|a: f32| -> bool { !a.is_nan() }),
        ("notanumber", Ty::F32) => alu!(|a: f32| -> bool { a.is_nan() }),
        ("normal", Ty::F32) => alu!(|a: f32| -> bool { a.is_normal() || a == 0.0 }),
        ("subnormal", Ty::F32) => alu!(|a: f32| -> bool { a.is_subnormal() }),
        ("finite", Ty::F64) => alu!(|a: f64| -> bool { a.is_finite() }),
        ("infinite", Ty::F64) => alu!(|a: f64| -> bool { a.is_infinite() }),
        ("number", Ty::F64) => alu!(|a: f64| -> bool { !a.is_nan() }),
        ("notanumber", Ty::F64) => alu!(|a: f64| -> bool { a.is_nan() }),
        ("normal", Ty::F64) => alu!(|a: f64| -> bool { a.is_normal() || a == 0.0 }),
        ("subnormal", Ty::F64) => alu!(|a: f64| -> bool { a.is_subnormal() }),
        _ => return None,
    })
}

/// Decodes a float instruction; false when it is another family's.
pub fn decode(c: &mut Context, inst: &Inst, m: &mut Mods, peek: Option<Ty>) -> Res<bool> {
    if !matches!(peek, Some(Ty::F32 | Ty::F64)) {
        return Ok(false);
    }
    match m.name {
        "add" | "sub" | "mul" | "fma" | "mad" | "div" | "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2"
        | "tanh" | "min" | "max" | "neg" | "abs" | "copysign" | "testp" => {}
        _ => return Ok(false),
    }
    if m.name == "testp" {
        let Some(which) = m.next() else { return c.err("testp names a property") };
        let ty = need_ty(c, m)?;
        let Some(f) = test(which, ty) else { return c.err(format!("unknown property in `{}`", inst.opcode)) };
        arity(c, inst, 2)?;
        let s = c.src(&inst.operands[1], ty)?;
        let d = c.dst(&inst.operands[0], Ty::Pred)?;
        c.alu(f, &[d], &[s], 0, Kind::Compare);
        return Ok(true);
    }
    let approximate = m.has("approx");
    let full = m.has("full");
    let rnd = m.rnd();
    let mut imm = rnd.map_or(0, code);
    for (name, bit) in [("ftz", FTZ), ("sat", SAT), ("NaN", NAN)] {
        if m.has(name) {
            imm |= bit;
        }
    }
    if m.has("xorsign") {
        if !m.has("abs") {
            return c.err(".xorsign comes with .abs");
        }
        imm |= XORSIGN;
    }
    // `.sub` of a three-input minimum, and mixed-precision forms, are not in this family.
    let ty = need_ty(c, m)?;
    if m.ty().is_some() {
        return c.err(format!("the mixed-precision form `{}` is not supported", inst.opcode));
    }
    let double = ty == Ty::F64;
    if m.name == "copysign" {
        arity(c, inst, 3)?;
        // The sign comes from the first source.
        let f = if double {
            alu!(|a: f64, b: f64| -> f64 { b.copysign(a) })
        } else {
            alu!(|a: f32, b: f32| -> f32 { b.copysign(a) })
        };
        let a = c.src(&inst.operands[1], ty)?;
        let b = c.src(&inst.operands[2], ty)?;
        let d = c.dst(&inst.operands[0], ty)?;
        c.alu(f, &[d], &[a, b], 0, if double { Kind::Double } else { Kind::Float });
        return Ok(true);
    }
    let found = match (double, approximate || full) {
        (false, false) if imm == 0 => fast32(m.name).or_else(|| general32(m.name)),
        (false, false) => general32(m.name),
        (false, true) if full && m.name == "div" => {
            Some((alu!(m |a: f32, b: f32| -> f32 { post(approx::div_full(pre(a, m), pre(b, m)), m) }) as AluFn, 2))
        }
        (false, true) => approx32(m.name),
        (true, false) => general64(m.name),
        (true, true) => approx64(m.name, imm & FTZ != 0),
    };
    let needs_direction = matches!(m.name, "fma" | "div" | "rcp" | "sqrt") && !approximate && !full;
    let Some((f, n)) = found else {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    };
    if needs_direction && rnd.is_none() {
        return c.err(format!("`{}` needs a rounding modifier", inst.opcode));
    }
    arity(c, inst, n + 1)?;
    let mut s = [0; 4];
    for (slot, op) in s.iter_mut().zip(&inst.operands[1..]) {
        *slot = c.src(op, ty)?;
    }
    let d = c.dst(&inst.operands[0], ty)?;
    c.alu(f, &[d], &s[..n], imm, if double { Kind::Double } else { Kind::Float });
    Ok(true)
}
