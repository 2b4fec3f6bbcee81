//! `config.json` of a Hugging Face BART or T5.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::ops::Activation;

/// Where a sub-layer's norm stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `x + f(norm(x))`, and a norm at the end: T5.
    PreNorm,
    /// `norm(x + f(x))`: BART.
    PostNorm,
}

/// How a token's place is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Places {
    /// A learned vector for each of so many positions.
    Learned { positions: usize },
    /// A bias of the scores, learned for each bucket of distances, the same in all layers.
    Relative { buckets: usize, distance: usize },
}

/// Everything that a forward pass depends on besides the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderDecoderConfig {
    pub order: Order,
    pub places: Places,
    pub vocabulary: usize,
    /// d
    pub width: usize,
    /// Of the encoder and of the decoder.
    pub layers: [usize; 2],
    pub heads: [usize; 2],
    /// Of one head.
    pub head_width: usize,
    pub wide: [usize; 2],
    pub activation: Activation,
    /// Whether the feed-forward's inner features are multiplied by a second projection.
    pub gated: bool,
    /// What embeddings are multiplied by.
    pub embedding_scale: f64,
    /// What the decoder's output is multiplied by before the output layer.
    pub output_scale: f64,
    pub eps: f64,
    /// Numbers of one visual token, if the model takes any.
    pub features: Option<usize>,
    pub pad: i64,
    pub end: i64,
    /// What a caption begins with, unwritten.
    pub start: i64,
}

#[derive(Deserialize)]
struct Kind {
    model_type: Option<String>,
    feat_dim: Option<usize>,
}

#[derive(Deserialize)]
struct Bart {
    vocab_size: usize,
    d_model: usize,
    encoder_layers: usize,
    decoder_layers: usize,
    encoder_attention_heads: usize,
    decoder_attention_heads: usize,
    encoder_ffn_dim: usize,
    decoder_ffn_dim: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation_function: String,
    #[serde(default)]
    scale_embedding: bool,
    #[serde(default = "one")]
    pad_token_id: i64,
    #[serde(default = "two")]
    eos_token_id: i64,
    #[serde(default = "two")]
    decoder_start_token_id: i64,
}

#[derive(Deserialize)]
struct T5 {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "distance")]
    relative_attention_max_distance: usize,
    #[serde(default = "small")]
    layer_norm_epsilon: f64,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    tie_word_embeddings: Option<bool>,
    scale_decoder_outputs: Option<bool>,
    #[serde(default)]
    pad_token_id: i64,
    #[serde(default = "one")]
    eos_token_id: i64,
    #[serde(default)]
    decoder_start_token_id: i64,
}

fn gelu() -> String {
    "gelu".into()
}

fn relu() -> String {
    "relu".into()
}

fn one() -> i64 {
    1
}

fn two() -> i64 {
    2
}

fn buckets() -> usize {
    32
}

fn distance() -> usize {
    128
}

fn small() -> f64 {
    1e-6
}

/// What a BART file leaves to PyTorch.
const BART_EPS: f64 = 1e-5;

impl EncoderDecoderConfig {
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        EncoderDecoderConfig::parse(&text).map_err(|reason| Error::file(path, reason))
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let not = |what: &str, e: serde_json::Error| format!("not a {what} configuration: {e}");
        let kind: Kind = serde_json::from_str(text).map_err(|e| not("model's", e))?;
        let config = match kind.model_type.as_deref() {
            Some("bart") => Self::bart(&serde_json::from_str(text).map_err(|e| not("BART", e))?, kind.feat_dim)?,
            Some("t5") => Self::t5(&serde_json::from_str(text).map_err(|e| not("T5", e))?, kind.feat_dim)?,
            other => return Err(format!("`model_type` is {}, expected bart or t5", other.unwrap_or("absent"))),
        };
        config.validate()?;
        Ok(config)
    }

    fn bart(raw: &Bart, features: Option<usize>) -> std::result::Result<Self, String> {
        let heads = [raw.encoder_attention_heads, raw.decoder_attention_heads];
        if heads.iter().any(|&h| h == 0 || !raw.d_model.is_multiple_of(h)) {
            return Err(format!("{heads:?} heads do not divide a width of {}", raw.d_model));
        }
        if heads[0] != heads[1] {
            return Err(format!("encoder and decoder have {heads:?} heads, expected as many in both"));
        }
        Ok(EncoderDecoderConfig {
            order: Order::PostNorm,
            places: Places::Learned { positions: raw.max_position_embeddings },
            vocabulary: raw.vocab_size,
            width: raw.d_model,
            layers: [raw.encoder_layers, raw.decoder_layers],
            heads,
            head_width: raw.d_model / heads[0],
            wide: [raw.encoder_ffn_dim, raw.decoder_ffn_dim],
            activation: activation("activation_function", &raw.activation_function)?,
            gated: false,
            embedding_scale: if raw.scale_embedding { (raw.d_model as f64).sqrt() } else { 1.0 },
            output_scale: 1.0,
            eps: BART_EPS,
            features,
            pad: raw.pad_token_id,
            end: raw.eos_token_id,
            start: raw.decoder_start_token_id,
        })
    }

    fn t5(raw: &T5, features: Option<usize>) -> std::result::Result<Self, String> {
        let (gated, activation) = match raw.feed_forward_proj.split_once('-') {
            // By this name the tanh form is meant.
            Some(("gated", "gelu")) => (true, Activation::GeluTanh),
            Some(("gated", name)) => (true, activation("feed_forward_proj", name)?),
            _ => (false, activation("feed_forward_proj", &raw.feed_forward_proj)?),
        };
        // Files of before 2026 say it by tying the embeddings.
        let scaled = raw.scale_decoder_outputs.or(raw.tie_word_embeddings).unwrap_or(true);
        Ok(EncoderDecoderConfig {
            order: Order::PreNorm,
            places: Places::Relative {
                buckets: raw.relative_attention_num_buckets,
                distance: raw.relative_attention_max_distance,
            },
            vocabulary: raw.vocab_size,
            width: raw.d_model,
            layers: [raw.num_layers, raw.num_decoder_layers.unwrap_or(raw.num_layers)],
            heads: [raw.num_heads; 2],
            head_width: raw.d_kv,
            wide: [raw.d_ff; 2],
            activation,
            gated,
            embedding_scale: 1.0,
            output_scale: if scaled { 1.0 / (raw.d_model as f64).sqrt() } else { 1.0 },
            eps: raw.layer_norm_epsilon,
            features,
            pad: raw.pad_token_id,
            end: raw.eos_token_id,
            start: raw.decoder_start_token_id,
        })
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let places = match self.places {
            Places::Learned { positions } => [positions, 1],
            Places::Relative { buckets, distance } => [buckets, distance],
        };
        // Far above any model, and low enough that products of three stay below 2^63.
        const LIMIT: usize = 1 << 20;
        let sizes = [self.vocabulary, self.width, self.heads[0], self.heads[1], self.head_width]
            .into_iter()
            .chain(self.wide)
            .chain(places)
            .chain(self.features);
        for size in sizes {
            if size == 0 || size > LIMIT {
                return Err(format!("a size of the model is {size}, expected 1 to {LIMIT}"));
            }
        }
        if self.layers.iter().any(|&layers| layers == 0 || layers > LIMIT) {
            return Err(format!("{:?} layers in encoder and decoder, expected 1 to {LIMIT} in each", self.layers));
        }
        if let Places::Relative { buckets, distance } = self.places
            && (buckets < 4 || !buckets.is_multiple_of(2) || distance <= buckets / 2)
        {
            return Err(format!(
                "{buckets} buckets of distances up to {distance}, expected an even number from 4 on, and a distance above half of it"
            ));
        }
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return Err(format!("the norms' epsilon is {}, expected a positive number", self.eps));
        }
        for (name, id) in [("pad", self.pad), ("eos", self.end), ("decoder_start", self.start)] {
            if !usize::try_from(id).is_ok_and(|id| id < self.vocabulary) {
                return Err(format!("`{name}_token_id` is {id}, expected 0 to {}", self.vocabulary - 1));
            }
        }
        Ok(())
    }

    /// Features of q, k and v: all heads.
    pub fn inner(&self) -> usize {
        self.heads[0] * self.head_width
    }
}

fn activation(field: &str, name: &str) -> std::result::Result<Activation, String> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(format!("`{field}` is {other}, expected gelu, gelu_new, quick_gelu, relu or silu")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BART: &str = r#"{"model_type": "bart", "vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 1,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 24,
        "max_position_embeddings": 20, "scale_embedding": true, "feat_dim": 4}"#;
    const T5: &str = r#"{"model_type": "t5", "vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2,
        "num_heads": 3}"#;

    #[test]
    fn both_forms_are_read() {
        let bart = EncoderDecoderConfig::parse(BART).unwrap();
        assert_eq!((bart.embedding_scale, bart.inner(), bart.features, bart.start), (4.0, 16, Some(4), 2));
        let t5 = EncoderDecoderConfig::parse(T5).unwrap();
        assert_eq!((t5.output_scale, t5.inner(), t5.layers, t5.end), (0.25, 24, [2, 2], 1));
        let untied = T5.replace("\"num_heads\"", "\"tie_word_embeddings\": false, \"num_heads\"");
        assert_eq!(EncoderDecoderConfig::parse(&untied).unwrap().output_scale, 1.0);
    }

    #[test]
    fn bad_files_say_why() {
        for (text, from, to, named) in [
            (BART, "\"bart\"", "\"vit\"", "model_type"),
            (BART, "\"encoder_attention_heads\": 4", "\"encoder_attention_heads\": 3", "heads"),
            (BART, "\"d_model\": 16,", "", "d_model"),
            (BART, "\"feat_dim\": 4", "\"feat_dim\": 0", "size"),
            (BART, "\"feat_dim\"", "\"eos_token_id\": 40, \"feat_dim\"", "eos"),
            (T5, "\"num_heads\"", "\"feed_forward_proj\": \"tanh\", \"num_heads\"", "feed_forward_proj"),
            (T5, "\"num_heads\"", "\"relative_attention_num_buckets\": 3, \"num_heads\"", "buckets"),
        ] {
            let message = EncoderDecoderConfig::parse(&text.replace(from, to)).unwrap_err();
            assert!(message.contains(named), "{message}");
        }
    }
}
