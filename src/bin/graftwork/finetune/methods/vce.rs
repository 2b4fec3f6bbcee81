//! Visual cue enhancement beside a method: one more module that learns, in the trunk's tap.

use std::path::Path;

use graftwork::adapters::{AttachReport, Trunk, VceConfig};
use graftwork::autograd::Grads;
use graftwork::format::adapter::NativeAdapter;
use graftwork::optim::{AdamW, Carry};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Result, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Method, Model, Moment, Picture, parse, to_value};
use crate::finetune::options::{Read, WIDTH, refused, size};

/// Of a task whose trunk has patches.
pub const READS: Read = Read::always(&["vce"]);
pub const FORM: Read =
    Read::when(&["vce_depths", "vce_anchor", "vce_heads", "vce_points", "vce_bare"], "with --vce", |args| args.vce.vce);

#[derive(clap::Args)]
pub struct VceOptions {
    /// Let the tokens before the last block look, by deformable attention, at the maps of several depths
    #[arg(long)]
    pub vce: bool,
    /// Maps to look at: the last so many depths
    #[arg(long, default_value_t = 4, value_parser = size(1..=8))]
    pub vce_depths: usize,
    /// Which map's tokens look, counted from the shallowest [default: the deepest]
    #[arg(long, value_parser = size(0..=7))]
    pub vce_anchor: Option<usize>,
    /// Heads
    #[arg(long, default_value_t = 4, value_parser = size(1..=WIDTH))]
    pub vce_heads: usize,
    /// Places that a head looks at in each map
    #[arg(long, default_value_t = 4, value_parser = size(1..=32))]
    pub vce_points: usize,
    /// No norm over what comes out
    #[arg(long)]
    pub vce_bare: bool,
}

#[derive(Serialize, Deserialize)]
struct Settings {
    vce: bool,
    vce_depths: usize,
    vce_anchor: usize,
    vce_heads: usize,
    vce_points: usize,
    vce_bare: bool,
}

impl Settings {
    fn add_to(&self, settings: &mut Map<String, Value>) -> Result<()> {
        if let Value::Object(own) = to_value(self)? {
            settings.extend(own);
        }
        Ok(())
    }

    /// The same module beside each of some settings.
    fn beside(&self, mut all: Vec<Value>) -> Result<Vec<Value>> {
        for settings in all.iter_mut().filter_map(Value::as_object_mut) {
            self.add_to(settings)?;
        }
        Ok(all)
    }
}

/// Adds what `options` ask for to a method's settings.
pub fn add_to(settings: &mut Map<String, Value>, options: &VceOptions) -> Result<()> {
    if !options.vce {
        return Ok(());
    }
    let own = Settings {
        vce: true,
        vce_depths: options.vce_depths,
        vce_anchor: options.vce_anchor.unwrap_or(options.vce_depths - 1),
        vce_heads: options.vce_heads,
        vce_points: options.vce_points,
        vce_bare: options.vce_bare,
    };
    own.add_to(settings)
}

/// The method that `open` makes of its own settings, with the module beside it that the others ask for, if there are any.
pub fn beside(settings: &Value, open: impl FnOnce(&Value) -> Result<Box<dyn Method>>) -> Result<Box<dyn Method>> {
    let all = settings.as_object().cloned().unwrap_or_default();
    let (vce, own): (Map<_, _>, Map<_, _>) = all.into_iter().partition(|(name, _)| name.starts_with("vce"));
    let method = open(&Value::Object(own))?;
    if vce.is_empty() {
        return Ok(method);
    }
    Ok(Box::new(Beside { method, settings: parse(&Value::Object(vce))? }))
}

impl Settings {
    fn config(&self, trunk: &mut dyn Trunk) -> Result<VceConfig> {
        let depth = trunk.tap()?.map_or(0, |tap| tap.depth());
        let Settings { vce_depths: count, vce_anchor: anchor, vce_heads: heads, vce_points: points, vce_bare, .. } =
            *self;
        if count > depth + 1 {
            let expected = format!("at most {}, the depths of this trunk", depth + 1);
            return Err(refused("--vce-depths", expected, count));
        }
        let depths = (depth + 1 - count..=depth).collect();
        Ok(VceConfig { depths, anchor, heads, points, post_norm: !vce_bare })
    }

    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<AttachReport> {
        self.config(trunk)?.attach(trunk, params)
    }
}

struct Beside {
    method: Box<dyn Method>,
    settings: Settings,
}

impl Method for Beside {
    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        let summary = self.method.attach(trunk, params)?;
        let report = self.settings.attach(trunk, params)?;
        Ok(format!("{summary}; vce, {} trainable numbers", report.params()))
    }

    fn picks_by(&self) -> &'static str {
        self.method.picks_by()
    }

    fn settles_at(&self) -> Option<(u64, &'static str)> {
        self.method.settles_at()
    }

    fn note(&self) -> String {
        format!("{} + vce", self.method.note())
    }

    fn each(&self) -> Result<Vec<Value>> {
        self.settings.beside(self.method.each()?)
    }

    fn candidates(&self) -> Result<Vec<Vec<Value>>> {
        self.method.candidates()?.into_iter().map(|kind| self.settings.beside(kind)).collect()
    }

    fn is_random(&self) -> bool {
        self.method.is_random()
    }

    fn begin(&mut self, model: &mut dyn Model) -> Result<()> {
        self.method.begin(model)
    }

    fn reshape(&mut self, moment: &mut Moment) -> Result<Option<Carry>> {
        let Beside { method, settings } = self;
        method.reshape(&mut moment.with(&|trunk, params| settings.attach(trunk, params).map(drop)))
    }

    fn before_step(&mut self, step: u64, params: &ParamSet, grads: &Grads) -> Result<()> {
        self.method.before_step(step, params, grads)
    }

    fn after_step(&self, step: u64, lr: f64, params: &ParamSet, optimizer: &AdamW) -> Result<()> {
        self.method.after_step(step, lr, params, optimizer)
    }

    fn form(&self) -> Result<Vec<(String, Tensor)>> {
        self.method.form()
    }

    fn take_form(&mut self, dir: &Path, file: &mut NativeAdapter, model: &mut dyn Model) -> Result<()> {
        self.method.take_form(dir, file, model)
    }

    fn density(&self) -> Option<f64> {
        self.method.density()
    }

    fn pictures(&self) -> Vec<Picture> {
        self.method.pictures()
    }
}
