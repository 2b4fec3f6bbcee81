//! An encoder-decoder of BART's form (Lewis et al., 2020) or T5's (Raffel et al., 2020), with image features before the text as in
//! VL-BART and VL-T5 (Cho et al., 2021), under the names of Hugging Face.
//!
//! ```text
//! BART   x = norm(x + f(x))      layer norm, learned positions, a norm after the embeddings
//! T5     x = x + f(norm(x))      RMS norm, biases of relative positions, no 1/√d, a norm at the end
//! ```
//!
//! | value | shape |
//! |---|---|
//! | image features | `[b, v, features]`, projected by a linear and a norm, put before the text |
//! | text ids | `[b, t]` |
//! | encoder's states | `[b, v + t, d]` |
//! | caption ids | `[b, n]`, beginning with the start token |
//! | logits | `[b, n, vocabulary]` |
//!
//! Positions count from the first visual token on. Modules can stand after self-attention and after the feed-forward of every
//! encoder layer (`….attention`, `….mlp`), and after those and cross-attention (`….cross_attention`) of every decoder layer, adapters on
//! every linear. The encoder's norms can learn, the decoder's cannot.
//!
//! Keys and values of the source are computed once for a caption, those of the caption token by token ([`Caption`]): decoding one
//! token costs one row of every product.
//!
//! ```no_run
//! use graftwork::autograd::Tape;
//! use graftwork::models::encoder_decoder::{EncoderDecoder, GenerateOptions, Source};
//! use graftwork::tensor::ParamSet;
//! use graftwork::{DType, Device, Tensor};
//!
//! # fn main() -> graftwork::Result<()> {
//! let device = Device::cpu();
//! let model = EncoderDecoder::load("bart-base".as_ref(), &device, DType::F32)?;
//! let ids = Tensor::from_slice(&device, &[1, 4], &[0i64, 31414, 232, 2])?;
//! let mut tape = Tape::inference(&ParamSet::none(&device, DType::F32)?);
//! let options = GenerateOptions { beams: 5, max_tokens: 20, ..GenerateOptions::default() };
//! let captions: Vec<Vec<i64>> = model.generate(&mut tape, &Source::text(&ids), &options)?;
//! # Ok(()) }
//! ```

mod config;
mod generate;
mod layers;
mod load;
mod masks;

pub use config::{EncoderDecoderConfig, Order, Places};
pub use generate::GenerateOptions;

use std::path::Path;
use std::sync::Arc;

use crate::adapters::{AdaptedLinear, AdaptedNorm, InsertPoint, Trunk};
use crate::autograd::{Segment, Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::safetensors::SafeTensors;
use crate::ops::{TokenWeights, embedding, join, scale, scale_add};
use crate::tensor::Tensor;
use layers::{DecoderLayer, EncoderLayer, KeysValues, MaskedLayer, Seen};
use load::Loader;
use masks::{RelativeBias, keep_mask};

const OP: &str = "encoder_decoder";

/// Image features to visual tokens.
#[derive(Debug)]
struct Visual {
    projection: AdaptedLinear,
    norm: AdaptedNorm,
}

/// What stands around the layers of encoder or decoder.
#[derive(Debug)]
struct Side {
    positions: Option<Var>,
    bias: Option<RelativeBias>,
    /// After the embeddings in BART, after the last layer in T5.
    norm: AdaptedNorm,
}

#[derive(Debug)]
pub struct EncoderDecoder {
    config: EncoderDecoderConfig,
    shared: Var,
    visual: Option<Visual>,
    encoder: Vec<Arc<EncoderLayer>>,
    encoder_side: Side,
    decoder: Vec<DecoderLayer>,
    decoder_side: Side,
    output: AdaptedLinear,
    device: Device,
    dtype: DType,
}

/// What the encoder reads.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// `[b, v, features]`
    pub features: Option<&'a Var>,
    /// `[b, t]`, i32 or i64.
    pub ids: &'a Tensor,
    /// Of every id whether it is text (nonzero) or padding, row by row; all text if absent.
    pub keep: Option<&'a [u8]>,
}

impl<'a> Source<'a> {
    /// Text alone, without padding.
    pub fn text(ids: &'a Tensor) -> Self {
        Source { features: None, ids, keep: None }
    }
}

/// What the encoder made of a source.
#[derive(Clone, Debug)]
pub struct Encoded {
    states: Var,
    /// `[b, s]`; all if absent.
    keep: Option<Vec<u8>>,
}

impl Encoded {
    /// `[b, s, d]`
    pub fn states(&self) -> &Var {
        &self.states
    }
}

/// A caption as far as it is decoded: keys and values of its source and of its own tokens.
#[derive(Clone, Debug)]
pub struct Caption {
    source: Vec<KeysValues>,
    keep: Option<Vec<u8>>,
    own: Vec<Option<KeysValues>>,
    tokens: usize,
}

impl EncoderDecoder {
    /// From a directory with `config.json` and `model.safetensors`. On the CPU in f32, the weights stay in the mapped file.
    pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let config = EncoderDecoderConfig::load(&dir.join("config.json"))?;
        let file = SafeTensors::open(dir.join("model.safetensors"))?;
        EncoderDecoder::from_file(&config, &file, device, dtype)
    }

    pub fn from_file(config: &EncoderDecoderConfig, file: &SafeTensors, device: &Device, dtype: DType) -> Result<Self> {
        Loader { file, device, dtype, config }.model()
    }

    pub fn config(&self) -> &EncoderDecoderConfig {
        &self.config
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Logits `[b, n, vocabulary]` of the token after each of `ids [b, n]`, which begin with the start token.
    pub fn forward(&self, tape: &mut Tape, source: &Source, ids: &Tensor) -> Result<Var> {
        let encoded = self.encode(tape, source)?;
        let mut caption = self.begin(tape, &encoded)?;
        self.extend(tape, &mut caption, ids)
    }

    /// # Errors
    /// [`Error::Value`] for more tokens than positions, a sample that is all padding, features that the model does not take;
    /// [`Error::Shape`] for operands that do not fit.
    pub fn encode(&self, tape: &mut Tape, source: &Source) -> Result<Encoded> {
        let &[b, t] = source.ids.dims() else {
            return Err(Error::shape(OP, "ids", "[b, t]", source.ids.dims()));
        };
        let mut x = self.embed(tape, source.ids)?;
        let visual = match source.features {
            None => 0,
            Some(features) => {
                let visual = self.project(tape, features)?;
                x = join(tape, &visual, &x)?;
                visual.dims()[1]
            }
        };
        let keep = source.keep.map(|keep| whole_keep(keep, b, visual, t)).transpose()?;
        let s = visual + t;
        let side = &self.encoder_side;
        x = self.enter(tape, side, x, 0)?;
        let mask = self.mask(side, [b, s, s], 0, keep.as_deref())?;
        let real = |keep: &Vec<u8>| {
            let kept: Vec<bool> = keep.iter().map(|&kept| kept != 0).collect();
            TokenWeights::new(&self.device, [b, s], &kept, self.dtype)
        };
        let real = keep.as_ref().map(real).transpose()?;
        for layer in &self.encoder {
            let (layer, mask, real) = (layer.clone(), mask.clone(), real.clone());
            let segment: Arc<dyn Segment> = Arc::new(MaskedLayer { layer, mask, real });
            x = tape.checkpoint(&segment, &x)?;
        }
        Ok(Encoded { states: self.leave(tape, side, x)?, keep })
    }

    /// A caption of `encoded` without a token yet.
    pub fn begin(&self, tape: &mut Tape, encoded: &Encoded) -> Result<Caption> {
        let source = self.decoder.iter().map(|layer| layer.cross.keys_values(tape, &encoded.states));
        let own = vec![None; self.decoder.len()];
        Ok(Caption { source: source.collect::<Result<_>>()?, keep: encoded.keep.clone(), own, tokens: 0 })
    }

    /// Adds `ids [b, n]` to `caption`. Returns the logits of the token after each of them, `[b, n, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Value`] for more tokens than positions, [`Error::Shape`] for ids that do not fit.
    pub fn extend(&self, tape: &mut Tape, caption: &mut Caption, ids: &Tensor) -> Result<Var> {
        let &[b, n] = ids.dims() else {
            return Err(Error::shape(OP, "ids", "[b, n]", ids.dims()));
        };
        let side = &self.decoder_side;
        let x = self.embed(tape, ids)?;
        let mut x = self.enter(tape, side, x, caption.tokens)?;
        let all = caption.tokens + n;
        let own_mask = self.mask(side, [b, n, all], caption.tokens, None)?;
        let s = caption.source.first().map_or(0, |source| source.k.dims()[1]);
        let source_mask = caption.keep.as_ref().map(|keep| keep_mask(&self.device, [b, n, s], keep)).transpose()?;
        for ((layer, own), source) in self.decoder.iter().zip(&mut caption.own).zip(&caption.source) {
            let (own_mask, source_mask) = (own_mask.as_ref(), source_mask.as_ref());
            x = layer.forward(tape, &x, Seen { own, own_mask, source, source_mask })?;
        }
        caption.tokens = all;
        let mut x = self.leave(tape, side, x)?;
        if self.config.output_scale != 1.0 {
            x = scale(tape, &x, self.config.output_scale)?;
        }
        self.output.forward(tape, &x)
    }

    fn embed(&self, tape: &mut Tape, ids: &Tensor) -> Result<Var> {
        let x = embedding(tape, ids, &self.shared)?;
        if self.config.embedding_scale == 1.0 { Ok(x) } else { scale(tape, &x, self.config.embedding_scale) }
    }

    fn project(&self, tape: &mut Tape, features: &Var) -> Result<Var> {
        let Some(visual) = &self.visual else {
            return Err(Error::value(
                OP,
                "features",
                "none: this model has no `feat_dim`",
                format!("{:?}", features.dims()),
            ));
        };
        if features.dims().len() != 3 {
            return Err(Error::shape(OP, "features", "[b, v, features]", features.dims()));
        }
        let x = visual.projection.forward(tape, features)?;
        visual.norm.forward(tape, &x)
    }

    /// Before the layers: tokens `start ..` get their positions.
    fn enter(&self, tape: &mut Tape, side: &Side, x: Var, start: usize) -> Result<Var> {
        let Some(positions) = &side.positions else { return Ok(x) };
        let (tokens, most) = (x.dims()[1], positions.dims()[0]);
        if start + tokens > most {
            return Err(Error::value(OP, "tokens", format!("at most {most}: the model's positions"), start + tokens));
        }
        let here = Var::constant(positions.tensor().slice(0, start, tokens)?);
        let x = scale_add(tape, &x, &here, 1.0)?;
        side.norm.forward(tape, &x)
    }

    /// After the layers.
    fn leave(&self, tape: &mut Tape, side: &Side, x: Var) -> Result<Var> {
        if side.positions.is_some() { Ok(x) } else { side.norm.forward(tape, &x) }
    }

    /// For self-attention of queries `start .. start + t` over `s` keys.
    fn mask(&self, side: &Side, sizes: [usize; 3], start: usize, keep: Option<&[u8]>) -> Result<Option<Tensor>> {
        match (&side.bias, keep) {
            (Some(bias), _) => bias.scores(&self.device, sizes, start, keep).map(Some),
            (None, Some(keep)) => keep_mask(&self.device, sizes, keep).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Numbers in the frozen model; what is shared counts once.
    pub fn frozen_numel(&self) -> usize {
        let encoder = self.encoder.iter().map(|layer| count(layer.linears(), layer.norms()));
        let decoder = self.decoder.iter().map(|layer| count(layer.linears(), layer.norms()));
        let sides = [&self.encoder_side, &self.decoder_side].map(|side| {
            let positions = side.positions.as_ref().map_or(0, |p| p.tensor().numel());
            positions + side.norm.frozen_numel() + side.bias.as_ref().map_or(0, |bias| bias.table.len())
        });
        let visual = self.visual.as_ref().map_or(0, |v| v.projection.frozen_numel() + v.norm.frozen_numel());
        let tied = self.output.weight().tensor().buffer().id() == self.shared.tensor().buffer().id();
        let output = self.output.frozen_numel() - if tied { self.shared.tensor().numel() } else { 0 };
        let embeddings = self.shared.tensor().numel() + visual + output;
        embeddings + encoder.sum::<usize>() + decoder.sum::<usize>() + sides.iter().sum::<usize>()
    }
}

fn count<'a, const N: usize>(linears: impl Iterator<Item = &'a AdaptedLinear>, norms: [&AdaptedNorm; N]) -> usize {
    linears.map(AdaptedLinear::frozen_numel).sum::<usize>()
        + norms.iter().map(|norm| norm.frozen_numel()).sum::<usize>()
}

/// Visual tokens are all kept; every sample must keep something.
fn whole_keep(text: &[u8], b: usize, visual: usize, t: usize) -> Result<Vec<u8>> {
    if text.len() != b * t {
        return Err(Error::value(OP, "keep", format!("{b} rows of {t}"), format!("{} entries", text.len())));
    }
    let mut keep = Vec::with_capacity(b * (visual + t));
    for row in 0..b {
        let text = &text[row * t..(row + 1) * t];
        if visual == 0 && text.iter().all(|&kept| kept == 0) {
            return Err(Error::value(
                OP,
                "keep",
                "at least one token of every sample",
                format!("none of sample {row}"),
            ));
        }
        keep.extend(std::iter::repeat_n(1, visual).chain(text.iter().copied()));
    }
    Ok(keep)
}

impl Trunk for EncoderDecoder {
    fn linears(&mut self) -> Result<Vec<&mut AdaptedLinear>> {
        let mut all: Vec<&mut AdaptedLinear> = Vec::new();
        all.extend(self.visual.as_mut().map(|visual| &mut visual.projection));
        for layer in &mut self.encoder {
            all.extend(free(layer)?.linears_mut());
        }
        for layer in &mut self.decoder {
            all.extend(layer.linears_mut());
        }
        all.push(&mut self.output);
        Ok(all)
    }

    fn inserts(&mut self) -> Result<Vec<&mut InsertPoint>> {
        let mut all = Vec::with_capacity(2 * self.encoder.len());
        for layer in &mut self.encoder {
            all.extend(free(layer)?.inserts_mut());
        }
        Ok(all)
    }

    fn decoder_inserts(&mut self) -> Result<Vec<&mut InsertPoint>> {
        Ok(self.decoder.iter_mut().flat_map(|layer| &mut layer.after).collect())
    }

    fn norms(&mut self) -> Result<Vec<&mut AdaptedNorm>> {
        let mut all = vec![&mut self.encoder_side.norm];
        for layer in &mut self.encoder {
            all.extend(free(layer)?.norms_mut());
        }
        Ok(all)
    }
}

/// A layer that no tape holds.
fn free(layer: &mut Arc<EncoderLayer>) -> Result<&mut EncoderLayer> {
    Arc::get_mut(layer).ok_or_else(|| Error::Autograd {
        what: "a tape still holds a layer of this trunk".into(),
        hint: "drop the tape before attaching adapters".into(),
    })
}
