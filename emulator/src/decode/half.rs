//! f16 and bf16 arithmetic, single and packed.

use super::context::{Context, Res};
use super::integer::{arity, need_ty};
use super::mods::Mods;
use super::program::*;
use crate::exec::lanes::{AluFn, B, B2, H, H2, alu};
use crate::numerics::half::{self as num, After, Half, IsBf16, IsF16, both};
use crate::parse::ast::{Inst, Ty};

const FTZ: u32 = 1;
const SAT: u32 = 2;
const RELU: u32 = 4;
const NAN: u32 = 8;

#[inline(always)]
fn after(m: u32) -> After {
    After { ftz: m & FTZ != 0, sat: m & SAT != 0, relu: m & RELU != 0 }
}

fn both3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16, c as u16))
        | u32::from(f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16)) << 16
}

#[inline(never)]
fn function<T: Half>(bits: u16, f: fn(f32) -> f32, ftz: bool) -> u16 {
    let a = if ftz { num::flush::<T>(bits) } else { bits };
    let v = f(T::single(a));
    let r = T::make(f64::from(v));
    if ftz { num::flush::<T>(r) } else { r }
}

#[inline(never)]
fn neg<T: Half>(a: u16, ftz: bool) -> u16 {
    let a = if ftz { num::flush::<T>(a) } else { a };
    if T::single(a).is_nan() { 0x7FFF } else { a ^ 0x8000 }
}

#[inline(never)]
fn abs<T: Half>(a: u16, ftz: bool) -> u16 {
    let a = if ftz { num::flush::<T>(a) } else { a };
    if T::single(a).is_nan() { 0x7FFF } else { a & 0x7FFF }
}

/// The operations of one format, single (`$s`) and packed (`$p`).
macro_rules! format_ops {
    ($fun:ident, $t:ty, $s:ident, $p:ident) => {
        fn $fun(name: &str, packed: bool) -> Option<(AluFn, usize)> {
            Some(match (name, packed) {
                ("add", false) => (alu!(m |a: $s, b: $s| -> $s { $s(num::add::<$t>(a.0, b.0, after(m))) }), 2),
                ("add", true) => (alu!(m |a: $p, b: $p| -> $p { $p(both(a.0, b.0, |a, b| num::add::<$t>(a, b, after(m)))) }), 2),
                ("sub", false) => (alu!(m |a: $s, b: $s| -> $s { $s(num::sub::<$t>(a.0, b.0, after(m))) }), 2),
                ("sub", true) => (alu!(m |a: $p, b: $p| -> $p { $p(both(a.0, b.0, |a, b| num::sub::<$t>(a, b, after(m)))) }), 2),
                ("mul", false) => (alu!(m |a: $s, b: $s| -> $s { $s(num::mul::<$t>(a.0, b.0, after(m))) }), 2),
                ("mul", true) => (alu!(m |a: $p, b: $p| -> $p { $p(both(a.0, b.0, |a, b| num::mul::<$t>(a, b, after(m)))) }), 2),
                ("fma", false) => (alu!(m |a: $s, b: $s, c: $s| -> $s { $s(num::fma::<$t>(a.0, b.0, c.0, after(m))) }), 3),
                ("fma", true) => {
                    (alu!(m |a: $p, b: $p, c: $p| -> $p { $p(both3(a.0, b.0, c.0, |a, b, c| num::fma::<$t>(a, b, c, after(m)))) }), 3)
                }
                ("min", false) => (alu!(m |a: $s, b: $s| -> $s { $s(num::extremum::<$t>(a.0, b.0, false, m & NAN != 0, m & FTZ != 0)) }), 2),
                ("max", false) => (alu!(m |a: $s, b: $s| -> $s { $s(num::extremum::<$t>(a.0, b.0, true, m & NAN != 0, m & FTZ != 0)) }), 2),
                ("min", true) => {
                    (alu!(m |a: $p, b: $p| -> $p { $p(both(a.0, b.0, |a, b| num::extremum::<$t>(a, b, false, m & NAN != 0, m & FTZ != 0))) }), 2)
                }
                ("max", true) => {
                    (alu!(m |a: $p, b: $p| -> $p { $p(both(a.0, b.0, |a, b| num::extremum::<$t>(a, b, true, m & NAN != 0, m & FTZ != 0))) }), 2)
                }
                ("neg", false) => (alu!(m |a: $s| -> $s { $s(neg::<$t>(a.0, m & FTZ != 0)) }), 1),
                ("neg", true) => (alu!(m |a: $p| -> $p { $p(both(a.0, 0, |a, _| neg::<$t>(a, m & FTZ != 0))) }), 1),
                ("abs", false) => (alu!(m |a: $s| -> $s { $s(abs::<$t>(a.0, m & FTZ != 0)) }), 1),
                ("abs", true) => (alu!(m |a: $p| -> $p { $p(both(a.0, 0, |a, _| abs::<$t>(a, m & FTZ != 0))) }), 1),
                ("ex2", false) => (alu!(m |a: $s| -> $s { $s(function::<$t>(a.0, f32::exp2, m & FTZ != 0)) }), 1),
                ("ex2", true) => (alu!(m |a: $p| -> $p { $p(both(a.0, 0, |a, _| function::<$t>(a, f32::exp2, m & FTZ != 0))) }), 1),
                ("tanh", false) => (alu!(m |a: $s| -> $s { $s(function::<$t>(a.0, f32::tanh, m & FTZ != 0)) }), 1),
                ("tanh", true) => (alu!(m |a: $p| -> $p { $p(both(a.0, 0, |a, _| function::<$t>(a, f32::tanh, m & FTZ != 0))) }), 1),
                _ => return None,
            })
        }
    };
}
format_ops!(f16_ops, IsF16, H, H2);
format_ops!(bf16_ops, IsBf16, B, B2);

/// Decodes a half-precision instruction; false when it is another family's.
pub fn decode(c: &mut Context, inst: &Inst, m: &mut Mods, peek: Option<Ty>) -> Res<bool> {
    if !matches!(peek, Some(Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2)) {
        return Ok(false);
    }
    if !matches!(m.name, "add" | "sub" | "mul" | "fma" | "min" | "max" | "neg" | "abs" | "ex2" | "tanh") {
        return Ok(false);
    }
    let mut imm = 0;
    for (name, bit) in [("ftz", FTZ), ("sat", SAT), ("relu", RELU), ("NaN", NAN)] {
        if m.has(name) {
            imm |= bit;
        }
    }
    m.has("rn");
    let approximate = m.has("approx");
    if approximate != matches!(m.name, "ex2" | "tanh") {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    }
    let ty = need_ty(c, m)?;
    if m.ty().is_some() {
        return c.err(format!("the mixed-precision form `{}` is not supported", inst.opcode));
    }
    let packed = matches!(ty, Ty::F16x2 | Ty::Bf16x2);
    let found = if matches!(ty, Ty::F16 | Ty::F16x2) { f16_ops(m.name, packed) } else { bf16_ops(m.name, packed) };
    let Some((f, n)) = found else {
        return c.err(format!("`{}` does not exist in this form", inst.opcode));
    };
    arity(c, inst, n + 1)?;
    let mut s = [0; 4];
    for (slot, op) in s.iter_mut().zip(&inst.operands[1..]) {
        *slot = c.src(op, ty)?;
    }
    let d = c.dst(&inst.operands[0], ty)?;
    c.alu(f, &[d], &s[..n], imm, Kind::Half);
    Ok(true)
}
