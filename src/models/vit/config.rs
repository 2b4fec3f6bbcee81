//! `config.json` of a Hugging Face ViT.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::ops::Activation;

#[derive(Clone, Debug, PartialEq)]
pub struct VitConfig {
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub image: usize,
    pub patch: usize,
    pub channels: usize,
    pub eps: f64,
    pub activation: Activation,
    pub labels: usize,
}

/// The fields of the file that a forward pass depends on.
#[derive(Deserialize)]
struct Raw {
    model_type: Option<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    image_size: usize,
    patch_size: usize,
    num_channels: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default)]
    id2label: serde_json::Map<String, serde_json::Value>,
}

fn default_eps() -> f64 {
    1e-12
}

fn default_activation() -> String {
    "gelu".into()
}

impl VitConfig {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        VitConfig::parse(&text).map_err(|reason| Error::file(path, reason))
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let raw: Raw = serde_json::from_str(text).map_err(|e| format!("not a ViT configuration: {e}"))?;
        if let Some(other) = raw.model_type.filter(|t| t != "vit") {
            return Err(format!("`model_type` is {other}, expected vit"));
        }
        let activation = match raw.hidden_act.as_str() {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => return Err(format!("`hidden_act` is {other}, expected gelu, gelu_new, quick_gelu, relu or silu")),
        };
        let config = VitConfig {
            hidden: raw.hidden_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            intermediate: raw.intermediate_size,
            image: raw.image_size,
            patch: raw.patch_size,
            channels: raw.num_channels,
            eps: raw.layer_norm_eps,
            activation,
            labels: if raw.id2label.is_empty() { 2 } else { raw.id2label.len() },
        };
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let sizes = [
            ("hidden_size", self.hidden),
            ("num_attention_heads", self.heads),
            ("intermediate_size", self.intermediate),
            ("image_size", self.image),
            ("patch_size", self.patch),
            ("num_channels", self.channels),
            ("num_hidden_layers", self.layers),
        ];
        // Far above any model, and low enough that products of three stay below 2^63.
        const LIMIT: usize = 1 << 20;
        for (name, size) in sizes {
            if size == 0 || size > LIMIT {
                return Err(format!("`{name}` is {size}, expected 1 to {LIMIT}"));
            }
        }
        if !self.hidden.is_multiple_of(self.heads) {
            return Err(format!("{} heads do not divide a hidden size of {}", self.heads, self.hidden));
        }
        if !self.image.is_multiple_of(self.patch) {
            return Err(format!("patches of {} do not divide an image of {}", self.patch, self.image));
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return Err(format!("`layer_norm_eps` is {}, expected a positive number", self.eps));
        }
        Ok(())
    }

    /// Tokens of one image: its patches and the class token.
    pub fn tokens(&self) -> usize {
        let side = self.image / self.patch;
        side * side + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": 8, "patch_size": 2, "num_channels": 1, "id2label": {"0": "a", "1": "b"}}"#;

    #[test]
    fn a_good_file_is_read_and_bad_ones_say_why() {
        let config = VitConfig::parse(GOOD).unwrap();
        assert_eq!((config.tokens(), config.labels, config.eps), (17, 2, 1e-12));
        let broken = [
            ("\"vit\"", "\"bert\"", "model_type"),
            ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "heads"),
            ("\"patch_size\": 2", "\"patch_size\": 3", "patches"),
            ("\"hidden_size\": 32", "\"hidden_size\": 0", "hidden_size"),
            ("\"hidden_size\": 32,", "", "hidden_size"),
        ];
        for (from, to, named) in broken {
            let message = VitConfig::parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(message.contains(named), "{message}");
        }
    }
}
