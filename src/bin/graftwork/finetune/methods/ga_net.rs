//! A network on the graph between samples. It sits on no linear of a trunk, and learns in the study of the graph task alone.

use clap::ValueEnum;
use graftwork::Error;
use graftwork::adapters::{Fusion, GaNetConfig};
use graftwork::ops::Activation;
use serde::Serialize;

use super::super::options::{Read, size};
use super::Entry;

pub const ENTRY: Entry = Entry {
    name: "ga-net",
    about: "A bottleneck around a graph convolution, with --task graph",
    reads: &[
        Read::always(&["graph", "fusion", "activation", "no_residual", "attention_heads"]),
        Read::when(&["batch"], "with --graph batch", |args| args.methods.ga_net.graph == GraphOf::Batch),
    ],
    settings: |_, _| Err(elsewhere()),
    open: |_| Err(elsewhere()),
};

fn elsewhere() -> Error {
    Error::Unsupported {
        op: "finetune",
        what: "ga-net learns on the graph between samples, which this task has not".into(),
        hint: "use --task graph".into(),
    }
}

/// Which samples are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GraphOf {
    /// All training samples, once; what is predicted reads from them and not from what else is asked
    Fixed,
    /// Those of each batch, in training and in prediction, as published: what is predicted hangs on what else is in the batch
    Batch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FusionArg {
    /// Image and text side by side, as published
    Concat,
    /// Two views of both, mixed by a gate that learns
    Gate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationArg {
    /// A network that is linear in the features, as published
    None,
    Relu,
    Gelu,
    Silu,
}

#[derive(clap::Args, Clone, Copy, Debug, Serialize)]
pub struct GaNetOptions {
    /// Which samples the graph joins
    #[arg(long, value_enum, default_value = "fixed")]
    pub graph: GraphOf,
    /// How image and text become the features of a node
    #[arg(long, value_enum, default_value = "concat")]
    pub fusion: FusionArg,
    /// The activation in the bottleneck
    #[arg(long, value_enum, default_value = "gelu")]
    pub activation: ActivationArg,
    /// Leave out what leads round the bottleneck, as published
    #[arg(long)]
    pub no_residual: bool,
    /// Attention in so many heads in place of the bottleneck's convolution
    #[arg(long, value_parser = size(1..=64))]
    pub attention_heads: Option<usize>,
}

impl GaNetOptions {
    /// The network that they ask for.
    pub fn config(&self, features: usize, classes: usize, seed: u64) -> GaNetConfig {
        let default = GaNetConfig::new(features, classes);
        // A bottleneck that the heads can share out.
        let heads = self.attention_heads.unwrap_or(1);
        GaNetConfig {
            hidden: default.hidden.next_multiple_of(heads),
            activation: match self.activation {
                ActivationArg::None => None,
                ActivationArg::Relu => Some(Activation::Relu),
                ActivationArg::Gelu => Some(Activation::Gelu),
                ActivationArg::Silu => Some(Activation::Silu),
            },
            residual: !self.no_residual,
            fusion: match self.fusion {
                FusionArg::Concat => Fusion::Concat,
                // As wide as one modality.
                FusionArg::Gate => Fusion::Gate { width: (features / 2).max(1) },
            },
            heads: self.attention_heads,
            seed,
            ..default
        }
    }
}
