use super::*;
use crate::autograd::Grads;
use crate::device::Device;
use crate::dtype::DType;
use crate::ops::frozen_linear;
use crate::ops::{Activation, activation, linear};
use crate::tensor::FrozenWeight;
use crate::tensor::{ParamSet, Tensor};
use crate::testing::normal;

/// The module at every place of a trunk of `shape`, its projection of images and its norms.
fn declare(shape: &Shape, config: &VlPetConfig) -> usize {
    let mut params = ParamSetBuilder::new();
    for layer in 0..shape.encoder_layers {
        for part in ["attention", "mlp"] {
            VlPetEncoder::declare(&format!("encoder.{layer}.{part}"), shape.width, config, &mut params).unwrap();
        }
    }
    for layer in 0..shape.decoder_layers {
        let name = format!("decoder.{layer}.v_proj");
        VlPetDecoder::declare(&name, shape.width, shape.decoder_rank, config.start, &mut params).unwrap();
    }
    params.add("visual.weight", &[shape.width, shape.visual.unwrap()], Init::Zeros).unwrap();
    params.add("visual.bias", &[shape.width], Init::Zeros).unwrap();
    params.add("norms", &[shape.encoder_norms], Init::Ones).unwrap();
    params.build(&Device::cpu(), DType::F32, 0).unwrap().numel()
}

#[test]
fn the_eight_published_counts() {
    let bart = [
        (Variant::Small, 4_281_804, 2.980),
        (Variant::MiddleX, 4_272_588, 2.974),
        (Variant::MiddleY, 4_272_576, 2.974),
        (Variant::Large, 6_043_200, 4.155),
    ];
    for (variant, count, percent) in bart {
        let config = VlPetConfig::bart(variant);
        assert_eq!(Shape::BART_BASE.trainable(&config), count, "{variant:?}");
        assert_eq!(declare(&Shape::BART_BASE, &config), count, "{variant:?}");
        assert!((Shape::BART_BASE.percent(&config) - percent).abs() < 5e-4, "{variant:?}");
    }
    let t5 = [
        (Variant::Small, 10_510_488, 4.503),
        (Variant::MiddleX, 10_492_056, 4.496),
        (Variant::MiddleY, 10_492_032, 4.496),
        (Variant::Large, 17_574_528, 7.309),
    ];
    for (variant, count, percent) in t5 {
        let config = VlPetConfig::t5(variant);
        assert_eq!(Shape::T5_BASE.trainable(&config), count, "{variant:?}");
        assert_eq!(declare(&Shape::T5_BASE, &config), count, "{variant:?}");
        assert!((Shape::T5_BASE.percent(&config) - percent).abs() < 5e-4, "{variant:?}");
    }
    assert_eq!(Variant::Large.numel(768, 96), 148_320);
}

#[test]
fn a_budget_chooses_the_finest_variant_that_it_allows() {
    let config = VlPetConfig::bart(Variant::Small);
    let chosen = |budget| finest_within(&Shape::BART_BASE, &config, budget).map(|c| c.variant);
    assert_eq!(chosen(5.0).unwrap(), Variant::Large);
    assert_eq!(chosen(4.0).unwrap(), Variant::MiddleX);
    assert_eq!(chosen(2.9742).unwrap(), Variant::MiddleX);
    let text = chosen(1.0).unwrap_err().to_string();
    assert!(text.contains("at least 2.974 percent"), "{text}");
}

fn small(variant: Variant, start: Start, layout: HeadLayout) -> VlPetConfig {
    VlPetConfig { rank: 4, heads: 2, layout, gate_rank: 3, scale: 0.3, start, ..VlPetConfig::bart(variant) }
}

const LAYOUTS: [HeadLayout; 4] = [HeadLayout::Down, HeadLayout::Up, HeadLayout::DownUp, HeadLayout::Pair];

/// One module, R and H of `[2, 3, 6]`, with values that are not zero.
fn module(config: &VlPetConfig) -> (ParamSet, VlPetEncoder) {
    let mut params = ParamSetBuilder::new();
    let encoder = VlPetEncoder::declare("m", 6, config, &mut params).unwrap();
    for name in ["r", "h"] {
        params.add(name, &[2, 3, 6], Init::Zeros).unwrap();
    }
    let set = params.build(&Device::cpu(), DType::F64, 1).unwrap();
    for id in set.ids().collect::<Vec<_>>() {
        let (name, len) = (set.get(id).unwrap().name.clone(), set.get(id).unwrap().numel());
        set.set(id, &normal(&name, len)).unwrap();
    }
    (set, encoder)
}

/// `Σ c ⊙ y` with dropout and residual, and its gradient if there is room for it.
fn loss(set: &ParamSet, encoder: &VlPetEncoder, grads: Option<&mut Grads>) -> f64 {
    let mut tape = Tape::training(set, 4, 0);
    let [r, h] = ["r", "h"].map(|name| tape.param(set.find(name).unwrap()).unwrap());
    let around = Around { add_residual: true, dropout: 0.3, site: 3, tokens: None };
    let y = encoder.forward_with(&mut tape, &r, &h, around).unwrap();
    let c: Vec<f64> = normal("c", 36).into_iter().map(f64::from).collect();
    let out = y.tensor().to_f64_vec().unwrap();
    if let Some(grads) = grads {
        let c = Tensor::from_slice(&Device::cpu(), y.dims(), &c).unwrap();
        tape.backward_with(&y, c, grads).unwrap();
    }
    out.iter().zip(&c).map(|(y, c)| y * c).sum()
}

#[test]
fn every_layout_and_variant_has_the_gradients_of_its_inputs_and_parameters() {
    // Values are set through f32, which holds steps of a power of two exactly.
    const STEP: f32 = 1.0 / 8192.0;
    for variant in Variant::ALL {
        for layout in LAYOUTS {
            let (set, encoder) = module(&small(variant, Start::BART, layout));
            let mut grads = Grads::zeros(&set).unwrap();
            loss(&set, &encoder, Some(&mut grads));
            for id in set.ids().collect::<Vec<_>>() {
                let name = set.get(id).unwrap().name.clone();
                let held = set.tensor(id).unwrap().to_f32_vec().unwrap();
                let got = grads.view(id).unwrap().to_f64_vec().unwrap();
                for e in 0..held.len() {
                    let at = |step: f32| {
                        let mut moved = held.clone();
                        moved[e] += step;
                        set.set(id, &moved).unwrap();
                        (f64::from(moved[e]), loss(&set, &encoder, None))
                    };
                    let ((low, below), (high, above)) = (at(-STEP), at(STEP));
                    let want = (above - below) / (high - low);
                    // The third derivative times STEP² / 6 is below 1e-8 of a few tens.
                    let near = (got[e] - want).abs() < 1e-6 * want.abs().max(1.0);
                    assert!(near, "{variant:?} {layout:?} {name}[{e}]: {} for {want}", got[e]);
                }
                set.set(id, &held).unwrap();
            }
        }
    }
}

#[test]
fn heads_of_the_down_projection_are_rows_of_one() {
    let (set, encoder) = module(&small(Variant::MiddleY, Start::BART, HeadLayout::Down));
    let mut tape = Tape::inference(&set);
    let h = Var::constant(
        Tensor::from_slice(&Device::cpu(), &[2, 3, 6], &normal("h", 36).into_iter().map(f64::from).collect::<Vec<_>>())
            .unwrap(),
    );
    let got = encoder.bottleneck.narrow(&mut tape, &h).unwrap().tensor().to_f64_vec().unwrap();
    let part = |name: &str, first: usize, len: usize| {
        let whole = set.tensor(set.find(name).unwrap()).unwrap();
        Var::constant(whole.slice(0, first, len).unwrap())
    };
    for head in 0..2 {
        let (weight, bias) = (part("m.down.weight", 2 * head, 2), part("m.down.bias", 2 * head, 2));
        let low = linear(&mut tape, &h, &weight, Some(&bias)).unwrap();
        let own = activation(&mut tape, &low, Activation::GeluTanh).unwrap().tensor().to_f64_vec().unwrap();
        for (i, own) in own.iter().enumerate() {
            let at = i / 2 * 4 + 2 * head + i % 2;
            assert!((got[at] - own).abs() < 1e-14);
        }
    }
}

#[test]
fn t5_starts_at_the_trunk_times_its_scale_and_half() {
    for variant in Variant::ALL {
        let mut params = ParamSetBuilder::new();
        let config = small(variant, Start::T5, HeadLayout::Down);
        let encoder = VlPetEncoder::declare("m", 6, &config, &mut params).unwrap();
        let set = params.build(&Device::cpu(), DType::F64, 1).unwrap();
        let make = |name: &str| {
            let values: Vec<f64> = normal(name, 36).into_iter().map(f64::from).collect();
            (Var::constant(Tensor::from_slice(&Device::cpu(), &[2, 3, 6], &values).unwrap()), values)
        };
        let ((r, _), (h, hs)) = (make("r"), make("h"));
        let y = encoder.forward(&mut Tape::inference(&set), &r, &h).unwrap().tensor().to_f64_vec().unwrap();
        let gate = if variant == Variant::MiddleY { 0.3 } else { 0.15 };
        assert!(y.iter().zip(&hs).all(|(y, h)| (y - gate * h).abs() < 1e-12), "{variant:?}");
    }
}

#[test]
fn in_its_place_it_drops_what_leaves_the_gate_in_training_alone() {
    let config = VlPetConfig { dropout: 0.4, ..small(Variant::MiddleX, Start::BART, HeadLayout::Down) };
    let mut params = ParamSetBuilder::new();
    let [one, other] = ["one", "other"].map(|name| VlPetEncoder::declare(name, 6, &config, &mut params).unwrap());
    let set = params.build(&Device::cpu(), DType::F64, 1).unwrap();
    let [r, h] = ["r", "h"].map(|name| {
        let values: Vec<f64> = normal(name, 36).into_iter().map(f64::from).collect();
        Var::constant(Tensor::from_slice(&Device::cpu(), &[2, 3, 6], &values).unwrap())
    });
    let run = |module: &VlPetEncoder, mut tape: Tape| {
        module.forward(&mut tape, &r, &h).unwrap().tensor().to_f64_vec().unwrap()
    };
    let whole = run(&one, Tape::inference(&set));
    let [first, second] = [&one, &other].map(|module| {
        let dropped: Vec<bool> = run(module, Tape::training(&set, 4, 0)).iter().map(|&y| y == 0.0).collect();
        assert!(dropped.contains(&true) && dropped.contains(&false));
        dropped
    });
    assert!(!whole.contains(&0.0));
    assert_ne!(first, second, "two places draw masks of their own");
    let trained = run(&one, Tape::training(&set, 4, 0));
    assert!(trained.iter().zip(&whole).all(|(t, w)| *t == 0.0 || (t - w / 0.6).abs() < 1e-6 * w.abs()));
}

#[test]
fn a_column_gate_without_update_folds_into_the_rows_of_the_linear_before() {
    let mut params = ParamSetBuilder::new();
    let z = params.add("z", &[4], Init::Normal { std: 1.0 }).unwrap();
    let set = params.build(&Device::cpu(), DType::F64, 2).unwrap();
    let make = |name: &str, dims: &[usize]| {
        let values: Vec<f64> = normal(name, dims.iter().product()).into_iter().map(f64::from).collect();
        Tensor::from_slice(&Device::cpu(), dims, &values).unwrap()
    };
    let mut tape = Tape::inference(&set);
    let (x, w) = (Var::constant(make("x", &[3, 5])), make("w", &[4, 5]));
    let h = frozen_linear(&mut tape, &x, &FrozenWeight::new(w.clone()).unwrap(), None, None).unwrap();
    let offset = tape.param(z).unwrap();
    let gate = Gate::MiddleY { offset: &offset, sigmoid: false };
    let got = crate::ops::granular_scale(&mut tape, &h, &GranularScale::new(gate)).unwrap();
    let zs = set.tensor(z).unwrap().to_f64_vec().unwrap();
    let folded: Vec<f64> = w.to_f64_vec().unwrap().iter().enumerate().map(|(i, w)| w * (1.0 + zs[i / 5])).collect();
    let folded = FrozenWeight::new(Tensor::from_slice(&Device::cpu(), &[4, 5], &folded).unwrap()).unwrap();
    let want = frozen_linear(&mut tape, &x, &folded, None, None).unwrap().tensor().to_f64_vec().unwrap();
    let got = got.tensor().to_f64_vec().unwrap();
    assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-12));
}

#[test]
fn what_cannot_be_is_refused() {
    assert_eq!("middle-x".parse::<Variant>().unwrap(), Variant::MiddleX);
    let text = "medium".parse::<Variant>().unwrap_err().to_string();
    assert!(text.contains("large, middle-x, middle-y or small") && text.contains("medium"), "{text}");
    let mut params = ParamSetBuilder::new();
    let mut refuse = |config: VlPetConfig| VlPetEncoder::declare("m", 6, &config, &mut params).unwrap_err().to_string();
    let config = small(Variant::Small, Start::BART, HeadLayout::Down);
    assert!(refuse(VlPetConfig { heads: 3, ..config.clone() }).contains("a divisor of the bottleneck 4"));
    assert!(refuse(VlPetConfig { heads: 4, layout: HeadLayout::Up, ..config.clone() }).contains("of the width 6"));
    assert!(refuse(VlPetConfig { heads: 0, ..config.clone() }).contains("heads"));
    assert!(refuse(VlPetConfig { dropout: 1.0, ..config.clone() }).contains("dropout"));
    assert!(refuse(VlPetConfig { scale: f64::INFINITY, ..config }).contains("scale"));
}
