use super::*;
use crate::device::Device;
use crate::graph::Adjacency;
use crate::ops::check::{
    STORED, device, draw, graphs, irregular, is_as_foretold, on_each_device, planned_and_counted, run, run_on, wide,
};
use crate::ops::{Reduce, edge_softmax, spmm};
use crate::testing::{compare, gradient};

on_each_device! {
    one_pass_gives_what_softmax_and_sum_give,
    two_runs_give_the_same_bits,
}

const SLOPE: f64 = 0.2;

#[test]
fn gradients_agree_with_central_differences() {
    for g in &graphs()[..3] {
        let csr = Csr::new(g, &Device::cpu()).unwrap();
        for heads in [1, 2] {
            let inputs = [
                (&[g.rows(), heads][..], wide("left", heads * g.rows())),
                (&[g.cols(), heads][..], wide("right", heads * g.cols())),
                (&[g.cols(), 4][..], wide("x", 4 * g.cols())),
            ];
            gradient::check(&inputs, None, |tape, v| graph_attention(tape, &csr, &v[0], &v[1], &v[2], SLOPE)).unwrap();
        }
    }
}

fn one_pass_gives_what_softmax_and_sum_give() {
    let device = device();
    for g in graphs() {
        let csr = Csr::new(&g, &device).unwrap();
        for (f, heads) in [(5, 1), (16, 2), (33, 3), (136, 1), (520, 2)] {
            for dtype in STORED {
                let (left, ls) = draw("left", &[g.rows(), heads], dtype);
                let (right, rs) = draw("right", &[g.cols(), heads], dtype);
                let (x, _) = draw("x", &[g.cols(), f], dtype);
                let (dy, _) = draw("dy", &[g.rows(), f], dtype);
                let (y, grads) =
                    run(&[&left, &right, &x], &dy, |tape, v| graph_attention(tape, &csr, &v[0], &v[1], &v[2], SLOPE));
                // In f64: scores, the softmax op, the sum op.
                let host = Csr::new(&g, &Device::cpu()).unwrap();
                let mut scores = Vec::new();
                for i in 0..g.rows() {
                    for &j in g.neighbours(i) {
                        scores.extend((0..heads).map(|h| {
                            let z = ls[i * heads + h] + rs[j * heads + h];
                            if z > 0.0 { z } else { SLOPE * z }
                        }));
                    }
                }
                let scores = Tensor::from_slice(&Device::cpu(), &[g.edges(), heads], &scores).unwrap();
                let wide = [&left, &right, &x, &dy].map(|t| t.cast(DType::F64).unwrap());
                let (want, _) = run_on(&Device::cpu(), &[&scores, &wide[2]], &wide[3], |tape, v| {
                    let p = edge_softmax(tape, &host, &v[0])?;
                    spmm(tape, &host, &v[1], Some(&p), Reduce::Sum)
                });
                let limit = dtype.unit_roundoff() + 1e-5;
                let place = format!("{} {dtype} {f} {heads} {}", device.name(), g.edges());
                let outcome = compare::norm(&y, &want, f, limit);
                assert!(outcome.ok(), "{place}: {outcome:?}");
                let (_, exact) = run_on(&Device::cpu(), &[&wide[0], &wide[1], &wide[2]], &wide[3], |tape, v| {
                    graph_attention(tape, &host, &v[0], &v[1], &v[2], SLOPE)
                });
                let p = crate::ops::check::forward(&[&scores], |tape, v| edge_softmax(tape, &host, &v[0])).unwrap();
                let sizes = score_terms(&g, heads, &p.to_f64_vec().unwrap(), &wide[2], &wide[3], &want);
                for (k, (got, want)) in grads.iter().zip(&exact).enumerate() {
                    // Those of the scores are sums of terms that cancel: each is held to a share of its terms.
                    let right = match sizes.get(k) {
                        Some(sizes) => {
                            got.iter().zip(want).zip(sizes).all(|((g, w), s)| (g - w).abs() <= 4.0 * limit * s)
                        }
                        None => compare::norm(got, want, f, 2.0 * limit).ok(),
                    };
                    assert!(right, "gradient {k}, {place}");
                }
            }
        }
    }
}

/// `Σ_e α_e Σ_c |dy_ic| (|x_jc| + |y_ic|)` over rows, and over columns: what the gradients of left and right are made of.
fn score_terms(g: &Adjacency, h: usize, p: &[f64], x: &Tensor, dy: &Tensor, y: &[f64]) -> [Vec<f64>; 2] {
    let (x, dy, f) = (x.to_f64_vec().unwrap(), dy.to_f64_vec().unwrap(), dy.cols());
    let (mut left, mut right) = (vec![0.0; g.rows() * h], vec![0.0; g.cols() * h]);
    for i in 0..g.rows() {
        for (&j, e) in g.neighbours(i).iter().zip(g.offsets()[i]..) {
            for head in 0..h {
                let term = |c: usize| dy[i * f + c].abs() * (x[j * f + c].abs() + y[i * f + c].abs());
                let term = p[e * h + head] * (head * f / h..(head + 1) * f / h).map(term).sum::<f64>();
                left[i * h + head] += term;
                right[j * h + head] += term;
            }
        }
    }
    [left, right]
}

fn two_runs_give_the_same_bits() {
    let g = &graphs()[3];
    let device = device();
    let csr = Csr::new(g, &device).unwrap();
    let of = |name: &str, dims: &[usize]| draw(name, dims, DType::F32).0;
    let (left, right, x, dy) = (of("l", &[9, 2]), of("r", &[50, 2]), of("x", &[50, 24]), of("dy", &[9, 24]));
    let once = || run(&[&left, &right, &x], &dy, |tape, v| graph_attention(tape, &csr, &v[0], &v[1], &v[2], SLOPE));
    assert_eq!(once(), once());
}

#[test]
#[cfg_attr(
    not(all(graftwork_kernels, feature = "emulator")),
    ignore = "this build has no kernels, or not the feature `emulator`"
)]
fn the_plans_foretell_what_moves() {
    let (v, g) = (300, irregular(300, 16, 0));
    for (dtype, f, heads) in [(DType::F32, 128, 1), (DType::F32, 256, 2), (DType::BF16, 256, 1)] {
        for pass in [0, 1] {
            let (plan, counted): (gpu::Params, _) = planned_and_counted(|device| {
                let csr = Csr::new(&g, device).unwrap();
                let zeros = |dims: &[usize], dtype| Tensor::zeros(device, dims, dtype).unwrap();
                let (score, x) = (zeros(&[v, heads], dtype), zeros(&[v, f], dtype));
                let operands = Operands { left: &score, right: &score, x: &x };
                let desc = Desc::new(&csr, &score, &score, &x, SLOPE).unwrap();
                let (y, lse) = (zeros(&[v, f], dtype), zeros(&[v, heads], DType::F32));
                if pass == 0 {
                    return gpu::forward(&desc, &csr, &operands, &y, &lse).unwrap();
                }
                let (alpha, dz) = (zeros(&[desc.e, heads], DType::F32), zeros(&[desc.e, heads], DType::F32));
                let slopes = Slopes { y: &y, lse: &lse, dy: &x, alpha: &alpha, dz: &dz };
                gpu::edges(&desc, &csr, &operands, &slopes).unwrap();
            });
            let told = plan.traffic(g.offsets(), dtype)[pass];
            assert!(is_as_foretold(told, &counted), "{dtype} {f} {heads} {pass}: {told:?}, {counted:?}");
            assert_eq!((counted.bank_conflicts, counted.local_accesses, counted.launches), (0, 0, 1));
        }
    }
}

/// Sixty-four graphs of 16 nodes, each with all its edges: one launch forward, and one over the edges.
#[test]
fn a_batch_of_small_graphs_is_one_launch() {
    let device = Device::trace(80);
    let full: Vec<(usize, usize)> = (0..256).map(|e| (e / 16, e % 16)).collect();
    let batch = Adjacency::block_diagonal(&vec![Adjacency::from_edges((16, 16), &full, None).unwrap(); 64]).unwrap();
    let csr = Csr::new(&batch, &device).unwrap();
    let of = |dims: &[usize]| crate::autograd::Var::constant(Tensor::zeros(&device, dims, DType::F32).unwrap());
    let (score, x, edges) = (of(&[1024, 2]), of(&[1024, 32]), of(&[1024 * 16, 2]));
    let params = crate::tensor::ParamSet::none(&device, DType::F32).unwrap();
    let launches = |work: &dyn Fn(&mut Tape)| {
        let before = device.recorded().len();
        work(&mut Tape::inference(&params));
        device.recorded().len() - before
    };
    assert_eq!(launches(&|tape| drop(graph_attention(tape, &csr, &score, &score, &x, SLOPE).unwrap())), 1);
    assert_eq!(launches(&|tape| drop(edge_softmax(tape, &csr, &edges).unwrap())), 1);
    assert_eq!(launches(&|tape| drop(crate::ops::sddmm(tape, &csr, &x, &x, 2).unwrap())), 1);
    for reduce in [Reduce::Sum, Reduce::Mean, Reduce::Max, Reduce::Min] {
        assert_eq!(launches(&|tape| drop(spmm(tape, &csr, &x, None, reduce).unwrap())), 1);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let csr = Csr::new(&graphs()[1], &Device::cpu()).unwrap();
    let zeros = |dims: &[usize]| Tensor::zeros(&Device::cpu(), dims, DType::F32).unwrap();
    let of = |left: &[usize], right: &[usize], x: &[usize], slope| {
        Desc::new(&csr, &zeros(left), &zeros(right), &zeros(x), slope).map(|_| ())
    };
    assert!(of(&[4, 2], &[5, 2], &[5, 6], 0.2).is_ok());
    assert!(matches!(of(&[4, 4], &[5, 4], &[5, 6], 0.2), Err(Error::Shape { argument: "left", .. })));
    assert!(matches!(of(&[4, 2], &[4, 2], &[5, 6], 0.2), Err(Error::Shape { argument: "right", .. })));
    assert!(matches!(of(&[4, 2], &[5, 2], &[4, 6], 0.2), Err(Error::Shape { argument: "x", .. })));
    assert!(matches!(of(&[4, 2], &[5, 2], &[5, 6], f64::NAN), Err(Error::Value { argument: "slope", .. })));
    let elsewhere = Csr::new(&graphs()[1], &Device::trace(80)).unwrap();
    let refused = Desc::new(&elsewhere, &zeros(&[4, 2]), &zeros(&[5, 2]), &zeros(&[5, 6]), 0.2);
    assert!(matches!(refused, Err(Error::DeviceMismatch { argument: "graph", .. })));
}
