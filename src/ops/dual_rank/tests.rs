use super::*;
use crate::device::Device;
use crate::ops::check::{STORED, device, draw, draw_integers, forward, on_each_device, params, run, run_on, wide};
use crate::testing::{compare, gradient};

on_each_device!(
    rows_of_signs_come_out_exact,
    every_rank_agrees_with_the_reference,
    no_tokens_are_fine_and_nan_passes,
    two_runs_give_the_same_bits,
);

const EPS: f64 = 1e-5;

fn gate<'a>(v: &'a [Var], eps: f64, dropout: f64) -> DualRank<'a> {
    DualRank { stacked: &v[1], gamma: &v[2], beta: &v[3], eps, dropout, site: 7 }
}

#[test]
fn gradients_agree_with_central_differences() {
    for (m, k, r) in [(5, 4, 3), (1, 1, 2), (70, 3, 4)] {
        let inputs = [
            (&[m, k][..], wide("x", m * k)),
            (&[2 * r, k][..], wide("s t", 2 * r * k)),
            (&[r][..], wide("gamma", r)),
            (&[r][..], wide("beta", r)),
        ];
        for (seed, p) in [(None, 0.0), (Some(3), 0.4)] {
            gradient::check(&inputs, seed, |tape, v| dual_rank(tape, &v[0], &gate(v, 0.1, p))).unwrap();
        }
    }
}

/// x picks columns of [S; T]; those of S are +1 and −1, as many of each, and so are their own norm. Means over powers of two are exact.
fn rows_of_signs_come_out_exact() {
    for dtype in STORED {
        for r in [2, 4, 16, 64, 256] {
            let k = 3;
            let sign = |e: usize| if (e / k + e % k).is_multiple_of(2) { 1.0f32 } else { -1.0 };
            let skill = (0..r * k).map(sign);
            let (_, task) = draw_integers("t", &[r, k], 3, dtype);
            let stacked: Vec<f32> = skill.chain(task.iter().map(|&t| t as f32)).collect();
            let rows = [0usize, 2, 1, 1, 0];
            let x: Vec<f32> = rows.iter().flat_map(|&at| (0..k).map(move |j| f32::from(u8::from(j == at)))).collect();
            let of = |dims: &[usize], v: &[f32]| Tensor::from_f32(&device(), dims, v, dtype).unwrap();
            let (gamma, gs) = draw_integers("gamma", &[r], 2, dtype);
            let (beta, bs) = draw_integers("beta", &[r], 2, dtype);
            let (dh, dhs) = draw_integers("dh", &[5, r], 2, dtype);
            let (x, stacked) = (of(&[5, k], &x), of(&[2 * r, k], &stacked));
            let (h, grads) =
                run(&[&x, &stacked, &gamma, &beta], &dh, |tape, v| dual_rank(tape, &v[0], &gate(v, 0.0, 0.0)));
            let (mut want, mut dg, mut db) = (Vec::new(), vec![0.0; r], vec![0.0; r]);
            for (i, &at) in rows.iter().enumerate() {
                for c in 0..r {
                    let (a, t) = (f64::from(sign(c * k + at)), task[c * k + at].max(0.0));
                    want.push(t * (a * gs[c] + bs[c]));
                    dg[c] += dhs[i * r + c] * t * a;
                    db[c] += dhs[i * r + c] * t;
                }
            }
            assert!(compare::exact(&h, &want).ok(), "{dtype} {r}");
            assert!(compare::exact(&grads[2], &dg).ok() && compare::exact(&grads[3], &db).ok(), "{dtype} {r}");
            want[1] += 1.0;
            assert!(!compare::exact(&h, &want).ok());
        }
    }
}

/// As in f64, at all widths of a lane, over pieces of rows, with dropout and without.
fn every_rank_agrees_with_the_reference() {
    for dtype in STORED {
        for ((m, k, r), p) in [((9, 33, 3), 0.0), ((70, 40, 33), 0.0), ((130, 64, 16), 0.3), ((3, 17, 255), 0.3)] {
            let all = [("x", vec![m, k]), ("s", vec![2 * r, k]), ("g", vec![r]), ("b", vec![r])];
            let values = all.map(|(name, dims)| draw(name, &dims, dtype).0);
            let dh = draw("dh", &[m, r], dtype).0;
            let host = |t: &Tensor| t.to_device(&Device::cpu()).unwrap().cast(DType::F64).unwrap();
            let once = |device: &Device, inputs: &[Tensor], dh: &Tensor| {
                let params = crate::tensor::ParamSet::none(device, dh.dtype()).unwrap();
                let mut tape = Tape::training(&params, 5, 0);
                let v: Vec<Var> = inputs.iter().map(|t| tape.input(t.clone())).collect();
                let h = dual_rank(&mut tape, &v[0], &gate(&v, EPS, p)).unwrap();
                let mut grads = crate::autograd::Grads::zeros(&params).unwrap();
                let done = tape.backward_with(&h, dh.clone(), &mut grads).unwrap();
                let of = |v: &Var| done.input_gradient(v).unwrap().to_f64_vec().unwrap();
                (h.tensor().to_f64_vec().unwrap(), v.iter().map(of).collect::<Vec<_>>())
            };
            let (h, grads) = once(&device(), &values, &dh);
            let (want, exact) = once(&Device::cpu(), &values.clone().map(|t| host(&t)), &host(&dh));
            // [a, t] is rounded to the storage type on the way, and so is its gradient.
            let limit = 8.0 * dtype.unit_roundoff() + 1e-5;
            let place = format!("{dtype} {m} {k} {r} {p}");
            assert!(compare::norm(&h, &want, h.len(), limit).ok(), "{place}");
            for (i, (got, want)) in grads.iter().zip(&exact).enumerate() {
                assert!(compare::norm(got, want, got.len(), limit).ok(), "gradient {i}, {place}");
                let wrong: Vec<f64> = want.iter().map(|v| v * 1.1).collect();
                assert!(!compare::norm(&wrong, want, want.len(), limit).ok());
            }
        }
    }
}

fn no_tokens_are_fine_and_nan_passes() {
    let of = |dims: &[usize], v: f32| {
        Tensor::from_f32(&device(), dims, &vec![v; dims.iter().product()], DType::F32).unwrap()
    };
    let (stacked, gamma, beta) = (of(&[4, 3], 1.0), of(&[2], 1.0), of(&[2], 1.0));
    let (h, grads) = run(&[&of(&[0, 3], 0.0), &stacked, &gamma, &beta], &of(&[0, 2], 0.0), |tape, v| {
        dual_rank(tape, &v[0], &gate(v, EPS, 0.0))
    });
    assert!(h.is_empty() && grads[0].is_empty());
    assert!(grads[1..].iter().all(|g| g.iter().all(|&v| v == 0.0)));
    let h = forward(&[&of(&[1, 3], f32::NAN), &stacked, &gamma, &beta], |tape, v| {
        dual_rank(tape, &v[0], &gate(v, EPS, 0.0))
    });
    assert!(h.unwrap().to_f32_vec().unwrap().iter().all(|v| v.is_nan()));
}

fn two_runs_give_the_same_bits() {
    let of = |name: &str, dims: &[usize]| draw(name, dims, DType::F32).0;
    let inputs = [of("x", &[200, 30]), of("s", &[10, 30]), of("g", &[5]), of("b", &[5])];
    let dh = of("dh", &[200, 5]);
    let once = || run_on(&device(), &inputs.each_ref(), &dh, |tape, v| dual_rank(tape, &v[0], &gate(v, EPS, 0.0)));
    assert_eq!(once(), once());
}

#[test]
fn a_token_whose_gates_are_shut_moves_nothing() {
    let cpu = Device::cpu();
    let of = |dims: &[usize], v: &[f32]| Tensor::from_slice(&cpu, dims, v).unwrap();
    let stacked = of(&[4, 1], &[1.0, -2.0, -1.0, 0.0]);
    let inputs = [of(&[1, 1], &[3.0]), stacked, of(&[2], &[1.0, 1.0]), of(&[2], &[0.5, 0.5])];
    let (h, grads) =
        run(&inputs.each_ref(), &of(&[1, 2], &[1.0, 1.0]), |tape, v| dual_rank(tape, &v[0], &gate(v, EPS, 0.0)));
    assert!(h.iter().chain(grads.iter().flatten()).all(|&v| v == 0.0));
}

#[test]
fn what_is_kept_is_x_and_two_numbers_a_rank() {
    let cpu = Device::cpu();
    let params = params(DType::F32);
    let zeros = |dims: &[usize]| Tensor::zeros(&cpu, dims, DType::F32).unwrap();
    let mut tape = Tape::deterministic(&params);
    let x = tape.input(zeros(&[8, 6]));
    let frozen: Vec<Var> = [&[6usize, 6][..], &[3], &[3]].map(|d| Var::constant(zeros(d))).to_vec();
    let v = [vec![x.clone()], frozen].concat();
    dual_rank(&mut tape, &x, &gate(&v, EPS, 0.0)).unwrap();
    assert_eq!(tape.ledger().retained_bytes(), 4 * 8 * 6);
    let mut tape = Tape::deterministic(&params);
    let learns: Vec<Var> = [&[8usize, 6][..], &[6, 6], &[3], &[3]].map(|d| tape.input(zeros(d))).to_vec();
    let h = dual_rank(&mut tape, &learns[0], &gate(&learns, EPS, 0.0)).unwrap();
    assert_eq!(tape.ledger().retained_bytes(), 4 * (8 * 6 + 8 * 6));
    // Whoever saves h keeps [a, t] instead, which is kept already.
    let b = tape.input(zeros(&[5, 3]));
    crate::ops::linear(&mut tape, &h, &b, None).unwrap();
    assert_eq!(tape.ledger().retained_bytes(), 4 * (8 * 6 + 8 * 6));
}

#[test]
fn what_does_not_fit_is_refused() {
    let zeros = |dims: &[usize]| Tensor::zeros(&Device::cpu(), dims, DType::F32).unwrap();
    let of = |x: &[usize], stacked: &[usize], gamma: &[usize], eps, p| {
        let tensors = [zeros(x), zeros(stacked), zeros(gamma), zeros(gamma)];
        forward(&tensors.each_ref(), |tape, v| dual_rank(tape, &v[0], &gate(v, eps, p)))
    };
    assert!(of(&[2, 3], &[4, 3], &[2], EPS, 0.0).is_ok());
    assert!(matches!(of(&[2, 3], &[2, 3], &[1], EPS, 0.0), Err(Error::Value { argument: "rank", .. })));
    assert!(matches!(of(&[2, 3], &[514, 3], &[257], EPS, 0.0), Err(Error::Value { argument: "rank", .. })));
    assert!(matches!(of(&[2, 3], &[5, 3], &[2], EPS, 0.0), Err(Error::Shape { argument: "stacked", .. })));
    assert!(matches!(of(&[2, 4], &[4, 3], &[2], EPS, 0.0), Err(Error::Shape { argument: "x", .. })));
    assert!(matches!(of(&[2, 3], &[4, 3], &[3], EPS, 0.0), Err(Error::Shape { argument: "gamma", .. })));
    assert!(matches!(of(&[2, 3], &[4, 3], &[2], f64::NAN, 0.0), Err(Error::Value { argument: "eps", .. })));
    assert!(matches!(of(&[2, 3], &[4, 3], &[2], EPS, 1.0), Err(Error::Value { argument: "dropout", .. })));
}
