//! What a caller can get wrong beside the values: numbers that rank nothing, patterns and parameters that belong elsewhere.

use super::*;
use crate::adapters::AdaptedLinear;
use crate::dtype::DType;
use crate::optim::{AdamW, AdamWConfig, Carry, DensitySchedule};
use crate::tensor::{FrozenWeight, Init};
use crate::testing::normal;

fn device() -> Device {
    Device::cpu()
}

fn scores(values: &[f64]) -> Scores {
    [("a".to_string(), values.to_vec())].into()
}

fn alone(pattern: BlockPattern) -> Patterns {
    [("a".to_string(), pattern)].into()
}

fn set(entries: &[(&str, &[usize])]) -> ParamSet {
    let mut builder = ParamSetBuilder::new();
    for (name, dims) in entries {
        builder.add(*name, dims, Init::Ones).unwrap();
    }
    builder.build(&device(), DType::F32, 0).unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T>, words: &[&str]) {
    let message = result.unwrap_err().to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{words:?}: {message}");
}

#[test]
fn grids_that_cannot_be_counted_are_refused() {
    for shape in [[usize::MAX, usize::MAX], [1 << 40, 1 << 30], [usize::MAX, 1]] {
        let sites = [("a".to_string(), shape)];
        let chosen = choose(&device(), 16, &sites, &scores(&[1.0]), 0.5, Allocation::Global);
        assert!(matches!(chosen, Err(Error::SizeOverflow { .. })), "{chosen:?}");
    }
}

#[test]
fn scores_that_are_not_there_are_missed_by_name() {
    let sites = [("a".to_string(), [32, 32]), ("b".to_string(), [16, 16])];
    for by in [Scores::new(), scores(&[0.0; 4])] {
        let chosen = choose(&device(), 16, &sites, &by, 0.5, Allocation::Global);
        refused(chosen, &["scores for `", "in blocks of 16"]);
    }
}

#[test]
fn moves_by_numbers_or_patterns_that_do_not_fit_are_refused() {
    let sites = [("a".to_string(), [32, 32])];
    let now = alone(BlockPattern::from_blocks(&device(), [32, 32], 16, &[(0, 0), (1, 1)]).unwrap());
    let step = |now: &Patterns, norms: &[f64], by: &[f64], density: f64, regrow: f64| {
        let how = Move { density, allocation: Allocation::Global, regrow, fill: true };
        move_blocks(&device(), 16, &sites, now, &scores(norms), &scores(by), how)
    };
    let (norms, by) = ([1.0, 2.0], [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(step(&now, &norms, &by, 0.5, 0.5).unwrap()["a"].nnz(), 2);
    refused(step(&now, &[f64::NAN, 2.0], &by, 0.5, 0.0), &["norms", "NaN", "`a`"]);
    refused(step(&now, &norms, &[1.0, f64::NAN, 3.0, 4.0], 0.5, 0.0), &["scores", "NaN", "`a`"]);
    for wrong in [&[1.0][..], &[1.0, 2.0, 3.0]] {
        refused(step(&now, wrong, &by, 0.5, 0.0), &["norms", "2 norms"]);
    }
    refused(step(&now, &norms, &[1.0], 0.5, 0.0), &["4 scores"]);
    for regrow in [1.0, -0.5, f64::NAN, f64::INFINITY] {
        refused(step(&now, &norms, &by, 0.5, regrow), &["regrow"]);
    }
    for density in [0.0, 1.5, f64::NAN] {
        refused(step(&now, &norms, &by, density, 0.0), &["density"]);
    }
    for (shape, block) in [([16, 16], 16), ([64, 64], 16), ([16, 64], 16), ([32, 32], 32)] {
        let other = alone(BlockPattern::full(&device(), shape, block).unwrap());
        refused(step(&other, &[1.0; 16], &by, 0.5, 0.0), &["pattern", "[32, 32] in blocks of 16 for `a`"]);
    }
}

/// A threshold that is no number, or taken from moments that no step has made, would send every block to zero.
#[test]
fn proximal_steps_without_a_step_before_them_are_refused() {
    let pattern = BlockPattern::from_blocks(&device(), [32, 32], 16, &[(0, 0), (0, 1)]).unwrap();
    let params = set(&[("a.values", &[2, 16, 16])]);
    let (fresh, foreign) =
        (AdamW::new(AdamWConfig::default(), &params), AdamW::new(AdamWConfig::default(), &set(&[("b", &[3])])));
    let (fresh, mut foreign) = (fresh.unwrap(), foreign.unwrap());
    let zeros = Tensor::zeros(&device(), foreign.moments().0.dims(), DType::F32).unwrap();
    foreign.restore(&zeros, &zeros, 1).unwrap();
    let schedule = DensitySchedule::constant(0.5).unwrap();
    let of = |preconditioned| Sparsity { score: Score::Random, schedule, regrow: 0.0, lasso: 0.1, preconditioned };
    let patterns = alone(pattern.clone());
    for preconditioned in [false, true] {
        for lr in [f64::NAN, f64::INFINITY, -1.0] {
            refused(of(preconditioned).proximal_step(&patterns, &params, &fresh, lr), &["lr"]);
        }
        let nan = Sparsity { lasso: f64::NAN, ..of(preconditioned) };
        refused(nan.proximal_step(&patterns, &params, &fresh, 0.1), &["lasso"]);
        let other = alone(BlockPattern::full(&device(), [32, 32], 16).unwrap());
        refused(of(preconditioned).proximal_step(&other, &params, &fresh, 0.1), &["values", "[4, 16, 16]"]);
    }
    refused(of(true).proximal_step(&patterns, &params, &fresh, 0.1), &["optimizer", "has taken a step"]);
    refused(of(true).proximal_step(&patterns, &params, &foreign, 0.1), &["flat"]);
    assert!(params.master().to_f32_vec().unwrap().iter().all(|&v| v == 1.0));
}

#[test]
fn values_of_another_set_are_not_merged() {
    let pattern = BlockPattern::from_blocks(&device(), [40, 50], 16, &[(0, 0), (2, 3)]).unwrap();
    let weight = Tensor::from_slice(&device(), &[40, 50], &normal("w", 2000)).unwrap();
    let mut linear = AdaptedLinear::new("l", FrozenWeight::new(weight).unwrap(), None);
    let params = set(&[("l.block_sparse.values", &[2, 16, 16])]);
    linear.adapt(BlockSparseDelta::new(pattern, params.ids().next().unwrap()));
    for dims in [&[3][..], &[1, 16, 16], &[3, 16, 16], &[512]] {
        refused(linear.merge(&set(&[("other", dims)])), &["values", "[2, 16, 16]"]);
    }
    assert!(linear.merge(&ParamSet::none(&device(), DType::F32).unwrap()).is_err());
    linear.merge(&params).unwrap();
}

#[test]
fn state_of_another_set_is_not_carried() {
    let (old, new) = (set(&[("v", &[4, 16, 16])]), set(&[("v", &[4, 16, 16]), ("w", &[8])]));
    let optimizer = AdamW::new(AdamWConfig::default(), &set(&[("v", &[3])])).unwrap();
    refused(Carry::whole().optimizer(&old, &new, &optimizer).map(drop), &["moments"]);
}

fn site(name: &str, shape: [usize; 2]) -> Site {
    Site { name: name.into(), weight: Tensor::zeros(&device(), &shape, DType::F32).unwrap() }
}

#[test]
fn halves_of_a_bottleneck_that_do_not_meet_are_refused() {
    let family = SparseAdapterConfig {
        places: vec!["mlp".into()],
        width: 32,
        block: 16,
        activation: crate::ops::Activation::Relu,
        scale: 1.0,
        up_std: 0.1,
    };
    let by: Scores = [("down".to_string(), vec![1.0]), ("up".to_string(), vec![1.0; 16])].into();
    let pair = [site("down", [16, 16]), site("up", [64, 64])];
    refused(family.choose(&device(), &pair, &by, 1.0), &["sites", "[16, 16] for `up`"]);
    refused(family.choose(&device(), &pair[..1], &by, 1.0), &["sites", "up-projection"]);
}

fn pair(first: &str, second: &str) -> Coupled {
    Coupled { first: first.into(), second: second.into() }
}

/// A gated layer: two linears make what a third reads, and the third's output is read on.
#[test]
fn every_maker_has_the_slices_that_are_read() {
    let sites = [("m.gate", [32, 48]), ("m.up", [32, 48]), ("m.down", [16, 32]), ("m.out", [16, 16])];
    let sites = sites.map(|(name, shape)| site(&format!("{name}.block_sparse"), shape));
    let pairs = vec![pair("gate", "down"), pair("up", "down"), pair("down", "out")];
    let by: Scores = sites.iter().map(|s| (s.name.clone(), vec![1.0; s.shape()[0] / 16 * s.shape()[1] / 16])).collect();
    let chosen = |both: bool| {
        let family = CoupledConfig { pairs: pairs.clone(), block: 16, both, allocation: Allocation::PerSite };
        // Of equals the first slice.
        let patterns = family.choose(&device(), &sites, &by, 0.5).unwrap();
        let of = |name: &str| -> Vec<(u32, u32)> {
            let pattern = patterns.get(&format!("{name}.block_sparse"));
            pattern.map_or(Vec::new(), |p| p.topology().blocks().collect())
        };
        ["m.gate", "m.up", "m.down", "m.out"].map(of)
    };
    assert_eq!(chosen(false), [vec![], vec![], vec![(0, 0)], vec![(0, 0)]]);
    let row = vec![(0, 0), (0, 1), (0, 2)];
    // What reads a slice and makes another has the blocks of both.
    assert_eq!(chosen(true), [row.clone(), row, vec![(0, 0), (0, 1)], vec![(0, 0)]]);
}

#[test]
fn slices_do_not_move_and_have_their_makers() {
    let family = |pairs, both| CoupledConfig { pairs, block: 16, both, allocation: Allocation::Global };
    let sites = [site("m.up.block_sparse", [32, 48]), site("m.down.block_sparse", [16, 32])];
    let how = Move { density: 0.5, allocation: Allocation::Global, regrow: 0.0, fill: true };
    let none = (Patterns::new(), Scores::new());
    let moved = family(vec![pair("up", "down")], true).advance(&device(), &sites, &none.0, &none.1, &none.1, how);
    refused(moved, &["slices do not move", "Sparsity::fixed"]);
    let by: Scores = sites.iter().map(|s| (s.name.clone(), vec![1.0; s.shape()[0] / 16 * s.shape()[1] / 16])).collect();
    let missing = family(vec![pair("up", "down"), pair("gate", "down")], true);
    refused(missing.choose(&device(), &sites, &by, 0.5), &["m.gate", "before `m.down`"]);
}
