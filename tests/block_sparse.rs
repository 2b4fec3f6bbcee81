//! Any pattern, any shape: forward, both gradients and the merged weight are those of the masked dense matrix.

use graftwork::autograd::{Grads, Tape, Var};
use graftwork::ops::{After, BlockUpdate, Updates, block_sparse_linear, frozen_linear, frozen_linear_with, linear};
use graftwork::rng::Stream;
use graftwork::tensor::{BlockPattern, BlockSparse, FrozenWeight, ParamSet};
use graftwork::testing::integers;
use graftwork::{DType, Device, Result, Tensor};
use proptest::prelude::*;

fn drawn(name: &str, dims: &[usize]) -> Tensor {
    let values = integers(name, dims.iter().product(), 3);
    Tensor::from_f32(&Device::cpu(), dims, &values, DType::F64).unwrap()
}

/// The output of `call` on x and a weight, and the gradients of both.
fn traced(x: &Tensor, weight: &Tensor, call: impl Fn(&mut Tape, &Var, &Var) -> Result<Var>) -> [Tensor; 3] {
    let params = ParamSet::none(&Device::cpu(), DType::F64).unwrap();
    let mut tape = Tape::deterministic(&params);
    let (x, weight) = (tape.input(x.clone()), tape.input(weight.clone()));
    let y = call(&mut tape, &x, &weight).unwrap();
    let dy = drawn("dy", y.dims());
    let done = tape.backward_with(&y, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
    let gradient = |of: &Var| done.input_gradient(of).unwrap().clone();
    [y.tensor().clone(), gradient(&x), gradient(&weight)]
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    a.dims() == b.dims() && a.to_f64_vec().unwrap() == b.to_f64_vec().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn forward_gradients_and_merge_agree_with_the_masked_dense_matrix(
        m in 0usize..40, n in 1usize..150, k in 1usize..150,
        block in prop::sample::select(vec![16usize, 32, 64, 128]),
        density in 0.01f64..1.0, seed in any::<u64>(),
    ) {
        let stream = Stream { seed, step: 0, site: 0 };
        let pattern = BlockPattern::random(&Device::cpu(), [n, k], block, density, stream).unwrap();
        let matrix = BlockSparse::sample(pattern.clone(), &drawn("s", &[n, k])).unwrap();
        let (dense, x) = (matrix.to_dense().unwrap(), drawn("x", &[m, k]));

        let sparse = traced(&x, matrix.values(), |tape, x, v| block_sparse_linear(tape, x, &pattern, v, 2.0));
        let twice = Tensor::from_slice(
            &Device::cpu(), &[n, k], &dense.to_f64_vec().unwrap().iter().map(|v| 2.0 * v).collect::<Vec<_>>(),
        ).unwrap();
        let masked = traced(&x, &twice, |tape, x, w| linear(tape, x, w, None));
        prop_assert!(same(&sparse[0], &masked[0]), "forward of {pattern:?}");
        prop_assert!(same(&sparse[1], &masked[1]), "dx of {pattern:?}");
        let at_blocks = BlockSparse::sample(pattern.clone(), &masked[2]).unwrap();
        let halved: Vec<f64> = sparse[2].to_f64_vec().unwrap().iter().map(|v| v / 2.0).collect();
        prop_assert_eq!(halved, at_blocks.values().to_f64_vec().unwrap(), "dS of {:?}", pattern);

        // W₀ + S as one weight, and S beside W₀.
        let base = drawn("w", &[n, k]);
        let sum: Vec<f64> = base.to_f64_vec().unwrap().iter().zip(dense.to_f64_vec().unwrap()).map(|(w, s)| w + s).collect();
        let merged = FrozenWeight::new(Tensor::from_slice(&Device::cpu(), &[n, k], &sum).unwrap()).unwrap();
        let base = FrozenWeight::new(base).unwrap();
        let beside = traced(&x, matrix.values(), |tape, x, values| {
            let sparse = Some(BlockUpdate { pattern: &pattern, values, scale: 1.0 });
            frozen_linear_with(tape, x, &base, None, Updates { low_rank: None, sparse }, After::default())
        });
        let params = ParamSet::none(&Device::cpu(), DType::F64).unwrap();
        let mut tape = Tape::deterministic(&params);
        let input = tape.input(x.clone());
        let y = frozen_linear(&mut tape, &input, &merged, None, None).unwrap();
        prop_assert!(same(&beside[0], y.tensor()), "merged {pattern:?}");
        let done = tape.backward_with(&y, drawn("dy", y.dims()), &mut Grads::zeros(&params).unwrap()).unwrap();
        prop_assert!(same(&beside[1], done.input_gradient(&input).unwrap()), "dx of merged {pattern:?}");
    }
}
