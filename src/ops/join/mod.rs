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
//! Cost: no arithmetic; every element is read once and written once. On a GPU one launch a part, whatever b is.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit.

mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::error::{Error, Result};
use crate::ops::scale_add::{accumulate, into_dtype};
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

/// Whether a part goes into the joined sequences or comes out of them.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Into,
    OutOf,
}

/// Elements of equal length for each batch item, in two tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Runs {
    count: usize,
    length: usize,
    from: Lies,
    to: Lies,
}

/// Where the first run begins, and elements from one to the next.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lies {
    first: usize,
    pitch: usize,
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

    /// Of a call with elements: there are so many that nothing overflows.
    fn runs(&self, part: usize, way: Way) -> Runs {
        let length = self.tokens[part] * self.d;
        let before = if part == 0 { 0 } else { self.tokens[0] * self.d };
        let alone = Lies { first: 0, pitch: length };
        let joined = Lies { first: before, pitch: (self.tokens[0] + self.tokens[1]) * self.d };
        let (from, to) = match way {
            Way::Into => (alone, joined),
            Way::OutOf => (joined, alone),
        };
        Runs { count: self.b, length, from, to }
    }
}

/// `[first; second]` along the tokens; see the module for shapes and errors.
pub fn join(tape: &mut Tape, first: &Var, second: &Var) -> Result<Var> {
    let desc = Desc::new(first.tensor(), second.tensor())?;
    let tokens = desc.tokens[0]
        .checked_add(desc.tokens[1])
        .ok_or_else(|| Error::SizeOverflow { op: OP, dims: desc.tokens.to_vec() })?;
    let y = Tensor::empty(first.tensor().device(), &[desc.b, tokens, desc.d], first.tensor().dtype())?;
    let target = Target { tensor: y.clone(), accumulate: false };
    for (part, source) in [first, second].into_iter().enumerate() {
        carry(&desc, part, Way::Into, source.tensor(), &target)?;
    }
    Ok(tape.record(y, &[first, second], |_| Node { desc }))
}

/// `to (+)= from` for part `part`: one of them is joined.
fn carry(desc: &Desc, part: usize, way: Way, from: &Tensor, to: &Target) -> Result<()> {
    if from.numel() == 0 || to.tensor.numel() == 0 {
        return Ok(());
    }
    let runs = &desc.runs(part, way);
    if !from.device().is_cpu() {
        return into_dtype(to, from.dtype(), |to| from.device().run(&gpu::carry(runs, from, to)?));
    }
    let (from, all) = (from.reshape(&[from.numel()])?, to.tensor.reshape(&[to.tensor.numel()])?);
    for i in 0..runs.count {
        let run = |all: &Tensor, lies: Lies| all.slice(0, lies.first + i * lies.pitch, runs.length);
        let target = Target { tensor: run(&all, runs.to)?, accumulate: to.accumulate };
        accumulate(&target, &run(&from, runs.from)?)?;
    }
    Ok(())
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
            if let Some(target) = sinks.open(part)? {
                carry(&self.desc, part, Way::OutOf, dy, &target)?;
            }
        }
        Ok(())
    }
}
