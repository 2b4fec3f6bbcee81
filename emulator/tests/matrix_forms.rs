//! The rarer matrix instructions: `wmma`, bits, the quarter-warp products, and `wgmma` descriptors that start anywhere.

mod support;
use ptx_emulator::{Arch, Device, LaunchConfig, Module};
use support::*;

fn run(threads: u32, declarations: &str, body: &str, inputs: &[&[u8]], out: usize) -> Vec<u32> {
    let text = format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n
.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, .param .u64 d)\n{{
.reg .pred %p<9>; .reg .b64 %rd<20>; .reg .b32 %r<20>; .reg .b32 %a<16>; .reg .b32 %b<16>; .reg .b32 %c<16>; .reg .b32 %d<16>;
.reg .f64 %fa; .reg .f64 %fb; .reg .f64 %fc<2>; .reg .f64 %fd<2>;
{declarations}
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c]; ld.param.u64 %rd4, [d]; mov.u32 %r1, %tid.x;\n{body}\nret;\n}}\n"
    );
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{body}: {e}"));
    let mut d = Device::new(Arch::Sm90a);
    let mut p = Params::new();
    for i in 0..3 {
        p = p.u64(put(&mut d, inputs.get(i).copied().unwrap_or(&[0; 16])));
    }
    let y = d.alloc(out as u64 * 4).unwrap();
    launch(&mut d, &module, "k", LaunchConfig::new([1; 3], [threads, 1, 1]), &p.u64(y))
        .unwrap_or_else(|f| panic!("{body}: {f}"));
    get_u32(&d, y, out)
}

fn regs(name: &str, n: usize) -> String {
    format!("{{{}}}", (0..n).map(|i| format!("%{name}{i}")).collect::<Vec<_>>().join(", "))
}

/// Loads and stores of one fragment of each lane.
fn moves(op: &str, name: &str, n: usize, base: u32) -> String {
    let mut s = format!("mad.wide.u32 %rd9, %r1, {}, %rd{base};\n", n * 4);
    for i in 0..n {
        s += &match op {
            "ld" => format!("ld.global.b32 %{name}{i}, [%rd9+{}];\n", i * 4),
            _ => format!("st.global.b32 [%rd9+{}], %{name}{i};\n", i * 4),
        };
    }
    s
}

fn f16(v: i32) -> u16 {
    // Small integers only.
    if v == 0 {
        return 0;
    }
    let f = (v as f32).to_bits();
    ((f >> 16 & 0x8000) | ((f >> 23 & 0xFF) - 112) << 10 | (f >> 13 & 0x3FF)) as u16
}

/// An element in the bits of its type.
fn encode(ty: &str, v: i32) -> u64 {
    match ty {
        "f16" => u64::from(f16(v)),
        "bf16" => u64::from((v as f32).to_bits() >> 16),
        "f32" | "tf32" => u64::from((v as f32).to_bits()),
        "f64" => (f64::from(v)).to_bits(),
        "s8" | "u8" => v as u64 & 0xFF,
        "s4" | "u4" => v as u64 & 0xF,
        "b1" => v as u64 & 1,
        _ => u64::from(v as u32),
    }
}

fn bits(ty: &str) -> usize {
    match ty {
        "f64" => 64,
        "f32" | "tf32" | "s32" => 32,
        "f16" | "bf16" => 16,
        "s8" | "u8" => 8,
        "b1" => 1,
        _ => 4,
    }
}

/// A matrix in memory, row- or column-major with a stride.
fn store(ty: &str, rows: usize, cols: usize, row: bool, stride: usize, f: impl Fn(usize, usize) -> i32) -> Vec<u8> {
    let lines = if row { rows } else { cols };
    let mut out = vec![0; (lines * stride * bits(ty)).div_ceil(8)];
    for r in 0..rows {
        for c in 0..cols {
            let index = if row { r * stride + c } else { c * stride + r };
            let at = index * bits(ty);
            let v = encode(ty, f(r, c)) << (at % 8);
            for (i, b) in v.to_le_bytes().iter().enumerate().take(bits(ty).div_ceil(8)) {
                out[at / 8 + i] |= b;
            }
        }
    }
    out
}

#[test]
fn wmma_of_every_type_and_shape() {
    let shapes = [(16, 16, 16), (8, 32, 16), (32, 8, 16)];
    let mut cases = Vec::new();
    for s in shapes {
        for (ra, rb) in [(true, true), (true, false), (false, true), (false, false)] {
            cases.push((s, "f16", "f32", "f32", ra, rb));
            cases.push((s, "bf16", "f32", "f32", ra, rb));
        }
        cases.push((s, "f16", "f16", "f16", true, false));
        cases.push((s, "f16", "f32", "f16", true, false));
        cases.push((s, "s8", "s32", "s32", true, false));
        cases.push((s, "u8", "s32", "s32", false, true));
    }
    cases.push(((16, 16, 8), "tf32", "f32", "f32", true, false));
    cases.push(((8, 8, 4), "f64", "f64", "f64", true, true));
    for t in ["s4", "u4"] {
        cases.push(((8, 8, 32), t, "s32", "s32", true, false));
    }
    cases.push(((8, 8, 128), "b1", "s32", "s32", true, false));
    for (n, ((m, nn, k), t, td, tc, ra, rb)) in cases.into_iter().enumerate() {
        let signed = !matches!(t, "u8" | "u4" | "b1");
        let value = |i: usize| (i * 7 + i / 5) as i32 % 4 - if signed { 1 } else { 0 };
        let a = |r: usize, l: usize| if t == "b1" { value(r * k + l) & 1 } else { value(r * k + l) };
        let b = |l: usize, c: usize| if t == "b1" { value(l * nn + c + 3) & 1 } else { value(l * nn + c + 3) };
        let c = |r: usize, q: usize| (r * nn + q) as i32 % 40 - 20;
        let name = |row: bool| if row { "row" } else { "col" };
        // Every other case has room between the lines.
        let pad = if n % 2 == 1 { 32 } else { 0 };
        let (sa, sb) = (if ra { k } else { m } + 4 * pad, if rb { nn } else { k } + 4 * pad);
        let sc = nn + pad;
        let inputs = [store(t, m, k, ra, sa, a), store(t, k, nn, rb, sb, b), store(tc, m, nn, true, sc, c)];
        let count = |rows: usize, cols: usize, ty: &str, ab: bool| {
            if ty == "f16" && ab { 8 } else { rows * cols * bits(ty) / 32 / bits(ty).max(32) }
        };
        let list = |name: &str, n: usize| match (t, name) {
            ("f64", "a" | "b") => format!("{{%f{name}}}"),
            ("f64", _) => regs(&format!("f{name}"), 2),
            _ => regs(name, n),
        };
        let shape = format!("m{m}n{nn}k{k}");
        let types = match t {
            "f16" => format!("{td}.{tc}"),
            _ => format!("{td}.{t}.{t}.{tc}"),
        };
        let op = if t == "b1" { "xor.popc." } else { "" };
        let (fa, fb) = (list("a", count(m, k, t, true)), list("b", count(k, nn, t, true)));
        let (fc, fd) = (list("c", count(m, nn, tc, false)), list("d", count(m, nn, td, false)));
        let body = format!(
            "wmma.load.a.sync.aligned.{}.{shape}.global.{t} {fa}, [%rd1], {sa};
wmma.load.b.sync.aligned.{}.{shape}.global.{t} {fb}, [%rd2], {sb};
wmma.load.c.sync.aligned.row.{shape}.global.{tc} {fc}, [%rd3], {sc};
wmma.mma.{op}sync.aligned.{}.{}.{shape}.{types} {fd}, {fa}, {fb}, {fc};
wmma.store.d.sync.aligned.col.{shape}.global.{td} [%rd4], {fd};",
            name(ra),
            name(rb),
            name(ra),
            name(rb)
        );
        let words = m * nn * bits(td) / 32;
        let got = run(32, "", &body, &[&inputs[0], &inputs[1], &inputs[2]], words);
        let product = |x: i32, y: i32| if t == "b1" { x ^ y } else { x * y };
        let want = store(td, m, nn, false, m, |r, q| c(r, q) + (0..k).map(|l| product(a(r, l), b(l, q))).sum::<i32>());
        assert_eq!(bytes_u32(&got), want, "{body}");
    }
}

#[test]
fn wmma_through_shared_memory() {
    let a = store("bf16", 16, 16, true, 16, |r, c| (r + c) as i32 % 5);
    let body = "mad.wide.u32 %rd9, %r1, 16, %rd1; ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd9];
mov.u32 %r2, s; mad.lo.u32 %r3, %r1, 16, %r2; st.shared.v4.b32 [%r3], {%r4, %r5, %r6, %r7}; bar.warp.sync 0xffffffff;
wmma.load.a.sync.aligned.row.m16n16k16.shared.bf16 {%a0, %a1, %a2, %a3}, [%r2];
wmma.load.b.sync.aligned.col.m16n16k16.shared::cta.bf16 {%b0, %b1, %b2, %b3}, [%r2], 16;
mov.b32 %c0, 0;
wmma.mma.sync.aligned.m16n16k16.row.col.f32.bf16.bf16.f32 {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7}, {%a0, %a1, %a2, %a3},
{%b0, %b1, %b2, %b3}, {%c0, %c0, %c0, %c0, %c0, %c0, %c0, %c0};
bar.warp.sync 0xffffffff;
wmma.store.d.sync.aligned.m16n16k16.row.f32 [%rd4], {%d0, %d1, %d2, %d3, %d4, %d5, %d6, %d7};";
    let got = run(32, ".shared .align 32 .b8 s[512];", body, &[&a], 256);
    for (i, v) in got.iter().enumerate() {
        // A times its own transpose.
        let want: usize = (0..16).map(|l| (i / 16 + l) % 5 * ((i % 16 + l) % 5)).sum();
        assert_eq!(f32::from_bits(*v), want as f32);
    }
}

#[test]
fn products_of_quarter_warps() {
    for (ca, cb) in [("row", "row"), ("row", "col"), ("col", "row"), ("col", "col")] {
        for (td, tc) in [("f32", "f32"), ("f16", "f16"), ("f32", "f16")] {
            // Four products q of 8 x 8 x 4.
            let a = |q: usize, r: usize, k: usize| (q + r * 3 + k) as i32 % 5 - 2;
            let b = |q: usize, k: usize, c: usize| (q + k * 2 + c) as i32 % 4 - 1;
            let c = |q: usize, r: usize, n: usize| (q * 64 + r * 8 + n) as i32 % 30;
            let place = |ty: &str, l: usize, i: usize| {
                let (low, x) = (l / 16 * 4, (l & 1) + (i & 2));
                if ty == "f16" { (l % 4 + low, i) } else { (x + low, (i & 4) + (l & 2) + (i & 1)) }
            };
            let (mut fa, mut fb, mut fc) = (Vec::new(), Vec::new(), Vec::new());
            for l in 0..32usize {
                let (q, low) = (l % 16 / 4, l / 16 * 4);
                let ea = |i: usize| if ca == "row" { a(q, l % 4 + low, i) } else { a(q, i + low, l % 4) };
                let eb = |i: usize| if cb == "row" { b(q, l % 4, i + low) } else { b(q, i, l % 4 + low) };
                let pair = |f: &dyn Fn(usize) -> i32, i: usize| u32::from(f16(f(i))) | u32::from(f16(f(i + 1))) << 16;
                fa.extend([pair(&ea, 0), pair(&ea, 2)]);
                fb.extend([pair(&eb, 0), pair(&eb, 2)]);
                let ec = |i: usize| {
                    let (r, n) = place(tc, l, i);
                    c(q, r, n)
                };
                if tc == "f16" {
                    fc.extend((0..4).map(|i| pair(&ec, 2 * i)));
                } else {
                    fc.extend((0..8).map(|i| (ec(i) as f32).to_bits()));
                }
            }
            let (nd, nc) = (if td == "f16" { 4 } else { 8 }, if tc == "f16" { 4 } else { 8 });
            let body = format!(
                "{}{}{}mma.sync.aligned.m8n8k4.{ca}.{cb}.{td}.f16.f16.{tc} {}, {}, {}, {};\n{}",
                moves("ld", "a", 2, 1),
                moves("ld", "b", 2, 2),
                moves("ld", "c", nc, 3),
                regs("d", nd),
                regs("a", 2),
                regs("b", 2),
                regs("c", nc),
                moves("st", "d", nd, 4)
            );
            let got = run(32, "", &body, &[&bytes_u32(&fa), &bytes_u32(&fb), &bytes_u32(&fc)], 32 * nd);
            for l in 0..32 {
                for i in 0..8 {
                    let q = l % 16 / 4;
                    let (r, n) = place(td, l, i);
                    let want = c(q, r, n) + (0..4).map(|k| a(q, r, k) * b(q, k, n)).sum::<i32>();
                    let (got, want) = match td {
                        "f16" => (got[l * 4 + i / 2] >> (16 * (i % 2)) & 0xFFFF, u32::from(f16(want))),
                        _ => (got[l * 8 + i], (want as f32).to_bits()),
                    };
                    assert_eq!(got, want, "{ca} {cb} {td} {tc} lane {l} element {i}");
                }
            }
        }
    }
}

#[test]
fn products_of_bits() {
    for (m, k) in [(8usize, 128usize), (16, 128), (16, 256)] {
        for op in ["and", "xor"] {
            // Words of 32 bits along k.
            let a = |r: usize, w: usize| ((r * 8 + w + 1) as u32).wrapping_mul(0x9E37_79B9);
            let b = |w: usize, c: usize| ((c * 8 + w + 77) as u32).wrapping_mul(0x85EB_CA6B);
            let (na, nb, nc) = (m / 8 * k / 128, k / 128, m / 4);
            let (mut fa, mut fb, mut fc) = (Vec::new(), Vec::new(), Vec::new());
            for l in 0..32usize {
                fa.extend((0..na).map(|j| a(l / 4 + 8 * (j % (m / 8)), j / (m / 8) * 4 + l % 4)));
                fb.extend((0..nb).map(|j| b(j * 4 + l % 4, l / 4)));
                fc.extend((0..nc).map(|i| (l * 4 + i) as u32));
            }
            let body = format!(
                "{}{}{}mma.sync.aligned.m{m}n8k{k}.row.col.s32.b1.b1.s32.{op}.popc {}, {}, {}, {};\n{}",
                moves("ld", "a", na, 1),
                moves("ld", "b", nb, 2),
                moves("ld", "c", nc, 3),
                regs("d", nc),
                regs("a", na),
                regs("b", nb),
                regs("c", nc),
                moves("st", "d", nc, 4)
            );
            let got = run(32, "", &body, &[&bytes_u32(&fa), &bytes_u32(&fb), &bytes_u32(&fc)], 32 * nc);
            for l in 0..32 {
                for i in 0..nc {
                    let (r, c) = (l / 4 + 8 * (i / 2), l % 4 * 2 + i % 2);
                    let ones = |w: usize| match op {
                        "and" => (a(r, w) & b(w, c)).count_ones(),
                        _ => (a(r, w) ^ b(w, c)).count_ones(),
                    };
                    let want = (l * 4 + i) as u32 + (0..k / 32).map(ones).sum::<u32>();
                    assert_eq!(got[l * nc + i], want, "m{m} k{k} {op} lane {l} element {i}");
                }
            }
        }
    }
}

/// A warpgroup multiplies what lies in an image of shared memory; the descriptors are relative to its start.
fn warpgroup(image: &[u8], instruction: &str, a: u64, b: u64, scale: &str) -> Vec<u32> {
    let each = image.len() / 128;
    let mut body = format!("mov.u32 %r2, s; mad.lo.u32 %r3, %r1, {each}, %r2; mad.wide.u32 %rd9, %r1, {each}, %rd1;\n");
    for i in (0..each).step_by(16) {
        body +=
            &format!("ld.global.v4.b32 {}, [%rd9+{i}]; st.shared.v4.b32 [%r3+{i}], {};\n", regs("a", 4), regs("a", 4));
    }
    body += &format!(
        "fence.proxy.async.shared::cta; bar.sync 0;
shr.u32 %r4, %r2, 4; cvt.u64.u32 %rd10, %r4; add.u64 %rd11, %rd10, {a}; add.u64 %rd12, %rd10, {b};
mov.b32 %d0, 0; mov.b32 %d1, 0; mov.b32 %d2, 0; mov.b32 %d3, 0;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.{instruction} {{%d0, %d1, %d2, %d3}}, %rd11, %rd12, 1{scale};
wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;\n{}",
        moves("st", "d", 4, 4)
    );
    run(128, &format!(".shared .align 1024 .b8 s[{}];", image.len()), &body, &[image], 512)
}

/// Row and column of element i of a thread, for m64n8.
fn accumulator(t: usize, i: usize) -> (usize, usize) {
    (t / 32 * 16 + t % 32 / 4 + 8 * (i / 2), t % 4 * 2 + i % 2)
}

#[test]
fn descriptors_with_a_base_offset() {
    let a = |r: usize, k: usize| (r + k * 3) as i32 % 5 - 2;
    let b = |k: usize, n: usize| (n * 2 + k) as i32 % 7 - 3;
    for (swizzle, width) in [(1u64, 128usize), (2, 64), (3, 32)] {
        for (base_a, base_b) in [(0u64, 0u64), (1, 3), (5, 7)] {
            // Rows of `width` bytes; the pattern repeats every 8 rows and starts at base · 128.
            let mut image = vec![0; 12288];
            let start = [128 * base_a as usize, 10240 + 128 * base_b as usize];
            let mut set = |start: usize, r: usize, k: usize, v: i32| {
                let bits = (v as f32).to_bits() >> 16;
                let line = r % 8 * width;
                // 16-byte pieces of each 128 bytes trade places by the number of those 128 bytes within the pattern.
                let mask = width / 16 - 1;
                let at = line + k * 2;
                let piece = (at / 16) ^ ((at / 128) & mask);
                let at = start + r / 8 * 8 * width + piece * 16 + at % 16;
                image[at..at + 2].copy_from_slice(&(bits as u16).to_le_bytes());
            };
            for k in 0..16 {
                (0..64).for_each(|r| set(start[0], r, k, a(r, k)));
                (0..8).for_each(|n| set(start[1], n, k, b(k, n)));
            }
            let describe = |start: usize, base: u64| {
                (start as u64 >> 4) | 1 << 16 | ((8 * width as u64) >> 4) << 32 | base << 49 | swizzle << 62
            };
            let (da, db) = (describe(start[0], base_a), describe(start[1], base_b));
            for (scale, sign) in [(", 1, 1, 0, 0", 1), (", -1, 1, 0, 0", -1), (", -1, -1, 0, 0", 1)] {
                let got = warpgroup(&image, "m64n8k16.f32.bf16.bf16", da, db, scale);
                for (i, v) in got.iter().enumerate() {
                    let (r, n) = accumulator(i / 4, i % 4);
                    let want = sign * (0..16).map(|k| a(r, k) * b(k, n)).sum::<i32>();
                    assert_eq!(f32::from_bits(*v), want as f32, "{width} {base_a} {base_b} row {r} column {n}");
                }
            }
        }
    }
}

#[test]
fn a_warpgroup_multiplies_bits() {
    let a = |r: usize, byte: usize| ((r * 32 + byte + 1) as u32).wrapping_mul(0x9E37_79B9) as u8;
    let b = |byte: usize, n: usize| ((n * 32 + byte + 99) as u32).wrapping_mul(0x85EB_CA6B) as u8;
    let mut image = vec![0; 4096];
    for byte in 0..32 {
        // No swizzle: pieces of 8 rows by 16 bytes.
        (0..64).for_each(|r| image[r * 16 + byte / 16 * 1024 + byte % 16] = a(r, byte));
        (0..8).for_each(|n| image[2048 + n * 16 + byte / 16 * 128 + byte % 16] = b(byte, n));
    }
    let (da, db) = ((1024 >> 4) << 16 | (128 >> 4) << 32, 2048 >> 4 | (128 >> 4) << 16 | (128 >> 4) << 32);
    let got = warpgroup(&image, "m64n8k256.s32.b1.b1.and.popc", da, db, "");
    for (i, v) in got.iter().enumerate() {
        let (r, n) = accumulator(i / 4, i % 4);
        assert_eq!(*v, (0..32).map(|k| (a(r, k) & b(k, n)).count_ones()).sum::<u32>());
    }
}

#[test]
fn operands_of_warpgroup_products_are_checked() {
    let parse = |tail: &str| {
        let text = format!(
            ".version 9.0\n.target sm_90a\n.address_size 64\n.entry k() {{ .reg .f32 %f<4>; .reg .b32 %r<4>; .reg .b64 %rd<4>;\n
wgmma.mma_async.sync.aligned.{tail}; ret; }}"
        );
        Module::parse(&text).is_ok()
    };
    let d = "{%f0, %f1, %f2, %f3}, %rd1, %rd2, 1";
    assert!(parse(&format!("m64n8k16.f32.f16.f16 {d}, 1, -1, 0, 1")));
    assert!(parse(&format!("m64n8k8.f32.tf32.tf32 {d}, 1, -1")));
    for wrong in [
        "m64n8k16.f32.f16.f16 D, 0, 1, 0, 0",
        "m64n8k16.f32.f16.f16 D, 1, 1, 2, 0",
        "m64n8k16.f32.f16.f16 D, 1, 1",
        "m64n8k8.f32.tf32.tf32 D, 1, 1, 0, 0",
        "m64n8k16.f32.bf16.f16 D, 1, 1, 0, 0",
        "m64n8k32.f32.f16.f16 D, 1, 1, 0, 0",
        "m64n12k16.f32.f16.f16 D, 1, 1, 0, 0",
        "m64n8k16.f32.f16.f16.satfinite D, 1, 1, 0, 0",
        "sp.m64n8k32.f32.f16.f16 D, 1, 1, 0, 0",
    ] {
        assert!(!parse(&wrong.replace('D', d)), "{wrong}");
    }
}

#[test]
fn products_of_24_bits_added_high() {
    let cases = [
        (0x00FF_FFFFu32, 0x0000_1234u32, 7u32),
        (0x1280_0001, 0x00FF_FFFE, 0xFFFF_FFFF),
        (0x007F_FFFF, 0x007F_FFFF, 0x7FFF_FFF0),
    ];
    for (a, b, c) in cases {
        let body = format!(
            "mad24.hi.u32 %r2, {a}, {b}, {c}; mad24.hi.s32 %r3, {a}, {b}, {c}; mad24.hi.sat.s32 %r4, {a}, {b}, {c};
st.global.u32 [%rd4], %r2; st.global.u32 [%rd4+4], %r3; st.global.u32 [%rd4+8], %r4;"
        );
        let got = run(1, "", &body, &[], 3);
        let unsigned = ((u64::from(a & 0xFF_FFFF) * u64::from(b & 0xFF_FFFF)) >> 16) as u32;
        let signed = ((i64::from((a as i32) << 8 >> 8) * i64::from((b as i32) << 8 >> 8)) >> 16) as i32;
        let want =
            [unsigned.wrapping_add(c), signed.wrapping_add(c as i32) as u32, signed.saturating_add(c as i32) as u32];
        assert_eq!(got, want);
    }
}
