//! The fixed programs of the cross-check: one list for the driver and for the emulator. Inputs follow from a program's name, so
//! that recorded vectors need only hold the outputs.

use super::formats::{Bits, Format, Round, sum_f32};
use super::layout::Tile;
use super::program::{Program, Tensor, Wgmma, bytes_of, elementwise, mma, tensor_load, tensor_store, wgmma};
use ptx_emulator::TensorType;

/// What two machines may differ in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Agreement {
    /// Nothing: the ISA defines every bit.
    Bits,
    /// An f32 in the low half of each 64 bits: both stay within the ISA's error of the true value, so they may differ by this
    /// many units in the last place, or by this absolute error.
    Approximate { ulps: u32, absolute: f32 },
    /// Sums of a matrix instruction in f32: order, rounding and dropped bits are open. The difference is bounded by this
    /// fraction of the sum of the terms' magnitudes, which stands beside each word.
    Sums { fraction: f64 },
}

pub struct Entry {
    pub id: String,
    pub family: &'static str,
    pub program: Program,
    pub agreement: Agreement,
    /// For sums: exact value and sum of magnitudes of each f32 of the output.
    pub exact: Vec<(f64, f64)>,
    /// The output as worked out from the ISA by a formula of its own, where there is one.
    pub want: Option<Vec<u8>>,
}

fn hash(id: &str) -> u64 {
    id.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3))
}

/// Edge values of integers and floats of every width, then random bits.
fn inputs(id: &str, kind: Kind) -> Vec<[u64; 3]> {
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
enum Kind {
    Integer,
    Single,
    Double,
    Half,
    Positive,
}

type Formula = fn(u64, u64, u64) -> u64;

fn single(v: f32) -> u64 {
    if v.is_nan() { 0x7FFF_FFFF } else { u64::from(v.to_bits()) }
}

fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

/// Instructions whose bits the ISA defines; the formula, where there is one, says what they are.
fn defined() -> Vec<(&'static str, Kind, &'static str, &'static str, Option<Formula>)> {
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
        ("compare", Single, "setp.ltu.f32 %p9, %f1, %f2;", "p", Some(|a, b, _| u64::from(!(f(a) >= f(b))))),
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

fn approximate() -> Vec<(&'static str, u32, f32)> {
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

/// Formats of matrix operands: bits, name, and a random number of the format together with its bits.
fn operand(name: &str, r: &mut Bits, integer: bool) -> (u32, f64) {
    let small = f64::from(r.below(9) as i32 - 4);
    let v = if integer { small } else { f64::from(r.unit()) * 2f64.powi(r.below(6) as i32 - 3) };
    let near = |f: &Format| {
        let b = f.round(v, Round::Nearest, true);
        (b, f.value(b))
    };
    match name {
        "f16" => near(Format::f16()),
        "bf16" => near(Format::bf16()),
        "tf32" => {
            let (b, v) = near(Format::tf32());
            (b << 13, v)
        }
        "e4m3" => near(Format::e4m3()),
        "e5m2" => near(Format::e5m2()),
        "s8" => {
            let x = r.next() as i8;
            (u32::from(x as u8), f64::from(x))
        }
        _ => {
            let x = r.next() as u8;
            (u32::from(x), f64::from(x))
        }
    }
}

fn width(name: &str) -> usize {
    match name {
        "tf32" => 32,
        "f16" | "bf16" => 16,
        _ => 8,
    }
}

struct Matrices {
    a: Vec<(u32, f64)>,
    b: Vec<(u32, f64)>,
    c: Vec<f64>,
    /// [m, n]: exact sum, and the sum of magnitudes.
    sums: Vec<(f64, f64)>,
}

/// A is [m, k], B [n, k], C [m, n]; sums in f64, which is exact for integers and far finer than f32 otherwise.
fn matrices(id: &str, [m, n, k]: [usize; 3], names: [&str; 2], integer: bool) -> Matrices {
    let mut r = Bits(hash(id));
    let a: Vec<_> = (0..m * k).map(|_| operand(names[0], &mut r, integer)).collect();
    let b: Vec<_> = (0..n * k).map(|_| operand(names[1], &mut r, integer)).collect();
    let c: Vec<f64> =
        (0..m * n).map(|_| if integer { f64::from(r.below(65) as i32 - 32) } else { f64::from(r.unit()) }).collect();
    let sums = (0..m * n)
        .map(|i| {
            let terms = (0..k).map(|l| a[i / n * k + l].1 * b[i % n * k + l].1).chain([c[i]]);
            terms.fold((0.0, 0.0), |(s, t), x| (s + x, t + x.abs()))
        })
        .collect();
    Matrices { a, b, c, sums }
}

/// `mma.sync.m16n8`: fragments as the ISA lays them out.
fn matrix_sync(k: usize, names: [&'static str; 2], integer: bool) -> Entry {
    let (ints, bits) = (matches!(names[0], "s8" | "u8"), width(names[0]));
    let exact = integer || ints;
    let acc = if ints { "s32" } else { "f32" };
    let form = format!("mma.sync.aligned.m16n8k{k}.row.col.{acc}.{}.{}.{acc}", names[0], names[1]);
    let id = format!("{form} {}", if exact { "exact" } else { "random" });
    let x = matrices(&id, [16, 8, k], names, exact);
    let per = 32 / bits;
    let (na, nb) = (16 * k * bits / 1024, 8 * k * bits / 1024);
    let word =
        |e: &[(u32, f64)], at: usize| (0..per).fold(0u32, |w, i| w | ((u64::from(e[at + i].0) << (bits * i)) as u32));
    let number = |v: f64| if ints { v as i64 as u32 } else { (v as f32).to_bits() };
    let (mut a, mut b, mut c, mut exacts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        a.extend((0..na).map(|j| word(&x.a, (g + 8 * (j % 2)) * k + j / 2 * 4 * per + t * per)));
        b.extend((0..nb).map(|j| word(&x.b, g * k + j * 4 * per + t * per)));
        for i in 0..4 {
            let at = (g + 8 * (i / 2)) * 8 + 2 * t + i % 2;
            c.push(number(x.c[at]));
            exacts.push(x.sums[at]);
        }
    }
    let want: Vec<u32> = exacts.iter().map(|s| number(s.0)).collect();
    let target = if bits == 8 && !ints { "sm_90a" } else { "sm_80" };
    let program = mma(target, &form, [4, na, nb, 4], false, [&a, &b, &c]);
    entry(id, if exact { "mma exact" } else { "mma sums" }, program, exact, bits, k, exacts, want)
}

fn matrix_group(
    n: usize,
    k: usize,
    names: [&'static str; 2],
    integer: bool,
    spans: [u32; 2],
    from_registers: bool,
    transposed: bool,
) -> Entry {
    let (ints, bits) = (matches!(names[0], "s8" | "u8"), width(names[0]));
    let exact = integer || ints;
    let acc = if ints { "s32" } else { "f32" };
    let form = format!("m64n{n}k{k}.{acc}.{}.{}", names[0], names[1]);
    let how = format!(
        "{}{} {}/{}",
        if from_registers { " registers" } else { "" },
        if transposed { " transposed" } else { "" },
        spans[0],
        spans[1]
    );
    let id = format!("wgmma.{form}{how} {}", if exact { "exact" } else { "random" });
    let x = matrices(&id, [64, n, k], names, exact);
    let number = |v: f64| if ints { v as i64 as u32 } else { (v as f32).to_bits() };
    let (mut c, mut exacts, mut registers) = (Vec::new(), Vec::new(), Vec::new());
    let per = 32 / bits;
    for thread in 0..128 {
        let (g, t) = (16 * (thread / 32) + thread % 32 / 4, thread % 4);
        for i in 0..n / 2 {
            let at = (g + 8 * (i / 2 % 2)) * n + 8 * (i / 4) + 2 * t + i % 2;
            c.push(number(x.c[at]));
            exacts.push(x.sums[at]);
        }
        for j in 0..4 {
            let at = (g + 8 * (j % 2)) * k + per * t + 4 * per * (j / 2);
            registers.push((0..per).fold(0u32, |w, i| w | ((u64::from(x.a[at + i].0) << (bits * i)) as u32)));
        }
    }
    let tile = |rows: usize, span: u32| Tile::new(rows, k, bits / 8, span, transposed, 0);
    let (ta, tb) = (tile(64, spans[0]), tile(n, spans[1]));
    let a = if from_registers { Err(registers) } else { Ok((ta, ta.image(|r, l| x.a[r * k + l].0))) };
    let b = (tb, tb.image(|r, l| x.b[r * k + l].0));
    let t = if transposed { 1 } else { 0 };
    let immediates = match (ints, bits, from_registers) {
        (true, ..) => String::new(),
        (_, 16, false) => format!(", 1, 1, {t}, {t}"),
        (_, 16, true) => format!(", 1, 1, {t}"),
        _ => ", 1, 1".into(),
    };
    let program = wgmma(Wgmma { form: &form, accumulators: n / 2, immediates: &immediates, scale_d: true }, a, b, &c);
    let want: Vec<u32> = exacts.iter().map(|s| number(s.0)).collect();
    entry(id, if exact { "wgmma exact" } else { "wgmma sums" }, program, exact, bits, k, exacts, want)
}

#[expect(clippy::too_many_arguments, reason = "the parts of one entry")]
fn entry(
    id: String,
    family: &'static str,
    program: Program,
    exact: bool,
    bits: usize,
    k: usize,
    sums: Vec<(f64, f64)>,
    want: Vec<u32>,
) -> Entry {
    // f32 sums keep at least 22 bits below the largest term; those of 8-bit floats keep 13 on Hopper.
    let kept = if bits == 8 { 13 } else { 22 };
    let fraction = (k + 1) as f64 * 2f64.powi(-kept);
    let (agreement, want) =
        if exact { (Agreement::Bits, Some(bytes_of(&want))) } else { (Agreement::Sums { fraction }, None) };
    Entry { id, family, program, agreement, exact: sums, want }
}

fn tensor(
    id: &str,
    ty: TensorType,
    dims: &[u64],
    tile: &[u32],
    span: u32,
    nan: bool,
    at: &[i32],
    reduce: Option<&str>,
) -> Entry {
    let es = ty.bytes() as usize;
    let mut strides = Vec::new();
    let mut pitch = dims[0] * es as u64;
    for d in &dims[1..] {
        pitch = pitch.next_multiple_of(16);
        strides.push(pitch);
        pitch *= d;
    }
    let mut r = Bits(hash(id));
    let mut data = |n: usize| (0..n).map(|_| r.next() as u8 & 0x3F).collect::<Vec<u8>>();
    let size = pitch.next_multiple_of(16) as usize;
    let bytes = tile.iter().product::<u32>() as usize * es;
    let map = |buffer| Tensor {
        buffer,
        ty,
        dims: dims.to_vec(),
        strides: strides.clone(),
        tile: tile.to_vec(),
        steps: vec![1; dims.len()],
        span,
        nan_fill: nan,
    };
    let (family, program) = match reduce {
        None => ("tensor load", tensor_load(map(0), data(size), at, bytes)),
        Some(op) => ("tensor store", tensor_store(map(1), data(size), data(bytes.next_multiple_of(1024)), at, op)),
    };
    Entry { id: id.into(), family, program, agreement: Agreement::Bits, exact: Vec::new(), want: None }
}

/// Every program, in a fixed order.
pub fn all() -> Vec<Entry> {
    let mut out = Vec::new();
    for (family, kind, body, result, formula) in defined() {
        let inputs = inputs(body, kind);
        let want = formula.map(|w| inputs.iter().flat_map(|[a, b, c]| w(*a, *b, *c).to_le_bytes()).collect());
        let target = if ["e4m3", "e5m2", "bf16x2 %r9, %r1, %r2;", "s16x2"].iter().any(|x| body.contains(x))
            || body.contains("mul.rn.bf16")
        {
            "sm_90a"
        } else {
            "sm_80"
        };
        let program = elementwise(target, body, result, &inputs);
        out.push(Entry { id: body.into(), family, program, agreement: Agreement::Bits, exact: Vec::new(), want });
    }
    for (body, ulps, absolute) in approximate() {
        let program = elementwise("sm_80", body, "f", &inputs(body, Kind::Positive));
        let agreement = Agreement::Approximate { ulps, absolute };
        out.push(Entry {
            id: body.into(),
            family: "approximations",
            program,
            agreement,
            exact: Vec::new(),
            want: None,
        });
    }
    for integer in [true, false] {
        for (k, name) in
            [(8, "f16"), (16, "f16"), (8, "bf16"), (16, "bf16"), (4, "tf32"), (8, "tf32"), (32, "e4m3"), (32, "e5m2")]
        {
            out.push(matrix_sync(k, [name, name], integer));
        }
        for (k, names) in
            [(16, ["f16"; 2]), (16, ["bf16"; 2]), (8, ["tf32"; 2]), (32, ["e4m3"; 2]), (32, ["e5m2", "e4m3"])]
        {
            out.push(matrix_group(16, k, names, integer, [128, 128], false, false));
            let n = if names[0] == "bf16" { 256 } else { 24 };
            out.push(matrix_group(n, k, names, integer, [128, 64], true, false));
        }
    }
    out.push(matrix_sync(32, ["s8", "u8"], true));
    out.push(matrix_sync(16, ["u8", "u8"], true));
    out.push(matrix_group(96, 32, ["s8", "s8"], true, [32, 64], false, false));
    out.push(matrix_group(16, 32, ["u8", "s8"], true, [16, 16], true, false));
    for span in [16, 32, 64, 128] {
        out.push(matrix_group(40, 16, ["bf16"; 2], true, [span, span], false, false));
        out.push(matrix_group(24, 16, ["f16"; 2], true, [span, span], false, true));
    }
    use TensorType::{Bf16, F16, F32, S32, U16, U32, U64};
    out.push(tensor("load 1d u32 across the end", U32, &[50], &[32], 16, false, &[30], None));
    out.push(tensor("load 2d f16 swizzle 128", F16, &[128, 40], &[64, 16], 128, false, &[32, 30], None));
    out.push(tensor("load 2d bf16 swizzle 64", Bf16, &[128, 40], &[32, 24], 64, false, &[-8, -2], None));
    out.push(tensor("load 2d f32 swizzle 32", F32, &[128, 40], &[8, 24], 32, false, &[8, 3], None));
    out.push(tensor("load 2d f16 swizzle 128 narrow rows", F16, &[128, 40], &[16, 16], 128, false, &[0, 0], None));
    out.push(tensor("load 2d f32 fill with NaN", F32, &[30, 10], &[16, 8], 16, true, &[20, 6], None));
    out.push(tensor("load 2d bf16 fill with NaN", Bf16, &[30, 10], &[16, 8], 16, true, &[20, 6], None));
    out.push(tensor("load 5d u16", U16, &[24, 5, 4, 3, 2], &[16, 2, 3, 2, 2], 16, false, &[4, 4, -1, 2, 1], None));
    out.push(tensor("store 3d u16", U16, &[40, 6, 4], &[16, 4, 2], 32, false, &[30, 4, 3], Some("")));
    out.push(tensor("reduce add f32", F32, &[40, 6], &[8, 4], 32, false, &[4, 4], Some(".add")));
    out.push(tensor("reduce add bf16", Bf16, &[40, 6], &[16, 4], 32, false, &[4, 4], Some(".add")));
    out.push(tensor("reduce max f16", F16, &[40, 6], &[16, 4], 32, false, &[4, 4], Some(".max")));
    out.push(tensor("reduce min s32", S32, &[40, 6], &[8, 4], 32, false, &[4, 4], Some(".min")));
    out.push(tensor("reduce inc u32", U32, &[40, 6], &[8, 4], 32, false, &[4, 4], Some(".inc")));
    out.push(tensor("reduce xor u64", U64, &[40, 6], &[4, 4], 32, false, &[4, 4], Some(".xor")));
    out
}
