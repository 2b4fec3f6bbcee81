//! The model of a run: frozen trunk, adapters, parameters; saved as an adapter and loaded back from one.

use std::path::Path;

use graftwork::adapters::{HeadInit, train_head};
use graftwork::autograd::{Tape, Var};
use graftwork::models::vit::Vit;
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Device, Error, Result};

use super::args::{Method, Recipe};
use crate::digits::Samples;

/// Digits 5 to 9.
pub const CLASSES: usize = 5;

pub struct Model {
    pub trunk: Vit,
    pub params: ParamSet,
    pub total_params: usize,
    pub summary: String,
}

/// The trunk with fresh adapters.
pub fn build(recipe: &Recipe, device: &Device) -> Result<Model> {
    let dtype = recipe.dtype()?;
    let mut trunk = Vit::load(&recipe.trunk, device, dtype)?;
    let mut params = ParamSetBuilder::new();
    train_head(&mut trunk, "classifier", HeadInit::Fresh { classes: CLASSES }, &mut params)?;
    let summary = match recipe.method {
        Method::Lora => recipe.lora()?.attach(&mut trunk, &mut params)?.to_string(),
        Method::LinearProbe => "the classifier alone learns".to_string(),
    };
    let params = params.build(device, dtype, recipe.seed)?;
    let total_params = trunk.frozen_numel() + params.numel();
    Ok(Model { trunk, params, total_params, summary })
}

/// The trunk with the adapter that was saved in `dir`: nothing of the trained model is reused.
pub fn reload(dir: &Path, recipe: &Recipe, device: &Device) -> Result<Model> {
    let dtype = recipe.dtype()?;
    let mut trunk = Vit::load(&recipe.trunk, device, dtype)?;
    let (params, report) = graftwork::adapters::load_adapter(&mut trunk, dir, device, dtype)?;
    let total_params = trunk.frozen_numel() + params.numel();
    Ok(Model { trunk, params, total_params, summary: report.to_string() })
}

impl Model {
    /// Share of `samples` classified rightly.
    pub fn accuracy(&self, samples: &Samples) -> Result<f64> {
        const BATCH: usize = 256;
        let mut right = 0;
        let all: Vec<usize> = (0..samples.len()).collect();
        for indices in all.chunks(BATCH) {
            let batch = samples.batch(indices, self.trunk.device(), self.trunk.dtype())?;
            let mut tape = Tape::inference(&self.params);
            let logits = self.trunk.forward(&mut tape, &Var::constant(batch.pixels))?.tensor().to_f32_vec()?;
            for (row, &i) in logits.chunks_exact(CLASSES).zip(indices) {
                let best = (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                right += usize::from(best == usize::try_from(samples.labels()[i]).ok());
            }
        }
        Ok(right as f64 / samples.len().max(1) as f64)
    }

    pub fn save_adapter(&self, dir: &Path, recipe: &Recipe) -> Result<()> {
        graftwork::adapters::save_adapter(dir, &recipe.peft()?, &self.params)
    }
}

/// Tells one trunk from another: FNV-1a over the files that make it, of a long file the first 256 MiB and its length.
pub fn fingerprint(trunk: &Path) -> Result<String> {
    use std::io::Read;
    const MOST: u64 = 256 << 20;
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let mut add =
        |bytes: &[u8]| bytes.iter().for_each(|&b| hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
    for name in ["config.json", "model.safetensors"] {
        let path = trunk.join(name);
        let io = |source| Error::Io { path: path.clone(), source };
        let info = std::fs::metadata(&path).map_err(io)?;
        if !info.is_file() {
            return Err(Error::File { path, reason: "is not a regular file".into() });
        }
        add(&info.len().to_le_bytes());
        let mut file = std::fs::File::open(&path).map_err(io)?.take(MOST);
        let mut part = vec![0; 1 << 20];
        loop {
            match file.read(&mut part).map_err(io)? {
                0 => break,
                n => add(&part[..n]),
            }
        }
    }
    Ok(format!("{hash:016x}"))
}
