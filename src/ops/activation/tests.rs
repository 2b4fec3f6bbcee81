use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{STORED, TAILS, device, draw, forward, on_each_device, params, run, wide};
use crate::testing::{compare, gradient};

on_each_device!(
    values_and_gradients_are_within_their_bounds_and_another_function_is_not,
    the_tails_go_where_they_should,
    nan_passes_and_nothing_is_fine,
    who_saves_the_output_keeps_the_input,
);

/// Value, derivative, and the sizes of what is added up in each.
fn exact(f: Activation, x: f64) -> [f64; 4] {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match f {
        Activation::Relu => [x.max(0.0), f64::from(x > 0.0), x.abs(), 1.0],
        Activation::Gelu => {
            let (cdf, density) =
                (0.5 * libm::erfc(-x / 2f64.sqrt()), (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt());
            [x * cdf, cdf + x * density, x.abs(), 1.0 + x.abs() * density]
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let t = (root * (x + 0.044715 * x.powi(3))).tanh();
            let slope = root * (1.0 + 0.134145 * x * x);
            let dx = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope;
            [0.5 * x * (1.0 + t), dx, x.abs(), 1.0 + x.abs() * slope]
        }
        Activation::QuickGelu => {
            let s = sigmoid(1.702 * x);
            [x * s, s + 1.702 * x * s * (1.0 - s), x.abs(), 1.0 + x.abs()]
        }
        Activation::Silu => {
            let s = sigmoid(x);
            [x * s, s + x * s * (1.0 - s), x.abs(), 1.0 + x.abs()]
        }
    }
}

/// The functions are good to some two units of f32 each, and a handful of operations surround them.
const TERMS: usize = 16;

#[test]
fn gradients_agree_with_central_differences() {
    for f in Activation::ALL {
        let x = (&[3, 11][..], wide("x", 33));
        gradient::check(std::slice::from_ref(&x), None, |tape, v| activation(tape, &v[0], f)).unwrap();
        // Twice, so that the second saves what the first can make again; and x has a gradient from elsewhere.
        gradient::check(&[x], None, |tape, v| {
            let y = activation(tape, &v[0], f)?;
            let y = activation(tape, &y, Activation::Silu)?;
            crate::ops::scale_add(tape, &y, &v[0], 0.5)
        })
        .unwrap();
    }
}

#[test]
fn golden_values() {
    let at = |f, x: f64| {
        let x = Tensor::from_slice(&device(), &[1], &[x]).unwrap();
        forward(&[&x], |tape, v| activation(tape, &v[0], f)).unwrap().to_f64_vec().unwrap()[0]
    };
    let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-9, "{got} for {want}");
    close(at(Activation::Gelu, 1.0), 0.841_344_746_069);
    close(at(Activation::Gelu, -2.0), -0.045_500_263_896);
    close(at(Activation::GeluTanh, 1.0), 0.841_191_990_608);
    close(at(Activation::QuickGelu, 1.0), 0.845_795_765_933);
    close(at(Activation::Silu, 1.0), 0.731_058_578_630);
    close(at(Activation::Silu, -2.0), -0.238_405_844_044);
    assert_eq!((at(Activation::Relu, -3.0), at(Activation::Relu, 3.0)), (0.0, 3.0));
}

fn values_and_gradients_are_within_their_bounds_and_another_function_is_not() {
    for f in Activation::ALL {
        for dtype in STORED {
            for n in TAILS {
                let ((x, xs), (dy, gs)) = (draw("x", &[n], dtype), draw("dy", &[n], dtype));
                let (y, grads) = run(&[&x], &dy, |tape, v| activation(tape, &v[0], f));
                let value = |f, k: usize| xs.iter().map(|&x| exact(f, x)[k]).collect::<Vec<_>>();
                let scaled = |f, k: usize| xs.iter().zip(&gs).map(|(&x, g)| exact(f, x)[k] * g).collect::<Vec<_>>();
                let slope_size: Vec<f64> = scaled(f, 3).iter().map(|v| v.abs()).collect();
                let forward = |f| compare::bound(&y, &value(f, 0), &value(f, 2), TERMS, dtype);
                let backward = |f| compare::bound(&grads[0], &scaled(f, 1), &slope_size, TERMS, dtype);
                assert!(forward(f).ok(), "{f:?} {dtype} {:?}", forward(f));
                assert!(backward(f).ok(), "{f:?} {dtype} {:?}", backward(f));
                // The two forms of gelu are closer to each other than a bf16 can tell, except over many values.
                let other = if f == Activation::Relu { Activation::Silu } else { Activation::Relu };
                assert!(n < 30 || !(forward(other).ok() || backward(other).ok()));
            }
        }
    }
}

fn the_tails_go_where_they_should() {
    let x = Tensor::from_f32(&device(), &[4], &[60.0, -60.0, 1000.0, -1000.0], DType::F32).unwrap();
    for f in Activation::ALL {
        let (y, dx) = run(&[&x], &Tensor::from_f32(&device(), &[4], &[1.0; 4], DType::F32).unwrap(), |tape, v| {
            activation(tape, &v[0], f)
        });
        assert_eq!((y[0], y[2]), (60.0, 1000.0), "{f:?}");
        assert!(y[1].abs() < 1e-20 && y[3].abs() < 1e-20, "{f:?} {y:?}");
        assert!((dx[0][0] - 1.0).abs() < 1e-6 && dx[0][1].abs() < 1e-20 && dx[0][3].abs() < 1e-20, "{f:?} {dx:?}");
    }
}

fn nan_passes_and_nothing_is_fine() {
    for f in Activation::ALL {
        for dtype in STORED {
            let x = Tensor::from_f32(&device(), &[3], &[f32::NAN, 1.0, 0.0], dtype).unwrap();
            let (y, _) = run(&[&x], &x, |tape, v| activation(tape, &v[0], f));
            assert!(y[0].is_nan() && y[1] > 0.5 && y[2] == 0.0);
            let empty = Tensor::empty(&device(), &[0, 3], dtype).unwrap();
            assert!(run(&[&empty], &empty, |tape, v| activation(tape, &v[0], f)).1[0].is_empty());
        }
    }
}

fn who_saves_the_output_keeps_the_input() {
    let params = params(DType::BF16);
    let mut tape = Tape::deterministic(&params);
    let x = tape.input(draw("x", &[5, 33], DType::BF16).0);
    let a = activation(&mut tape, &x, Activation::Gelu).unwrap();
    let b = activation(&mut tape, &a, Activation::Silu).unwrap();
    let c = activation(&mut tape, &b, Activation::Relu).unwrap();
    assert_eq!((tape.len(), tape.ledger().retained_bytes()), (3, x.tensor().buffer().bytes()));
    for y in [&a, &b, &c] {
        assert!(matches!(y.save(), Saved::Recomputed(_)));
        assert_eq!(y.save().get().unwrap().to_bytes().unwrap(), y.tensor().to_bytes().unwrap());
    }
    let dy = draw("dy", &[5, 33], DType::BF16).0;
    let done = tape.backward_with(&c, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
    assert!(done.input_gradient(&x).is_some() && done.ledger.retained_bytes() == 0);

    let mut tape = Tape::deterministic(&params);
    let frozen = Var::constant(draw("x", &[5, 33], DType::BF16).0);
    let y = activation(&mut tape, &frozen, Activation::Gelu).unwrap();
    assert!(tape.is_empty() && matches!(y.save(), Saved::Held(_)));
    let mut tape = Tape::accounting(&params);
    let y = activation(&mut tape, &frozen, Activation::Gelu).unwrap();
    assert!(tape.len() == 1 && matches!(y.save(), Saved::Held(_)), "accounting recomputes nothing");
}

#[test]
fn what_does_not_fit_is_refused() {
    let bytes = Tensor::empty(&device(), &[2], DType::I32).unwrap();
    assert!(matches!(Desc::new(&bytes, Activation::Relu), Err(Error::DType { .. })));
    let turned = draw("x", &[2, 3], DType::F32).0.transpose(0, 1).unwrap();
    assert!(matches!(Desc::new(&turned, Activation::Relu), Err(Error::NotContiguous { .. })));
}

#[test]
fn plans_carry_the_function_and_count_whole_units() {
    let device = Device::trace(80);
    for (f, number) in Activation::ALL.into_iter().zip(0..) {
        let x = Tensor::empty(&device, &[2051], DType::BF16).unwrap();
        forward(&[&x], |tape, v| activation(tape, &v[0], f)).unwrap();
        let spec = device.launcher().unwrap().recorded().pop().unwrap();
        let p: gpu::Params = spec.params.read().unwrap();
        assert_eq!((p.activation, p.n, p.dy, p.vector, spec.grid[0]), (number, 2051, 0, 1, 2));
        assert_eq!(spec.kernel.row().symbol, "activation_fwd_bf16_t256_sm80");
    }
    let desc = Desc { n: 100, activation: Activation::Relu, dtype: DType::F32 };
    let x = Tensor::empty(&device, &[101], DType::F32).unwrap().slice(0, 1, 100).unwrap();
    let target = Target { tensor: Tensor::empty(&device, &[100], DType::F32).unwrap(), accumulate: true };
    let p: gpu::Params = gpu::backward(&desc, &x, &x, &target).unwrap()[0].params.read().unwrap();
    assert_eq!((p.vector, p.accumulate), (0, 1));
}
