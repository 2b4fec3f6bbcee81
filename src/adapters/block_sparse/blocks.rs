//! The blocks of one site, as a forward pass sees them.

use std::collections::BTreeMap;

use super::{Patterns, Scores, Site};
use crate::autograd::{Grads, Tape, Var};
use crate::device::Device;
use crate::error::Result;
use crate::ops::{GradientScore, gradient_scores};
use crate::optim::Carry;
use crate::tensor::{BlockPattern, Init, ParamId, ParamSetBuilder, Tensor};

pub(super) const VALUES: &str = ".values";
const SCORES: &str = ".scores";

/// What a scoring pass looks for: every block of every site, by the squares of its gradient or by `|w ⊙ g|`.
#[derive(Clone, Debug)]
pub struct Probe {
    candidates: Patterns,
    saliency: BTreeMap<String, Tensor>,
}

impl Probe {
    /// Of all blocks of `sites`. `saliency`: `Σ |w ⊙ g|` of each site's weight instead of `Σ g²`.
    pub fn new(device: &Device, block: usize, sites: &[Site], saliency: bool) -> Result<Self> {
        let mut probe = Probe { candidates: Patterns::new(), saliency: BTreeMap::new() };
        for site in sites {
            probe.candidates.insert(site.name.clone(), BlockPattern::full(device, site.shape(), block)?);
            if saliency {
                probe.saliency.insert(site.name.clone(), site.weight.clone());
            }
        }
        Ok(probe)
    }

    /// What the scoring passes have summed up in `grads`.
    pub fn read(&self, grads: &Grads) -> Result<Scores> {
        let mut scores = Scores::new();
        for name in self.candidates.keys() {
            if let Some(id) = grads.params().find(&format!("{name}{SCORES}")) {
                scores.insert(name.clone(), grads.view(id)?.contiguous()?.to_f64_vec()?);
            }
        }
        Ok(scores)
    }
}

/// Blocks that exist, and what a scoring pass asks of the others.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    pub existing: Option<(BlockPattern, ParamId)>,
    probed: Option<Probed>,
}

#[derive(Clone, Debug)]
struct Probed {
    candidates: BlockPattern,
    scores: ParamId,
    saliency: Option<Tensor>,
}

impl Blocks {
    pub fn of(pattern: BlockPattern, values: ParamId) -> Self {
        Blocks { existing: Some((pattern, values)), probed: None }
    }

    /// Declares the values of site `name`, and scores while a probe looks on. `None` if there is neither.
    pub fn declare(
        name: &str,
        patterns: &Patterns,
        probe: Option<&Probe>,
        init: Init,
        params: &mut ParamSetBuilder,
    ) -> Result<Option<Self>> {
        let mut existing = None;
        if let Some(pattern) = patterns.get(name).filter(|p| p.nnz() > 0) {
            let values = params.add(format!("{name}{VALUES}"), &pattern.value_dims(), init)?;
            existing = Some((pattern.clone(), values));
        }
        let mut probed = None;
        if let Some((probe, candidates)) = probe.and_then(|p| Some((p, p.candidates.get(name)?))) {
            let scores = params.add(format!("{name}{SCORES}"), &[candidates.nnz()], Init::Zeros)?;
            let saliency = probe.saliency.get(name).cloned();
            probed = Some(Probed { candidates: candidates.clone(), scores, saliency });
        }
        let any = existing.is_some() || probed.is_some();
        Ok(any.then_some(Blocks { existing, probed }))
    }

    /// y itself; while a probe looks on, the candidates are scored in backward as blocks of what makes y of x.
    pub fn watch(&self, tape: &mut Tape, x: &Var, y: Var) -> Result<Var> {
        let Some(probed) = &self.probed else { return Ok(y) };
        let scores = tape.param(probed.scores)?;
        let score = probed.saliency.as_ref().map_or(GradientScore::Squares, GradientScore::Saliency);
        gradient_scores(tape, &y, x, &probed.candidates, score, &scores)
    }

    /// Trainable numbers.
    pub fn numel(&self) -> usize {
        self.existing.as_ref().map_or(0, |(pattern, _)| pattern.value_dims().iter().product())
    }
}

/// Values and moments of blocks that exist before and after follow them; new blocks start at zero.
pub fn carry_blocks(old: &Patterns, new: &Patterns) -> Carry {
    let mut carry = Carry::whole();
    for (name, pattern) in new {
        let Some(before) = old.get(name) else { continue };
        let places: BTreeMap<(u32, u32), usize> = before.topology().blocks().zip(0..).collect();
        let size = pattern.block() * pattern.block();
        let map = pattern.topology().blocks().flat_map(|block| {
            let place = places.get(&block).copied();
            (0..size).map(move |e| place.map(|p| p * size + e))
        });
        carry.elements(format!("{name}{VALUES}"), map.collect());
    }
    carry
}
