//! GA-Net: samples are nodes, similarity makes edges, and a bottleneck around a graph convolution is the adapter.
//!
//! ```text
//! F  = fuse(text, image)                       [v, d]
//! H₁ = φ(F W_dᵀ + b_d)                         [v, hidden]
//! H₂ = φ(Â H₁ W_gᵀ + b_g)                      [v, hidden]
//! H₃ = H₂ W_uᵀ + b_u (+ F)                     [v, d]
//! logits = Â H₃ W_cᵀ + b_c                     [v, classes]
//! ```
//!
//! Source: "GA-Net", arXiv 2408.00290, whose published network has neither φ nor the residual, and is therefore linear in F for a given graph. Both
//! are options here, on by default; so is the gate that mixes both modalities, off by default, since the paper lays them side by side.

use super::{GraphAttention, GraphConv};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::graph::{Adjacency, Csr};
use crate::ops::{Activation, Reduce, activation, edge_softmax, linear, scale_add, spmm};
use crate::tensor::{Init, ParamId, ParamSetBuilder};

const OP: &str = "ga_net";

/// How the features of both modalities become those of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fusion {
    /// Side by side, as they come.
    Concat,
    /// Two learned views `F V_tᵀ` and `F V_iᵀ` of both modalities, of so many features, mixed by a softmax that each node learns.
    Gate { width: usize },
}

#[derive(Clone, Debug, PartialEq)]
pub struct GaNetConfig {
    /// Features of a node: those of text and image, side by side.
    pub features: usize,
    pub hidden: usize,
    pub classes: usize,
    /// φ; none is the published network.
    pub activation: Option<Activation>,
    /// Adds F after the bottleneck.
    pub residual: bool,
    pub fusion: Fusion,
    /// Attention in so many heads in the bottleneck, in place of a convolution.
    pub heads: Option<usize>,
    pub seed: u64,
}

impl GaNetConfig {
    /// The defaults: a bottleneck of a third, as in the paper, with activation and residual.
    pub fn new(features: usize, classes: usize) -> Self {
        GaNetConfig {
            features,
            hidden: (features / 3).max(1),
            classes,
            activation: Some(Activation::Gelu),
            residual: true,
            fusion: Fusion::Concat,
            heads: None,
            seed: 0,
        }
    }
}

/// `y = x Wᵀ + b` that learns.
#[derive(Clone, Debug)]
struct Dense {
    weight: ParamId,
    bias: ParamId,
}

impl Dense {
    fn declare(params: &mut ParamSetBuilder, name: &str, k: usize, n: usize, seed: u64) -> Result<Self> {
        let weight = super::xavier(params, &format!("{name}.weight"), [n, k], seed)?;
        Ok(Dense { weight, bias: params.add(format!("{name}.bias"), &[n], Init::Zeros)? })
    }

    fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let (weight, bias) = (tape.param(self.weight)?, tape.param(self.bias)?);
        linear(tape, x, &weight, Some(&bias))
    }
}

#[derive(Clone, Debug)]
enum Middle {
    Conv(GraphConv),
    Attention(GraphAttention),
}

/// The network, with its parameters declared.
#[derive(Clone, Debug)]
pub struct GaNet {
    config: GaNetConfig,
    gate: Option<(Dense, Dense)>,
    down: Dense,
    middle: Middle,
    up: Dense,
    head: GraphConv,
}

impl GaNet {
    /// Declares `ga_net.{down, graph, up, head}` and, with a gate, `ga_net.{views, gate}`.
    ///
    /// # Errors
    /// [`Error::Value`] for sizes of 0 and for heads that do not divide the bottleneck.
    pub fn declare(params: &mut ParamSetBuilder, config: &GaNetConfig) -> Result<Self> {
        let GaNetConfig { features, hidden, classes, seed, .. } = *config;
        let width = match config.fusion {
            Fusion::Concat => features,
            Fusion::Gate { width } => width,
        };
        for (argument, size) in [("features", features), ("hidden", hidden), ("classes", classes), ("width", width)] {
            if size == 0 {
                return Err(Error::value(OP, argument, "at least 1", 0));
            }
        }
        let gate = match config.fusion {
            Fusion::Concat => None,
            Fusion::Gate { width } => Some((
                Dense::declare(params, "ga_net.views", features, 2 * width, seed)?,
                Dense::declare(params, "ga_net.gate", features, 2, seed)?,
            )),
        };
        let middle = match config.heads {
            None => Middle::Conv(GraphConv::declare(params, "ga_net.graph", hidden, hidden, seed)?),
            Some(heads) => {
                Middle::Attention(GraphAttention::declare(params, "ga_net.graph", [hidden, hidden, heads], seed)?)
            }
        };
        Ok(GaNet {
            config: config.clone(),
            gate,
            down: Dense::declare(params, "ga_net.down", width, hidden, seed)?,
            middle,
            up: Dense::declare(params, "ga_net.up", hidden, width, seed)?,
            head: GraphConv::declare(params, "ga_net.head", width, classes, seed)?,
        })
    }

    pub fn config(&self) -> &GaNetConfig {
        &self.config
    }

    /// `features [v, features]` to logits `[v, classes]`, over a normalised graph of v nodes with self loops.
    pub fn forward(&self, tape: &mut Tape, graph: &Csr, features: &Var) -> Result<Var> {
        let f = self.fused(tape, features)?;
        let h = self.down.forward(tape, &f)?;
        let h = self.bend(tape, h)?;
        let h = match &self.middle {
            Middle::Conv(conv) => conv.forward(tape, graph, &h)?,
            Middle::Attention(attention) => attention.forward(tape, graph, &h)?,
        };
        let h = self.bend(tape, h)?;
        let mut h = self.up.forward(tape, &h)?;
        if self.config.residual {
            h = scale_add(tape, &f, &h, 1.0)?;
        }
        self.head.forward(tape, graph, &h)
    }

    fn bend(&self, tape: &mut Tape, x: Var) -> Result<Var> {
        match self.config.activation {
            Some(function) => activation(tape, &x, function),
            None => Ok(x),
        }
    }

    /// A softmax over two views is one over the two edges by which a node reads them.
    fn fused(&self, tape: &mut Tape, features: &Var) -> Result<Var> {
        let (Some((views, gate)), Fusion::Gate { width }) = (&self.gate, self.config.fusion) else {
            return Ok(features.clone());
        };
        let v = features.tensor().rows();
        let views = views.forward(tape, features)?.reshape(&[2 * v, width])?;
        let scores = gate.forward(tape, features)?.reshape(&[2 * v])?;
        let offsets = (0..=v).map(|i| 2 * i).collect();
        let pairs = Adjacency::new((v, 2 * v), offsets, (0..2 * v).collect(), None)?;
        let pairs = Csr::new(&pairs, features.tensor().device())?;
        let shares = edge_softmax(tape, &pairs, &scores)?;
        spmm(tape, &pairs, &views, Some(&shares), Reduce::Sum)
    }
}
