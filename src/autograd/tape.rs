//! The tape: records in forward, walks back once, and is consumed by it.

use smallvec::SmallVec;

use super::grads::Grads;
use super::ledger::Ledger;
use super::node::{Input, Node, Recorded, Sinks, Wants};
use super::var::{Slot, Var};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::shape::Dims;
use crate::tensor::{ParamId, ParamSet, Tensor};

/// What a tape remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracking {
    /// Nothing: inference and evaluation.
    Nothing,
    /// What adapters need: the default of training.
    Adapters,
    /// What a tape without recomputation would keep if every weight learned. For the ledger alone; it has no backward.
    AllWeights,
    /// Whether gradients are needed, but no values: the forward pass of a checkpointed segment.
    Needs,
}

pub struct Tape {
    pub(super) params: ParamSet,
    pub(super) tracking: Tracking,
    pub(super) randomness: Option<(u64, u32)>,
    pub(super) recompute_blocks: bool,
    nodes: Vec<Node>,
    ledger: Ledger,
    values: u32,
}

/// What a backward leaves besides the parameters' gradients.
pub struct Backward {
    pub ledger: Ledger,
    values: Vec<Option<Tensor>>,
}

impl Backward {
    /// The gradient of a value made by [`Tape::input`].
    pub fn input_gradient(&self, input: &Var) -> Option<&Tensor> {
        match input.slot {
            Some(Slot::Value(value)) => self.values.get(value as usize)?.as_ref(),
            _ => None,
        }
    }
}

impl Tape {
    pub(super) fn with(params: &ParamSet, tracking: Tracking, randomness: Option<(u64, u32)>) -> Self {
        let params = params.clone();
        let ledger = Ledger::default();
        Tape { params, tracking, randomness, recompute_blocks: false, nodes: Vec::new(), ledger, values: 0 }
    }

    /// Records what adapters need. Dropout draws from (`seed`, `micro_step`): count micro-batches with the latter.
    pub fn training(params: &ParamSet, seed: u64, micro_step: u32) -> Self {
        Tape::with(params, Tracking::Adapters, Some((seed, micro_step)))
    }

    /// Records what adapters need, with dropout off: gradient checks, and fine-tuning in evaluation mode.
    pub fn deterministic(params: &ParamSet) -> Self {
        Tape::with(params, Tracking::Adapters, None)
    }

    /// Records nothing, dropout off.
    pub fn inference(params: &ParamSet) -> Self {
        Tape::with(params, Tracking::Nothing, None)
    }

    /// Records what an autograd that tracks every weight and recomputes nothing would keep. Read its ledger; it has no backward.
    pub fn accounting(params: &ParamSet) -> Self {
        Tape::with(params, Tracking::AllWeights, None)
    }

    /// From here on, segments given to [`Tape::checkpoint`] keep only their input and run again in backward.
    pub fn recompute_blocks(mut self, on: bool) -> Self {
        self.recompute_blocks = on;
        self
    }

    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Nodes recorded so far.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// One line a node: what was recorded, of what, and what it keeps.
    pub fn describe(&self) -> String {
        self.nodes.iter().map(|n| format!("{n:?}\n")).collect()
    }

    /// The random stream of one place, or `None` while dropout is off.
    pub fn stream(&self, site: u32) -> Option<Stream> {
        self.randomness.map(|(seed, step)| Stream { seed, step, site })
    }

    /// A trainable parameter.
    pub fn param(&self, id: ParamId) -> Result<Var> {
        let slot = (self.tracking != Tracking::Nothing).then_some(Slot::Param(id));
        Ok(Var { tensor: self.params.tensor(id)?, slot, recipe: None })
    }

    /// A leaf whose gradient is wanted, to be read from [`Backward::input_gradient`].
    pub fn input(&mut self, tensor: Tensor) -> Var {
        let slot = (self.tracking != Tracking::Nothing).then(|| self.next_value());
        Var { tensor, slot, recipe: None }
    }

    /// Whether values should carry recipes: only where saved values may be made again.
    pub(crate) fn may_recompute(&self) -> bool {
        self.tracking == Tracking::Adapters
    }

    /// Whether an op on these inputs would be recorded.
    pub(crate) fn records(&self, inputs: &[&Var]) -> bool {
        match self.tracking {
            Tracking::Nothing | Tracking::Needs => false,
            Tracking::AllWeights => true,
            Tracking::Adapters => inputs.iter().any(|v| v.slot.is_some()),
        }
    }

    /// Wraps an op's output, and records the op if a gradient can flow through it. `op` is called only then, with the wanted
    /// gradients, and keeps no more than those need.
    pub fn record<R: Recorded + 'static>(
        &mut self,
        output: Tensor,
        inputs: &[&Var],
        op: impl FnOnce(Wants) -> R,
    ) -> Var {
        let all = self.tracking == Tracking::AllWeights;
        let bits = inputs.iter().enumerate().map(|(i, v)| u32::from(v.slot.is_some() || all) << i).sum();
        let wants = Wants { inputs: bits, weights: all };
        if self.tracking == Tracking::Nothing || !wants.any() {
            return Var::constant(output);
        }
        if self.tracking == Tracking::Needs {
            let slot = Some(self.next_value());
            return Var { tensor: output, slot, recipe: None };
        }
        self.record_always(output, inputs, op(wants))
    }

    /// Records an op that has trainable parameters of its own, whatever its inputs need.
    pub(super) fn record_always<R: Recorded + 'static>(&mut self, output: Tensor, inputs: &[&Var], op: R) -> Var {
        let value = self.values;
        let slot = Some(self.next_value());
        self.push(Box::new(op), inputs, value);
        Var { tensor: output, slot, recipe: None }
    }

    fn push(&mut self, op: Box<dyn Recorded>, inputs: &[&Var], output: u32) {
        self.ledger.node(op.name());
        for saved in op.saved() {
            for tensor in saved.holds() {
                self.ledger.hold(op.name(), tensor);
            }
        }
        let inputs: SmallVec<_> = inputs
            .iter()
            .map(|v| Input { slot: v.slot, dims: Dims::from_slice(v.dims()), dtype: v.tensor.dtype() })
            .collect();
        self.nodes.push(Node { op, inputs, output });
    }

    fn next_value(&mut self) -> Slot {
        self.values += 1;
        Slot::Value(self.values - 1)
    }

    /// Adds d`loss`/dθ to `grads` for every trainable θ. `loss` is one number.
    pub fn backward(self, loss: &Var, grads: &mut Grads) -> Result<Backward> {
        if loss.tensor.numel() != 1 {
            return Err(Error::shape("backward", "loss", "one element", loss.dims()));
        }
        let dtype = loss.tensor.dtype();
        let one = Tensor::from_f32(loss.tensor.device(), loss.dims(), &[1.0], dtype)?;
        self.backward_from(loss, one, None, grads, None)
    }

    /// As [`Tape::backward`], from any value and the gradient of something in it: contiguous, of the value's shape, dtype and device.
    pub fn backward_with(self, output: &Var, gradient: Tensor, grads: &mut Grads) -> Result<Backward> {
        gradient.require_dims("backward", "gradient", output.dims())?;
        gradient.require_dtype("backward", "gradient", output.tensor().dtype())?;
        gradient.require_device("backward", "gradient", output.tensor().device())?;
        gradient.require_contiguous("backward", "gradient")?;
        self.backward_from(output, gradient, None, grads, None)
    }

    /// As [`Tape::backward`], from any value and its gradient. `seed` is an input and the gradient it has already; `outer` is the
    /// ledger of the tape in whose backward this one lives.
    pub(super) fn backward_from(
        mut self,
        output: &Var,
        gradient: Tensor,
        seed: Option<(&Var, Tensor)>,
        grads: &mut Grads,
        outer: Option<&mut Ledger>,
    ) -> Result<Backward> {
        if self.tracking != Tracking::Adapters {
            return Err(Error::Autograd {
                what: format!("a tape that tracks {:?} has no backward", self.tracking),
                hint: "use Tape::training or Tape::deterministic".into(),
            });
        }
        let Some(Slot::Value(value)) = output.slot else {
            return Err(Error::Autograd {
                what: "the loss depends on no trainable parameter".into(),
                hint: "attach an adapter before the forward pass, and compute the loss on this tape".into(),
            });
        };
        let mut values: Vec<Option<Tensor>> = vec![None; self.values as usize];
        *values.get_mut(value as usize).ok_or_else(foreign)? = Some(gradient);
        if let Some((Var { slot: Some(Slot::Value(value)), .. }, existing)) = seed {
            values[*value as usize] = Some(existing);
        }
        let device = self.params.device().clone();
        let mut own = std::mem::take(&mut self.ledger);
        let ledger = match outer {
            Some(outer) => {
                self.nodes.iter().for_each(|n| hold_all(outer, n));
                outer
            }
            None => &mut own,
        };
        while let Some(node) = self.nodes.pop() {
            if let Some(dy) = values[node.output as usize].take() {
                let mut sinks =
                    Sinks { inputs: &node.inputs, values: &mut values, grads, ledger: &mut *ledger, device: &device };
                node.op.backward(&dy, &mut sinks)?;
            }
            for tensor in node.op.saved().iter().flat_map(|s| s.holds()) {
                ledger.release(tensor);
            }
        }
        Ok(Backward { ledger: own, values })
    }

    /// The loss dtype for this tape's parameters.
    pub fn accumulator(&self) -> DType {
        self.params.master().dtype()
    }
}

fn hold_all(ledger: &mut Ledger, node: &Node) {
    for tensor in node.op.saved().iter().flat_map(|s| s.holds()) {
        ledger.hold("recomputed", tensor);
    }
}

fn foreign() -> Error {
    Error::Autograd {
        what: "the loss belongs to another tape".into(),
        hint: "call backward on the tape that computed it".into(),
    }
}
