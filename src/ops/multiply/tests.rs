use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{STORED, device, on_each_device};
use crate::tensor::ParamSet;
use crate::testing::{gradient, integers, normal};

on_each_device!(integers_come_out_exactly);

/// y, dx and dz of integers, which are exact in every dtype. `twice` takes x for z as well, so that gradients are added up.
fn products(dtype: DType, n: usize, twice: bool) -> Vec<Vec<f64>> {
    let draw = |name| Tensor::from_f32(&device(), &[n], &integers(name, n, 7), dtype).unwrap();
    let params = ParamSet::none(&device(), dtype).unwrap();
    let mut tape = Tape::deterministic(&params);
    let x = tape.input(draw("x"));
    let z = if twice { x.clone() } else { tape.input(draw("z")) };
    let y = multiply(&mut tape, &x, &z).unwrap();
    let done = tape.backward_with(&y, draw("dy"), &mut Grads::zeros(&params).unwrap()).unwrap();
    let gradient = |v: &Var| done.input_gradient(v).unwrap().to_f64_vec().unwrap();
    vec![y.tensor().to_f64_vec().unwrap(), gradient(&x), gradient(&z)]
}

fn integers_come_out_exactly() {
    for dtype in STORED {
        for n in [0, 1, 7, 64, 2051] {
            let [x, z, dy] = ["x", "z", "dy"].map(|name| integers(name, n, 7));
            let times = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).collect::<Vec<_>>();
            assert_eq!(products(dtype, n, false), [times(&x, &z), times(&dy, &z), times(&dy, &x)], "{dtype} {n}");
            let square: Vec<f64> = times(&dy, &x).iter().map(|v| 2.0 * v).collect();
            assert_eq!(products(dtype, n, true)[1], square, "{dtype} {n}");
        }
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let values = |name: &str| normal(name, 12).into_iter().map(f64::from).collect::<Vec<_>>();
    let inputs = [(&[3, 4][..], values("x")), (&[3, 4][..], values("z"))];
    gradient::check(&inputs, None, |tape, v| multiply(tape, &v[0], &v[1])).unwrap();
}

#[test]
fn only_what_backward_needs_is_kept() {
    let params = ParamSet::none(&Device::cpu(), DType::F32).unwrap();
    let make = || Tensor::zeros(&Device::cpu(), &[4, 4], DType::F32).unwrap();
    let mut tape = Tape::deterministic(&params);
    let x = tape.input(make());
    multiply(&mut tape, &x, &Var::constant(make())).unwrap();
    assert_eq!((tape.len(), tape.ledger().retained_bytes()), (1, 64));
    multiply(&mut tape, &Var::constant(make()), &Var::constant(make())).unwrap();
    assert_eq!(tape.len(), 1);
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let make = |dims: &[usize], dtype| Tensor::zeros(&Device::cpu(), dims, dtype).unwrap();
    let x = make(&[2, 3], DType::F32);
    for z in [make(&[3, 2], DType::F32), make(&[2, 3], DType::F16), make(&[3, 2], DType::F32).transpose(0, 1).unwrap()]
    {
        assert!(Desc::new(&x, &z).unwrap_err().to_string().contains("`z`"));
    }
    assert!(Desc::new(&make(&[2], DType::I32), &make(&[2], DType::I32)).is_err());
}
