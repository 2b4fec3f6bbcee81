//! Bottlenecks after sub-layers, with block-sparse projections.

use graftwork::Result;
use graftwork::adapters::block_sparse::SparseAdapterConfig;
use graftwork::ops::Activation;
use serde::{Deserialize, Serialize};

use super::block_sparse::{BLOCKS, Chosen, LASSO, MOVED, Moves, SCORED, Sparse, TIMES};
use super::{Entry, Options, to_value};
use crate::finetune::options::{ABOVE_0, FROM_0, Read, WIDTH, names, number, refused, size};

pub const ENTRY: Entry = Entry {
    name: "sparse-adapter",
    about: "Bottlenecks after sub-layers, with block-sparse projections",
    reads: &[
        Read::always(&["places", "width", "large_sparse", "scale", "up_std"]),
        BLOCKS,
        SCORED,
        MOVED,
        Read::when(TIMES, "with --density-start, --regrow or --lasso", |args| args.methods.block_sparse.moves(1.0)),
        LASSO,
    ],
    settings: |options, steps| to_value(&SparseAdapter::from(options, steps)?),
    open: |settings| Ok(Box::new(Chosen::<SparseAdapter>::open(settings)?)),
};

#[derive(clap::Args)]
pub struct SparseAdapterOptions {
    /// Sub-layers that get a bottleneck, separated by commas
    #[arg(long, default_value = "attention,mlp", value_parser = names)]
    pub places: String,
    /// Width of a bottleneck, a multiple of --block
    #[arg(long, default_value_t = 32, value_parser = size(16..=WIDTH))]
    pub width: usize,
    /// Large-Sparse: bottlenecks this many times as wide at that share of --density
    #[arg(long, default_value_t = 1, value_parser = size(1..=64))]
    pub large_sparse: usize,
    /// Scale of what the bottleneck adds
    #[arg(long, default_value_t = 1.0, value_parser = number(ABOVE_0))]
    pub scale: f64,
    /// Standard deviation of the up-projection's starting values; 0 starts from the trunk itself, and leaves SNIP nothing to go by
    #[arg(long, default_value_t = 0.0, value_parser = number(FROM_0))]
    pub up_std: f64,
}

#[derive(Serialize, Deserialize)]
struct SparseAdapter {
    places: String,
    width: usize,
    large_sparse: usize,
    scale: f64,
    up_std: f64,
    block: usize,
    #[serde(flatten)]
    moves: Moves,
}

impl SparseAdapter {
    fn from(options: &Options, steps: u64) -> Result<Self> {
        let own = &options.sparse_adapter;
        // Both are small enough to be multiplied.
        let width = own.width as u64 * own.large_sparse as u64;
        if width > WIDTH {
            let expected = format!("a bottleneck at most {WIDTH} wide with --width {}", own.width);
            return Err(refused("--large-sparse", expected, format!("{}, which makes {width}", own.large_sparse)));
        }
        Ok(SparseAdapter {
            places: own.places.clone(),
            width: own.width,
            large_sparse: own.large_sparse,
            scale: own.scale,
            up_std: own.up_std,
            block: options.block_sparse.block,
            moves: Moves::from(&options.block_sparse, steps, 1.0)?.at_share(1.0 / own.large_sparse as f64)?,
        })
    }
}

impl Sparse for SparseAdapter {
    type Family = SparseAdapterConfig;
    const PICKS_BY: &'static str = "places";

    fn family(&self) -> Result<SparseAdapterConfig> {
        let config = SparseAdapterConfig {
            places: self.places.split(',').map(|p| p.trim().to_string()).filter(|p| !p.is_empty()).collect(),
            width: self.width,
            block: self.block,
            activation: Activation::Relu,
            scale: self.scale,
            up_std: self.up_std,
        };
        Ok(config.large_sparse(self.large_sparse).0)
    }

    fn moves(&self) -> &Moves {
        &self.moves
    }
}
