//! `adapter_config.json`. A conservative set of fields is written, which PEFT has known since 2023; every field is read that
//! says how the forward pass goes, and a field that would change it in a way not supported here is refused by name.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::format::json::Json;
use crate::format::{atomic, read_small};

/// Bytes of a configuration. Real ones have a few thousand.
pub const MAX_CONFIG: usize = 4 << 20;

/// Which modules are meant, as PEFT says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modules {
    /// Module paths or their endings, at a dot.
    Names(Vec<String>),
    /// A regular expression that must match the whole module path.
    Pattern(String),
    /// Every linear layer but the output layer.
    AllLinear,
}

/// How A and B began. Nothing depends on it after training: the initialisations that also change the trunk are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InitLora {
    Flag(bool),
    Named(String),
}

/// The fields of a LoRA configuration that say something here. `bias` is always "none" and `fan_in_fan_out` always false.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    pub r: usize,
    pub lora_alpha: f64,
    pub lora_dropout: f64,
    /// Scale by alpha/√r instead of alpha/r.
    pub use_rslora: bool,
    /// Magnitudes of the rows learn as well: DoRA.
    pub use_dora: bool,
    pub target_modules: Modules,
    pub exclude_modules: Option<Modules>,
    /// Indices of the layers that `target_modules` is limited to.
    pub layers_to_transform: Option<Vec<usize>>,
    pub layers_pattern: Option<Vec<String>>,
    /// Modules trained, and stored, in full.
    pub modules_to_save: Vec<String>,
    /// Ranks that differ from `r`: the first pattern that matches the end of a module path counts.
    pub rank_pattern: Vec<(String, usize)>,
    pub alpha_pattern: Vec<(String, f64)>,
    pub init_lora_weights: InitLora,
    pub inference_mode: bool,
    pub base_model_name_or_path: Option<String>,
    pub revision: Option<String>,
    pub task_type: Option<String>,
    pub auto_mapping: Option<Value>,
}

impl PeftConfig {
    /// PEFT's defaults.
    pub fn new(target_modules: Modules) -> Self {
        PeftConfig {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            use_rslora: false,
            use_dora: false,
            target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            modules_to_save: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            init_lora_weights: InitLora::Flag(true),
            inference_mode: true,
            base_model_name_or_path: None,
            revision: None,
            task_type: None,
            auto_mapping: None,
        }
    }

    pub fn load(path: &Path) -> Result<Self> {
        PeftConfig::parse(path, &read_small(path, MAX_CONFIG)?)
    }

    /// From the bytes of a file. `path` serves the messages alone.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_CONFIG {
            return Err(Error::file(path, format!("is {} bytes long, at most {MAX_CONFIG} are accepted", bytes.len())));
        }
        let Json::Object(entries) = Json::parse(path, bytes)? else {
            return Err(Error::file(path, "is not a JSON object"));
        };
        Fields { path, entries }.read()
    }

    pub fn save(&self, path: &Path) -> Result<()> {
        atomic::write_file(path, self.to_bytes(path)?)
    }

    /// As written to `adapter_config.json`. `path` serves the messages alone.
    pub(in crate::format) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        self.check().map_err(|reason| Error::file(path, reason))?;
        let opt = |text: &Option<String>| text.as_ref().map_or(Json::Null, Json::text);
        let texts = |list: &[String]| Json::List(list.iter().map(Json::text).collect());
        let whole = |n: usize| Json::Number((n as u64).into());
        let modules = |modules: &Modules| match modules {
            Modules::Names(names) => texts(names),
            Modules::Pattern(pattern) => Json::text(pattern),
            Modules::AllLinear => Json::text(ALL_LINEAR),
        };
        let init = match &self.init_lora_weights {
            InitLora::Flag(flag) => Json::Bool(*flag),
            InitLora::Named(name) => Json::text(name),
        };
        let mut fields = vec![
            ("base_model_name_or_path", opt(&self.base_model_name_or_path)),
            ("bias", Json::text("none")),
            ("fan_in_fan_out", Json::Bool(false)),
            ("inference_mode", Json::Bool(self.inference_mode)),
            ("init_lora_weights", init),
            ("lora_alpha", Json::number(self.lora_alpha)),
            ("lora_dropout", Json::number(self.lora_dropout)),
            (
                "modules_to_save",
                if self.modules_to_save.is_empty() { Json::Null } else { texts(&self.modules_to_save) },
            ),
            ("peft_type", Json::text("LORA")),
            ("r", whole(self.r)),
            ("target_modules", modules(&self.target_modules)),
            ("task_type", opt(&self.task_type)),
        ];
        // Younger fields are written only where they say something, so that older versions can load the rest.
        if let Some(mapping) = &self.auto_mapping {
            fields.push(("auto_mapping", serde_json::from_value(mapping.clone()).map_err(|e| Error::file(path, e))?));
        }
        if let Some(revision) = &self.revision {
            fields.push(("revision", Json::text(revision)));
        }
        if let Some(excluded) = &self.exclude_modules {
            fields.push(("exclude_modules", modules(excluded)));
        }
        if let Some(layers) = &self.layers_to_transform {
            fields.push(("layers_to_transform", Json::List(layers.iter().map(|&n| whole(n)).collect())));
        }
        if let Some(patterns) = &self.layers_pattern {
            fields.push(("layers_pattern", texts(patterns)));
        }
        if self.use_rslora {
            fields.push(("use_rslora", Json::Bool(true)));
        }
        if self.use_dora {
            fields.push(("use_dora", Json::Bool(true)));
        }
        if !self.rank_pattern.is_empty() {
            let ranks = self.rank_pattern.iter().map(|(key, r)| (key.clone(), whole(*r))).collect();
            fields.push(("rank_pattern", Json::Object(ranks)));
        }
        if !self.alpha_pattern.is_empty() {
            let alphas = self.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), Json::number(*alpha))).collect();
            fields.push(("alpha_pattern", Json::Object(alphas)));
        }
        fields.sort_by_key(|(name, _)| *name);
        Ok(Json::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()).to_pretty())
    }

    fn check(&self) -> std::result::Result<(), String> {
        let ranks = std::iter::once(self.r).chain(self.rank_pattern.iter().map(|(_, r)| *r));
        if ranks.min() == Some(0) {
            return Err("has a rank of 0; expected at least 1".into());
        }
        let mut alphas = std::iter::once(self.lora_alpha).chain(self.alpha_pattern.iter().map(|(_, alpha)| *alpha));
        if alphas.any(|alpha| !alpha.is_finite()) {
            return Err("has an alpha that is not finite".into());
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(format!("has `lora_dropout` = {}; expected at least 0 and below 1", self.lora_dropout));
        }
        Ok(())
    }
}

const ALL_LINEAR: &str = "all-linear";

/// Initialisations that draw A and B and leave the trunk alone.
const INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Fields that may hold anything: what they say is settled by other fields, or matters to other programs only.
const IGNORED: [&str; 4] = ["peft_version", "megatron_core", "qalora_group_size", "runtime_config"];

/// Fields that change the forward pass when set, beside all that begin with `use_` or `alora_` or end with `_config`.
const CHANGING: [&str; 6] = [
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "ensure_weight_tying",
];

fn changes_forward(name: &str) -> bool {
    CHANGING.contains(&name) || name.starts_with("use_") || name.starts_with("alora_") || name.ends_with("_config")
}

struct Fields<'a> {
    path: &'a Path,
    entries: Vec<(String, Json)>,
}

impl Fields<'_> {
    fn read(mut self) -> Result<PeftConfig> {
        match self.take("peft_type") {
            Some(Json::Text(kind)) if kind == "LORA" => {}
            Some(other) => return Err(self.refused("peft_type", &other, "only \"LORA\" is read here")),
            None => return Err(Error::file(self.path, "has no `peft_type`; is this an adapter's configuration?")),
        }
        match self.take("bias") {
            None => {}
            Some(Json::Text(bias)) if bias == "none" => {}
            Some(other) => return Err(self.refused("bias", &other, "only \"none\" is supported")),
        }
        let target_modules = self.modules("target_modules")?;
        let target_modules = target_modules
            .ok_or_else(|| Error::file(self.path, "has no `target_modules`; expected a list of names or a pattern"))?;
        let mut config = PeftConfig::new(target_modules);
        config.exclude_modules = self.modules("exclude_modules")?;
        config.modules_to_save = self.texts("modules_to_save")?.unwrap_or_default();
        config.layers_pattern = self.texts("layers_pattern")?;
        config.layers_to_transform = match self.take("layers_to_transform") {
            None => None,
            Some(Json::List(items)) => {
                Some(items.into_iter().map(|n| self.whole("layers_to_transform", n)).collect::<Result<_>>()?)
            }
            Some(one) => Some(vec![self.whole("layers_to_transform", one)?]),
        };
        if let Some(r) = self.take("r") {
            config.r = self.whole("r", r)?;
        }
        if let Some(alpha) = self.take("lora_alpha") {
            config.lora_alpha = self.float("lora_alpha", alpha)?;
        }
        if let Some(dropout) = self.take("lora_dropout") {
            config.lora_dropout = self.float("lora_dropout", dropout)?;
        }
        config.use_rslora = self.flag("use_rslora")?.unwrap_or(false);
        config.use_dora = self.flag("use_dora")?.unwrap_or(false);
        config.inference_mode = self.flag("inference_mode")?.unwrap_or(false);
        for (key, value) in self.object("rank_pattern")? {
            let r = self.whole("rank_pattern", value)?;
            config.rank_pattern.push((key, r));
        }
        for (key, value) in self.object("alpha_pattern")? {
            let alpha = self.float("alpha_pattern", value)?;
            config.alpha_pattern.push((key, alpha));
        }
        match self.take("init_lora_weights") {
            None => {}
            Some(Json::Bool(flag)) => config.init_lora_weights = InitLora::Flag(flag),
            Some(Json::Text(name)) if INITS.contains(&name.as_str()) => {
                config.init_lora_weights = InitLora::Named(name)
            }
            Some(other) => {
                let hint = "such an initialisation also changes the trunk; convert the adapter to a plain LoRA first";
                return Err(self.refused("init_lora_weights", &other, hint));
            }
        }
        config.base_model_name_or_path = self.text("base_model_name_or_path")?;
        config.revision = self.text("revision")?;
        config.task_type = self.text("task_type")?;
        if let Some(mapping) = self.take("auto_mapping") {
            config.auto_mapping = Some(serde_json::to_value(&mapping).map_err(|e| Error::file(self.path, e))?);
        }
        for (name, value) in &self.entries {
            if changes_forward(name) && !IGNORED.contains(&name.as_str()) && !value.is_unset() {
                let hint = "only plain LoRA and rsLoRA on linear layers are read";
                return Err(self.refused(name, value, hint));
            }
        }
        config.check().map_err(|reason| Error::file(self.path, reason))?;
        Ok(config)
    }

    fn refused(&self, field: &str, value: &Json, hint: &str) -> Error {
        let (path, field) = (self.path.to_path_buf(), crate::format::short(field));
        Error::ConfigField { path, field, value: value.to_string(), hint: hint.into() }
    }

    /// The field's value unless it is absent or null.
    fn take(&mut self, name: &str) -> Option<Json> {
        let at = self.entries.iter().position(|(n, _)| n == name)?;
        Some(self.entries.swap_remove(at).1).filter(|value| *value != Json::Null)
    }

    fn wrong(&self, name: &str, value: &Json, expected: &str) -> Error {
        Error::file(self.path, format!("has `{name}` = {value}; expected {expected}"))
    }

    fn whole(&self, name: &str, value: Json) -> Result<usize> {
        let number = if let Json::Number(n) = &value { n.as_u64().and_then(|n| usize::try_from(n).ok()) } else { None };
        number.ok_or_else(|| self.wrong(name, &value, "a whole number"))
    }

    fn float(&self, name: &str, value: Json) -> Result<f64> {
        let number = if let Json::Number(n) = &value { n.as_f64() } else { None };
        number.ok_or_else(|| self.wrong(name, &value, "a number"))
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong(name, &other, "true or false")),
        }
    }

    fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, &other, "a text")),
        }
    }

    /// One text stands for a list of one.
    fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(vec![text])),
            Some(Json::List(items)) => Ok(Some(self.names(name, items)?)),
            Some(other) => Err(self.wrong(name, &other, "a list of names")),
        }
    }

    fn names(&self, name: &str, items: Vec<Json>) -> Result<Vec<String>> {
        let text = |item| match item {
            Json::Text(text) => Ok(text),
            other => Err(self.wrong(name, &other, "a list of names")),
        };
        items.into_iter().map(text).collect()
    }

    fn modules(&mut self, name: &str) -> Result<Option<Modules>> {
        match self.take(name) {
            None => Ok(None),
            Some(Json::Text(text)) if text.eq_ignore_ascii_case(ALL_LINEAR) => Ok(Some(Modules::AllLinear)),
            Some(Json::Text(text)) => Ok(Some(Modules::Pattern(text))),
            Some(Json::List(items)) => Ok(Some(Modules::Names(self.names(name, items)?))),
            Some(other) => Err(self.wrong(name, &other, "a list of names or a pattern")),
        }
    }

    fn object(&mut self, name: &str) -> Result<Vec<(String, Json)>> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Json::Object(entries)) => Ok(entries),
            Some(other) => Err(self.wrong(name, &other, "an object")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PeftConfig> {
        PeftConfig::parse(Path::new("adapter_config.json"), text.as_bytes())
    }

    /// The smallest configuration with one more field.
    fn with(field: &str) -> Result<PeftConfig> {
        parse(&format!(r#"{{"target_modules":["q"],"peft_type":"LORA",{field}}}"#))
    }

    #[test]
    fn the_smallest_configuration_gets_the_defaults_of_peft() {
        let config = parse(r#"{"target_modules": ["q", "v"], "peft_type": "LORA"}"#).unwrap();
        let names = Modules::Names(vec!["q".into(), "v".into()]);
        assert_eq!(config, PeftConfig { inference_mode: false, ..PeftConfig::new(names) });
        assert_eq!((config.r, config.lora_alpha), (8, 8.0));
    }

    #[test]
    fn fields_that_change_the_forward_pass_are_refused_by_name() {
        for field in [
            r#""use_qalora":true"#,
            r#""use_bdlora":{"a":1}"#,
            r#""use_something_new":true"#,
            r#""lora_bias":true"#,
            r#""fan_in_fan_out":true"#,
            r#""alora_invocation_tokens":[1]"#,
            r#""layer_replication":[[0,4]]"#,
            r#""trainable_token_indices":[1]"#,
            r#""target_parameters":["experts.up"]"#,
            r#""megatron_config":{"a":1}"#,
            r#""loftq_config":{"loftq_bits":4}"#,
            r#""velora_config":{"rank":1}"#,
            r#""bias":"all""#,
            r#""bias":"lora_only""#,
            r#""init_lora_weights":"pissa_niter_16""#,
            r#""init_lora_weights":"olora""#,
            r#""ensure_weight_tying":true"#,
        ] {
            let name = field.split('"').nth(1).unwrap();
            let error = with(field).unwrap_err();
            assert!(matches!(&error, Error::ConfigField { field, .. } if field == name), "{field}: {error}");
        }
        assert!(parse(r#"{"target_modules":["q"],"peft_type":"LOHA"}"#).unwrap_err().to_string().contains("LOHA"));
    }

    #[test]
    fn unset_and_unknown_fields_are_accepted() {
        let field =
            r#""use_dora":false,"use_bdlora":null,"loftq_config":{},"layer_replication":null,"a_new_remark":{"x":[1]}"#;
        with(field).unwrap();
        with(r#""init_lora_weights":"gaussian","fan_in_fan_out":false,"bias":"none""#).unwrap();
    }

    #[test]
    fn wrong_values_are_named() {
        for (field, part) in [
            (r#""r":0"#, "rank of 0"),
            (r#""r":-1"#, "`r` = -1"),
            (r#""r":2.5"#, "`r` = 2.5"),
            (r#""r":"8""#, "`r` = \"8\""),
            (r#""lora_dropout":1.0"#, "lora_dropout"),
            (r#""lora_dropout":-0.1"#, "lora_dropout"),
            (r#""lora_alpha":[1]"#, "lora_alpha"),
            (r#""rank_pattern":{"q":0}"#, "rank of 0"),
            (r#""rank_pattern":[1]"#, "rank_pattern"),
            (r#""use_rslora":1"#, "use_rslora"),
            (r#""modules_to_save":[1]"#, "modules_to_save"),
            (r#""peft_type":"LORA""#, "comes twice"),
        ] {
            let error = with(field).unwrap_err().to_string();
            assert!(error.contains(part), "{field}: {error}");
        }
        assert!(parse(r#"{"peft_type":"LORA"}"#).unwrap_err().to_string().contains("target_modules"));
        assert!(parse("[]").is_err() && parse(r#"{"target_modules":["q"]}"#).is_err());
    }

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let full = PeftConfig {
            r: 4,
            lora_alpha: 0.1,
            lora_dropout: 0.05,
            use_rslora: true,
            use_dora: true,
            target_modules: Modules::Pattern(r".*\.(q|v)_proj".into()),
            exclude_modules: Some(Modules::Names(vec!["head".into()])),
            layers_to_transform: Some(vec![0, 2]),
            layers_pattern: Some(vec!["layers".into()]),
            modules_to_save: vec!["classifier".into()],
            rank_pattern: vec![("z".into(), 2), ("a".into(), 3)],
            alpha_pattern: vec![("z".into(), 2.5), ("a".into(), 3.0)],
            init_lora_weights: InitLora::Named("gaussian".into()),
            inference_mode: false,
            base_model_name_or_path: Some("trunk".into()),
            revision: Some("main".into()),
            task_type: Some("FEATURE_EXTRACTION".into()),
            auto_mapping: Some(serde_json::json!({"base_model_class": "ViT"})),
        };
        for config in [full, PeftConfig::new(Modules::AllLinear)] {
            let bytes = config.to_bytes(Path::new("x")).unwrap();
            assert_eq!(PeftConfig::parse(Path::new("x"), &bytes).unwrap(), config);
        }
        let plain = PeftConfig::new(Modules::Names(vec!["q".into()])).to_bytes(Path::new("x")).unwrap();
        let plain = String::from_utf8(plain).unwrap();
        assert!(
            plain.contains("\"lora_alpha\": 8,") && !plain.contains("rslora") && !plain.contains("pattern"),
            "{plain}"
        );
        let broken = PeftConfig { lora_alpha: f64::NAN, ..PeftConfig::new(Modules::AllLinear) };
        assert!(broken.to_bytes(Path::new("x")).is_err());
    }
}
