//! Adapters in the layout of Hugging Face PEFT: a directory with `adapter_config.json` and `adapter_model.safetensors`, whose
//! keys are
//!
//! ```text
//! base_model.model.<module path>.lora_A.weight    A [r, k]
//! base_model.model.<module path>.lora_B.weight    B [n, r]
//! base_model.model.<module path>.lora_magnitude_vector    m [n], of a DoRA
//! base_model.model.<module path>.weight | .bias   a module that is trained in full
//! ```
//!
//! An adapter is read whole or not at all: a key that is missing, unexpected or misshapen is an error that lists all of them.

mod config;
mod matcher;
mod report;
pub mod vit_names;

use std::collections::BTreeMap;
use std::path::Path;

pub use config::{InitLora, MAX_CONFIG, Modules, PeftConfig};
pub use matcher::Matcher;
pub use report::{LoadReport, Misshapen};

use super::atomic::Transaction;
use super::safetensors::{self, SafeTensors};
use super::short;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const MODEL_FILE: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
const SUFFIX_A: &str = ".lora_A.weight";
const SUFFIX_B: &str = ".lora_B.weight";
const MAGNITUDE: &str = "lora_magnitude_vector";
/// Bytes of a key.
const MAX_KEY: usize = 1024;

/// The update B·A of one linear layer.
#[derive(Clone, Debug)]
pub struct LoraPair {
    /// `[r, k]`
    pub a: Tensor,
    /// `[n, r]`
    pub b: Tensor,
}

impl LoraPair {
    pub fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }
}

/// The keys of a module's A and B.
pub fn lora_keys(module: &str) -> [String; 2] {
    [format!("{PREFIX}{module}{SUFFIX_A}"), format!("{PREFIX}{module}{SUFFIX_B}")]
}

/// The key of a parameter that is stored in full.
pub fn full_key(parameter: &str) -> String {
    format!("{PREFIX}{parameter}")
}

/// An adapter as files hold it.
#[derive(Clone, Debug)]
pub struct AdapterFile {
    pub config: PeftConfig,
    /// By module path.
    pub lora: BTreeMap<String, LoraPair>,
    /// Parameters stored under their own names, by path: `classifier.weight`, and a DoRA's magnitudes.
    pub full: BTreeMap<String, Tensor>,
}

impl AdapterFile {
    /// Reads a directory. Tensors are views of the mapped file, on the CPU. The names of a ViT saved under transformers 4 become
    /// today's (see [`vit_names`]), in the configuration as well.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let config = PeftConfig::load(&dir.join(CONFIG_FILE))?;
        let path = dir.join(MODEL_FILE);
        if !path.exists() && dir.join("adapter_model.bin").exists() {
            let reason = "is missing, and adapter_model.bin is a pickle, which may run code; save it with safe_serialization=True";
            return Err(Error::file(path, reason));
        }
        AdapterFile::collect(config, &SafeTensors::open(&path)?)
    }

    fn collect(config: PeftConfig, file: &SafeTensors) -> Result<Self> {
        let cpu = Device::cpu();
        let mut halves: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
        let mut adapter = AdapterFile { config, lora: BTreeMap::new(), full: BTreeMap::new() };
        let mut report = LoadReport::default();
        {
            let matcher = Matcher::new(&adapter.config)?;
            for key in file.names() {
                if key.len() > MAX_KEY {
                    return Err(Error::file(
                        file.path(),
                        format!("has a key of more than {MAX_KEY} bytes: {}", short(key)),
                    ));
                }
                let Some(name) = key.strip_prefix(PREFIX) else {
                    report.unexpected.push(key.into());
                    continue;
                };
                let half = [SUFFIX_A, SUFFIX_B].iter().position(|suffix| name.ends_with(suffix));
                let saved = name.rsplit_once('.').is_some_and(|(module, leaf)| {
                    matches!(leaf, "weight" | "bias") && matcher.saves(module)
                        || adapter.config.is_magnitude(module, leaf, &matcher)
                });
                if half.is_none() && !saved {
                    report.unexpected.push(key.into());
                    continue;
                }
                let tensor = file.tensor(key, &cpu)?;
                if !tensor.dtype().is_float() {
                    let reason = format!("tensor `{key}` is {}, expected a float type", tensor.dtype());
                    return Err(Error::file(file.path(), reason));
                }
                match half {
                    Some(i) => {
                        let module = &name[..name.len() - SUFFIX_A.len()];
                        halves.entry(module.to_owned()).or_default()[i] = Some(tensor);
                    }
                    None => {
                        if adapter.full.insert(vit_names::to_new(name).into_owned(), tensor).is_some() {
                            report.unexpected.push(key.into());
                        }
                    }
                }
            }
        }
        let mut pairs = BTreeMap::new();
        for (module, half) in halves {
            let keys = lora_keys(&module);
            match half {
                [Some(a), Some(b)] => {
                    pairs.insert(module, LoraPair { a, b });
                }
                [None, _] => report.missing.push(keys[0].clone()),
                [_, None] => report.missing.push(keys[1].clone()),
            }
        }
        check_pairs(&adapter.config, &pairs, &mut report)?;
        report.into_result(file.path())?;
        adapter.lora = pairs;
        adapter.modernised(file.path())
    }

    /// Today's module names throughout. Patterns over old names cannot be translated, so they are resolved: each module is named.
    fn modernised(mut self, path: &Path) -> Result<Self> {
        if self.lora.keys().all(|module| vit_names::to_new(module) == *module) {
            return Ok(self);
        }
        let matcher = Matcher::new(&self.config)?;
        let (mut ranks, mut alphas, mut lora) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (module, pair) in &self.lora {
            let new = vit_names::to_new(module).into_owned();
            // Without its first part: older versions of PEFT want something before the pattern.
            let ending = new.split_once('.').map_or(new.as_str(), |(_, rest)| rest).to_owned();
            if matcher.rank(module) != self.config.r {
                ranks.push((ending.clone(), matcher.rank(module)));
            }
            if matcher.alpha(module) != self.config.lora_alpha {
                alphas.push((ending, matcher.alpha(module)));
            }
            if lora.insert(new, pair.clone()).is_some() {
                let unexpected = lora_keys(module).to_vec();
                return LoadReport { unexpected, ..LoadReport::default() }.into_result(path).map(|()| self);
            }
        }
        self.config.target_modules = Modules::Names(lora.keys().cloned().collect());
        self.config.exclude_modules = None;
        self.config.layers_to_transform = None;
        self.config.layers_pattern = None;
        (self.config.rank_pattern, self.config.alpha_pattern, self.lora) = (ranks, alphas, lora);
        Ok(self)
    }

    /// Writes both files into `dir`, which is made if need be; other files there stay. Each file is replaced whole.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let mut transaction = Transaction::files(dir);
        self.add_to(&mut transaction, dir)?;
        transaction.commit()
    }

    pub(super) fn add_to(&self, transaction: &mut Transaction<'_>, dir: &Path) -> Result<()> {
        self.check_consistent(dir)?;
        let config = self.config.to_bytes(&dir.join(CONFIG_FILE))?;
        transaction.add(CONFIG_FILE, |sink| sink.write(&config))?;
        let tensors = self.tensors();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors = tensors.iter().map(|(key, tensor)| (key.as_str(), *tensor)).collect();
        transaction.add(MODEL_FILE, |sink| safetensors::write_into(sink, &dir.join(MODEL_FILE), tensors, &metadata))
    }

    /// What is written must be what a reader will accept and PEFT will not leave out.
    fn check_consistent(&self, dir: &Path) -> Result<()> {
        let mut report = LoadReport::default();
        check_pairs(&self.config, &self.lora, &mut report)?;
        let matcher = Matcher::new(&self.config)?;
        let saved = |name: &str| {
            let of = |(module, leaf)| matcher.saves(module) || self.config.is_magnitude(module, leaf, &matcher);
            name.rsplit_once('.').is_some_and(of)
        };
        report.unexpected.extend(self.full.keys().filter(|name| !saved(name)).map(|name| full_key(name)));
        report.into_result(dir)
    }

    /// All tensors with their keys, sorted.
    pub fn tensors(&self) -> Vec<(String, &Tensor)> {
        let pairs = self.lora.iter().flat_map(|(module, pair)| lora_keys(module).into_iter().zip([&pair.a, &pair.b]));
        let mut out: Vec<_> = pairs.chain(self.full.iter().map(|(name, tensor)| (full_key(name), tensor))).collect();
        out.sort_by(|a, b| a.0.cmp(&b.0));
        out
    }

    /// Compares with the keys and shapes that a trunk expects; the caller makes it strict with [`LoadReport::into_result`].
    pub fn compare<'a>(&self, expected: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> LoadReport {
        let mut held: BTreeMap<_, _> = self.tensors().into_iter().collect();
        let mut report = LoadReport::default();
        for (key, dims) in expected {
            match held.remove(key) {
                None => report.missing.push(key.into()),
                Some(tensor) if tensor.dims() != dims => report.misshapen(key, format!("{dims:?}"), tensor.dims()),
                Some(_) => {}
            }
        }
        report.unexpected.extend(held.into_keys());
        report
    }
}

impl PeftConfig {
    /// Whether a name is that of a DoRA's magnitudes.
    fn is_magnitude(&self, module: &str, leaf: &str, matcher: &Matcher) -> bool {
        self.use_dora && leaf == MAGNITUDE && matcher.targets(module)
    }
}

/// Every pair has the shapes and the rank that the configuration gives its module, and the configuration targets the module.
fn check_pairs(config: &PeftConfig, pairs: &BTreeMap<String, LoraPair>, report: &mut LoadReport) -> Result<()> {
    let matcher = Matcher::new(config)?;
    for (module, pair) in pairs {
        let keys = lora_keys(module);
        if !matcher.targets(module) {
            report.unexpected.extend(keys);
            continue;
        }
        let r = matcher.rank(module);
        if !matches!(pair.a.dims(), [rank, k] if *rank == r && *k > 0) {
            report.misshapen(&keys[0], format!("[{r}, k]"), pair.a.dims());
        }
        if !matches!(pair.b.dims(), [n, rank] if *rank == r && *n > 0) {
            report.misshapen(&keys[1], format!("[n, {r}]"), pair.b.dims());
        }
    }
    Ok(())
}
