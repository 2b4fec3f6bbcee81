//! One pre-norm transformer block: `x + attention(norm(x))`, then `x + mlp(norm(x))`, with a place for a module after each sub-layer.
//!
//! Of the last block only the class token is read. It computes keys and values of all tokens, and everything else of that one alone:
//! the same numbers, without the three quarters of the block that nobody looks at.

use super::Norm;
use crate::adapters::{AdaptedLinear, InsertPoint};
use crate::autograd::{Segment, Tape, Var};
use crate::error::Result;
use crate::ops::{Activation, After, AttentionOptions, Pooling, attention, pool};

/// Which tokens of a block's output are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    All,
    ClassToken,
}

impl Read {
    /// `[b, t, d]` to `[b, t, d]` or `[b, 1, d]`.
    fn of(self, tape: &mut Tape, x: &Var) -> Result<Var> {
        match self {
            Read::All => Ok(x.clone()),
            Read::ClassToken => {
                let class = pool(tape, x, Pooling::ClassToken)?;
                let &[b, d] = class.dims() else { return Ok(class) };
                class.reshape(&[b, 1, d])
            }
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Block {
    pub norm_before: Norm,
    pub q: AdaptedLinear,
    pub k: AdaptedLinear,
    pub v: AdaptedLinear,
    pub o: AdaptedLinear,
    pub after_attention: InsertPoint,
    pub norm_after: Norm,
    pub fc1: AdaptedLinear,
    pub fc2: AdaptedLinear,
    pub after_mlp: InsertPoint,
    pub heads: usize,
    pub activation: Activation,
    pub read: Read,
}

impl Block {
    pub fn linears(&mut self) -> [&mut AdaptedLinear; 6] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.fc1, &mut self.fc2]
    }

    pub fn inserts(&mut self) -> [&mut InsertPoint; 2] {
        [&mut self.after_attention, &mut self.after_mlp]
    }

    pub fn frozen_linears(&self) -> [&AdaptedLinear; 6] {
        [&self.q, &self.k, &self.v, &self.o, &self.fc1, &self.fc2]
    }
}

impl Segment for Block {
    fn forward(&self, tape: &mut Tape, x: &Var) -> Result<Var> {
        let normed = self.norm_before.forward(tape, x)?;
        let asking = self.read.of(tape, &normed)?;
        let q = self.q.forward(tape, &asking)?;
        let k = self.k.forward(tape, &normed)?;
        let v = self.v.forward(tape, &normed)?;
        let options = AttentionOptions { heads: self.heads, ..AttentionOptions::default() };
        let mixed = attention(tape, &q, &k, &v, &options)?;
        let x = self.read.of(tape, x)?;
        let x = self.after_attention.add(tape, &x, None, |tape, after| self.o.forward_then(tape, &mixed, after))?;

        let normed = self.norm_after.forward(tape, &x)?;
        let activated = After { residual: None, activation: Some(self.activation) };
        let wide = self.fc1.forward_then(tape, &normed, activated)?;
        self.after_mlp.add(tape, &x, None, |tape, after| self.fc2.forward_then(tape, &wide, after))
    }
}
