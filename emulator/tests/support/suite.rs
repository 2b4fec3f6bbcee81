//! The fixed programs of the cross-check: one list for the driver and for the emulator. Inputs follow from a program's name, so
//! that recorded vectors need only hold the outputs.

use super::formats::{Bits, Format, Round};
use super::instructions::{Kind, approximate, defined, hash, inputs};
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
