//! What compiled kernels do besides arithmetic: calls, switches, divergence, shuffles, atomics, fences, printf.

mod support;
use ptx_emulator::{Device, LaunchConfig, Module, Report};
use support::*;

fn run(module: &Module, name: &str, input: &[u8], n: i32, seed: u64) -> (Vec<u32>, Report) {
    let mut d = device();
    d.set_seed(seed);
    let (out, a) = (d.alloc(64 * 4).unwrap(), put(&mut d, input));
    let p = Params::new().u64(out).u64(a).i32(n);
    let r = launch(&mut d, module, name, LaunchConfig::new([1; 3], [64, 1, 1]), &p).unwrap_or_else(|f| panic!("{f}"));
    (get_u32(&d, out, 64), r)
}

fn ints(f: impl Fn(i32) -> i32) -> Vec<i32> {
    (0..64).map(f).collect()
}

fn raw(v: &[i32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn calls_pass_structures_recurse_and_use_local_memory() {
    let w: Vec<f32> = (0..40).map(|i| (i % 5) as f32).collect();
    let (got, report) = run(&module("features"), "calls", &bytes_f32(&w), 7, 0);
    assert!(report.counters.local_accesses > 0);
    let fib = [0, 1, 1, 2, 3, 5, 8, 13];
    for i in 0..64usize {
        let x = i as f32;
        let dot: f32 = (0..7).rev().map(|k| x * ((k * 3) % 7) as f32 * w[k]).sum();
        let odd = i % 2 == 1;
        let want = dot + x + if odd { 0.5 + 6.0 + x + 1.0 } else { 3.0 + x } + fib[i % 8] as f32;
        assert_eq!(f32::from_bits(got[i]), want, "thread {i}");
    }
}

#[test]
fn switches_and_loops_diverge_and_meet_again() {
    let m = module("features");
    let input = ints(|i| i % 7);
    let (got, report) = run(&m, "switches", &raw(&input), 11, 0);
    assert!(report.counters.divergent_branches > 0);
    let want = |v: i32| match v {
        0 => 5,
        1 => 33,
        2 => 15,
        3 => 40,
        4 => -11,
        5 => 88,
        _ => 99,
    };
    assert_eq!(got, input.iter().map(|v| want(*v) as u32).collect::<Vec<_>>());
    let input = ints(|i| i * 5);
    let (got, _) = run(&m, "loops", &raw(&input), 20, 0);
    let steps = |v: i32| {
        let (mut x, mut s) = (v + 1, 0);
        while x != 1 {
            x = if x & 1 == 1 { 3 * x + 1 } else { x >> 1 };
            s += 1;
        }
        s
    };
    let above = input.iter().filter(|v| steps(**v) > 20).count() as u32;
    assert_eq!(got, input.iter().map(|v| steps(*v) as u32 + above).collect::<Vec<_>>());
}

#[test]
fn shuffles_and_votes() {
    let input = ints(|i| (i * 37 + 11) % 101);
    let (got, _) = run(&module("features"), "shuffles", &raw(&input), 48, 0);
    for t in 0..64usize {
        let (base, l) = (t / 32 * 32, t % 32);
        let v = |lane: usize| input[base + lane];
        let a = v(l ^ 5);
        let b = if l >= 3 { v(l - 3) } else { v(l) };
        let c = if l % 8 + 2 < 8 { v(l + 2) } else { v(l) };
        let d = v(l / 16 * 16 + (t + 1) % 16);
        let warp: Vec<i32> = (0..32).map(v).collect();
        let e = warp.iter().sum::<i32>() + warp.iter().filter(|x| **x & 1 == 1).count() as i32;
        let f = i32::from(warp.contains(&48)) + 2;
        let g = warp.iter().filter(|x| **x & 3 == v(l) & 3).count() as i32;
        let h = v(l ^ 1) * 7 + if t & 1 == 1 { 16 } else { 0 };
        assert_eq!(got[t] as i32, a + 3 * b + 5 * c + 7 * d + 11 * e + 13 * f + 17 * g + h, "thread {t}");
    }
}

#[test]
fn atomics_on_shared_and_global_memory() {
    let m = module("features");
    let input = ints(|i| (i * 29 + 3) % 64);
    let mut d = device();
    let (out, a) = (d.alloc(256).unwrap(), put(&mut d, &raw(&input)));
    let p = Params::new().u64(out).u64(a).i32(0);
    for _ in 0..2 {
        launch(&mut d, &m, "atomics", LaunchConfig::new([1; 3], [64, 1, 1]), &p).unwrap_or_else(|f| panic!("{f}"));
    }
    let got = get_u32(&d, out, 4);
    let xor = input.iter().fold(0, |x, v| x ^ v);
    assert_eq!(got, [input.iter().sum::<i32>() as u32, 63, *input.iter().min().unwrap() as u32, xor as u32]);
    // A module's variables keep their values between launches.
    let (counter, bytes) = d.symbol(&m, "counter").expect("the variable");
    assert_eq!((get_u32(&d, counter, 1)[0], bytes), (228, 4));
    let (results, _) = d.symbol(&m, "results").expect("the variable");
    assert_eq!(get_u32(&d, results, 64), (0..64).collect::<Vec<_>>());
}

#[test]
fn mathematics_is_close() {
    let input: Vec<f32> = (0..64).map(|i| i as f32 / 16.0).collect();
    let (got, _) = run(&module("features"), "mathematics", &bytes_f32(&input), 0, 0);
    let erf = |x: f64| {
        // A series good to 1e-10 in this range.
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    };
    for (i, x) in input.iter().enumerate() {
        let v = f64::from(*x) + 1.5;
        let want = v.exp()
            + v.ln()
            + v.tanh()
            + v.sqrt()
            + 1.0 / v.sqrt()
            + v.powf(1.5)
            + v / 3.0
            + erf(v)
            + v.sin()
            + v.cos()
            + v.floor()
            + v.round_ties_even()
            + v % f64::from(0.7f32)
            + v.exp() / v.sqrt();
        let got = f64::from(f32::from_bits(got[i]));
        assert!((got - want).abs() <= 2e-6 * want.abs(), "{v}: {got} {want}");
    }
}

#[test]
fn the_last_block_sees_what_all_blocks_wrote() {
    let m = module("features");
    for seed in 0..10 {
        let mut d = device();
        d.set_seed(seed);
        let mut zero = vec![0xFF; 65 * 4];
        zero[256..].fill(0);
        let out = put(&mut d, &zero);
        let partial = d.alloc(10 * 64 * 4).unwrap();
        let p = Params::new().u64(out).u64(partial).i32(0);
        let c = LaunchConfig::new([10, 1, 1], [64, 1, 1]);
        launch(&mut d, &m, "last_block", c, &p).unwrap_or_else(|f| panic!("seed {seed}: {f}"));
        assert_eq!(get_u32(&d, out, 64), (0..64).map(|t| 45 + 10 * t).collect::<Vec<_>>());
    }
}

#[test]
fn without_its_fence_the_last_block_races() {
    let text = ptx("features", "compute_80");
    let cut = text.replace("membar.gl;", "");
    assert_ne!(text, cut);
    let m = Module::parse(&cut).unwrap();
    for seed in 0..10 {
        let mut d: Device = device();
        d.set_seed(seed);
        let out = put(&mut d, &[0; 65 * 4]);
        let partial = d.alloc(10 * 64 * 4).unwrap();
        let p = Params::new().u64(out).u64(partial).i32(0);
        let c = LaunchConfig::new([10, 1, 1], [64, 1, 1]);
        let f = launch(&mut d, &m, "last_block", c, &p).expect_err("a race");
        assert!(matches!(f.kind, ptx_emulator::FaultKind::Race { .. }), "seed {seed}: {f}");
    }
}

#[test]
fn halves_round_as_the_isa_says() {
    let input: Vec<f32> = (0..64).map(|i| i as f32 / 8.0 - 4.0).collect();
    let (got, _) = run(&module("features"), "halves", &bytes_f32(&input), 0, 0);
    // 2v + 0.5 and 3v are exact here; spot values from the formats' definitions.
    assert_eq!(got[32], 0x3800); // v = 0: h = 0.5, b = 0, p = 0
    assert_eq!(got[40], (0x4100u32 + (0x4040 << 16)) ^ 0x3C00); // v = 1: h = 2.5, b = 3, p = (1, 0)
    assert_eq!(got[24], (0xBE00u32 + (0xC040 << 16)) ^ 0x3C00_0000); // v = -1: h = -1.5, b = -3, p = (0, 1)
}

#[test]
fn printf_formats() {
    let (_, report) = run(&module("features"), "prints", &[0; 256], 0, 0);
    assert_eq!(report.printed, "block 0 has  1.50 and words, 0000beef|7   |-5\n");
}
