//! Slices of coupled linears, in the manner of S2FT.

use graftwork::Result;
use graftwork::adapters::block_sparse::{Coupled, CoupledConfig};
use serde::{Deserialize, Serialize};

use super::block_sparse::{BLOCKS, Chosen, Moves, SCORED, Sparse};
use super::{Entry, Options, to_value};
use crate::finetune::options::{Read, names, refused};

pub const ENTRY: Entry = Entry {
    name: "s2ft",
    about: "Slices of channels that one linear makes and the next one reads",
    reads: &[Read::always(&["pairs", "both_sides", "allocation"]), BLOCKS, SCORED],
    settings: |options, _| to_value(&S2ft::from(options)?),
    open: |settings| Ok(Box::new(Chosen::<S2ft>::open(settings)?)),
};

#[derive(clap::Args)]
pub struct S2ftOptions {
    /// Pairs of linears, maker:reader, separated by commas; of a maker's readers the trunk must have one
    #[arg(long, default_value = "fc1:fc2,v_proj:o_proj,v_proj:out_proj", value_parser = names)]
    pub pairs: String,
    /// Let the makers' rows learn too, beside the readers' columns
    #[arg(long)]
    pub both_sides: bool,
}

#[derive(Serialize, Deserialize)]
struct S2ft {
    pairs: String,
    both_sides: bool,
    block: usize,
    allocation: graftwork::adapters::block_sparse::Allocation,
    #[serde(flatten)]
    moves: Moves,
}

impl S2ft {
    fn from(options: &Options) -> Result<Self> {
        let settings = S2ft {
            pairs: options.s2ft.pairs.clone(),
            both_sides: options.s2ft.both_sides,
            block: options.block_sparse.block,
            allocation: options.block_sparse.allocation.into(),
            moves: Moves::fixed(&options.block_sparse)?,
        };
        settings.family()?;
        Ok(settings)
    }
}

impl Sparse for S2ft {
    type Family = CoupledConfig;
    const PICKS_BY: &'static str = "pairs";

    fn family(&self) -> Result<CoupledConfig> {
        let pair = |text: &str| {
            let (first, second) = text.trim().split_once(':').filter(|(a, b)| !a.is_empty() && !b.is_empty())?;
            Some(Coupled { first: first.into(), second: second.into() })
        };
        let pairs: Option<Vec<Coupled>> = self.pairs.split(',').map(pair).collect();
        let bad = || refused("--pairs", "maker:reader, such as fc1:fc2", &self.pairs);
        let (block, both, allocation) = (self.block, self.both_sides, self.allocation);
        Ok(CoupledConfig { pairs: pairs.ok_or_else(bad)?, block, both, allocation })
    }

    fn moves(&self) -> &Moves {
        &self.moves
    }
}
