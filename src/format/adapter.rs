//! An adapter on disk: in the layout of PEFT ([`super::peft`]) where PEFT has the method, otherwise in graftwork's own, which is two
//! files of the same names:
//!
//! ```text
//! adapter_config.json          {"format": "graftwork", "version": 1, "method": "block-sparse", "settings": {…}}
//! adapter_model.safetensors    every parameter by its path, and what else the method needs, such as the indices of blocks
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::atomic::Transaction;
use super::peft::{AdapterFile, CONFIG_FILE, LoadReport, MAX_CONFIG, MODEL_FILE};
use super::safetensors::{self, SafeTensors};
use super::{json::Json, read_small};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Of graftwork's own layout.
pub const VERSION: u32 = 1;
const FORMAT: &str = "graftwork";

/// An adapter in graftwork's own layout.
#[derive(Clone, Debug)]
pub struct NativeAdapter {
    pub method: String,
    /// As the method describes itself.
    pub settings: Value,
    pub tensors: BTreeMap<String, Tensor>,
}

/// `adapter_config.json` of the own layout.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    format: String,
    version: u32,
    method: String,
    settings: Value,
}

impl NativeAdapter {
    /// Reads a directory. Tensors are views of the mapped file, on the CPU.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        match SavedAdapter::load(dir.as_ref())? {
            SavedAdapter::Native(adapter) => Ok(adapter),
            SavedAdapter::Peft(_) => {
                Err(Error::file(dir.as_ref().join(CONFIG_FILE), "is PEFT's, expected one of graftwork's own methods"))
            }
        }
    }

    fn open(dir: &Path, config: &[u8]) -> Result<Self> {
        let path = dir.join(CONFIG_FILE);
        let config: Config = serde_json::from_slice(config)
            .map_err(|e| Error::file(&path, format!("is not the configuration of an adapter: {e}")))?;
        if config.version != VERSION {
            return Err(Error::file(&path, format!("has version {}, this build reads {VERSION}", config.version)));
        }
        let file = SafeTensors::open(dir.join(MODEL_FILE))?;
        let tensor = |name: &str| Ok((name.to_string(), file.tensor(name, &Device::cpu())?));
        let tensors = file.names().map(tensor).collect::<Result<_>>()?;
        Ok(NativeAdapter { method: config.method, settings: config.settings, tensors })
    }

    /// Writes both files into `dir`, which is made if need be. Each file is replaced whole or not at all.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let mut transaction = Transaction::files(dir);
        self.add_to(&mut transaction, dir)?;
        transaction.commit()
    }

    fn add_to(&self, transaction: &mut Transaction<'_>, dir: &Path) -> Result<()> {
        let (method, settings) = (self.method.clone(), self.settings.clone());
        let config = Config { format: FORMAT.into(), version: VERSION, method, settings };
        let path = dir.join(CONFIG_FILE);
        let mut text = serde_json::to_vec_pretty(&config).map_err(|e| Error::file(&path, e))?;
        text.push(b'\n');
        if text.len() > MAX_CONFIG {
            return Err(Error::file(&path, format!("would take {} bytes, at most {MAX_CONFIG}", text.len())));
        }
        transaction.add(CONFIG_FILE, |sink| sink.write(&text))?;
        let tensors = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let none = BTreeMap::new();
        transaction.add(MODEL_FILE, |sink| safetensors::write_into(sink, &dir.join(MODEL_FILE), tensors, &none))
    }

    /// Compares with the names and shapes that are expected; the caller makes it strict with [`LoadReport::into_result`].
    pub fn compare<'a>(&self, expected: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> LoadReport {
        let mut held: BTreeMap<&str, &Tensor> = self.tensors.iter().map(|(name, t)| (name.as_str(), t)).collect();
        let mut report = LoadReport::default();
        for (name, dims) in expected {
            match held.remove(name) {
                None => report.missing.push(name.into()),
                Some(tensor) if tensor.dims() != dims => report.misshapen(name, format!("{dims:?}"), tensor.dims()),
                Some(_) => {}
            }
        }
        report.unexpected.extend(held.into_keys().map(str::to_string));
        report
    }
}

/// Either layout.
#[derive(Clone, Debug)]
pub enum SavedAdapter {
    Peft(Box<AdapterFile>),
    Native(NativeAdapter),
}

impl From<AdapterFile> for SavedAdapter {
    fn from(adapter: AdapterFile) -> Self {
        SavedAdapter::Peft(Box::new(adapter))
    }
}

impl SavedAdapter {
    /// Reads a directory, whichever layout it has.
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        let (dir, path) = (dir.as_ref(), dir.as_ref().join(CONFIG_FILE));
        let bytes = read_small(&path, MAX_CONFIG)?;
        // Strict: a name that comes twice is refused before anyone picks one of them.
        let own = match Json::parse(&path, &bytes)? {
            Json::Object(fields) => fields.iter().any(|(name, value)| name == "format" && *value == Json::text(FORMAT)),
            _ => false,
        };
        if own {
            return NativeAdapter::open(dir, &bytes).map(SavedAdapter::Native);
        }
        AdapterFile::load(dir).map(SavedAdapter::from)
    }

    /// Writes both files into `dir`, which is made if need be. Each file is replaced whole or not at all.
    pub fn save(&self, dir: impl AsRef<Path>) -> Result<()> {
        match self {
            SavedAdapter::Peft(adapter) => adapter.save(dir),
            SavedAdapter::Native(adapter) => adapter.save(dir),
        }
    }

    /// All tensors with their names, sorted.
    pub(super) fn tensors(&self) -> Vec<(String, &Tensor)> {
        match self {
            SavedAdapter::Peft(file) => file.tensors(),
            SavedAdapter::Native(own) => own.tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect(),
        }
    }

    pub(super) fn add_to(&self, transaction: &mut Transaction<'_>, dir: &Path) -> Result<()> {
        match self {
            SavedAdapter::Peft(adapter) => adapter.add_to(transaction, dir),
            SavedAdapter::Native(adapter) => adapter.add_to(transaction, dir),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;
    use serde_json::json;

    fn adapter() -> NativeAdapter {
        let cpu = Device::cpu();
        let values = Tensor::from_slice(&cpu, &[2, 2], &[1.0f32, -0.0, 3.5, 4.0]).unwrap();
        let columns = Tensor::from_slice(&cpu, &[3], &[0i64, 2, 7]).unwrap();
        let tensors = BTreeMap::from([("q.values".to_string(), values), ("q.columns".to_string(), columns)]);
        NativeAdapter { method: "block-sparse".into(), settings: json!({"block": 16, "density": 0.1}), tensors }
    }

    #[test]
    fn the_own_layout_comes_back_whole() {
        let scratch = Scratch::new("native");
        let saved = adapter();
        saved.save(scratch.path()).unwrap();
        let read = NativeAdapter::load(scratch.path()).unwrap();
        assert_eq!((&read.method, &read.settings), (&saved.method, &saved.settings));
        for (name, tensor) in &saved.tensors {
            assert_eq!(read.tensors[name].to_bytes().unwrap(), tensor.to_bytes().unwrap(), "{name}");
        }
        let expected: [(&str, &[usize]); 2] = [("q.values", &[2, 3]), ("p.values", &[1])];
        let report = read.compare(expected);
        assert_eq!((report.missing, report.unexpected), (vec!["p.values".into()], vec!["q.columns".into()]));
        assert_eq!(report.misshapen[0].name, "q.values");
    }

    #[test]
    fn configurations_that_are_not_ours_say_why() {
        let scratch = Scratch::new("native-bad");
        adapter().save(scratch.path()).unwrap();
        let path = scratch.path().join(CONFIG_FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        for (from, to, part) in [
            ("\"version\": 1", "\"version\": 2", "version 2"),
            ("\"version\": 1", "\"version\": 1, \"version\": 1", "twice"),
            ("\"version\": 1", "\"version\": 1, \"more\": 1", "unknown field"),
            ("\"graftwork\"", "\"other\"", "adapter_config.json"),
            ("\"method\": \"block-sparse\",", "", "method"),
        ] {
            std::fs::write(&path, good.replace(from, to)).unwrap();
            let error = NativeAdapter::load(scratch.path()).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
