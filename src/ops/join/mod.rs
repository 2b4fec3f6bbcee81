//! Two sequences, one after the other.
//!
//! ```text
//! y[i] = [first[i]; second[i]]        for each batch item i
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `first` | `[b, t, d]` | f32, f16, bf16 (f64 on the CPU) |
//! | `second` | `[b, s, d]` | as first |
//! | `y` | `[b, t + s, d]` | as first |
//!
//! Backward: each input gets its part of dy. Kept for it: nothing.
//!
//! Cost: no arithmetic; every element is read once and written once, in two copies an item.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit.

#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::error::{Error, Result};
use crate::ops::scale_add::accumulate;
use crate::tensor::Tensor;

const OP: &str = "join";

/// A validated call: everything but the values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Desc {
    pub b: usize,
    /// Tokens of each part.
    pub tokens: [usize; 2],
    pub d: usize,
}

impl Desc {
    pub fn new(first: &Tensor, second: &Tensor) -> Result<Self> {
        let &[b, t, d] = first.dims() else {
            return Err(Error::shape(OP, "first", "[b, t, d]", first.dims()));
        };
        if !first.dtype().is_float() {
            let expected = "a float type".into();
            return Err(Error::DType { op: OP, argument: "first", expected, got: first.dtype() });
        }
        let s = match second.dims() {
            &[other, s, width] if other == b && width == d => s,
            _ => return Err(Error::shape(OP, "second", format!("[{b}, s, {d}]"), second.dims())),
        };
        second.require_dtype(OP, "second", first.dtype())?;
        second.require_device(OP, "second", first.device())?;
        first.require_contiguous(OP, "first")?;
        second.require_contiguous(OP, "second")?;
        Ok(Desc { b, tokens: [t, s], d })
    }

    /// The part of item `item` of the joined tensor that `part` fills.
    fn place(&self, joined: &Tensor, item: usize, part: usize) -> Result<Tensor> {
        let start = if part == 0 { 0 } else { self.tokens[0] };
        joined.slice(0, item, 1)?.slice(1, start, self.tokens[part])
    }
}

/// `[first; second]` along the tokens; see the module for shapes and errors.
pub fn join(tape: &mut Tape, first: &Var, second: &Var) -> Result<Var> {
    let desc = Desc::new(first.tensor(), second.tensor())?;
    let tokens = desc.tokens[0]
        .checked_add(desc.tokens[1])
        .ok_or_else(|| Error::SizeOverflow { op: OP, dims: desc.tokens.to_vec() })?;
    let y = Tensor::empty(first.tensor().device(), &[desc.b, tokens, desc.d], first.tensor().dtype())?;
    for (part, source) in [first, second].into_iter().enumerate() {
        for item in 0..desc.b {
            let target = Target { tensor: desc.place(&y, item, part)?, accumulate: false };
            accumulate(&target, &source.tensor().slice(0, item, 1)?)?;
        }
    }
    Ok(tape.record(y, &[first, second], |_| Node { desc }))
}

#[derive(Debug)]
struct Node {
    desc: Desc,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        Vec::new()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        for part in 0..2 {
            let Some(whole) = sinks.open(part)? else { continue };
            for item in 0..self.desc.b {
                let target = Target { tensor: whole.tensor.slice(0, item, 1)?, accumulate: whole.accumulate };
                accumulate(&target, &self.desc.place(dy, item, part)?)?;
            }
        }
        Ok(())
    }
}
