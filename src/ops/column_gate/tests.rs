use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{STORED, TAILS, device, draw_integers, on_each_device, run, wide};
use crate::tensor::{Init, ParamSetBuilder};
use crate::testing::{compare, gradient};

on_each_device!(integers_come_out_exact, parameters_and_values_get_their_gradients);

#[test]
fn gradients_agree_with_central_differences() {
    let inputs = [(&[5, 3][..], wide("x", 15)), (&[3][..], wide("g", 3))];
    gradient::check(&inputs, None, |tape, v| column_gate(tape, &v[0], &v[1])).unwrap();
    let square = [(&[1, 4][..], wide("x", 4))];
    gradient::check(&square, None, |tape, v| {
        let gate = v[0].reshape(&[4])?;
        column_gate(tape, &v[0], &gate)
    })
    .unwrap();
}

fn integers_come_out_exact() {
    for dtype in STORED {
        for d in TAILS {
            let (x, xs) = draw_integers("x", &[3, d], 9, dtype);
            let (g, gs) = draw_integers("g", &[d], 5, dtype);
            let (dy, ds) = draw_integers("dy", &[3, d], 3, dtype);
            let (y, grads) = run(&[&x, &g], &dy, |tape, v| column_gate(tape, &v[0], &v[1]));
            let want: Vec<f64> = xs.iter().enumerate().map(|(i, x)| x * gs[i % d]).collect();
            assert!(compare::exact(&y, &want).ok());
            let dx: Vec<f64> = ds.iter().enumerate().map(|(i, v)| v * gs[i % d]).collect();
            assert!(compare::exact(&grads[0], &dx).ok());
            let dg: Vec<f64> = (0..d).map(|c| (0..3).map(|r| ds[r * d + c] * xs[r * d + c]).sum()).collect();
            assert!(compare::exact(&grads[1], &dg).ok());
            let mut wrong = dg;
            wrong[0] += 1.0;
            assert!(!compare::exact(&grads[1], &wrong).ok());
        }
    }
}

/// Twice in a row, and two backwards: gradients of parameters are added up in f32, those in between in the value's dtype.
fn parameters_and_values_get_their_gradients() {
    for dtype in STORED {
        for d in TAILS {
            let mut builder = ParamSetBuilder::new();
            let xs: Vec<f64> = (0..3 * d).map(|i| ((i * 7) % 11) as f64 - 5.0).collect();
            let gs: Vec<f64> = (0..d).map(|i| (i % 5) as f64 - 2.0).collect();
            let dys: Vec<f64> = (0..3 * d).map(|i| (i % 3) as f64 - 1.0).collect();
            let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect::<Vec<f32>>();
            let x = builder.add("x", &[3, d], Init::Values(narrow(&xs))).unwrap();
            let g = builder.add("g", &[d], Init::Values(narrow(&gs))).unwrap();
            let params = builder.build(&device(), dtype, 0).unwrap();
            let mut grads = Grads::zeros(&params).unwrap();
            for _ in 0..2 {
                let mut tape = Tape::deterministic(&params);
                let (x, g) = (tape.param(x).unwrap(), tape.param(g).unwrap());
                let y = column_gate(&mut tape, &x, &g).unwrap();
                let z = column_gate(&mut tape, &y, &g).unwrap();
                let dz = Tensor::from_f32(&device(), &[3, d], &narrow(&dys), dtype).unwrap();
                tape.backward_with(&z, dz, &mut grads).unwrap();
            }
            let of = |id| grads.view(id).unwrap().contiguous().unwrap().to_f64_vec().unwrap();
            let dx: Vec<f64> = (0..3 * d).map(|i| 2.0 * dys[i] * gs[i % d] * gs[i % d]).collect();
            assert!(compare::exact(&of(x), &dx).ok(), "{dtype} {d}");
            let column = |c: usize| (0..3).map(|r| dys[r * d + c] * xs[r * d + c]).sum::<f64>();
            let dg: Vec<f64> = (0..d).map(|c| 4.0 * gs[c] * column(c)).collect();
            assert!(compare::exact(&of(g), &dg).ok(), "{dtype} {d}");
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let device = Device::cpu();
    let set = crate::tensor::ParamSet::none(&device, DType::F32).unwrap();
    let mut tape = Tape::inference(&set);
    let mut call = |x: &[usize], g: &[usize], dtype| {
        let x = Var::constant(Tensor::zeros(&device, x, DType::F32).unwrap());
        let g = Var::constant(Tensor::zeros(&device, g, dtype).unwrap());
        column_gate(&mut tape, &x, &g).map(drop)
    };
    assert!(call(&[2, 3], &[3], DType::F32).is_ok());
    assert!(call(&[0, 3], &[3], DType::F32).is_ok());
    assert!(matches!(call(&[2, 3], &[2], DType::F32), Err(Error::Shape { argument: "gate", .. })));
    assert!(matches!(call(&[], &[1], DType::F32), Err(Error::Shape { argument: "x", .. })));
    assert!(matches!(call(&[2, 3], &[3], DType::F16), Err(Error::DType { argument: "gate", .. })));
}
