//! A training run on disk, to be taken up again bit for bit:
//!
//! ```text
//! <run>/step-000120/adapter_config.json, adapter_model.safetensors    the adapter; one that PEFT has can be loaded from here
//!                   state.safetensors     master parameters and both moments, flat; the losses so far
//!                   state.json            where the run stands, and what it was: see [`State`]
//! ```
//!
//! A checkpoint is data: whoever trains fills it and takes it apart. It appears whole or not at all ([`super::atomic`]), and a digest
//! of every tensor, in the metadata of `state.safetensors`, shows if one has changed since. Numbers that must come back bit for bit are tensors (losses may be NaN, which JSON cannot say) or finite `f64` in JSON, which is
//! written and read exactly.

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

/// Where the parameters of a set lie.
pub fn layout_of(params: &ParamSet) -> Vec<Slot> {
    let slot = |p: &crate::tensor::Param| Slot { name: p.name.clone(), dims: p.dims.to_vec(), offset: p.offset };
    params.params().iter().map(slot).collect()
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
    /// Of every step done.
    pub losses: Vec<f64>,
}

impl Checkpoint {
    /// Writes `run/step-NNNNNN`, replacing one of that name. On an error the earlier checkpoints are as they were.
    pub fn save(&self, run: impl AsRef<Path>) -> Result<PathBuf> {
        let path = run.as_ref().join(format!("{NAME}{:06}", self.state.progress.step));
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
        let mut tensors = self.flat().to_vec();
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

    fn flat(&self) -> [(&'static str, &Tensor); 3] {
        [(MASTER, &self.master), (FIRST, &self.first_moment), (SECOND, &self.second_moment)]
    }

    fn digest(&self, losses: &Tensor) -> Result<String> {
        let adapter = self.adapter.tensors();
        let state = self.flat().into_iter().chain([(LOSSES, losses)]);
        digest::of(state.chain(adapter.iter().map(|(name, tensor)| (name.as_str(), *tensor))))
    }

    /// Reads a checkpoint. The flat tensors come in buffers of their own on `device`; the adapter's are views of its file.
    pub fn load(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        let path = resolve(path.as_ref());
        let (state, file) = open(&path)?;
        let on_cpu = |name| file.tensor(name, &Device::cpu());
        let losses = on_cpu(LOSSES)?;
        let mut checkpoint = Checkpoint {
            state,
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
        for flat in [&mut checkpoint.master, &mut checkpoint.first_moment, &mut checkpoint.second_moment] {
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
/// In the metadata of the tensors' file.
const DIGEST: &str = "digest";

/// Reads the state and validates the tensors' header against it; reads no tensor.
fn open(path: &Path) -> Result<(State, SafeTensors)> {
    let json = path.join(STATE_FILE);
    let state = State::parse(&json, &read_small(&json, MAX_STATE)?)?;
    let file = SafeTensors::open(path.join(TENSORS_FILE))?;
    let master = file.info(MASTER)?.dtype;
    for name in [MASTER, FIRST, SECOND] {
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

/// Removes all checkpoints but the newest `keep` complete ones (at least one) and any newer than those, and what a process that died
/// while saving has left. Only for who alone writes into the directory.
pub fn prune(run: impl AsRef<Path>, keep: usize) -> Result<()> {
    for leftover in entries(run.as_ref())?.iter().filter_map(|name| name.strip_suffix(".partial")) {
        if step_of(leftover).is_some() && run.as_ref().join(format!("{leftover}.partial")).is_dir() {
            discard_partial(&run.as_ref().join(leftover))?;
        }
    }
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
    let names = names.iter().map(|name| name.strip_suffix(".old").unwrap_or(name));
    Ok(names.filter_map(|name| Some((step_of(name)?, run.join(name)))).collect())
}

fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(NAME).filter(|d| d.len() >= 6 && d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
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
mod tests {
    use super::super::atomic::Faulty;
    use super::super::peft::{AdapterFile, LoraPair, Modules, PeftConfig};
    use super::super::scratch::Scratch;
    use super::*;
    use crate::tensor::{Init, ParamSetBuilder};
    use serde_json::json;

    fn params(dtype: DType) -> ParamSet {
        let mut builder = ParamSetBuilder::new();
        builder.add("q.lora_A", &[2, 3], Init::Normal { std: 1.0 }).unwrap();
        builder.add("q.lora_B", &[5, 2], Init::Normal { std: 1.0 }).unwrap();
        builder.build(&Device::cpu(), dtype, 7).unwrap()
    }

    fn checkpoint(step: u64) -> Checkpoint {
        let (params, cpu) = (params(DType::F32), Device::cpu());
        let flat =
            |value: f32| Tensor::from_slice(&cpu, &[params.flat_len()], &vec![value; params.flat_len()]).unwrap();
        let progress = Progress { step, micro_step: 2 * step, seed: u64::MAX, epoch: 1, index: 3 };
        let config = json!({"method": "lora", "lr": 0.1 + 0.2, "nested": {"rank": 2, "lr32": f64::from(0.1f32)}});
        let tensor = |id| params.tensor(id).unwrap();
        let [a, b] = params.ids().collect::<Vec<_>>()[..] else { unreachable!() };
        let pair = LoraPair { a: tensor(a), b: tensor(b) };
        let adapter = AdapterFile {
            config: PeftConfig { r: 2, ..PeftConfig::new(Modules::Names(vec!["q".into()])) },
            lora: BTreeMap::from([("q".to_owned(), pair)]),
            full: BTreeMap::new(),
        };
        Checkpoint {
            state: State::new(&params, progress, json!({"warmup": 1e-3}), config),
            adapter: adapter.into(),
            master: params.master().duplicate().unwrap(),
            first_moment: flat(f32::MIN_POSITIVE / 8.0),
            second_moment: flat(1e30 / 3.0),
            losses: vec![1.0 / 3.0, f64::NAN, f64::NEG_INFINITY, -0.0, f64::from(0.1f32)],
        }
    }

    #[test]
    fn everything_comes_back_bit_for_bit() {
        let scratch = Scratch::new("checkpoint");
        let saved = checkpoint(12);
        let path = saved.save(scratch.path()).unwrap();
        assert!(path.ends_with("step-000012"));
        let cpu = Device::cpu();
        let read = Checkpoint::load(&path, &cpu).unwrap();
        assert_eq!(read.state, saved.state);
        let bits = |losses: &[f64]| losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read.losses), bits(&saved.losses));
        for ((_, a), (_, b)) in read.flat().into_iter().zip(saved.flat()) {
            assert_eq!((a.dtype(), a.to_bytes().unwrap()), (b.dtype(), b.to_bytes().unwrap()));
            a.zero().unwrap();
        }
        let again = Checkpoint::load(&path, &cpu).unwrap();
        assert_eq!(
            again.master.to_bytes().unwrap(),
            saved.master.to_bytes().unwrap(),
            "the file is untouched by writes"
        );
        let b = |checkpoint: &Checkpoint| match &checkpoint.adapter {
            SavedAdapter::Peft(file) => file.lora["q"].b.to_bytes().unwrap(),
            SavedAdapter::Native(_) => panic!("not PEFT's"),
        };
        assert_eq!(b(&again), b(&saved));
        saved.save(scratch.path()).unwrap();
        assert_eq!(scratch.names(), ["step-000012"]);
    }

    #[test]
    fn master_and_working_values_are_restored() {
        for dtype in [DType::F32, DType::BF16] {
            let (target, source) = (params(dtype), checkpoint(1));
            target.master().zero().unwrap();
            target.working().zero().unwrap();
            source.restore(Path::new("c"), &target).unwrap();
            assert_eq!(target.master().to_bytes().unwrap(), source.master.to_bytes().unwrap());
            let rounded = source.master.cast(dtype).unwrap().to_bytes().unwrap();
            assert_eq!(target.working().to_bytes().unwrap(), rounded);
        }
    }

    #[test]
    fn another_trunk_or_configuration_is_refused_by_name() {
        let saved = checkpoint(1);
        let build = |names: &[(&str, &[usize])]| {
            let mut builder = ParamSetBuilder::new();
            for (name, dims) in names {
                builder.add(*name, dims, Init::Zeros).unwrap();
            }
            builder.build(&Device::cpu(), DType::F32, 0).unwrap()
        };
        let error =
            saved.restore(Path::new("run/c"), &build(&[("q.lora_A", &[2, 4]), ("v.lora_B", &[5, 2])])).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::AdapterMismatch { .. }));
        for part in ["run/c", "v.lora_B", "q.lora_B", "[2, 3], expected [2, 4]"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let error = saved.restore(Path::new("c"), &build(&[("q.lora_B", &[5, 2]), ("q.lora_A", &[2, 3])])).unwrap_err();
        assert!(error.to_string().contains("another way, from `q.lora_A`"), "{error}");

        let mut config = saved.state.config.clone();
        saved.state.require_config(Path::new("c"), &config).unwrap();
        config["nested"]["rank"] = json!(4);
        config["seed"] = json!(1);
        let error = saved.state.require_config(Path::new("c"), &config).unwrap_err().to_string();
        assert!(error.contains("`nested.rank` was 2 and is now 4; `seed` was null and is now 1"), "{error}");
    }

    #[test]
    fn the_newest_complete_one_is_found_and_older_ones_go() {
        let scratch = Scratch::new("latest");
        let run = scratch.path().join("run");
        assert!(latest(&run).unwrap().is_none());
        for step in [8, 9, 10, 1_000_000] {
            checkpoint(step).save(&run).unwrap();
        }
        std::fs::create_dir(run.join("step-2000000.partial")).unwrap();
        std::fs::create_dir(run.join("step-best")).unwrap();
        assert_eq!(latest(&run).unwrap().unwrap().step, 1_000_000);
        // A crash between the two renames of a replacement.
        std::fs::rename(run.join("step-1000000"), run.join("step-1000000.old")).unwrap();
        let found = latest(&run).unwrap().unwrap();
        assert_eq!(found.step, 1_000_000);
        assert_eq!(Checkpoint::load(&found.path, &Device::cpu()).unwrap().state.progress.step, 1_000_000);
        let tensors = run.join("step-1000000.old/state.safetensors");
        let bytes = std::fs::read(&tensors).unwrap();
        std::fs::write(&tensors, &bytes[..bytes.len() - 1]).unwrap();
        let found = latest(&run).unwrap().unwrap();
        assert_eq!((found.step, found.passed_over.len()), (10, 1));
        assert!(found.passed_over[0].to_string().contains("truncated"));
        prune(&run, 2).unwrap();
        let left: Vec<_> = steps(&run).unwrap().into_keys().collect();
        assert_eq!(left, [9, 10, 1_000_000], "the damaged one is kept for its owner");
        assert!(!run.join("step-2000000.partial").exists() && run.join("step-best").exists());
        prune(&run, 0).unwrap();
        assert_eq!(latest(&run).unwrap().unwrap().step, 10);
        std::fs::remove_file(run.join("step-000010/state.json")).unwrap();
        assert!(latest(&run).is_err());
    }

    #[test]
    fn a_flipped_bit_in_any_tensor_is_noticed() {
        let scratch = Scratch::new("flipped");
        let path = checkpoint(3).save(scratch.path()).unwrap();
        for name in [TENSORS_FILE, "adapter_model.safetensors"] {
            let file = path.join(name);
            let whole = std::fs::read(&file).unwrap();
            let data = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
            for at in (data..whole.len()).step_by(5) {
                let mut damaged = whole.clone();
                damaged[at] ^= 1;
                std::fs::write(&file, damaged).unwrap();
                if let Err(error) = Checkpoint::load(&path, &Device::cpu()) {
                    assert!(matches!(error, Error::File { .. }) && error.to_string().contains("digest"), "{error}");
                } else {
                    panic!("byte {at} of {name}, {data} on");
                }
            }
            std::fs::write(&file, whole).unwrap();
        }
        Checkpoint::load(&path, &Device::cpu()).unwrap();
    }

    #[test]
    fn files_of_two_steps_are_not_mixed() {
        let scratch = Scratch::new("mixed");
        let [a, b] = [1, 2].map(|step| checkpoint(step).save(scratch.path()).unwrap());
        std::fs::copy(a.join(TENSORS_FILE), b.join(TENSORS_FILE)).unwrap();
        let error = Checkpoint::load(&b, &Device::cpu()).unwrap_err().to_string();
        assert!(error.contains("not of step 2"), "{error}");
    }

    #[test]
    fn a_failed_save_leaves_the_previous_checkpoint() {
        let scratch = Scratch::new("failed");
        let good = checkpoint(5);
        let path = good.save(scratch.path()).unwrap();
        let mut bad = checkpoint(5);
        if let SavedAdapter::Peft(file) = &mut bad.adapter {
            file.config.r = 3;
        }
        assert!(bad.save(scratch.path()).is_err(), "an adapter that fits no configuration");
        bad = checkpoint(5);
        bad.second_moment = bad.second_moment.slice(0, 0, 1).unwrap();
        assert!(bad.save(scratch.path()).is_err());
        // A file where the directory of checkpoints should be.
        let file = scratch.path().join("file");
        std::fs::write(&file, []).unwrap();
        assert!(good.save(&file).unwrap_err().to_string().contains("file/step-000005"));
        Checkpoint::load(&path, &Device::cpu()).unwrap();
        assert_eq!(scratch.names(), ["file", "step-000005"]);
    }

    /// Every step of the writer fails once, and once the process dies there: the step's old checkpoint loads, or the new one.
    #[test]
    fn wherever_a_save_breaks_off_a_whole_checkpoint_is_there() {
        for dead in [false, true] {
            for at in 0.. {
                let scratch = Scratch::new(&format!("broken-{dead}-{at}"));
                let path = checkpoint(5).save(scratch.path()).unwrap();
                let mut next = checkpoint(5);
                next.losses = vec![at as f64];
                let gate = Faulty::new(at, dead);
                let result = next.save_by(&path, || Transaction::begin_directory(&path, &gate));
                let read = Checkpoint::load(&path, &Device::cpu()).unwrap();
                let is_new = read.losses == next.losses;
                assert!(is_new || read.losses.len() == checkpoint(5).losses.len());
                assert!(is_new || result.is_err());
                assert_eq!(latest(scratch.path()).unwrap().unwrap().step, 5);
                if gate.seen.get() <= at {
                    assert!(result.is_ok() && at > 20, "every step was reached");
                    break;
                }
            }
        }
    }

    #[test]
    fn hostile_states_are_refused() {
        let good = checkpoint(1).state;
        let parse = |state: &State| State::parse(Path::new("state.json"), &serde_json::to_vec(state).unwrap());
        assert_eq!(parse(&good).unwrap(), good);
        let refused = |change: &dyn Fn(&mut State), part: &str| {
            let mut state = good.clone();
            change(&mut state);
            let error = parse(&state).unwrap_err().to_string();
            assert!(error.starts_with("state.json") && error.contains(part), "{part}: {error}");
        };
        refused(&|s| s.version = 2, "version 2, this build reads 1");
        refused(&|s| s.layout[1].offset = 1, "does not fit");
        refused(&|s| s.layout[1].name = s.layout[0].name.clone(), "does not fit");
        refused(&|s| s.layout[0].dims = vec![usize::MAX, 2], "does not fit");
        refused(&|s| s.layout[1].offset = usize::MAX, "does not fit");
        refused(&|s| s.flat_len = 3, "does not fit");
        let text = String::from_utf8(serde_json::to_vec(&good).unwrap()).unwrap();
        let twice = text.replacen("\"progress\"", "\"flat_len\":1,\"progress\"", 1);
        for bad in [twice.as_str(), &text[..text.len() - 1], "{}", "", "[1]", "{\"version\":-1}"] {
            assert!(State::parse(Path::new("state.json"), bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
