use super::*;
use crate::device::Device;
use crate::ops::check::{STORED, device, draw_integers, graphs, on_each_device, rounded, run, run_on, wide};
use crate::testing::{compare, gradient};

on_each_device! {
    integers_come_out_exact,
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
