//! Numbers made by Hugging Face PEFT: logits, loss, every gradient and five AdamW steps of three adapters on a small ViT.
//!
//! Check: ratio. Our f64 run is the exact value; PEFT's f32 run is the plain same-precision computation. PEFT must agree with it to
//! f32 precision (so that both compute the same thing), and our f32 run may err at most 2× (forward) or 3× (backward) as much.

use std::path::{Path, PathBuf};

use graftwork::adapters::{load_adapter, save_adapter};
use graftwork::autograd::{Grads, Tape, Var};
use graftwork::format::peft::{AdapterFile, PeftConfig};
use graftwork::format::safetensors::SafeTensors;
use graftwork::models::vit::Vit;
use graftwork::ops::{CrossEntropyOptions, cross_entropy};
use graftwork::optim::{AdamW, AdamWConfig};
use graftwork::tensor::{ParamId, ParamSet};
use graftwork::testing::compare::ratio;
use graftwork::{DType, Device, Tensor};

const CASES: [&str; 3] = ["lora", "rslora", "dora"];
/// A dozen layers of f32 arithmetic, each good to a few units: far below any real difference, far above rounding.
const AGREES: f64 = 2e-5;

struct Fixture {
    dir: PathBuf,
    io: SafeTensors,
}

impl Fixture {
    fn open(case: &str) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(case);
        let io = SafeTensors::open(dir.join("io.safetensors")).unwrap();
        Fixture { dir, io }
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        self.io.tensor(name, &Device::cpu()).unwrap().to_f64_vec().unwrap()
    }

    /// The name under which PEFT holds one of our parameters in memory.
    fn peft_name(&self, ours: &str) -> String {
        if let Some(module) = ours.strip_suffix(".lora_A") {
            return format!("base_model.model.{module}.lora_A.default.weight");
        }
        if let Some(module) = ours.strip_suffix(".lora_B") {
            return format!("base_model.model.{module}.lora_B.default.weight");
        }
        if ours.ends_with(".lora_magnitude_vector") {
            return format!("base_model.model.{ours}.default.weight");
        }
        let (module, leaf) = ours.rsplit_once('.').unwrap();
        format!("base_model.model.{module}.modules_to_save.default.{leaf}")
    }
}

/// Parameters by name.
type Named = Vec<(String, Vec<f64>)>;

/// One model in one precision.
struct Run {
    trunk: Vit,
    params: ParamSet,
    pixels: Var,
    labels: Tensor,
}

impl Run {
    fn new(fixture: &Fixture, dtype: DType) -> Self {
        let device = Device::cpu();
        let config = graftwork::models::vit::VitConfig::load(&fixture.dir.join("config.json")).unwrap();
        let file = SafeTensors::open(fixture.dir.join("base.safetensors")).unwrap();
        let mut trunk = Vit::from_file(&config, &file, &device, dtype).unwrap();
        let (params, report) = load_adapter(&mut trunk, &fixture.dir.join("adapter"), &device, dtype).unwrap();
        assert!(report.unmatched_patterns.is_empty(), "{report}");
        let pixels = fixture.io.tensor("pixel_values", &device).unwrap().cast(dtype).unwrap();
        let labels = fixture.io.tensor("labels", &device).unwrap();
        Run { trunk, params, pixels: Var::constant(pixels), labels }
    }

    fn loss(&self, tape: &mut Tape) -> (Var, Vec<f64>) {
        let logits = self.trunk.forward(tape, &self.pixels).unwrap();
        let values = logits.tensor().to_f64_vec().unwrap();
        let loss = cross_entropy(tape, &logits, &self.labels, &CrossEntropyOptions::default()).unwrap();
        (loss, values)
    }

    fn values(&self, flat: &Tensor, id: ParamId) -> Vec<f64> {
        self.params.view(flat, id).unwrap().to_f64_vec().unwrap()
    }

    /// Logits, loss and the gradient of every parameter.
    fn gradients(&self) -> (Vec<f64>, f64, Named) {
        let mut grads = Grads::zeros(&self.params).unwrap();
        let mut tape = Tape::deterministic(&self.params);
        let (loss, logits) = self.loss(&mut tape);
        tape.backward(&loss, &mut grads).unwrap();
        grads.audit().unwrap().require_learning().unwrap();
        let named = |id| (self.params.get(id).unwrap().name.clone(), self.values(grads.flat(), id));
        (logits, loss.tensor().to_scalar().unwrap(), self.params.ids().map(named).collect())
    }

    /// Losses before each of five steps and after the last, and the parameters then.
    fn five_steps(&self) -> (Vec<f64>, Named) {
        let mut optimizer = AdamW::new(AdamWConfig::default(), &self.params).unwrap();
        let mut grads = Grads::zeros(&self.params).unwrap();
        let mut losses = Vec::new();
        for step in 0..6 {
            let mut tape = Tape::deterministic(&self.params);
            let (loss, _) = self.loss(&mut tape);
            losses.push(loss.tensor().to_scalar().unwrap());
            if step < 5 {
                tape.backward(&loss, &mut grads).unwrap();
                optimizer.step(&self.params, &grads, 1e-2).unwrap();
            }
        }
        let named = |id| (self.params.get(id).unwrap().name.clone(), self.values(self.params.master(), id));
        (losses, self.params.ids().map(named).collect())
    }
}

/// PEFT computes what we compute, and we compute it no worse.
fn hold(what: &str, ours: &[f64], exact: &[f64], peft: &[f64], factor: f64) {
    agree(what, exact, peft);
    let outcome = ratio(ours, exact, peft, factor, DType::F32);
    assert!(outcome.ok(), "{what}: {outcome:?}");
}

/// PEFT computes the same thing.
fn agree(what: &str, exact: &[f64], peft: &[f64]) {
    let size = exact.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let apart = peft.iter().zip(exact).fold(0.0f64, |m, (p, e)| m.max((p - e).abs()));
    assert_eq!(peft.len(), exact.len(), "{what}");
    assert!(apart <= AGREES * size.max(1e-3), "{what}: PEFT is {apart:e} away from f64, values reach {size:e}");
}

#[test]
fn logits_loss_and_every_gradient_agree() {
    for case in CASES {
        let fixture = Fixture::open(case);
        let (logits, loss, gradients) = Run::new(&fixture, DType::F32).gradients();
        let (exact_logits, exact_loss, exact_gradients) = Run::new(&fixture, DType::F64).gradients();
        hold("logits", &logits, &exact_logits, &fixture.numbers("logits"), 2.0);
        hold("loss", &[loss], &[exact_loss], &fixture.numbers("loss"), 2.0);
        let expected = fixture.io.names().filter(|n| n.starts_with("grad.")).count();
        assert_eq!(gradients.len(), expected, "{case}: as many parameters as PEFT trains");
        let peft: Vec<Vec<f64>> =
            gradients.iter().map(|(name, _)| fixture.numbers(&format!("grad.{}", fixture.peft_name(name)))).collect();
        for (((name, _), (_, exact)), peft) in gradients.iter().zip(&exact_gradients).zip(&peft) {
            agree(name, exact, peft);
        }
        // No worse than PEFT: over all parameters together. The largest of a few dozen rounding errors of one small tensor is chance on
        // either side, and so would be the ratio of two of them; the largest of thousands is not.
        let [ours, exact] = [&gradients, &exact_gradients].map(|named| together(named));
        hold("gradients", &ours, &exact, &peft.concat(), 3.0);
    }
}

/// The values of all parameters in a row.
fn together(named: &[(String, Vec<f64>)]) -> Vec<f64> {
    named.iter().flat_map(|(_, values)| values.clone()).collect()
}

#[test]
fn five_adamw_steps_agree() {
    for case in CASES {
        let fixture = Fixture::open(case);
        let (losses, after) = Run::new(&fixture, DType::F32).five_steps();
        let (exact_losses, exact_after) = Run::new(&fixture, DType::F64).five_steps();
        hold("losses", &losses, &exact_losses, &fixture.numbers("losses"), 3.0);
        assert!(losses[5] < losses[0], "{losses:?}");
        // All parameters together: where a gradient is near zero, AdamW divides rounding by rounding, and which parameter that hits
        // is chance.
        let peft: Vec<Vec<f64>> =
            after.iter().map(|(name, _)| fixture.numbers(&format!("after.{}", fixture.peft_name(name)))).collect();
        let [ours, exact] = [&after, &exact_after].map(|named| together(named));
        hold("parameters after five steps", &ours, &exact, &peft.concat(), 3.0);
    }
}

#[test]
fn the_comparison_rejects_another_scale() {
    // Negative control: an adapter whose alpha was misread gives other logits, and the check sees it.
    let fixture = Fixture::open("lora");
    let exact = Run::new(&fixture, DType::F64).gradients().0;
    let wrong: Vec<f64> = exact.iter().map(|v| v * 1.001).collect();
    assert!(!ratio(&wrong, &exact, &fixture.numbers("logits"), 2.0, DType::F32).ok());
}

#[test]
fn an_adapter_that_we_save_has_their_keys_shapes_and_values() {
    for case in CASES {
        let fixture = Fixture::open(case);
        let run = Run::new(&fixture, DType::F32);
        let theirs = fixture.dir.join("adapter");
        let config = PeftConfig::load(&theirs.join("adapter_config.json")).unwrap();
        let dir = std::env::temp_dir().join(format!("graftwork-peft-{case}-{}", std::process::id()));
        save_adapter(&dir, &config, &run.params).unwrap();
        let [theirs, ours] = [&theirs, &dir].map(|d| AdapterFile::load(d).unwrap());
        let listing = |file: &AdapterFile| -> Vec<(String, Vec<usize>, Vec<f32>)> {
            let entries = file.tensors().into_iter();
            entries.map(|(key, t)| (key, t.dims().to_vec(), t.to_f32_vec().unwrap())).collect()
        };
        assert_eq!(listing(&ours), listing(&theirs), "{case}");
        assert_eq!(ours.config.r, theirs.config.r);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn an_adapter_for_another_trunk_is_refused_with_a_list() {
    let fixture = Fixture::open("lora");
    let device = Device::cpu();
    let file = SafeTensors::open(fixture.dir.join("base.safetensors")).unwrap();
    let mut config = graftwork::models::vit::VitConfig::load(&fixture.dir.join("config.json")).unwrap();
    config.layers = 1;
    let mut trunk = Vit::from_file(&config, &file, &device, DType::F32).unwrap();
    let error = load_adapter(&mut trunk, &fixture.dir.join("adapter"), &device, DType::F32).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("vit.layers.1.attention.q_proj.lora_A"), "{message}");
}
