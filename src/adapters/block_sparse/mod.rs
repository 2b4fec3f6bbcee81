//! Updates of which only some square blocks are there, and learning which.
//!
//! A [`Family`] says where such matrices are (its [`Site`]s) and attaches adapters for given [`Patterns`]. There are three:
//! [`BlockSparseConfig`], `W₀ + S` on linears; [`CoupledConfig`], the same on slices of channels; and [`SparseAdapterConfig`], a bottleneck
//! with block-sparse projections after a sub-layer.
//! [`Sparsity`] chooses and moves the blocks of either: scores, a schedule of densities, pruning, regrowth, and a group lasso.
//!
//! Patterns are data beside the trunk: whoever moves blocks attaches the family again with the new patterns, builds a new
//! [`ParamSet`], and lets values and moments follow with the [`Carry`](crate::optim::Carry) of
//! [`carry_blocks`]. Parameters, gradients and moments therefore always are as large as the blocks that exist.

mod blocks;
mod bottleneck;
mod choose;
mod coupled;
mod delta;
mod files;
#[cfg(test)]
mod refusals;
mod sparsity;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use blocks::{Probe, carry_blocks};
pub use bottleneck::{SparseAdapter, SparseAdapterConfig};
pub use choose::{Allocation, Move, Scores, choose, move_blocks};
pub use coupled::{Coupled, CoupledConfig};
pub use delta::{BlockSparseConfig, BlockSparseDelta};
pub use files::{pattern_tensors, take_patterns};
pub use sparsity::{Score, Sparsity};

use super::{AttachReport, Trunk};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::block_sparse::BLOCKS;
use crate::tensor::{BlockPattern, ParamSet, ParamSetBuilder, Tensor};

/// Which blocks of each site exist, by the site's name. A site that is not here has none.
pub type Patterns = BTreeMap<String, BlockPattern>;

/// Refuses a block edge that no pattern has.
fn require_block(block: usize) -> Result<()> {
    if BLOCKS.contains(&block) {
        return Ok(());
    }
    Err(Error::value("block_sparse", "block", "16, 32, 64 or 128", block))
}

/// Refuses a pattern for another matrix than site `name`'s, or in other blocks.
fn require_fit(op: &'static str, name: &str, pattern: &BlockPattern, shape: [usize; 2], block: usize) -> Result<()> {
    let ([n, k], b) = (pattern.shape(), pattern.block());
    if ([n, k], b) == (shape, block) {
        return Ok(());
    }
    Err(Error::shape(op, "pattern", format!("{shape:?} in blocks of {block} for `{name}`"), &[n, k, b]))
}

/// A matrix `[n, k]` whose blocks may learn. The values of those that do are the parameter `<name>.values`.
#[derive(Clone, Debug)]
pub struct Site {
    pub name: String,
    /// `[n, k]`: what magnitudes and saliencies are taken of.
    pub weight: Tensor,
}

impl Site {
    /// `[n, k]`
    pub fn shape(&self) -> [usize; 2] {
        [self.weight.rows(), self.weight.cols()]
    }
}

/// Adapters made of block-sparse matrices.
pub trait Family {
    /// b, the same for all sites.
    fn block(&self) -> usize;

    /// How blocks are shared out among the sites.
    fn allocation(&self) -> Allocation;

    /// Name and shape of every site.
    fn shapes(&self, trunk: &mut dyn Trunk) -> Result<Vec<(String, [usize; 2])>>;

    /// The patterns before anything was chosen.
    fn start(&self, trunk: &mut dyn Trunk, device: &Device) -> Result<Patterns>;

    /// Every site, with the matrix that scores look at: `params` holds the values of `patterns`.
    fn sites(&self, trunk: &mut dyn Trunk, patterns: &Patterns, params: &ParamSet) -> Result<Vec<Site>>;

    /// The first patterns, from scores.
    fn choose(&self, device: &Device, sites: &[Site], scores: &Scores, density: f64) -> Result<Patterns> {
        let shapes: Vec<_> = sites.iter().map(|site| (site.name.clone(), site.shape())).collect();
        choose(device, self.block(), &shapes, scores, density, self.allocation())
    }

    /// The patterns after `now`: see [`move_blocks`].
    fn advance(
        &self,
        device: &Device,
        sites: &[Site],
        now: &Patterns,
        norms: &Scores,
        scores: &Scores,
        how: Move,
    ) -> Result<Patterns> {
        let shapes: Vec<_> = sites.iter().map(|site| (site.name.clone(), site.shape())).collect();
        move_blocks(device, self.block(), &shapes, now, norms, scores, how)
    }

    /// Attaches adapters with these patterns in place of earlier ones, and declares their parameters. With a probe, sites also score their
    /// candidates in backward.
    fn attach(
        &self,
        trunk: &mut dyn Trunk,
        patterns: &Patterns,
        probe: Option<&Probe>,
        params: &mut ParamSetBuilder,
    ) -> Result<AttachReport>;
}
