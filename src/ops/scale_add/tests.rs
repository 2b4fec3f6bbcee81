use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{
    STORED, TAILS, constant, device, draw, draw_integers, forward, on_each_device, params, run, wide,
};
use crate::tensor::{Init, ParamSetBuilder};
use crate::testing::{compare, gradient};

on_each_device!(
    integers_come_out_exact,
    random_values_are_within_their_bound_and_a_swapped_pair_is_not,
    the_gradient_of_the_residual_is_not_copied,
    a_parameter_accumulates_in_f32,
    accumulating_adds_into_wider_targets_and_writes_fresh_ones,
    sums_in_f32_are_rounded_once_into_narrow_targets,
    into_dtype_goes_through_a_tensor_only_where_it_must,
    nothing_is_fine_and_nan_passes,
    an_empty_z_gets_a_gradient_of_zeros,
);

#[test]
fn gradients_agree_with_central_differences() {
    let x = (&[2, 3, 4][..], wide("x", 24));
    for z in [&[2, 3, 4][..], &[3, 4], &[4]] {
        let z = (z, wide("z", z.iter().product()));
        gradient::check(&[x.clone(), z], None, |tape, v| scale_add(tape, &v[0], &v[1], -1.3)).unwrap();
    }
    gradient::check(std::slice::from_ref(&x), None, |tape, v| scale(tape, &v[0], 0.7)).unwrap();
    // The same value twice: its two gradients meet in one place, whoever comes first.
    gradient::check(std::slice::from_ref(&x), None, |tape, v| scale_add(tape, &v[0], &v[0], 1.0)).unwrap();
    gradient::check(&[x], None, |tape, v| {
        let y = scale(tape, &v[0], 3.0)?;
        let y = scale_add(tape, &y, &v[0], 2.0)?;
        scale_add(tape, &v[0], &y, 1.0)
    })
    .unwrap();
}

#[test]
fn a_wrong_scale_is_rejected() {
    let x = (&[5][..], wide("x", 5));
    let wrong = gradient::check(&[x], None, |tape, v| {
        let y = scale(tape, &v[0], 2.0)?;
        // The tape is told of half of what was computed.
        scale_add(tape, &y, &Var::constant(v[0].tensor().clone()), 1.0)
    });
    assert!(matches!(wrong, Err(Error::Autograd { .. })));
}

fn integers_come_out_exact() {
    for dtype in STORED {
        for d in TAILS {
            let (x, xs) = draw_integers("x", &[3, 2, d], 20, dtype);
            let (dy, gs) = draw_integers("dy", &[3, 2, d], 3, dtype);
            let (z, zs) = draw_integers("z", &[2, d], 20, dtype);
            let (y, grads) = run(&[&x, &z], &dy, |tape, v| scale_add(tape, &v[0], &v[1], 2.0));
            let want: Vec<f64> = xs.iter().enumerate().map(|(i, x)| x + 2.0 * zs[i % (2 * d)]).collect();
            assert!(compare::exact(&y, &want).ok());
            assert!(compare::exact(&grads[0], &gs).ok());
            let dz: Vec<f64> = (0..2 * d).map(|c| 2.0 * (0..3).map(|r| gs[r * 2 * d + c]).sum::<f64>()).collect();
            assert!(compare::exact(&grads[1], &dz).ok());
        }
    }
}

fn random_values_are_within_their_bound_and_a_swapped_pair_is_not() {
    for dtype in STORED {
        let ((x, xs), (z, zs)) = (draw("x", &[7, 33], dtype), draw("z", &[33], dtype));
        let y = forward(&[&x, &z], |tape, v| scale_add(tape, &v[0], &v[1], 0.37)).unwrap().to_f64_vec().unwrap();
        let s = f64::from(0.37f32);
        let want: Vec<f64> = xs.iter().enumerate().map(|(i, x)| x + s * zs[i % 33]).collect();
        let size: Vec<f64> = xs.iter().enumerate().map(|(i, x)| x.abs() + s * zs[i % 33].abs()).collect();
        assert!(compare::bound(&y, &want, &size, 2, dtype).ok());
        let mut wrong = y;
        wrong.swap(3, 4);
        assert!(!compare::bound(&wrong, &want, &size, 2, dtype).ok());
    }
}

fn the_gradient_of_the_residual_is_not_copied() {
    let params = params(DType::F32);
    let mut tape = Tape::deterministic(&params);
    let x = tape.input(draw("x", &[4, 8], DType::F32).0);
    let y = scale_add(&mut tape, &x, &constant(&[8], &[1.0; 8], DType::F32), 0.5).unwrap();
    assert_eq!((tape.len(), tape.ledger().retained_bytes()), (1, 0));
    let dy = draw("dy", &[4, 8], DType::F32).0;
    let done = tape.backward_with(&y, dy.clone(), &mut Grads::zeros(&params).unwrap()).unwrap();
    assert_eq!(done.input_gradient(&x).unwrap().buffer().id(), dy.buffer().id());
}

fn a_parameter_accumulates_in_f32() {
    let mut builder = ParamSetBuilder::new();
    let id = builder.add("z", &[2, 3], Init::Ones).unwrap();
    let set = builder.build(&device(), DType::BF16, 0).unwrap();
    let mut grads = Grads::zeros(&set).unwrap();
    for _ in 0..2 {
        let mut tape = Tape::deterministic(&set);
        let z = tape.param(id).unwrap();
        let y = scale_add(&mut tape, &constant(&[5, 2, 3], &[1.0; 30], DType::BF16), &z, 3.0).unwrap();
        let dy = Tensor::from_f32(&device(), &[5, 2, 3], &[0.1; 30], DType::BF16).unwrap();
        tape.backward_with(&y, dy, &mut grads).unwrap();
    }
    let tenth = f64::from(half::bf16::from_f32(0.1).to_f32());
    let got = grads.view(id).unwrap().to_f64_vec().unwrap();
    assert!(compare::bound(&got, &[30.0 * tenth; 6], &[30.0 * tenth; 6], 12, DType::F32).ok());
}

fn accumulating_adds_into_wider_targets_and_writes_fresh_ones() {
    for dtype in STORED {
        let (source, values) = draw_integers("source", &[33], 9, dtype);
        for to in [dtype, DType::F32] {
            for before in [1.0, 0.0] {
                let tensor = Tensor::from_f32(&device(), &[33], &[1.0; 33], to).unwrap();
                let target = Target { tensor, accumulate: before != 0.0 };
                accumulate(&target, &source).unwrap();
                let want: Vec<f64> = values.iter().map(|v| v + before).collect();
                assert_eq!(target.tensor.to_f64_vec().unwrap(), want);
            }
        }
    }
}

fn sums_in_f32_are_rounded_once_into_narrow_targets() {
    let (source, values) = draw("source", &[33], DType::F32);
    for to in [DType::F16, DType::BF16] {
        for before in [1.0, 0.0] {
            let tensor = Tensor::from_f32(&device(), &[33], &[1.0; 33], to).unwrap();
            let target = Target { tensor, accumulate: before != 0.0 };
            add_scaled(&target, &source, 0.5).unwrap();
            let want: Vec<f64> = values.iter().map(|v| 0.5 * v + before).collect();
            let sizes: Vec<f64> = values.iter().map(|v| 0.5 * v.abs() + before).collect();
            assert!(compare::bound(&target.tensor.to_f64_vec().unwrap(), &want, &sizes, 2, to).ok());
        }
    }
}

fn into_dtype_goes_through_a_tensor_only_where_it_must() {
    let target = Target { tensor: Tensor::from_f32(&device(), &[3], &[1.0; 3], DType::F32).unwrap(), accumulate: true };
    let halves = |to: &Target| {
        assert!(!to.accumulate && to.tensor.dtype() == DType::F16);
        accumulate(to, &Tensor::from_f32(&device(), &[3], &[0.5, 1.5, 2.5], DType::F16)?)
    };
    into_dtype(&target, DType::F16, halves).unwrap();
    assert_eq!(target.tensor.to_f32_vec().unwrap(), [1.5, 2.5, 3.5]);
    into_dtype(&target, DType::F32, |to| {
        assert!(to.accumulate && to.tensor.buffer().id() == target.tensor.buffer().id());
        Ok(())
    })
    .unwrap();
}

fn nothing_is_fine_and_nan_passes() {
    let empty = Tensor::empty(&device(), &[0, 4], DType::F32).unwrap();
    let z = draw("z", &[4], DType::F32).0;
    assert_eq!(forward(&[&empty, &z], |tape, v| scale_add(tape, &v[0], &v[1], 1.0)).unwrap().dims(), [0, 4]);
    let nan = Tensor::from_f32(&device(), &[2], &[f32::NAN, 1.0], DType::F16).unwrap();
    let one = Tensor::from_f32(&device(), &[2], &[1.0, 1.0], DType::F16).unwrap();
    for pair in [[&nan, &one], [&one, &nan]] {
        let y = forward(&pair, |tape, v| scale_add(tape, &v[0], &v[1], 1.0)).unwrap().to_f32_vec().unwrap();
        assert!(y[0].is_nan() && y[1] == 2.0);
    }
}

fn an_empty_z_gets_a_gradient_of_zeros() {
    let empty = Tensor::empty(&device(), &[0, 4], DType::F32).unwrap();
    let (z, _) = draw("z", &[4], DType::F32);
    let (y, grads) = run(&[&empty, &z], &empty, |tape, v| scale_add(tape, &v[0], &v[1], 1.0));
    assert!(y.is_empty() && grads[0].is_empty());
    assert_eq!(grads[1], [0.0; 4]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (x, _) = draw("x", &[2, 3], DType::F32);
    let add = |z: &Tensor, s: f64| forward(&[&x, z], |tape, v| scale_add(tape, &v[0], &v[1], s));
    assert!(matches!(add(&draw("z", &[2], DType::F32).0, 1.0), Err(Error::Shape { argument: "z", .. })));
    assert!(matches!(add(&draw("z", &[1, 2, 3], DType::F32).0, 1.0), Err(Error::Shape { .. })));
    assert!(matches!(add(&draw("z", &[2, 3], DType::F16).0, 1.0), Err(Error::DType { .. })));
    assert!(matches!(add(&x, f64::NAN), Err(Error::Value { argument: "scale", .. })));
    let turned = draw("z", &[3, 2], DType::F32).0.transpose(0, 1).unwrap();
    assert!(matches!(add(&turned, 1.0), Err(Error::NotContiguous { argument: "z", .. })));
    let there = Tensor::empty(&Device::trace(80), &[3], DType::F32).unwrap();
    assert!(matches!(add(&there, 1.0), Err(Error::DeviceMismatch { argument: "z", .. })));
    let bytes = Tensor::empty(&device(), &[2], DType::U8).unwrap();
    assert!(matches!(forward(&[&bytes], |tape, v| scale(tape, &v[0], 1.0)), Err(Error::DType { .. })));
}

#[test]
fn plans_take_the_vector_path_where_the_addresses_allow() {
    let device = Device::trace(80);
    let plan = |x: &[usize], z: &[usize], dtype: DType| -> (gpu::Params, u32) {
        let (x, z) = (Tensor::empty(&device, x, dtype).unwrap(), Tensor::empty(&device, z, dtype).unwrap());
        forward(&[&x, &z], |tape, v| scale_add(tape, &v[0], &v[1], 0.5)).unwrap();
        let spec = device.launcher().unwrap().recorded().pop().unwrap();
        (spec.params.read().unwrap(), spec.grid[0])
    };
    let (p, grid) = plan(&[3, 1000], &[3, 1000], DType::BF16);
    assert_eq!((p.n, p.inner, p.vector, p.scale, grid), (3000, 3000, 1, 0.5, 2));
    let (p, _) = plan(&[3, 1001], &[3, 1001], DType::F32);
    assert_eq!(p.vector, 1, "a tail after the last whole unit is no obstacle");
    let (p, grid) = plan(&[3, 1001], &[1001], DType::F32);
    assert_eq!((p.inner, p.vector, grid), (1001, 0, 12), "repetitions would start off the grid of 16 bytes");
    let whole = Tensor::empty(&device, &[9], DType::F32).unwrap();
    let part = whole.slice(0, 1, 8).unwrap();
    forward(&[&part], |tape, v| scale(tape, &v[0], 2.0)).unwrap();
    let p: gpu::Params = device.launcher().unwrap().recorded().pop().unwrap().params.read().unwrap();
    assert_eq!((p.vector, p.base, p.z % 16), (0, 0, 4));
    let f64s = Tensor::empty(&device, &[3], DType::F64).unwrap();
    assert!(matches!(forward(&[&f64s], |tape, v| scale(tape, &v[0], 2.0)), Err(Error::DType { .. })));
}
