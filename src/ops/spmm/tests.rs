use super::*;
use crate::device::Device;
use crate::graph::{Adjacency, Width};
use crate::ops::check::{
    STORED, device, draw, draw_integers, graphs, irregular, on_each_device, planned_and_counted, rounded, run, run_on,
    wide,
};
use crate::ops::rows::Deal;
use crate::testing::{compare, gradient};

on_each_device! {
    integers_come_out_exact_in_every_width,
    means_and_weights_of_the_graph_are_within_rounding,
    the_first_of_equals_is_picked_and_nan_passes,
    a_row_of_a_million_edges_is_exact,
    graphs_of_no_nodes_have_no_sums,
    two_runs_give_the_same_bits_whatever_the_threads,
}

const ALL: [Reduce; 4] = [Reduce::Sum, Reduce::Mean, Reduce::Max, Reduce::Min];

/// Each row by the definition, over a dense copy of every edge.
fn by_definition(g: &Adjacency, x: &[f64], f: usize, w: Option<(&[f64], usize)>, reduce: Reduce) -> Vec<f64> {
    let mut out = Vec::new();
    for i in 0..g.rows() {
        for c in 0..f {
            let terms: Vec<f64> = (g.offsets()[i]..g.offsets()[i + 1])
                .map(|e| w.map_or(1.0, |(w, h)| w[e * h + c / (f / h)]) * x[g.indices()[e] * f + c])
                .collect();
            out.push(match reduce {
                _ if terms.is_empty() => 0.0,
                Reduce::Sum => terms.iter().sum(),
                Reduce::Mean => terms.iter().sum::<f64>() / terms.len() as f64,
                Reduce::Max => terms.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b)),
                Reduce::Min => terms.iter().fold(f64::INFINITY, |a, &b| a.min(b)),
            });
        }
    }
    out
}

#[test]
fn gradients_agree_with_central_differences() {
    for g in &graphs()[..3] {
        let csr = Csr::new(g, &Device::cpu()).unwrap();
        for reduce in ALL {
            for heads in [1, 2] {
                let inputs = [
                    (&[g.cols(), 4][..], wide("x", 4 * g.cols())),
                    (&[g.edges(), heads][..], wide("w", heads * g.edges())),
                ];
                gradient::check(&inputs, None, |tape, v| spmm(tape, &csr, &v[0], Some(&v[1]), reduce)).unwrap();
            }
            let x = [(&[g.cols(), 3][..], wide("x", 3 * g.cols()))];
            gradient::check(&x, None, |tape, v| {
                let (a, b) = (spmm(tape, &csr, &v[0], None, reduce)?, spmm(tape, &csr, &v[0], None, Reduce::Sum)?);
                crate::ops::scale_add(tape, &a, &b, 2.0)
            })
            .unwrap();
        }
    }
}

fn integers_come_out_exact_in_every_width() {
    let device = device();
    for (g, width) in graphs().iter().zip([Width::Fitting, Width::Wide, Width::Fitting, Width::Fitting]) {
        let csr = Csr::with_width(g, &device, width).unwrap();
        for (f, heads) in [(1, 1), (3, 1), (16, 2), (33, 1), (40, 5), (136, 1), (520, 2)] {
            for dtype in STORED {
                // Widths beyond a team's are one of many on an emulated device.
                if !device.is_cpu() && f > 100 && dtype == DType::F16 {
                    continue;
                }
                let (x, xs) = draw_integers("x", &[g.cols(), f], 2, dtype);
                let (w, ws) = draw_integers("w", &[g.edges(), heads], 1, dtype);
                let (dy, _) = draw_integers("dy", &[g.rows(), f], 1, dtype);
                for reduce in [Reduce::Sum, Reduce::Max, Reduce::Min] {
                    let place = format!("{} {dtype} {f} {heads} {reduce:?} {}", device.name(), g.edges());
                    let (y, grads) = run(&[&x, &w], &dy, |tape, v| spmm(tape, &csr, &v[0], Some(&v[1]), reduce));
                    let want = by_definition(g, &xs, f, Some((&ws, heads)), reduce);
                    assert!(compare::exact(&y, &rounded(&want, dtype)).ok(), "{place}");
                    let host = Csr::new(g, &Device::cpu()).unwrap();
                    let wide = [&x, &w, &dy].map(|t| t.cast(DType::F64).unwrap());
                    let (_, exact) = run_on(&Device::cpu(), &[&wide[0], &wide[1]], &wide[2], |tape, v| {
                        spmm(tape, &host, &v[0], Some(&v[1]), reduce)
                    });
                    for (got, want) in grads.iter().zip(exact) {
                        let outcome = compare::exact(got, &rounded(&want, dtype));
                        assert!(outcome.ok(), "gradient, {place}: {outcome:?}");
                    }
                    if let Some(last) = y.len().checked_sub(1) {
                        let mut wrong = y;
                        wrong[last] += 1.0;
                        assert!(!compare::exact(&wrong, &rounded(&want, dtype)).ok());
                    }
                }
            }
        }
    }
}

fn means_and_weights_of_the_graph_are_within_rounding() {
    let device = device();
    for g in graphs() {
        let values: Vec<f32> = wide("values", g.edges()).iter().map(|&v| v as f32).collect();
        let weighted = g.clone().with_values(values.clone()).unwrap();
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        for dtype in STORED {
            let (x, xs) = draw("x", &[g.cols(), 24], dtype);
            let (dy, _) = draw("dy", &[g.rows(), 24], dtype);
            let csr = Csr::new(&weighted, &device).unwrap();
            let (y, grads) = run(&[&x], &dy, |tape, v| spmm(tape, &csr, &v[0], None, Reduce::Mean));
            let want = by_definition(&g, &xs, 24, Some((&values, 1)), Reduce::Mean);
            let sizes = |v: &[f64]| v.iter().map(|v| v.abs()).collect::<Vec<_>>();
            let magnitude = by_definition(&g, &sizes(&xs), 24, Some((&sizes(&values), 1)), Reduce::Mean);
            assert!(compare::bound(&y, &want, &magnitude, g.max_degree() + 2, dtype).ok());
            let host = Csr::new(&weighted, &Device::cpu()).unwrap();
            let wide = [&x, &dy].map(|t| t.cast(DType::F64).unwrap());
            let (_, exact) =
                run_on(&Device::cpu(), &[&wide[0]], &wide[1], |tape, v| spmm(tape, &host, &v[0], None, Reduce::Mean));
            assert!(compare::norm(&grads[0], &exact[0], 24, 2.0 * dtype.unit_roundoff() + 1e-6).ok());
        }
    }
}

fn the_first_of_equals_is_picked_and_nan_passes() {
    let g = Adjacency::from_edges((3, 3), &[(0, 0), (0, 1), (0, 2), (1, 1)], None).unwrap();
    let device = device();
    let csr = Csr::new(&g, &device).unwrap();
    let x = Tensor::from_slice(&device, &[3, 2], &[5.0f32, 1.0, 5.0, f32::NAN, 5.0, 2.0]).unwrap();
    let dy = Tensor::from_slice(&device, &[3, 2], &[1.0f32; 6]).unwrap();
    for reduce in [Reduce::Max, Reduce::Min] {
        let (y, grads) = run(&[&x], &dy, |tape, v| spmm(tape, &csr, &v[0], None, reduce));
        assert!(y[0] == 5.0 && y[1].is_nan() && y[2] == 5.0 && y[3].is_nan() && y[4..] == [0.0, 0.0]);
        assert_eq!(grads[0], [1.0, 0.0, 1.0, 2.0, 0.0, 0.0]);
        let params = crate::ops::check::params(DType::F32);
        let (_, arg) = spmm_arg(&mut Tape::inference(&params), &csr, &Var::constant(x.clone()), None, reduce).unwrap();
        assert_eq!(arg.to_vec::<i32>().unwrap(), [0, 1, 3, 3, -1, -1]);
    }
    let params = crate::ops::check::params(DType::F32);
    let sum = spmm_arg(&mut Tape::inference(&params), &csr, &Var::constant(x), None, Reduce::Sum);
    assert!(matches!(sum, Err(Error::Value { argument: "reduce", .. })));
    let infinite = Tensor::from_slice(&device, &[3, 1], &[f32::NEG_INFINITY; 3]).unwrap();
    let dy = dy.slice(0, 0, 3).unwrap().slice(1, 0, 1).unwrap().contiguous().unwrap();
    let (y, grads) = run(&[&infinite], &dy, |tape, v| spmm(tape, &csr, &v[0], None, Reduce::Max));
    assert_eq!((y[0], grads[0][0]), (f64::NEG_INFINITY, 1.0));
}

/// Beside rows of none and of one.
fn a_row_of_a_million_edges_is_exact() {
    let (hub, n, device) = (1_000_000usize, 1000, device());
    let mut offsets = vec![0, 0, 1];
    offsets.extend([hub + 1; 2]);
    let indices: Vec<usize> = (0..=hub).map(|e| e * 7 % n).collect();
    let g = Adjacency::new((4, n), offsets, indices, None).unwrap();
    let csr = Csr::new(&g, &device).unwrap();
    assert_eq!(csr.max_degree(), hub);
    let (x, xs) = draw_integers("x", &[n, 4], 3, DType::F32);
    let (dy, slopes) = draw_integers("dy", &[4, 4], 2, DType::F32);
    for reduce in [Reduce::Sum, Reduce::Max] {
        let (y, grads) = run(&[&x], &dy, |tape, v| spmm(tape, &csr, &v[0], None, reduce));
        assert_eq!(y, by_definition(&g, &xs, 4, None, reduce), "{reduce:?} on {}", device.name());
        // Column sums: every edge, or the picked one, brings back the slope of its row.
        for c in 0..4 {
            let back: f64 = grads[0].iter().skip(c).step_by(4).sum();
            let all = if reduce == Reduce::Sum { hub as f64 } else { 1.0 };
            assert_eq!(back, slopes[4 + c] + all * slopes[8 + c], "{reduce:?} on {}", device.name());
        }
    }
}

fn graphs_of_no_nodes_have_no_sums() {
    let device = device();
    for (rows, cols) in [(0, 0), (0, 3), (3, 0)] {
        let csr = Csr::new(&Adjacency::empty(rows, cols).unwrap(), &device).unwrap();
        let zeros = |dims: &[usize]| Tensor::zeros(&device, dims, DType::F32).unwrap();
        for reduce in ALL {
            let x = zeros(&[cols, 2]);
            let (y, grads) = run(&[&x], &zeros(&[rows, 2]), |tape, v| spmm(tape, &csr, &v[0], None, reduce));
            assert_eq!((y, grads), (vec![0.0; 2 * rows], vec![vec![0.0; 2 * cols]]), "{reduce:?} {rows} {cols}");
        }
    }
}

fn two_runs_give_the_same_bits_whatever_the_threads() {
    let g = &graphs()[3];
    let device = device();
    let csr = Csr::new(g, &device).unwrap();
    let (x, w) = (draw("x", &[50, 96], DType::F32).0, draw("w", &[g.edges()], DType::F32).0);
    let dy = draw("dy", &[9, 96], DType::F32).0;
    for reduce in ALL {
        // Named, since the test's own device is that of its thread.
        let once = || run_on(&device, &[&x, &w], &dy, |tape, v| spmm(tape, &csr, &v[0], Some(&v[1]), reduce));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(once(), pool.install(once));
    }
}

#[test]
fn only_what_backward_needs_is_kept() {
    let csr = Csr::new(&graphs()[1], &Device::cpu()).unwrap();
    let (x, w) = (draw("x", &[5, 8], DType::F32).0, draw("w", &[6], DType::F32).0);
    let kept = |x_learns: bool, w_learns: bool, reduce| {
        let params = crate::ops::check::params(DType::F32);
        let mut tape = Tape::deterministic(&params);
        let make = |tape: &mut Tape, t: &Tensor, on| if on { tape.input(t.clone()) } else { Var::constant(t.clone()) };
        let (x, w) = (make(&mut tape, &x, x_learns), make(&mut tape, &w, w_learns));
        spmm(&mut tape, &csr, &x, Some(&w), reduce).unwrap();
        tape.ledger().retained_bytes()
    };
    assert_eq!(kept(true, false, Reduce::Sum), 6 * 4);
    assert_eq!(kept(false, true, Reduce::Sum), 5 * 8 * 4);
    assert_eq!(kept(true, false, Reduce::Max), 6 * 4 + 4 * 8 * 4);
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_launched() {
    let g = &graphs()[1];
    let csr = Csr::new(g, &Device::cpu()).unwrap();
    let refused = |x: &[usize], w: Option<&[usize]>, dtype| {
        let x = Tensor::zeros(&Device::cpu(), x, dtype).unwrap();
        let w = w.map(|w| Tensor::zeros(&Device::cpu(), w, DType::F32).unwrap());
        Desc::new(&csr, &x, w.as_ref(), Reduce::Sum).unwrap_err()
    };
    assert!(matches!(refused(&[4, 3], None, DType::F32), Error::Shape { argument: "x", .. }));
    assert!(matches!(refused(&[5], None, DType::F32), Error::Shape { argument: "x", .. }));
    assert!(matches!(refused(&[5, 3], None, DType::I32), Error::DType { argument: "x", .. }));
    assert!(matches!(refused(&[5, 3], Some(&[5]), DType::F32), Error::Shape { argument: "weights", .. }));
    assert!(matches!(refused(&[5, 3], Some(&[6, 2]), DType::F32), Error::Shape { argument: "weights", .. }));
    let device = Device::trace(80);
    let elsewhere = Csr::new(g, &device).unwrap();
    let x = Tensor::zeros(&Device::cpu(), &[5, 3], DType::F32).unwrap();
    assert!(matches!(Desc::new(&elsewhere, &x, None, Reduce::Sum), Err(Error::DeviceMismatch { .. })));
    assert!(device.launcher().unwrap().recorded().is_empty());
}

/// Launches that a forward pass records.
fn plan(g: &Adjacency, f: usize) -> Vec<gpu::Params> {
    let device = Device::trace(80);
    let csr = Csr::new(g, &device).unwrap();
    let params = crate::tensor::ParamSet::none(&device, DType::F32).unwrap();
    let x = Var::constant(Tensor::zeros(&device, &[g.cols(), f], DType::F32).unwrap());
    spmm(&mut Tape::inference(&params), &csr, &x, None, Reduce::Sum).unwrap();
    device.launcher().unwrap().recorded().iter().map(|spec| spec.params.read().unwrap()).collect()
}

#[test]
fn a_batch_of_small_graphs_is_one_launch() {
    let full: Vec<(usize, usize)> = (0..16).flat_map(|i| (0..16).map(move |j| (i, j))).collect();
    let part = Adjacency::from_edges((16, 16), &full, None).unwrap();
    let batch = Adjacency::block_diagonal(&vec![part; 64]).unwrap();
    let plan = plan(&batch, 128);
    assert_eq!((plan.len(), plan[0].flags & gpu::SPLIT, plan[0].lanes), (1, 0, 32));
}

/// Degrees that fall as 1 / rank, up to a hub with a tenth of all edges: no block has a fifth more than the mean.
#[test]
fn work_is_balanced_on_a_power_law() {
    let n = 20_000;
    let degree = |i: usize| 30_000 / (i + 1);
    let edges: Vec<(usize, usize)> = (0..n).flat_map(|i| (0..degree(i)).map(move |k| (i, (i * 7 + k) % n))).collect();
    let g = Adjacency::from_edges((n, n), &edges, None).unwrap();
    let plan = plan(&g, 128);
    assert_eq!((plan.len(), plan[0].flags & gpu::SPLIT), (2, gpu::SPLIT));
    assert!(heaviest(&plan[0], &g) <= 1.2);
    // Of short rows a chunk takes whole ones.
    let ring: Vec<(usize, usize)> = (0..n).flat_map(|i| (0..1 + i * 7 % 40).map(move |k| (i, (i + k) % n))).collect();
    let g = Adjacency::from_edges((n, n), &ring, None).unwrap();
    let plan = self::plan(&g, 128);
    assert_eq!((plan.len(), plan[0].flags & gpu::SPLIT), (1, 0));
    assert!(heaviest(&plan[0], &g) <= 1.2);
}

/// The work of the slowest block over the mean of all but the last, which takes what is left: edges gathered and rows begun, as the walk of
/// `kernels/tile/csr.cuh` deals them out.
fn heaviest(p: &gpu::Params, g: &Adjacency) -> f64 {
    let deal = deal_of(p, g);
    let teams = u64::from(256 / p.lanes);
    let work = |chunk: u64| {
        let stretch = deal.stretch(g.offsets(), chunk);
        stretch.edges + stretch.rows
    };
    let blocks: Vec<usize> = (0..deal.chunks)
        .step_by(teams as usize)
        .map(|first| (first..(first + teams).min(deal.chunks)).map(work).sum())
        .collect();
    assert_eq!(blocks.iter().sum::<usize>(), g.edges() + g.rows());
    let full = &blocks[..blocks.len() - 1];
    assert!(full.len() > 30);
    let mean = full.iter().sum::<usize>() as f64 / full.len() as f64;
    *blocks.iter().max().unwrap() as f64 / mean
}

fn deal_of(p: &gpu::Params, g: &Adjacency) -> Deal {
    let chunk = p.graph.chunk;
    Deal { chunk, chunks: ((g.rows() + g.edges()) as u64).div_ceil(chunk), split: p.flags & gpu::SPLIT != 0 }
}

/// What the emulator counts is what the plan foretells; where the teams of a warp walk two chunks, a little less, since bisection begins at the same
/// offsets.
#[test]
#[cfg_attr(
    not(all(graftwork_kernels, feature = "emulator")),
    ignore = "this build has no kernels, or not the feature `emulator`"
)]
fn the_plan_foretells_what_moves() {
    let v = 600;
    for (hub, dtype, f, heads) in [
        (0, DType::F32, 128, 1),
        (0, DType::F32, 64, 1),
        (0, DType::BF16, 256, 2),
        (3000, DType::F32, 128, 1),
        (3000, DType::F16, 256, 1),
    ] {
        let g = irregular(v, 16, hub);
        let (plan, walk): (gpu::Params, _) = planned_and_counted(|device| {
            let csr = Csr::new(&g, device).unwrap();
            let zeros = |dims: &[usize]| Var::constant(Tensor::zeros(device, dims, dtype).unwrap());
            let (x, w) = (zeros(&[v, f]), zeros(&[g.edges(), heads]));
            let params = crate::tensor::ParamSet::none(device, dtype).unwrap();
            let weights = (heads > 1).then_some(&w);
            spmm(&mut Tape::inference(&params), &csr, &x, weights, Reduce::Sum).unwrap();
        });
        let foretold = plan.traffic(&deal_of(&plan, &g), g.offsets(), dtype);
        let place = format!("{hub} {dtype} {f} {heads}");
        assert_eq!(walk.store_sectors, foretold.stored, "{place}: stores");
        let apart = foretold.loaded.abs_diff(walk.load_sectors);
        let together = plan.teams(dtype).is_multiple_of(u64::from(32 / plan.lanes));
        let allowed = if together { 0 } else { foretold.loaded / 25 };
        assert!(apart <= allowed, "{place}: {} sectors loaded, {} foretold", walk.load_sectors, foretold.loaded);
        assert_eq!((walk.bank_conflicts, walk.local_accesses), (0, 0), "{place}");
    }
}
