//! Gradients of the trainable parameters: one flat buffer with the parameters' layout, added to by every backward until zeroed.

use std::fmt;

use crate::error::{Error, Result};
use crate::tensor::{ParamId, ParamSet, Tensor};

pub struct Grads {
    params: ParamSet,
    flat: Tensor,
}

impl Grads {
    /// All zero, in f32 (f64 for an f64 set).
    pub fn zeros(params: &ParamSet) -> Result<Self> {
        let flat = Tensor::zeros(params.device(), &[params.flat_len()], params.master().dtype())?;
        Ok(Grads { params: params.clone(), flat })
    }

    /// `[flat_len]`, in the layout of the parameter set.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    pub fn view(&self, id: ParamId) -> Result<Tensor> {
        self.params.view(&self.flat, id)
    }

    pub fn zero(&self) -> Result<()> {
        self.flat.zero()
    }

    /// Reads every gradient back and says which parameters got none, or a number that is not finite. Meant for the first
    /// backward of a run: an adapter that silently learns nothing is this field's commonest defect.
    pub fn audit(&self) -> Result<AuditReport> {
        let flat = self.flat.to_f64_vec()?;
        let mut report = AuditReport { checked: self.params.params().len(), ..AuditReport::default() };
        for param in self.params.params() {
            let values = &flat[param.offset..param.offset + param.numel()];
            if values.iter().any(|v| !v.is_finite()) {
                report.not_finite.push(param.name.clone());
            } else if values.iter().all(|&v| v == 0.0) {
                let list =
                    if param.first_gradient_may_vanish { &mut report.zero_by_design } else { &mut report.silent };
                list.push(param.name.clone());
            }
        }
        Ok(report)
    }
}

/// What the first backward of a run showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditReport {
    pub checked: usize,
    /// All zero, though the mathematics gives no reason for it.
    pub silent: Vec<String>,
    pub not_finite: Vec<String>,
    /// All zero for now because of how the adapter starts (the A of a LoRA whose B is zero).
    pub zero_by_design: Vec<String>,
}

impl AuditReport {
    /// An error that names every parameter that does not learn.
    pub fn require_learning(&self) -> Result<()> {
        if self.silent.is_empty() && self.not_finite.is_empty() {
            return Ok(());
        }
        Err(Error::Autograd {
            what: format!("after the first backward {self}"),
            hint: "check that these parameters reach the loss, and the learning rate and input scales".into(),
        })
    }
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} parameters checked, {} silent {:?}, {} not finite {:?}, {} zero by design",
            self.checked,
            self.silent.len(),
            self.silent,
            self.not_finite.len(),
            self.not_finite,
            self.zero_by_design.len()
        )
    }
}
