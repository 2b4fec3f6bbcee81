//! Adapters to and from files, in the layout of PEFT or in graftwork's own.

use std::collections::BTreeMap;
use std::path::Path;

use super::head::learn_whole;
use super::{AttachReport, Trunk, dora, lora};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::format::adapter::NativeAdapter;
use crate::format::peft::{AdapterFile, LoraPair, MODEL_FILE, Matcher, Modules, PeftConfig, full_key, lora_keys};
use crate::tensor::{Init, ParamId, ParamSet, ParamSetBuilder, Tensor};

/// The parts of a parameter's name that say what it is.
const A: &str = ".lora_A";
const B: &str = ".lora_B";

/// The trained parameters as an adapter file holds them, in f32.
pub fn adapter_file(config: &PeftConfig, params: &ParamSet) -> Result<AdapterFile> {
    let mut file = AdapterFile { config: config.clone(), lora: BTreeMap::new(), full: BTreeMap::new() };
    for id in params.ids() {
        let name = params.get(id)?.name.clone();
        if let Some(module) = name.strip_suffix(A) {
            let partner = params.find(&format!("{module}{B}"));
            let b = partner.map(|b| on_host(params, b)).transpose()?;
            if let Some(b) = b {
                file.lora.insert(module.to_string(), LoraPair { a: on_host(params, id)?, b });
            }
        } else if !name.ends_with(B) {
            file.full.insert(name, on_host(params, id)?);
        }
    }
    Ok(file)
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`. Each file is replaced whole or not at all.
pub fn save_adapter(dir: &Path, config: &PeftConfig, params: &ParamSet) -> Result<()> {
    adapter_file(config, params)?.save(dir)
}

/// Attaches the adapter in `dir` to a bare trunk. Strict: an adapter that lacks a tensor, has one too many or one of another shape is
/// refused with a list of them all.
///
/// # Errors
/// [`Error::AdapterMismatch`](crate::Error::AdapterMismatch), [`Error::NoMatch`](crate::Error::NoMatch),
/// [`Error::ConfigField`](crate::Error::ConfigField) for a method that is not supported, and those of reading the files.
pub fn load_adapter(
    trunk: &mut dyn Trunk,
    dir: &Path,
    device: &Device,
    dtype: DType,
) -> Result<(ParamSet, AttachReport)> {
    let file = AdapterFile::load(dir)?;
    let mut builder = ParamSetBuilder::new();
    attach_saved_modules(&file, trunk, &mut builder)?;
    let targets_nothing = matches!(&file.config.target_modules, Modules::Names(names) if names.is_empty());
    let report = if targets_nothing && !file.full.is_empty() {
        AttachReport::default()
    } else if file.config.use_dora {
        dora::attach(&file.config, 1.0, trunk, &mut builder)?
    } else {
        lora::attach(&file.config, 1.0, trunk, &mut builder)?
    };
    let params = builder.build(device, dtype, 0)?;
    let expected: Vec<(String, ParamId)> =
        params.ids().map(|id| Ok((key(&params.get(id)?.name), id))).collect::<Result<_>>()?;
    let shapes: Vec<(&str, &[usize])> =
        expected.iter().map(|(key, id)| Ok((key.as_str(), &*params.get(*id)?.dims))).collect::<Result<_>>()?;
    file.compare(shapes).into_result(&dir.join(MODEL_FILE))?;
    let held: BTreeMap<String, &Tensor> = file.tensors().into_iter().collect();
    for (key, id) in &expected {
        if let Some(tensor) = held.get(key) {
            params.set(*id, &tensor.to_f32_vec()?)?;
        }
    }
    Ok((params, report))
}

/// The trained parameters under their own names, in f32, for a method that PEFT does not have. `settings` is how the method describes itself.
pub fn native_adapter(method: &str, settings: serde_json::Value, params: &ParamSet) -> Result<NativeAdapter> {
    let named = |id| Ok((params.get(id)?.name.clone(), on_host(params, id)?));
    Ok(NativeAdapter { method: method.into(), settings, tensors: params.ids().map(named).collect::<Result<_>>()? })
}

/// Puts the tensors of a file into the parameters that a method has declared from its settings. Strict, as [`load_adapter`] is.
pub fn restore_native(dir: &Path, file: &NativeAdapter, params: &ParamSet) -> Result<()> {
    file.compare(params.params().iter().map(|p| (p.name.as_str(), &*p.dims))).into_result(&dir.join(MODEL_FILE))?;
    for id in params.ids() {
        if let Some(tensor) = file.tensors.get(&params.get(id)?.name) {
            params.set(id, &tensor.to_f32_vec()?)?;
        }
    }
    Ok(())
}

/// Gives every linear that the file stores in full a dense layer of the file's width.
fn attach_saved_modules(file: &AdapterFile, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<()> {
    let matcher = Matcher::new(&file.config)?;
    for linear in trunk.linears()? {
        if !matcher.saves(linear.name()) {
            continue;
        }
        let held = |leaf: &str| file.full.get(&format!("{}.{leaf}", linear.name()));
        let n = held("weight").and_then(|w| w.dims().first().copied()).unwrap_or(linear.weight().n()).max(1);
        let bias = held("bias").map(|_| Init::Zeros);
        learn_whole(linear, n, Init::Zeros, bias, params)?;
    }
    Ok(())
}

fn key(name: &str) -> String {
    if let Some(module) = name.strip_suffix(A) {
        let [a, _] = lora_keys(module);
        return a;
    }
    if let Some(module) = name.strip_suffix(B) {
        let [_, b] = lora_keys(module);
        return b;
    }
    full_key(name)
}

fn on_host(params: &ParamSet, id: ParamId) -> Result<Tensor> {
    params.view(params.master(), id)?.to_device(&Device::cpu())?.cast(DType::F32)
}
