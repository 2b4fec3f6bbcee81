//! Slices of coupled matrices, in the manner of S2FT: channels that one linear makes and the next one reads.
//!
//! ```text
//! first  [h, k]   rows     c·b .. (c+1)·b      makes channels c·b ..      fc1, v_proj
//! second [n, h]   columns  c·b .. (c+1)·b      reads them                 fc2, o_proj
//! ```
//!
//! A chosen slice of b channels is a whole column of blocks of the second matrix, and a whole row of blocks of the first where that learns too:
//! a dense product on a slice, which the block-sparse kernels run without a copy of x and without permuting the trunk. It merges as
//! every block-sparse update does.
//!
//! Source: Yang et al., "S²FT: Efficient, Scalable and Generalizable LLM Fine-tuning by Structured Sparsity", 2024, whose slices are made
//! contiguous by a permutation of the trunk.

use std::collections::BTreeMap;

use super::blocks::Probe;
use super::{Allocation, BlockSparseConfig, Family, Move, Patterns, Scores, Site, choose, require_block};
use crate::adapters::attach::path_matches;
use crate::adapters::{AttachReport, Trunk};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::peft::Modules;
use crate::tensor::{BlockPattern, ParamSet, ParamSetBuilder};

/// Two linears by the last parts of their names: what the first makes, the second reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Coupled {
    pub first: String,
    pub second: String,
}

/// Which channels learn, and on which side.
#[derive(Clone, Debug, PartialEq)]
pub struct CoupledConfig {
    pub pairs: Vec<Coupled>,
    /// b: channels of a slice.
    pub block: usize,
    /// Whether the first matrix's rows learn beside the second one's columns.
    pub both: bool,
    /// Whether all slices compete, or those of each pair.
    pub allocation: Allocation,
}

const OP: &str = "coupled_slices";

/// The sites that share channels: a reader, and its makers where those learn too.
struct Group<'a> {
    firsts: Vec<&'a Site>,
    second: &'a Site,
}

impl Group<'_> {
    /// Slices of the shared channels.
    fn slices(&self, block: usize) -> usize {
        self.second.shape()[1].div_ceil(block)
    }

    /// The mean score of each slice's blocks.
    fn scores(&self, scores: &Scores, block: usize) -> Result<Vec<f64>> {
        let slices = self.slices(block);
        let (mut sums, mut blocks) = (vec![0.0; slices], 0);
        let mut add = |site: &Site, slice_of: &dyn Fn(usize) -> usize| {
            let own = scores.get(&site.name).map_or(&[][..], Vec::as_slice);
            let grid = site.shape().map(|extent| extent.div_ceil(block));
            if own.len() != grid[0] * grid[1] {
                return Err(Error::shape(OP, "scores", format!("{grid:?} for `{}`", site.name), &[own.len()]));
            }
            own.iter().enumerate().for_each(|(i, score)| sums[slice_of(i)] += score);
            blocks += own.len() / slices.max(1);
            Ok(())
        };
        add(self.second, &|i| i % slices)?;
        for first in &self.firsts {
            let columns = first.shape()[1].div_ceil(block);
            add(first, &|i| i / columns)?;
        }
        Ok(sums.into_iter().map(|sum| sum / blocks.max(1) as f64).collect())
    }
}

/// What makes the channels that `second`, the site of `module`, reads.
fn maker<'a>(sites: &'a [Site], second: &Site, module: &str, pair: &Coupled) -> Result<&'a Site> {
    let name = format!("{}{}", module.strip_suffix(&pair.second).unwrap_or_default(), pair.first);
    let first = sites.iter().find(|site| site.name.strip_suffix(".block_sparse") == Some(&name));
    let Some(first) = first else {
        return Err(Error::value(OP, "pairs", format!("a linear `{name}` before `{module}`"), "none"));
    };
    if first.shape()[0] != second.shape()[1] {
        let expected = format!("{} rows, as `{module}` reads", second.shape()[1]);
        return Err(Error::shape(OP, "first", expected, &first.shape()));
    }
    Ok(first)
}

impl CoupledConfig {
    fn inner(&self) -> BlockSparseConfig {
        let firsts = self.pairs.iter().filter(|_| self.both).map(|p| p.first.clone());
        let names = firsts.chain(self.pairs.iter().map(|p| p.second.clone())).collect();
        let (targets, block, allocation) = (Modules::Names(names), self.block, self.allocation);
        BlockSparseConfig { targets, block, allocation, low_rank: None }
    }

    fn groups<'a>(&self, sites: &'a [Site]) -> Result<Vec<Group<'a>>> {
        let mut groups = Vec::new();
        for second in sites {
            let module = second.name.trim_end_matches(".block_sparse");
            let read = |pair: &Coupled| path_matches(module, &pair.second);
            let mut firsts = Vec::new();
            for pair in self.pairs.iter().filter(|pair| self.both && read(pair)) {
                firsts.push(maker(sites, second, module, pair)?);
            }
            if self.pairs.iter().any(read) {
                groups.push(Group { firsts, second });
            }
        }
        Ok(groups)
    }
}

impl Family for CoupledConfig {
    fn block(&self) -> usize {
        self.block
    }

    fn allocation(&self) -> Allocation {
        self.allocation
    }

    fn shapes(&self, trunk: &mut dyn Trunk) -> Result<Vec<(String, [usize; 2])>> {
        self.inner().shapes(trunk)
    }

    fn start(&self, _: &mut dyn Trunk, _: &Device) -> Result<Patterns> {
        Ok(Patterns::new())
    }

    fn sites(&self, trunk: &mut dyn Trunk, patterns: &Patterns, params: &ParamSet) -> Result<Vec<Site>> {
        self.inner().sites(trunk, patterns, params)
    }

    /// `density` counts slices.
    fn choose(&self, device: &Device, sites: &[Site], scores: &Scores, density: f64) -> Result<Patterns> {
        require_block(self.block)?;
        let groups = self.groups(sites)?;
        // A group's slices compete as the blocks of a single row do.
        let mut rows = Vec::new();
        let mut slice_scores = Scores::new();
        for group in &groups {
            let slices = group.slices(self.block);
            rows.push((group.second.name.clone(), [1, slices * self.block]));
            slice_scores.insert(group.second.name.clone(), group.scores(scores, self.block)?);
        }
        let taken = choose(device, self.block, &rows, &slice_scores, density, self.allocation)?;
        // What makes for two readers, or reads and makes, has the slices of both.
        let mut masks: BTreeMap<String, ([usize; 2], Vec<bool>)> = BTreeMap::new();
        for group in &groups {
            let Some(slices) = taken.get(&group.second.name).map(|p| p.topology().mask()) else { continue };
            let mut put = |site: &Site, chosen: &dyn Fn(usize, usize) -> bool| {
                let [rows, columns] = site.shape().map(|extent| extent.div_ceil(self.block));
                let (_, mask) =
                    masks.entry(site.name.clone()).or_insert_with(|| (site.shape(), vec![false; rows * columns]));
                mask.iter_mut().enumerate().for_each(|(i, there)| *there |= chosen(i / columns, i % columns));
            };
            put(group.second, &|_, column| slices[column]);
            group.firsts.iter().for_each(|first| put(first, &|row, _| slices[row]));
        }
        let pattern = |(name, (shape, mask)): (String, ([usize; 2], Vec<bool>))| {
            Ok((name, BlockPattern::from_mask(device, shape, self.block, &mask)?))
        };
        masks.into_iter().map(pattern).collect()
    }

    fn advance(&self, _: &Device, _: &[Site], _: &Patterns, _: &Scores, _: &Scores, _: Move) -> Result<Patterns> {
        let (what, hint) = ("slices do not move".to_string(), "choose them once, by Sparsity::fixed".to_string());
        Err(Error::Unsupported { op: OP, what, hint })
    }

    fn attach(
        &self,
        trunk: &mut dyn Trunk,
        patterns: &Patterns,
        probe: Option<&Probe>,
        params: &mut ParamSetBuilder,
    ) -> Result<AttachReport> {
        let mut report = self.inner().attach(trunk, patterns, probe, params)?;
        // Pairs of one maker are alternatives: trunks call its reader differently.
        let is_there = |pair: &&Coupled| report.attached.iter().any(|a| path_matches(&a.module, &pair.second));
        let found: Vec<&str> = self.pairs.iter().filter(is_there).map(|pair| pair.first.as_str()).collect();
        let missed = self.pairs.iter().filter(|pair| !found.contains(&pair.first.as_str()));
        report.unmatched_patterns = missed.map(|pair| format!("{}:{}", pair.first, pair.second)).collect();
        Ok(report)
    }
}
