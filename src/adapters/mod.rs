//! What learns: adapters on the linears of a frozen trunk.
//!
//! A trunk lists its linears by module path ([`Trunk`]). An adapter's configuration picks some of them by name, declares its parameters in a
//! [`ParamSetBuilder`](crate::tensor::ParamSetBuilder), and leaves a slot in each. The report says what matched and what did not.

mod attach;
mod files;
mod head;
mod linear;
mod lora;

pub use attach::{AttachReport, Attached};
pub use files::{adapter_file, load_adapter, save_adapter};
pub use head::{HeadInit, train_head};
pub use linear::{AdaptedLinear, Slot};
pub use lora::{Lora, LoraConfig, parse_targets};

use crate::error::Result;

/// A frozen model whose linears can be adapted.
pub trait Trunk {
    /// Every linear, in the order of the forward pass, with its full module path. The last one is the output layer.
    ///
    /// # Errors
    /// [`Error::Autograd`](crate::Error::Autograd) while a tape still holds blocks of this trunk.
    fn linears(&mut self) -> Result<Vec<&mut AdaptedLinear>>;
}
