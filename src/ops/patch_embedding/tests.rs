use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{device, floats, on_each_device};
use crate::tensor::ParamSet;
use crate::testing::{compare, gradient, integers, normal};

on_each_device!(
    integers_come_out_exactly,
    every_result_is_within_its_bound,
    golden_values,
    empty_batches_and_nan_are_fine,
);

/// b, c, H, W, patch, d, and whether there are bias, class token and positions.
#[derive(Clone, Copy, Debug)]
struct Case {
    sizes: [usize; 6],
    given: [bool; 3],
}

impl Case {
    fn t(&self) -> usize {
        let [_, _, height, width, p, _] = self.sizes;
        usize::from(self.given[1]) + (height / p) * (width / p)
    }

    /// pixels, weight, bias, cls, positions
    fn shapes(&self) -> [Vec<usize>; 5] {
        let [b, c, height, width, p, d] = self.sizes;
        [vec![b, c, height, width], vec![d, c, p, p], vec![d], vec![1, 1, d], vec![1, self.t(), d]]
    }

    fn tensors(&self, dtype: DType, values: impl Fn(&str, usize) -> Vec<f32>) -> Vec<Tensor> {
        let names = ["pixels", "weight", "bias", "cls", "positions"];
        let make = |(name, dims): (&str, Vec<usize>)| {
            Tensor::from_f32(&device(), &dims, &values(name, dims.iter().product()), dtype).unwrap()
        };
        names.into_iter().zip(self.shapes()).map(make).collect()
    }
}

fn apply(case: &Case, tape: &mut Tape, weight: &FrozenWeight, pixels: &Var, rest: &[Var]) -> Result<Var> {
    let [bias, cls, positions] = [0, 1, 2].map(|i| case.given[i].then(|| &rest[i]));
    patch_embedding(tape, pixels, weight, bias, cls, positions, case.sizes[4])
}

/// y, then the gradients of pixels, bias, cls and positions (empty where not given).
fn run(case: &Case, x: &[Tensor], dy: &Tensor) -> Vec<Vec<f64>> {
    let params = ParamSet::none(dy.device(), dy.dtype()).unwrap();
    let mut tape = Tape::deterministic(&params);
    let weight = FrozenWeight::new(x[1].clone()).unwrap();
    let pixels = tape.input(x[0].clone());
    let rest: Vec<Var> = x[2..].iter().map(|x| tape.input(x.clone())).collect();
    let y = apply(case, &mut tape, &weight, &pixels, &rest).unwrap();
    assert_eq!(tape.ledger().retained_bytes(), 0);
    let mut out = vec![y.tensor().to_f64_vec().unwrap()];
    let done = tape.backward_with(&y, dy.clone(), &mut Grads::zeros(&params).unwrap()).unwrap();
    for var in std::iter::once(&pixels).chain(&rest) {
        out.push(done.input_gradient(var).map_or(Vec::new(), |g| g.to_f64_vec().unwrap()));
    }
    out
}

/// The formula in f64, with the sums of absolute values beside each result.
fn reference(case: &Case, x: &[Tensor], dy: &Tensor) -> Vec<(Vec<f64>, Vec<f64>)> {
    let [b, c, height, width, p, d] = case.sizes;
    let v: Vec<Vec<f64>> = x.iter().map(|x| x.to_f64_vec().unwrap()).collect();
    let dy = dy.to_f64_vec().unwrap();
    let (t, first, across) = (case.t(), usize::from(case.given[1]), width / p);
    let zeros = |n: usize| (vec![0.0; n], vec![0.0; n]);
    let size = |i: usize| if case.given[i] { x[i + 2].numel() } else { 0 };
    let mut out = vec![zeros(b * t * d), zeros(x[0].numel()), zeros(size(0)), zeros(size(1)), zeros(size(2))];
    let mut add = |result: usize, at: usize, value: f64| {
        out[result].0[at] += value;
        out[result].1[at] += value.abs();
    };
    for (item, token, n) in (0..b * t * d).map(|e| (e / d / t, e / d % t, e % d)) {
        let at = (item * t + token) * d + n;
        if case.given[2] {
            add(0, at, v[4][token * d + n]);
            add(4, token * d + n, dy[at]);
        }
        if token < first {
            add(0, at, v[3][n]);
            add(3, n, dy[at]);
            continue;
        }
        if case.given[0] {
            add(0, at, v[2][n]);
            add(2, n, dy[at]);
        }
        let (row, column) = ((token - first) / across * p, (token - first) % across * p);
        for (channel, i, j) in (0..c * p * p).map(|k| (k / p / p, k / p % p, k % p)) {
            let pixel = ((item * c + channel) * height + row + i) * width + column + j;
            let weight = ((n * c + channel) * p + i) * p + j;
            add(0, at, v[0][pixel] * v[1][weight]);
            add(1, pixel, dy[at] * v[1][weight]);
        }
    }
    out
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for sizes in [[1, 1, 1, 1, 1, 1], [2, 1, 8, 8, 2, 7], [3, 3, 4, 6, 2, 33], [2, 2, 9, 3, 3, 16]] {
        for given in [[true; 3], [false; 3], [true, false, true], [false, true, false]] {
            all.push(Case { sizes, given });
        }
    }
    all
}

#[test]
fn gradients_agree_with_central_differences() {
    for given in [[true; 3], [true, false, true], [false, true, false]] {
        let case = Case { sizes: [2, 2, 4, 6, 2, 3], given };
        let x = case.tensors(DType::F64, normal);
        let weight = FrozenWeight::new(x[1].clone()).unwrap();
        let inputs: Vec<(&[usize], Vec<f64>)> =
            [0, 2, 3, 4].iter().map(|&i| (x[i].dims(), x[i].to_f64_vec().unwrap())).collect();
        gradient::check(&inputs, None, |tape, v| apply(&case, tape, &weight, &v[0], &v[1..])).unwrap();
    }
}

fn integers_come_out_exactly() {
    for dtype in floats().into_iter().filter(|dtype| dtype.size() >= 4) {
        for case in cases() {
            let x = case.tensors(dtype, |name, len| integers(name, len, 3));
            let dims = [case.sizes[0], case.t(), case.sizes[5]];
            let dy = Tensor::from_f32(&device(), &dims, &integers("dy", dims.iter().product(), 3), dtype).unwrap();
            for (got, (mut want, _)) in run(&case, &x, &dy).iter().zip(reference(&case, &x, &dy)) {
                assert!(compare::exact(got, &want).ok(), "{dtype} {case:?}");
                if let Some(first) = want.first_mut() {
                    *first += 1.0;
                    assert!(!compare::exact(got, &want).ok());
                }
            }
        }
    }
}

fn every_result_is_within_its_bound() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for case in cases() {
            let [b, c, _, _, p, d] = case.sizes;
            let x = case.tensors(dtype, normal);
            let dims = [b, case.t(), d];
            let dy = Tensor::from_f32(&device(), &dims, &normal("dy", dims.iter().product()), dtype).unwrap();
            let terms = [c * p * p + 2, d, b * case.t(), b, b];
            for ((got, (want, magnitude)), terms) in
                run(&case, &x, &dy).iter().zip(reference(&case, &x, &dy)).zip(terms)
            {
                let outcome = compare::bound(got, &want, &magnitude, terms, dtype);
                assert!(outcome.ok(), "{dtype} {case:?}: {outcome:?}");
            }
        }
    }
}

/// Two patches of a 1 × 2 × 4 image under a weight that sums the left and the right column.
fn golden_values() {
    let device = device();
    let make = |dims: &[usize], v: &[f32]| Tensor::from_slice(&device, dims, v).unwrap();
    let weight = FrozenWeight::new(make(&[2, 1, 2, 2], &[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0])).unwrap();
    let params = ParamSet::none(&device, DType::F32).unwrap();
    let pixels = Var::constant(make(&[1, 1, 2, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
    let cls = Var::constant(make(&[2], &[100.0, 200.0]));
    let positions = Var::constant(make(&[1, 3, 2], &[0.5, 0.5, 1.5, 1.5, 2.5, 2.5]));
    let y = patch_embedding(&mut Tape::inference(&params), &pixels, &weight, None, Some(&cls), Some(&positions), 2);
    assert_eq!(y.unwrap().tensor().to_vec::<f32>().unwrap(), [100.5, 200.5, 7.5, 9.5, 12.5, 14.5]);
}

fn empty_batches_and_nan_are_fine() {
    let case = Case { sizes: [0, 2, 4, 4, 2, 3], given: [true; 3] };
    let x = case.tensors(DType::F32, normal);
    let results = run(&case, &x, &Tensor::zeros(&device(), &[0, 5, 3], DType::F32).unwrap());
    assert!(results[0].is_empty() && results[2..].iter().flatten().all(|&v| v == 0.0));
    assert_eq!(results[2..].iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 15]);

    let case = Case { sizes: [1, 1, 2, 4, 2, 3], given: [false, true, false] };
    let x = case.tensors(DType::F32, normal);
    x[0].overwrite(&[1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0, 1.0f32]).unwrap();
    let y = &run(&case, &x, &Tensor::zeros(&device(), &[1, 3, 3], DType::F32).unwrap())[0];
    assert!(y[..6].iter().all(|v| v.is_finite()) && y[6..].iter().all(|v| v.is_nan()));
}

#[test]
fn pixels_are_kept_for_the_weights_account_alone() {
    let case = Case { sizes: [2, 1, 4, 4, 2, 3], given: [true; 3] };
    let x = case.tensors(DType::F32, normal);
    let params = ParamSet::none(&device(), DType::F32).unwrap();
    let mut tape = Tape::accounting(&params);
    let weight = FrozenWeight::new(x[1].clone()).unwrap();
    let rest: Vec<Var> = x[2..].iter().map(|x| Var::constant(x.clone())).collect();
    apply(&case, &mut tape, &weight, &Var::constant(x[0].clone()), &rest).unwrap();
    assert_eq!(tape.ledger().retained_bytes(), 2 * 16 * 4);
}

#[test]
fn what_does_not_fit_is_named() {
    let make = |dims: &[usize]| Tensor::zeros(&device(), dims, DType::F32).unwrap();
    let (pixels, weight) = (make(&[1, 2, 4, 6]), FrozenWeight::new(make(&[5, 2, 2, 2])).unwrap());
    let refused = |pixels: &Tensor, bias: Option<Tensor>, cls: Option<Tensor>, pos: Option<Tensor>, p, part: &str| {
        let made = Desc::new(pixels, &weight, bias.as_ref(), cls.as_ref(), pos.as_ref(), p);
        let text = made.unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    refused(&pixels, None, None, None, 0, "`patch`");
    refused(&pixels, None, None, None, 4, "`patch` is 4");
    refused(&make(&[0, 2, usize::MAX - 1, 1 << 40]), None, None, None, 2, "overflows");
    refused(&make(&[1, 2, 5, 6]), None, None, None, 2, "5 rows and 6 columns");
    refused(&make(&[2, 4, 6]), None, None, None, 2, "`pixels`");
    refused(&make(&[1, 3, 4, 6]), None, None, None, 2, "`weight`");
    refused(&pixels, None, None, None, 1, "`weight`");
    refused(&pixels, Some(make(&[4])), None, None, 2, "`bias`");
    refused(&pixels, None, Some(make(&[1, 5])), None, 2, "`cls`");
    refused(&pixels, None, None, Some(make(&[1, 7, 5])), 2, "`positions`");
    refused(&pixels, None, Some(make(&[5])), Some(make(&[1, 6, 5])), 2, "`positions`");
    refused(&pixels.transpose(2, 3).unwrap(), None, None, None, 2, "not contiguous");
}

#[test]
fn the_plans_fit_the_table() {
    let device = Device::trace(80);
    let params = ParamSet::none(&device, DType::BF16).unwrap();
    let mut tape = Tape::deterministic(&params);
    let make = |dims: &[usize]| Tensor::zeros(&device, dims, DType::BF16).unwrap();
    let weight = FrozenWeight::new(make(&[768, 3, 16, 16])).unwrap();
    let [pixels, bias, cls, positions] =
        [&[4, 3, 224, 224][..], &[768], &[1, 1, 768], &[1, 197, 768]].map(|dims| tape.input(make(dims)));
    let y = patch_embedding(&mut tape, &pixels, &weight, Some(&bias), Some(&cls), Some(&positions), 16).unwrap();
    let dy = make(y.dims());
    tape.backward_with(&y, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
    let specs = device.launcher().unwrap().recorded();
    let names: Vec<_> = specs.iter().map(|s| s.kernel.row().symbol).collect();
    let sums = "patch_embedding_sums_bf16_c32_sm80";
    assert_eq!(names, ["patch_embedding_fwd_bf16_t64_sm80", sums, sums, sums, "patch_embedding_dpixels_bf16_t64_sm80"]);
    let forward: gpu::Params = specs[0].params.read().unwrap();
    assert_eq!((forward.items, forward.d, forward.k, forward.tokens, forward.patches), (4, 768, 768, 197, 196));
    assert_eq!((forward.channels, forward.patch, forward.down, forward.across), (3, 16, 14, 14));
    assert_eq!(specs[0].grid[0], (4u32 * 197).div_ceil(64) * 12);
    let read = |i: usize| specs[i].params.read::<gpu::SumParams>().unwrap();
    assert_eq!([1, 2, 3].map(|i| (read(i).groups, read(i).inner, read(i).base)), [(1, 196, 1), (1, 1, 0), (197, 1, 0)]);
    assert_eq!(specs[3].grid[0], 197 * 24);
}
