//! What is learned. A task is one folder: its data, the frozen model that it adapts, its loss and its score. It is listed in [`ALL`].
//! Training, checkpoints, report and plots are the same for all.

mod caption;
mod digits;
pub mod graph;
mod multi;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use graftwork::adapters::Trunk;
use graftwork::autograd::{Tape, Var};
use graftwork::rng::Stream;
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{DType, Device, Error, Result};

use super::Args;
use super::options::{Read, refused};

pub const ALL: &[Entry] = &[digits::ENTRY, multi::ENTRY, caption::ENTRY, graph::ENTRY];

/// What tells one task from another before it is opened.
pub struct Entry {
    /// On the command line, in the table and in files.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// Directories that ship with the repository.
    pub trunk: &'static str,
    pub data: &'static str,
    /// What is trained where no method is named.
    pub methods: &'static [&'static str],
    /// The options that it reads, beside those of the methods. Others are refused.
    pub reads: &'static [Read],
    /// Reads the data from a directory, to be judged by a part of the training samples if the second argument says so.
    pub open: fn(&Path, bool) -> Result<Box<dyn Task>>,
    /// Runs a task that is not one training but many, compared: in place of all else.
    pub study: Option<fn(&Args, &Device) -> Result<ExitCode>>,
}

/// A task's data, and models for it.
pub trait Task: Send + Sync {
    /// What is learned, in a few words: `digits 5 to 9`.
    fn title(&self) -> String;

    /// Training samples. A step gathers some of them by index.
    fn samples(&self) -> usize;

    /// Beside the title: how much there is to train on and to judge by.
    fn about(&self) -> String;

    /// The frozen model in `trunk`, bare.
    fn model(&self, trunk: &Path, device: &Device, dtype: DType) -> Result<Box<dyn Model>>;

    /// Files in the trunk's directory that make it what it is.
    fn trunk_files(&self) -> &'static [&'static str] {
        &["config.json", "model.safetensors"]
    }
}

/// Name and value of each score; 1 is 100 %. The first is the one to compare by.
pub type Scores = Vec<(String, f64)>;

/// A frozen model with a task's data, loss and score.
pub trait Model: Send + Sync {
    fn trunk(&mut self) -> &mut dyn Trunk;

    fn device(&self) -> &Device;

    fn dtype(&self) -> DType;

    /// Declares what learns with every method: a fresh classifier.
    fn learn_heads(&mut self, params: &mut ParamSetBuilder) -> Result<()>;

    /// The modules that [`Model::learn_heads`] declares.
    fn heads(&self) -> &'static [&'static str];

    /// Numbers in the frozen trunk, as far as it still counts.
    fn frozen_numel(&self) -> usize;

    /// The share of training samples `indices` in the loss of a step over `whole` samples.
    fn loss(&self, tape: &mut Tape, indices: &[usize], whole: usize) -> Result<Var>;

    /// On the held-out samples.
    fn scores(&self, params: &ParamSet) -> Result<Scores>;

    /// Whether a batch's loss is the sum of its halves' losses, so that they may be computed side by side.
    fn divides(&self) -> bool {
        true
    }
}

pub fn by_name(name: &str) -> Result<&'static Entry> {
    let all = || ALL.iter().map(|e| e.name).collect::<Vec<_>>().join(", ");
    ALL.iter().find(|entry| entry.name == name).ok_or_else(|| refused("--task", all(), name))
}

/// The names and their help, for the command line.
pub fn names() -> clap::builder::PossibleValuesParser {
    ALL.iter().map(|entry| clap::builder::PossibleValue::new(entry.name).help(entry.about)).into()
}

/// The order in which epoch `epoch` visits `samples` samples: a function of (seed, epoch) alone, so a resumed run needs no state.
pub fn order(samples: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let stream = Stream::named(seed, epoch as u32, "data order");
    let mut order: Vec<usize> = (0..samples).collect();
    order.sort_by_key(|&i| (stream.bits(i as u64), i));
    order
}

/// Tells one trunk from another: FNV-1a over the files that make it, of a long file the first 256 MiB and its length.
pub fn fingerprint(trunk: &Path, files: &[&str]) -> Result<String> {
    use std::io::Read;
    const MOST: u64 = 256 << 20;
    let mut hash = 0xCBF2_9CE4_8422_2325u64;
    let mut add =
        |bytes: &[u8]| bytes.iter().for_each(|&b| hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3));
    for name in files {
        let path: PathBuf = trunk.join(name);
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
