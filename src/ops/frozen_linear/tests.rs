use super::*;
use crate::device::Device;
use crate::ops::check::wide;
use crate::rng::Stream;
use crate::testing::gradient;

#[test]
fn gradients_agree_with_central_differences() {
    let (m, n, k, r) = (5, 4, 6, 3);
    let weight = Tensor::from_slice(&Device::cpu(), &[n, k], &wide("w", n * k)).unwrap();
    let weight = FrozenWeight::new(weight).unwrap();
    let inputs = [
        (&[m, k][..], wide("x", m * k)),
        (&[n][..], wide("bias", n)),
        (&[r, k][..], wide("a", r * k)),
        (&[n, r][..], wide("b", n * r)),
    ];
    for dropout_seed in [None, Some(3)] {
        gradient::check(&inputs, dropout_seed, |tape, v| {
            let update = LowRank { a: &v[2], b: &v[3], scale: 1.7, dropout: 0.4, site: 9 };
            frozen_linear(tape, &v[0], &weight, Some(&v[1]), Some(update))
        })
        .unwrap();
    }
}

#[test]
fn gradients_agree_with_a_block_sparse_update_on_top() {
    let (m, n, k, r) = (3, 20, 37, 2);
    let weight = Tensor::from_slice(&Device::cpu(), &[n, k], &wide("w", n * k)).unwrap();
    let weight = FrozenWeight::new(weight).unwrap();
    let stream = Stream { seed: 2, step: 0, site: 0 };
    let pattern = BlockPattern::random(&Device::cpu(), [n, k], 16, 0.34, stream).unwrap();
    let dims = pattern.value_dims();
    let inputs = [
        (&[m, k][..], wide("x", m * k)),
        (&[r, k][..], wide("a", r * k)),
        (&[n, r][..], wide("b", n * r)),
        (&dims[..], wide("values", dims.iter().product())),
    ];
    for dropout_seed in [None, Some(3)] {
        gradient::check(&inputs, dropout_seed, |tape, v| {
            let low_rank = Some(LowRank { a: &v[1], b: &v[2], scale: 1.7, dropout: 0.4, site: 9 });
            let sparse = Some(BlockUpdate { pattern: &pattern, values: &v[3], scale: -0.6 });
            frozen_linear_with(tape, &v[0], &weight, None, Updates { low_rank, sparse })
        })
        .unwrap();
    }
}

#[test]
fn a_pattern_of_another_shape_is_refused() {
    let weight = FrozenWeight::new(Tensor::zeros(&Device::cpu(), &[32, 48], DType::F32).unwrap()).unwrap();
    let params = crate::ops::check::params(DType::F32);
    let mut tape = Tape::inference(&params);
    let x = Var::constant(Tensor::zeros(&Device::cpu(), &[2, 48], DType::F32).unwrap());
    let pattern = BlockPattern::full(&Device::cpu(), [48, 48], 16).unwrap();
    let values = Var::constant(Tensor::zeros(&Device::cpu(), &pattern.value_dims(), DType::F32).unwrap());
    let sparse = Some(BlockUpdate { pattern: &pattern, values: &values, scale: 1.0 });
    let refused = frozen_linear_with(&mut tape, &x, &weight, None, Updates { low_rank: None, sparse });
    assert!(matches!(refused, Err(Error::Shape { argument: "pattern", .. })), "{refused:?}");
}
