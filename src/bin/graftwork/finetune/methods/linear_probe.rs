//! The yardstick: nothing learns but the task's head.

use std::path::Path;

use graftwork::Result;
use graftwork::adapters::{Trunk, adapter_file, load_adapter};
use graftwork::format::adapter::SavedAdapter;
use graftwork::format::peft::{Modules, PeftConfig};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, Model, open, to_value};

pub const ENTRY: Entry = Entry {
    name: "linear-probe",
    about: "The task's head alone",
    reads: &[],
    settings: |_, _| to_value(&LinearProbe {}),
    open: open::<LinearProbe>,
};

#[derive(Serialize, Deserialize)]
struct LinearProbe {}

impl Method for LinearProbe {
    fn attach(&self, _: &mut dyn Trunk, _: &mut ParamSetBuilder) -> Result<String> {
        Ok("the head alone learns".to_string())
    }

    fn note(&self) -> String {
        "none".into()
    }

    /// As PEFT says it: no module is targeted, and the heads are saved.
    fn save(&self, _: &Entry, _: &Value, heads: &[&str], params: &ParamSet) -> Result<SavedAdapter> {
        let modules_to_save = heads.iter().map(|head| head.to_string()).collect();
        let config = PeftConfig { modules_to_save, ..PeftConfig::new(Modules::Names(Vec::new())) };
        adapter_file(&config, params).map(SavedAdapter::from)
    }

    fn load(&self, dir: &Path, model: &mut dyn Model) -> Result<ParamSet> {
        let (device, dtype) = (model.device().clone(), model.dtype());
        load_adapter(model.trunk(), dir, &device, dtype).map(|(params, _)| params)
    }
}
