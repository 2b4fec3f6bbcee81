//! W₀ + S on linears, S block-sparse: chosen by a score, and moved while training goes on.

use std::path::Path;

use clap::ValueEnum;
use graftwork::adapters::block_sparse::{
    Allocation, BlockSparseConfig, Family, Patterns, Score, Sparsity, carry_blocks, pattern_tensors, take_patterns,
};
use graftwork::adapters::{LoraConfig, Trunk, parse_targets};
use graftwork::format::adapter::NativeAdapter;
use graftwork::optim::{AdamW, Carry, DensitySchedule};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{Result, Tensor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Method, Model, Moment, Options, Picture, to_value, told};
use crate::finetune::options::{self, COUNT, FROM_0, PART, Read, SHARE, number, one_of, size, whole};

pub const ENTRY: Entry = Entry {
    name: "block-sparse",
    about: "Blocks of linears, chosen by a score and moved by a schedule",
    reads: &[
        Read::always(&["targets", "allocation", "low_rank"]),
        Read::when(&["alpha", "dropout"], "with --low-rank", |args| args.methods.block_sparse.low_rank > 0),
        BLOCKS,
        SCORED,
        MOVED,
        Read::when(TIMES, "unless --density-start is --density", |args| args.methods.block_sparse.moves(PROGRESSIVE)),
        LASSO,
    ],
    settings: |options, steps| to_value(&BlockSparse::from(options, steps)?),
    open: |settings| Ok(Box::new(Chosen::<BlockSparse>::open(settings)?)),
};

pub const BLOCKS: Read = Read::always(&["density", "block", "score"]);

/// Batches that a score is summed over.
pub const SCORED: Read = Read::when(&["score_batches"], "with --score gradient or snip", |args| {
    matches!(args.methods.block_sparse.score, ScoreArg::Gradient | ScoreArg::Snip)
});

/// What makes blocks move.
pub const MOVED: Read = Read::always(&["density_start", "regrow", "lasso"]);

/// When they do.
pub const TIMES: &[&str] = &["moves_from", "moves_until", "moves_every"];

pub const LASSO: Read = Read::when(&["preconditioned"], "with --lasso", |args| args.methods.block_sparse.lasso > 0.0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScoreArg {
    /// Draws of the seed
    Random,
    /// The norm of the frozen weight
    Magnitude,
    /// Weight times gradient
    Snip,
    /// The norm of the gradient, summed over --score-batches
    Gradient,
}

impl From<ScoreArg> for Score {
    fn from(score: ScoreArg) -> Self {
        match score {
            ScoreArg::Random => Score::Random,
            ScoreArg::Magnitude => Score::Magnitude,
            ScoreArg::Snip => Score::Snip,
            ScoreArg::Gradient => Score::Gradient,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AllocationArg {
    /// All blocks compete
    Global,
    /// Each matrix has the density by itself
    PerSite,
}

impl From<AllocationArg> for Allocation {
    fn from(allocation: AllocationArg) -> Self {
        match allocation {
            AllocationArg::Global => Allocation::Global,
            AllocationArg::PerSite => Allocation::PerSite,
        }
    }
}

#[derive(clap::Args)]
pub struct BlockSparseOptions {
    /// Share of the blocks that learn in the end, above 0 and at most 1
    #[arg(long, default_value_t = 0.05, value_parser = number(SHARE))]
    pub density: f64,
    /// Edge of a block: 16, 32, 64 or 128
    #[arg(long, default_value_t = 16, value_parser = one_of(&[16, 32, 64, 128]))]
    pub block: usize,
    /// What blocks are chosen by
    #[arg(long, value_enum, default_value = "gradient")]
    pub score: ScoreArg,
    /// Batches that a gradient score is summed over
    #[arg(long, default_value_t = 8, value_parser = whole(1..=MOST_SCORED))]
    pub score_batches: u64,
    /// Whether all blocks compete, or those of each matrix
    #[arg(long, value_enum, default_value = "global")]
    pub allocation: AllocationArg,
    /// A low-rank update of this rank beside the blocks; 0 is none
    #[arg(long, default_value_t = 0, value_parser = size(0..=256))]
    pub low_rank: usize,
    /// Share of the blocks that learn at first; the way to --density is a cubic [default: --density; for block-sparse without --lasso a
    /// quarter of it]
    #[arg(long, value_parser = number(SHARE))]
    pub density_start: Option<f64>,
    /// Share of the blocks that give way to others at each move, in [0, 1)
    #[arg(long, default_value_t = 0.0, value_parser = number(PART))]
    pub regrow: f64,
    /// Strength of the group lasso on blocks, by a proximal step after the optimizer's; 0 is none
    #[arg(long, default_value_t = 0.0, value_parser = number(FROM_0))]
    pub lasso: f64,
    /// Divide a block's threshold as Adam divides its step
    #[arg(long)]
    pub preconditioned: bool,
    /// Step of the first move [default: a twentieth of the run's]
    #[arg(long, value_parser = whole(0..=COUNT))]
    pub moves_from: Option<u64>,
    /// Step of the last move [default: three tenths of the run's]
    #[arg(long, value_parser = whole(0..=COUNT))]
    pub moves_until: Option<u64>,
    /// Steps between moves [default: a sixth of the way from the first to the last]
    #[arg(long, value_parser = whole(1..=COUNT))]
    pub moves_every: Option<u64>,
}

/// Of batches: more than any data set here has, few enough to be scored in minutes.
const MOST_SCORED: u64 = 10_000;

/// Share of the final blocks that progressive training begins with: those chosen before the head has learned anything are chosen badly.
const PROGRESSIVE: f64 = 0.25;

impl BlockSparseOptions {
    /// The density at first; a method begins with `share` of the final one unless told otherwise. A lasso takes away, and begins with all.
    fn start(&self, share: f64) -> f64 {
        let share = if self.lasso > 0.0 { 1.0 } else { share };
        self.density_start.unwrap_or(self.density * share)
    }

    /// Whether blocks move while training goes on.
    pub fn moves(&self, share: f64) -> bool {
        self.start(share) != self.density || self.regrow > 0.0 || self.lasso > 0.0
    }
}

/// Settings of choosing and moving, by the names of their options.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moves {
    density: f64,
    density_start: f64,
    score: Score,
    score_batches: u64,
    regrow: f64,
    lasso: f64,
    preconditioned: bool,
    moves_from: u64,
    moves_until: u64,
    moves_every: u64,
}

impl Moves {
    /// For a run of so many steps that begins with `share` of its blocks.
    pub fn from(options: &BlockSparseOptions, steps: u64, share: f64) -> Result<Self> {
        // One that is given moves the other along.
        let (given_from, given_until) = (options.moves_from, options.moves_until);
        let from = given_from.unwrap_or_else(|| (steps / 20).min(given_until.unwrap_or(u64::MAX)));
        let until = given_until.unwrap_or_else(|| (steps * 3 / 10).max(from));
        options::require_order(("--moves-from", from), ("--moves-until", until))?;
        let moves = Moves {
            density: options.density,
            density_start: options.start(share),
            score: options.score.into(),
            score_batches: options.score_batches,
            regrow: options.regrow,
            lasso: options.lasso,
            preconditioned: options.preconditioned,
            moves_from: from,
            moves_until: until,
            moves_every: options.moves_every.unwrap_or_else(|| (until.saturating_sub(from) / 6).max(1)),
        };
        moves.sparsity()?;
        Ok(moves)
    }

    /// The same at a share of the densities.
    pub fn at_share(mut self, share: f64) -> Result<Self> {
        self.density *= share;
        self.density_start *= share;
        self.sparsity()?;
        Ok(self)
    }

    /// Chosen once, and never moved.
    pub fn fixed(options: &BlockSparseOptions) -> Result<Self> {
        let moves = Moves::from(options, 0, 1.0)?;
        Ok(Moves { density_start: moves.density, regrow: 0.0, lasso: 0.0, ..moves })
    }

    /// Whether there are any.
    fn happen(&self) -> bool {
        self.density_start != self.density || self.regrow > 0.0 || self.lasso > 0.0
    }

    fn sparsity(&self) -> Result<Sparsity> {
        let (from, until) = (self.moves_from, self.moves_until);
        let schedule = match self.happen() {
            true => DensitySchedule::new(self.density_start, self.density, from, until, self.moves_every)?,
            false => DensitySchedule::constant(self.density)?,
        };
        let Moves { score, regrow, lasso, preconditioned, .. } = *self;
        let sparsity = Sparsity { score, schedule, regrow, lasso, preconditioned };
        sparsity.check()?;
        Ok(sparsity)
    }
}

/// Settings that make a family, and how its blocks are chosen.
pub trait Sparse: Serialize + DeserializeOwned + Send + Sync {
    type Family: Family + Send + Sync;

    /// The option that names its sites.
    const PICKS_BY: &'static str;

    fn family(&self) -> Result<Self::Family>;

    fn moves(&self) -> &Moves;

    fn is_random(&self) -> bool {
        false
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockSparse {
    targets: String,
    block: usize,
    allocation: Allocation,
    low_rank: usize,
    alpha: f64,
    dropout: f64,
    #[serde(flatten)]
    moves: Moves,
}

impl BlockSparse {
    fn from(options: &Options, steps: u64) -> Result<Self> {
        let (own, shared) = (&options.block_sparse, &options.lora);
        let settings = BlockSparse {
            targets: shared.targets.clone().unwrap_or_else(|| "all-linear".into()),
            block: own.block,
            allocation: own.allocation.into(),
            low_rank: own.low_rank,
            alpha: shared.alpha.unwrap_or(2.0 * own.low_rank.max(1) as f64),
            dropout: shared.dropout,
            moves: Moves::from(own, steps, PROGRESSIVE)?,
        };
        settings.family()?;
        Ok(settings)
    }
}

impl Sparse for BlockSparse {
    type Family = BlockSparseConfig;
    const PICKS_BY: &'static str = "targets";

    fn family(&self) -> Result<BlockSparseConfig> {
        let low_rank =
            LoraConfig { rank: self.low_rank, alpha: self.alpha, dropout: self.dropout, ..Default::default() };
        Ok(BlockSparseConfig {
            targets: parse_targets(&self.targets)?,
            block: self.block,
            allocation: self.allocation,
            low_rank: (self.low_rank > 0).then_some(low_rank),
        })
    }

    fn moves(&self) -> &Moves {
        &self.moves
    }

    fn is_random(&self) -> bool {
        self.low_rank > 0 && self.dropout > 0.0
    }
}

/// A family with its settings and the blocks that it has now.
pub struct Chosen<S: Sparse> {
    settings: S,
    family: S::Family,
    sparsity: Sparsity,
    patterns: Patterns,
    /// Every site; empty before that is known.
    shapes: Vec<(String, [usize; 2])>,
}

impl<S: Sparse> Chosen<S> {
    pub fn open(settings: &Value) -> Result<Self> {
        let settings: S = super::parse(settings)?;
        let (family, sparsity) = (settings.family()?, settings.moves().sparsity()?);
        Ok(Chosen { settings, family, sparsity, patterns: Patterns::new(), shapes: Vec::new() })
    }

    /// `[⌈n/b⌉, ⌈k/b⌉]`
    fn grid(&self, [n, k]: [usize; 2]) -> [usize; 2] {
        let block = self.family.block().max(1);
        [n.div_ceil(block), k.div_ceil(block)]
    }

    fn existing(&self) -> usize {
        self.patterns.values().map(|p| p.nnz()).sum()
    }
}

impl<S: Sparse> Method for Chosen<S> {
    fn begin(&mut self, model: &mut dyn Model) -> Result<()> {
        let device = model.device().clone();
        self.shapes = self.family.shapes(model.trunk())?;
        self.patterns = self.family.start(model.trunk(), &device)?;
        Ok(())
    }

    fn attach(&self, trunk: &mut dyn Trunk, params: &mut ParamSetBuilder) -> Result<String> {
        let report = told(self.family.attach(trunk, &self.patterns, None, params)?)?;
        if self.patterns.is_empty() {
            return Ok(format!("blocks of {} matrices, to be chosen before the first step", self.shapes.len()));
        }
        Ok(report)
    }

    fn note(&self) -> String {
        let [got, asked] =
            [self.density().unwrap_or(0.0), self.settings.moves().density].map(|d| format!("{:.1} %", 100.0 * d));
        let block = self.family.block();
        if self.patterns.is_empty() {
            return format!("b={block}, density {asked}");
        }
        // Blocks are whole, a lasso takes some, and where they do not compete every matrix has one.
        let asked = if asked == got { String::new() } else { format!(" (asked for {asked})") };
        format!("b={block}, {} blocks, density {got}{asked}", self.existing())
    }

    fn is_random(&self) -> bool {
        self.settings.is_random()
    }

    fn reshape(&mut self, moment: &mut Moment) -> Result<Option<Carry>> {
        let (step, seed, params) = (moment.step, moment.seed, moment.params);
        if !self.sparsity.is_due(step) {
            return Ok(None);
        }
        let sites = self.family.sites(moment.model.trunk(), &self.patterns, params)?;
        let probe = self.sparsity.probe(&moment.device(), &self.family, &sites, step)?;
        let scores = match &probe {
            None => None,
            Some(probe) => {
                let grads = moment.gradients(self.settings.moves().score_batches, |trunk, builder| {
                    self.family.attach(trunk, &self.patterns, Some(probe), builder).map(drop)
                })?;
                let Some(grads) = grads else { return Ok(None) };
                Some(probe.read(&grads)?)
            }
        };
        let next = self.sparsity.next(step, seed, &self.family, &sites, &self.patterns, params, scores)?;
        let carry = carry_blocks(&self.patterns, &next);
        self.patterns = next;
        Ok(Some(carry))
    }

    fn after_step(&self, _: u64, lr: f64, params: &ParamSet, optimizer: &AdamW) -> Result<()> {
        self.sparsity.proximal_step(&self.patterns, params, optimizer, lr)
    }

    fn form(&self) -> Result<Vec<(String, Tensor)>> {
        pattern_tensors(&self.patterns)
    }

    fn take_form(&mut self, dir: &Path, file: &mut NativeAdapter, model: &mut dyn Model) -> Result<()> {
        self.shapes = self.family.shapes(model.trunk())?;
        self.patterns = take_patterns(dir, file, &self.shapes, self.family.block(), model.device())?;
        Ok(())
    }

    fn picks_by(&self) -> &'static str {
        S::PICKS_BY
    }

    fn settles_at(&self) -> Option<(u64, &'static str)> {
        let moves = self.settings.moves();
        moves.happen().then_some((moves.moves_until, "--moves-until moves blocks"))
    }

    fn density(&self) -> Option<f64> {
        let blocks: usize = self.shapes.iter().map(|(_, shape)| self.grid(*shape).iter().product::<usize>()).sum();
        Some(self.existing() as f64 / blocks.max(1) as f64)
    }

    fn pictures(&self) -> Vec<Picture> {
        let picture = |(name, shape): &(String, [usize; 2])| {
            let [rows, columns] = self.grid(*shape);
            let filled = self.patterns.get(name).map_or_else(|| vec![false; rows * columns], |p| p.topology().mask());
            Picture { name: name.clone(), rows, columns, filled }
        };
        self.shapes.iter().map(picture).collect()
    }
}
