//! Layers that learn as a whole: a linear probe, or PEFT's `modules_to_save`.

use super::attach::path_matches;
use super::{AdaptedLinear, Slot, Trunk};
use crate::error::{Error, Result};
use crate::tensor::{Init, ParamSetBuilder};

/// Starting values of a layer that learns as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadInit {
    /// Its weights as the trunk's file has them.
    FromTrunk,
    /// Fresh, for `classes` outputs: weight N(0, 0.02), bias 0.
    Fresh { classes: usize },
}

/// Makes the linear at `module` (a path or its last parts) learn as a whole and declares `<path>.weight` and `<path>.bias`.
///
/// # Errors
/// [`Error::NoMatch`] when the trunk has no such linear, [`Error::Value`] for no classes.
pub fn train_head(trunk: &mut dyn Trunk, module: &str, init: HeadInit, params: &mut ParamSetBuilder) -> Result<()> {
    let mut linears = trunk.linears()?;
    let available = linears.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ");
    let Some(linear) = linears.iter_mut().find(|l| path_matches(l.name(), module)) else {
        return Err(Error::NoMatch { patterns: vec![module.to_string()], available });
    };
    match init {
        HeadInit::FromTrunk => {
            let bias = linear.bias().map(|b| b.tensor().to_f32_vec()).transpose()?;
            let weight = Init::Values(linear.weight().to_f32_vec()?);
            learn_whole(linear, linear.weight().n(), weight, bias.map(Init::Values), params)
        }
        HeadInit::Fresh { classes: 0 } => Err(Error::value("train_head", "classes", "at least 1", 0)),
        HeadInit::Fresh { classes } => {
            learn_whole(linear, classes, Init::Normal { std: 0.02 }, Some(Init::Zeros), params)
        }
    }
}

/// Puts a dense layer of `n` outputs in place of the frozen one.
pub(super) fn learn_whole(
    linear: &mut AdaptedLinear,
    n: usize,
    weight: Init,
    bias: Option<Init>,
    params: &mut ParamSetBuilder,
) -> Result<()> {
    let weight = params.add(format!("{}.weight", linear.name()), &[n, linear.weight().k()], weight)?;
    let bias = bias.map(|init| params.add(format!("{}.bias", linear.name()), &[n], init)).transpose()?;
    linear.set_slot(Slot::Dense { weight, bias });
    Ok(())
}
