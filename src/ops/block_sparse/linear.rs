//! The block-sparse update of a linear layer, alone.

use super::desc::{Dense, Sampled, Side, finite, matches};
use super::members::check_values;
use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::error::{Error, Result};
use crate::shape::Dims;
use crate::tensor::{BlockPattern, Tensor};

const OP: &str = "block_sparse_linear";

const X: usize = 0;
const VALUES: usize = 1;

/// `y = s · x Sᵀ`: x is `[.., k]`, y `[.., n]`; see the module for errors.
pub fn block_sparse_linear(tape: &mut Tape, x: &Var, pattern: &BlockPattern, values: &Var, scale: f64) -> Result<Var> {
    let update = Update::new(OP, x.tensor(), pattern, values.tensor(), scale)?;
    let mut dims = Dims::from_slice(x.dims());
    if let Some(last) = dims.last_mut() {
        *last = pattern.shape()[0];
    }
    let y = Tensor::empty(x.tensor().device(), &dims, x.tensor().dtype())?;
    update.forward(values.tensor(), x.tensor(), &Target { tensor: y.clone(), accumulate: false })?;
    Ok(tape.record(y, &[x, values], |wants| Node {
        x: (wants.weights || wants.input(VALUES)).then(|| x.save()),
        values: values.tensor().clone(),
        update,
    }))
}

/// A validated update `s · x Sᵀ` of x with m rows, and its passes.
#[derive(Clone, Debug)]
pub(crate) struct Update {
    forward: Dense,
}

impl Update {
    pub fn new(op: &'static str, x: &Tensor, pattern: &BlockPattern, values: &Tensor, scale: f64) -> Result<Self> {
        let [n, k] = pattern.shape();
        if x.dims().is_empty() || x.cols() != k {
            return Err(Error::shape(op, "x", format!("[.., {k}] for blocks of [{n}, {k}]"), x.dims()));
        }
        check_values(op, pattern, values)?;
        matches(op, "x", x, values)?;
        finite(op, scale)?;
        let pattern = pattern.clone();
        let (m, dtype) = (x.rows(), x.dtype());
        let forward = Dense { op, pattern, side: Side::Right, sparse_t: true, dense_t: false, scale, m, dtype };
        Ok(Update { forward })
    }

    /// `y (+)= s · x Sᵀ`
    pub fn forward(&self, values: &Tensor, x: &Tensor, y: &Target) -> Result<()> {
        self.forward.run(values, x, y)
    }

    /// `s · x Sᵀ` as a member of the family.
    pub fn product(&self) -> &Dense {
        &self.forward
    }

    /// `s · dy S` likewise.
    pub fn back_product(&self) -> Dense {
        Dense { sparse_t: false, ..self.forward.clone() }
    }

    /// `dx (+)= s · dy S`
    pub fn input_gradient(&self, values: &Tensor, dy: &Tensor, dx: &Target) -> Result<()> {
        self.back_product().run(values, dy, dx)
    }

    /// `dvalues (+)= s · dyᵀ x` at the blocks.
    pub fn values_gradient(&self, dy: &Tensor, x: &Tensor, target: &Target) -> Result<()> {
        let Dense { op, ref pattern, scale, m, dtype, .. } = self.forward;
        Sampled { op, pattern: pattern.clone(), a_t: true, b_t: false, scale, m, dtype }.run(dy, x, target)
    }
}

#[derive(Debug)]
struct Node {
    update: Update,
    values: Tensor,
    x: Option<Saved>,
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        self.x.iter().collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        if let (Some(x), Some(target)) = (&self.x, sinks.open(VALUES)?) {
            self.update.values_gradient(dy, &x.get()?, &target)?;
        }
        if let Some(target) = sinks.open(X)? {
            self.update.input_gradient(&self.values, dy, &target)?;
        }
        Ok(())
    }
}
