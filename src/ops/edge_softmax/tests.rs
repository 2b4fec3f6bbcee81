use super::*;
use crate::device::Device;
use crate::ops::check::{
    STORED, device, draw, graphs, irregular, is_as_foretold, on_each_device, planned_and_counted, run, run_on, wide,
};
use crate::testing::{compare, gradient};

on_each_device! {
    rows_add_up_to_one_and_agree_with_the_definition,
    two_runs_give_the_same_bits_and_nan_stays_in_its_row,
}

#[test]
fn gradients_agree_with_central_differences() {
    for g in &graphs()[..3] {
        let csr = Csr::new(g, &Device::cpu()).unwrap();
        for heads in [1, 3] {
            let scores = [(&[g.edges(), heads][..], wide("s", heads * g.edges()))];
            gradient::check(&scores, None, |tape, v| edge_softmax(tape, &csr, &v[0])).unwrap();
        }
    }
}

fn rows_add_up_to_one_and_agree_with_the_definition() {
    let device = device();
    for g in graphs() {
        let csr = Csr::new(&g, &device).unwrap();
        for heads in [1, 2, 3, 8, 32, 40] {
            for dtype in STORED {
                let (s, values) = draw("s", &[g.edges(), heads], dtype);
                let (dp, slopes) = draw("dp", &[g.edges(), heads], dtype);
                let (p, grads) = run(&[&s], &dp, |tape, v| edge_softmax(tape, &csr, &v[0]));
                let (mut want, mut want_ds) = (vec![0.0; p.len()], vec![0.0; p.len()]);
                for i in 0..g.rows() {
                    for h in 0..heads {
                        let row: Vec<usize> = (g.offsets()[i]..g.offsets()[i + 1]).map(|e| e * heads + h).collect();
                        let sum: f64 = row.iter().map(|&k| values[k].exp()).sum();
                        row.iter().for_each(|&k| want[k] = values[k].exp() / sum);
                        // Backward starts from what is stored.
                        let along: f64 = row.iter().map(|&k| p[k] * slopes[k]).sum();
                        row.iter().for_each(|&k| want_ds[k] = p[k] * (slopes[k] - along));
                    }
                }
                let limit = 2.0 * dtype.unit_roundoff() + 4e-6;
                let outcome = compare::norm(&p, &want, heads, limit);
                assert!(outcome.ok(), "{} {dtype} {heads} {}: {outcome:?}", device.name(), g.edges());
                let outcome = compare::norm(&grads[0], &want_ds, heads, limit);
                assert!(outcome.ok(), "{} {dtype} {heads} {}: {outcome:?}", device.name(), g.edges());
                if !p.is_empty() {
                    want[0] += 0.5;
                    assert!(!compare::norm(&p, &want, heads, limit).ok());
                }
            }
        }
    }
}

fn two_runs_give_the_same_bits_and_nan_stays_in_its_row() {
    let device = device();
    for g in &graphs()[1..] {
        let csr = Csr::new(g, &device).unwrap();
        let (s, dp) = (draw("s", &[g.edges(), 2], DType::F32).0, draw("dp", &[g.edges(), 2], DType::F32).0);
        let once = || run(&[&s], &dp, |tape, v| edge_softmax(tape, &csr, &v[0]));
        assert_eq!(once(), once());
        let mut values = s.to_vec::<f32>().unwrap();
        values[0] = f32::NAN;
        let s = Tensor::from_slice(&device, s.dims(), &values).unwrap();
        let (p, _) = run(&[&s], &dp, |tape, v| edge_softmax(tape, &csr, &v[0]));
        let first = g.offsets()[1].max(g.offsets()[2]).min(g.edges());
        let row = (0..g.rows()).find(|&i| g.degree(i) > 0).unwrap();
        for e in 0..first.max(g.offsets()[row + 1]) {
            assert_eq!(p[2 * e].is_nan(), e < g.offsets()[row + 1]);
            assert!(!p[2 * e + 1].is_nan());
        }
    }
}

#[test]
#[cfg_attr(
    not(all(graftwork_kernels, feature = "emulator")),
    ignore = "this build has no kernels, or not the feature `emulator`"
)]
fn the_plans_foretell_what_moves() {
    for (degree, dtype, heads) in [(20, DType::F32, 1), (30, DType::BF16, 1), (12, DType::F32, 4), (9, DType::F16, 8)] {
        let g = irregular(300, degree, 0);
        for backward in [false, true] {
            let (plan, counted): (gpu::Params, _) = planned_and_counted(|device| {
                let csr = Csr::new(&g, device).unwrap();
                let of = || Tensor::zeros(device, &[g.edges(), heads], dtype).unwrap();
                let (from, dp, out) = (of(), of(), of());
                let desc = Desc::new(&csr, &from).unwrap();
                if backward {
                    gpu::backward(&desc, &csr, &from, &dp, &Target { tensor: out, accumulate: false }).unwrap();
                } else {
                    gpu::forward(&desc, &csr, &from, &out).unwrap();
                }
            });
            let told = plan.traffic(g.offsets(), dtype);
            assert!(is_as_foretold(told, &counted), "{degree} {dtype} {heads} {backward}: {told:?}, {counted:?}");
            assert_eq!((counted.bank_conflicts, counted.local_accesses, counted.launches), (0, 0, 1));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let csr = Csr::new(&graphs()[1], &Device::cpu()).unwrap();
    let of = |dims: &[usize], dtype| Desc::new(&csr, &Tensor::zeros(&Device::cpu(), dims, dtype).unwrap());
    assert!(matches!(of(&[5], DType::F32), Err(Error::Shape { argument: "scores", .. })));
    assert!(matches!(of(&[6, 0], DType::F32), Err(Error::Shape { .. })));
    assert!(matches!(of(&[6, 2], DType::I64), Err(Error::DType { .. })));
    assert_eq!(of(&[6], DType::F32).unwrap().heads, 1);
    let elsewhere = Csr::new(&graphs()[1], &Device::trace(80)).unwrap();
    let scores = Tensor::zeros(&Device::cpu(), &[6], DType::F32).unwrap();
    assert!(matches!(Desc::new(&elsewhere, &scores), Err(Error::DeviceMismatch { argument: "graph", .. })));
    let (s, dp) = (draw("s", &[6], DType::F64).0, draw("dp", &[6], DType::F64).0);
    assert_eq!(run_on(&Device::cpu(), &[&s], &dp, |tape, v| edge_softmax(tape, &csr, &v[0])).0.len(), 6);
}
