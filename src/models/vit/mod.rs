//! A vision transformer (Dosovitskiy et al., 2021) in the layout of Hugging Face: pre-norm blocks, class token, classifier.
//!
//! | value | shape |
//! |---|---|
//! | pixels | `[b, c, image, image]` |
//! | tokens | `[b, 1 + (image / patch)², hidden]` |
//! | logits | `[b, labels]` |

mod block;
mod config;
mod load;

pub use config::VitConfig;

use std::path::Path;
use std::sync::Arc;

use crate::adapters::{AdaptedLinear, InsertPoint, TapPoint, Trunk};
use crate::autograd::{Segment, Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::format::safetensors::SafeTensors;
use crate::ops::{Pooling, layer_norm, patch_embedding, pool};
use crate::tensor::FrozenWeight;
use block::Block;
use load::Loader;

/// A frozen layer norm.
#[derive(Clone, Debug)]
struct Norm {
    gamma: Var,
    beta: Var,
    eps: f64,
}

impl Norm {
    fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        layer_norm(tape, x, &self.gamma, Some(&self.beta), self.eps)
    }
}

#[derive(Debug)]
pub struct Vit {
    config: VitConfig,
    patch_weight: FrozenWeight,
    patch_bias: Var,
    class_token: Var,
    positions: Var,
    blocks: Vec<Arc<Block>>,
    /// Before the last block, which reads the class token alone.
    tap: TapPoint,
    norm: Norm,
    classifier: AdaptedLinear,
    device: Device,
    dtype: DType,
}

impl Vit {
    /// From a directory with `config.json` and `model.safetensors`. On the CPU in f32, the weights stay in the mapped file.
    pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let config = VitConfig::load(&dir.join("config.json"))?;
        let file = SafeTensors::open(dir.join("model.safetensors"))?;
        Vit::from_file(&config, &file, device, dtype)
    }

    pub fn from_file(config: &VitConfig, file: &SafeTensors, device: &Device, dtype: DType) -> Result<Self> {
        Loader { file, device, dtype, config }.vit()
    }

    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// `pixels [b, c, image, image]` to logits `[b, labels]`.
    pub fn forward(&self, tape: &mut Tape, pixels: &Var) -> Result<Var> {
        let embedded = self.embed(tape, pixels)?;
        self.classifier.forward(tape, &embedded)
    }

    /// `pixels [b, c, image, image]` to what the classifier reads, `[b, hidden]`.
    pub fn embed(&self, tape: &mut Tape, pixels: &Var) -> Result<Var> {
        let mut x = patch_embedding(
            tape,
            pixels,
            &self.patch_weight,
            Some(&self.patch_bias),
            Some(&self.class_token),
            Some(&self.positions),
            self.config.patch,
        )?;
        let mut tapped = Vec::new();
        for (depth, block) in self.blocks.iter().enumerate() {
            self.tap.collect(depth, &x, &mut tapped);
            if depth + 1 == self.blocks.len() {
                x = self.tap.forward(tape, x, &tapped)?;
            }
            let segment: Arc<dyn Segment> = block.clone();
            x = tape.checkpoint(&segment, &x)?;
        }
        // Norm works on each token alone, and only the class token is read: pool first.
        let pooled = pool(tape, &x, Pooling::ClassToken)?;
        self.norm.forward(tape, &pooled)
    }

    /// Numbers in the frozen trunk, classifier included.
    pub fn frozen_numel(&self) -> usize {
        let norm = |n: &Norm| n.gamma.tensor().numel() + n.beta.tensor().numel();
        let block = |b: &Arc<Block>| {
            let linears: usize = b.frozen_linears().iter().map(|l| l.frozen_numel()).sum();
            linears + norm(&b.norm_before) + norm(&b.norm_after)
        };
        let embeddings = self.patch_weight.n() * self.patch_weight.k()
            + [&self.patch_bias, &self.class_token, &self.positions].map(|v| v.tensor().numel()).iter().sum::<usize>();
        embeddings + self.blocks.iter().map(block).sum::<usize>() + norm(&self.norm) + self.classifier.frozen_numel()
    }
}

impl Trunk for Vit {
    fn linears(&mut self) -> Result<Vec<&mut AdaptedLinear>> {
        let mut all = Vec::with_capacity(6 * self.blocks.len() + 1);
        for block in &mut self.blocks {
            all.extend(free(block)?.linears());
        }
        all.push(&mut self.classifier);
        Ok(all)
    }

    fn tap(&mut self) -> Result<Option<&mut TapPoint>> {
        Ok(Some(&mut self.tap))
    }

    fn inserts(&mut self) -> Result<Vec<&mut InsertPoint>> {
        let mut all = Vec::with_capacity(2 * self.blocks.len());
        for block in &mut self.blocks {
            all.extend(free(block)?.inserts());
        }
        Ok(all)
    }
}

/// A block that no tape holds.
fn free(block: &mut Arc<Block>) -> Result<&mut Block> {
    Arc::get_mut(block).ok_or_else(|| Error::Autograd {
        what: "a tape still holds a block of this trunk".into(),
        hint: "drop the tape before attaching adapters".into(),
    })
}
