//! What an op leaves on the tape, and how its backward hands gradients on.

use std::fmt;

use smallvec::SmallVec;

use super::grads::Grads;
use super::ledger::Ledger;
use super::var::{Saved, Slot};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::Result;
use crate::shape::Dims;
use crate::tensor::Tensor;

/// Which gradients are wanted of a node, by input position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    pub(crate) inputs: u32,
    /// Accounting only: also what the gradient of every weight, frozen ones included, would need.
    pub weights: bool,
}

impl Wants {
    pub fn input(&self, index: usize) -> bool {
        self.inputs >> index & 1 == 1
    }

    pub fn any(&self) -> bool {
        self.inputs != 0
    }
}

/// A recorded op: plain data with everything that backward needs.
pub trait Recorded: fmt::Debug + Send + Sync {
    fn name(&self) -> &'static str;

    /// Every activation that is kept. Weights and parameters are alive anyway and are not listed.
    fn saved(&self) -> Vec<&Saved>;

    /// Turns the gradient of the output into those of the inputs. For each wanted input: `open` it, write or add, go on.
    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()>;
}

pub(crate) struct Node {
    pub op: Box<dyn Recorded>,
    pub inputs: SmallVec<[Input; 5]>,
    pub output: u32,
}

/// An input as backward sees it: where its gradient goes and what it looks like.
#[derive(Clone)]
pub(crate) struct Input {
    pub slot: Option<Slot>,
    pub dims: Dims,
    pub dtype: DType,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inputs: Vec<_> = self.inputs.iter().map(|i| (&i.slot, &i.dims)).collect();
        write!(f, "%{} = {:?} of {inputs:?}", self.output, self.op)
    }
}

/// Where one gradient is to be written: `tensor ← gradient`, or `tensor ← tensor + gradient` if `accumulate`.
pub struct Target {
    pub tensor: Tensor,
    pub accumulate: bool,
}

/// The gradients of a node's inputs, to be filled in by its backward.
///
/// Open one, write it, drop it, then open the next: two inputs may be the same value.
pub struct Sinks<'a> {
    pub(crate) inputs: &'a [Input],
    pub(crate) values: &'a mut [Option<Tensor>],
    pub(crate) grads: &'a mut Grads,
    pub(crate) ledger: &'a mut Ledger,
    pub(crate) device: &'a Device,
}

impl Sinks<'_> {
    /// Whether the gradient of input `index` is wanted.
    pub fn wants(&self, index: usize) -> bool {
        self.inputs.get(index).is_some_and(|i| i.slot.is_some())
    }

    /// Where to put the gradient of input `index`; `None` if nobody wants it. Parameters accumulate in f32 (f64 for f64),
    /// other values in their own dtype.
    pub fn open(&mut self, index: usize) -> Result<Option<Target>> {
        let Some(input) = self.inputs.get(index) else { return Ok(None) };
        let value = match input.slot {
            None => return Ok(None),
            Some(Slot::Param(id)) => {
                return Ok(Some(Target { tensor: self.grads.view(id)?, accumulate: true }));
            }
            Some(Slot::Value(value)) => value as usize,
        };
        let slot = &mut self.values[value];
        let accumulate = slot.is_some();
        let tensor = match slot.take() {
            None => Tensor::empty(self.device, &input.dims, input.dtype)?,
            Some(existing) if existing.buffer().is_unique() => existing,
            Some(shared) => shared.duplicate()?,
        };
        *slot = Some(tensor.clone());
        Ok(Some(Target { tensor: tensor.reshape(&input.dims)?, accumulate }))
    }

    /// Hands `gradient` on as the gradient of input `index` without copying it, when that is possible: the input is wanted, is no
    /// parameter and has no gradient yet. Says whether it was; otherwise the caller adds it through [`Sinks::open`].
    pub fn pass(&mut self, index: usize, gradient: &Tensor) -> bool {
        let Some(Some(Slot::Value(value))) = self.inputs.get(index).map(|i| i.slot) else { return false };
        let slot = &mut self.values[value as usize];
        if slot.is_some() {
            return false;
        }
        *slot = Some(gradient.clone());
        true
    }

    /// Takes out the gradient that input `index` has so far.
    pub(super) fn take(&mut self, index: usize) -> Option<Tensor> {
        match self.inputs.get(index)?.slot? {
            Slot::Value(value) => self.values[value as usize].take(),
            Slot::Param(_) => None,
        }
    }
}
