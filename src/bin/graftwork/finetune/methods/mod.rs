//! What can learn. A method is one file: its options, which options it reads, its settings, how it attaches, its line in the table. It is
//! listed here twice, in [`ALL`] and, if it has options, in [`Options`].

mod adalora;
mod adapter;
mod block_sparse;
pub mod ga_net;
mod linear_probe;
mod lora;
mod low_rank;
mod moment;
mod ranks;
mod s2ft;
mod sora;
mod sparse_adapter;
pub mod vce;
mod vl_pet;

use std::path::Path;

use graftwork::adapters::{AttachReport, Trunk, native_adapter, restore_native};
use graftwork::autograd::Grads;
use graftwork::format::adapter::{NativeAdapter, SavedAdapter};
use graftwork::optim::{AdamW, Carry};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Error, Result, Tensor};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::options::{Read, refused};
use super::strict;
use super::tasks::Model;
pub use moment::Moment;

/// Every method, in the order of the help.
pub const ALL: &[Entry] = &[
    lora::ENTRY,
    low_rank::DUAL_LORA,
    lora::DORA,
    low_rank::LORA_FA,
    low_rank::VERA,
    adalora::ENTRY,
    vl_pet::ENTRY,
    adapter::ADAPTER,
    adapter::VL_ADAPTER,
    adapter::COMPACTER,
    adapter::IA3,
    adapter::SSF,
    block_sparse::ENTRY,
    sparse_adapter::ENTRY,
    sora::ENTRY,
    s2ft::ENTRY,
    ga_net::ENTRY,
    linear_probe::ENTRY,
];

/// The options of every method. A method may read those of another: `--targets` means the same for all.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    pub lora: lora::LoraOptions,
    #[command(flatten)]
    pub low_rank: low_rank::LowRankOptions,
    #[command(flatten)]
    pub adalora: adalora::AdaLoraOptions,
    #[command(flatten)]
    pub vl_pet: vl_pet::VlPetOptions,
    #[command(flatten)]
    pub adapter: adapter::AdapterOptions,
    #[command(flatten)]
    pub block_sparse: block_sparse::BlockSparseOptions,
    #[command(flatten)]
    pub sparse_adapter: sparse_adapter::SparseAdapterOptions,
    #[command(flatten)]
    pub sora: sora::SoraOptions,
    #[command(flatten)]
    pub s2ft: s2ft::S2ftOptions,
    #[command(flatten)]
    pub ga_net: ga_net::GaNetOptions,
}

pub struct Entry {
    /// On the command line, in the table and in files.
    pub name: &'static str,
    /// One line of help.
    pub about: &'static str,
    /// The options that it reads. Others are refused, unless another method that is trained beside it reads them.
    pub reads: &'static [Read],
    /// The settings that the options ask for in a run of so many steps, checked, as a JSON object. They become part of the recipe, under
    /// the names of the options where they are options: that is how a resumed run tells that an option says something else.
    pub settings: fn(&Options, u64) -> Result<Value>,
    /// The method that settings describe; [`open`] does it for any type that can be read.
    pub open: fn(&Value) -> Result<Box<dyn Method>>,
}

/// A method with its settings.
pub trait Method: Send + Sync {
    /// Puts adapters on the trunk and declares their parameters. Returns a line for people: what was attached to what.
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String>;

    /// The cell of the table that says what the adapter is: `r=8 on 4 linears`.
    fn note(&self) -> String;

    /// The settings that these stand for, where they name several: each is a run of its own.
    fn each(&self) -> Result<Vec<Value>> {
        Ok(Vec::new())
    }

    /// The settings to choose among, if these leave something open: lists of ever smaller ones, of each of which the first that fits a budget
    /// is tried.
    fn candidates(&self) -> Result<Vec<Vec<Value>>> {
        Ok(Vec::new())
    }

    /// Whether its forward pass draws random numbers in training.
    fn is_random(&self) -> bool {
        false
    }

    /// Decides the form that the method begins with, where it has a form that changes.
    fn begin(&mut self, model: &mut dyn Model) -> Result<()> {
        let _ = model;
        Ok(())
    }

    /// Before a step: perhaps another form. `Some` says how values and moments follow; the method is then attached again.
    fn reshape(&mut self, moment: &mut Moment) -> Result<Option<Carry>> {
        let _ = moment;
        Ok(None)
    }

    /// Before the optimizer's step, with the gradients that it will take: what a method adds to them, or notes of them.
    fn before_step(&mut self, step: u64, params: &ParamSet, grads: &Grads) -> Result<()> {
        let _ = (step, params, grads);
        Ok(())
    }

    /// After the optimizer's step at rate `lr`.
    fn after_step(&self, step: u64, lr: f64, params: &ParamSet, optimizer: &AdamW) -> Result<()> {
        let _ = (step, lr, params, optimizer);
        Ok(())
    }

    /// What files hold beside the parameters to say which form it has.
    fn form(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(Vec::new())
    }

    /// Takes the form out of a file's tensors, and has it from then on.
    fn take_form(&mut self, dir: &Path, file: &mut NativeAdapter, model: &mut dyn Model) -> Result<()> {
        let _ = (dir, file, model);
        Ok(())
    }

    /// The option that names the modules or places that it goes to.
    fn picks_by(&self) -> &'static str {
        "targets"
    }

    /// The step from which its form stays as it is, and what goes on before: `--moves-until moves blocks`. `None` for a method of one form.
    fn settles_at(&self) -> Option<(u64, &'static str)> {
        None
    }

    /// Share of what could learn that does; `None` for a method of one form.
    fn density(&self) -> Option<f64> {
        None
    }

    /// What there is to draw of its form.
    fn pictures(&self) -> Vec<Picture> {
        Vec::new()
    }

    /// The trained adapter as files hold it. `settings` are the method's own; `heads` are the modules that learn as a whole beside it.
    fn save(&self, entry: &Entry, settings: &Value, heads: &[&str], params: &ParamSet) -> Result<SavedAdapter> {
        let _ = heads;
        let mut file = native_adapter(entry.name, settings.clone(), params)?;
        file.tensors.extend(self.form()?);
        Ok(SavedAdapter::Native(file))
    }

    /// Attaches the adapter in `dir` to a fresh model, from the files alone.
    fn load(&self, dir: &Path, model: &mut dyn Model) -> Result<ParamSet> {
        let mut file = NativeAdapter::load(dir)?;
        let mut saved = of_settings(&file.method, &file.settings)?;
        saved.take_form(dir, &mut file, model)?;
        let mut params = ParamSetBuilder::new();
        model.learn_heads(&mut params)?;
        saved.attach(model.trunk(), &mut params)?;
        let params = params.build(model.device(), model.dtype(), 0)?;
        restore_native(dir, &file, &params)?;
        Ok(params)
    }
}

/// The blocks of one matrix.
#[derive(Clone, Debug, Serialize)]
pub struct Picture {
    pub name: String,
    pub rows: usize,
    pub columns: usize,
    /// Row-major.
    pub filled: Vec<bool>,
}

pub fn by_name(name: &str) -> Result<&'static Entry> {
    let all = || ALL.iter().map(|e| e.name).collect::<Vec<_>>().join(", ");
    ALL.iter().find(|entry| entry.name == name).ok_or_else(|| refused("--method", all(), name))
}

/// The method of that name with these settings, and what they put beside it.
pub fn of_settings(name: &str, settings: &Value) -> Result<Box<dyn Method>> {
    let entry = by_name(name)?;
    vce::beside(settings, entry.open)
}

/// The names and their help, for the command line.
pub fn names() -> clap::builder::PossibleValuesParser {
    ALL.iter().map(|entry| clap::builder::PossibleValue::new(entry.name).help(entry.about)).into()
}

/// What was attached, as a line for people. Unlike a file that names modules of many trunks, an option that names one means it.
///
/// # Errors
/// [`Error::NoMatch`] with the names that match nothing, although others do.
fn told(report: AttachReport) -> Result<String> {
    if report.unmatched_patterns.is_empty() {
        return Ok(report.to_string());
    }
    let there: Vec<String> = report.attached.into_iter().map(|a| a.module).chain(report.untouched_modules).collect();
    Err(Error::NoMatch { patterns: report.unmatched_patterns, available: there.join(", ") })
}

/// A method from its settings.
fn open<M: Method + Serialize + DeserializeOwned + 'static>(settings: &Value) -> Result<Box<dyn Method>> {
    Ok(Box::new(parse::<M>(settings)?))
}

/// Settings as a method has them.
fn parse<M: Serialize + DeserializeOwned>(settings: &Value) -> Result<M> {
    strict::read(settings).map_err(|e| bad_settings(settings, &e))
}

/// Settings as the recipe holds them.
fn to_value(settings: &impl Serialize) -> Result<Value> {
    serde_json::to_value(settings).map_err(|e| bad_settings(&Value::Null, &e))
}

fn bad_settings(settings: &Value, error: &dyn std::fmt::Display) -> Error {
    let expected = format!("the settings of this method ({error})");
    Error::Value { op: "finetune", argument: "settings", expected, got: settings.to_string() }
}
