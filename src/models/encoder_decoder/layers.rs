//! Encoder and decoder layers. Both forms are made of the same sub-layers; they differ in where the norm stands.

use super::Order;
use crate::adapters::{AdaptedLinear, AdaptedNorm, InsertPoint};
use crate::autograd::{Segment, Tape, Var};
use crate::error::Result;
use crate::ops::{Activation, After, AttentionOptions, TokenWeights, attention, join, multiply};
use crate::tensor::Tensor;

/// Keys and values of some tokens, `[b, s, inner]` each.
#[derive(Clone, Debug)]
pub(super) struct KeysValues {
    pub k: Var,
    pub v: Var,
}

impl KeysValues {
    /// These tokens, then `later`.
    fn followed_by(&self, tape: &mut Tape, later: &KeysValues) -> Result<KeysValues> {
        Ok(KeysValues { k: join(tape, &self.k, &later.k)?, v: join(tape, &self.v, &later.v)? })
    }
}

#[derive(Clone, Debug)]
pub(super) struct Attention {
    pub q: AdaptedLinear,
    pub k: AdaptedLinear,
    pub v: AdaptedLinear,
    pub o: AdaptedLinear,
    pub heads: usize,
    /// `1/√d` if absent.
    pub scale: Option<f64>,
    pub causal: bool,
}

impl Attention {
    pub fn keys_values(&self, tape: &mut Tape, x: &Var) -> Result<KeysValues> {
        Ok(KeysValues { k: self.k.forward(tape, x)?, v: self.v.forward(tape, x)? })
    }

    pub fn forward(
        &self,
        tape: &mut Tape,
        x: &Var,
        seen: &KeysValues,
        mask: Option<&Tensor>,
        after: After<'_>,
    ) -> Result<Var> {
        let q = self.q.forward(tape, x)?;
        let options = AttentionOptions { heads: self.heads, causal: self.causal, mask, scale: self.scale };
        let mixed = attention(tape, &q, &seen.k, &seen.v, &options)?;
        self.o.forward_then(tape, &mixed, after)
    }

    pub fn linears(&self) -> [&AdaptedLinear; 4] {
        [&self.q, &self.k, &self.v, &self.o]
    }

    pub fn linears_mut(&mut self) -> [&mut AdaptedLinear; 4] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o]
    }
}

#[derive(Clone, Debug)]
pub(super) struct FeedForward {
    pub wide: AdaptedLinear,
    /// What the activated inner features are multiplied by.
    pub gate: Option<AdaptedLinear>,
    pub narrow: AdaptedLinear,
    pub activation: Activation,
}

impl FeedForward {
    pub fn forward(&self, tape: &mut Tape, x: &Var, after: After<'_>) -> Result<Var> {
        let activated = After { residual: None, activation: Some(self.activation) };
        let mut wide = self.wide.forward_then(tape, x, activated)?;
        if let Some(gate) = &self.gate {
            let gate = gate.forward(tape, x)?;
            wide = multiply(tape, &wide, &gate)?;
        }
        self.narrow.forward_then(tape, &wide, after)
    }

    pub fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        [&self.wide].into_iter().chain(&self.gate).chain([&self.narrow])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        [&mut self.wide].into_iter().chain(&mut self.gate).chain([&mut self.narrow])
    }
}

/// The norm around a sub-layer and its residual connection.
#[derive(Clone, Debug)]
pub(super) struct Around {
    pub order: Order,
    pub norm: AdaptedNorm,
}

impl Around {
    /// `sub_layer` gets what it computes on, and adds the residual itself.
    fn forward(&self, tape: &mut Tape, x: &Var, sub_layer: impl FnOnce(&mut Tape, &Var) -> Result<Var>) -> Result<Var> {
        match self.order {
            Order::PreNorm => {
                let normed = self.norm.forward(tape, x)?;
                sub_layer(tape, &normed)
            }
            Order::PostNorm => {
                let sum = sub_layer(tape, x)?;
                self.norm.forward(tape, &sum)
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct EncoderLayer {
    pub attention: Attention,
    pub around_attention: Around,
    pub after_attention: InsertPoint,
    pub feed_forward: FeedForward,
    pub around_feed_forward: Around,
    pub after_feed_forward: InsertPoint,
}

impl EncoderLayer {
    fn forward(&self, tape: &mut Tape, x: &Var, mask: Option<&Tensor>, real: Option<&TokenWeights>) -> Result<Var> {
        let x = &self.around_attention.forward(tape, x, |tape, inner| {
            let seen = self.attention.keys_values(tape, inner)?;
            let attention = |tape: &mut Tape, after: After| self.attention.forward(tape, inner, &seen, mask, after);
            self.after_attention.add(tape, x, real, attention)
        })?;
        self.around_feed_forward.forward(tape, x, |tape, inner| {
            let feed_forward = |tape: &mut Tape, after: After| self.feed_forward.forward(tape, inner, after);
            self.after_feed_forward.add(tape, x, real, feed_forward)
        })
    }

    pub fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        self.attention.linears().into_iter().chain(self.feed_forward.linears())
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.attention.linears_mut().into_iter().chain(self.feed_forward.linears_mut())
    }

    pub fn inserts_mut(&mut self) -> [&mut InsertPoint; 2] {
        [&mut self.after_attention, &mut self.after_feed_forward]
    }

    pub fn norms(&self) -> [&AdaptedNorm; 2] {
        [&self.around_attention.norm, &self.around_feed_forward.norm]
    }

    pub fn norms_mut(&mut self) -> [&mut AdaptedNorm; 2] {
        [&mut self.around_attention.norm, &mut self.around_feed_forward.norm]
    }
}

/// An encoder layer with the mask and the real tokens of one call: what a checkpoint runs again.
#[derive(Debug)]
pub(super) struct MaskedLayer {
    pub layer: std::sync::Arc<EncoderLayer>,
    pub mask: Option<Tensor>,
    pub real: Option<TokenWeights>,
}

impl Segment for MaskedLayer {
    fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        self.layer.forward(tape, x, self.mask.as_ref(), self.real.as_ref())
    }
}

#[derive(Clone, Debug)]
pub(super) struct DecoderLayer {
    pub attention: Attention,
    pub around_attention: Around,
    pub cross: Attention,
    pub around_cross: Around,
    pub feed_forward: FeedForward,
    pub around_feed_forward: Around,
    /// After self-attention, cross-attention and feed-forward.
    pub after: [InsertPoint; 3],
}

/// What a decoder layer sees besides its input.
pub(super) struct Seen<'a> {
    /// Keys and values of the tokens before; afterwards also of these.
    pub own: &'a mut Option<KeysValues>,
    pub own_mask: Option<&'a Tensor>,
    pub source: &'a KeysValues,
    pub source_mask: Option<&'a Tensor>,
}

impl DecoderLayer {
    pub fn forward(&self, tape: &mut Tape, x: &Var, seen: Seen) -> Result<Var> {
        let Seen { own, own_mask, source, source_mask } = seen;
        let [after_attention, after_cross, after_feed_forward] = &self.after;
        let x = &self.around_attention.forward(tape, x, |tape, inner| {
            let these = self.attention.keys_values(tape, inner)?;
            let all = match own.take() {
                None => these,
                Some(before) => before.followed_by(tape, &these)?,
            };
            let attention = |tape: &mut Tape, after: After| self.attention.forward(tape, inner, &all, own_mask, after);
            let mixed = after_attention.add(tape, x, None, attention);
            *own = Some(all);
            mixed
        })?;
        let x = &self.around_cross.forward(tape, x, |tape, inner| {
            let cross = |tape: &mut Tape, after: After| self.cross.forward(tape, inner, source, source_mask, after);
            after_cross.add(tape, x, None, cross)
        })?;
        self.around_feed_forward.forward(tape, x, |tape, inner| {
            let feed_forward = |tape: &mut Tape, after: After| self.feed_forward.forward(tape, inner, after);
            after_feed_forward.add(tape, x, None, feed_forward)
        })
    }

    pub fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        self.attention.linears().into_iter().chain(self.cross.linears()).chain(self.feed_forward.linears())
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.attention.linears_mut().into_iter().chain(self.cross.linears_mut()).chain(self.feed_forward.linears_mut())
    }

    pub fn norms(&self) -> [&AdaptedNorm; 3] {
        [&self.around_attention.norm, &self.around_cross.norm, &self.around_feed_forward.norm]
    }
}
