//! Arithmetic and conversions on many values: each result against a search in the list of a format's numbers, or against exact
//! sums; approximations against f64 within the errors that the ISA states.

mod support;
use support::formats::{Bits, Format, Round, sum_f32};
use support::program::{elementwise, longs, run};

const NAN32: u64 = 0x7FFF_FFFF;

/// The results of an instruction for each input.
fn lanes(body: &str, out: &str, inputs: &[[u64; 3]]) -> Vec<u64> {
    let mut got = longs(&run(&elementwise("sm_90a", body, out, inputs)));
    got.truncate(inputs.len());
    got
}

fn check(body: &str, out: &str, inputs: &[[u64; 3]], want: impl Fn([u64; 3]) -> u64) {
    let got = lanes(body, out, inputs);
    let wrong: Vec<String> = inputs
        .iter()
        .zip(got)
        .filter(|(i, g)| want(**i) != *g)
        .map(|(i, g)| format!("{i:x?}: {g:#x}, want {:#x}", want(*i)))
        .collect();
    assert!(wrong.is_empty(), "{body}: {} of {} wrong, first {}", wrong.len(), inputs.len(), wrong[0]);
}

fn f(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

fn bits32(v: f32) -> u64 {
    if v.is_nan() { NAN32 } else { u64::from(v.to_bits()) }
}

/// f32 of every kind: specials, subnormals, near the borders of the narrow formats, and random bits.
fn singles(n: usize) -> Vec<f32> {
    let mut out = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x8000_0001),
    ];
    for format in [Format::f16(), Format::bf16(), Format::e4m3(), Format::e5m2()] {
        let v = &format.values;
        for i in [0, 1, 2, v.len() / 2, v.len() - 2] {
            for x in [v[i], v[i + 1], (v[i] + v[i + 1]) / 2.0] {
                let x = x as f32;
                out.extend([x, -x, x.next_up(), x.next_down(), -x.next_up()]);
            }
        }
        let last = 2.0 * v[v.len() - 1] - (v[v.len() - 1] + v[v.len() - 2]) / 2.0;
        out.extend([last as f32, (last as f32).next_down(), (last as f32).next_up(), -last as f32]);
    }
    let mut random = Bits(1);
    while out.len() < n {
        out.push(f32::from_bits(random.next() as u32));
        // Every second one in the range of the smallest format.
        out.push(random.unit() * 2f32.powi(random.below(40) as i32 - 22));
    }
    out
}

fn one(values: impl IntoIterator<Item = u64>) -> Vec<[u64; 3]> {
    values.into_iter().map(|v| [v, 0, 0]).collect()
}

#[test]
fn f32_to_narrow_formats_in_every_mode() {
    let inputs = one(singles(4000).iter().map(|v| u64::from(v.to_bits())));
    for (mode, name) in [(Round::Nearest, "rn"), (Round::Zero, "rz")] {
        for (ty, format) in [("f16", Format::f16()), ("bf16", Format::bf16())] {
            let body = |relu: &str| format!("cvt.{name}{relu}.{ty}.f32 %h9, %f1;");
            check(&body(""), "h", &inputs, |[a, ..]| u64::from(format.round(f64::from(f(a)), mode, false)));
            check(&body(".relu"), "h", &inputs, |[a, ..]| {
                let v = f64::from(f(a));
                u64::from(if v.is_nan() { 0x7FFF } else { format.round(v.max(0.0) + 0.0, mode, false) })
            });
            let pair = format!("cvt.{name}.{ty}x2.f32 %r9, %f1, %f2;");
            let shifted: Vec<[u64; 3]> =
                inputs.iter().zip(inputs.iter().skip(1)).map(|(a, b)| [a[0], b[0], 0]).collect();
            check(&pair, "r", &shifted, |[a, b, _]| {
                let half = |x| u64::from(format.round(f64::from(f(x)), mode, false));
                half(a) << 16 | half(b)
            });
        }
    }
    for (name, mode) in [("rm", Round::Down), ("rp", Round::Up)] {
        check(&format!("cvt.{name}.f16.f32 %h9, %f1;"), "h", &inputs, |[a, ..]| {
            u64::from(Format::f16().round(f64::from(f(a)), mode, false))
        });
    }
    for (name, mode) in [("rna", Round::Away), ("rn", Round::Nearest), ("rz", Round::Zero)] {
        check(&format!("cvt.{name}.tf32.f32 %r9, %f1;"), "r", &inputs, |[a, ..]| {
            u64::from(Format::tf32().round(f64::from(f(a)), mode, false)) << 13
        });
    }
    for (ty, format) in [("e4m3x2", Format::e4m3()), ("e5m2x2", Format::e5m2())] {
        let shifted: Vec<[u64; 3]> = inputs.iter().zip(inputs.iter().skip(1)).map(|(a, b)| [a[0], b[0], 0]).collect();
        for relu in ["", ".relu"] {
            check(&format!("cvt.rn.satfinite{relu}.{ty}.f32 %h9, %f1, %f2;"), "h", &shifted, |[a, b, _]| {
                let byte = |x| {
                    let v = f64::from(f(x));
                    let v = if !relu.is_empty() && v <= 0.0 { 0.0 } else { v };
                    u64::from(format.round(v, Round::Nearest, true))
                };
                byte(a) << 8 | byte(b)
            });
        }
    }
}

#[test]
fn every_encoding_widens_exactly() {
    let all = one(0..0x1_0000);
    for (ty, format) in [("f16", Format::f16()), ("bf16", Format::bf16())] {
        check(&format!("cvt.f32.{ty} %f9, %h1;"), "f", &all, |[a, ..]| bits32(format.value(a as u32) as f32));
    }
    let narrow = Format::f16();
    for (ty, format) in [("e4m3x2", Format::e4m3()), ("e5m2x2", Format::e5m2())] {
        check(&format!("cvt.rn.f16x2.{ty} %r9, %h1;"), "r", &all, |[a, ..]| {
            let half = |b: u64| u64::from(narrow.round(format.value(b as u32 & 0xFF), Round::Nearest, false));
            half(a >> 8) << 16 | half(a)
        });
    }
    check("cvt.f64.f16 %d9, %h1;", "d", &all, |[a, ..]| {
        let v = Format::f16().value(a as u32);
        // What NaN becomes in f64 the ISA leaves open.
        if v.is_nan() { lanes("cvt.f64.f16 %d9, %h1;", "d", &[[a, 0, 0]])[0] } else { v.to_bits() }
    });
}

#[test]
fn floats_to_integers_clamp_in_every_mode() {
    let values = singles(2000);
    let inputs = one(values.iter().map(|v| u64::from(v.to_bits())));
    type Rule = fn(f64) -> f64;
    let modes: [(&str, Rule); 4] =
        [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];
    for (name, round) in modes {
        for (ty, out, low, high, mask) in [
            ("s32", "r", -2f64.powi(31), 2f64.powi(31) - 1.0, 0xFFFF_FFFFu64),
            ("u32", "r", 0.0, 2f64.powi(32) - 1.0, 0xFFFF_FFFF),
            ("s16", "h", -32768.0, 32767.0, 0xFFFF),
            ("u16", "h", 0.0, 65535.0, 0xFFFF),
        ] {
            check(&format!("cvt.{name}.{ty}.f32 %{out}9, %f1;"), out, &inputs, |[a, ..]| {
                let v = f64::from(f(a));
                if v.is_nan() { 0 } else { round(v).clamp(low, high) as i64 as u64 & mask }
            });
        }
        check(&format!("cvt.{name}.s64.f32 %rd9, %f1;"), "rd", &inputs, |[a, ..]| {
            let v = f64::from(f(a));
            if v.is_nan() { 1 << 63 } else { round(v) as i64 as u64 }
        });
        check(&format!("cvt.{name}.f32.f32 %f9, %f1;"), "f", &inputs, |[a, ..]| bits32(round(f64::from(f(a))) as f32));
        let halves = one(0..0x1_0000);
        check(&format!("cvt.{name}.s32.f16 %r9, %h1;"), "r", &halves, |[a, ..]| {
            let v = Format::f16().value(a as u32);
            if v.is_nan() { 0 } else { round(v).clamp(-2f64.powi(31), 2f64.powi(31) - 1.0) as i64 as u64 & 0xFFFF_FFFF }
        });
    }
}

#[test]
fn integers_to_floats_round_in_every_mode() {
    let mut random = Bits(5);
    let mut values: Vec<u64> = (0..400).map(|_| random.next() >> random.below(63)).collect();
    values.extend([
        0,
        1,
        u64::MAX,
        1 << 63,
        (1 << 63) - 1,
        (1 << 24) + 1,
        (1 << 53) + 1,
        (1 << 54) + 2,
        0xFFFF_FF80,
        0xFFFF_FF7F,
    ]);
    let inputs = one(values);
    for (mode, name) in [(Round::Nearest, "rn"), (Round::Zero, "rz"), (Round::Down, "rm"), (Round::Up, "rp")] {
        // An integer is the sum of its two halves, each exact in f64.
        let split = |v: i128| ((v >> 32 << 32) as f64, (v & 0xFFFF_FFFF) as f64);
        for (ty, signed) in [("u64", false), ("s64", true)] {
            let exact = |a: u64| if signed { i128::from(a as i64) } else { i128::from(a) };
            check(&format!("cvt.{name}.f32.{ty} %f9, %rd1;"), "f", &inputs, |[a, ..]| {
                let (high, low) = split(exact(a));
                bits32(sum_f32(high, low, mode))
            });
            check(&format!("cvt.{name}.f64.{ty} %d9, %rd1;"), "d", &inputs, |[a, ..]| {
                let v = exact(a);
                let near = v as f64;
                let back = near as i128;
                let fixed = match mode {
                    Round::Down if back > v => near.next_down(),
                    Round::Up if back < v => near.next_up(),
                    Round::Zero if back.abs() > v.abs() => {
                        if v > 0 {
                            near.next_down()
                        } else {
                            near.next_up()
                        }
                    }
                    _ => near,
                };
                fixed.to_bits()
            });
        }
        for (ty, format) in [("f16", Format::f16()), ("bf16", Format::bf16())] {
            if ty == "bf16" && mode != Round::Nearest {
                continue;
            }
            check(&format!("cvt.{name}.{ty}.s32 %h9, %r1;"), "h", &inputs, |[a, ..]| {
                u64::from(format.round_fixed(i128::from(a as i32), 0, mode))
            });
        }
    }
}

#[test]
fn single_precision_sums_and_products_in_every_direction() {
    let v = singles(700);
    let mut random = Bits(3);
    let pick = |r: &mut Bits| u64::from(v[r.below(v.len() as u64) as usize].to_bits());
    let mut inputs: Vec<[u64; 3]> =
        (0..2500).map(|_| [pick(&mut random), pick(&mut random), pick(&mut random)]).collect();
    // Neighbours that cancel, and sums within a few bits of a tie.
    for _ in 0..500 {
        let a = random.unit();
        let b = -a * (1.0 + 2f32.powi(-(random.below(24) as i32)));
        inputs.push([u64::from(a.to_bits()), u64::from(b.to_bits()), u64::from((a * 2f32.powi(-24)).to_bits())]);
    }
    let modes = [(Round::Nearest, "rn"), (Round::Zero, "rz"), (Round::Down, "rm"), (Round::Up, "rp")];
    // Exact where every term is finite and the sum neither over- nor underflows; the rest is asked of the nearest mode only.
    for (mode, name) in modes {
        let finite = |x: f64, y: f64| {
            x.is_finite() && y.is_finite() && ((x + y).abs() < 3e38) && ((x + y).abs() > 1e-30 || x + y == 0.0)
        };
        let sum = |x: f64, y: f64, plain: f32| {
            if finite(x, y) && (x == 0.0 || x.abs() > 1e-30) && (y == 0.0 || y.abs() > 1e-30) {
                Some(bits32(sum_f32(x, y, mode)))
            } else if mode == Round::Nearest {
                Some(bits32(plain))
            } else {
                None
            }
        };
        let compare = |body: String, want: &dyn Fn([u64; 3]) -> Option<u64>| {
            let known: Vec<[u64; 3]> = inputs.iter().filter(|i| want(**i).is_some()).copied().collect();
            assert!(known.len() > 800, "{body}: {} known", known.len());
            check(&body, "f", &known, |i| want(i).unwrap_or(0));
        };
        compare(format!("add.{name}.f32 %f9, %f1, %f2;"), &|[a, b, _]| {
            sum(f64::from(f(a)), f64::from(f(b)), f(a) + f(b))
        });
        compare(format!("mul.{name}.f32 %f9, %f1, %f2;"), &|[a, b, _]| {
            let p = f64::from(f(a)) * f64::from(f(b));
            sum(p, if p.is_sign_negative() { -0.0 } else { 0.0 }, f(a) * f(b))
                .map(|r| if p == 0.0 { u64::from((p as f32).to_bits()) } else { r })
        });
        compare(format!("fma.{name}.f32 %f9, %f1, %f2, %f3;"), &|[a, b, c]| {
            sum(f64::from(f(a)) * f64::from(f(b)), f64::from(f(c)), f(a).mul_add(f(b), f(c)))
        });
    }
    check("add.ftz.f32 %f9, %f1, %f2;", "f", &inputs, |[a, b, _]| {
        let flush = |v: f32| if v.is_subnormal() { 0f32.copysign(v) } else { v };
        bits32(flush(flush(f(a)) + flush(f(b))))
    });
    check("fma.rn.sat.f32 %f9, %f1, %f2, %f3;", "f", &inputs, |[a, b, c]| {
        let v = f(a).mul_add(f(b), f(c));
        bits32(if v.is_nan() { 0.0 } else { v.clamp(0.0, 1.0) + 0.0 })
    });
    for (name, round) in [("rn", Round::Nearest), ("rz", Round::Zero), ("rp", Round::Up), ("rm", Round::Down)] {
        // q is rounded rightly if its own product with b stands on the right side of a; checked in exact f64 arithmetic.
        let tame: Vec<[u64; 3]> = inputs
            .iter()
            .copied()
            .filter(|[a, b, _]| (1e-15..1e15).contains(&f(*a).abs()) && (1e-15..1e15).contains(&f(*b).abs()))
            .collect();
        let got = lanes(&format!("div.{name}.f32 %f9, %f1, %f2;"), "f", &tame);
        for ([a, b, _], q) in tame.iter().zip(got) {
            let (a, b, q) = (f64::from(f(*a)), f64::from(f(*b)), f(q));
            // The sign of q·b − a, times the sign of b, says on which side of a / b the candidate lies.
            let side = |c: f64| (c * b - a) * b.signum();
            let at = side(f64::from(q));
            let right = match round {
                Round::Down => at <= 0.0 && side(f64::from(q.next_up())) > 0.0,
                Round::Up => at >= 0.0 && side(f64::from(q.next_down())) < 0.0,
                Round::Zero if (a < 0.0) != (b < 0.0) => at >= 0.0 && side(f64::from(q.next_down())) < 0.0,
                Round::Zero => at <= 0.0 && side(f64::from(q.next_up())) > 0.0,
                _ => {
                    let mid = |x: f32| (f64::from(q) + f64::from(x)) / 2.0;
                    side(mid(q.next_up())) >= 0.0 && side(mid(q.next_down())) <= 0.0
                }
            };
            assert!(right, "div.{name}.f32 {a} / {b} = {q}");
        }
    }
}

/// n · 2^-scale for a half, exact within the range that the inputs keep to.
fn fixed(v: f64, scale: i32) -> i128 {
    let x = v * 2f64.powi(scale);
    assert_eq!(x, x.trunc());
    x as i128
}

#[test]
fn half_arithmetic_rounds_once() {
    let mut random = Bits(17);
    for (ty, format, scale) in [("f16", Format::f16(), 24), ("bf16", Format::bf16(), 27)] {
        let number = |r: &mut Bits| loop {
            let v = r.next() as u32 & 0xFFFF;
            let x = format.value(v).abs();
            if x.is_finite() && (ty == "f16" || x == 0.0 || (2f64.powi(-20)..2f64.powi(18)).contains(&x)) {
                return u64::from(v);
            }
        };
        let inputs: Vec<[u64; 3]> =
            (0..4000).map(|_| [number(&mut random), number(&mut random), number(&mut random)]).collect();
        let value = |b: u64| format.value(b as u32);
        // A zero sum is +0 in round-to-nearest unless both terms are −0.
        let store = |n: i128, scale: i32, negative_zero: bool| {
            if n == 0 {
                if negative_zero { 0x8000 } else { 0 }
            } else {
                u64::from(format.round_fixed(n, scale as u32, Round::Nearest))
            }
        };
        let minus = |v: f64| v == 0.0 && v.is_sign_negative();
        let add = |a: f64, b: f64| store(fixed(a, scale) + fixed(b, scale), scale, minus(a) && minus(b));
        let fma = |a: f64, b: f64, c: f64| {
            let n = fixed(a, scale) * fixed(b, scale) + (fixed(c, scale) << scale);
            store(n, 2 * scale, minus(a * b) && minus(c))
        };
        check(&format!("add.rn.{ty} %h9, %h1, %h2;"), "h", &inputs, |[a, b, _]| add(value(a), value(b)));
        check(&format!("sub.rn.{ty} %h9, %h1, %h2;"), "h", &inputs, |[a, b, _]| add(value(a), -value(b)));
        check(&format!("mul.rn.{ty} %h9, %h1, %h2;"), "h", &inputs, |[a, b, _]| {
            let p = value(a) * value(b);
            store(fixed(value(a), scale) * fixed(value(b), scale), 2 * scale, minus(p))
        });
        check(&format!("fma.rn.{ty} %h9, %h1, %h2, %h3;"), "h", &inputs, |[a, b, c]| fma(value(a), value(b), value(c)));
        check(&format!("fma.rn.relu.{ty} %h9, %h1, %h2, %h3;"), "h", &inputs, |[a, b, c]| {
            let r = fma(value(a), value(b), value(c));
            if r & 0x8000 != 0 { 0 } else { r }
        });
        // Packed: the same in both halves.
        let packed: Vec<[u64; 3]> = inputs.windows(2).map(|w| [0, 1, 2].map(|i| w[0][i] << 16 | w[1][i])).collect();
        check(&format!("fma.rn.{ty}x2 %r9, %r1, %r2, %r3;"), "r", &packed, |[a, b, c]| {
            let half = |s: u32| fma(value(a >> s & 0xFFFF), value(b >> s & 0xFFFF), value(c >> s & 0xFFFF));
            half(16) << 16 | half(0)
        });
        for (op, less) in [("min", true), ("max", false)] {
            let pick = |a: u64, b: u64| {
                let order = value(a).partial_cmp(&value(b)).expect("numbers").then((b & 0x8000).cmp(&(a & 0x8000)));
                if (order == std::cmp::Ordering::Less) == less { a } else { b }
            };
            check(&format!("{op}.{ty} %h9, %h1, %h2;"), "h", &inputs, |[a, b, _]| pick(a, b));
        }
    }
}

/// An approximation: on which values, its true function, and the ISA's bound on the error.
struct Approx {
    body: &'static str,
    values: fn(&mut Bits) -> f32,
    exact: fn(f64) -> f64,
    error: fn(f64, f64) -> f64,
}

/// One unit in the last place of an f32.
fn ulp(v: f64) -> f64 {
    let m = (v.abs() as f32).max(f32::MIN_POSITIVE);
    f64::from(m.next_up()) - f64::from(m)
}

#[test]
fn approximations_stay_within_the_stated_errors() {
    fn positive(r: &mut Bits) -> f32 {
        loop {
            let v = f32::from_bits(r.next() as u32 & 0x7FFF_FFFF);
            if v.is_normal() {
                return v;
            }
        }
    }
    let table = [
        Approx {
            body: "rcp.approx.f32 %f9, %f1;",
            values: |r| positive(r).clamp(1e-37, 1e37),
            exact: |x| 1.0 / x,
            error: |_, y| ulp(y),
        },
        Approx {
            body: "sqrt.approx.f32 %f9, %f1;",
            values: positive,
            exact: f64::sqrt,
            error: |_, y| y * 2f64.powi(-23),
        },
        Approx {
            body: "rsqrt.approx.f32 %f9, %f1;",
            values: positive,
            exact: |x| 1.0 / x.sqrt(),
            error: |_, y| y * 2f64.powf(-22.9),
        },
        Approx {
            body: "sin.approx.f32 %f9, %f1;",
            values: |r| r.unit() * std::f32::consts::PI,
            exact: f64::sin,
            error: |_, _| 2f64.powf(-20.5),
        },
        Approx {
            body: "cos.approx.f32 %f9, %f1;",
            values: |r| r.unit() * std::f32::consts::PI,
            exact: f64::cos,
            error: |_, _| 2f64.powf(-20.5),
        },
        Approx {
            body: "lg2.approx.f32 %f9, %f1;",
            values: |r| 1.25 + 0.75 * r.unit(),
            exact: f64::log2,
            error: |_, _| 2f64.powi(-22),
        },
        Approx {
            body: "lg2.approx.f32 %f9, %f1;",
            values: |r| 2.0 + positive(r).min(1e30),
            exact: f64::log2,
            error: |_, y| y.abs() * 2f64.powi(-22),
        },
        Approx {
            body: "ex2.approx.f32 %f9, %f1;",
            values: |r| r.unit() * 120.0,
            exact: f64::exp2,
            error: |_, y| 2.0 * ulp(y),
        },
        Approx {
            body: "tanh.approx.f32 %f9, %f1;",
            values: |r| r.unit() * 9.0,
            exact: f64::tanh,
            error: |_, y| y.abs() * 2f64.powi(-11) + 1e-30,
        },
    ];
    for a in table {
        let mut random = Bits(23);
        let values: Vec<f32> = (0..1500).map(|_| (a.values)(&mut random)).collect();
        let got = lanes(a.body, "f", &one(values.iter().map(|v| u64::from(v.to_bits()))));
        for (x, g) in values.iter().zip(got) {
            let want = (a.exact)(f64::from(*x));
            let error = (f64::from(f(g)) - want).abs();
            assert!(error <= (a.error)(f64::from(*x), want), "{} of {x}: {}, want {want}", a.body, f(g));
        }
    }
}

#[test]
fn approximations_have_the_special_values_of_the_tables() {
    const INF: f32 = f32::INFINITY;
    let cases: &[(&str, &[(f32, f32)])] = &[
        ("rcp.approx.f32", &[(0.0, INF), (-0.0, -INF), (INF, 0.0), (-INF, -0.0)]),
        ("sqrt.approx.f32", &[(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-1.0, f32::NAN), (-INF, f32::NAN)]),
        ("rsqrt.approx.f32", &[(0.0, INF), (-0.0, -INF), (INF, 0.0), (-1.0, f32::NAN)]),
        ("lg2.approx.f32", &[(0.0, -INF), (-0.0, -INF), (INF, INF), (-1.0, f32::NAN)]),
        ("ex2.approx.f32", &[(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (1.0, 2.0)]),
        ("sin.approx.f32", &[(0.0, 0.0), (-0.0, -0.0), (INF, f32::NAN), (-INF, f32::NAN)]),
        ("cos.approx.f32", &[(0.0, 1.0), (-0.0, 1.0), (INF, f32::NAN)]),
        ("tanh.approx.f32", &[(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0)]),
    ];
    for (op, list) in cases {
        let inputs = one(list.iter().map(|c| u64::from(c.0.to_bits())).chain([NAN32]));
        let got = lanes(&format!("{op} %f9, %f1;"), "f", &inputs);
        for ((x, want), g) in list.iter().zip(&got) {
            assert_eq!(*g, bits32(*want), "{op} of {x}");
        }
        assert_eq!(got[list.len()], NAN32, "{op} of NaN");
    }
}
