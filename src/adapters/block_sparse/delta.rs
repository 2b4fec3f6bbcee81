//! `y = x (W₀ + S)ᵀ + b`, S block-sparse, perhaps with a low-rank update beside it.
//!
//! ```text
//! y = x W₀ᵀ + b + x Sᵀ + s · dropout(x) Aᵀ Bᵀ
//! ```
//!
//! S starts at zero, so that training starts from the trunk itself. Both updates ride on the frozen product, and merge into the weight.
//! Sources: He et al., "Sparse Matrix Tuning", ICLR 2025, for blocks; Chen et al., "DSEE", 2021, and Nikdan et al., "RoSA", 2024, for the
//! sum of a low-rank and a sparse update.

use super::blocks::{Blocks, Probe};
use super::{Allocation, Family, Patterns, Site, require_block, require_fit};
use crate::adapters::attach::{Attached, for_targets};
use crate::adapters::lora::{Lora, declare, validate};
use crate::adapters::merge::{add_blocks, add_low_rank};
use crate::adapters::{AdaptedLinear, AttachReport, Frozen, LinearAdapter, LoraConfig, Slot, Trunk};
use crate::autograd::{Tape, Var};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::peft::{Matcher, Modules};
use crate::ops::{After, BlockUpdate, LowRank, Mid, Updates, frozen_linear_with};
use crate::tensor::{BlockPattern, FrozenWeight, Init, ParamId, ParamSet, ParamSetBuilder};

const OP: &str = "block_sparse_delta";

/// The adapter on one linear.
#[derive(Clone, Debug)]
pub struct BlockSparseDelta {
    blocks: Option<Blocks>,
    low_rank: Option<Lora>,
}

impl BlockSparseDelta {
    /// `values [nnz, b, b]` at the blocks of `pattern [n, k]`.
    pub fn new(pattern: BlockPattern, values: ParamId) -> Self {
        BlockSparseDelta { blocks: Some(Blocks::of(pattern, values)), low_rank: None }
    }

    /// With a low-rank update beside it.
    pub fn with_low_rank(self, low_rank: Lora) -> Self {
        BlockSparseDelta { low_rank: Some(low_rank), ..self }
    }

    fn existing(&self) -> Option<&(BlockPattern, ParamId)> {
        self.blocks.as_ref()?.existing.as_ref()
    }
}

impl LinearAdapter for BlockSparseDelta {
    fn forward(&self, tape: &mut Tape, x: &Var, frozen: Frozen<'_>) -> Result<Var> {
        let values = self.existing().map(|(_, id)| tape.param(*id)).transpose()?;
        let factors = self.low_rank.as_ref().map(|l| Ok((l, tape.param(l.a)?, tape.param(l.b)?))).transpose()?;
        let pattern = self.existing().map(|(pattern, _)| pattern);
        let updates = Updates {
            low_rank: factors.as_ref().map(|(l, a, b)| LowRank {
                a,
                b,
                mid: Mid::Identity,
                scale: l.scale,
                dropout: l.dropout,
                site: l.site,
            }),
            sparse: pattern.zip(values.as_ref()).map(|(pattern, values)| BlockUpdate { pattern, values, scale: 1.0 }),
        };
        let Frozen { weight, bias, after } = frozen;
        let Some(blocks) = &self.blocks else {
            return frozen_linear_with(tape, x, weight, bias, updates, after);
        };
        // What is watched is the gradient of the product itself.
        let y = frozen_linear_with(tape, x, weight, bias, updates, After::default())?;
        let y = blocks.watch(tape, x, y)?;
        after.apply(tape, y)
    }

    fn update(&self, params: &ParamSet, weight: &FrozenWeight) -> Result<Vec<f64>> {
        let shape @ [n, k] = [weight.n(), weight.k()];
        let mut update = vec![0.0; n * k];
        if let Some((pattern, values)) = self.existing() {
            if pattern.shape() != shape {
                return Err(Error::shape(OP, "pattern", format!("a pattern of {shape:?}"), &pattern.shape()));
            }
            add_blocks(&mut update, params, pattern, *values)?;
        }
        if let Some(lora) = &self.low_rank {
            add_low_rank(&mut update, shape, params, [lora.a, lora.b], None, lora.scale)?;
        }
        Ok(update)
    }
}

/// Where block-sparse updates go.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSparseConfig {
    pub targets: Modules,
    /// b: 16, 32, 64 or 128.
    pub block: usize,
    pub allocation: Allocation,
    /// A LoRA beside every update; of it, rank, alpha, rslora and dropout count.
    pub low_rank: Option<LoraConfig>,
}

impl BlockSparseConfig {
    /// Calls `adapt` on every target.
    fn for_each(
        &self,
        trunk: &mut dyn Trunk,
        adapt: impl FnMut(&mut AdaptedLinear, &Matcher) -> Result<Attached>,
    ) -> Result<AttachReport> {
        let lora = self.low_rank.clone().unwrap_or_default();
        let config = LoraConfig { targets: self.targets.clone(), ..lora }.to_peft(&[]);
        require_block(self.block)?;
        validate(&config)?;
        for_targets(trunk, &config, adapt)
    }
}

/// Name of the site on a linear.
fn site(module: &str) -> String {
    format!("{module}.block_sparse")
}

impl Family for BlockSparseConfig {
    fn block(&self) -> usize {
        self.block
    }

    fn allocation(&self) -> Allocation {
        self.allocation
    }

    fn shapes(&self, trunk: &mut dyn Trunk) -> Result<Vec<(String, [usize; 2])>> {
        let mut shapes = Vec::new();
        self.for_each(trunk, |linear, _| {
            shapes.push((site(linear.name()), [linear.weight().n(), linear.weight().k()]));
            Ok(Attached { module: linear.name().to_string(), rank: 0, params: 0 })
        })?;
        Ok(shapes)
    }

    /// No block: every site's update is zero before it is chosen.
    fn start(&self, _: &mut dyn Trunk, _: &Device) -> Result<Patterns> {
        Ok(Patterns::new())
    }

    fn sites(&self, trunk: &mut dyn Trunk, _: &Patterns, _: &ParamSet) -> Result<Vec<Site>> {
        let mut sites = Vec::new();
        self.for_each(trunk, |linear, _| {
            sites.push(Site { name: site(linear.name()), weight: linear.weight().tensor().clone() });
            Ok(Attached { module: linear.name().to_string(), rank: 0, params: 0 })
        })?;
        Ok(sites)
    }

    fn attach(
        &self,
        trunk: &mut dyn Trunk,
        patterns: &Patterns,
        probe: Option<&Probe>,
        params: &mut ParamSetBuilder,
    ) -> Result<AttachReport> {
        self.for_each(trunk, |linear, matcher| {
            let (module, shape) = (linear.name().to_string(), [linear.weight().n(), linear.weight().k()]);
            let name = site(&module);
            if let Some(pattern) = patterns.get(&name) {
                require_fit(OP, &name, pattern, shape, self.block)?;
            }
            let low_rank = match &self.low_rank {
                Some(_) => Some(declare(linear, matcher, params)?),
                None => None,
            };
            let blocks = Blocks::declare(&name, patterns, probe, Init::Zeros, params)?;
            let numel = blocks.as_ref().map_or(0, Blocks::numel);
            let rank = low_rank.as_ref().map_or(0, |_| matcher.rank(&module));
            match (&blocks, &low_rank) {
                (None, None) => linear.set_slot(Slot::Frozen),
                _ => linear.adapt(BlockSparseDelta { blocks, low_rank }),
            }
            Ok(Attached { module, rank, params: numel + rank * (shape[0] + shape[1]) })
        })
    }
}
