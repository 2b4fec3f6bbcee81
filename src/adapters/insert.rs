//! A place after a sub-layer of a trunk, before its residual is added.

use std::fmt;
use std::sync::Arc;

use crate::autograd::{Tape, Var};
use crate::error::Result;
use crate::ops::{After, TokenWeights, scale_add};

/// A module after a sub-layer: a bottleneck on its output, a gate that also looks at its input. Like a
/// [`LinearAdapter`](super::LinearAdapter) it holds ids of parameters and never changes.
pub trait Insert: fmt::Debug + Send + Sync {
    /// What takes the place of `output`, in its shape `[.., t, d]`. `output` is what the sub-layer made; `residual`, of the same shape, is
    /// what it will be added to: the sub-layer's input, before the norm in a pre-norm trunk. Where a trunk computes the sub-layer of some
    /// tokens alone, these are those tokens.
    fn forward(&self, tape: &mut Tape, residual: &Var, output: &Var) -> Result<Var>;

    /// The same where some tokens are padding. Only a module that mixes tokens need tell them apart.
    fn forward_padded(&self, tape: &mut Tape, residual: &Var, output: &Var, real: &TokenWeights) -> Result<Var> {
        let _ = real;
        self.forward(tape, residual, output)
    }
}

/// The place itself, with or without a module.
#[derive(Clone, Debug)]
pub struct InsertPoint {
    name: String,
    width: usize,
    module: Option<Arc<dyn Insert>>,
}

impl InsertPoint {
    /// `name` is the path of the sub-layer (`vit.layers.0.mlp`), `width` the features of its output.
    pub fn new(name: impl Into<String>, width: usize) -> Self {
        InsertPoint { name: name.into(), width, module: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// d.
    pub fn width(&self) -> usize {
        self.width
    }

    pub fn module(&self) -> Option<&Arc<dyn Insert>> {
        self.module.as_ref()
    }

    /// Puts `module` here, in place of what was there.
    pub fn insert(&mut self, module: impl Insert + 'static) {
        self.module = Some(Arc::new(module));
    }

    /// Leaves the place empty.
    pub fn clear(&mut self) {
        self.module = None;
    }

    /// `output` itself while the place is empty.
    pub fn forward(&self, tape: &mut Tape, residual: &Var, output: Var) -> Result<Var> {
        match &self.module {
            None => Ok(output),
            Some(module) => module.forward(tape, residual, &output),
        }
    }

    /// The residual connection around a sub-layer: `residual + module(sub_layer(after))`. While the place is empty, the last product of
    /// the sub-layer takes the residual along. `real` are the tokens that are no padding where there is some.
    pub fn add(
        &self,
        tape: &mut Tape,
        residual: &Var,
        real: Option<&TokenWeights>,
        sub_layer: impl FnOnce(&mut Tape, After<'_>) -> Result<Var>,
    ) -> Result<Var> {
        let Some(module) = &self.module else {
            return sub_layer(tape, After { residual: Some(residual), activation: None });
        };
        let output = sub_layer(tape, After::default())?;
        let output = match real {
            Some(real) => module.forward_padded(tape, residual, &output, real)?,
            None => module.forward(tape, residual, &output)?,
        };
        scale_add(tape, residual, &output, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::dtype::DType;
    use crate::tensor::{ParamSet, Tensor};

    #[derive(Debug)]
    struct AddResidual;

    impl Insert for AddResidual {
        fn forward(&self, tape: &mut Tape, residual: &Var, output: &Var) -> Result<Var> {
            scale_add(tape, output, residual, 10.0)
        }
    }

    #[test]
    fn a_module_sees_the_residual_and_the_output_and_can_be_taken_away() {
        let device = Device::cpu();
        let constant = |value: f32| Var::constant(Tensor::from_slice(&device, &[1, 2], &[value, -value]).unwrap());
        let mut tape = Tape::inference(&ParamSet::none(&device, DType::F32).unwrap());
        let mut point = InsertPoint::new("block.mlp", 2);
        let mut run = |point: &InsertPoint| {
            let y = point.forward(&mut tape, &constant(1.0), constant(2.0)).unwrap();
            y.tensor().to_vec::<f32>().unwrap()
        };
        assert_eq!(run(&point), [2.0, -2.0]);
        point.insert(AddResidual);
        assert_eq!(run(&point), [12.0, -12.0]);
        point.clear();
        assert_eq!(run(&point), [2.0, -2.0]);
    }
}
