//! `wgmma` in its forms: every format, n, layout and option, against plain loops over the ISA's layouts.

mod support;
use proptest::prelude::*;
use ptx_emulator::Numerics;
use support::formats::{Bits, Format, Round};
use support::layout::{SPANS, Tile};
use support::program::{Wgmma, emulate, wgmma, words};

/// Formats by name, bits of an element, and K of an instruction.
const FORMATS: [(&str, usize, usize); 7] = [
    ("f16", 16, 16),
    ("bf16", 16, 16),
    ("tf32", 32, 8),
    ("e4m3", 8, 32),
    ("e5m2", 8, 32),
    ("s8", 8, 32),
    ("u8", 8, 32),
];

#[derive(Debug, Clone)]
struct Case {
    a: &'static str,
    b: &'static str,
    acc: &'static str,
    n: usize,
    spans: [u32; 2],
    transposed: [bool; 2],
    gaps: [usize; 2],
    negate: [bool; 2],
    keep: bool,
    a_registers: bool,
    satfinite: bool,
    seed: u64,
}

fn of(name: &str) -> (&'static str, usize, usize) {
    *FORMATS.iter().find(|f| f.0 == name).expect("a format")
}

/// The encoding of a small integer.
fn encode(name: &str, v: i32) -> u32 {
    let round = |f: &Format| f.round(f64::from(v), Round::Nearest, false);
    match name {
        "f16" => round(Format::f16()),
        "bf16" => (v as f32).to_bits() >> 16,
        // The 13 low bits of tf32 are ignored: fill them.
        "tf32" => (v as f32).to_bits() | (0x1234 * u32::from(v != 0)),
        "e4m3" => round(Format::e4m3()),
        "e5m2" => round(Format::e5m2()),
        _ => v as u32 & 0xFF,
    }
}

/// Integers that every format holds and whose sums are exact in the accumulator.
fn value(name: &str, bits: &mut Bits) -> i32 {
    match name {
        "s8" => bits.next() as i8 as i32,
        "u8" => bits.next() as u8 as i32,
        _ => bits.below(9) as i32 - 4,
    }
}

/// Runs a case in both orders of summation; panics where the result is not the exact one.
fn check(c: &Case) {
    let (_, bits, k) = of(c.a);
    let n = c.n;
    let integer = c.acc == "s32";
    let mut random = Bits(c.seed);
    let a: Vec<i32> = (0..64 * k).map(|_| value(c.a, &mut random)).collect();
    let b: Vec<i32> = (0..n * k).map(|_| value(c.b, &mut random)).collect();
    let wide = |r: &mut Bits| if integer { r.next() as i32 } else { r.below(65) as i32 - 32 };
    let d: Vec<i32> = (0..64 * n).map(|_| wide(&mut random)).collect();
    // The accumulator's bits, and where the ISA puts row and column of element i of a thread.
    let f16 = Format::f16();
    let store = |v: i64| match c.acc {
        "s32" => v as u32,
        "f32" => (v as f32).to_bits(),
        _ => f16.round(v as f64, Round::Nearest, false),
    };
    let place = |thread: usize, i: usize| {
        (16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (thread % 4) + i % 2)
    };
    let fragment = |element: &dyn Fn(usize, usize) -> u32| -> Vec<u32> {
        let mut out = Vec::new();
        for thread in 0..128 {
            let e: Vec<u32> = (0..n / 2).map(|i| place(thread, i)).map(|(r, q)| element(r, q)).collect();
            if c.acc == "f16" { out.extend(e.chunks(2).map(|p| p[0] | p[1] << 16)) } else { out.extend(e) }
        }
        out
    };
    let before = fragment(&|r, q| store(i64::from(d[r * n + q])));
    let sign = c.negate.iter().filter(|x| **x).count() % 2 == 1;
    let want = fragment(&|r, q| {
        let sum: i64 = (0..k).map(|l| i64::from(a[r * k + l]) * i64::from(b[q * k + l])).sum();
        let total = if sign { -sum } else { sum } + if c.keep { i64::from(d[r * n + q]) } else { 0 };
        store(if c.satfinite { total.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) } else { total })
    });
    let tile = |rows: usize, i: usize| Tile::new(rows, k, bits / 8, c.spans[i], c.transposed[i], c.gaps[i]);
    let a_operand = if c.a_registers {
        // Register j of a thread: rows lane/4 (+8 for odd j), and 32 bits' worth of columns at 32·(lane%4) bits (+128 for j > 1).
        let per = 32 / bits;
        let mut registers = Vec::new();
        for thread in 0..128 {
            for j in 0..4 {
                let row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (j % 2);
                let first = per * (thread % 4) + 4 * per * (j / 2);
                let word = (0..per).map(|e| (u64::from(encode(c.a, a[row * k + first + e])) << (bits * e)) as u32);
                registers.push(word.fold(0, |x, y| x | y));
            }
        }
        Err(registers)
    } else {
        let t = tile(64, 0);
        Ok((t, t.image(|r, l| encode(c.a, a[r * k + l]))))
    };
    let b_tile = tile(n, 1);
    let b_image = b_tile.image(|q, l| encode(c.b, b[q * k + l]));
    let sat = if c.satfinite { ".satfinite" } else { "" };
    let form = format!("m64n{n}k{k}{sat}.{}.{}.{}", c.acc, c.a, c.b);
    let mut immediates = String::new();
    if !integer {
        immediates = c.negate.map(|x| if x { ", -1" } else { ", 1" }).concat();
        if bits == 16 {
            let t = c.transposed.map(|x| if x { ", 1" } else { ", 0" });
            immediates += &if c.a_registers { t[1].to_string() } else { t.concat() };
        }
    }
    let accumulators = if c.acc == "f16" { n / 4 } else { n / 2 };
    let w = Wgmma { form: &form, accumulators, immediates: &immediates, scale_d: c.keep };
    let program = wgmma(w, a_operand, (b_tile, b_image), &before);
    for numerics in [Numerics::Ascending, Numerics::Descending] {
        let got = emulate(&program, numerics, c.seed).unwrap_or_else(|f| panic!("{c:?}: {f}"));
        let got = words(&got);
        if let Some(i) = (0..want.len()).find(|&i| got[i] != want[i]) {
            let (thread, e) = (i / accumulators, i % accumulators);
            panic!("{form}: thread {thread}, register {e}: {:#x}, want {:#x}\n{c:?}", got[i], want[i]);
        }
    }
}

fn plain(a: &'static str, b: &'static str, acc: &'static str, n: usize) -> Case {
    Case {
        a,
        b,
        acc,
        n,
        spans: [128, 128],
        transposed: [false; 2],
        gaps: [0; 2],
        negate: [false; 2],
        keep: true,
        a_registers: false,
        satfinite: false,
        seed: n as u64,
    }
}

/// Every pair of formats and accumulator there is.
const PAIRS: [(&str, &str, &str); 16] = [
    ("f16", "f16", "f32"),
    ("f16", "f16", "f16"),
    ("bf16", "bf16", "f32"),
    ("tf32", "tf32", "f32"),
    ("e4m3", "e4m3", "f32"),
    ("e4m3", "e5m2", "f32"),
    ("e5m2", "e4m3", "f32"),
    ("e5m2", "e5m2", "f32"),
    ("e4m3", "e4m3", "f16"),
    ("e4m3", "e5m2", "f16"),
    ("e5m2", "e4m3", "f16"),
    ("e5m2", "e5m2", "f16"),
    ("s8", "s8", "s32"),
    ("s8", "u8", "s32"),
    ("u8", "s8", "s32"),
    ("u8", "u8", "s32"),
];

#[test]
fn every_n_in_bf16_and_int8() {
    for n in (8..=256).step_by(8) {
        check(&plain("bf16", "bf16", "f32", n));
    }
    for n in [8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256] {
        check(&plain("s8", "u8", "s32", n));
    }
}

#[test]
fn every_pair_of_formats_with_a_in_shared_memory_and_in_registers() {
    for (a, b, acc) in PAIRS {
        for a_registers in [false, true] {
            check(&Case { a_registers, ..plain(a, b, acc, 32) });
            check(&Case { a_registers, keep: false, ..plain(a, b, acc, 16) });
        }
    }
}

#[test]
fn every_swizzle_and_major_order() {
    for span_a in SPANS {
        for span_b in SPANS {
            for t in 0..4 {
                let transposed = [t & 1 == 1, t & 2 == 2];
                check(&Case { spans: [span_a, span_b], transposed, gaps: [1, 0], ..plain("f16", "f16", "f32", 72) });
            }
            for format in ["tf32", "e4m3", "s8"] {
                let acc = if format == "s8" { "s32" } else { "f32" };
                check(&Case { spans: [span_a, span_b], gaps: [0, 1], ..plain(format, format, acc, 48) });
            }
        }
    }
}

#[test]
fn integer_sums_saturate_or_wrap() {
    for (a, b) in [("s8", "s8"), ("s8", "u8"), ("u8", "s8"), ("u8", "u8")] {
        for satfinite in [false, true] {
            check(&Case { satfinite, ..plain(a, b, "s32", 224) });
        }
    }
}

#[test]
fn operands_are_negated() {
    for negate in [[true, false], [false, true], [true, true]] {
        for (a, b, acc) in &PAIRS[..12] {
            check(&Case { negate, ..plain(a, b, acc, 8) });
        }
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let options =
        (prop::array::uniform2(0usize..4), prop::array::uniform2(any::<bool>()), prop::array::uniform2(0usize..3));
    (0usize..16, 1usize..33, options, prop::array::uniform2(any::<bool>()), any::<[bool; 3]>(), any::<u64>()).prop_map(
        |(pair, n8, (spans, transposed, gaps), negate, [keep, a_registers, satfinite], seed)| {
            let (a, b, acc) = PAIRS[pair];
            let (_, bits, _) = of(a);
            let integer = acc == "s32";
            let n = if integer && n8 > 3 { 8 * n8.next_multiple_of(2) } else { 8 * n8 };
            Case {
                a,
                b,
                acc,
                n,
                spans: spans.map(|s| SPANS[s]),
                transposed: if bits == 16 { transposed } else { [false; 2] },
                gaps,
                negate: if integer { [false; 2] } else { negate },
                keep,
                a_registers,
                satfinite: integer && satfinite,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_form(c in cases()) {
        check(&c);
    }
}

/// A control: a descriptor with the wrong swizzle reads initialised memory and gives a wrong result, which the check sees.
#[test]
fn a_wrong_swizzle_is_a_wrong_result() {
    let mut seen = 0;
    for (a, b) in [(128, 64), (64, 32), (32, 128)] {
        let t = Tile::new(64, 16, 2, a, false, 0);
        let mut lying = t;
        lying.span = b;
        lying.stride = t.stride;
        let mut random = Bits(7);
        let values: Vec<i32> = (0..64 * 16).map(|_| value("bf16", &mut random)).collect();
        let image = t.image(|r, k| encode("bf16", values[r * 16 + k]));
        let other = Tile::new(8, 16, 2, 128, false, 0);
        let ones = other.image(|r, k| encode("bf16", i32::from(r == k)));
        let w = |t: Tile| {
            let form = "m64n8k16.f32.bf16.bf16";
            let w = Wgmma { form, accumulators: 4, immediates: ", 1, 1, 0, 0", scale_d: false };
            let p = wgmma(w, Ok((t, image.clone())), (other, ones.clone()), &[0; 512]);
            emulate(&p, Numerics::Ascending, 0).unwrap_or_else(|f| panic!("{f}"))
        };
        seen += usize::from(w(t) != w(lying));
    }
    assert_eq!(seen, 3, "each wrong swizzle changes the result");
}
