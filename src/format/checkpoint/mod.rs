//! A training run on disk, to be taken up again bit for bit:
//!
//! ```text
//! <run>/step-000120/adapter_config.json, adapter_model.safetensors    the adapter; one that PEFT has can be loaded from here
//!                   state.safetensors     master parameters and both moments, flat; the losses so far; what holds the parameters, if
//!                                         elastic weight consolidation does
//!                   state.json            where the run stands, and what it was: see [`State`]
//! ```
//!
//! A checkpoint is data: whoever trains fills it and takes it apart. It appears whole or not at all ([`super::atomic`]), and a digest
//! of every tensor, in the metadata of `state.safetensors`, shows if one has changed since. Numbers that must come back bit for bit
//! are tensors (losses may be NaN, which JSON cannot say) or finite `f64` in JSON, which is written and read exactly.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::adapter::SavedAdapter;
use super::atomic::{Transaction, discard_partial, remove_directory, resolve};
use super::safetensors::{self, SafeTensors};
use super::{digest, read_small, short};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::shape::checked_numel;
use crate::tensor::{ParamSet, Tensor};

/// Of the layout that this build writes and reads.
pub const VERSION: u32 = 1;
/// Bytes of `state.json`.
pub const MAX_STATE: usize = 16 << 20;

const STATE_FILE: &str = "state.json";
const TENSORS_FILE: &str = "state.safetensors";
const NAME: &str = "step-";

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    pub version: u32,
    pub progress: Progress,
    /// The learning-rate schedule, as its type describes itself.
    pub schedule: Value,
    /// The settings that must not change over a run.
    pub config: Value,
    /// Where each parameter lies in the flat tensors.
    pub layout: Vec<Slot>,
    /// Length of the flat tensors, alignment gaps included.
    pub flat_len: usize,
}

/// Where a run stands. Randomness is counter-based, so the seed and the counters are the whole state of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Micro-batches done: the `step` of [`crate::rng::Stream`].
    pub micro_step: u64,
    pub seed: u64,
    /// Next in the data: epoch, and index within its order.
    pub epoch: u64,
    pub index: u64,
}

/// One parameter of the flat tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    pub name: String,
    pub dims: Vec<usize>,
    pub offset: usize,
}

/// Where the parameters of a set lie, in the order in which they do.
pub fn layout_of(params: &ParamSet) -> Vec<Slot> {
    let slot = |p: &crate::tensor::Param| Slot { name: p.name.clone(), dims: p.dims.to_vec(), offset: p.offset };
    let mut slots: Vec<Slot> = params.params().iter().map(slot).collect();
    slots.sort_by_key(|slot| slot.offset);
    slots
}

impl State {
    pub fn new(params: &ParamSet, progress: Progress, schedule: Value, config: Value) -> Self {
        State { version: VERSION, progress, schedule, config, layout: layout_of(params), flat_len: params.flat_len() }
    }

    /// From the bytes of a file. `path` serves the messages alone.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if bytes.len() > MAX_STATE {
            return Err(Error::file(path, format!("is {} bytes long, at most {MAX_STATE} are accepted", bytes.len())));
        }
        let invalid = |e| Error::file(path, format!("is not the state of a checkpoint: {e}"));
        // The version first: another one may have other fields.
        let Version { version } = serde_json::from_slice(bytes).map_err(invalid)?;
        if version != VERSION {
            return Err(Error::file(path, format!("has version {version}, this build reads {VERSION}")));
        }
        let state: State = serde_json::from_slice(bytes).map_err(invalid)?;
        state.check().map_err(|reason| Error::file(path, reason))?;
        Ok(state)
    }

    /// Slots in order, inside the flat tensors, apart from each other, each name once.
    fn check(&self) -> std::result::Result<(), String> {
        let (mut free, mut names) = (0, BTreeSet::new());
        for slot in &self.layout {
            let numel = checked_numel("checkpoint", &slot.dims, DType::F64.size()).ok();
            let end = numel.and_then(|n| slot.offset.checked_add(n)).filter(|&end| end <= self.flat_len);
            let fits = slot.offset >= free && names.insert(&slot.name);
            free = end.filter(|_| fits).ok_or_else(|| {
                let name = short(&slot.name);
                format!(
                    "places `{name}` {:?} at {} of {}, where it does not fit",
                    slot.dims, slot.offset, self.flat_len
                )
            })?;
        }
        Ok(())
    }

    /// Refuses the checkpoint of another trunk or other adapters, naming what differs.
    pub fn require_layout(&self, path: &Path, params: &ParamSet) -> Result<()> {
        let here = layout_of(params);
        let by_name = |slots: &[Slot]| slots.iter().map(|s| (s.name.clone(), s.clone())).collect::<BTreeMap<_, _>>();
        let (theirs, ours) = (by_name(&self.layout), by_name(&here));
        let mut report = super::peft::LoadReport::default();
        report.missing.extend(ours.keys().filter(|name| !theirs.contains_key(*name)).cloned());
        report.unexpected.extend(theirs.keys().filter(|name| !ours.contains_key(*name)).cloned());
        for (name, slot) in &ours {
            if let Some(other) = theirs.get(name).filter(|other| other.dims != slot.dims) {
                report.misshapen(name, format!("{:?}", slot.dims), &other.dims);
            }
        }
        report.into_result(path)?;
        if self.layout != here || self.flat_len != params.flat_len() {
            let first = self.layout.iter().zip(&here).find(|(a, b)| a != b).map_or("the end", |(a, _)| a.name.as_str());
            return Err(Error::file(path, format!("orders its parameters in another way, from `{}` on", short(first))));
        }
        Ok(())
    }

    /// Refuses a checkpoint made under other settings, naming each that differs.
    pub fn require_config(&self, path: &Path, config: &Value) -> Result<()> {
        let mut differences = Vec::new();
        compare("", &self.config, config, &mut differences);
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::file(path, format!("was made under other settings: {}", differences.join("; "))))
    }
}

fn compare(name: &str, theirs: &Value, ours: &Value, out: &mut Vec<String>) {
    const SHOWN: usize = 10;
    if theirs == ours || out.len() >= SHOWN {
        return;
    }
    if let (Value::Object(a), Value::Object(b)) = (theirs, ours) {
        let fields: BTreeSet<_> = a.keys().chain(b.keys()).collect();
        for field in fields {
            let path = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
            compare(&path, a.get(field).unwrap_or(&Value::Null), b.get(field).unwrap_or(&Value::Null), out);
        }
        return;
    }
    let name = if name.is_empty() { "config" } else { name };
    out.push(format!("`{}` was {} and is now {}", short(name), short(&theirs.to_string()), short(&ours.to_string())));
}

/// All of a run.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub state: State,
    pub adapter: SavedAdapter,
    /// `[flat_len]`, as [`ParamSet::master`]; the moments likewise.
    pub master: Tensor,
    pub first_moment: Tensor,
    pub second_moment: Tensor,
    /// Of elastic weight consolidation: the anchor and the sums of squared gradients.
    pub springs: Option<[Tensor; 2]>,
    /// Of every step done.
    pub losses: Vec<f64>,
}

impl Checkpoint {
    /// Writes `run/step-NNNNNN`, replacing one of that name. On an error the earlier checkpoints are as they were.
    pub fn save(&self, run: impl AsRef<Path>) -> Result<PathBuf> {
        let path = run.as_ref().join(name_of(self.state.progress.step));
        self.save_by(&path, || Transaction::directory(&path))?;
        Ok(path)
    }

    fn save_by<'g>(&self, path: &Path, begin: impl FnOnce() -> Result<Transaction<'g>>) -> Result<()> {
        self.state.check().map_err(|reason| Error::file(path, reason))?;
        for (name, tensor) in self.flat() {
            tensor.require_dims("checkpoint", name, &[self.state.flat_len])?;
            if !matches!(tensor.dtype(), DType::F32 | DType::F64) {
                let expected = "f32 or f64".into();
                return Err(Error::DType { op: "checkpoint", argument: name, expected, got: tensor.dtype() });
            }
        }
        let losses = Tensor::from_slice(&Device::cpu(), &[self.losses.len()], &self.losses)?;
        let mut tensors: Vec<(&str, &Tensor)> = self.flat().collect();
        tensors.push((LOSSES, &losses));
        let mut json = serde_json::to_vec_pretty(&self.state).map_err(|e| Error::file(path, e))?;
        json.push(b'\n');
        if json.len() > MAX_STATE {
            return Err(Error::file(
                path,
                format!("would take {} bytes of state.json, at most {MAX_STATE}", json.len()),
            ));
        }
        let mut transaction = begin()?;
        self.adapter.add_to(&mut transaction, path)?;
        let metadata = BTreeMap::from([
            // Ties the two state files together.
            ("step".to_owned(), self.state.progress.step.to_string()),
            (DIGEST.to_owned(), self.digest(&losses)?),
        ]);
        let file = path.join(TENSORS_FILE);
        transaction.add(TENSORS_FILE, |sink| safetensors::write_into(sink, &file, tensors, &metadata))?;
        transaction.add(STATE_FILE, |sink| sink.write(&json))?;
        transaction.commit()
    }

    fn flat(&self) -> impl Iterator<Item = (&'static str, &Tensor)> {
        let always = [(MASTER, &self.master), (FIRST, &self.first_moment), (SECOND, &self.second_moment)];
        always.into_iter().chain(SPRINGS.into_iter().zip(self.springs.iter().flatten()))
    }

    fn digest(&self, losses: &Tensor) -> Result<String> {
        let adapter = self.adapter.tensors();
        let mut all: Vec<(&str, &Tensor)> = self.flat().collect();
        all.push((LOSSES, losses));
        all.extend(adapter.iter().map(|(name, tensor)| (name.as_str(), *tensor)));
        digest::of(all)
    }

    /// Reads a checkpoint. The flat tensors come in buffers of their own on `device`; the adapter's are views of its file.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = resolve(path.as_ref());
        let (state, file) = open(&path)?;
        let on_cpu = |name| file.tensor(name, &Device::cpu());
        let losses = on_cpu(LOSSES)?;
        let springs = SPRINGS.map(|name| file.info(name).is_ok().then(|| on_cpu(name)).transpose());
        let [anchor, squares] = springs;
        let mut checkpoint = Checkpoint {
            state,
            springs: anchor?.zip(squares?).map(|(anchor, squares)| [anchor, squares]),
            adapter: SavedAdapter::load(&path)?,
            master: on_cpu(MASTER)?,
            first_moment: on_cpu(FIRST)?,
            second_moment: on_cpu(SECOND)?,
            losses: losses.to_vec()?,
        };
        let (written, found) = (file.metadata().get(DIGEST), checkpoint.digest(&losses)?);
        if written != Some(&found) {
            let written = written.map_or("none".into(), |digest| short(digest));
            let reason = format!("is damaged: its tensors have the digest {found}, those written had {written}");
            return Err(Error::file(&path, reason));
        }
        let always = [&mut checkpoint.master, &mut checkpoint.first_moment, &mut checkpoint.second_moment];
        for flat in always.into_iter().chain(checkpoint.springs.iter_mut().flatten()) {
            *flat = flat.to_device(device)?;
        }
        Ok(checkpoint)
    }

    /// Puts the master values, rounded for the forward pass where it computes in another dtype, into a set of the same layout.
    pub fn restore(&self, path: &Path, params: &ParamSet) -> Result<()> {
        self.state.require_layout(path, params)?;
        self.master.require_dtype("checkpoint", MASTER, params.master().dtype())?;
        params.master().set_bytes(&self.master.to_bytes()?)?;
        if params.working().buffer().id() != params.master().buffer().id() {
            params.working().set_bytes(&self.master.cast(params.dtype())?.to_bytes()?)?;
        }
        Ok(())
    }
}

const MASTER: &str = "master";
const FIRST: &str = "first_moment";
const SECOND: &str = "second_moment";
const LOSSES: &str = "losses";
/// Both, or neither.
const SPRINGS: [&str; 2] = ["anchor", "squares"];
/// In the metadata of the tensors' file.
const DIGEST: &str = "digest";

/// Reads the state and validates the tensors' header against it; reads no tensor.
fn open(path: &Path) -> Result<(State, SafeTensors)> {
    let json = path.join(STATE_FILE);
    let state = State::parse(&json, &read_small(&json, MAX_STATE)?)?;
    let file = SafeTensors::open(path.join(TENSORS_FILE))?;
    let master = file.info(MASTER)?.dtype;
    let springs = SPRINGS.into_iter().filter(|_| SPRINGS.iter().any(|name| file.info(name).is_ok()));
    for name in [MASTER, FIRST, SECOND].into_iter().chain(springs) {
        let info = file.info(name)?;
        let fits = info.dims[..] == [state.flat_len] && matches!(info.dtype, Some(DType::F32 | DType::F64));
        if !fits || info.dtype != master {
            let (dtype, dims) = (short(&info.dtype_name), &info.dims);
            let reason = format!("holds `{name}` as {dtype} {dims:?}, expected one float type, [{}]", state.flat_len);
            return Err(Error::file(file.path(), reason));
        }
    }
    if file.info(LOSSES)?.dtype != Some(DType::F64) {
        return Err(Error::file(file.path(), "holds losses that are not F64"));
    }
    if file.metadata().get("step").map(String::as_str) != Some(state.progress.step.to_string().as_str()) {
        return Err(Error::file(file.path(), format!("is not of step {}, as state.json says", state.progress.step)));
    }
    // Elsewhere a copy may have any name; among the checkpoints of a run the name is what they are ordered by.
    let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| step_of(without_old(name)));
    if named.is_some_and(|step| step != state.progress.step) {
        return Err(Error::file(path, format!("holds step {}, and not what its name says", state.progress.step)));
    }
    Ok((state, file))
}

/// The newest checkpoint of a run that can be read.
#[derive(Debug)]
pub struct Latest {
    pub path: PathBuf,
    pub step: u64,
    /// Why newer ones were passed over: worth telling the user.
    pub passed_over: Vec<Error>,
}

/// Finds the newest complete checkpoint; `None` in a directory without any, or that does not exist. Headers are validated, tensors not read.
pub fn latest(run: impl AsRef<Path>) -> Result<Option<Latest>> {
    let mut passed_over = Vec::new();
    for (step, path) in steps(run.as_ref())?.into_iter().rev() {
        match complete(&path) {
            Ok(()) => return Ok(Some(Latest { path, step, passed_over })),
            Err(error) => passed_over.push(error),
        }
    }
    // With nothing to fall back on, the newest one's defect is the answer.
    passed_over.into_iter().next().map_or(Ok(None), Err)
}

/// Removes what a process that died while saving has left. Only for who alone writes into the directory.
pub fn sweep(run: impl AsRef<Path>) -> Result<()> {
    for leftover in entries(run.as_ref())?.iter().filter_map(|name| name.strip_suffix(".partial")) {
        if step_of(leftover).is_some() && run.as_ref().join(format!("{leftover}.partial")).is_dir() {
            discard_partial(&run.as_ref().join(leftover))?;
        }
    }
    Ok(())
}

/// Removes all checkpoints but the newest `keep` complete ones (at least one) and any newer than those; [`sweep`]s before.
pub fn prune(run: impl AsRef<Path>, keep: usize) -> Result<()> {
    sweep(run.as_ref())?;
    let mut kept = 0;
    for (_, path) in steps(run.as_ref())?.into_iter().rev() {
        if kept >= keep.max(1) {
            remove_directory(&path)?;
        } else if complete(&path).is_ok() {
            kept += 1;
        }
    }
    Ok(())
}

fn complete(path: &Path) -> Result<()> {
    let home = resolve(path);
    open(&home)?;
    SavedAdapter::load(&home).map(drop)
}

/// The checkpoints of a run by step. One that a crash left as `step-N.old` counts as `step-N`.
fn steps(run: &Path) -> Result<BTreeMap<u64, PathBuf>> {
    let names = entries(run)?;
    let names = names.iter().map(|name| without_old(name));
    Ok(names.filter_map(|name| Some((step_of(name)?, run.join(name)))).collect())
}

/// The name of a checkpoint as it is written, and as nothing else is: two names of one step would hide one another.
fn name_of(step: u64) -> String {
    format!("{NAME}{step:06}")
}

fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix(NAME)?.parse().ok()?;
    (name_of(step) == name).then_some(step)
}

/// The name that a checkpoint has, or had until a replacement of it was cut off.
fn without_old(name: &str) -> &str {
    name.strip_suffix(".old").unwrap_or(name)
}

/// The names in a run's directory that are text; none where there is no directory.
fn entries(run: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(run) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io(run, e))?,
    };
    let names = entries.map(|entry| entry.map(|e| e.file_name().into_string().ok()));
    names.filter_map(|name| name.transpose()).collect::<std::io::Result<_>>().map_err(|e| Error::io(run, e))
}

#[cfg(test)]
mod tests;
