use super::*;
use crate::device::Device;
use crate::ops::check::{
    STORED, device, draw_integers, graphs, irregular, is_as_foretold, on_each_device, planned_and_counted, rounded,
    run, run_on, wide,
};
use crate::testing::{compare, gradient};

on_each_device! {
    integers_come_out_exact,
    two_runs_give_the_same_bits,
}

#[test]
fn gradients_agree_with_central_differences() {
    for g in &graphs()[..2] {
        let csr = Csr::new(g, &Device::cpu()).unwrap();
        for heads in [1, 3] {
            let inputs = [(&[g.rows(), 6][..], wide("a", 6 * g.rows())), (&[g.cols(), 6][..], wide("b", 6 * g.cols()))];
            gradient::check(&inputs, None, |tape, v| sddmm(tape, &csr, &v[0], &v[1], heads)).unwrap();
        }
    }
}

fn integers_come_out_exact() {
    let device = device();
    for g in graphs() {
        let csr = Csr::new(&g, &device).unwrap();
        for (f, heads) in [(1, 1), (6, 2), (16, 1), (33, 1), (136, 1), (520, 4)] {
            for dtype in STORED {
                let (a, xs) = draw_integers("a", &[g.rows(), f], 1, dtype);
                let (b, ys) = draw_integers("b", &[g.cols(), f], 1, dtype);
                let (ds, _) = draw_integers("ds", &[g.edges(), heads], 1, dtype);
                let (s, grads) = run(&[&a, &b], &ds, |tape, v| sddmm(tape, &csr, &v[0], &v[1], heads));
                let mut want = Vec::new();
                for i in 0..g.rows() {
                    for &j in g.neighbours(i) {
                        want.extend((0..heads).map(|h| {
                            (h * f / heads..(h + 1) * f / heads).map(|c| xs[i * f + c] * ys[j * f + c]).sum::<f64>()
                        }));
                    }
                }
                assert!(compare::exact(&s, &rounded(&want, dtype)).ok(), "{} {dtype} {f}", device.name());
                let host = Csr::new(&g, &Device::cpu()).unwrap();
                let wide = [&a, &b, &ds].map(|t| t.cast(DType::F64).unwrap());
                let (_, exact) = run_on(&Device::cpu(), &[&wide[0], &wide[1]], &wide[2], |tape, v| {
                    sddmm(tape, &host, &v[0], &v[1], heads)
                });
                for (got, want) in grads.iter().zip(exact) {
                    assert!(compare::exact(got, &rounded(&want, dtype)).ok());
                }
                if let Some(last) = s.len().checked_sub(1) {
                    want[last] += 1.0;
                    assert!(!compare::exact(&s, &rounded(&want, dtype)).ok());
                }
            }
        }
    }
}

fn two_runs_give_the_same_bits() {
    let (g, device) = (&graphs()[3], device());
    let csr = Csr::new(g, &device).unwrap();
    let of = |name: &str, dims: &[usize]| crate::ops::check::draw(name, dims, DType::F32).0;
    let (a, b, ds) = (of("a", &[9, 40]), of("b", &[50, 40]), of("ds", &[g.edges(), 2]));
    let once = || run(&[&a, &b], &ds, |tape, v| sddmm(tape, &csr, &v[0], &v[1], 2));
    assert_eq!(once(), once());
}

#[test]
#[cfg_attr(
    not(all(graftwork_kernels, feature = "emulator")),
    ignore = "this build has no kernels, or not the feature `emulator`"
)]
fn the_plan_foretells_what_moves() {
    for (hub, dtype, f, heads) in
        [(0, DType::F32, 128, 1), (0, DType::BF16, 512, 2), (3000, DType::F32, 128, 1), (3000, DType::F16, 256, 1)]
    {
        let g = irregular(300, 16, hub);
        let (plan, counted): (gpu::Params, _) = planned_and_counted(|device| {
            let csr = Csr::new(&g, device).unwrap();
            let x = Var::constant(Tensor::zeros(device, &[300, f], dtype).unwrap());
            let params = crate::tensor::ParamSet::none(device, dtype).unwrap();
            sddmm(&mut Tape::inference(&params), &csr, &x, &x, heads).unwrap();
        });
        let told = plan.traffic(g.offsets(), dtype);
        assert!(is_as_foretold(told, &counted), "{dtype} {hub}: {told:?}, {counted:?}");
        assert_eq!((counted.bank_conflicts, counted.local_accesses, counted.launches), (0, 0, 1));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let g = &graphs()[1];
    let csr = Csr::new(g, &Device::cpu()).unwrap();
    let zeros = |dims: &[usize], dtype| Tensor::zeros(&Device::cpu(), dims, dtype).unwrap();
    let (a, b) = (zeros(&[4, 6], DType::F32), zeros(&[5, 6], DType::F32));
    assert!(matches!(Desc::new(&csr, &b, &b, 1), Err(Error::Shape { argument: "a", .. })));
    assert!(matches!(Desc::new(&csr, &a, &a, 1), Err(Error::Shape { argument: "b", .. })));
    assert!(matches!(Desc::new(&csr, &a, &zeros(&[5, 6], DType::F16), 1), Err(Error::DType { argument: "b", .. })));
    for heads in [0, 4] {
        assert!(matches!(Desc::new(&csr, &a, &b, heads), Err(Error::Value { argument: "heads", .. })));
    }
    let elsewhere = Csr::new(g, &Device::trace(80)).unwrap();
    assert!(matches!(Desc::new(&elsewhere, &a, &b, 1), Err(Error::DeviceMismatch { argument: "graph", .. })));
}
