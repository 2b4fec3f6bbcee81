use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::ops::check::{device, on_each_device};
use crate::ops::host::Real;
use crate::tensor::ParamSet;
use crate::testing::compare::{self, Outcome};
use crate::testing::{gradient, integers, normal};

on_each_device!(
    all_cases_are_as_good_as_the_plain_computation,
    a_wrong_result_is_rejected,
    long_sequences_agree_row_by_row,
    a_query_that_sees_nothing_gives_zeros_even_beside_nan,
    empty_sides_are_fine,
    sizes_beyond_memory_are_fine_in_a_batch_of_nothing,
    only_what_backward_needs_is_kept,
    only_the_wanted_gradients_are_computed_and_they_are_the_same,
);

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// One call's sizes and options, with the mask as values of its own.
#[derive(Clone)]
struct Case {
    dims: [usize; 5],
    causal: bool,
    scale: Option<f64>,
    mask: Option<Tensor>,
}

impl Case {
    fn new(b: usize, t: usize, s: usize, h: usize, d: usize) -> Self {
        Case { dims: [b, t, s, h, d], causal: false, scale: None, mask: None }
    }

    fn causal(self) -> Self {
        Case { causal: true, ..self }
    }

    fn masked(self, mask: Tensor) -> Self {
        Case { mask: Some(mask), ..self }
    }

    fn options(&self) -> AttentionOptions<'_> {
        AttentionOptions { heads: self.dims[3], causal: self.causal, mask: self.mask.as_ref(), scale: self.scale }
    }

    fn shapes(&self) -> [[usize; 3]; 3] {
        let [b, t, s, h, d] = self.dims;
        [[b, t, h * d], [b, s, h * d], [b, s, h * d]]
    }

    /// q, k and v, rounded to `dtype`.
    fn inputs(&self, dtype: DType) -> [Tensor; 3] {
        let names = ["q", "k", "v"];
        [0, 1, 2].map(|i| {
            let dims = self.shapes()[i];
            let values = normal(names[i], dims.iter().product());
            Tensor::from_f32(&device(), &dims, &values, dtype).unwrap()
        })
    }

    fn cotangent(&self, dtype: DType) -> Tensor {
        let dims = self.shapes()[0];
        Tensor::from_f32(&device(), &dims, &normal("dy", dims.iter().product()), dtype).unwrap()
    }
}

/// y and the three gradients, as f64.
type Results = [Vec<f64>; 4];

fn run(case: &Case, inputs: &[Tensor; 3], dy: &Tensor) -> Results {
    let params = ParamSet::none(dy.device(), dy.dtype()).unwrap();
    let mut tape = Tape::deterministic(&params);
    let [q, k, v] = inputs.clone().map(|x| tape.input(x));
    let y = attention(&mut tape, &q, &k, &v, &case.options()).unwrap();
    let out = y.tensor().to_f64_vec().unwrap();
    let mut grads = Grads::zeros(&params).unwrap();
    let done = tape.backward_with(&y, dy.clone(), &mut grads).unwrap();
    let gradient = |x: &Var| done.input_gradient(x).unwrap().to_f64_vec().unwrap();
    [out, gradient(&q), gradient(&k), gradient(&v)]
}

/// The formula, one score at a time, every intermediate rounded by the arithmetic of `T`.
fn plain<T: Real>(case: &Case, inputs: &[Tensor; 3], dy: &Tensor) -> Results {
    let [b, t, s, h, d] = case.dims;
    let read = |x: &Tensor| x.to_f64_vec().unwrap().into_iter().map(T::of).collect::<Vec<T>>();
    let ([q, k, v], dy) = (inputs.each_ref().map(read), read(dy));
    let scale = T::of(case.scale.unwrap_or(1.0 / (d as f64).sqrt()));
    let added: Vec<T> = match &case.mask {
        None => Vec::new(),
        Some(mask) if mask.dtype() == DType::U8 => {
            let value = |&keep: &u8| T::of(if keep == 0 { f64::NEG_INFINITY } else { 0.0 });
            mask.to_vec::<u8>().unwrap().iter().map(value).collect()
        }
        Some(mask) => read(mask),
    };
    let mask = |item: usize, head: usize, i: usize, j: usize| match case.mask.as_ref().map(|m| m.dims().len()) {
        None => T::of(0.0),
        Some(2) => added[i * s + j],
        Some(3) => added[(item * t + i) * s + j],
        Some(_) => added[((item * h + head) * t + i) * s + j],
    };
    let zeros = |x: &[T]| vec![T::of(0.0); x.len()];
    let (mut y, mut dq, mut dk, mut dv) = (zeros(&q), zeros(&q), zeros(&k), zeros(&v));
    for (item, head, i) in each_row(b, h, t) {
        let (at, key) = ((item * t + i) * h * d + head * d, |j: usize| (item * s + j) * h * d + head * d);
        let dot = |a: &[T], x: usize, b: &[T], y: usize| (0..d).map(|c| a[x + c] * b[y + c]).sum::<T>();
        let seen = |j: usize| !case.causal || j + t <= i + s;
        let scores: Vec<T> =
            (0..s)
                .map(|j| {
                    if seen(j) {
                        dot(&q, at, &k, key(j)) * scale + mask(item, head, i, j)
                    } else {
                        T::of(-f64::INFINITY)
                    }
                })
                .collect();
        let max = scores.iter().fold(T::of(f64::NEG_INFINITY), |m, &x| m.maximum(x));
        if max == T::of(f64::NEG_INFINITY) {
            continue;
        }
        let e: Vec<T> = scores.iter().map(|&x| (x - max).exp()).collect();
        let sum: T = e.iter().copied().sum();
        let p: Vec<T> = e.iter().map(|&e| e / sum).collect();
        let dp: Vec<T> = (0..s).map(|j| dot(&dy, at, &v, key(j))).collect();
        let mean: T = p.iter().zip(&dp).map(|(&p, &dp)| p * dp).sum();
        for j in 0..s {
            let ds = p[j] * (dp[j] - mean) * scale;
            for c in 0..d {
                y[at + c] += p[j] * v[key(j) + c];
                dq[at + c] += ds * k[key(j) + c];
                dk[key(j) + c] += ds * q[at + c];
                dv[key(j) + c] += p[j] * dy[at + c];
            }
        }
    }
    [y, dq, dk, dv].map(|x| x.into_iter().map(|v| v.to_f64()).collect())
}

fn each_row(b: usize, h: usize, t: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..b).flat_map(move |item| (0..h).flat_map(move |head| (0..t).map(move |i| (item, head, i))))
}

/// The plain computation in f32, its results rounded to the storage dtype: what the ratio check measures against.
fn plain_in(dtype: DType, case: &Case, inputs: &[Tensor; 3], dy: &Tensor) -> Results {
    plain::<f32>(case, inputs, dy).map(|x| {
        let narrow: Vec<f32> = x.iter().map(|&v| v as f32).collect();
        Tensor::from_f32(&device(), &[x.len()], &narrow, dtype).unwrap().to_f64_vec().unwrap()
    })
}

fn ratios(dtype: DType, case: &Case, inputs: &[Tensor; 3], dy: &Tensor, got: &Results) -> [Outcome; 4] {
    let (want, near) = (plain::<f64>(case, inputs, dy), plain_in(dtype, case, inputs, dy));
    [0, 1, 2, 3].map(|i| compare::ratio(&got[i], &want[i], &near[i], if i == 0 { 2.0 } else { 3.0 }, dtype))
}

fn mask_values(dims: &[usize]) -> Tensor {
    Tensor::from_f32(&device(), dims, &normal("mask", dims.iter().product()), DType::F32).unwrap()
}

/// Keeps about two keys in three; query 1 sees nothing.
fn keep_mask(dims: &[usize]) -> Tensor {
    let (t, s) = (dims[dims.len() - 2], dims[dims.len() - 1]);
    let values: Vec<u8> = integers("keep", dims.iter().product(), 1)
        .iter()
        .enumerate()
        .map(|(e, &v)| u8::from(v >= 0.0 && (e / s) % t != 1) * 3)
        .collect();
    Tensor::from_slice(&device(), dims, &values).unwrap()
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (t, s) in [(1, 1), (3, 1), (1, 7), (17, 17), (7, 33), (33, 7), (70, 65)] {
        for (h, d) in [(1, 1), (2, 3), (4, 16), (1, 20), (2, 33)] {
            all.push(Case::new(2, t, s, h, d));
        }
    }
    for (t, s) in [(17, 17), (5, 40), (40, 5), (66, 130)] {
        all.push(Case::new(2, t, s, 2, 8).causal());
        all.push(Case::new(2, t, s, 3, 8).masked(mask_values(&[t, s])));
        all.push(Case::new(2, t, s, 3, 8).masked(mask_values(&[2, t, s])).causal());
        all.push(Case::new(2, t, s, 3, 8).masked(mask_values(&[2, 3, t, s])));
        all.push(Case::new(2, t, s, 3, 8).masked(keep_mask(&[2, 3, t, s])));
        all.push(Case { scale: Some(-0.7), ..Case::new(2, t, s, 3, 8).masked(keep_mask(&[2, t, s])).causal() });
    }
    all
}

#[test]
fn gradients_agree_with_central_differences() {
    let mut cases =
        vec![Case::new(2, 3, 4, 2, 3), Case::new(1, 5, 3, 1, 2).causal(), Case::new(2, 3, 5, 2, 2).causal()];
    cases.push(Case { scale: Some(1.3), ..Case::new(1, 4, 4, 2, 3) });
    cases.push(Case::new(2, 3, 4, 2, 3).masked(mask_values(&[2, 2, 3, 4])));
    cases.push(Case::new(2, 3, 4, 2, 3).masked(keep_mask(&[2, 3, 4])));
    for case in cases {
        let shapes = case.shapes();
        let inputs = [0, 1, 2].map(|i| (&shapes[i][..], wide(&normal(&format!("x{i}"), shapes[i].iter().product()))));
        gradient::check(&inputs, None, |tape, x| attention(tape, &x[0], &x[1], &x[2], &case.options())).unwrap();
    }
}

#[test]
fn one_value_as_query_key_and_value_gets_the_sum_of_three_gradients() {
    let case = Case::new(2, 5, 5, 2, 3).causal();
    let inputs = [(&[2, 5, 6][..], wide(&normal("x", 60)))];
    gradient::check(&inputs, None, |tape, x| attention(tape, &x[0], &x[0], &x[0], &case.options())).unwrap();
}

/// Over all cases together: in a result of three numbers the plain computation may be right by luck. Values are of the order of 1
/// in every case, so that a wrong one cannot hide among the others.
fn all_cases_are_as_good_as_the_plain_computation() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let (mut got, mut want, mut near) = (Results::default(), Results::default(), Results::default());
        for case in cases() {
            let (inputs, dy) = (case.inputs(dtype), case.cotangent(dtype));
            extend(&mut got, run(&case, &inputs, &dy));
            extend(&mut want, plain::<f64>(&case, &inputs, &dy));
            extend(&mut near, plain_in(dtype, &case, &inputs, &dy));
        }
        for (i, factor) in [2.0, 3.0, 3.0, 3.0].into_iter().enumerate() {
            let outcome = compare::ratio(&got[i], &want[i], &near[i], factor, dtype);
            assert!(outcome.ok(), "{dtype} result {i}: {outcome:?}");
        }
    }
}

fn extend(all: &mut Results, more: Results) {
    all.iter_mut().zip(more).for_each(|(all, more)| all.extend(more));
}

#[test]
fn f64_agrees_to_its_own_precision() {
    for case in cases() {
        let (inputs, dy) = (case.inputs(DType::F64), case.cotangent(DType::F64));
        let (got, want) = (run(&case, &inputs, &dy), plain::<f64>(&case, &inputs, &dy));
        for (got, want) in got.iter().zip(&want) {
            let largest = want.iter().fold(1.0f64, |m, v| m.max(v.abs()));
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 1e-13 * largest), "{:?}", case.dims);
        }
    }
}

fn a_wrong_result_is_rejected() {
    let case = Case::new(2, 17, 17, 4, 16).causal();
    for dtype in [DType::F32, DType::BF16] {
        let (inputs, dy) = (case.inputs(dtype), case.cotangent(dtype));
        let wrong = [
            run(&Case { causal: false, ..case.clone() }, &inputs, &dy),
            run(&Case { scale: Some(0.26), ..case.clone() }, &inputs, &dy),
            run(&Case { dims: [2, 17, 17, 2, 32], ..case.clone() }, &inputs, &dy),
        ];
        for got in wrong {
            assert!(ratios(dtype, &case, &inputs, &dy, &got).iter().all(|o| !o.ok()));
        }
    }
}

/// With q = 0 every key weighs 1/s, and a power of two times a sum of small integers is exact in every dtype. With a mask that
/// leaves one key, y is that key's value, dv collects dy there, and dq and dk vanish.
#[test]
fn integers_come_out_exactly() {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let case = Case::new(2, 5, 16, 2, 4);
        let [_, k, _] = case.inputs(dtype);
        let v = Tensor::from_f32(&device(), &[2, 16, 8], &integers("v", 256, 4), dtype).unwrap();
        let dy = Tensor::from_f32(&device(), &[2, 5, 8], &integers("dy", 80, 3), dtype).unwrap();
        let q = Tensor::zeros(&device(), &[2, 5, 8], dtype).unwrap();
        let (values, slopes) = (v.to_f64_vec().unwrap(), dy.to_f64_vec().unwrap());
        let [y, _, _, dv] = run(&case, &[q.clone(), k.clone(), v.clone()], &dy);
        let mean =
            |item: usize, column: usize| (0..16).map(|j| values[(item * 16 + j) * 8 + column]).sum::<f64>() / 16.0;
        let want: Vec<f64> = (0..80).map(|e| mean(e / 40, e % 8)).collect();
        let rounded = Tensor::from_slice(&device(), &[80], &want).unwrap().cast(dtype).unwrap().to_f64_vec().unwrap();
        assert!(compare::exact(&y, &rounded).ok(), "{dtype}");
        let sum = |item: usize, column: usize| (0..5).map(|i| slopes[(item * 5 + i) * 8 + column]).sum::<f64>() / 16.0;
        let want: Vec<f64> = (0..256).map(|e| sum(e / 128, e % 8)).collect();
        assert!(compare::exact(&dv, &want).ok(), "{dtype}");

        let keep: Vec<u8> = (0..5 * 16).map(|e| u8::from(e % 16 == (e / 16 * 7) % 16)).collect();
        let case = case.masked(Tensor::from_slice(&device(), &[5, 16], &keep).unwrap());
        let [q, _, _] = case.inputs(dtype);
        let [y, dq, dk, dv] = run(&case, &[q, k, v], &dy);
        let want: Vec<f64> = (0..80).map(|e| values[((e / 40) * 16 + (e / 8 % 5 * 7) % 16) * 8 + e % 8]).collect();
        assert!(compare::exact(&y, &want).ok(), "{dtype}");
        let mut collected = vec![0.0; 256];
        for e in 0..80 {
            collected[((e / 40) * 16 + (e / 8 % 5 * 7) % 16) * 8 + e % 8] += slopes[e];
        }
        assert!(compare::exact(&dv, &collected).ok(), "{dtype}");
        assert!(dq.iter().chain(&dk).all(|&v| v == 0.0), "{dtype}");
    }
}

fn long_sequences_agree_row_by_row() {
    let case = Case::new(1, 130, 2050, 2, 24).causal();
    let (inputs, dy) = (case.inputs(DType::F32), case.cotangent(DType::F32));
    let (got, want) = (run(&case, &inputs, &dy), plain::<f64>(&case, &inputs, &dy));
    for (got, want) in got.iter().zip(&want) {
        let outcome = compare::norm(got, want, 48, 2e-5);
        assert!(outcome.ok(), "{outcome:?}");
        let mut wrong = want.clone();
        wrong[48..96].fill(0.0);
        assert!(!compare::norm(&wrong, want, 48, 2e-5).ok());
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let case = Case::new(3, 17, 40, 4, 16);
    let (inputs, dy) = (case.inputs(DType::F32), case.cotangent(DType::F32));
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(run(&case, &inputs, &dy), one.install(|| run(&case, &inputs, &dy)));
}

fn a_query_that_sees_nothing_gives_zeros_even_beside_nan() {
    let hidden = Tensor::from_slice(&device(), &[2, 3], &[1u8, 1, 1, 0, 0, 0]).unwrap();
    let case = Case::new(1, 2, 3, 1, 4).masked(hidden);
    let (mut inputs, dy) = (case.inputs(DType::F32), case.cotangent(DType::F32));
    let [y, dq, ..] = run(&case, &inputs, &dy);
    assert!(y[4..].iter().chain(&dq[4..]).all(|&v| v == 0.0) && y[..4].iter().all(|&v| v != 0.0));
    // One NaN in a key that is seen spoils exactly the queries that see it.
    let mut values = inputs[1].to_f32_vec().unwrap();
    values[5] = f32::NAN;
    inputs[1].overwrite(&values).unwrap();
    let [y, ..] = run(&case, &inputs, &dy);
    assert!(y[..4].iter().all(|v| v.is_nan()) && y[4..].iter().all(|&v| v == 0.0));
    // A mask of −∞ hides as a zero does.
    let row = [0.0, 0.0, 0.0, f32::NEG_INFINITY, f32::NEG_INFINITY, f32::NEG_INFINITY];
    let added = Case::new(1, 2, 3, 1, 4).masked(Tensor::from_slice(&device(), &[2, 3], &row).unwrap());
    inputs = case.inputs(DType::F32);
    assert_eq!(run(&case, &inputs, &dy), run(&added, &inputs, &dy));
}

fn empty_sides_are_fine() {
    for dims in [[0, 3, 4, 2, 3], [2, 0, 4, 2, 3], [2, 3, 0, 2, 3]] {
        let case = Case { dims, ..Case::new(1, 1, 1, 1, 1) };
        let results = run(&case, &case.inputs(DType::F32), &case.cotangent(DType::F32));
        for (result, shape) in
            results.iter().zip([case.shapes()[0], case.shapes()[0], case.shapes()[1], case.shapes()[2]])
        {
            assert_eq!(result.len(), shape.iter().product::<usize>());
            assert!(result.iter().all(|&v| v == 0.0), "{dims:?}");
        }
    }
}

/// Sizes that overflow are no panic where a batch of nothing lets them exist.
fn sizes_beyond_memory_are_fine_in_a_batch_of_nothing() {
    let long = usize::MAX / 2;
    let case = Case { dims: [0, long, long, 1, 3], ..Case::new(1, 1, 1, 1, 1) };
    let case = case.masked(Tensor::zeros(&device(), &[0, 1, long, long], DType::U8).unwrap());
    let [q, k, v] = case.shapes().map(|dims| Tensor::zeros(&device(), &dims, DType::F32).unwrap());
    let desc = Desc::new(&q, &k, &v, &case.options()).unwrap();
    assert_eq!((desc.flops(), desc.bytes()), (0, 0));
    assert!(run(&case, &[q.clone(), k, v], &q).iter().all(|result| result.is_empty()));
}

fn only_what_backward_needs_is_kept() {
    let case = Case::new(2, 5, 7, 2, 8);
    let params = ParamSet::none(&device(), DType::F32).unwrap();
    let (q_bytes, k_bytes, lse) = (2 * 5 * 16 * 4, 2 * 7 * 16 * 4, 2 * 5 * 2 * 4);
    for (learns, bytes) in [
        ([true, false, false], q_bytes + 2 * k_bytes + lse),
        ([false, false, true], q_bytes + k_bytes + lse),
        ([false; 3], 0),
    ] {
        let mut tape = Tape::deterministic(&params);
        let inputs = case.inputs(DType::F32);
        let [q, k, v] = [0, 1, 2].map(|i| match learns[i] {
            true => tape.input(inputs[i].clone()),
            false => Var::constant(inputs[i].clone()),
        });
        let y = attention(&mut tape, &q, &k, &v, &case.options()).unwrap();
        assert_eq!((tape.ledger().retained_bytes(), y.needs_grad()), (bytes, bytes > 0));
    }
}

fn only_the_wanted_gradients_are_computed_and_they_are_the_same() {
    let case = Case::new(2, 5, 7, 2, 8).causal();
    let (inputs, dy) = (case.inputs(DType::F32), case.cotangent(DType::F32));
    let all = run(&case, &inputs, &dy);
    let params = ParamSet::none(&device(), DType::F32).unwrap();
    for wanted in 0..3 {
        let mut tape = Tape::deterministic(&params);
        let vars: Vec<Var> = (0..3)
            .map(|i| if i == wanted { tape.input(inputs[i].clone()) } else { Var::constant(inputs[i].clone()) })
            .collect();
        let y = attention(&mut tape, &vars[0], &vars[1], &vars[2], &case.options()).unwrap();
        let done = tape.backward_with(&y, dy.clone(), &mut Grads::zeros(&params).unwrap()).unwrap();
        let got = done.input_gradient(&vars[wanted]).unwrap().to_f64_vec().unwrap();
        assert!(compare::exact(&got, &all[wanted + 1]).ok());
    }
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let make = |dims: &[usize], dtype| Tensor::zeros(&device(), dims, dtype).unwrap();
    let (q, k) = (make(&[2, 3, 8], DType::F32), make(&[2, 5, 8], DType::F32));
    let options = |heads| AttentionOptions { heads, ..AttentionOptions::default() };
    let refused = |q: &Tensor, k: &Tensor, v: &Tensor, o: &AttentionOptions, part: &str| {
        let text = Desc::new(q, k, v, o).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    refused(&q, &k, &k, &options(0), "`heads`");
    refused(&q, &k, &k, &options(3), "`heads`");
    refused(&make(&[3, 8], DType::F32), &k, &k, &options(2), "`q`");
    refused(&make(&[2, 3, 8], DType::I32), &k, &k, &options(2), "`q` has dtype i32");
    refused(&q, &make(&[1, 5, 8], DType::F32), &k, &options(2), "`k`");
    refused(&q, &k, &make(&[2, 4, 8], DType::F32), &options(2), "`v`");
    refused(&q, &k, &make(&[2, 5, 8], DType::F16), &options(2), "`v` has dtype f16");
    let strided = make(&[2, 6, 8], DType::F32).slice(1, 0, 5).unwrap();
    refused(&q, &strided, &k, &options(2), "`k` with shape");
    let nan = AttentionOptions { scale: Some(f64::NAN), ..options(2) };
    refused(&q, &k, &k, &nan, "`scale`");
    for mask in [make(&[3, 4], DType::F32), make(&[2, 5], DType::U8), make(&[3, 5], DType::I64)] {
        refused(&q, &k, &k, &AttentionOptions { mask: Some(&mask), ..options(2) }, "`mask`");
    }
    assert!(Desc::new(&q, &k, &k, &options(2)).is_ok());
}

/// softmax of (0, ln 3) is (1/4, 3/4).
#[test]
fn golden_values() {
    let make = |dims: &[usize], values: &[f64]| Tensor::from_slice(&device(), dims, values).unwrap();
    let case = Case { scale: Some(1.0), ..Case::new(1, 1, 2, 1, 1) };
    let inputs = [make(&[1, 1, 1], &[1.0]), make(&[1, 2, 1], &[0.0, 3f64.ln()]), make(&[1, 2, 1], &[8.0, 4.0])];
    let [y, dq, dk, dv] = run(&case, &inputs, &make(&[1, 1, 1], &[1.0]));
    // dS_j = P_j (v_j − y): 1/4 · 3 and 3/4 · (−1).
    for (got, want) in
        [(y[0], 5.0), (dq[0], -0.75 * 3f64.ln()), (dk[0], 0.75), (dk[1], -0.75), (dv[0], 0.25), (dv[1], 0.75)]
    {
        assert!((got - want).abs() < 1e-14, "{got} {want}");
    }
}

fn traced(device: &Device, case: &Case, dtype: DType, learns: [bool; 3]) -> Result<Vec<crate::device::LaunchSpec>> {
    let before = device.launcher().unwrap().recorded().len();
    let params = ParamSet::none(device, dtype)?;
    let mut tape = Tape::deterministic(&params);
    let mut vars = Vec::new();
    for (dims, learns) in case.shapes().iter().zip(learns) {
        let x = Tensor::zeros(device, dims, dtype)?;
        vars.push(if learns { tape.input(x) } else { Var::constant(x) });
    }
    let mask = case.mask.as_ref().map(|m| Tensor::zeros(device, m.dims(), m.dtype())).transpose()?;
    let y = attention(
        &mut tape,
        &vars[0],
        &vars[1],
        &vars[2],
        &AttentionOptions { mask: mask.as_ref(), ..case.options() },
    )?;
    tape.backward_with(&y, Tensor::zeros(device, y.dims(), dtype)?, &mut Grads::zeros(&params)?)?;
    Ok(device.launcher().unwrap().recorded().split_off(before))
}

#[test]
fn the_plans_fit_the_table_and_launch_only_what_is_wanted() {
    let device = Device::trace(80);
    let names = |specs: &[crate::device::LaunchSpec]| specs.iter().map(|s| s.kernel.row().symbol).collect::<Vec<_>>();
    let case = Case::new(2, 70, 33, 3, 40).masked(keep_mask(&[2, 70, 33])).causal();
    let (fwd, dq, dkv) = ("attention_fwd_bf16_d64_sm80", "attention_dq_bf16_d64_sm80", "attention_dkv_bf16_d64_sm80");
    let all = traced(&device, &case, DType::BF16, [true; 3]).unwrap();
    assert_eq!(names(&all), [fwd, dq, dkv]);
    assert_eq!([all[0].grid[0], all[1].grid[0], all[2].grid[0]], [2 * 2 * 3, 3 * 2 * 3, 2 * 2 * 3]);
    let p: gpu::Params = all[2].params.read().unwrap();
    assert_eq!((p.items, p.t, p.s, p.heads, p.d, p.causal), (2, 70, 33, 3, 40, 1));
    assert_eq!((p.mask_kind, p.mask_item_stride, p.mask_head_stride, p.vector), (1, 70 * 33, 0, 1));
    assert!(p.dq != 0 && p.dk != 0 && p.dv != 0 && p.mean != 0);
    assert_eq!(names(&traced(&device, &case, DType::BF16, [true, false, false]).unwrap()), [fwd, dq]);
    assert_eq!(names(&traced(&device, &case, DType::BF16, [false, true, false]).unwrap()), [fwd, dq, dkv]);
    assert_eq!(names(&traced(&device, &case, DType::BF16, [false, false, true]).unwrap()), [fwd, dkv]);
    for (d, symbol) in
        [(1, "attention_fwd_f32_d32_sm80"), (33, "attention_fwd_f32_d64_sm80"), (128, "attention_fwd_f32_d128_sm80")]
    {
        let specs = traced(&device, &Case::new(1, 5, 5, 2, d), DType::F32, [true; 3]).unwrap();
        assert_eq!(specs[0].kernel.row().symbol, symbol);
        assert_eq!(specs[0].shared_bytes, specs[0].kernel.row().shared_bytes);
    }
    let wide = traced(&device, &Case::new(1, 5, 5, 1, 129), DType::F32, [true; 3]).unwrap_err().to_string();
    assert!(wide.contains("129") && wide.contains("128"), "{wide}");
    assert!(traced(&device, &Case::new(1, 5, 5, 1, 8), DType::F64, [true; 3]).is_err());
}

/// One value as query, key and value: the second and third gradients are added to the first, in the order of the launches.
#[test]
fn targets_that_are_one_tensor_are_added_to() {
    let device = Device::trace(80);
    let params = ParamSet::none(&device, DType::F32).unwrap();
    let mut tape = Tape::deterministic(&params);
    let x = tape.input(Tensor::zeros(&device, &[1, 4, 6], DType::F32).unwrap());
    let options = AttentionOptions { heads: 2, ..AttentionOptions::default() };
    let y = attention(&mut tape, &x, &x, &x, &options).unwrap();
    let dy = Tensor::zeros(&device, &[1, 4, 6], DType::F32).unwrap();
    tape.backward_with(&y, dy, &mut Grads::zeros(&params).unwrap()).unwrap();
    let specs = device.launcher().unwrap().recorded();
    let p: gpu::Params = specs[2].params.read().unwrap();
    assert!(p.dq == p.dk && p.dk == p.dv);
    assert_eq!((p.dq_flags, p.dk_flags, p.dv_flags), (0, 1, 1));
}
