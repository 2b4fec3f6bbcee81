//! Frozen weights from `model.safetensors`, under the names that transformers writes (`vit.encoder.layer.0.attention.attention.query`)
//! or holds in memory (`vit.layers.0.attention.q_proj`). Modules carry the latter, which adapter files use.

use std::sync::Arc;

use super::block::{Block, Read};
use super::{Norm, Vit, VitConfig};
use crate::adapters::{AdaptedLinear, InsertPoint, TapPoint};
use crate::autograd::Var;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::format::peft::vit_names::to_old;
use crate::format::safetensors::SafeTensors;
use crate::tensor::{FrozenWeight, Tensor};

pub(super) struct Loader<'a> {
    pub file: &'a SafeTensors,
    pub device: &'a Device,
    pub dtype: DType,
    pub config: &'a VitConfig,
}

impl Loader<'_> {
    pub fn vit(&self) -> Result<Vit> {
        let config = self.config;
        let (d, tokens) = (config.hidden, config.tokens());
        let kernel = [d, config.channels, config.patch, config.patch];
        let blocks = (0..config.layers).map(|i| self.block(i).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        Ok(Vit {
            config: config.clone(),
            patch_weight: FrozenWeight::new(
                self.tensor("vit.embeddings.patch_embeddings.projection.weight", &kernel)?,
            )?,
            patch_bias: self.vector("vit.embeddings.patch_embeddings.projection.bias", &[d])?,
            class_token: self.vector("vit.embeddings.cls_token", &[1, 1, d])?,
            positions: self.vector("vit.embeddings.position_embeddings", &[1, tokens, d])?,
            blocks,
            tap: TapPoint::new(config.layers - 1, d, [config.image / config.patch; 2], 1),
            norm: self.norm("vit.layernorm")?,
            classifier: self.linear("classifier", config.labels, d)?,
            device: self.device.clone(),
            dtype: self.dtype,
        })
    }

    fn block(&self, index: usize) -> Result<Block> {
        let (d, wide) = (self.config.hidden, self.config.intermediate);
        let path = |rest: &str| format!("vit.layers.{index}.{rest}");
        Ok(Block {
            norm_before: self.norm(&path("layernorm_before"))?,
            q: self.linear(&path("attention.q_proj"), d, d)?,
            k: self.linear(&path("attention.k_proj"), d, d)?,
            v: self.linear(&path("attention.v_proj"), d, d)?,
            o: self.linear(&path("attention.o_proj"), d, d)?,
            after_attention: InsertPoint::new(path("attention"), d),
            norm_after: self.norm(&path("layernorm_after"))?,
            fc1: self.linear(&path("mlp.fc1"), wide, d)?,
            fc2: self.linear(&path("mlp.fc2"), d, wide)?,
            after_mlp: InsertPoint::new(path("mlp"), d),
            heads: self.config.heads,
            activation: self.config.activation,
            read: if index + 1 == self.config.layers { Read::ClassToken } else { Read::All },
        })
    }

    fn norm(&self, path: &str) -> Result<Norm> {
        let d = [self.config.hidden];
        Ok(Norm {
            gamma: self.vector(&format!("{path}.weight"), &d)?,
            beta: self.vector(&format!("{path}.bias"), &d)?,
            eps: self.config.eps,
        })
    }

    /// A bias that the file does not hold is none.
    fn linear(&self, path: &str, n: usize, k: usize) -> Result<AdaptedLinear> {
        let weight = FrozenWeight::new(self.tensor(&format!("{path}.weight"), &[n, k])?)?;
        let bias = format!("{path}.bias");
        let has_bias = self.file.contains(&bias) || self.file.contains(&to_old(&bias));
        let bias = if has_bias { Some(self.vector(&bias, &[n])?) } else { None };
        Ok(AdaptedLinear::new(path, weight, bias))
    }

    fn vector(&self, name: &str, dims: &[usize]) -> Result<Var> {
        Ok(Var::constant(self.tensor(name, dims)?))
    }

    fn tensor(&self, name: &str, dims: &[usize]) -> Result<Tensor> {
        let on_disk = to_old(name);
        let stored: &str = if self.file.contains(&on_disk) { &on_disk } else { name };
        let cpu = Device::cpu();
        let tensor = self.file.tensor(stored, &cpu)?;
        if tensor.dims() != dims {
            let reason = format!("`{stored}` has shape {:?}, expected {dims:?}", tensor.dims());
            return Err(crate::error::Error::file(self.file.path(), reason));
        }
        let tensor = tensor.cast(self.dtype)?;
        if self.device.is_cpu() { Ok(tensor) } else { tensor.to_device(self.device) }
    }
}
