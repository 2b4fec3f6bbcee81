//! Every shape and format of `mma.sync`, and the matrix loads and stores, against plain loops over the layouts of the ISA.

mod support;
use ptx_emulator::{Arch, Device, LaunchConfig, Module};
use support::*;

/// One warp: fragments come from and go to global memory, `words` 32-bit registers for each lane.
fn run(instruction: &str, counts: [usize; 4], wide: bool, inputs: [&[u32]; 3]) -> Vec<u32> {
    let (size, ty) = if wide { (8, "b64") } else { (4, "b32") };
    let regs = |name: &str, n: usize| (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", ");
    let mut body = String::new();
    for (name, n, base) in [("a", counts[1], "%rd1"), ("b", counts[2], "%rd2"), ("c", counts[3], "%rd3")] {
        body += &format!("mad.wide.u32 %rd9, %lane, {}, {base};\n", n * size);
        for i in 0..n {
            body += &format!("ld.global.{ty} %{name}{i}, [%rd9+{}];\n", i * size);
        }
    }
    let [d, a, b, c] =
        [("d", counts[0]), ("a", counts[1]), ("b", counts[2]), ("c", counts[3])].map(|(n, k)| regs(n, k));
    body += &format!("{instruction} {{{d}}}, {{{a}}}, {{{b}}}, {{{c}}};\n");
    body += &format!("mad.wide.u32 %rd9, %lane, {}, %rd4;\n", counts[0] * size);
    for i in 0..counts[0] {
        body += &format!("st.global.{ty} [%rd9+{}], %d{i};\n", i * size);
    }
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n
.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d)\n{{
.reg .b64 %rd<10>; .reg .b32 %lane; .reg .{ty} %a<16>; .reg .{ty} %b<16>; .reg .{ty} %c<16>; .reg .{ty} %d<16>;
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u64 %rd4, [d]; mov.u32 %lane, %laneid;\n{body}ret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{instruction}: {e}"));
    let mut d = Device::new(Arch::Sm90a);
    let [pa, pb, pc] = inputs.map(|x| put(&mut d, &bytes_u32(x)));
    let out = d.alloc((32 * counts[0] * size) as u64).unwrap();
    let p = Params::new().u64(pa).u64(pb).u64(pc).u64(out);
    launch(&mut d, &module, "k", LaunchConfig::new([1; 3], [32, 1, 1]), &p).unwrap_or_else(|f| panic!("{f}"));
    get_u32(&d, out, 32 * counts[0] * size / 4)
}

#[derive(Clone, Copy, PartialEq)]
enum Ty {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
    S4,
    U4,
}

/// Bits of a small integer in a format.
fn encode(t: Ty, v: i32) -> u32 {
    let f = (v as f32).to_bits();
    // Normal floats of few bits: rebias the exponent and cut the mantissa.
    let small = |exp: u32, man: u32| {
        if v == 0 {
            return 0;
        }
        let e = (f >> 23 & 0xFF) + ((1 << (exp - 1)) - 1) - 127;
        (f >> 31) << (exp + man) | e << man | (f & 0x7F_FFFF) >> (23 - man)
    };
    match t {
        Ty::F16 => small(5, 10),
        Ty::Bf16 => f >> 16,
        Ty::Tf32 => f,
        Ty::E4m3 => small(4, 3),
        Ty::E5m2 => small(5, 2),
        Ty::S8 | Ty::U8 => v as u32 & 0xFF,
        Ty::S4 | Ty::U4 => v as u32 & 0xF,
    }
}

fn bits(t: Ty) -> usize {
    match t {
        Ty::Tf32 => 32,
        Ty::F16 | Ty::Bf16 => 16,
        Ty::S4 | Ty::U4 => 4,
        _ => 8,
    }
}

fn name(t: Ty) -> &'static str {
    ["f16", "bf16", "tf32", "e4m3", "e5m2", "s8", "u8", "s4", "u4"][t as usize]
}

/// Small integers that every format can hold; negative only where the format has a sign.
fn value(t: Ty, i: usize) -> i32 {
    let v = (i * 7 + i / 5) as i32 % 5;
    if matches!(t, Ty::U8 | Ty::U4) { v } else { v - 2 }
}

fn check(shape: (usize, usize, usize), ta: Ty, tb: Ty) {
    let (m, n, k) = shape;
    let integer = matches!(ta, Ty::S8 | Ty::U8 | Ty::S4 | Ty::U4);
    let a = |r: usize, l: usize| value(ta, r * k + l);
    let b = |l: usize, c: usize| value(tb, l * n + c + 3);
    let c = |r: usize, q: usize| (r * n + q) as i32 - 20;
    let per = 32 / bits(ta);
    let (na, nb, nc) = (m * k / 32 / per, n * k / 32 / per, m * n / 32);
    let mut fa = vec![0; 32 * na];
    let mut fb = vec![0; 32 * nb];
    let mut fc = vec![0; 32 * nc];
    for lane in 0..32 {
        let (g, t) = (lane / 4, lane % 4);
        for i in 0..na * per {
            // Registers go through the row blocks first, then along k.
            let (reg, e) = (i / per, i % per);
            let row = g + 8 * (reg % (m / 8));
            let col = reg / (m / 8) * 4 * per + t * per + e;
            fa[lane * na + reg] |= encode(ta, a(row, col)) << (bits(ta) * e % 32);
        }
        for i in 0..nb * per {
            let (reg, e) = (i / per, i % per);
            fb[lane * nb + reg] |= encode(tb, b(reg * 4 * per + t * per + e, g)) << (bits(tb) * e % 32);
        }
        for i in 0..nc {
            let v = c(g + 8 * (i / 2), 2 * t + i % 2);
            fc[lane * nc + i] = if integer { v as u32 } else { (v as f32).to_bits() };
        }
    }
    let acc = if integer { "s32" } else { "f32" };
    let text = format!("mma.sync.aligned.m{m}n{n}k{k}.row.col.{acc}.{}.{}.{acc}", name(ta), name(tb));
    let got = run(&text, [nc, na, nb, nc], false, [&fa, &fb, &fc]);
    for lane in 0..32 {
        for i in 0..nc {
            let (row, col) = (lane / 4 + 8 * (i / 2), 2 * (lane % 4) + i % 2);
            let sum: i32 = c(row, col) + (0..k).map(|l| a(row, l) * b(l, col)).sum::<i32>();
            let want = if integer { sum as u32 } else { (sum as f32).to_bits() };
            assert_eq!(got[lane * nc + i], want, "{text}: row {row}, column {col}");
        }
    }
}

#[test]
fn every_shape_and_format() {
    for t in [Ty::F16, Ty::Bf16] {
        check((16, 8, 8), t, t);
        check((16, 8, 16), t, t);
    }
    check((16, 8, 4), Ty::Tf32, Ty::Tf32);
    check((16, 8, 8), Ty::Tf32, Ty::Tf32);
    for (a, b) in [(Ty::S8, Ty::S8), (Ty::S8, Ty::U8), (Ty::U8, Ty::S8), (Ty::U8, Ty::U8)] {
        for shape in [(8, 8, 16), (16, 8, 16), (16, 8, 32)] {
            check(shape, a, b);
        }
    }
    for (a, b) in [(Ty::S4, Ty::S4), (Ty::S4, Ty::U4), (Ty::U4, Ty::S4), (Ty::U4, Ty::U4)] {
        for shape in [(8, 8, 32), (16, 8, 32), (16, 8, 64)] {
            check(shape, a, b);
        }
    }
    for (a, b) in [(Ty::E4m3, Ty::E4m3), (Ty::E5m2, Ty::E4m3), (Ty::E4m3, Ty::E5m2), (Ty::E5m2, Ty::E5m2)] {
        check((16, 8, 16), a, b);
        check((16, 8, 32), a, b);
    }
}

/// A row of A times a column of B, and C, in f16: D = A·B + C with two elements in a register.
#[test]
fn half_precision_accumulators() {
    for (k, ta, tb) in
        [(8, Ty::F16, Ty::F16), (16, Ty::F16, Ty::F16), (16, Ty::E4m3, Ty::E5m2), (32, Ty::E5m2, Ty::E5m2)]
    {
        let (a, b) = (|r: usize, l: usize| value(ta, r * k + l), |l: usize, c: usize| value(tb, l * 8 + c + 3));
        let c = |r: usize, q: usize| (r * 8 + q) as i32 - 60;
        let per = 32 / bits(ta);
        let word = |t: Ty, e: &dyn Fn(usize) -> i32| (0..per).fold(0u32, |w, i| w | encode(t, e(i)) << (bits(t) * i));
        let (na, nb) = (16 * k / 32 / per, 8 * k / 32 / per);
        let (mut fa, mut fb, mut fc, mut want) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for lane in 0..32 {
            let (g, t) = (lane / 4, lane % 4);
            fa.extend((0..na).map(|j| word(ta, &|i| a(g + 8 * (j % 2), j / 2 * 4 * per + t * per + i))));
            fb.extend((0..nb).map(|j| word(tb, &|i| b(j * 4 * per + t * per + i, g))));
            for row in [g, g + 8] {
                let sum = |q: usize| c(row, q) + (0..k).map(|l| a(row, l) * b(l, q)).sum::<i32>();
                let pair = |x: i32, y: i32| encode(Ty::F16, x) | encode(Ty::F16, y) << 16;
                fc.push(pair(c(row, 2 * t), c(row, 2 * t + 1)));
                want.push(pair(sum(2 * t), sum(2 * t + 1)));
            }
        }
        let text = format!("mma.sync.aligned.m16n8k{k}.row.col.f16.{}.{}.f16", name(ta), name(tb));
        assert_eq!(run(&text, [2, na, nb, 2], false, [&fa, &fb, &fc]), want, "{text}");
    }
}

/// Sums beyond 32 bits stay at the ends with `.satfinite`, and wrap without it.
#[test]
fn integer_sums_saturate_or_wrap() {
    let a = vec![0x7F7F_7F7Fu32; 32 * 4];
    for (b, c) in [(0x7F7F_7F7Fu32, i32::MAX - 5), (0x8080_8080, i32::MIN + 5)] {
        let product = 32 * 127 * if c > 0 { 127i64 } else { -128 };
        let exact = i64::from(c) + product;
        for (suffix, want) in
            [("", exact as i32), (".satfinite", exact.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32)]
        {
            let text = format!("mma.sync.aligned.m16n8k32.row.col{suffix}.s32.s8.s8.s32");
            let got = run(&text, [4, 4, 2, 4], false, [&a, &[b; 64], &[c as u32; 128]]);
            assert!(got.iter().all(|x| *x == want as u32), "{text}: {:#x}, want {want:#x}", got[0]);
        }
    }
}

#[test]
fn double_precision() {
    // m8n8k4: A has one element for each lane (row lane/4, k lane%4), B likewise, C two.
    let words =
        |v: Vec<f64>| v.iter().flat_map(|x| [x.to_bits() as u32, (x.to_bits() >> 32) as u32]).collect::<Vec<_>>();
    let a = words((0..32).map(|l| f64::from(l / 4 + l % 4)).collect());
    let b = words((0..32).map(|l| f64::from(l % 4 * 2 - l / 4)).collect());
    let c = words(vec![0.5; 64]);
    let got = run("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64", [2, 1, 1, 2], true, [&a, &b, &c]);
    for lane in 0..32i32 {
        for i in 0..2 {
            let (row, col) = (lane / 4, 2 * (lane % 4) + i);
            let want = 0.5 + (0..4).map(|k| f64::from((row + k) * (2 * k - col))).sum::<f64>();
            let at = (lane * 2 + i) as usize * 2;
            assert_eq!(f64::from_bits(u64::from(got[at]) | u64::from(got[at + 1]) << 32), want);
        }
    }
}

/// Stores a matrix with one instruction, loads it with another; element (r, c) of tile t is 256 t + 16 r + c.
#[test]
fn matrices_through_shared_memory() {
    for (store, load, transposed) in
        [("", "", false), (".trans", "", true), ("", ".trans", true), (".trans", ".trans", false)]
    {
        let text = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n
.visible .entry k(.param .u64 d)\n{{
.reg .b64 %rd<4>; .reg .b32 %r<20>; .shared .align 16 .b8 s[512];
ld.param.u64 %rd1, [d]; mov.u32 %r1, %laneid;
// Lane l holds, of tile t, row l/4 and columns 2(l%4), 2(l%4)+1.
shr.u32 %r2, %r1, 2; and.b32 %r3, %r1, 3; shl.b32 %r3, %r3, 1; mad.lo.u32 %r4, %r2, 16, %r3;
mad.lo.u32 %r4, %r4, 65537, 65536;
add.u32 %r5, %r4, 0x01000100; add.u32 %r6, %r5, 0x01000100; add.u32 %r7, %r6, 0x01000100;
mov.u32 %r8, s; mad.lo.u32 %r8, %r1, 16, %r8;
stmatrix.sync.aligned.m8n8.x4{store}.shared.b16 [%r8], {{%r4, %r5, %r6, %r7}};
bar.warp.sync 0xffffffff;
ldmatrix.sync.aligned.m8n8.x4{load}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r8];
mad.wide.u32 %rd2, %r1, 16, %rd1; st.global.v4.b32 [%rd2], {{%r10, %r11, %r12, %r13}};
movmatrix.sync.aligned.m8n8.trans.b16 %r14, %r4;
mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.b32 [%rd2+512], %r14;
ret;\n}}\n"
        );
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let mut d = Device::new(Arch::Sm90a);
        let out = d.alloc(640).unwrap();
        let p = Params::new().u64(out);
        launch(&mut d, &module, "k", LaunchConfig::new([1; 3], [32, 1, 1]), &p).unwrap_or_else(|f| panic!("{f}"));
        let got = get_u32(&d, out, 160);
        for lane in 0..32u32 {
            let (r, c) = (lane / 4, lane % 4 * 2);
            let at = |t: u32, transposed: bool| {
                let e = |r: u32, c: u32| 256 * t + if transposed { 16 * c + r } else { 16 * r + c };
                e(r, c) | e(r, c + 1) << 16
            };
            for t in 0..4 {
                assert_eq!(got[(lane * 4 + t) as usize], at(t, transposed), "{store} {load} lane {lane} tile {t}");
            }
            assert_eq!(got[128 + lane as usize], at(0, true));
        }
    }
}
