//! From scores to patterns: the best blocks are taken, and later the worst give way to better ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Patterns, require_block, require_fit};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::block_sparse::grid;
use crate::tensor::{BlockPattern, blocks_of};

const OP: &str = "choose_blocks";

/// A number for every block of each site's grid `[⌈n/b⌉, ⌈k/b⌉]`, row-major: the larger, the rather.
pub type Scores = BTreeMap<String, Vec<f64>>;

/// Among which blocks a density is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Allocation {
    /// All blocks of all sites compete: one site may get most of them, another none.
    Global,
    /// Each site has the density by itself, and at least one block.
    PerSite,
}

/// Name of a site, and its `[n, k]`.
type Shape = (String, [usize; 2]);

/// One block of one site.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    site: usize,
    index: usize,
    score: f64,
}

/// The sites of one competition.
fn groups(sites: usize, allocation: Allocation) -> Vec<Vec<usize>> {
    match allocation {
        Allocation::Global => vec![(0..sites).collect()],
        Allocation::PerSite => (0..sites).map(|i| vec![i]).collect(),
    }
}

/// Best first; of equals the earlier one.
fn sort(candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score).then((a.site, a.index).cmp(&(b.site, b.index))));
}

/// Blocks of a site's grid.
fn blocks((_, shape): &Shape, block: usize) -> Result<usize> {
    Ok(grid(*shape, block)?.iter().product())
}

/// The scores of `site`, one for each block.
pub(super) fn of<'a>(scores: &'a Scores, site: &Shape, block: usize) -> Result<&'a [f64]> {
    let own = scores.get(&site.0).map_or(&[][..], Vec::as_slice);
    let blocks = blocks(site, block)?;
    if own.len() != blocks {
        let expected = format!("{blocks} scores for `{}` in blocks of {block}", site.0);
        return Err(Error::shape(OP, "scores", expected, &[own.len()]));
    }
    Ok(own)
}

/// Refuses numbers by which nothing can be ranked.
fn require_numbers(argument: &'static str, scores: &Scores) -> Result<()> {
    match scores.iter().find(|(_, own)| own.iter().any(|s| s.is_nan())) {
        Some((site, _)) => Err(Error::value(OP, argument, "numbers", format!("NaN for `{site}`"))),
        None => Ok(()),
    }
}

/// Refuses scores that tell nothing.
pub(super) fn require_telling(scores: &Scores) -> Result<()> {
    require_numbers("scores", scores)?;
    if scores.values().flatten().all(|&s| s == 0.0) {
        let expected = "a block with a score above zero (with an up-projection of zeros every SNIP score is zero: \
                        start it at small values, or score by random, magnitude or gradient)";
        return Err(Error::value(OP, "scores", expected, "zero for every block"));
    }
    Ok(())
}

/// The blocks with the highest scores, as many as `density` asks for.
///
/// # Errors
/// [`Error::Value`] for a density outside (0, 1], scores that are NaN, or that are all zero; [`Error::Shape`] for scores of another grid.
pub fn choose(
    device: &Device,
    block: usize,
    sites: &[Shape],
    scores: &Scores,
    density: f64,
    allocation: Allocation,
) -> Result<Patterns> {
    require_block(block)?;
    for site in sites {
        of(scores, site, block)?;
    }
    require_telling(scores)?;
    let mut masks = empty_masks(sites, block)?;
    for group in groups(sites.len(), allocation) {
        let mut candidates = Vec::new();
        for &site in &group {
            let own = of(scores, &sites[site], block)?;
            candidates.extend(own.iter().enumerate().map(|(index, &score)| Candidate { site, index, score }));
        }
        let count = blocks_of(density, candidates.len())?;
        sort(&mut candidates);
        candidates.truncate(count);
        mark(&mut masks, &candidates);
    }
    patterns(device, block, sites, &masks)
}

/// How a pattern moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    pub density: f64,
    pub allocation: Allocation,
    /// Share of the blocks that give way to others, in [0, 1).
    pub regrow: f64,
    /// Whether free places are filled at all.
    pub fill: bool,
}

/// The next pattern: of the blocks in `now`, those with the largest `norms` stay (never one that is zero), and blocks that were not there take the
/// free places by their `scores`. A group keeps its best block, whatever its norm.
///
/// # Errors
/// [`Error::Value`] for a density outside (0, 1], a share outside [0, 1), norms or scores that are NaN; [`Error::Shape`] for scores of another grid,
/// patterns of another matrix or block, and norms that are not one for each block.
pub fn move_blocks(
    device: &Device,
    block: usize,
    sites: &[Shape],
    now: &Patterns,
    norms: &Scores,
    scores: &Scores,
    how: Move,
) -> Result<Patterns> {
    require_block(block)?;
    require_numbers("norms", norms)?;
    require_numbers("scores", scores)?;
    if !(0.0..1.0).contains(&how.regrow) {
        return Err(Error::value(OP, "regrow", "a share in [0, 1)", how.regrow));
    }
    let mut masks = empty_masks(sites, block)?;
    for group in groups(sites.len(), how.allocation) {
        let (mut old, mut others, mut total) = (Vec::new(), Vec::new(), 0);
        for &site in &group {
            let existing = existing(now, norms, &sites[site], block)?;
            let own = if how.fill { of(scores, &sites[site], block)? } else { &[] };
            let blocks = blocks(&sites[site], block)?;
            total += blocks;
            old.extend(existing.iter().map(|(&index, &score)| Candidate { site, index, score }));
            let absent = (0..blocks).zip(own).filter(|(index, _)| !existing.contains_key(index));
            others.extend(absent.map(|(index, &score)| Candidate { site, index, score }));
        }
        let count = blocks_of(how.density, total)?;
        let leaving = if how.fill { (how.regrow * count as f64).round() as usize } else { 0 };
        sort(&mut old);
        let live = old.iter().take_while(|c| c.score > 0.0).count();
        let stay = live.min(count.saturating_sub(leaving)).max(usize::from(!old.is_empty()));
        sort(&mut others);
        others.truncate(count.saturating_sub(stay));
        let missing = count - stay - others.len();
        // Nobody is left to take a place: those that were to leave keep it.
        let stay = if how.fill { live.clamp(stay, stay + missing) } else { stay };
        mark(&mut masks, &old[..stay]);
        mark(&mut masks, &others);
    }
    patterns(device, block, sites, &masks)
}

/// The norm of each block of `site` that exists, by its place in the grid.
fn existing(now: &Patterns, norms: &Scores, site: &Shape, block: usize) -> Result<BTreeMap<usize, f64>> {
    let (name, shape) = site;
    let Some(pattern) = now.get(name) else { return Ok(BTreeMap::new()) };
    require_fit(OP, name, pattern, *shape, block)?;
    let own = norms.get(name).map_or(&[][..], Vec::as_slice);
    if own.len() != pattern.nnz() {
        let expected = format!("{} norms for the blocks of `{name}`", pattern.nnz());
        return Err(Error::shape(OP, "norms", expected, &[own.len()]));
    }
    let columns = pattern.topology().grid()[1];
    let places = pattern.topology().blocks().map(|(row, column)| row as usize * columns + column as usize);
    Ok(places.zip(own.iter().copied()).collect())
}

fn empty_masks(sites: &[Shape], block: usize) -> Result<Vec<Vec<bool>>> {
    sites.iter().map(|site| Ok(vec![false; blocks(site, block)?])).collect()
}

fn mark(masks: &mut [Vec<bool>], taken: &[Candidate]) {
    for candidate in taken {
        masks[candidate.site][candidate.index] = true;
    }
}

fn patterns(device: &Device, block: usize, sites: &[Shape], masks: &[Vec<bool>]) -> Result<Patterns> {
    let mut out = Patterns::new();
    for (site, mask) in sites.iter().zip(masks) {
        if mask.contains(&true) {
            out.insert(site.0.clone(), BlockPattern::from_mask(device, site.1, block, mask)?);
        }
    }
    Ok(out)
}
