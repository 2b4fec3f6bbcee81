use super::*;
use crate::device::Device;
use crate::ops::check::{STORED, device, draw, draw_integers, forward, on_each_device, run, run_on, wide};
use crate::testing::{compare, gradient};

on_each_device!(
    places_on_cells_come_out_exact,
    every_shape_agrees_with_the_reference,
    two_runs_give_the_same_bits,
    no_queries_are_fine_and_nan_passes,
);

const MAPS: [Level; 2] = [Level { height: 3, width: 4, first: 1 }, Level { height: 2, width: 2, first: 14 }];

/// In 64ths: places come out without rounding, and so in the same cell, where the slope along x and y jumps between cells.
fn references(q: usize, dtype: DType) -> Tensor {
    let at: Vec<f32> = (0..2 * q).map(|i| (i * 7 % 10) as f32 * 6.0 / 64.0 + 3.0 / 64.0).collect();
    Tensor::from_f32(&device(), &[q, 2], &at, dtype.accumulator()).unwrap()
}

fn sampling<'a>(v: &'a [Var], references: &'a Tensor, levels: &'a [Level], heads: usize) -> Sampling<'a> {
    Sampling { value: &v[0], offsets: &v[1], logits: &v[2], references, levels, heads }
}

/// No place lies on the border between cells, where the slope along x or y jumps.
#[test]
fn gradients_agree_with_central_differences() {
    let (b, q, s, heads, d, points) = (2, 3, 20, 2, 3, 2);
    let samples = heads * 2 * points;
    let offsets = wide("o", b * q * samples * 2).into_iter().map(|v| 0.9 * v + 0.013).collect();
    let inputs = [
        (&[b, s, heads * d][..], wide("v", b * s * heads * d)),
        (&[b, q, 2 * samples][..], offsets),
        (&[b, q, samples][..], wide("l", b * q * samples)),
    ];
    let at = references(q, DType::F64);
    gradient::check(&inputs, None, |tape, v| deformable_sample(tape, &sampling(v, &at, &MAPS, heads))).unwrap();
    // One value in all three roles.
    let square = [(&[1, 2, 2][..], vec![0.31, -0.43, 0.77, 0.24])];
    let level = [Level { height: 1, width: 4, first: 0 }];
    gradient::check(&square, None, |tape, v| {
        let flat = v[0].reshape(&[1, 4, 1])?;
        let all = [flat.clone(), crate::ops::join(tape, &v[0], &v[0])?, flat];
        deformable_sample(tape, &sampling(&all, &references(4, DType::F64), &level, 1))
    })
    .unwrap();
}

/// Places in the middle of cells or outside, all samples of one weight: sums of integers, halved.
fn places_on_cells_come_out_exact() {
    for dtype in STORED {
        for d in [1, 3, 32, 33, 64, 130] {
            let (b, q, heads, width, height) = (2, 5, 2, 4, 2);
            let levels = [Level { height, width, first: 2 }];
            let s = 2 + width * height + 1;
            let (value, vs) = draw_integers("v", &[b, s, heads * d], 9, dtype);
            let (dy, gs) = draw_integers("g", &[b, q, heads * d], 3, dtype);
            // A reference at 0 puts the offset ½ + x in the middle of cell x; −1 and 4 lie outside.
            let cells: Vec<i64> = (0..b * q * heads * 4).map(|i| (i * 5 % 7) as i64 - 1).collect();
            let offsets: Vec<f32> = cells.iter().map(|&c| c as f32 + 0.5).collect();
            let offsets = Tensor::from_f32(&device(), &[b, q, heads * 4], &offsets, dtype).unwrap();
            let logits = Tensor::from_f32(&device(), &[b, q, heads * 2], &vec![3.0; b * q * heads * 2], dtype).unwrap();
            let at = Tensor::zeros(&device(), &[q, 2], DType::F32).unwrap();
            let (o, grads) = run(&[&value, &offsets, &logits], &dy, |tape, v| {
                deformable_sample(tape, &sampling(v, &at, &levels, heads))
            });
            let cell = |query: usize, head: usize, p: usize| {
                let at = ((query * heads + head) * 2 + p) * 2;
                let (x, y) = (cells[at], cells[at + 1]);
                let inside = x >= 0 && y >= 0 && x < width as i64 && y < height as i64;
                inside.then(|| 2 + y as usize * width + x as usize)
            };
            let mut want = vec![0.0; b * q * heads * d];
            let mut dv = vec![0.0; b * s * heads * d];
            for query in 0..b * q {
                for head in 0..heads {
                    for p in 0..2 {
                        let Some(token) = cell(query, head, p) else { continue };
                        for c in 0..d {
                            let (to, from) =
                                ((query * heads + head) * d + c, ((query / q * s + token) * heads + head) * d + c);
                            want[to] += vs[from] / 2.0;
                            dv[from] += gs[to] / 2.0;
                        }
                    }
                }
            }
            assert!(compare::exact(&o, &want).ok(), "{dtype} {d}");
            assert!(compare::exact(&grads[0], &dv).ok(), "{dtype} {d}");
            want[0] += 1.0;
            assert!(!compare::exact(&o, &want).ok());
        }
    }
}

/// As in f64: several maps, tokens of no map, tiles and records that end within a warp.
fn every_shape_agrees_with_the_reference() {
    let maps = [
        Level { height: 5, width: 9, first: 1 },
        Level { height: 1, width: 1, first: 46 },
        Level { height: 7, width: 3, first: 50 },
    ];
    for dtype in STORED {
        for (b, q, heads, d, l, points) in [(1, 40, 2, 40, 3, 4), (3, 7, 1, 7, 2, 16), (2, 33, 3, 16, 1, 1)] {
            let (s, samples) = (75, heads * l * points);
            let value = draw("v", &[b, s, heads * d], dtype).0;
            let (offsets, logits) = (draw("o", &[b, q, 2 * samples], dtype).0, draw("l", &[b, q, samples], dtype).0);
            let dy = draw("g", &[b, q, heads * d], dtype).0;
            let host = |t: &Tensor| t.to_device(&Device::cpu()).unwrap().cast(DType::F64).unwrap();
            let at = references(q, dtype);
            let on = |inputs: [&Tensor; 3], dy: &Tensor, at: &Tensor| {
                run_on(inputs[0].device(), &inputs, dy, |tape, v| {
                    deformable_sample(tape, &sampling(v, at, &maps[..l], heads))
                })
            };
            let (o, grads) = on([&value, &offsets, &logits], &dy, &at);
            let (want, exact) = on([&host(&value), &host(&offsets), &host(&logits)], &host(&dy), &host(&at));
            let limit = dtype.unit_roundoff() + 2e-5;
            let place = format!("{dtype} {b} {q} {heads} {d} {l} {points}");
            assert!(compare::norm(&o, &want, o.len(), limit).ok(), "{place}");
            for (i, (got, want)) in grads.iter().zip(&exact).enumerate() {
                let outcome = compare::norm(got, want, got.len(), 2.0 * limit);
                assert!(outcome.ok(), "gradient {i}, {place}: {outcome:?}");
                let wrong: Vec<f64> = want.iter().map(|v| v * 1.1).collect();
                // Of one sample a head, the weight is 1 whatever its logit.
                let constant = want.iter().all(|&v| v == 0.0);
                assert!(constant || !compare::norm(&wrong, want, want.len(), 2.0 * limit).ok());
            }
        }
    }
}

fn two_runs_give_the_same_bits() {
    let of = |name: &str, dims: &[usize]| draw(name, dims, DType::F32).0;
    let (value, dy) = (of("v", &[2, 20, 6]), of("g", &[2, 50, 6]));
    let (offsets, logits) = (of("o", &[2, 50, 16]), of("l", &[2, 50, 8]));
    let at = references(50, DType::F32);
    let once =
        || run(&[&value, &offsets, &logits], &dy, |tape, v| deformable_sample(tape, &sampling(v, &at, &MAPS, 2)));
    assert_eq!(once(), once());
}

fn no_queries_are_fine_and_nan_passes() {
    let zeros = |dims: &[usize]| Tensor::zeros(&device(), dims, DType::F32).unwrap();
    for (b, q) in [(0, 3), (2, 0)] {
        let inputs = [zeros(&[b, 20, 4]), zeros(&[b, q, 8]), zeros(&[b, q, 4])];
        let at = references(q, DType::F32);
        let (o, grads) =
            run(&inputs.each_ref(), &zeros(&[b, q, 4]), |tape, v| deformable_sample(tape, &sampling(v, &at, &MAPS, 2)));
        assert!(o.is_empty() && grads[0].len() == b * 80 && grads[0].iter().all(|&g| g == 0.0));
    }
    let value = zeros(&[1, 20, 4]);
    for nan in 0..3 {
        let of = |len: usize, spoilt: bool| {
            let mut v = vec![0.25f32; len];
            v[0] = if spoilt { f32::NAN } else { 0.25 };
            v
        };
        let offsets = Tensor::from_slice(&device(), &[1, 1, 8], &of(8, nan == 0)).unwrap();
        let logits = Tensor::from_slice(&device(), &[1, 1, 4], &of(4, nan == 1)).unwrap();
        let value =
            if nan == 2 { Tensor::from_slice(&device(), &[1, 20, 4], &[f32::NAN; 80]).unwrap() } else { value.clone() };
        let at = references(1, DType::F32);
        let o = forward(&[&value, &offsets, &logits], |tape, v| deformable_sample(tape, &sampling(v, &at, &MAPS, 2)));
        assert!(o.unwrap().to_f32_vec().unwrap()[0].is_nan(), "{nan}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |dims: &[usize]| Tensor::zeros(&Device::cpu(), dims, DType::F32).unwrap();
    let of = |value: &[usize], offsets: &[usize], logits: &[usize], levels: &[Level], heads: usize| {
        let at = zeros(&[3, 2]);
        forward(&[&zeros(value), &zeros(offsets), &zeros(logits)], |tape, v| {
            deformable_sample(tape, &sampling(v, &at, levels, heads))
        })
    };
    let (v, o, l) = (&[2, 20, 4][..], &[2, 3, 8][..], &[2, 3, 4][..]);
    assert!(of(v, o, l, &MAPS, 2).is_ok());
    assert!(matches!(of(v, o, l, &MAPS, 3), Err(Error::Value { argument: "heads", .. })));
    assert!(matches!(of(v, o, l, &[], 2), Err(Error::Value { argument: "levels", .. })));
    let beyond = [Level { height: 5, width: 5, first: 0 }];
    let nothing = [Level { height: 0, width: 5, first: 0 }];
    let overlapping = [MAPS[0], Level { first: 12, ..MAPS[1] }];
    for levels in [&beyond[..], &nothing, &overlapping] {
        assert!(matches!(of(v, o, l, levels, 2), Err(Error::Value { argument: "levels", .. })));
    }
    assert!(matches!(of(v, o, &[2, 3, 5], &MAPS, 2), Err(Error::Shape { argument: "logits", .. })));
    assert!(matches!(of(v, &[2, 3, 6], l, &MAPS, 2), Err(Error::Shape { argument: "offsets", .. })));
    assert!(matches!(of(v, &[2, 3, 272], &[2, 3, 136], &MAPS, 2), Err(Error::Value { argument: "logits", .. })));
    assert!(matches!(of(v, &[2, 4, 8], &[2, 4, 4], &MAPS, 2), Err(Error::Shape { argument: "references", .. })));
}
