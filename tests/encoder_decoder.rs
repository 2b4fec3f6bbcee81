//! The encoder-decoder against what transformers computes with the same weights, against itself with and without a cache and padding, and
//! what a frozen decoder costs the tape.

use std::path::{Path, PathBuf};

use graftwork::adapters::vl_pet::{Start, Variant};
use graftwork::adapters::{
    AdapterConfig, CompacterConfig, LoraConfig, Sides, Trunk, VlPetConfig, VlPetDecoder, merge_all, parse_targets,
};
use graftwork::autograd::{Grads, Tape, Var};
use graftwork::format::safetensors::SafeTensors;
use graftwork::models::encoder_decoder::{EncoderDecoder, EncoderDecoderConfig, GenerateOptions, Source};
use graftwork::ops::{CrossEntropyOptions, cross_entropy};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{DType, Device, Error, Result, Tensor};

const FORMS: [&str; 3] = ["bart", "t5", "t5_gated"];

fn folder(form: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoder_decoder").join(form)
}

/// A fixture: the model, and what transformers was given and gave.
struct Fixture {
    model: EncoderDecoder,
    features: Var,
    ids: Tensor,
    keep: Vec<u8>,
    decoder_ids: Tensor,
    io: SafeTensors,
}

impl Fixture {
    fn on(form: &str, device: &Device, dtype: DType) -> Fixture {
        let io = SafeTensors::open(folder(form).join("io.safetensors")).unwrap();
        let tensor = |name| io.tensor(name, &Device::cpu()).unwrap();
        Fixture {
            model: EncoderDecoder::load(&folder(form), device, dtype).unwrap(),
            features: Var::constant(tensor("features").cast(dtype).unwrap().to_device(device).unwrap()),
            ids: tensor("ids").to_device(device).unwrap(),
            keep: tensor("keep").to_vec().unwrap(),
            decoder_ids: tensor("decoder_ids").to_device(device).unwrap(),
            io,
        }
    }

    fn cpu(form: &str) -> Fixture {
        Fixture::on(form, &Device::cpu(), DType::F32)
    }

    fn source(&self) -> Source<'_> {
        Source { features: Some(&self.features), ids: &self.ids, keep: Some(&self.keep) }
    }

    fn logits(&self) -> Vec<f32> {
        let mut tape = self.inference();
        self.model.forward(&mut tape, &self.source(), &self.decoder_ids).unwrap().tensor().to_f32_vec().unwrap()
    }

    fn inference(&self) -> Tape {
        Tape::inference(&ParamSet::none(self.model.device(), self.model.dtype()).unwrap())
    }

    fn captions(&self, name: &str) -> Vec<Vec<i64>> {
        let rows: Vec<i64> = self.io.tensor(name, &Device::cpu()).unwrap().to_vec().unwrap();
        rows.chunks(12).map(|row| row.iter().copied().filter(|&id| id >= 0).collect()).collect()
    }

    fn generate(&self, beams: usize, length_penalty: f64) -> Vec<Vec<i64>> {
        let options = GenerateOptions { beams, max_tokens: 12, length_penalty };
        let pad = self.model.config().pad;
        let found = self.model.generate(&mut self.inference(), &self.source(), &options).unwrap();
        // What transformers returns is filled up with padding, so that the fixture cannot tell a word of that id from it.
        found.into_iter().map(|caption| caption.into_iter().take_while(|&id| id != pad).collect()).collect()
    }
}

/// What rounding comes to in networks whose weights are drawn from N(0, 1).
const ROUNDING: f32 = 2e-5;

/// Largest difference over the largest value.
fn apart(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let most = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max) / most
}

#[test]
fn logits_are_those_of_transformers() {
    for form in FORMS {
        let fixture = Fixture::cpu(form);
        let want = fixture.io.tensor("logits", &Device::cpu()).unwrap().to_f32_vec().unwrap();
        let off = apart(&fixture.logits(), &want);
        assert!(off < ROUNDING, "{form}: {off}");
        // One word changed changes them by far more.
        let other = Fixture { keep: vec![1; fixture.keep.len()], ..fixture };
        assert!(apart(&other.logits(), &want) > 1e-2, "{form}");
    }
}

#[test]
fn captions_are_those_of_transformers() {
    for form in FORMS {
        let fixture = Fixture::cpu(form);
        for (name, beams, penalty) in [("greedy", 1, 1.0), ("beam", 3, 1.0), ("beam_long", 4, 2.0)] {
            assert_eq!(fixture.generate(beams, penalty), fixture.captions(name), "{form} {name}");
        }
    }
}

#[test]
#[cfg_attr(
    not(all(graftwork_kernels, feature = "emulator")),
    ignore = "this build has no kernels, or not the feature `emulator`"
)]
fn the_emulated_gpu_agrees() {
    let device = Device::emulated("sm_80").unwrap();
    for form in FORMS {
        let off = apart(&Fixture::on(form, &device, DType::F32).logits(), &Fixture::cpu(form).logits());
        assert!(off < ROUNDING, "{form}: {off}");
    }
}

/// Token by token from the cache, and in two parts, the logits are those of all tokens at once. Sums run in another order where products
/// have other sizes, so equal to rounding.
#[test]
fn decoding_from_the_cache_is_decoding_at_once() {
    for form in FORMS {
        let fixture = Fixture::cpu(form);
        let (model, mut tape) = (&fixture.model, fixture.inference());
        let encoded = model.encode(&mut tape, &fixture.source()).unwrap();
        let whole = fixture.logits();
        let (n, words) = (7, model.config().vocabulary);
        for parts in [vec![1; 7], vec![3, 4]] {
            let mut caption = model.begin(&mut tape, &encoded).unwrap();
            let mut start = 0;
            for part in parts {
                let ids = fixture.decoder_ids.slice(1, start, part).unwrap().contiguous().unwrap();
                let got = model.extend(&mut tape, &mut caption, &ids).unwrap().tensor().to_f32_vec().unwrap();
                for (row, got) in got.chunks(part * words).enumerate() {
                    let from = (row * n + start) * words;
                    assert!(apart(got, &whole[from..from + part * words]) < ROUNDING, "{form}");
                }
                start += part;
            }
        }
    }
}

/// Padding hides behind its mask: whatever it holds, and however much of it there is.
#[test]
fn padding_changes_nothing() {
    for form in FORMS {
        let fixture = Fixture::cpu(form);
        let want = fixture.logits();
        let ids: Vec<i64> = fixture.ids.to_vec().unwrap();
        let (mut other, mut longer, mut keep) = (ids.clone(), Vec::new(), Vec::new());
        for (i, id) in other.iter_mut().enumerate() {
            *id = if fixture.keep[i] == 0 { 7 } else { *id };
        }
        for row in 0..3 {
            longer.extend(ids[row * 5..(row + 1) * 5].iter().chain(&[1, 1]));
            keep.extend(fixture.keep[row * 5..(row + 1) * 5].iter().chain(&[0, 0]));
        }
        let tensor = |t: usize, ids: &[i64]| Tensor::from_slice(&Device::cpu(), &[3, t], ids).unwrap();
        let replaced = Fixture { ids: tensor(5, &other), ..Fixture::cpu(form) };
        assert_eq!(replaced.logits(), want, "{form}");
        let padded = Fixture { ids: tensor(7, &longer), keep, ..Fixture::cpu(form) };
        assert!(apart(&padded.logits(), &want) < ROUNDING, "{form}");
    }
}

/// With as many beams as there can be captions the search is exhaustive; with one it is greedy.
#[test]
fn a_wide_beam_finds_the_best_caption_of_all() {
    let fixture = Fixture::cpu("bart");
    let (model, mut tape) = (&fixture.model, fixture.inference());
    let words = model.config().vocabulary as i64;
    let ids = fixture.ids.slice(0, 0, 1).unwrap();
    let options = GenerateOptions { beams: 10, max_tokens: 2, length_penalty: 1.0 };
    let found = model.generate(&mut tape, &Source::text(&ids), &options).unwrap();
    let encoded = model.encode(&mut tape, &Source::text(&ids)).unwrap();
    let mut best = (f64::NEG_INFINITY, Vec::new());
    for first in 0..words {
        let mut caption = model.begin(&mut tape, &encoded).unwrap();
        let pair = Tensor::from_slice(&Device::cpu(), &[1, 2], &[model.config().start, first]).unwrap();
        let logits = model.extend(&mut tape, &mut caption, &pair).unwrap().tensor().to_f32_vec().unwrap();
        let log = |row: &[f32], token: i64| {
            let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            f64::from(row[token as usize]) - total.ln()
        };
        let (head, tail) = logits.split_at(words as usize);
        if first == model.config().end {
            best = if log(head, first) > best.0 { (log(head, first), Vec::new()) } else { best };
            continue;
        }
        for second in 0..words {
            let score = (log(head, first) + log(tail, second)) / 2.0;
            let caption = if second == model.config().end { vec![first] } else { vec![first, second] };
            best = if score > best.0 { (score, caption) } else { best };
        }
    }
    assert_eq!(found, [best.1]);
}

fn loss(fixture: &Fixture, tape: &mut Tape) -> Var {
    let logits = fixture.model.forward(tape, &fixture.source(), &fixture.decoder_ids).unwrap();
    cross_entropy(tape, &logits, &fixture.decoder_ids, &CrossEntropyOptions::default()).unwrap()
}

fn lora(model: &mut EncoderDecoder, targets: &str) -> ParamSet {
    let mut params = ParamSetBuilder::new();
    let config = LoraConfig { rank: 2, targets: parse_targets(targets).unwrap(), ..LoraConfig::default() };
    config.attach(model, &mut params).unwrap();
    params.build(&Device::cpu(), DType::F32, 0).unwrap()
}

/// With an adapter on the value projection of the last cross-attention, nothing before it is recorded, and of the frozen decoder behind it
/// only what hands the gradient on: no input of a linear is kept but the adapter's own.
#[test]
fn the_frozen_decoder_costs_what_the_value_adapter_needs() {
    let mut fixture = Fixture::cpu("bart");
    let params = lora(&mut fixture.model, "regex:model.decoder.layers.1.encoder_attn.v_proj");
    let mut tape = Tape::deterministic(&params);
    loss(&fixture, &mut tape);
    let count = |tape: &Tape, name: &str| tape.describe().lines().filter(|line| line.contains(name)).count();
    let rows: Vec<(&str, usize)> = tape.ledger().rows().map(|(name, row)| (name, row.bytes)).collect();
    let of = |name: &str| rows.iter().find(|(n, _)| *n == name).map_or(0, |(_, bytes)| *bytes);
    // v_proj, attention, out_proj and the residual, norm, fc1, gelu, fc2 and the residual, norm, lm_head, cross-entropy.
    assert_eq!(tape.len(), 10, "{}", tape.describe());
    // Of five linears the first alone keeps anything: x and h of 3·9 source tokens.
    assert_eq!(of("frozen_linear"), 4 * 3 * 9 * (8 + 2));
    // q, k of 3·7 and 3·9 tokens, one number a row and head, the mask; v is not needed for dv.
    assert_eq!(of("attention"), 4 * (3 * 7 * 8 + 3 * 9 * 8 + 3 * 7 * 2) + 3 * 7 * 9);
    assert_eq!(count(&tape, "embedding"), 0);

    // Adapters in the encoder alone: the decoder is passed through from its first cross-attention on, and keeps no input of a linear.
    let mut fixture = Fixture::cpu("bart");
    let params = lora(&mut fixture.model, "regex:model.encoder.layers.1.fc2");
    let mut tape = Tape::deterministic(&params);
    loss(&fixture, &mut tape);
    let kept = tape.ledger().rows().find(|(name, _)| *name == "frozen_linear").map(|(_, row)| row.bytes);
    assert_eq!(kept, Some(4 * 3 * 9 * (12 + 2)));
}

#[test]
fn only_what_was_asked_for_learns() {
    for form in ["bart", "t5"] {
        let mut fixture = Fixture::cpu(form);
        let mut builder = ParamSetBuilder::new();
        for norm in fixture.model.norms().unwrap() {
            assert!(norm.name().contains("encoder"), "{}", norm.name());
            norm.train(&mut builder).unwrap();
        }
        let params = builder.build(&Device::cpu(), DType::F32, 0).unwrap();
        assert!(params.params().iter().all(|p| !p.name.contains("decoder")));
        // They begin at the trunk's own values.
        let want = Fixture::cpu(form).logits();
        let mut tape = Tape::inference(&params);
        let got = fixture.model.forward(&mut tape, &fixture.source(), &fixture.decoder_ids).unwrap();
        assert_eq!(got.tensor().to_f32_vec().unwrap(), want);
        let mut tape = Tape::deterministic(&params);
        let loss = loss(&fixture, &mut tape);
        let mut grads = Grads::zeros(&params).unwrap();
        tape.backward(&loss, &mut grads).unwrap();
        grads.audit().unwrap().require_learning().unwrap();
    }
}

/// Gated bottlenecks in the encoder, one beside each value projection of cross-attention, the encoder's norms: as published.
fn vl_pet(model: &mut EncoderDecoder, config: &VlPetConfig) -> ParamSet {
    let mut builder = ParamSetBuilder::new();
    config.attach(model, &[], &mut builder).unwrap();
    let values = parse_targets("encoder_attn.v_proj,EncDecAttention.v").unwrap();
    // T5's heads are narrower than its width, so its value projections are not square here.
    let square = model.config().inner() == model.config().width;
    if square {
        VlPetDecoder::attach(model, &values, 2, config.start, &mut builder).unwrap();
    } else {
        let error = VlPetDecoder::attach(model, &values, 2, config.start, &mut builder).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
    for norm in model.norms().unwrap() {
        norm.train(&mut builder).unwrap();
    }
    builder.build(&Device::cpu(), DType::F32, 0).unwrap()
}

fn small_vl_pet(variant: Variant) -> VlPetConfig {
    let start = Start { std: 0.3, ..Start::BART };
    VlPetConfig { rank: 4, heads: 2, gate_rank: 3, start, ..VlPetConfig::bart(variant) }
}

#[test]
fn vl_pet_learns_where_it_is_published_to_and_nowhere_else() {
    for form in FORMS {
        for variant in Variant::ALL {
            let mut fixture = Fixture::cpu(form);
            let params = vl_pet(&mut fixture.model, &small_vl_pet(variant));
            for param in params.params() {
                let decoder = param.name.contains("decoder");
                let value = param.name.contains("encoder_attn.v_proj.vl_pet");
                assert!(!decoder || value, "{form}: {}", param.name);
            }
            let norms = params.params().iter().filter(|p| p.name.ends_with("norm.weight")).count();
            let behind = usize::from(params.find("model.encoder.layernorm_embedding.weight").is_some());
            assert_eq!(norms + behind, 2 * 2 + 1, "{form}");
            let mut tape = Tape::deterministic(&params);
            let loss = loss(&fixture, &mut tape);
            let mut grads = Grads::zeros(&params).unwrap();
            tape.backward(&loss, &mut grads).unwrap();
            grads.audit().unwrap().require_learning().unwrap_or_else(|e| panic!("{form} {variant:?}: {e}"));
            // A bottleneck is no matrix, so nothing becomes part of a weight.
            let merged = merge_all(&mut fixture.model, &params);
            assert_eq!(matches!(merged, Err(Error::Unsupported { .. })), form == "bart", "{merged:?}");
        }
    }
}

/// The published mean of small runs over padding too, so that more of it changes the logits; over real tokens it does not.
#[test]
fn padding_opens_the_gate_of_small_unless_it_is_left_out() {
    for real_tokens in [false, true] {
        let run = |padding: usize| {
            let mut fixture = Fixture::cpu("bart");
            let config = VlPetConfig { real_tokens, ..small_vl_pet(Variant::Small) };
            let params = vl_pet(&mut fixture.model, &config);
            let (ids, mut longer, mut keep): (Vec<i64>, _, _) = (fixture.ids.to_vec().unwrap(), Vec::new(), Vec::new());
            for row in 0..3 {
                longer.extend(ids[row * 5..(row + 1) * 5].iter().copied().chain(vec![1; padding]));
                keep.extend(fixture.keep[row * 5..(row + 1) * 5].iter().copied().chain(vec![0; padding]));
            }
            let ids = Tensor::from_slice(&Device::cpu(), &[3, 5 + padding], &longer).unwrap();
            let fixture = Fixture { ids, keep, ..fixture };
            let mut tape = Tape::inference(&params);
            let logits = fixture.model.forward(&mut tape, &fixture.source(), &fixture.decoder_ids).unwrap();
            logits.tensor().to_f32_vec().unwrap()
        };
        let off = apart(&run(3), &run(0));
        assert_eq!(off < ROUNDING, real_tokens, "{off}");
    }
}

/// Adapters of methods that know both sides stand in the decoder too, where tokens come one by one.
#[test]
fn adapters_in_the_decoder_see_its_tokens_one_by_one() {
    type Attach = fn(&mut EncoderDecoder, &mut ParamSetBuilder) -> usize;
    let methods: [Attach; 5] = [
        |model, params| {
            let config = AdapterConfig { reduction: 4, ..AdapterConfig::vl_adapter() };
            config.attach(model, params).unwrap().attached.len()
        },
        |model, params| {
            let config = CompacterConfig { reduction: 4, products: 2, ..CompacterConfig::default() };
            config.attach(model, params).unwrap().attached.len()
        },
        |model, params| {
            let config = VlPetConfig { sides: Sides::Both, ..small_vl_pet(Variant::Large) };
            config.attach(model, &[], params).unwrap().attached.len()
        },
        |model, params| {
            let config = VlPetConfig { sides: Sides::Both, ..small_vl_pet(Variant::MiddleX) };
            config.attach(model, &[], params).unwrap().attached.len()
        },
        |model, params| {
            let config = VlPetConfig { sides: Sides::Both, ..small_vl_pet(Variant::MiddleY) };
            config.attach(model, &[], params).unwrap().attached.len()
        },
    ];
    for form in ["bart", "t5"] {
        for attach in methods {
            let mut fixture = Fixture::cpu(form);
            let mut builder = ParamSetBuilder::new();
            // Two places of each encoder layer, three of each decoder layer.
            assert_eq!(attach(&mut fixture.model, &mut builder), 2 * 2 + 2 * 3);
            let params = builder.build(&Device::cpu(), DType::F32, 0).unwrap();
            for id in params.ids().collect::<Vec<_>>() {
                let param = params.get(id).unwrap();
                let values: Vec<f32> =
                    graftwork::testing::normal(&param.name, param.numel()).iter().map(|v| 0.3 * v).collect();
                params.set(id, &values).unwrap();
            }
            let mut tape = Tape::inference(&params);
            let whole = fixture.model.forward(&mut tape, &fixture.source(), &fixture.decoder_ids).unwrap();
            let whole = whole.tensor().to_f32_vec().unwrap();
            let encoded = fixture.model.encode(&mut tape, &fixture.source()).unwrap();
            let mut caption = fixture.model.begin(&mut tape, &encoded).unwrap();
            let words = fixture.model.config().vocabulary;
            for at in 0..7 {
                let ids = fixture.decoder_ids.slice(1, at, 1).unwrap().contiguous().unwrap();
                let got = fixture.model.extend(&mut tape, &mut caption, &ids).unwrap().tensor().to_f32_vec().unwrap();
                for (row, got) in got.chunks(words).enumerate() {
                    let from = (row * 7 + at) * words;
                    assert!(apart(got, &whole[from..from + words]) < ROUNDING, "{form} {at}");
                }
            }
        }
    }
}

/// Its mean would run over tokens that are still to come, in training alone.
#[test]
fn a_gate_of_whole_samples_has_no_place_in_a_decoder() {
    let config = VlPetConfig { sides: Sides::Both, ..small_vl_pet(Variant::Small) };
    let error = config.attach(&mut Fixture::cpu("bart").model, &[], &mut ParamSetBuilder::new()).unwrap_err();
    assert!(error.to_string().contains("the encoder alone"), "{error}");
}

/// What a block recomputes in backward gives the same gradients, bit for bit.
#[test]
fn recomputed_layers_give_the_same_gradients() {
    for form in ["bart", "t5"] {
        let run = |recompute| {
            let mut fixture = Fixture::cpu(form);
            let params = lora(&mut fixture.model, if form == "bart" { "q_proj,v_proj" } else { "q,v" });
            let mut tape = Tape::deterministic(&params).recompute_blocks(recompute);
            let loss = loss(&fixture, &mut tape);
            let mut grads = Grads::zeros(&params).unwrap();
            tape.backward(&loss, &mut grads).unwrap();
            grads.flat().to_f32_vec().unwrap()
        };
        assert_eq!(run(false), run(true));
    }
}

#[test]
fn bad_input_is_named() {
    let fixture = Fixture::cpu("bart");
    let (model, device) = (&fixture.model, Device::cpu());
    let ids = |dims: &[usize]| Tensor::from_slice(&device, dims, &vec![4i64; dims.iter().product()]).unwrap();
    let text = |result: Result<()>| result.unwrap_err().to_string();
    let encode = |source: &Source| model.encode(&mut fixture.inference(), source).map(|_| ());
    assert!(text(encode(&Source::text(&ids(&[1, 17])))).contains("at most 16"));
    assert!(text(encode(&Source::text(&ids(&[4])))).contains("[b, t]"));
    assert!(text(encode(&Source { keep: Some(&[1, 0, 0, 0]), ..Source::text(&ids(&[2, 2])) })).contains("sample 1"));
    assert!(text(encode(&Source { keep: Some(&[1]), ..Source::text(&ids(&[2, 2])) })).contains("2 rows of 2"));
    let wide = Var::constant(Tensor::zeros(&device, &[1, 2, 4], DType::F32).unwrap());
    assert!(encode(&Source { features: Some(&wide), ..Source::text(&ids(&[1, 2])) }).is_err());
    let unknown = Tensor::from_slice(&device, &[1, 1], &[20i64]).unwrap();
    assert!(matches!(encode(&Source::text(&unknown)), Err(Error::Value { .. })));
    let generate = |options: GenerateOptions| {
        let source = Source::text(&fixture.ids);
        model.generate(&mut fixture.inference(), &source, &options).map(|_| ())
    };
    let usual = GenerateOptions::default();
    assert!(text(generate(GenerateOptions { beams: 0, ..usual })).contains("`beams`"));
    assert!(text(generate(GenerateOptions { max_tokens: 0, ..usual })).contains("`max_tokens`"));
    assert!(text(generate(GenerateOptions { length_penalty: f64::NAN, ..usual })).contains("`length_penalty`"));

    let config = EncoderDecoderConfig::load(&folder("bart").join("config.json")).unwrap();
    let file = SafeTensors::open(folder("bart").join("model.safetensors")).unwrap();
    let wrong = EncoderDecoderConfig { vocabulary: 21, ..config };
    let error = EncoderDecoder::from_file(&wrong, &file, &device, DType::F32).unwrap_err().to_string();
    assert!(error.contains("model.shared.weight") && error.contains("[21, 8]"), "{error}");
}
