use super::*;
use crate::ops::check::{device, on_each_device, wide};
use crate::testing::compare;

on_each_device!(
    f32_stays_within_rounding_of_f64,
    the_working_copy_is_the_master_rounded,
    the_norm_is_measured_where_it_is_asked_for_and_clips_only_above_its_limit,
    nan_and_infinite_gradients_show,
    no_parameters_are_fine,
);

const PLAIN: &[Group] = &[Group { end: 5000, lr_multiplier: 1.0, weight_decay: 0.01 }];
/// Ends that fall on no boundary of any vector or chunk.
const GROUPS: &[Group] = &[
    Group { end: 7, lr_multiplier: 0.0, weight_decay: 0.5 },
    Group { end: 7, lr_multiplier: 9.0, weight_decay: 9.0 },
    Group { end: 1501, lr_multiplier: 0.5, weight_decay: 0.0 },
    Group { end: 5000, lr_multiplier: 2.0, weight_decay: 0.1 },
];

fn asked(step: u64, groups: &[Group]) -> AdamWStep<'_> {
    AdamWStep {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        step,
        clip: None,
        measure_norm: false,
        zero_grads: false,
        groups,
    }
}

/// Everything a run holds, on the CPU.
struct Run {
    params: Tensor,
    working: Option<Tensor>,
    grads: Tensor,
    m: Tensor,
    v: Tensor,
    scratch: Scratch,
}

impl Run {
    fn new(values: &[f64], dtype: DType, working: Option<DType>) -> Self {
        let cpu = device();
        let params = cast(values, dtype);
        let zeros = || Tensor::zeros(&cpu, &[values.len()], dtype).unwrap();
        let working = working.map(|w| Tensor::zeros(&cpu, &[values.len()], w).unwrap());
        Run { params, working, grads: zeros(), m: zeros(), v: zeros(), scratch: Scratch::new(&cpu, dtype).unwrap() }
    }

    fn buffers(&self) -> Buffers<'_> {
        Buffers {
            params: &self.params,
            working: self.working.as_ref(),
            grads: &self.grads,
            m: &self.m,
            v: &self.v,
            scratch: &self.scratch,
        }
    }

    fn step(&self, asked: &AdamWStep, grads: &[f64]) {
        let bytes = cast(grads, self.grads.dtype());
        match self.grads.dtype() {
            DType::F64 => self.grads.overwrite(&bytes.to_vec::<f64>().unwrap()).unwrap(),
            _ => self.grads.overwrite(&bytes.to_vec::<f32>().unwrap()).unwrap(),
        }
        step(asked, &self.buffers()).unwrap();
    }

    fn values(&self) -> Vec<f64> {
        self.params.to_f64_vec().unwrap()
    }
}

fn cast(values: &[f64], dtype: DType) -> Tensor {
    Tensor::from_slice(&device(), &[values.len()], values).unwrap().cast(dtype).unwrap()
}

fn grads(step: u64, n: usize) -> Vec<f64> {
    wide(&format!("gradient of step {step}"), n)
}

/// The algorithm as published, one parameter at a time, with bias-corrected moments written out.
fn reference(start: &[f64], steps: u64, groups: &[Group], clip: Option<f64>, f32_grads: bool) -> Vec<f64> {
    let n = start.len();
    let (mut p, mut m, mut v) = (start.to_vec(), vec![0.0; n], vec![0.0; n]);
    for t in 1..=steps {
        let mut g = grads(t, n);
        if f32_grads {
            g.iter_mut().for_each(|g| *g = f64::from(*g as f32));
        }
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt();
        let factor = clip.map_or(1.0, |c| (c / (norm + 1e-6)).min(1.0));
        for i in 0..n {
            let group = groups.iter().find(|group| i < group.end).unwrap();
            let lr = 0.01 * group.lr_multiplier;
            let g = g[i] * factor;
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let (mean, square) = (m[i] / (1.0 - 0.9f64.powi(t as i32)), v[i] / (1.0 - 0.999f64.powi(t as i32)));
            p[i] -= lr * group.weight_decay * p[i];
            p[i] -= lr * mean / (square.sqrt() + 1e-8);
        }
    }
    p
}

fn worst(got: &[f64], want: &[f64]) -> f64 {
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn one_step_by_hand() {
    // m = 0.05, v = 0.00025, corrected 0.5 and 0.25: 1·(1 − 0.1·0.01) − 0.1·0.5/(0.5 + ε).
    let run = Run::new(&[1.0], DType::F64, None);
    let group = [Group { end: 1, lr_multiplier: 1.0, weight_decay: 0.01 }];
    run.step(&AdamWStep { lr: 0.1, ..asked(1, &group) }, &[0.5]);
    assert!((run.values()[0] - (0.999 - 0.05 / (0.5 + 1e-8))).abs() < 1e-15);
    assert_eq!(run.grads.to_f64_vec().unwrap(), [0.5], "the gradient stays unless zeroing is asked for");
    // ε stands outside the root and after the correction: with g = ε the step is half of the learning rate.
    let run = Run::new(&[0.0], DType::F64, None);
    let still = [Group { end: 1, lr_multiplier: 1.0, weight_decay: 0.0 }];
    run.step(&AdamWStep { lr: 0.1, eps: 1e-3, ..asked(1, &still) }, &[1e-3]);
    assert!((run.values()[0] + 0.05).abs() < 1e-12);
}

#[test]
fn many_steps_agree_with_the_published_algorithm() {
    let start = wide("start", 5000);
    for groups in [PLAIN, GROUPS] {
        for clip in [None, Some(3.0), Some(1e9)] {
            let run = Run::new(&start, DType::F64, None);
            for t in 1..=12 {
                run.step(&AdamWStep { clip, ..asked(t, groups) }, &grads(t, 5000));
            }
            let want = reference(&start, 12, groups, clip, false);
            assert!(worst(&run.values(), &want) < 1e-12);
            // A published step that left the decay out is told apart.
            let undecayed: Vec<Group> = groups.iter().map(|g| Group { weight_decay: 0.0, ..*g }).collect();
            assert!(worst(&run.values(), &reference(&start, 12, &undecayed, clip, false)) > 1e-4);
        }
    }
}

fn f32_stays_within_rounding_of_f64() {
    let start: Vec<f64> = wide("start", 5000).iter().map(|&v| f64::from(v as f32)).collect();
    let run = Run::new(&start, DType::F32, None);
    for t in 1..=12 {
        run.step(&AdamWStep { clip: Some(3.0), ..asked(t, GROUPS) }, &grads(t, 5000));
    }
    let want = reference(&start, 12, GROUPS, Some(3.0), true);
    // A step is at most some ten learning rates long and good to some twenty roundings; p is rounded twice a step.
    let size: Vec<f64> = start.iter().zip(&want).map(|(a, b)| a.abs().max(b.abs()) + 10.0 * 0.02).collect();
    let outcome = compare::bound(&run.values(), &want, &size, 12 * 20, DType::F32);
    assert!(outcome.ok(), "{outcome:?}");
}

fn the_working_copy_is_the_master_rounded() {
    for dtype in [DType::F16, DType::BF16] {
        for n in [1, 3, 1023, 1024, 20_000] {
            let run = Run::new(&wide("start", n), DType::F32, Some(dtype));
            let groups = [Group { end: n, lr_multiplier: 1.0, weight_decay: 0.1 }];
            run.step(&AdamWStep { zero_grads: true, ..asked(1, &groups) }, &grads(1, n));
            let rounded = run.params.cast(dtype).unwrap().to_bytes().unwrap();
            assert_eq!(run.working.as_ref().unwrap().to_bytes().unwrap(), rounded);
            assert!(run.grads.to_f64_vec().unwrap().iter().all(|&g| g == 0.0));
        }
    }
    // The master itself as its working copy needs no second writing.
    let run = Run::new(&[1.0, 2.0], DType::F32, None);
    let same = Buffers { working: Some(&run.params), ..run.buffers() };
    let groups = [Group { end: 2, lr_multiplier: 1.0, weight_decay: 0.0 }];
    assert_eq!(Desc::new(&asked(1, &groups), &same).unwrap().working, None);
    step(&asked(1, &groups), &same).unwrap();
}

fn the_norm_is_measured_where_it_is_asked_for_and_clips_only_above_its_limit() {
    for n in [1, 4, 1025, 5000, 70_000] {
        let groups = [Group { end: n, lr_multiplier: 1.0, weight_decay: 0.0 }];
        let g: Vec<f64> = crate::testing::integers("g", n, 3).iter().map(|&v| f64::from(v)).collect();
        let norm = g.iter().map(|g| g * g).sum::<f64>().sqrt() as f32;
        let run = |asked: AdamWStep| {
            let run = Run::new(&vec![0.0; n], DType::F32, None);
            run.step(&asked, &g);
            (run.scratch.norm().to_f32_vec().unwrap()[0], run.m.to_f32_vec().unwrap())
        };
        let (none, free) = run(asked(1, &groups));
        assert_eq!(none, 0.0);
        let (measured, same) = run(AdamWStep { measure_norm: true, ..asked(1, &groups) });
        assert_eq!((measured, &same), (norm, &free));
        let (measured, same) = run(AdamWStep { clip: Some(1e6), ..asked(1, &groups) });
        assert_eq!((measured, &same), (norm, &free));
        let (_, halved) = run(AdamWStep { clip: Some(f64::from(norm) / 2.0 + 5e-7), ..asked(1, &groups) });
        let close = |(a, b): (&f32, &f32)| (a - b / 2.0).abs() <= 1e-5 * b.abs();
        assert!(norm == 0.0 || halved.iter().zip(&free).all(close));
    }
}

fn nan_and_infinite_gradients_show() {
    for bad in [f64::NAN, f64::INFINITY] {
        let run = Run::new(&[1.0, 2.0], DType::F32, None);
        let groups = [Group { end: 2, lr_multiplier: 1.0, weight_decay: 0.0 }];
        run.step(&AdamWStep { clip: Some(1.0), ..asked(1, &groups) }, &[bad, 1.0]);
        assert!(!run.scratch.norm().to_scalar().unwrap().is_finite());
        assert!(run.values()[0].is_nan());
        assert_eq!(run.values()[1].is_nan(), bad.is_nan());
    }
}

#[test]
fn the_number_of_threads_and_a_pause_change_no_bit() {
    let run = |threads: usize, pause: bool| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let groups = [Group { end: 40_000, lr_multiplier: 1.0, weight_decay: 0.01 }];
            let mut run = Run::new(&wide("start", 40_000), DType::F32, Some(DType::BF16));
            for t in 1..=4 {
                if pause && t == 3 {
                    let (params, m, v) = (run.params.duplicate(), run.m.duplicate(), run.v.duplicate());
                    run = Run::new(&[0.0; 40_000], DType::F32, Some(DType::BF16));
                    (run.params, run.m, run.v) = (params.unwrap(), m.unwrap(), v.unwrap());
                }
                run.step(&AdamWStep { clip: Some(1.0), ..asked(t, &groups) }, &grads(t, 40_000));
            }
            (run.params.to_bytes().unwrap(), run.working.unwrap().to_bytes().unwrap())
        })
    };
    let first = run(1, false);
    assert_eq!(first, run(3, false));
    assert_eq!(first, run(2, true));
}

fn no_parameters_are_fine() {
    let run = Run::new(&[], DType::F32, None);
    let groups = [Group { end: 0, lr_multiplier: 1.0, weight_decay: 0.0 }];
    run.step(&AdamWStep { clip: Some(1.0), ..asked(1, &groups) }, &[]);
    assert_eq!(run.scratch.norm().to_scalar().unwrap(), 0.0);
}

#[test]
fn numbers_outside_their_range_are_refused() {
    let run = Run::new(&[1.0; 8], DType::F32, None);
    let group = Group { end: 8, lr_multiplier: 1.0, weight_decay: 0.0 };
    let groups = [group];
    let refused = |name: &str, asked: AdamWStep| match step(&asked, &run.buffers()) {
        Err(Error::Value { argument, .. }) => assert_eq!(argument, name),
        other => panic!("{name}: {other:?}"),
    };
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        refused("lr", AdamWStep { lr: bad, ..asked(1, &groups) });
        refused("beta1", AdamWStep { beta1: bad, ..asked(1, &groups) });
        refused("beta2", AdamWStep { beta2: bad, ..asked(1, &groups) });
        refused("eps", AdamWStep { eps: bad, ..asked(1, &groups) });
        refused("clip", AdamWStep { clip: Some(bad), ..asked(1, &groups) });
        refused("weight_decay", asked(1, &[Group { weight_decay: bad, ..group }]));
        refused("lr_multiplier", asked(1, &[Group { lr_multiplier: bad, ..group }]));
    }
    refused("beta1", AdamWStep { beta1: 1.0, ..asked(1, &groups) });
    refused("eps", AdamWStep { eps: 0.0, ..asked(1, &groups) });
    refused("eps", AdamWStep { eps: 1e-60, ..asked(1, &groups) });
    refused("clip", AdamWStep { clip: Some(0.0), ..asked(1, &groups) });
    refused("step", asked(0, &groups));
    refused("groups", asked(1, &[]));
    refused("groups", asked(1, &[group; 9]));
    refused("groups", asked(1, &[Group { end: 7, ..group }]));
    refused("groups", asked(1, &[Group { end: 9, ..group }]));
    refused("groups", asked(1, &[group, Group { end: 4, ..group }]));
    assert_eq!(run.values(), [1.0; 8], "a refused step changes nothing");
}

#[test]
fn buffers_that_do_not_fit_are_refused() {
    let run = Run::new(&[1.0; 8], DType::F32, None);
    let other = Run::new(&[1.0; 4], DType::F64, None);
    let groups = [Group { end: 8, lr_multiplier: 1.0, weight_decay: 0.0 }];
    let of = |buffers: Buffers| step(&asked(1, &groups), &buffers);
    let good = run.buffers();
    assert!(matches!(of(Buffers { m: &other.m, ..good }), Err(Error::Shape { argument: "m", .. })));
    assert!(matches!(of(Buffers { scratch: &other.scratch, ..good }), Err(Error::DType { argument: "scratch", .. })));
    let f32s = Tensor::zeros(&device(), &[8], DType::F32).unwrap();
    assert!(matches!(of(Buffers { working: Some(&f32s), ..good }), Err(Error::DType { argument: "working", .. })));
    let there = Tensor::empty(&Device::trace(80), &[8], DType::F32).unwrap();
    assert!(matches!(of(Buffers { v: &there, ..good }), Err(Error::DeviceMismatch { argument: "v", .. })));
    let halves = Tensor::zeros(&device(), &[8], DType::F16).unwrap();
    assert!(matches!(of(Buffers { params: &halves, ..good }), Err(Error::DType { argument: "params", .. })));
}

#[test]
fn the_plan_is_one_launch_or_two() {
    let device = Device::trace(80);
    let n = 100_003;
    let tensor = |dtype| Tensor::empty(&device, &[n], dtype).unwrap();
    let (params, grads, m, v) = (tensor(DType::F32), tensor(DType::F32), tensor(DType::F32), tensor(DType::F32));
    let working = tensor(DType::BF16);
    let scratch = Scratch::new(&device, DType::F32).unwrap();
    let buffers = Buffers { params: &params, working: Some(&working), grads: &grads, m: &m, v: &v, scratch: &scratch };
    let plan = |asked: &AdamWStep| gpu::step(&Desc::new(asked, &buffers).unwrap(), &buffers).unwrap();
    let group = |end| Group { end, lr_multiplier: 1.0, weight_decay: 0.5 };
    let one = plan(&asked(1, &[group(n)]));
    let p: gpu::Step = one[0].params.read().unwrap();
    assert_eq!((one.len(), one[0].kernel.row().symbol), (1, "adamw_step_bf16_t256_sm80"));
    assert_eq!((p.partials, p.groups, p.vector, p.rates[0].end, p.clip), (0, 1, 1, n as u64, 0.0));
    assert_eq!(p.rates[0].keep, 0.995);
    let two = plan(&AdamWStep { clip: Some(2.0), zero_grads: true, ..asked(1, &[group(6), group(n)]) });
    let (norm, p): (gpu::Norm, gpu::Step) = (two[0].params.read().unwrap(), two[1].params.read().unwrap());
    assert_eq!((two.len(), norm.count, norm.piece, two[0].grid[0]), (2, 98, 1024, 98));
    assert_eq!((p.partials, p.partial_count, p.clip, p.zero_grads), (norm.partials, 98, 2.0, 1));
    assert_eq!(p.vector, 0, "four elements would straddle two groups");
    let doubles = Scratch::new(&device, DType::F64).unwrap();
    let f64s = tensor(DType::F64);
    let wide = Buffers { params: &f64s, working: None, grads: &f64s, m: &f64s, v: &f64s, scratch: &doubles };
    assert!(matches!(step(&asked(1, &[group(n)]), &wide), Err(Error::DType { .. })));
}
