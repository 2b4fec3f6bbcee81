//! What learns: adapters on the linears of a frozen trunk.
//!
//! A trunk lists its linears by module path ([`Trunk`]). An adapter's config picks some of them by name, declares its parameters in a
//! [`ParamSetBuilder`](crate::tensor::ParamSetBuilder), and leaves a slot in each. The report says what matched and what did not.

mod attach;
mod linear;
mod lora;

pub use attach::{AttachReport, Attached, Targets};
pub use linear::{AdaptedLinear, Slot};
pub use lora::{Lora, LoraConfig};

use crate::error::{Error, Result};
use crate::tensor::{Init, ParamSetBuilder};

/// A frozen model whose linears can be adapted.
pub trait Trunk {
    /// Every linear, in the order of the forward pass, with its full module path.
    ///
    /// # Errors
    /// [`Error::Autograd`] while a tape still holds blocks of this trunk.
    fn linears(&mut self) -> Result<Vec<&mut AdaptedLinear>>;
}

/// Starting values of a head that learns as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadInit {
    /// Its weights as the trunk's file has them.
    FromTrunk,
    /// Fresh, for `classes` outputs: weight N(0, 0.02), bias 0.
    Fresh { classes: usize },
}

/// Makes the linear at `module` learn as a whole: a linear probe, or PEFT's `modules_to_save`.
pub fn train_head(trunk: &mut dyn Trunk, module: &str, init: HeadInit, params: &mut ParamSetBuilder) -> Result<()> {
    let mut linears = trunk.linears()?;
    let available = linears.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ");
    let Some(linear) = linears.iter_mut().find(|l| attach::path_matches(l.name(), module)) else {
        return Err(Error::NoMatch { patterns: vec![module.to_string()], available });
    };
    let (n, k) = match init {
        HeadInit::FromTrunk => (linear.weight().n(), linear.weight().k()),
        HeadInit::Fresh { classes: 0 } => {
            return Err(Error::value("train_head", "classes", "at least 1", 0));
        }
        HeadInit::Fresh { classes } => (classes, linear.weight().k()),
    };
    let (weight, bias) = match init {
        HeadInit::FromTrunk => {
            let bias = linear.bias().map(|b| b.tensor().to_f32_vec()).transpose()?;
            (Init::Values(linear.weight().to_f32_vec()?), bias.map(Init::Values))
        }
        HeadInit::Fresh { .. } => (Init::Normal { std: 0.02 }, Some(Init::Zeros)),
    };
    let weight = params.add(format!("{}.weight", linear.name()), &[n, k], weight)?;
    let bias = bias.map(|init| params.add(format!("{}.bias", linear.name()), &[n], init)).transpose()?;
    linear.set_slot(Slot::Dense { weight, bias });
    Ok(())
}

