//! A bottleneck after a sub-layer whose projections are block-sparse: `h + s · φ(h Dᵀ) Uᵀ`.
//!
//! D is `[r, d]`, U `[d, r]`; φ is the activation. D starts at U(−1/√d, 1/√d), U at N(0, σ²), σ = 0 by default, so that training starts from
//! the trunk itself. With σ = 0 every SNIP score is zero, and [`Family::choose`] refuses it.
//!
//! Large-Sparse: a bottleneck k times as wide with 1/k of its blocks has the parameters of a dense one ([`SparseAdapterConfig::large_sparse`]).
//!
//! Source: He et al., "SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters", 2022, with blocks in place of single
//! weights and without biases.

use super::blocks::{Blocks, Probe, VALUES};
use super::choose::{of, require_telling};
use super::{Allocation, Family, Patterns, Scores, Site, require_block, require_fit};
use crate::adapters::attach::{Attached, path_matches};
use crate::adapters::{AttachReport, Insert, InsertPoint, Sites, Trunk};
use crate::autograd::{Tape, Var};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::{Activation, BlockNorm, activation, block_norms, block_sparse_linear, scale_add};
use crate::tensor::{BlockPattern, BlockSparse, Init, ParamSet, ParamSetBuilder, blocks_of};

const OP: &str = "sparse_adapter";

/// The adapter at one place.
#[derive(Clone, Debug)]
pub struct SparseAdapter {
    down: Blocks,
    up: Blocks,
    activation: Activation,
    scale: f64,
}

impl Insert for SparseAdapter {
    fn forward(&self, tape: &mut Tape, _: &Var, output: &Var) -> Result<Var> {
        let narrow = project(&self.down, tape, output)?;
        let narrow = activation(tape, &narrow, self.activation)?;
        let wide = project(&self.up, tape, &narrow)?;
        scale_add(tape, output, &wide, self.scale)
    }
}

fn project(blocks: &Blocks, tape: &mut Tape, x: &Var) -> Result<Var> {
    let Some((pattern, values)) = &blocks.existing else {
        return Err(Error::value(OP, "patterns", "at least one block in each projection", "none"));
    };
    let values = tape.param(*values)?;
    let y = block_sparse_linear(tape, x, pattern, &values, 1.0)?;
    blocks.watch(tape, x, y)
}

/// Where bottlenecks go and what they look like.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseAdapterConfig {
    /// Sub-layers by path or its last parts: `attention`, `mlp`.
    pub places: Vec<String>,
    /// r, a multiple of the block.
    pub width: usize,
    /// b: 16, 32, 64 or 128.
    pub block: usize,
    pub activation: Activation,
    /// s.
    pub scale: f64,
    /// σ of U's starting values.
    pub up_std: f64,
}

impl SparseAdapterConfig {
    /// k times as wide; the density that keeps the number of parameters comes beside it.
    pub fn large_sparse(&self, k: usize) -> (Self, f64) {
        let k = k.max(1);
        (SparseAdapterConfig { width: self.width.saturating_mul(k), ..self.clone() }, 1.0 / k as f64)
    }

    fn check(&self, point: &InsertPoint) -> Result<()> {
        require_block(self.block)?;
        for (argument, extent) in [("width", self.width), ("d", point.width())] {
            if extent == 0 || !extent.is_multiple_of(self.block) {
                return Err(Error::value(OP, argument, format!("a multiple of the block, {}", self.block), extent));
            }
        }
        for (argument, value) in [("scale", self.scale), ("up_std", self.up_std)] {
            if !value.is_finite() {
                return Err(Error::value(OP, argument, "a finite number", value));
            }
        }
        Ok(())
    }

    fn points<'t>(&self, trunk: &'t mut dyn Trunk) -> Result<Vec<&'t mut InsertPoint>> {
        let all = trunk.inserts()?;
        let available = all.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ");
        let picked: Vec<_> =
            all.into_iter().filter(|p| self.places.iter().any(|name| path_matches(p.name(), name))).collect();
        if picked.is_empty() {
            return Err(Error::NoMatch { patterns: self.places.clone(), available });
        }
        Ok(picked)
    }
}

/// The blocks `among` by falling score; of equals the earlier one.
fn best(scores: &[f64], mut among: Vec<usize>) -> Vec<usize> {
    among.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    among
}

fn norms_of(device: &Device, block: usize, site: &Site) -> Result<Vec<f64>> {
    let all = BlockPattern::full(device, site.shape(), block)?;
    block_norms(&all, &site.weight, BlockNorm::Frobenius)?.to_f64_vec()
}

/// Names and shapes of the two sites at a place.
fn sites_of(point: &InsertPoint, width: usize) -> [(String, [usize; 2]); 2] {
    let (name, d) = (point.name(), point.width());
    [(format!("{name}.sparse_down"), [width, d]), (format!("{name}.sparse_up"), [d, width])]
}

impl Family for SparseAdapterConfig {
    fn block(&self) -> usize {
        self.block
    }

    /// A projection without blocks would cut the bottleneck off.
    fn allocation(&self) -> Allocation {
        Allocation::PerSite
    }

    fn shapes(&self, trunk: &mut dyn Trunk) -> Result<Vec<(String, [usize; 2])>> {
        let mut out = Vec::new();
        for point in self.points(trunk)? {
            self.check(point)?;
            out.extend(sites_of(point, self.width));
        }
        Ok(out)
    }

    /// All blocks: scores judge their starting values.
    fn start(&self, trunk: &mut dyn Trunk, device: &Device) -> Result<Patterns> {
        let full = |(name, shape)| Ok((name, BlockPattern::full(device, shape, self.block)?));
        self.shapes(trunk)?.into_iter().map(full).collect()
    }

    fn sites(&self, trunk: &mut dyn Trunk, patterns: &Patterns, params: &ParamSet) -> Result<Vec<Site>> {
        let mut out = Vec::new();
        for point in self.points(trunk)? {
            for (name, _) in sites_of(point, self.width) {
                let missing = || Error::value(OP, "patterns", format!("a pattern and values for `{name}`"), "none");
                let pattern = patterns.get(&name).ok_or_else(missing)?;
                let id = params.find(&format!("{name}{VALUES}")).ok_or_else(missing)?;
                let values = params.tensor(id)?.contiguous()?;
                let weight = BlockSparse::new(pattern.clone(), values)?.to_dense()?;
                out.push(Site { name, weight });
            }
        }
        Ok(out)
    }

    /// U's blocks by their scores, and D's among the features that those read: a block whose other half is missing would never learn. While U is
    /// zero, D has no gradient, and its blocks are taken by the norm of their starting values.
    fn choose(&self, device: &Device, sites: &[Site], scores: &Scores, density: f64) -> Result<Patterns> {
        require_block(self.block)?;
        require_telling(scores)?;
        let mut out = Patterns::new();
        for pair in sites.chunks(2) {
            let [down, up] = pair else {
                return Err(Error::value(OP, "sites", "a down- and an up-projection at each place", sites.len()));
            };
            let [r, d] = down.shape();
            if up.shape() != [d, r] {
                return Err(Error::shape(OP, "sites", format!("[{d}, {r}] for `{}`", up.name), &up.shape()));
            }
            let grid = down.shape().map(|extent| extent.div_ceil(self.block));
            let count = blocks_of(density, grid[0] * grid[1])?;
            let up_scores = of(scores, &(up.name.clone(), up.shape()), self.block)?;
            let mut taken = best(up_scores, (0..up_scores.len()).collect());
            taken.truncate(count);
            let mut mask = vec![false; grid[0] * grid[1]];
            taken.iter().for_each(|&i| mask[i] = true);
            out.insert(up.name.clone(), BlockPattern::from_mask(device, up.shape(), self.block, &mask)?);

            let own = of(scores, &(down.name.clone(), down.shape()), self.block)?;
            let norms = if own.iter().all(|&s| s == 0.0) { norms_of(device, self.block, down)? } else { own.to_vec() };
            let read = |feature: usize| taken.iter().any(|i| i % grid[0] == feature);
            let alive = best(&norms, (0..norms.len()).filter(|i| read(i / grid[1])).collect());
            // The best block of every feature that is read, then the best of the others.
            let first = |i: &usize| alive.iter().find(|j| *j / grid[1] == i / grid[1]) == Some(i);
            let (mut order, rest): (Vec<usize>, Vec<usize>) = alive.iter().partition(|i| first(i));
            order.extend(rest);
            let mut mask = vec![false; grid[0] * grid[1]];
            order.iter().take(count).for_each(|&i| mask[i] = true);
            out.insert(down.name.clone(), BlockPattern::from_mask(device, down.shape(), self.block, &mask)?);
        }
        Ok(out)
    }

    fn attach(
        &self,
        trunk: &mut dyn Trunk,
        patterns: &Patterns,
        probe: Option<&Probe>,
        params: &mut ParamSetBuilder,
    ) -> Result<AttachReport> {
        let mut report = AttachReport { sites: Sites::Places, ..AttachReport::default() };
        for point in self.points(trunk)? {
            self.check(point)?;
            let [down, up] = sites_of(point, self.width);
            for (name, shape) in [&down, &up] {
                match patterns.get(name) {
                    Some(pattern) if pattern.nnz() > 0 => require_fit(OP, name, pattern, *shape, self.block)?,
                    _ => return Err(Error::value(OP, "patterns", format!("a block of `{name}` or more"), "none")),
                }
            }
            let fan_in = Init::KaimingUniform { fan_in: point.width() };
            let small = if self.up_std == 0.0 { Init::Zeros } else { Init::Normal { std: self.up_std } };
            let mut declare = |name: &str, init| Blocks::declare(name, patterns, probe, init, params);
            let (Some(down), Some(up)) = (declare(&down.0, fan_in)?, declare(&up.0, small)?) else { continue };
            if let (0.0, Some((_, id))) = (self.up_std, &down.existing) {
                params.first_gradient_may_vanish(*id);
            }
            let numel = down.numel() + up.numel();
            report.attached.push(Attached { module: point.name().to_string(), rank: self.width, params: numel });
            point.insert(SparseAdapter { down, up, activation: self.activation, scale: self.scale });
        }
        let unused = |name: &&String| !report.attached.iter().any(|a| path_matches(&a.module, name));
        report.unmatched_patterns = self.places.iter().filter(unused).cloned().collect();
        Ok(report)
    }
}
