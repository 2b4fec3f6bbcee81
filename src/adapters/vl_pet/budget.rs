//! How many numbers learn, and which granularity a budget allows.

use super::{OP, Variant, VlPetConfig, VlPetDecoder};
use crate::error::{Error, Result};

/// What the count depends on: the shape of an encoder-decoder trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// k
    pub width: usize,
    pub encoder_layers: usize,
    pub decoder_layers: usize,
    /// Features of the images, which a linear with bias projects to k; it learns.
    pub visual: Option<usize>,
    /// Numbers in the encoder's norms, which learn.
    pub encoder_norms: usize,
    /// Numbers in the trunk, these norms included.
    pub frozen: usize,
    /// r of the adapters on the decoder's values.
    pub decoder_rank: usize,
}

impl Shape {
    /// BART-base with features of 2048: two norms a layer and one of the embeddings, γ and β each.
    pub const BART_BASE: Shape = Shape {
        width: 768,
        encoder_layers: 6,
        decoder_layers: 6,
        visual: Some(2048),
        encoder_norms: 13 * 2 * 768,
        frozen: 139_420_416,
        decoder_rank: 96,
    };

    /// T5-base with features of 2048: two norms a layer and a last one, γ each.
    pub const T5_BASE: Shape = Shape {
        width: 768,
        encoder_layers: 12,
        decoder_layers: 12,
        visual: Some(2048),
        encoder_norms: 25 * 768,
        frozen: 222_903_552,
        decoder_rank: 96,
    };

    /// Numbers that learn, the encoder's norms included.
    pub fn trainable(&self, config: &VlPetConfig) -> usize {
        let encoder = 2 * self.encoder_layers * config.numel(self.width);
        let decoder = self.decoder_layers * VlPetDecoder::numel(self.width, self.decoder_rank);
        let visual = self.visual.map_or(0, |features| (features + 1) * self.width);
        encoder + decoder + visual + self.encoder_norms
    }

    /// The share of all numbers that learns, in percent. The norms are the trunk's own and counted once below.
    pub fn percent(&self, config: &VlPetConfig) -> f64 {
        let trainable = self.trainable(config);
        100.0 * trainable as f64 / (self.frozen + trainable - self.encoder_norms) as f64
    }
}

/// The finest variant whose share stays within `budget` percent: `config` with that variant.
///
/// # Errors
/// [`Error::Value`] when none does, with the least that one needs.
pub fn finest_within(shape: &Shape, config: &VlPetConfig, budget: f64) -> Result<VlPetConfig> {
    let candidates = Variant::ALL.map(|variant| VlPetConfig { variant, ..config.clone() });
    let least = candidates.iter().map(|c| shape.percent(c)).fold(f64::INFINITY, f64::min);
    candidates.into_iter().find(|c| shape.percent(c) <= budget).ok_or_else(|| {
        Error::value(OP, "budget", format!("at least {least:.3} percent, of the smallest variant"), budget)
    })
}
