use std::path::Path;

use super::choose::Move;
use super::*;
use crate::adapters::{
    AdaptedLinear, HeadInit, InsertPoint, LoraConfig, merge_all, native_adapter, restore_native, train_head,
    unmerge_all,
};
use crate::autograd::{Grads, Tape, Var};
use crate::dtype::DType;
use crate::format::peft::Modules;
use crate::ops::{Activation, activation};
use crate::optim::{AdamW, AdamWConfig, Carry, DensitySchedule};
use crate::rng::Stream;
use crate::tensor::{BlockSparse, FrozenWeight, Init};
use crate::testing::normal;

/// `fc2(relu(fc1 x))` with a place after it: 40 features in, 48 in between, 32 out.
struct Toy {
    fc1: AdaptedLinear,
    fc2: AdaptedLinear,
    after: InsertPoint,
}

const K: usize = 40;
const H: usize = 48;
const N: usize = 32;
const M: usize = 5;

impl Toy {
    fn new(dtype: DType) -> Self {
        let linear = |name: &str, n: usize, k: usize| {
            let values: Vec<f32> = normal(name, n * k).iter().map(|v| v * 0.3).collect();
            let weight = Tensor::from_f32(&Device::cpu(), &[n, k], &values, dtype).unwrap();
            AdaptedLinear::new(name, FrozenWeight::new(weight).unwrap(), None)
        };
        let (fc1, fc2) = (linear("mlp.fc1", H, K), linear("mlp.fc2", N, H));
        Toy { fc1, fc2, after: InsertPoint::new("mlp", N) }
    }

    fn forward(&self, tape: &mut Tape, dtype: DType) -> Var {
        let x = Tensor::from_f32(&Device::cpu(), &[M, K], &normal("x", M * K), dtype).unwrap();
        let h = self.fc1.forward(tape, &Var::constant(x)).unwrap();
        let h = activation(tape, &h, Activation::Relu).unwrap();
        let y = self.fc2.forward(tape, &h).unwrap();
        let residual = Var::constant(Tensor::zeros(&Device::cpu(), &[M, N], dtype).unwrap());
        self.after.forward(tape, &residual, y).unwrap()
    }

    fn output(&self, params: &ParamSet) -> Vec<f64> {
        self.forward(&mut Tape::inference(params), params.dtype()).tensor().to_f64_vec().unwrap()
    }

    /// Adds the gradient of `Σ c ⊙ y` for a fixed c.
    fn backward(&self, params: &ParamSet, grads: &mut Grads) {
        let mut tape = Tape::deterministic(params);
        let y = self.forward(&mut tape, params.dtype());
        let c = Tensor::from_f32(&Device::cpu(), &[M, N], &normal("c", M * N), params.dtype()).unwrap();
        tape.backward_with(&y, c, grads).unwrap();
    }
}

impl Trunk for Toy {
    fn linears(&mut self) -> Result<Vec<&mut AdaptedLinear>> {
        Ok(vec![&mut self.fc1, &mut self.fc2])
    }

    fn inserts(&mut self) -> Result<Vec<&mut InsertPoint>> {
        Ok(vec![&mut self.after])
    }
}

fn delta(low_rank: bool) -> BlockSparseConfig {
    let lora = LoraConfig { rank: 3, alpha: 6.0, ..LoraConfig::default() };
    BlockSparseConfig {
        targets: Modules::Names(vec!["fc1".into(), "fc2".into()]),
        block: 16,
        allocation: Allocation::Global,
        low_rank: low_rank.then_some(lora),
    }
}

fn bottleneck(up_std: f64) -> SparseAdapterConfig {
    let (places, activation) = (vec!["mlp".into()], Activation::Relu);
    SparseAdapterConfig { places, width: 32, block: 16, activation, scale: 1.0, up_std }
}

/// Random blocks of every site.
fn random_patterns(family: &dyn Family, toy: &mut Toy, density: f64, seed: u64) -> Patterns {
    let shapes = family.shapes(toy).unwrap();
    let draw = |(name, shape): (String, [usize; 2])| {
        let stream = Stream::named(seed, 0, &name);
        (name, BlockPattern::random(&Device::cpu(), shape, family.block(), density, stream).unwrap())
    };
    shapes.into_iter().map(draw).collect()
}

fn attached(family: &dyn Family, toy: &mut Toy, patterns: &Patterns, dtype: DType) -> ParamSet {
    let mut builder = ParamSetBuilder::new();
    family.attach(toy, patterns, None, &mut builder).unwrap();
    builder.build(&Device::cpu(), dtype, 5).unwrap()
}

/// Every parameter N(0, 0.2²), beyond the matrices' edges zero.
fn fill(params: &ParamSet, patterns: &Patterns) {
    for id in params.ids() {
        let param = params.get(id).unwrap();
        let mut values: Vec<f32> = normal(&param.name, param.numel()).iter().map(|v| v * 0.2).collect();
        if let Some(pattern) = param.name.strip_suffix(".values").and_then(|name| patterns.get(name)) {
            let mut inside = vec![0.0; values.len()];
            pattern.topology().for_row_pieces(|at, _, len| inside[at..at + len].copy_from_slice(&values[at..at + len]));
            values = inside;
        }
        params.set(id, &values).unwrap();
    }
}

fn close(a: &[f64], b: &[f64], tolerance: f64) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * b.abs().max(1.0))
}

/// A property over random patterns: the update beside the weight, the merged weight, and the trunk after unmerging agree; so do gradients
/// and those of the dense weight at the blocks.
#[test]
fn forward_gradients_and_merge_agree_for_random_patterns() {
    for seed in 0..12 {
        for low_rank in [false, true] {
            let (mut toy, family) = (Toy::new(DType::F64), delta(low_rank));
            let patterns = random_patterns(&family, &mut toy, 0.1 + 0.07 * seed as f64, seed);
            let params = attached(&family, &mut toy, &patterns, DType::F64);
            fill(&params, &patterns);
            let beside = toy.output(&params);
            let mut grads = Grads::zeros(&params).unwrap();
            toy.backward(&params, &mut grads);
            let reports = merge_all(&mut toy, &params).unwrap();
            assert_eq!(reports.len(), 2);
            assert!(close(&toy.output(&params), &beside, 1e-12), "seed {seed}");
            // The merged weights, made to learn whole, have the gradient of which the blocks hold parts.
            let mut builder = ParamSetBuilder::new();
            let mut dense = Toy { fc1: toy.fc1.clone(), fc2: toy.fc2.clone(), after: toy.after.clone() };
            for module in ["mlp.fc1", "mlp.fc2"] {
                train_head(&mut dense, module, HeadInit::FromTrunk, &mut builder).unwrap();
            }
            let whole = builder.build(&Device::cpu(), DType::F64, 0).unwrap();
            let mut whole_grads = Grads::zeros(&whole).unwrap();
            dense.backward(&whole, &mut whole_grads);
            for (name, pattern) in &patterns {
                let module = name.trim_end_matches(".block_sparse");
                let id = whole.find(&format!("{module}.weight")).unwrap();
                let dw = whole_grads.view(id).unwrap().contiguous().unwrap();
                let want = BlockSparse::sample(pattern.clone(), &dw).unwrap().values().to_f64_vec().unwrap();
                let got = grads.view(params.find(&format!("{name}.values")).unwrap()).unwrap();
                // Weights of the dense layer start as f32 values of the f64 ones.
                assert!(close(&got.contiguous().unwrap().to_f64_vec().unwrap(), &want, 1e-5), "seed {seed} {name}");
            }
            assert_eq!(unmerge_all(&mut toy).unwrap(), 2);
            assert!(toy.output(&params) == beside, "unmerging restores every bit");
            assert_eq!(unmerge_all(&mut toy).unwrap(), 0);
        }
    }
}

#[test]
fn the_merge_report_counts_what_rounding_did() {
    let (mut toy, family) = (Toy::new(DType::BF16), delta(false));
    let patterns = random_patterns(&family, &mut toy, 0.5, 1);
    let params = attached(&family, &mut toy, &patterns, DType::BF16);
    let id = params.find("mlp.fc1.block_sparse.values").unwrap();
    let numel = params.get(id).unwrap().numel();
    // Far below half a unit in the last place of any weight above 2⁻¹⁶: nothing comes of it.
    params.set(id, &vec![1e-12; numel]).unwrap();
    let before = toy.fc1.weight().to_f32_vec().unwrap();
    let report = toy.fc1.merge(&params).unwrap();
    let covered = patterns["mlp.fc1.block_sparse"].topology().covered();
    assert_eq!((report.elements, report.updated), (H * K, covered));
    assert!(report.lost == report.rounded && report.lost > covered * 9 / 10, "{report}");
    assert!(report.max_error > 0.0 && report.max_error <= 1.1e-12, "{report}");
    assert!(toy.fc1.merge(&params).is_err(), "merged twice");
    assert!(toy.fc1.unmerge());
    assert_eq!(toy.fc1.weight().to_f32_vec().unwrap(), before);
    // A sum that is a value of the dtype is not rounded.
    let zeros = vec![0.0; numel];
    params.set(id, &zeros).unwrap();
    let report = toy.fc1.merge(&params).unwrap();
    assert_eq!((report.updated, report.rounded, report.max_error), (0, 0, 0.0));
}

fn scores(of: &[(&str, &[f64])]) -> Scores {
    of.iter().map(|(name, values)| (name.to_string(), values.to_vec())).collect()
}

fn blocks(patterns: &Patterns, name: &str) -> Vec<(u32, u32)> {
    patterns.get(name).map_or(Vec::new(), |p| p.topology().blocks().collect())
}

#[test]
fn the_best_blocks_are_chosen_among_all_or_within_each_site() {
    let device = Device::cpu();
    let shapes = [("a".to_string(), [32, 32]), ("b".to_string(), [16, 40])];
    let scores = scores(&[("a", &[1.0, 9.0, 2.0, 3.0]), ("b", &[8.0, 8.0, 0.5])]);
    let pick = |density, allocation| choose(&device, 16, &shapes, &scores, density, allocation).unwrap();
    let global = pick(3.0 / 7.0, Allocation::Global);
    assert_eq!((blocks(&global, "a"), blocks(&global, "b")), (vec![(0, 1)], vec![(0, 0), (0, 1)]));
    let one = pick(0.01, Allocation::Global);
    assert_eq!((blocks(&one, "a"), blocks(&one, "b")), (vec![(0, 1)], vec![]));
    let each = pick(0.01, Allocation::PerSite);
    // Of two equals the earlier one.
    assert_eq!((blocks(&each, "a"), blocks(&each, "b")), (vec![(0, 1)], vec![(0, 0)]));
    assert_eq!(pick(1.0, Allocation::Global).values().map(BlockPattern::nnz).sum::<usize>(), 7);
}

#[test]
fn scores_and_densities_that_tell_nothing_are_refused() {
    let shapes = [("a".to_string(), [32, 16])];
    let pick = |values: &[f64], density, block| {
        let scores = scores(&[("a", values)]);
        choose(&Device::cpu(), block, &shapes, &scores, density, Allocation::Global).unwrap_err().to_string()
    };
    for density in [0.0, -0.5, 1.5, f64::NAN] {
        assert!(pick(&[1.0, 2.0], density, 16).contains("density"), "{density}");
    }
    assert!(pick(&[0.0, 0.0], 0.5, 16).contains("SNIP"));
    assert!(pick(&[0.0, f64::NAN], 0.5, 16).contains("NaN"));
    assert!(pick(&[1.0], 0.5, 16).contains("2 scores"));
    for block in [0, 8, 24, 256] {
        assert!(pick(&[1.0, 2.0], 0.5, block).contains("block"), "{block}");
    }
}

#[test]
fn moving_keeps_the_strong_drops_the_zero_and_fills_by_score() {
    let device = Device::cpu();
    let shapes = [("a".to_string(), [16, 96])];
    let now: Patterns =
        [("a".to_string(), BlockPattern::from_blocks(&device, [16, 96], 16, &[(0, 0), (0, 2), (0, 4)]).unwrap())]
            .into();
    let norms = scores(&[("a", &[0.5, 0.0, 3.0])]);
    let scores = scores(&[("a", &[9.0, 1.0, 9.0, 4.0, 9.0, 2.0])]);
    let to = |density, regrow, fill| {
        let how = Move { density, allocation: Allocation::Global, regrow, fill };
        let next = move_blocks(&device, 16, &shapes, &now, &norms, &scores, how).unwrap();
        blocks(&next, "a").into_iter().map(|b| b.1).collect::<Vec<_>>()
    };
    // 2 is zero and goes; 3 is the best of those that were not there.
    assert_eq!(to(0.5, 0.0, true), [0, 3, 4]);
    // Two of three give way: only the strongest stays.
    assert_eq!(to(0.5, 0.5, true), [3, 4, 5]);
    assert_eq!(to(1.0 / 6.0, 0.0, true), [4]);
    assert_eq!(to(1.0, 0.0, true), [0, 1, 3, 4, 5]);
    assert_eq!(to(0.5, 0.9, false), [0, 4]);
    // Rising densities keep what there is.
    assert_eq!(to(4.0 / 6.0, 0.0, true), [0, 3, 4, 5]);
}

fn scored(family: &dyn Family, toy: &mut Toy, patterns: &Patterns, params: &ParamSet, saliency: bool) -> Scores {
    let sites = family.sites(toy, patterns, params).unwrap();
    let probe = Probe::new(&Device::cpu(), family.block(), &sites, saliency).unwrap();
    let mut builder = ParamSetBuilder::new();
    family.attach(toy, patterns, Some(&probe), &mut builder).unwrap();
    let probed = builder.build(&Device::cpu(), params.dtype(), 5).unwrap();
    Carry::whole().values(params, &probed).unwrap();
    let mut grads = Grads::zeros(&probed).unwrap();
    toy.backward(&probed, &mut grads);
    probe.read(&grads).unwrap()
}

/// Gradients of all blocks at once, and their scores without the dense gradient.
#[test]
fn scores_are_those_of_the_dense_gradient() {
    let family = delta(false);
    let mut toy = Toy::new(DType::F64);
    let full = random_patterns(&family, &mut toy, 1.0, 0);
    let params = attached(&family, &mut toy, &full, DType::F64);
    let mut grads = Grads::zeros(&params).unwrap();
    toy.backward(&params, &mut grads);
    let mut bare = Toy::new(DType::F64);
    let none = attached(&family, &mut bare, &Patterns::new(), DType::F64);
    let squares = scored(&family, &mut bare, &Patterns::new(), &none, false);
    let saliency = scored(&family, &mut bare, &Patterns::new(), &none, true);
    for site in family.sites(&mut toy, &full, &params).unwrap() {
        let id = params.find(&format!("{}.values", site.name)).unwrap();
        let g = grads.view(id).unwrap().contiguous().unwrap().to_f64_vec().unwrap();
        let w = BlockSparse::sample(full[&site.name].clone(), &site.weight).unwrap().values().to_f64_vec().unwrap();
        let of = |f: &dyn Fn(usize) -> f64| -> Vec<f64> {
            (0..g.len() / 256).map(|e| (e * 256..(e + 1) * 256).map(f).sum()).collect()
        };
        assert!(close(&squares[&site.name], &of(&|i| g[i] * g[i]), 1e-10), "{}", site.name);
        assert!(close(&saliency[&site.name], &of(&|i| (g[i] * w[i]).abs()), 1e-10), "{}", site.name);
    }
}

fn sparsity(score: Score, start: f64, end: f64) -> Sparsity {
    let schedule = DensitySchedule::new(start, end, 2, 6, 2).unwrap();
    Sparsity { score, schedule, regrow: 0.25, lasso: 0.0, preconditioned: false }
}

#[test]
fn snip_of_a_zero_up_projection_says_so() {
    for (up_std, works) in [(0.0, false), (0.05, true)] {
        let (mut toy, family) = (Toy::new(DType::F32), bottleneck(up_std));
        let start = family.start(&mut toy, &Device::cpu()).unwrap();
        let params = attached(&family, &mut toy, &start, DType::F32);
        let scores = scored(&family, &mut toy, &start, &params, true);
        let sites = family.sites(&mut toy, &start, &params).unwrap();
        let chosen = sparsity(Score::Snip, 0.5, 0.5).next(0, 0, &family, &sites, &start, &params, Some(scores));
        match chosen {
            Ok(patterns) => assert!(works && patterns.values().all(|p| p.nnz() == 2), "{patterns:?}"),
            Err(error) => assert!(!works && error.to_string().contains("up-projection of zeros"), "{error}"),
        }
    }
}

/// With U zero nothing flows to D at first, by design; with both learning, the second step moves both.
#[test]
fn a_zero_up_projection_starts_from_the_trunk_and_still_learns() {
    let (mut toy, family) = (Toy::new(DType::F32), bottleneck(0.0));
    let before = toy.output(&ParamSet::none(&Device::cpu(), DType::F32).unwrap());
    let patterns = random_patterns(&family, &mut toy, 0.5, 3);
    let params = attached(&family, &mut toy, &patterns, DType::F32);
    assert_eq!(toy.output(&params), before);
    let mut optimizer = AdamW::new(AdamWConfig::default(), &params).unwrap();
    let mut grads = Grads::zeros(&params).unwrap();
    toy.backward(&params, &mut grads);
    let audit = grads.audit().unwrap();
    audit.require_learning().unwrap();
    assert_eq!(audit.zero_by_design, ["mlp.sparse_down.values"]);
    optimizer.step(&params, &grads, 0.01).unwrap();
    toy.backward(&params, &mut grads);
    assert!(grads.audit().unwrap().zero_by_design.is_empty());
    assert_ne!(toy.output(&params), before);
}

/// With one block in each projection they must meet; a gradient that knows nothing of D while U is zero must not decide.
#[test]
fn the_two_halves_of_a_bottleneck_meet() {
    for density in [0.25, 0.5, 0.75] {
        let (mut toy, family) = (Toy::new(DType::F32), bottleneck(0.0));
        let start = family.start(&mut toy, &Device::cpu()).unwrap();
        let params = attached(&family, &mut toy, &start, DType::F32);
        let scores = scored(&family, &mut toy, &start, &params, false);
        let sites = family.sites(&mut toy, &start, &params).unwrap();
        let chosen = family.choose(&Device::cpu(), &sites, &scores, density).unwrap();
        let made: Vec<u32> = blocks(&chosen, "mlp.sparse_down").iter().map(|b| b.0).collect();
        let read: Vec<u32> = blocks(&chosen, "mlp.sparse_up").iter().map(|b| b.1).collect();
        assert!(made.iter().all(|f| read.contains(f)) && read.iter().all(|f| made.contains(f)), "{chosen:?}");
        assert_eq!(made.len(), (4.0 * density) as usize);
    }
}

#[test]
fn large_sparse_keeps_the_number_of_parameters() {
    let base = bottleneck(0.0);
    for k in [1, 2, 4] {
        let (wide, density) = base.large_sparse(k);
        let mut toy = Toy::new(DType::F32);
        let patterns = random_patterns(&wide, &mut toy, density, 1);
        let params = attached(&wide, &mut toy, &patterns, DType::F32);
        assert_eq!(params.numel(), 2 * 32 * N, "k = {k}");
    }
}

/// Runs `steps` steps with moves; returns the patterns of each and the final parameters.
fn train(family: &dyn Family, sparsity: &Sparsity, steps: u64) -> (Vec<Patterns>, ParamSet, usize) {
    let device = Device::cpu();
    let mut toy = Toy::new(DType::F32);
    let mut patterns = family.start(&mut toy, &device).unwrap();
    let mut params = attached(family, &mut toy, &patterns, DType::F32);
    let mut optimizer = AdamW::new(AdamWConfig::default(), &params).unwrap();
    let mut seen = Vec::new();
    for step in 0..steps {
        if sparsity.is_due(step) {
            let sites = family.sites(&mut toy, &patterns, &params).unwrap();
            let probe = sparsity.probe(&device, family, &sites, step).unwrap();
            let scores = probe.map(|probe| {
                let mut builder = ParamSetBuilder::new();
                family.attach(&mut toy, &patterns, Some(&probe), &mut builder).unwrap();
                let probed = builder.build(&device, DType::F32, 5).unwrap();
                Carry::whole().values(&params, &probed).unwrap();
                let mut grads = Grads::zeros(&probed).unwrap();
                toy.backward(&probed, &mut grads);
                probe.read(&grads).unwrap()
            });
            let next = sparsity.next(step, 7, family, &sites, &patterns, &params, scores).unwrap();
            let carry = carry_blocks(&patterns, &next);
            let old = std::mem::replace(&mut params, attached(family, &mut toy, &next, DType::F32));
            carry.values(&old, &params).unwrap();
            optimizer = carry.optimizer(&old, &params, &optimizer).unwrap();
            patterns = next;
        }
        let mut grads = Grads::zeros(&params).unwrap();
        toy.backward(&params, &mut grads);
        optimizer.step(&params, &grads, 0.02).unwrap();
        sparsity.proximal_step(&patterns, &params, &optimizer, 0.02).unwrap();
        seen.push(patterns.clone());
    }
    let bytes = optimizer.moments().0.byte_len() + optimizer.moments().1.byte_len();
    (seen, params, bytes)
}

fn count(patterns: &Patterns) -> usize {
    patterns.values().map(BlockPattern::nnz).sum()
}

#[test]
fn densities_follow_the_cubic_and_state_is_as_large_as_the_blocks() {
    // fc1 has 3 x 3 blocks, fc2 2 x 3: fifteen.
    for score in [Score::Random, Score::Magnitude, Score::Gradient, Score::Snip] {
        for (start, end) in [(0.2, 0.8), (0.8, 0.2)] {
            let sparsity = sparsity(score, start, end);
            let (seen, params, bytes) = train(&delta(false), &sparsity, 8);
            for (step, patterns) in seen.iter().enumerate() {
                let moved = (step as u64 / 2 * 2).min(6);
                let want = (sparsity.schedule.at(if moved < 2 { 0 } else { moved }) * 15.0).round() as usize;
                assert_eq!(count(patterns), want, "{score:?} step {step}");
            }
            let blocks = count(seen.last().unwrap());
            assert_eq!((params.numel(), params.flat_len()), (blocks * 256, blocks * 256));
            assert_eq!(bytes, 2 * 4 * blocks * 256, "moments of the blocks that exist, and of no others");
        }
    }
    let same = |family: &dyn Family| {
        let [a, b] = [0, 1].map(|_| train(family, &sparsity(Score::Gradient, 0.3, 0.6), 8));
        assert_eq!(a.0, b.0);
        assert_eq!(a.1.master().to_bytes().unwrap(), b.1.master().to_bytes().unwrap());
    };
    same(&delta(true));
    same(&bottleneck(0.05));
}

/// Values, gradients and both moments.
#[test]
fn buffers_hold_bytes_in_proportion_to_the_blocks() {
    let held = |density: f64| {
        let (mut toy, family) = (Toy::new(DType::F32), delta(false));
        let patterns = random_patterns(&family, &mut toy, density, 2);
        let params = attached(&family, &mut toy, &patterns, DType::F32);
        let optimizer = AdamW::new(AdamWConfig::default(), &params).unwrap();
        let grads = Grads::zeros(&params).unwrap();
        let flat = [params.master(), grads.flat(), optimizer.moments().0, optimizer.moments().1];
        let bytes: usize = flat.iter().map(|t| t.buffer().bytes()).sum();
        assert_eq!(bytes, 16 * 256 * count(&patterns));
        bytes
    };
    assert_eq!(held(1.0), 16 * 256 * 15);
    assert!(held(0.2) * 4 < held(1.0));
}

#[test]
fn moved_blocks_keep_their_values_and_new_ones_start_at_zero() {
    let device = Device::cpu();
    let pattern = |blocks: &[(u32, u32)]| BlockPattern::from_blocks(&device, [32, 32], 16, blocks).unwrap();
    let old: Patterns = [("s".to_string(), pattern(&[(0, 0), (1, 0), (1, 1)]))].into();
    let new: Patterns = [("s".to_string(), pattern(&[(0, 1), (1, 1)])), ("t".to_string(), pattern(&[(0, 0)]))].into();
    let build = |patterns: &Patterns, init: f32| {
        let mut builder = ParamSetBuilder::new();
        for (name, pattern) in patterns {
            let values = (0..pattern.nnz() * 256).map(|i| init * (i + 1) as f32).collect();
            builder.add(format!("{name}.values"), &pattern.value_dims(), Init::Values(values)).unwrap();
        }
        builder.build(&device, DType::F32, 0).unwrap()
    };
    let (before, after) = (build(&old, 1.0), build(&new, 0.0));
    carry_blocks(&old, &new).values(&before, &after).unwrap();
    let values = after.master().to_f32_vec().unwrap();
    assert!(values[..256].iter().all(|&v| v == 0.0));
    assert_eq!(values[256..512], (513..769).map(|i| i as f32).collect::<Vec<_>>());
    assert!(values[512..].iter().all(|&v| v == 0.0));
}

/// W_b = [[3, 0], [0, 4]] with a threshold of 2 shrinks by 0.6, with 5 or more to zero.
#[test]
fn the_proximal_step_has_its_golden_values() {
    let device = Device::cpu();
    let pattern = BlockPattern::full(&device, [16, 16], 16).unwrap();
    let patterns: Patterns = [("s".to_string(), pattern)].into();
    let mut start = vec![0.0f32; 256];
    (start[0], start[17]) = (3.0, 4.0);
    let step_of = |v: f32, lasso: f64, preconditioned: bool| {
        let mut builder = ParamSetBuilder::new();
        let id = builder.add("s.values", &[1, 16, 16], Init::Values(start.clone())).unwrap();
        let params = builder.build(&device, DType::F32, 0).unwrap();
        let mut optimizer = AdamW::new(AdamWConfig { eps: 0.0, ..AdamWConfig::default() }, &params).unwrap();
        let v = Tensor::from_slice(&device, &[256], &[v; 256]).unwrap();
        optimizer.restore(&Tensor::zeros(&device, &[256], DType::F32).unwrap(), &v, 1).unwrap();
        let sparsity = Sparsity { lasso, preconditioned, ..Sparsity::fixed(Score::Random, 1.0).unwrap() };
        sparsity.proximal_step(&patterns, &params, &optimizer, 0.5).unwrap();
        let values = params.tensor(id).unwrap().to_f64_vec().unwrap();
        (values[0], values[17])
    };
    // v̂ = 4 everywhere after one step: v = (1 − β₂)·4.
    let step = |lasso, preconditioned| step_of(0.004, lasso, preconditioned);
    let near = |(a, b): (f64, f64), (x, y): (f64, f64)| (a - x).abs() < 1e-5 && (b - y).abs() < 1e-5;
    // η λ b = 0.5 · 0.25 · 16 = 2.
    assert!(near(step(0.25, false), (1.8, 2.4)));
    // Twice that over √4.
    assert!(near(step(0.5, true), (1.8, 2.4)));
    assert_eq!(step(0.625, false), (0.0, 0.0));
    assert_eq!(step(0.0, false), (3.0, 4.0));
    // No gradient has come here yet, and Adam takes no step.
    assert_eq!(step_of(0.0, 0.5, true), (3.0, 4.0));
}

#[test]
fn a_lasso_frees_places_and_its_last_move_only_takes_away() {
    // A step moves a block by at most 0.32, and the threshold is 0.48.
    let strong = Sparsity { lasso: 1.5, ..sparsity(Score::Gradient, 0.8, 0.8) };
    let (seen, _, _) = train(&delta(false), &strong, 8);
    assert_eq!(count(&seen[0]), 12);
    assert!(count(&seen[7]) < 12, "{}", count(&seen[7]));
    assert!(count(&seen[7]) >= 1);
}

#[test]
fn adapters_come_back_from_files_and_others_are_refused() {
    let dir = std::env::temp_dir().join(format!("graftwork-blocks-{}", std::process::id()));
    for family in [&delta(true) as &dyn Family, &bottleneck(0.1)] {
        let mut toy = Toy::new(DType::F32);
        let patterns = random_patterns(family, &mut toy, 0.4, 9);
        let params = attached(family, &mut toy, &patterns, DType::F32);
        fill(&params, &patterns);
        let mut file = native_adapter("test", serde_json::json!({}), &params).unwrap();
        file.tensors.extend(pattern_tensors(&patterns).unwrap());
        file.save(&dir).unwrap();
        let mut read = crate::format::adapter::NativeAdapter::load(&dir).unwrap();
        let mut fresh = Toy::new(DType::F32);
        let shapes = family.shapes(&mut fresh).unwrap();
        let again = take_patterns(&dir, &mut read, &shapes, 16, &Device::cpu()).unwrap();
        assert_eq!(again, patterns);
        let reloaded = attached(family, &mut fresh, &again, DType::F32);
        restore_native(&dir, &read, &reloaded).unwrap();
        assert_eq!(fresh.output(&reloaded), toy.output(&params));

        let refused = |shapes: &[(String, [usize; 2])], block, word: &str| {
            let mut read = crate::format::adapter::NativeAdapter::load(&dir).unwrap();
            let error = take_patterns(Path::new("d"), &mut read, shapes, block, &Device::cpu()).unwrap_err();
            assert!(error.to_string().contains(word), "{word}: {error}");
        };
        let other: Vec<_> = shapes.iter().map(|(name, [n, k])| (name.clone(), [n + 16, *k])).collect();
        refused(&other, 16, "expected [");
        refused(&shapes, 32, "blocks of 16, expected 32");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn patterns_of_another_shape_and_places_that_are_not_there_are_refused() {
    let mut toy = Toy::new(DType::F32);
    let mut builder = ParamSetBuilder::new();
    let wrong = BlockPattern::full(&Device::cpu(), [16, 16], 16).unwrap();
    let patterns: Patterns = [("mlp.fc1.block_sparse".to_string(), wrong.clone())].into();
    let error = delta(false).attach(&mut toy, &patterns, None, &mut builder).unwrap_err().to_string();
    assert!(error.contains("[48, 40] in blocks of 16 for `mlp.fc1"), "{error}");
    let patterns: Patterns = [("mlp.sparse_down".to_string(), wrong)].into();
    let error = bottleneck(0.0).attach(&mut toy, &patterns, None, &mut builder).unwrap_err().to_string();
    assert!(error.contains("mlp.sparse_down"), "{error}");
    let nowhere = SparseAdapterConfig { places: vec!["nope".into()], ..bottleneck(0.0) };
    assert!(matches!(nowhere.shapes(&mut toy), Err(Error::NoMatch { .. })));
    let narrow = SparseAdapterConfig { width: 20, ..bottleneck(0.0) };
    assert!(narrow.shapes(&mut toy).unwrap_err().to_string().contains("width"));
    for block in [0, 8, 48] {
        assert!(BlockSparseConfig { block, ..delta(false) }.shapes(&mut toy).is_err());
        assert!(SparseAdapterConfig { block, ..bottleneck(0.0) }.shapes(&mut toy).is_err());
    }
}

#[test]
fn coupled_slices_are_whole_columns_of_the_reader_and_rows_of_the_maker() {
    let pairs = vec![Coupled { first: "fc1".into(), second: "fc2".into() }];
    for both in [false, true] {
        let family = CoupledConfig { pairs: pairs.clone(), block: 16, both, allocation: Allocation::Global };
        let mut toy = Toy::new(DType::F64);
        let none = attached(&family, &mut toy, &Patterns::new(), DType::F64);
        let scores = scored(&family, &mut toy, &Patterns::new(), &none, false);
        let sites = family.sites(&mut toy, &Patterns::new(), &none).unwrap();
        let patterns = family.choose(&Device::cpu(), &sites, &scores, 1.0 / 3.0).unwrap();
        let columns = blocks(&patterns, "mlp.fc2.block_sparse");
        let slice = columns[0].1;
        assert_eq!(columns, [(0, slice), (1, slice)]);
        let rows = blocks(&patterns, "mlp.fc1.block_sparse");
        let want: Vec<_> = if both { (0..3).map(|c| (slice, c)).collect() } else { Vec::new() };
        assert_eq!(rows, want);
        // The same as the dense product on the slice, beside the frozen weight.
        let params = attached(&family, &mut toy, &patterns, DType::F64);
        fill(&params, &patterns);
        let beside = toy.output(&params);
        merge_all(&mut toy, &params).unwrap();
        assert!(close(&toy.output(&params), &beside, 1e-12));
    }
}
