use super::*;
use crate::device::Device;
use crate::dtype::DType;
use crate::ops::check::{STORED, device, on_each_device};
use crate::tensor::ParamSet;
use crate::testing::{gradient, integers, normal};

on_each_device!(both_parts_come_through_whole);

fn joined(dtype: DType, [b, t, s, d]: [usize; 4]) -> Result<(Vec<f64>, Vec<f64>)> {
    let (first, second) = (integers("first", b * t * d, 9), integers("second", b * s * d, 9));
    let mut tape = Tape::inference(&ParamSet::none(&device(), dtype)?);
    let parts = [(t, &first), (s, &second)]
        .map(|(tokens, values)| Tensor::from_f32(&device(), &[b, tokens, d], values, dtype).map(Var::constant));
    let [x, z] = parts;
    let y = join(&mut tape, &x?, &z?)?.tensor().to_f64_vec()?;
    let want = (0..b).flat_map(|i| {
        let part = |values: &[f32], n: usize| values[i * n * d..(i + 1) * n * d].to_vec();
        [part(&first, t), part(&second, s)].concat()
    });
    Ok((y, want.map(f64::from).collect()))
}

fn both_parts_come_through_whole() {
    for dtype in STORED {
        for sizes in [[2, 3, 2, 5], [3, 1, 4, 8], [1, 0, 2, 4], [2, 3, 0, 1], [0, 2, 2, 3]] {
            let (got, want) = joined(dtype, sizes).unwrap();
            assert_eq!(got, want, "{dtype} {sizes:?}");
        }
    }
}

#[test]
fn gradients_agree_with_central_differences() {
    let values = |name: &str, len: usize| normal(name, len).into_iter().map(f64::from).collect::<Vec<_>>();
    let inputs = [(&[2, 3, 4][..], values("first", 24)), (&[2, 2, 4][..], values("second", 16))];
    gradient::check(&inputs, None, |tape, v| join(tape, &v[0], &v[1])).unwrap();
    // One value twice: the second gradient is added to the first.
    gradient::check(&inputs[..1], None, |tape, v| join(tape, &v[0], &v[0])).unwrap();
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let make = |dims: &[usize], dtype| Tensor::zeros(&Device::cpu(), dims, dtype).unwrap();
    let first = make(&[2, 3, 4], DType::F32);
    for (second, part) in [
        (make(&[2, 3, 5], DType::F32), "`second` has shape"),
        (make(&[1, 3, 4], DType::F32), "`second` has shape"),
        (make(&[2, 3, 4], DType::F16), "`second` has dtype"),
        (make(&[2, 6, 4], DType::F32).slice(1, 0, 3).unwrap(), "`second` with shape"),
    ] {
        let text = Desc::new(&first, &second).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
    assert!(Desc::new(&make(&[2, 3], DType::F32), &first).is_err());
}
