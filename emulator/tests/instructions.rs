//! One instruction at a time: results worked out by hand from the PTX ISA.
//!
//! Inputs a, b, c are in %rd1..3 (64 bits), %r1..3 (their low 32 bits), %h1..3 (low 16), %f1..3 and %d1..3 (their bits as
//! floats). The result is taken from %rd9, %r9, %h9, %f9, %d9 or %p9, by the register named last in the case.

mod support;
use ptx_emulator::{LaunchConfig, Module};
use support::*;

fn program(body: &str, out: &str) -> String {
    let store = match out {
        "rd" => "st.global.b64 [%rd8], %rd9;".to_string(),
        "r" => "cvt.u64.u32 %rd9, %r9; st.global.b64 [%rd8], %rd9;".into(),
        "h" => "cvt.u64.u16 %rd9, %h9; st.global.b64 [%rd8], %rd9;".into(),
        "f" => "mov.b32 %r9, %f9; cvt.u64.u32 %rd9, %r9; st.global.b64 [%rd8], %rd9;".into(),
        "d" => "mov.b64 %rd9, %d9; st.global.b64 [%rd8], %rd9;".into(),
        _ => "selp.b64 %rd9, 1, 0, %p9; st.global.b64 [%rd8], %rd9;".into(),
    };
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n
.visible .entry k(.param .u64 p, .param .u64 a, .param .u64 b, .param .u64 c)\n{{
.reg .b64 %rd<20>; .reg .b32 %r<20>; .reg .b16 %h<20>; .reg .f32 %f<20>; .reg .f64 %d<20>; .reg .pred %p<20>;
ld.param.u64 %rd8, [p]; ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [c];
cvt.u32.u64 %r1, %rd1; cvt.u32.u64 %r2, %rd2; cvt.u32.u64 %r3, %rd3;
cvt.u16.u64 %h1, %rd1; cvt.u16.u64 %h2, %rd2; cvt.u16.u64 %h3, %rd3;
mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3; mov.b64 %d1, %rd1; mov.b64 %d2, %rd2; mov.b64 %d3, %rd3;
setp.ne.u32 %p1, %r1, 0; setp.ne.u32 %p2, %r2, 0; setp.ne.u32 %p3, %r3, 0;
{body}\n{store}\nret;\n}}\n"
    )
}

fn run(body: &str, out: &str, inputs: [u64; 3]) -> u64 {
    let text = program(body, out);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{body}: {e}"));
    let mut d = ptx_emulator::Device::new(ptx_emulator::Arch::Sm90a);
    let a = put(&mut d, &[0; 8]);
    let p = Params::new().u64(a).u64(inputs[0]).u64(inputs[1]).u64(inputs[2]);
    launch(&mut d, &module, "k", LaunchConfig::new([1; 3], [1; 3]), &p).unwrap_or_else(|f| panic!("{body}: {f}"));
    let mut b = [0; 8];
    d.copy_out(&mut b, a).unwrap();
    u64::from_le_bytes(b)
}

fn check(cases: &[(&str, &str, [u64; 3], u64)]) {
    let mut wrong = Vec::new();
    for &(body, out, inputs, want) in cases {
        let got = run(body, out, inputs);
        if got != want {
            wrong.push(format!("{body}  {inputs:x?}: got {got:#x}, want {want:#x}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

const fn f(x: f32) -> u64 {
    x.to_bits() as u64
}

const fn g(x: f64) -> u64 {
    x.to_bits()
}

const M1: u64 = u64::MAX;

#[test]
fn integer() {
    check(&[
        ("add.s32 %r9, %r1, %r2;", "r", [7, M1, 0], 6),
        ("add.sat.s32 %r9, %r1, %r2;", "r", [0x7FFF_FFFF, 1, 0], 0x7FFF_FFFF),
        ("sub.sat.s32 %r9, %r1, %r2;", "r", [0x8000_0000, 1, 0], 0x8000_0000),
        ("sub.s64 %rd9, %rd1, %rd2;", "rd", [1, 2, 0], M1),
        ("add.u16 %h9, %h1, %h2;", "h", [0xFFFF, 2, 0], 1),
        ("add.u16x2 %r9, %r1, %r2;", "r", [0x0001_FFFF, 0x0002_0001, 0], 0x0003_0000),
        ("mul.lo.s32 %r9, %r1, %r2;", "r", [0x1_0001, 0x1_0001, 0], 0x2_0001),
        ("mul.hi.s32 %r9, %r1, %r2;", "r", [M1, 5, 0], 0xFFFF_FFFF),
        ("mul.hi.u32 %r9, %r1, %r2;", "r", [0xFFFF_FFFF, 0xFFFF_FFFF, 0], 0xFFFF_FFFE),
        ("mul.wide.s32 %rd9, %r1, %r2;", "rd", [M1, 5, 0], M1 - 4),
        ("mul.wide.u32 %rd9, %r1, %r2;", "rd", [0xFFFF_FFFF, 2, 0], 0x1_FFFF_FFFE),
        ("mul.wide.s16 %r9, %h1, %h2;", "r", [0xFFFF, 3, 0], 0xFFFF_FFFD),
        ("mul.hi.u64 %rd9, %rd1, %rd2;", "rd", [M1, M1, 0], M1 - 1),
        ("mul.hi.s64 %rd9, %rd1, %rd2;", "rd", [M1, M1, 0], 0),
        ("mad.lo.s32 %r9, %r1, %r2, %r3;", "r", [3, 4, 5], 17),
        ("mad.hi.u32 %r9, %r1, %r2, %r3;", "r", [0x8000_0000, 4, 5], 7),
        ("mad.wide.s32 %rd9, %r1, %r2, %rd3;", "rd", [M1, 5, 10], 5),
        ("mad.hi.sat.s32 %r9, %r1, %r2, %r3;", "r", [0x7FFF_FFFF, 0x7FFF_FFFF, 0x7FFF_FFFF], 0x7FFF_FFFF),
        ("mul24.lo.s32 %r9, %r1, %r2;", "r", [0xFF_FFFF, 3, 0], 0xFFFF_FFFD),
        ("mul24.hi.u32 %r9, %r1, %r2;", "r", [0xFF_FFFF, 0xFF_FFFF, 0], 0xFFFF_FE00),
        ("div.s32 %r9, %r1, %r2;", "r", [(-7i32) as u32 as u64, 2, 0], (-3i32) as u32 as u64),
        ("div.s32 %r9, %r1, %r2;", "r", [0x8000_0000, M1, 0], 0x8000_0000),
        ("rem.s32 %r9, %r1, %r2;", "r", [(-7i32) as u32 as u64, 2, 0], 0xFFFF_FFFF),
        ("div.u64 %rd9, %rd1, %rd2;", "rd", [M1, 10, 0], M1 / 10),
        ("rem.u64 %rd9, %rd1, %rd2;", "rd", [M1, 10, 0], M1 % 10),
        ("abs.s32 %r9, %r1;", "r", [M1, 0, 0], 1),
        ("neg.s64 %rd9, %rd1;", "rd", [5, 0, 0], M1 - 4),
        ("min.s32 %r9, %r1, %r2;", "r", [M1, 3, 0], 0xFFFF_FFFF),
        ("max.u32 %r9, %r1, %r2;", "r", [M1, 3, 0], 0xFFFF_FFFF),
        ("min.s16x2 %r9, %r1, %r2;", "r", [0x0001_FFFF, 0xFFFF_0001, 0], 0xFFFF_FFFF),
        ("max.s32.relu %r9, %r1, %r2;", "r", [M1, M1 - 5, 0], 0),
        ("sad.s32 %r9, %r1, %r2, %r3;", "r", [M1, 5, 100], 106),
        ("sad.u32 %r9, %r1, %r2, %r3;", "r", [3, 10, 1], 8),
        ("add.cc.u32 %r4, %r1, %r2; addc.u32 %r9, %r3, 0;", "r", [M1, 1, 7], 8),
        ("sub.cc.u32 %r4, %r1, %r2; subc.u32 %r9, %r3, 0;", "r", [0, 1, 7], 6),
        ("mad.lo.cc.u32 %r4, %r1, %r2, %r3; madc.hi.u32 %r9, %r1, %r2, 0;", "r", [0xFFFF_FFFF, 2, 2], 2),
        ("add.cc.u64 %rd4, %rd1, %rd2; addc.u64 %rd9, %rd3, 0;", "rd", [M1, 1, 7], 8),
        ("popc.b64 %r9, %rd1;", "r", [M1, 0, 0], 64),
        ("clz.b32 %r9, %r1;", "r", [1, 0, 0], 31),
        ("clz.b64 %r9, %rd1;", "r", [0, 0, 0], 64),
        ("brev.b32 %r9, %r1;", "r", [1, 0, 0], 0x8000_0000),
        ("bfind.u32 %r9, %r1;", "r", [0x10, 0, 0], 4),
        ("bfind.s32 %r9, %r1;", "r", [M1, 0, 0], 0xFFFF_FFFF),
        ("bfind.shiftamt.u32 %r9, %r1;", "r", [0x10, 0, 0], 27),
        ("bfe.u32 %r9, %r1, %r2, %r3;", "r", [0xABCD_1234, 8, 8], 0x12),
        ("bfe.s32 %r9, %r1, %r2, %r3;", "r", [0xABCD_F234, 8, 8], 0xFFFF_FFF2),
        ("bfe.s32 %r9, %r1, %r2, %r3;", "r", [0x8000_0000, 28, 8], 0xFFFF_FFF8),
        ("bfe.u64 %rd9, %rd1, %r2, %r3;", "rd", [0xABCD_0000_0000, 32, 16], 0xABCD),
        ("bfi.b32 %r9, %r1, %r2, 8, 8;", "r", [0xAB, 0x1111_1111, 0], 0x1111_AB11),
        ("bfi.b64 %rd9, %rd1, %rd2, 60, 8;", "rd", [0xFF, 0, 0], 0xF000_0000_0000_0000),
        ("fns.b32 %r9, %r1, %r2, %r3;", "r", [0b1010, 0, 2], 3),
        ("bmsk.clamp.b32 %r9, %r1, %r2;", "r", [4, 8, 0], 0xFF0),
        ("szext.clamp.s32 %r9, %r1, %r2;", "r", [0xF, 4, 0], 0xFFFF_FFFF),
        ("dp4a.s32.s32 %r9, %r1, %r2, %r3;", "r", [0x01FF_0203, 0x0101_0101, 10], 15),
        ("dp4a.u32.u32 %r9, %r1, %r2, %r3;", "r", [0x01FF_0203, 0x0101_0101, 10], 271),
        ("dp2a.lo.s32.s32 %r9, %r1, %r2, %r3;", "r", [0x0002_FFFF, 0x0000_0302, 1], 5),
    ]);
}

#[test]
fn bits_and_shifts() {
    check(&[
        ("shl.b32 %r9, %r1, %r2;", "r", [1, 31, 0], 0x8000_0000),
        ("shl.b32 %r9, %r1, %r2;", "r", [1, 32, 0], 0),
        ("shr.s32 %r9, %r1, %r2;", "r", [0x8000_0000, 40, 0], 0xFFFF_FFFF),
        ("shr.u64 %rd9, %rd1, %r2;", "rd", [M1, 60, 0], 15),
        ("shr.s16 %h9, %h1, %r2;", "h", [0x8000, 15, 0], 0xFFFF),
        ("shf.l.wrap.b32 %r9, %r1, %r2, %r3;", "r", [0x8000_0000, 1, 33], 3),
        ("shf.r.wrap.b32 %r9, %r1, %r2, %r3;", "r", [2, 1, 1], 0x8000_0001),
        ("shf.r.clamp.b32 %r9, %r1, %r2, %r3;", "r", [2, 7, 99], 7),
        ("shf.l.clamp.b32 %r9, %r1, %r2, %r3;", "r", [9, 7, 99], 9),
        ("lop3.b32 %r9, %r1, %r2, %r3, 0x96;", "r", [0xF0, 0xCC, 0xAA], 0x96),
        ("lop3.b32 %r9, %r1, %r2, %r3, 0xE8;", "r", [0xF0, 0xCC, 0xAA], 0xE8),
        ("lop3.or.b32 %r9|%p9, %r1, %r2, %r3, 0x80, %p3;", "p", [0xFF, 0xF0, 0], 0),
        ("prmt.b32 %r9, %r1, %r2, 0x7531;", "r", [0x4433_2211, 0x8877_6655, 0], 0x8866_4422),
        ("prmt.b32 %r9, %r1, %r2, 0xBA98;", "r", [0x8012_80FF, 0, 0], 0xFF00_FFFF),
        ("prmt.b32.f4e %r9, %r1, %r2, 1;", "r", [0x4433_2211, 0x8877_6655, 0], 0x5544_3322),
        ("prmt.b32.rc16 %r9, %r1, %r2, 1;", "r", [0x4433_2211, 0, 0], 0x4433_4433),
        ("not.b32 %r9, %r1;", "r", [0, 0, 0], 0xFFFF_FFFF),
        ("cnot.b32 %r9, %r1;", "r", [0, 0, 0], 1),
        ("xor.b64 %rd9, %rd1, %rd2;", "rd", [5, 3, 0], 6),
        ("and.pred %p9, %p1, %p2;", "p", [1, 0, 0], 0),
        ("xor.pred %p9, %p1, %p2;", "p", [1, 0, 0], 1),
        ("not.pred %p9, %p1;", "p", [0, 0, 0], 1),
        ("mov.b64 {%r4, %r9}, %rd1;", "r", [0x1234_5678_9ABC_DEF0, 0, 0], 0x1234_5678),
        ("mov.b64 %rd9, {%r1, %r2};", "rd", [1, 2, 0], 0x2_0000_0001),
        ("mov.b32 {%h9, %h4}, %r1;", "h", [0x1234_5678, 0, 0], 0x5678),
        ("mov.b32 %r9, {%h1, %h2};", "r", [1, 2, 0], 0x2_0001),
        ("mov.b64 {%r1, %r2}, %rd1; mov.u32 %r9, %r2;", "r", [0x5_0000_0009, 0, 0], 5),
    ]);
}

#[test]
fn comparison() {
    let nan = f(f32::NAN);
    check(&[
        ("setp.lt.s32 %p9, %r1, %r2;", "p", [M1, 0, 0], 1),
        ("setp.lt.u32 %p9, %r1, %r2;", "p", [M1, 0, 0], 0),
        ("setp.lo.u32 %p9, %r1, %r2;", "p", [1, 2, 0], 1),
        ("setp.lt.f32 %p9, %f1, %f2;", "p", [nan, 0, 0], 0),
        ("setp.ltu.f32 %p9, %f1, %f2;", "p", [nan, 0, 0], 1),
        ("setp.ne.f32 %p9, %f1, %f2;", "p", [nan, 0, 0], 0),
        ("setp.neu.f32 %p9, %f1, %f2;", "p", [nan, 0, 0], 1),
        ("setp.nan.f32 %p9, %f1, %f2;", "p", [nan, 0, 0], 1),
        ("setp.eq.f32 %p9, %f1, %f2;", "p", [f(-0.0), f(0.0), 0], 1),
        ("setp.gt.ftz.f32 %p9, %f1, %f2;", "p", [1, 0, 0], 0),
        ("setp.lt.and.s32 %p9, %r1, %r2, %p3;", "p", [1, 2, 0], 0),
        ("setp.lt.or.s32 %p9, %r1, %r2, !%p3;", "p", [3, 2, 0], 1),
        ("setp.lt.s32 %p4|%p9, %r1, %r2;", "p", [3, 2, 0], 1),
        ("setp.lt.f16 %p9, %h1, %h2;", "p", [0x3C00, 0x4000, 0], 1),
        ("setp.gt.bf16 %p9, %h1, %h2;", "p", [0x3F80, 0x4000, 0], 0),
        ("setp.lt.f16x2 %p4|%p9, %r1, %r2;", "p", [0x3C00_4000, 0x4000_3C00, 0], 1),
        ("set.lt.u32.s32 %r9, %r1, %r2;", "r", [1, 2, 0], 0xFFFF_FFFF),
        ("set.lt.f32.s32 %f9, %r1, %r2;", "f", [1, 2, 0], f(1.0)),
        ("set.eq.f16.f16 %h9, %h1, %h2;", "h", [0x3C00, 0x3C00, 0], 0x3C00),
        ("set.gt.u32.bf16x2 %r9, %r1, %r2;", "r", [0x4000_3F80, 0x3F80_3F80, 0], 0xFFFF_0000),
        ("selp.b32 %r9, %r1, %r2, %p3;", "r", [1, 2, 1], 1),
        ("selp.f32 %f9, %f1, %f2, !%p3;", "f", [1, 2, 1], 2),
        ("slct.s32.s32 %r9, %r1, %r2, %r3;", "r", [1, 2, M1], 2),
        ("slct.b32.f32 %r9, %r1, %r2, %f3;", "r", [1, 2, f(-0.0)], 1),
        ("@%p1 mov.u32 %r9, 5; @!%p1 mov.u32 %r9, 6;", "r", [0, 0, 0], 6),
        ("testp.subnormal.f32 %p9, %f1;", "p", [1, 0, 0], 1),
    ]);
}

#[test]
fn single_precision() {
    let big = f(f32::MAX);
    check(&[
        ("add.f32 %f9, %f1, %f2;", "f", [f(1.5), f(2.25), 0], f(3.75)),
        ("add.rz.f32 %f9, %f1, %f2;", "f", [f(1.0), f(-1e-30), 0], 0x3F7F_FFFF),
        ("add.rp.f32 %f9, %f1, %f2;", "f", [f(1.0), f(1e-30), 0], 0x3F80_0001),
        ("add.rm.f32 %f9, %f1, %f2;", "f", [f(1.0), f(1e-30), 0], f(1.0)),
        ("add.rm.f32 %f9, %f1, %f2;", "f", [f(1.0), f(-1.0), 0], f(-0.0)),
        ("add.ftz.f32 %f9, %f1, %f2;", "f", [1, 1, 0], 0),
        ("add.f32 %f9, %f1, %f2;", "f", [1, 1, 0], 2),
        ("add.sat.f32 %f9, %f1, %f2;", "f", [f(1.0), f(1.0), 0], f(1.0)),
        ("add.f32 %f9, %f1, %f2;", "f", [f(f32::INFINITY), f(f32::NEG_INFINITY), 0], 0x7FFF_FFFF),
        ("mul.rz.f32 %f9, %f1, %f2;", "f", [big, big, 0], big),
        ("mul.rp.f32 %f9, %f1, %f2;", "f", [big, big, 0], f(f32::INFINITY)),
        ("mul.sat.f32 %f9, %f1, %f2;", "f", [0x7FC0_0000, f(1.0), 0], 0),
        ("fma.rn.f32 %f9, %f1, %f2, %f3;", "f", [0x3F80_0001, 0x3F80_0001, f(-1.0)], 0x3480_0000),
        ("fma.rz.f32 %f9, %f1, %f2, %f3;", "f", [0x3F80_0001, 0x3F80_0001, 0], 0x3F80_0002),
        ("fma.rp.f32 %f9, %f1, %f2, %f3;", "f", [0x3F80_0001, 0x3F80_0001, 0], 0x3F80_0003),
        ("div.rn.f32 %f9, %f1, %f2;", "f", [f(1.0), f(3.0), 0], 0x3EAA_AAAB),
        ("div.rz.f32 %f9, %f1, %f2;", "f", [f(1.0), f(3.0), 0], 0x3EAA_AAAA),
        ("rcp.rp.f32 %f9, %f1;", "f", [f(3.0), 0, 0], 0x3EAA_AAAB),
        ("sqrt.rn.f32 %f9, %f1;", "f", [f(2.0), 0, 0], 0x3FB5_04F3),
        ("sqrt.rp.f32 %f9, %f1;", "f", [f(2.0), 0, 0], 0x3FB5_04F4),
        ("min.f32 %f9, %f1, %f2;", "f", [0x7FC0_0000, f(1.0), 0], f(1.0)),
        ("min.NaN.f32 %f9, %f1, %f2;", "f", [0x7FC0_0000, f(1.0), 0], 0x7FFF_FFFF),
        ("max.f32 %f9, %f1, %f2;", "f", [f(-0.0), f(0.0), 0], 0),
        ("min.f32 %f9, %f1, %f2;", "f", [f(0.0), f(-0.0), 0], f(-0.0)),
        ("min.xorsign.abs.f32 %f9, %f1, %f2;", "f", [f(-2.0), f(3.0), 0], f(-2.0)),
        ("neg.f32 %f9, %f1;", "f", [f(2.0), 0, 0], f(-2.0)),
        ("abs.ftz.f32 %f9, %f1;", "f", [0x8000_0001, 0, 0], 0),
        ("copysign.f32 %f9, %f1, %f2;", "f", [f(-2.0), f(3.0), 0], f(-3.0)),
        ("ex2.approx.ftz.f32 %f9, %f1;", "f", [f(3.0), 0, 0], f(8.0)),
        ("lg2.approx.f32 %f9, %f1;", "f", [f(8.0), 0, 0], f(3.0)),
        ("lg2.approx.f32 %f9, %f1;", "f", [f(0.0), 0, 0], f(f32::NEG_INFINITY)),
        ("rsqrt.approx.f32 %f9, %f1;", "f", [f(4.0), 0, 0], f(0.5)),
        ("rcp.approx.ftz.f32 %f9, %f1;", "f", [f(0.0), 0, 0], f(f32::INFINITY)),
        ("div.approx.f32 %f9, %f1, %f2;", "f", [f(1.0), 0x7E80_0001, 0], 0),
        ("div.full.f32 %f9, %f1, %f2;", "f", [f(6.0), f(3.0), 0], f(2.0)),
        ("tanh.approx.f32 %f9, %f1;", "f", [f(0.0), 0, 0], 0),
        ("cos.approx.f32 %f9, %f1;", "f", [f(0.0), 0, 0], f(1.0)),
    ]);
}

#[test]
fn double_precision() {
    check(&[
        ("add.f64 %d9, %d1, %d2;", "d", [g(1.5), g(2.0), 0], g(3.5)),
        ("add.rz.f64 %d9, %d1, %d2;", "d", [g(1.0), g(-1e-300), 0], g(1.0) - 1),
        ("mul.rp.f64 %d9, %d1, %d2;", "d", [g(1.0) + 1, g(1.0) + 1, 0], g(1.0) + 3),
        ("mul.rm.f64 %d9, %d1, %d2;", "d", [g(1.0) + 1, g(1.0) + 1, 0], g(1.0) + 2),
        ("fma.rn.f64 %d9, %d1, %d2, %d3;", "d", [g(2.0), g(3.0), g(4.0)], g(10.0)),
        ("fma.rp.f64 %d9, %d1, %d2, %d3;", "d", [g(1.0), g(1.0), g(1e-300)], g(1.0) + 1),
        ("div.rn.f64 %d9, %d1, %d2;", "d", [g(1.0), g(3.0), 0], g(1.0 / 3.0)),
        ("div.rp.f64 %d9, %d1, %d2;", "d", [g(1.0), g(3.0), 0], g(1.0 / 3.0) + 1),
        ("sqrt.rn.f64 %d9, %d1;", "d", [g(2.0), 0, 0], g(2f64.sqrt())),
        ("rcp.approx.ftz.f64 %d9, %d1;", "d", [g(4.0), 0, 0], g(0.25)),
        ("max.f64 %d9, %d1, %d2;", "d", [g(f64::NAN), g(3.0), 0], g(3.0)),
    ]);
}

#[test]
fn half_precision() {
    check(&[
        ("add.f16 %h9, %h1, %h2;", "h", [0x3C00, 0x1000, 0], 0x3C00),
        ("add.f16 %h9, %h1, %h2;", "h", [0x7BFF, 0x7BFF, 0], 0x7C00),
        ("fma.rn.f16 %h9, %h1, %h2, %h3;", "h", [0x3C01, 0x3C01, 0xBC00], 0x1800),
        ("fma.rn.relu.f16 %h9, %h1, %h2, %h3;", "h", [0x3C00, 0xBC00, 0], 0),
        ("mul.f16x2 %r9, %r1, %r2;", "r", [0x4000_3C00, 0x4200_4200, 0], 0x4600_4200),
        ("fma.rn.bf16 %h9, %h1, %h2, %h3;", "h", [0x4000, 0x4040, 0x3F80], 0x40E0),
        ("fma.rn.bf16x2 %r9, %r1, %r2, %r3;", "r", [0x4000_3F80, 0x4040_3F80, 0x3F80_3F80], 0x40E0_4000),
        ("max.bf16 %h9, %h1, %h2;", "h", [0x7FC0, 0x3F80, 0], 0x3F80),
        ("max.NaN.bf16 %h9, %h1, %h2;", "h", [0x7FC0, 0x3F80, 0], 0x7FFF),
        ("neg.bf16 %h9, %h1;", "h", [0x3F80, 0, 0], 0xBF80),
        ("abs.f16x2 %r9, %r1;", "r", [0xBC00_BC00, 0, 0], 0x3C00_3C00),
        ("ex2.approx.f16 %h9, %h1;", "h", [0x4000, 0, 0], 0x4400),
        ("tanh.approx.bf16 %h9, %h1;", "h", [0, 0, 0], 0),
        ("sub.sat.f16 %h9, %h1, %h2;", "h", [0x4200, 0x3C00, 0], 0x3C00),
    ]);
}

#[test]
fn conversion() {
    check(&[
        ("cvt.s64.s32 %rd9, %r1;", "rd", [0xFFFF_FFFF, 0, 0], M1),
        ("cvt.u64.u32 %rd9, %r1;", "rd", [0xFFFF_FFFF, 0, 0], 0xFFFF_FFFF),
        ("cvt.s32.s8 %r9, %r1;", "r", [0x80, 0, 0], 0xFFFF_FF80),
        ("cvt.u32.u8 %r9, %r1;", "r", [0x180, 0, 0], 0x80),
        ("cvt.s16.s8 %h9, %h1;", "h", [0x80, 0, 0], 0xFF80),
        ("cvt.sat.u8.s32 %r9, %r1;", "r", [300, 0, 0], 255),
        ("cvt.sat.s8.s32 %r9, %r1;", "r", [300, 0, 0], 127),
        ("cvt.sat.u32.s32 %r9, %r1;", "r", [M1, 0, 0], 0),
        ("cvt.rn.f32.s32 %f9, %r1;", "f", [0xFFFF_FFFF, 0, 0], f(-1.0)),
        ("cvt.rn.f32.u32 %f9, %r1;", "f", [0xFFFF_FFFF, 0, 0], f(4294967296.0)),
        ("cvt.rz.f32.u32 %f9, %r1;", "f", [0xFFFF_FFFF, 0, 0], 0x4F7F_FFFF),
        ("cvt.rn.f32.u64 %f9, %rd1;", "f", [0x0100_0001_0000_0001, 0, 0], 0x5B80_0001),
        ("cvt.rn.f64.s64 %d9, %rd1;", "d", [M1, 0, 0], g(-1.0)),
        ("cvt.rp.f64.u64 %d9, %rd1;", "d", [(1 << 53) + 1, 0, 0], g(9007199254740994.0)),
        ("cvt.rni.s32.f32 %r9, %f1;", "r", [f(2.5), 0, 0], 2),
        ("cvt.rzi.s32.f32 %r9, %f1;", "r", [f(-2.9), 0, 0], 0xFFFF_FFFE),
        ("cvt.rmi.s32.f32 %r9, %f1;", "r", [f(-2.1), 0, 0], 0xFFFF_FFFD),
        ("cvt.rpi.s32.f32 %r9, %f1;", "r", [f(2.1), 0, 0], 3),
        ("cvt.rzi.u32.f32 %r9, %f1;", "r", [f(-5.0), 0, 0], 0),
        ("cvt.rzi.s32.f32 %r9, %f1;", "r", [f(1e20), 0, 0], 0x7FFF_FFFF),
        ("cvt.rzi.s32.f32 %r9, %f1;", "r", [f(f32::NAN), 0, 0], 0),
        ("cvt.rzi.s64.f32 %rd9, %f1;", "rd", [f(f32::NAN), 0, 0], 1 << 63),
        ("cvt.rzi.s32.f64 %r9, %d1;", "r", [g(f64::NAN), 0, 0], 0x8000_0000),
        ("cvt.rzi.u8.f32 %r9, %f1;", "r", [f(300.0), 0, 0], 255),
        ("cvt.rni.f32.f32 %f9, %f1;", "f", [f(3.5), 0, 0], f(4.0)),
        ("cvt.sat.f32.f32 %f9, %f1;", "f", [f(-3.5), 0, 0], 0),
        ("cvt.rn.f16.f32 %h9, %f1;", "h", [f(1.0 + 1.0 / 2048.0), 0, 0], 0x3C00),
        ("cvt.rz.f16.f32 %h9, %f1;", "h", [f(65519.0), 0, 0], 0x7BFF),
        ("cvt.rn.f16.f32 %h9, %f1;", "h", [f(65520.0), 0, 0], 0x7C00),
        ("cvt.rn.f16.f32 %h9, %f1;", "h", [f(3e-8), 0, 0], 1),
        ("cvt.f32.f16 %f9, %h1;", "f", [0x0001, 0, 0], f(5.960_464_5e-8)),
        ("cvt.rn.bf16.f32 %h9, %f1;", "h", [0x3F80_8000, 0, 0], 0x3F80),
        ("cvt.rn.bf16.f32 %h9, %f1;", "h", [0x3F81_8000, 0, 0], 0x3F82),
        ("cvt.rz.bf16.f32 %h9, %f1;", "h", [0x3F81_FFFF, 0, 0], 0x3F81),
        ("cvt.rn.relu.bf16.f32 %h9, %f1;", "h", [f(-1.0), 0, 0], 0),
        ("cvt.f32.bf16 %f9, %h1;", "f", [0x4049, 0, 0], 0x4049_0000),
        ("cvt.rn.bf16x2.f32 %r9, %f1, %f2;", "r", [f(1.0), f(2.0), 0], 0x3F80_4000),
        ("cvt.rn.f16x2.f32 %r9, %f1, %f2;", "r", [f(1.0), f(2.0), 0], 0x3C00_4000),
        ("cvt.rn.satfinite.e4m3x2.f32 %h9, %f1, %f2;", "h", [f(1000.0), f(1.0), 0], 0x7E38),
        ("cvt.rn.satfinite.e5m2x2.f32 %h9, %f1, %f2;", "h", [f(1.0), f(-1e9), 0], 0x3CFB),
        ("cvt.rn.f16x2.e4m3x2 %r9, %h1;", "r", [0x3840, 0, 0], 0x3C00_4000),
        ("cvt.rna.tf32.f32 %r9, %f1;", "r", [0x3F80_1000, 0, 0], 0x3F80_2000),
        ("cvt.rn.f32.f64 %f9, %d1;", "f", [g(0.1), 0, 0], f(0.1)),
        ("cvt.rz.f32.f64 %f9, %d1;", "f", [g(0.1), 0, 0], 0x3DCC_CCCC),
        ("cvt.f64.f32 %d9, %f1;", "d", [f(0.5), 0, 0], g(0.5)),
        ("cvt.pack.sat.s16.s32 %r9, %r1, %r2;", "r", [100_000, M1, 0], 0x7FFF_FFFF),
        ("cvt.pack.sat.u8.s32.b32 %r9, %r1, %r2, %r3;", "r", [300, M1, 0xAABB], 0xAABB_FF00),
    ]);
}

#[test]
fn what_does_not_exist_is_refused_by_line() {
    for body in [
        "frobnicate.u32 %r9, %r1;",
        "add.u32.wobble %r9, %r1, %r2;",
        "add.u32 %r9, %r1;",
        "add.u32 %r9, %r1, %rd77;",
        "fma.f32 %f9, %f1, %f2, %f3;",
        "cvt.rn.u32.u64 %r9, %rd1;",
        "cvt.f16.f32 %h9, %f1;",
        "mul.u32 %r9, %r1, %r2;",
        "setp.foo.u32 %p9, %r1, %r2;",
        "ld.global.u32 %r9, %rd1;",
        "bra nowhere;",
        "mma.sync.aligned.m16n8k99.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4},{%r1,%r2,%r3,%r1},{%r1,%r2},{%f1,%f2,%f3,%f4};",
        "atom.global.frob.u32 %r9, [%rd1], %r1;",
    ] {
        let text = program(body, "r");
        let line = text.lines().position(|l| l.contains(body)).unwrap() as u32 + 1;
        let e = Module::parse(&text).err().unwrap_or_else(|| panic!("accepted: {body}"));
        assert_eq!(e.line, line, "{body}: {e}");
    }
}
