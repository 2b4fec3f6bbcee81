//! The place in a trunk where hidden states of several depths meet.

use std::fmt;
use std::sync::Arc;

use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};

/// A module that sees hidden states of several depths and makes one of them. Like a [`LinearAdapter`](super::LinearAdapter) it holds ids
/// of parameters and never changes.
pub trait Combine: fmt::Debug + Send + Sync {
    /// The depths that it wants to see, in ascending order: depth i is what block i reads, and 0 what the embeddings make.
    fn depths(&self) -> &[usize];

    /// What takes the place of the hidden state here, in its shape. `hidden` are the states at [`Combine::depths`].
    fn forward(&self, tape: &mut Tape, hidden: &[Var]) -> Result<Var>;
}

/// The place itself, with or without a module.
#[derive(Clone, Debug)]
pub struct TapPoint {
    width: usize,
    /// Rows and columns of the patches.
    grid: [usize; 2],
    /// Tokens before the patches.
    special: usize,
    /// The depth of this place: what lies deeper is not there yet.
    depth: usize,
    module: Option<Arc<dyn Combine>>,
}

impl TapPoint {
    /// Before block `depth`, among `special` tokens and then the patches of `grid`, `width` features each.
    pub fn new(depth: usize, width: usize, grid: [usize; 2], special: usize) -> Self {
        TapPoint { width, grid, special, depth, module: None }
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows and columns of the patches.
    pub fn grid(&self) -> [usize; 2] {
        self.grid
    }

    /// Tokens before the patches.
    pub fn special(&self) -> usize {
        self.special
    }

    /// The largest depth that can be seen here.
    pub fn depth(&self) -> usize {
        self.depth
    }

    pub fn module(&self) -> Option<&Arc<dyn Combine>> {
        self.module.as_ref()
    }

    /// Puts `module` here, in place of what was there.
    ///
    /// # Errors
    /// [`Error::Value`] for depths that are not here yet, or not in ascending order.
    pub fn insert(&mut self, module: impl Combine + 'static) -> Result<()> {
        let depths = module.depths();
        let rise = depths.windows(2).all(|pair| pair[0] < pair[1]);
        if depths.is_empty() || !rise || depths.iter().any(|&d| d > self.depth) {
            let expected = format!("depths in ascending order, at most {}", self.depth);
            return Err(Error::value("tap", "depths", expected, format!("{depths:?}")));
        }
        self.module = Some(Arc::new(module));
        Ok(())
    }

    /// Leaves the place empty.
    pub fn clear(&mut self) {
        self.module = None;
    }

    /// Takes note of `x`, the hidden state at `depth`, if the module wants it.
    pub fn collect(&self, depth: usize, x: &Var, tapped: &mut Vec<Var>) {
        if self.module.as_ref().is_some_and(|module| module.depths().contains(&depth)) {
            tapped.push(x.clone());
        }
    }

    /// `x` itself while the place is empty.
    pub fn forward(&self, tape: &mut Tape, x: Var, tapped: &[Var]) -> Result<Var> {
        match &self.module {
            None => Ok(x),
            Some(module) => module.forward(tape, tapped),
        }
    }
}
