//! The instructions of the cross-check that work lane by lane, their inputs, and their meaning as formulas.

use super::formats::{Bits, Format, Round, sum_f32};

/// The seed of a program, from its name.
pub fn hash(id: &str) -> u64 {
    id.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

/// Edge values of integers and floats of every width, then random bits.
pub fn inputs(id: &str, kind: Kind) -> Vec<[u64; 3]> {
    let mut r = Bits(hash(id));
    let singles = [
        0u32,
        0x8000_0000,
        0x3F80_0000,
        0xBF80_0000,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0000,
        0x7F7F_FFFF,
        0x0080_0000,
        0x0000_0001,
        0x807F_FFFF,
        0x3F80_0001,
        0x4B00_0001,
        0x4F00_0000,
        0xCF00_0000,
        0x4B7F_FFFF,
    ];
    let integers = [
        0u64,
        1,
        2,
        31,
        32,
        33,
        0x7F,
        0x80,
        0xFF,
        0x7FFF,
        0x8000,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        0xFFFF_FFFF,
        u64::MAX,
    ];
    let doubles = [
        0f64,
        -0.0,
        1.0,
        -1.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
        0.1,
        1e300,
    ];
    let one = |r: &mut Bits| match kind {
        Kind::Integer => {
            if r.below(4) == 0 {
                integers[r.below(16) as usize]
            } else {
                r.next() >> r.below(60)
            }
        }
        Kind::Single => match r.below(4) {
            0 => u64::from(singles[r.below(16) as usize]),
            1 => u64::from(r.next() as u32),
            _ => u64::from((r.unit() * 2f32.powi(r.below(24) as i32 - 12)).to_bits()),
        },
        Kind::Double => {
            if r.below(4) == 0 {
                doubles[r.below(12) as usize].to_bits()
            } else {
                (f64::from(r.unit()) * 1.000_000_1f64.powi(r.below(99) as i32)).to_bits()
            }
        }
        Kind::Half => {
            if r.below(8) == 0 {
                u64::from([0u16, 0x8000, 0x7C00, 0xFC00, 0x7E00, 0x0001, 0x7BFF, 0x3C00][r.below(8) as usize])
                    * 0x1_0001
            } else {
                r.next() & 0xFFFF_FFFF
            }
        }
        Kind::Positive => u64::from((r.unit().abs() * 8.0 + 1.0e-3).to_bits()),
    };
    (0..128).map(|_| [one(&mut r), one(&mut r), one(&mut r)]).collect()
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Integer,
    Single,
    Double,
    Half,
    Positive,
}

pub type Formula = fn(u64, u64, u64) -> u64;

fn single(v: f32) -> u64 {
    if v.is_nan() { 0x7FFF_FFFF } else { u64::from(v.to_bits()) }
}

fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

/// Instructions whose bits the ISA defines; the formula, where there is one, says what they are.
pub fn defined() -> Vec<(&'static str, Kind, &'static str, &'static str, Option<Formula>)> {
    use Kind::{Double, Half, Integer, Single};

    vec![
        (
            "integer",
            Integer,
            "add.s32 %r9, %r1, %r2;",
            "r",
            Some(|a, b, _| u64::from((a as u32).wrapping_add(b as u32))),
        ),
        (
            "integer",
            Integer,
            "sub.sat.s32 %r9, %r1, %r2;",
            "r",
            Some(|a, b, _| u64::from((a as i32).saturating_sub(b as i32) as u32)),
        ),
        (
            "integer",
            Integer,
            "mul.hi.s64 %rd9, %rd1, %rd2;",
            "rd",
            Some(|a, b, _| ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64),
        ),
        (
            "integer",
            Integer,
            "mul.wide.u32 %rd9, %r1, %r2;",
            "rd",
            Some(|a, b, _| u64::from(a as u32) * u64::from(b as u32)),
        ),
        (
            "integer",
            Integer,
            "mad.hi.u32 %r9, %r1, %r2, %r3;",
            "r",
            Some(|a, b, c| {
                u64::from((((a & 0xFFFF_FFFF) * (b & 0xFFFF_FFFF)) >> 32) as u32).wrapping_add(c) & 0xFFFF_FFFF
            }),
        ),
        (
            "integer",
            Integer,
            "sad.s32 %r9, %r1, %r2, %r3;",
            "r",
            Some(|a, b, c| u64::from((a as i32).abs_diff(b as i32).wrapping_add(c as u32))),
        ),
        (
            "integer",
            Integer,
            "dp4a.s32.u32 %r9, %r1, %r2, %r3;",
            "r",
            Some(|a, b, c| {
                let dot: i32 = (0..4).map(|i| i32::from((a >> (8 * i)) as i8) * i32::from((b >> (8 * i)) as u8)).sum();
                u64::from((c as u32).wrapping_add(dot as u32))
            }),
        ),
        (
            "integer",
            Integer,
            "min.s16x2 %r9, %r1, %r2;",
            "r",
            Some(|a, b, _| {
                (0..2).map(|i| u64::from(((a >> (16 * i)) as i16).min((b >> (16 * i)) as i16) as u16) << (16 * i)).sum()
            }),
        ),
        ("bits", Integer, "popc.b64 %r9, %rd1;", "r", Some(|a, _, _| u64::from(a.count_ones()))),
        ("bits", Integer, "clz.b32 %r9, %r1;", "r", Some(|a, _, _| u64::from((a as u32).leading_zeros()))),
        ("bits", Integer, "brev.b64 %rd9, %rd1;", "rd", Some(|a, _, _| a.reverse_bits())),
        (
            "bits",
            Integer,
            "bfind.s32 %r9, %r1;",
            "r",
            Some(|a, _, _| {
                let v = a as i32;
                let m = (if v < 0 { !v } else { v }) as u32;
                u64::from(31u32.wrapping_sub(m.leading_zeros()))
            }),
        ),
        (
            "bits",
            Integer,
            "bfe.u64 %rd9, %rd1, %r2, %r3;",
            "rd",
            Some(|a, b, c| {
                let (position, length) = (b & 0xFF, (c & 0xFF).min(64));
                let shifted = if position > 63 { 0 } else { a >> position };
                if length == 64 { shifted } else { shifted & ((1 << length) - 1) }
            }),
        ),
        (
            "bits",
            Integer,
            "bfi.b32 %r9, %r1, %r2, 5, 11;",
            "r",
            Some(|a, b, _| ((b & !(0x7FF << 5)) | (a & 0x7FF) << 5) & 0xFFFF_FFFF),
        ),
        (
            "bits",
            Integer,
            "shf.l.wrap.b32 %r9, %r1, %r2, %r3;",
            "r",
            Some(|a, b, c| (((b & 0xFFFF_FFFF) << 32 | (a & 0xFFFF_FFFF)) << (c & 31)) >> 32),
        ),
        (
            "bits",
            Integer,
            "shr.s32 %r9, %r1, %r2;",
            "r",
            Some(|a, b, _| u64::from(((a as i32) >> (b as u32).min(31)) as u32)),
        ),
        (
            "bits",
            Integer,
            "lop3.b32 %r9, %r1, %r2, %r3, 0xCA;",
            "r",
            Some(|a, b, c| ((a & b) | (!a & c)) & 0xFFFF_FFFF),
        ),
        (
            "bits",
            Integer,
            "prmt.b32 %r9, %r1, %r2, %r3;",
            "r",
            Some(|a, b, c| {
                let bytes = (a & 0xFFFF_FFFF) | b << 32;
                (0..4)
                    .map(|i| {
                        let s = c >> (4 * i) & 15;
                        let byte = bytes >> (8 * (s & 7)) & 0xFF;
                        (if s & 8 == 0 {
                            byte
                        } else if byte & 0x80 != 0 {
                            0xFF
                        } else {
                            0
                        }) << (8 * i)
                    })
                    .sum()
            }),
        ),
        (
            "bits",
            Integer,
            "fns.b32 %r9, %r1, 0, 3;",
            "r",
            Some(|a, _, _| (0..32).filter(|i| a >> i & 1 == 1).nth(2).unwrap_or(0xFFFF_FFFF)),
        ),
        (
            "compare",
            Single,
            "setp.ltu.f32 %p9, %f1, %f2;",
            "p",
            Some(|a, b, _| u64::from(f(a) < f(b) || f(a).is_nan() || f(b).is_nan())),
        ),
        (
            "compare",
            Single,
            "set.ne.f32.f32 %f9, %f1, %f2;",
            "f",
            Some(|a, b, _| single(if f(a) != f(b) && !f(a).is_nan() && !f(b).is_nan() { 1.0 } else { 0.0 })),
        ),
        ("compare", Single, "min.f32 %f9, %f1, %f2;", "f", None),
        ("compare", Single, "max.NaN.f32 %f9, %f1, %f2;", "f", None),
        (
            "compare",
            Integer,
            "slct.s32.s32 %r9, %r1, %r2, %r3;",
            "r",
            Some(|a, b, c| if c as i32 >= 0 { a & 0xFFFF_FFFF } else { b & 0xFFFF_FFFF }),
        ),
        ("f32", Single, "add.rn.f32 %f9, %f1, %f2;", "f", Some(|a, b, _| single(f(a) + f(b)))),
        ("f32", Single, "mul.rn.f32 %f9, %f1, %f2;", "f", Some(|a, b, _| single(f(a) * f(b)))),
        ("f32", Single, "fma.rn.f32 %f9, %f1, %f2, %f3;", "f", Some(|a, b, c| single(f(a).mul_add(f(b), f(c))))),
        ("f32", Single, "add.rz.f32 %f9, %f1, %f2;", "f", None),
        ("f32", Single, "add.rm.f32 %f9, %f1, %f2;", "f", None),
        ("f32", Single, "mul.rp.f32 %f9, %f1, %f2;", "f", None),
        ("f32", Single, "fma.rz.f32 %f9, %f1, %f2, %f3;", "f", None),
        ("f32", Single, "fma.rn.ftz.sat.f32 %f9, %f1, %f2, %f3;", "f", None),
        ("f32", Single, "div.rn.f32 %f9, %f1, %f2;", "f", Some(|a, b, _| single(f(a) / f(b)))),
        ("f32", Single, "div.rz.f32 %f9, %f1, %f2;", "f", None),
        ("f32", Single, "rcp.rn.f32 %f9, %f1;", "f", Some(|a, _, _| single(1.0 / f(a)))),
        ("f32", Single, "sqrt.rn.f32 %f9, %f1;", "f", Some(|a, _, _| single(f(a).sqrt()))),
        ("f32", Single, "sqrt.rp.f32 %f9, %f1;", "f", None),
        ("f64", Double, "add.rn.f64 %d9, %d1, %d2;", "d", None),
        ("f64", Double, "mul.rz.f64 %d9, %d1, %d2;", "d", None),
        ("f64", Double, "fma.rm.f64 %d9, %d1, %d2, %d3;", "d", None),
        ("f64", Double, "div.rn.f64 %d9, %d1, %d2;", "d", None),
        ("f64", Double, "sqrt.rn.f64 %d9, %d1;", "d", None),
        ("half", Half, "add.rn.f16x2 %r9, %r1, %r2;", "r", None),
        ("half", Half, "mul.rn.bf16x2 %r9, %r1, %r2;", "r", None),
        ("half", Half, "fma.rn.f16 %h9, %h1, %h2, %h3;", "h", None),
        ("half", Half, "fma.rn.bf16 %h9, %h1, %h2, %h3;", "h", None),
        ("half", Half, "fma.rn.relu.bf16x2 %r9, %r1, %r2, %r3;", "r", None),
        ("half", Half, "max.f16x2 %r9, %r1, %r2;", "r", None),
        ("half", Half, "min.NaN.bf16x2 %r9, %r1, %r2;", "r", None),
        (
            "convert",
            Single,
            "cvt.rn.f16.f32 %h9, %f1;",
            "h",
            Some(|a, _, _| u64::from(Format::f16().round(f64::from(f(a)), Round::Nearest, false))),
        ),
        (
            "convert",
            Single,
            "cvt.rz.bf16.f32 %h9, %f1;",
            "h",
            Some(|a, _, _| u64::from(Format::bf16().round(f64::from(f(a)), Round::Zero, false))),
        ),
        (
            "convert",
            Single,
            "cvt.rn.bf16x2.f32 %r9, %f1, %f2;",
            "r",
            Some(|a, b, _| {
                let half = |v| u64::from(Format::bf16().round(f64::from(f(v)), Round::Nearest, false));
                half(a) << 16 | half(b)
            }),
        ),
        ("convert", Single, "cvt.rna.tf32.f32 %r9, %f1;", "r", None),
        (
            "convert",
            Single,
            "cvt.rn.satfinite.e4m3x2.f32 %h9, %f1, %f2;",
            "h",
            Some(|a, b, _| {
                let byte = |v| u64::from(Format::e4m3().round(f64::from(f(v)), Round::Nearest, true));
                byte(a) << 8 | byte(b)
            }),
        ),
        (
            "convert",
            Single,
            "cvt.rn.satfinite.e5m2x2.f32 %h9, %f1, %f2;",
            "h",
            Some(|a, b, _| {
                let byte = |v| u64::from(Format::e5m2().round(f64::from(f(v)), Round::Nearest, true));
                byte(a) << 8 | byte(b)
            }),
        ),
        ("convert", Half, "cvt.rn.f16x2.e4m3x2 %r9, %h1;", "r", None),
        ("convert", Half, "cvt.rn.f16x2.e5m2x2 %r9, %h1;", "r", None),
        (
            "convert",
            Half,
            "cvt.f32.f16 %f9, %h1;",
            "f",
            Some(|a, _, _| single(Format::f16().value(a as u32 & 0xFFFF) as f32)),
        ),
        ("convert", Single, "cvt.rni.s32.f32 %r9, %f1;", "r", None),
        ("convert", Single, "cvt.rzi.u32.f32 %r9, %f1;", "r", None),
        ("convert", Single, "cvt.rzi.s64.f32 %rd9, %f1;", "rd", None),
        ("convert", Single, "cvt.rzi.s8.f32 %r9, %f1;", "r", None),
        (
            "convert",
            Integer,
            "cvt.rn.f32.u64 %f9, %rd1;",
            "f",
            Some(|a, _, _| single(sum_f32((a >> 32 << 32) as f64, (a & 0xFFFF_FFFF) as f64, Round::Nearest))),
        ),
        ("convert", Integer, "cvt.rm.f32.s64 %f9, %rd1;", "f", None),
        ("convert", Integer, "cvt.sat.s8.s32 %r9, %r1;", "r", None),
        ("convert", Integer, "cvt.pack.sat.u8.s32.b32 %r9, %r1, %r2, %r3;", "r", None),
        ("convert", Double, "cvt.rn.f32.f64 %f9, %d1;", "f", None),
        ("warp", Integer, "shfl.sync.bfly.b32 %r9, %r1, 5, 31, 0xffffffff;", "r", None),
        ("warp", Integer, "shfl.sync.up.b32 %r9|%p4, %r1, 3, 0, 0xffffffff;", "r", None),
        ("warp", Integer, "shfl.sync.idx.b32 %r9, %r1, %r2, 0x101f, 0xffffffff;", "r", None),
        ("warp", Integer, "vote.sync.ballot.b32 %r9, %p1, 0xffffffff;", "r", None),
        ("warp", Integer, "and.b32 %r4, %r1, 3; match.any.sync.b32 %r9, %r4, 0xffffffff;", "r", None),
        ("warp", Integer, "redux.sync.add.s32 %r9, %r1, 0xffffffff;", "r", None),
        ("warp", Integer, "redux.sync.max.u32 %r9, %r1, 0xffffffff;", "r", None),
    ]
}

pub fn approximate() -> Vec<(&'static str, u32, f32)> {
    vec![
        ("rcp.approx.ftz.f32 %f9, %f1;", 2, 0.0),
        ("sqrt.approx.ftz.f32 %f9, %f1;", 3, 0.0),
        ("rsqrt.approx.ftz.f32 %f9, %f1;", 4, 0.0),
        ("sin.approx.ftz.f32 %f9, %f1;", 0, 1.4e-6),
        ("cos.approx.ftz.f32 %f9, %f1;", 0, 1.4e-6),
        ("lg2.approx.ftz.f32 %f9, %f1;", 4, 4.8e-7),
        ("ex2.approx.ftz.f32 %f9, %f1;", 4, 0.0),
        ("tanh.approx.f32 %f9, %f1;", 0, 9.8e-4),
        ("div.approx.f32 %f9, %f1, %f2;", 4, 0.0),
        ("div.full.f32 %f9, %f1, %f2;", 4, 0.0),
    ]
}
