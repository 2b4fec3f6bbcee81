//! A value in a forward pass, and what backward keeps of it.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::tensor::{ParamId, Tensor};

/// Who receives the gradient of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    Param(ParamId),
    Value(u32),
}

/// A tensor in a forward pass. Without a slot it is a constant: nothing trainable lies at or before it.
#[derive(Clone)]
pub struct Var {
    pub(crate) tensor: Tensor,
    pub(crate) slot: Option<Slot>,
    pub(crate) recipe: Option<Arc<dyn Recompute>>,
}

impl Var {
    /// A value that needs no gradient.
    pub fn constant(tensor: Tensor) -> Self {
        Var { tensor, slot: None, recipe: None }
    }

    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    pub fn dims(&self) -> &[usize] {
        self.tensor.dims()
    }

    /// Whether backward will compute a gradient for this value.
    pub fn needs_grad(&self) -> bool {
        self.slot.is_some()
    }

    /// Tells how to make this value again from things that are held anyway; whoever saves it keeps those instead.
    pub(crate) fn with_recipe(mut self, recipe: Arc<dyn Recompute>) -> Self {
        self.recipe = Some(recipe);
        self
    }

    /// What a node keeps so as to have this value in backward.
    pub fn save(&self) -> Saved {
        match &self.recipe {
            Some(recipe) => Saved::Recomputed(recipe.clone()),
            None => Saved::Held(self.tensor.clone()),
        }
    }

    /// The same elements under other dimensions; the gradient follows.
    pub fn reshape(&self, dims: &[usize]) -> Result<Var> {
        Ok(Var { tensor: self.tensor.reshape(dims)?, slot: self.slot, recipe: self.recipe.clone() })
    }
}

impl fmt::Debug for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Var({:?}, {:?})", self.tensor, self.slot)
    }
}

/// A cheap way to make a value again: layer norm from its input and statistics, an activation from its input.
pub trait Recompute: fmt::Debug + Send + Sync {
    /// The same bits as the first time.
    fn recompute(&self) -> Result<Tensor>;
    /// The tensors that are kept for it.
    fn holds(&self) -> Vec<&Tensor>;
}

/// What a node keeps of one value.
#[derive(Clone)]
pub enum Saved {
    Held(Tensor),
    Recomputed(Arc<dyn Recompute>),
}

impl Saved {
    /// The value, made again if need be. Its dimensions may be another view of the same elements.
    pub fn get(&self) -> Result<Tensor> {
        match self {
            Saved::Held(tensor) => Ok(tensor.clone()),
            Saved::Recomputed(recipe) => recipe.recompute(),
        }
    }

    pub fn holds(&self) -> Vec<&Tensor> {
        match self {
            Saved::Held(tensor) => vec![tensor],
            Saved::Recomputed(recipe) => recipe.holds(),
        }
    }
}

impl fmt::Debug for Saved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Saved::Held(tensor) => write!(f, "held {tensor:?}"),
            Saved::Recomputed(recipe) => write!(f, "recomputed by {recipe:?}"),
        }
    }
}
