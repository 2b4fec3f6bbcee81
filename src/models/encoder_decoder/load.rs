//! Frozen weights from `model.safetensors`, under the names of transformers. A file of BART may lack the leading `model.`.

use std::sync::Arc;

use super::layers::{Around, Attention, DecoderLayer, EncoderLayer, FeedForward};
use super::masks::RelativeBias;
use super::{EncoderDecoder, EncoderDecoderConfig, Order, Places, Side, Visual};
use crate::adapters::{AdaptedLinear, AdaptedNorm, InsertPoint};
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::safetensors::SafeTensors;
use crate::ops::norm::Kind;
use crate::tensor::{FrozenWeight, Tensor};

pub(super) struct Loader<'a> {
    pub file: &'a SafeTensors,
    pub device: &'a Device,
    pub dtype: DType,
    pub config: &'a EncoderDecoderConfig,
}

/// BART's positions begin in the third row of their table.
const FIRST_POSITION: usize = 2;

const ENCODER: usize = 0;
const DECODER: usize = 1;

impl Loader<'_> {
    pub fn model(&self) -> Result<EncoderDecoder> {
        let config = self.config;
        let (v, d) = (config.vocabulary, config.width);
        let root = if config.order == Order::PostNorm { "model." } else { "" };
        let shared =
            self.first_of(&[&format!("{root}shared.weight"), &format!("{root}encoder.embed_tokens.weight")], &[v, d])?;
        let output = match self.find("lm_head.weight") {
            Some(name) => self.tensor(&name, &[v, d])?,
            None => shared.clone(),
        };
        let bias = match self.find("final_logits_bias") {
            Some(name) => Some(Var::constant(self.tensor(&name, &[1, v])?.reshape(&[v])?)),
            None => None,
        };
        let encoder =
            (0..config.layers[ENCODER]).map(|i| self.encoder_layer(i).map(Arc::new)).collect::<Result<_>>()?;
        let decoder = (0..config.layers[DECODER]).map(|i| self.decoder_layer(i)).collect::<Result<_>>()?;
        Ok(EncoderDecoder {
            config: config.clone(),
            shared: Var::constant(shared),
            visual: config.features.map(|features| self.visual(root, features)).transpose()?,
            encoder,
            encoder_side: self.side(&format!("{root}encoder"), true)?,
            decoder,
            decoder_side: self.side(&format!("{root}decoder"), false)?,
            output: AdaptedLinear::new("lm_head", FrozenWeight::new(output)?, bias),
            device: self.device.clone(),
            dtype: self.dtype,
        })
    }

    fn visual(&self, root: &str, features: usize) -> Result<Visual> {
        let path = format!("{root}encoder.visual_embedding.feat_embedding");
        Ok(Visual {
            projection: self.linear(&format!("{path}.0"), self.config.width, features)?,
            norm: self.norm(&format!("{path}.1"))?,
        })
    }

    /// What stands before and after the layers of `path`.
    fn side(&self, path: &str, both_sides: bool) -> Result<Side> {
        match self.config.places {
            Places::Learned { positions } => {
                let name = format!("{path}.embed_positions.weight");
                let table = self.tensor(&name, &[positions + FIRST_POSITION, self.config.width])?;
                Ok(Side {
                    positions: Some(Var::constant(table.slice(0, FIRST_POSITION, positions)?)),
                    bias: None,
                    norm: self.norm(&format!("{path}.layernorm_embedding"))?,
                })
            }
            Places::Relative { buckets, distance } => {
                let heads = self.config.heads[usize::from(!both_sides)];
                let name = format!("{path}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
                let table = self.tensor(&name, &[buckets, heads])?.to_f32_vec()?;
                Ok(Side {
                    positions: None,
                    bias: Some(RelativeBias { table, buckets, distance, heads, both_sides }),
                    norm: self.norm(&format!("{path}.final_layer_norm"))?,
                })
            }
        }
    }

    fn encoder_layer(&self, index: usize) -> Result<EncoderLayer> {
        let d = self.config.width;
        let (layer, parts) = match self.config.order {
            Order::PostNorm => (
                format!("model.encoder.layers.{index}"),
                ["self_attn", "self_attn_layer_norm", "", "final_layer_norm"].map(String::from),
            ),
            Order::PreNorm => (
                format!("encoder.block.{index}"),
                ["layer.0.SelfAttention", "layer.0.layer_norm", "layer.1.DenseReluDense", "layer.1.layer_norm"]
                    .map(String::from),
            ),
        };
        let [attention, attention_norm, feed_forward, feed_forward_norm] = parts.map(|part| joined(&layer, &part));
        Ok(EncoderLayer {
            attention: self.attention(&attention, ENCODER, false)?,
            around_attention: self.around(&attention_norm)?,
            after_attention: InsertPoint::new(format!("{layer}.attention"), d),
            feed_forward: self.feed_forward(&feed_forward, ENCODER)?,
            around_feed_forward: self.around(&feed_forward_norm)?,
            after_feed_forward: InsertPoint::new(format!("{layer}.mlp"), d),
        })
    }

    fn decoder_layer(&self, index: usize) -> Result<DecoderLayer> {
        let (layer, parts) = match self.config.order {
            Order::PostNorm => (
                format!("model.decoder.layers.{index}"),
                [
                    "self_attn",
                    "self_attn_layer_norm",
                    "encoder_attn",
                    "encoder_attn_layer_norm",
                    "",
                    "final_layer_norm",
                ],
            ),
            Order::PreNorm => (
                format!("decoder.block.{index}"),
                [
                    "layer.0.SelfAttention",
                    "layer.0.layer_norm",
                    "layer.1.EncDecAttention",
                    "layer.1.layer_norm",
                    "layer.2.DenseReluDense",
                    "layer.2.layer_norm",
                ],
            ),
        };
        let [own, own_norm, cross, cross_norm, feed_forward, feed_forward_norm] =
            parts.map(|part| joined(&layer, part));
        Ok(DecoderLayer {
            attention: self.attention(&own, DECODER, true)?,
            around_attention: self.around(&own_norm)?,
            cross: self.attention(&cross, DECODER, false)?,
            around_cross: self.around(&cross_norm)?,
            feed_forward: self.feed_forward(&feed_forward, DECODER)?,
            around_feed_forward: self.around(&feed_forward_norm)?,
            after: ["attention", "cross_attention", "mlp"]
                .map(|part| InsertPoint::new(format!("{layer}.{part}"), self.config.width)),
        })
    }

    fn attention(&self, path: &str, side: usize, causal: bool) -> Result<Attention> {
        let (d, inner) = (self.config.width, self.config.inner());
        let (names, scale) = match self.config.order {
            Order::PostNorm => (["q_proj", "k_proj", "v_proj", "out_proj"], None),
            // T5 folded 1/√d into its starting weights.
            Order::PreNorm => (["q", "k", "v", "o"], Some(1.0)),
        };
        let [q, k, v, o] = names.map(|name| format!("{path}.{name}"));
        Ok(Attention {
            q: self.linear(&q, inner, d)?,
            k: self.linear(&k, inner, d)?,
            v: self.linear(&v, inner, d)?,
            o: self.linear(&o, d, inner)?,
            heads: self.config.heads[side],
            scale,
            causal,
        })
    }

    fn feed_forward(&self, path: &str, side: usize) -> Result<FeedForward> {
        let (d, wide) = (self.config.width, self.config.wide[side]);
        let [first, second, last] = match (self.config.order, self.config.gated) {
            (Order::PostNorm, _) => ["fc1", "", "fc2"],
            (Order::PreNorm, false) => ["wi", "", "wo"],
            (Order::PreNorm, true) => ["wi_0", "wi_1", "wo"],
        };
        let gate = if self.config.gated { Some(self.linear(&joined(path, second), wide, d)?) } else { None };
        Ok(FeedForward {
            wide: self.linear(&joined(path, first), wide, d)?,
            gate,
            narrow: self.linear(&joined(path, last), d, wide)?,
            activation: self.config.activation,
        })
    }

    fn around(&self, path: &str) -> Result<Around> {
        Ok(Around { order: self.config.order, norm: self.norm(path)? })
    }

    fn norm(&self, path: &str) -> Result<AdaptedNorm> {
        let d = [self.config.width];
        let gamma = Var::constant(self.tensor(&format!("{path}.weight"), &d)?);
        Ok(match self.config.order {
            Order::PreNorm => AdaptedNorm::new(path, Kind::Rms, gamma, None, self.config.eps),
            Order::PostNorm => {
                let beta = Var::constant(self.tensor(&format!("{path}.bias"), &d)?);
                AdaptedNorm::new(path, Kind::Layer, gamma, Some(beta), self.config.eps)
            }
        })
    }

    /// A bias that the file does not hold is none.
    fn linear(&self, path: &str, n: usize, k: usize) -> Result<AdaptedLinear> {
        let weight = FrozenWeight::new(self.tensor(&format!("{path}.weight"), &[n, k])?)?;
        let bias = match self.find(&format!("{path}.bias")) {
            Some(name) => Some(Var::constant(self.tensor(&name, &[n])?)),
            None => None,
        };
        Ok(AdaptedLinear::new(path, weight, bias))
    }

    /// How the file spells `name`.
    fn find(&self, name: &str) -> Option<String> {
        let bare = name.strip_prefix("model.").unwrap_or(name);
        [name, bare].into_iter().find(|name| self.file.contains(name)).map(String::from)
    }

    fn first_of(&self, names: &[&str], dims: &[usize]) -> Result<Tensor> {
        let held = names.iter().find(|name| self.find(name).is_some());
        self.tensor(held.unwrap_or(&names[0]), dims)
    }

    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let stored = self.find(name).unwrap_or_else(|| name.into());
        let tensor = self.file.tensor(&stored, &Device::cpu())?;
        if tensor.dims() != dims {
            let reason = format!("`{stored}` has shape {:?}, expected {dims:?}", tensor.dims());
            return Err(Error::file(self.file.path(), reason));
        }
        let tensor = tensor.cast(self.dtype)?;
        if self.device.is_cpu() { Ok(tensor) } else { tensor.to_device(self.device) }
    }
}

/// `layer.part`, or `layer` alone where the part has no name.
fn joined(layer: &str, part: &str) -> String {
    if part.is_empty() { layer.into() } else { format!("{layer}.{part}") }
}
