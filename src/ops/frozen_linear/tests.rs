use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{STORED, device, draw, draw_integers, on_each_device, params, wide};
use crate::ops::{dual_rank, linear, scale_add};
use crate::rng::Stream;
use crate::testing::{compare, gradient};

on_each_device!(
    what_follows_has_the_bits_of_its_own_passes,
    a_residual_of_integers_is_exact,
    what_lies_between_agrees_with_a_chain_of_ops,
    a_bottleneck_of_integers_is_exact,
    nothing_kept_changes_no_bit,
);

const EPS: f64 = 0.1;

/// What may lie between, and the parameters it takes, which follow x, A and B; the rows of A for each rank.
#[derive(Clone, Copy, Debug)]
enum Between {
    Gate,
    Activation(Activation),
    Biased(Activation),
    Dual,
}

impl Between {
    const ALL: [Between; 4] =
        [Between::Gate, Between::Activation(Activation::Silu), Between::Biased(Activation::Gelu), Between::Dual];

    fn halves(self) -> usize {
        if matches!(self, Between::Dual) { 2 } else { 1 }
    }

    fn parameters(self) -> usize {
        match self {
            Between::Activation(_) => 0,
            Between::Gate | Between::Biased(_) => 1,
            Between::Dual => 2,
        }
    }

    fn mid(self, v: &[Var]) -> Mid<'_> {
        match self {
            Between::Gate => Mid::Gate(&v[0]),
            Between::Activation(activation) => Mid::Activation { activation, bias: None },
            Between::Biased(activation) => Mid::Activation { activation, bias: Some(&v[0]) },
            Between::Dual => Mid::Dual { gamma: &v[0], beta: &v[1], eps: EPS },
        }
    }

    /// Dimensions of x, A, B and the parameters.
    fn dims(self, [m, n, k, r]: [usize; 4]) -> Vec<Vec<usize>> {
        let mut dims = vec![vec![m, k], vec![self.halves() * r, k], vec![n, r]];
        dims.extend((0..self.parameters()).map(|_| vec![r]));
        dims
    }
}

const SCALE: f64 = 1.7;

fn update<'a>(between: Between, v: &'a [Var], dropout: f64) -> LowRank<'a> {
    LowRank { a: &v[1], b: &v[2], mid: between.mid(&v[3..]), scale: SCALE, dropout, site: 9 }
}

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
            let update = LowRank { a: &v[2], b: &v[3], mid: Mid::Identity, scale: 1.7, dropout: 0.4, site: 9 };
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
            let low_rank = Some(LowRank { a: &v[1], b: &v[2], mid: Mid::Identity, scale: 1.7, dropout: 0.4, site: 9 });
            let sparse = Some(BlockUpdate { pattern: &pattern, values: &v[3], scale: -0.6 });
            frozen_linear_with(tape, &v[0], &weight, None, Updates { low_rank, sparse }, After::default())
        })
        .unwrap();
    }
}

#[test]
fn gradients_agree_for_all_that_lies_between_and_follows() {
    let [m, n, k, r] = [5, 4, 6, 3];
    let weight = Tensor::from_slice(&Device::cpu(), &[n, k], &wide("w", n * k)).unwrap();
    let weight = FrozenWeight::new(weight).unwrap();
    for between in Between::ALL {
        let mut dims = between.dims([m, n, k, r]);
        dims.push(vec![m, n]);
        let inputs: Vec<_> =
            dims.iter().enumerate().map(|(i, d)| (&d[..], wide(&format!("{i}"), d.iter().product()))).collect();
        for dropout_seed in [None, Some(3)] {
            gradient::check(&inputs, dropout_seed, |tape, v| {
                let low_rank = Some(update(between, v, 0.4));
                let after = After { residual: v.last(), activation: Some(Activation::GeluTanh) };
                frozen_linear_with(tape, &v[0], &weight, None, Updates { low_rank, sparse: None }, after)
            })
            .unwrap_or_else(|e| panic!("{between:?}: {e}"));
        }
    }
}

/// The output of `function` on a training tape, and the gradient of every input.
fn trained(
    device: &Device,
    inputs: &[Tensor],
    dy: &Tensor,
    function: impl Fn(&mut Tape, &[Var]) -> Result<Var>,
) -> Vec<Vec<f64>> {
    let params = crate::tensor::ParamSet::none(device, dy.dtype()).unwrap();
    let mut tape = Tape::training(&params, 5, 0);
    let v: Vec<Var> = inputs.iter().map(|t| tape.input(t.clone())).collect();
    let y = function(&mut tape, &v).unwrap();
    let mut grads = Grads::zeros(&params).unwrap();
    let done = tape.backward_with(&y, dy.clone(), &mut grads).unwrap();
    let gradient = |v: &Var| done.input_gradient(v).unwrap().to_f64_vec().unwrap();
    [vec![y.tensor().to_f64_vec().unwrap()], v.iter().map(gradient).collect()].concat()
}

/// Sizes of less than a tile, of several with a tail, and of even rows.
const SIZES: [[usize; 4]; 4] = [[3, 5, 7, 2], [70, 65, 33, 8], [130, 136, 72, 16], [20, 64, 40, 33]];

/// φ sees what has been rounded, so that it may be applied at any time.
fn what_follows_has_the_bits_of_its_own_passes() {
    for dtype in STORED {
        for (i, [m, n, k, r]) in SIZES.into_iter().enumerate() {
            let weight = FrozenWeight::new(draw("w", &[n, k], dtype).0).unwrap();
            let inputs = [("x", [m, k]), ("a", [r, k]), ("b", [n, r])].map(|(name, d)| draw(name, &d, dtype).0);
            let (bias, dy) = (Var::constant(draw("bias", &[n], dtype).0), draw("dy", &[m, n], dtype).0);
            let f = Activation::ALL[i];
            let run = |together: bool| {
                trained(&device(), &inputs, &dy, |tape, v| {
                    let low_rank =
                        Some(LowRank { a: &v[1], b: &v[2], mid: Mid::Identity, scale: 0.5, dropout: 0.2, site: 1 });
                    let after = After { residual: None, activation: Some(f) };
                    let (fused, apart) = if together { (after, After::default()) } else { (After::default(), after) };
                    let updates = Updates { low_rank, sparse: None };
                    let y = frozen_linear_with(tape, &v[0], &weight, Some(&bias), updates, fused)?;
                    apart.apply(tape, y)
                })
            };
            assert!(run(true) == run(false), "{dtype} {m} {n} {k} {r} {f:?}");
        }
    }
}

fn a_residual_of_integers_is_exact() {
    for dtype in STORED {
        for [m, n, k, _] in SIZES {
            let weight = FrozenWeight::new(draw_integers("w", &[n, k], 1, dtype).0).unwrap();
            let of = |name: &str, dims: &[usize]| draw_integers(name, dims, 1, dtype).0;
            let (inputs, dy) = ([of("x", &[m, k]), of("residual", &[m, n])], of("dy", &[m, n]));
            let run = |together: bool| {
                trained(&device(), &inputs, &dy, |tape, v| {
                    let after = After { residual: Some(&v[1]), activation: Some(Activation::Relu) };
                    let (fused, apart) = if together { (after, After::default()) } else { (After::default(), after) };
                    let y = frozen_linear_with(tape, &v[0], &weight, None, Updates::default(), fused)?;
                    apart.apply(tape, y)
                })
            };
            let (mut fused, apart) = (run(true), run(false));
            assert!(fused == apart, "{dtype} {m} {n} {k}");
            fused[0][0] += 1.0;
            assert!(fused != apart);
        }
    }
}

/// The update as ops of their own, each in a pass of its own.
fn chained(tape: &mut Tape, weight: &FrozenWeight, between: Between, v: &[Var]) -> Result<Var> {
    let y = frozen_linear(tape, &v[0], weight, None, None)?;
    let h = match between {
        Between::Gate => {
            let z = linear(tape, &v[0], &v[1], None)?;
            crate::ops::column_gate(tape, &z, &v[3])?
        }
        Between::Activation(f) => {
            let z = linear(tape, &v[0], &v[1], None)?;
            activation::activation(tape, &z, f)?
        }
        Between::Biased(f) => {
            let z = linear(tape, &v[0], &v[1], Some(&v[3]))?;
            activation::activation(tape, &z, f)?
        }
        Between::Dual => {
            let gate =
                crate::ops::DualRank { stacked: &v[1], gamma: &v[3], beta: &v[4], eps: EPS, dropout: 0.0, site: 9 };
            dual_rank(tape, &v[0], &gate)?
        }
    };
    let update = linear(tape, &h, &v[2], None)?;
    scale_add(tape, &y, &update, SCALE)
}

fn what_lies_between_agrees_with_a_chain_of_ops() {
    for dtype in STORED {
        for between in Between::ALL {
            for sizes in SIZES {
                let [m, n, k, r] = sizes;
                let dims = between.dims(sizes);
                let inputs: Vec<Tensor> =
                    dims.iter().enumerate().map(|(i, d)| draw(&format!("{i}"), d, dtype).0).collect();
                let (w, dy) = (draw("w", &[n, k], dtype).0, draw("dy", &[m, n], dtype).0);
                let host = |t: &Tensor| t.to_device(&Device::cpu()).unwrap().cast(DType::F64).unwrap();
                let wide: Vec<Tensor> = inputs.iter().map(host).collect();
                let weight = FrozenWeight::new(host(&w)).unwrap();
                let want = trained(&Device::cpu(), &wide, &host(&dy), |t, v| chained(t, &weight, between, v));
                let weight = FrozenWeight::new(w).unwrap();
                let got = trained(&device(), &inputs, &dy, |tape, v| {
                    frozen_linear(tape, &v[0], &weight, None, Some(update(between, v, 0.0)))
                });
                // z, h and their gradients are rounded to the storage type on the way.
                let limit = 8.0 * dtype.unit_roundoff() + 1e-5;
                for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                    let place = format!("result {i}, {between:?} {dtype} {m} {n} {k} {r}");
                    assert!(compare::norm(got, want, got.len(), limit).ok(), "{place}");
                    let wrong: Vec<f64> = want.iter().map(|v| v * 1.1).collect();
                    assert!(!compare::norm(&wrong, want, want.len(), limit).ok(), "{place}");
                }
            }
        }
    }
}

/// `y = x W₀ᵀ − 2 · ReLU(x Aᵀ + c) Bᵀ`, and the gradients by hand.
fn a_bottleneck_of_integers_is_exact() {
    for dtype in STORED {
        for [m, n, k, r] in [[3, 5, 7, 1], [65, 33, 9, 8], [130, 72, 16, 24]] {
            // Sparse enough for every sum to be small in bf16.
            let of = |name: &str, dims: &[usize]| {
                let (_, mut values) = draw_integers(name, dims, 1, dtype);
                values.iter_mut().enumerate().for_each(|(i, v)| *v *= f64::from(u8::from(i % 5 < 2)));
                let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                (Tensor::from_f32(&device(), dims, &narrow, dtype).unwrap(), values)
            };
            let [(x, xs), (a, av), (b, bv), (c, cv), (w, wv), (dy, dys)] = [
                of("x", &[m, k]),
                of("a", &[r, k]),
                of("b", &[n, r]),
                of("c", &[r]),
                of("w", &[n, k]),
                of("dy", &[m, n]),
            ];
            let weight = FrozenWeight::new(w).unwrap();
            let got = trained(&device(), &[x, a, b, c], &dy, |tape, v| {
                let mid = Mid::Activation { activation: Activation::Relu, bias: Some(&v[3]) };
                let update = LowRank { a: &v[1], b: &v[2], mid, scale: -2.0, dropout: 0.0, site: 0 };
                frozen_linear(tape, &v[0], &weight, None, Some(update))
            });
            let sum = |len: usize, term: &dyn Fn(usize) -> f64| (0..len).map(term).sum::<f64>();
            let z: Vec<f64> =
                (0..m * r).map(|e| cv[e % r] + sum(k, &|l| xs[e / r * k + l] * av[e % r * k + l])).collect();
            let h: Vec<f64> = z.iter().map(|v| v.max(0.0)).collect();
            let y = |e: usize| {
                let update = sum(r, &|j| h[e / n * r + j] * bv[e % n * r + j]);
                sum(k, &|l| xs[e / n * k + l] * wv[e % n * k + l]) - 2.0 * update
            };
            let dz: Vec<f64> = (0..m * r)
                .map(|e| if z[e] > 0.0 { -2.0 * sum(n, &|i| dys[e / r * n + i] * bv[i * r + e % r]) } else { 0.0 })
                .collect();
            let dx = |e: usize| {
                sum(n, &|i| dys[e / k * n + i] * wv[i * k + e % k]) + sum(r, &|j| dz[e / k * r + j] * av[j * k + e % k])
            };
            let want = [
                (0..m * n).map(y).collect::<Vec<_>>(),
                (0..m * k).map(dx).collect(),
                (0..r * k).map(|e| sum(m, &|i| dz[i * r + e / k] * xs[i * k + e % k])).collect(),
                (0..n * r).map(|e| -2.0 * sum(m, &|i| dys[i * n + e / r] * h[i * r + e % r])).collect(),
                (0..r).map(|j| sum(m, &|i| dz[i * r + j])).collect(),
            ];
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                let outcome = compare::exact(got, want);
                assert!(outcome.ok(), "result {i}, {dtype} {m} {n} {k} {r}: {outcome:?}");
            }
        }
    }
}

/// On a tape that records nothing, φ takes the place of what it sees.
fn nothing_kept_changes_no_bit() {
    for dtype in STORED {
        let [m, n, k, r] = [70, 72, 40, 8];
        let weight = FrozenWeight::new(draw("w", &[n, k], dtype).0).unwrap();
        let between = Between::Biased(Activation::QuickGelu);
        let dims = between.dims([m, n, k, r]);
        let inputs: Vec<Tensor> = dims.iter().enumerate().map(|(i, d)| draw(&format!("{i}"), d, dtype).0).collect();
        let params = params(dtype);
        let run = |mut tape: Tape| {
            let v: Vec<Var> = inputs.iter().map(|t| tape.input(t.clone())).collect();
            let low_rank = Some(update(between, &v, 0.0));
            let after = After { residual: None, activation: Some(Activation::Gelu) };
            let updates = Updates { low_rank, sparse: None };
            let y = frozen_linear_with(&mut tape, &v[0], &weight, None, updates, after).unwrap();
            y.tensor().to_f64_vec().unwrap()
        };
        assert_eq!(run(Tape::inference(&params)), run(Tape::deterministic(&params)));
    }
}

/// Of m tokens: x for A, z for all that lies before B, and what φ sees; a residual costs nothing.
#[test]
fn what_is_kept() {
    let [m, n, k, r] = [8, 6, 5, 2];
    let cpu = Device::cpu();
    let zeros = |dims: &[usize]| Tensor::zeros(&cpu, dims, DType::F32).unwrap();
    let weight = FrozenWeight::new(zeros(&[n, k])).unwrap();
    let bytes = |between: Between, learns: [bool; 4], activation: Option<Activation>| {
        let params = params(DType::F32);
        let mut tape = Tape::deterministic(&params);
        let dims = between.dims([m, n, k, r]);
        let v: Vec<Var> = dims
            .iter()
            .enumerate()
            .map(|(i, d)| if learns[i.min(3)] { tape.input(zeros(d)) } else { Var::constant(zeros(d)) })
            .collect();
        let residual = Var::constant(zeros(&[m, n]));
        let after = After { residual: Some(&residual), activation };
        let updates = Updates { low_rank: Some(update(between, &v, 0.0)), sparse: None };
        frozen_linear_with(&mut tape, &v[0], &weight, None, updates, after).unwrap();
        tape.ledger().retained_bytes() / 4
    };
    let silu = Between::Activation(Activation::Silu);
    for (between, z) in [(silu, r), (Between::Dual, 2 * r)] {
        assert_eq!(bytes(between, [false, true, true, true], None), m * (k + z));
        assert_eq!(bytes(between, [true, false, false, false], None), m * z);
        assert_eq!(bytes(between, [false, false, true, false], None), m * z);
    }
    assert_eq!(bytes(silu, [false, true, true, false], Some(Activation::Gelu)), m * (k + r + n));
}

#[test]
fn a_residual_or_a_bias_of_another_shape_is_refused() {
    let zeros = |dims: &[usize]| Var::constant(Tensor::zeros(&Device::cpu(), dims, DType::F32).unwrap());
    let weight = FrozenWeight::new(zeros(&[4, 6]).tensor().clone()).unwrap();
    let params = params(DType::F32);
    let mut tape = Tape::inference(&params);
    let [x, a, b, c] = [[2, 6], [3, 6], [4, 3], [1, 3]].map(|dims| zeros(&dims));
    let after = After { residual: Some(&x), activation: None };
    let refused = frozen_linear_with(&mut tape, &x, &weight, None, Updates::default(), after);
    assert!(matches!(refused, Err(Error::Shape { argument: "residual", .. })), "{refused:?}");
    let mid = Mid::Activation { activation: Activation::Relu, bias: Some(&c) };
    let update = LowRank { a: &a, b: &b, mid, scale: 1.0, dropout: 0.0, site: 0 };
    let refused = frozen_linear(&mut tape, &x, &weight, None, Some(update));
    assert!(matches!(refused, Err(Error::Shape { argument: "mid", .. })), "{refused:?}");
    // An odd number of rows is no S above a T.
    let (gamma, beta) = (zeros(&[1]), zeros(&[1]));
    let update = LowRank { mid: Mid::Dual { gamma: &gamma, beta: &beta, eps: EPS }, ..update };
    assert!(matches!(frozen_linear(&mut tape, &x, &weight, None, Some(update)), Err(Error::Shape { .. })));
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
    let refused =
        frozen_linear_with(&mut tape, &x, &weight, None, Updates { low_rank: None, sparse }, After::default());
    assert!(matches!(refused, Err(Error::Shape { argument: "pattern", .. })), "{refused:?}");
}
