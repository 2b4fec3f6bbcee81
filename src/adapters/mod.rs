//! What learns: adapters on the linears of a frozen trunk, and between its sub-layers.
//!
//! A trunk lists its linears and the places after its sub-layers by module path ([`Trunk`]). An adapter's configuration picks some of them by
//! name, declares its parameters in a [`ParamSetBuilder`](crate::tensor::ParamSetBuilder), and leaves a [`LinearAdapter`] on each linear or
//! an [`Insert`] in each place. The report says what matched and what did not.

pub mod adalora;
mod attach;
mod bank;
pub mod block_sparse;
mod bottleneck;
mod compacter;
mod dora;
mod dual_lora;
mod files;
#[cfg(test)]
mod fixture;
mod gated;
mod graph;
mod head;
mod insert;
mod linear;
mod lora;
mod lora_fa;
mod merge;
mod norm;
mod scaling;
mod sequential;
pub mod sora;
mod tap;
mod vce;
mod vera;
pub mod vl_pet;

pub use attach::{AttachReport, Attached, Sides, Sites};
pub use bank::{LoraBank, LoraBankConfig, Route, SlotValues};
pub use bottleneck::{Bottleneck, BottleneckConfig, HeadLayout};
pub use compacter::{Compacter, CompacterConfig};
pub use dora::{Dora, DoraConfig};
pub use dual_lora::{DualLora, DualLoraConfig};
pub use files::{adapter_file, load_adapter, native_adapter, restore_native, save_adapter};
pub use graph::{Fusion, GaNet, GaNetConfig, GraphAttention, GraphConv, Reference};
pub use head::{HeadInit, train_head};
pub use insert::{Insert, InsertPoint};
pub use linear::{AdaptedLinear, Frozen, LinearAdapter, Slot};
pub use lora::{Lora, LoraConfig, parse_targets};
pub use lora_fa::{LoraFa, LoraFaConfig};
pub use merge::{MergeReport, merge_all, unmerge_all};
pub use norm::AdaptedNorm;
pub use scaling::{Ia3, Ia3Config, Ssf, SsfConfig};
pub use sequential::{AdapterConfig, AdapterForm, BottleneckAdapter};
pub use tap::{Combine, TapPoint};
pub use vce::{Vce, VceConfig};
pub use vera::{Vera, VeraConfig};
pub use vl_pet::{VlPetConfig, VlPetDecoder, VlPetEncoder};

use crate::error::Result;

/// A frozen model that can be adapted.
pub trait Trunk {
    /// Every linear, in the order of the forward pass, with its full module path. The last one is the output layer.
    ///
    /// # Errors
    /// [`Error::Autograd`](crate::Error::Autograd) while a tape still holds blocks of this trunk.
    fn linears(&mut self) -> Result<Vec<&mut AdaptedLinear>>;

    /// Every place after a sub-layer, in the order of the forward pass: those of the encoder in an encoder-decoder.
    ///
    /// # Errors
    /// As [`Trunk::linears`].
    fn inserts(&mut self) -> Result<Vec<&mut InsertPoint>>;

    /// The places after the decoder's sub-layers, in a trunk that has one.
    ///
    /// # Errors
    /// As [`Trunk::linears`].
    fn decoder_inserts(&mut self) -> Result<Vec<&mut InsertPoint>> {
        Ok(Vec::new())
    }

    /// The place where hidden states of several depths meet, in a trunk that has one.
    ///
    /// # Errors
    /// As [`Trunk::linears`].
    fn tap(&mut self) -> Result<Option<&mut TapPoint>> {
        Ok(None)
    }

    /// The norms that a method may let learn: those of the encoder in an encoder-decoder, none in a trunk whose norms stay frozen.
    ///
    /// # Errors
    /// As [`Trunk::linears`].
    fn norms(&mut self) -> Result<Vec<&mut AdaptedNorm>> {
        Ok(Vec::new())
    }
}
