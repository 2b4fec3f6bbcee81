//! Which tokens count in a mean.

use super::OP;
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Weights of a mean over the tokens of each sample: `1 / n` for the n tokens that count, 0 for padding.
#[derive(Clone, Debug)]
pub struct TokenWeights {
    /// `[samples, t]`
    tensor: Tensor,
}

impl TokenWeights {
    /// From `real [samples, t]`, true where a token counts. `dtype` is that of the values that are gated.
    ///
    /// # Errors
    /// [`Error::Value`] naming the first sample of which no token counts: its mean would be over nothing.
    pub fn new(device: &Device, [samples, t]: [usize; 2], real: &[bool], dtype: DType) -> Result<Self> {
        if samples.checked_mul(t) != Some(real.len()) {
            return Err(Error::shape(OP, "tokens", format!("[{samples}, {t}]"), &[real.len()]));
        }
        let mut weights = Vec::with_capacity(real.len());
        for (i, sample) in real.chunks(t.max(1)).enumerate() {
            let count = sample.iter().filter(|&&r| r).count();
            if count == 0 {
                return Err(Error::value(
                    OP,
                    "tokens",
                    "at least one real token in each sample",
                    format!("none in {i}"),
                ));
            }
            weights.extend(sample.iter().map(|&r| if r { 1.0 / count as f64 } else { 0.0 }));
        }
        let narrow = || weights.iter().map(|&w| w as f32).collect::<Vec<_>>();
        let tensor = match dtype.accumulator() {
            DType::F64 => Tensor::from_slice(device, &[samples, t], &weights)?,
            _ => Tensor::from_slice(device, &[samples, t], &narrow())?,
        };
        Ok(TokenWeights { tensor })
    }

    pub(super) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    pub(super) fn require(&self, hidden: &Tensor, t: usize) -> Result<()> {
        self.tensor.require_dims(OP, "tokens", &[hidden.rows() / t.max(1), t])?;
        self.tensor.require_dtype(OP, "tokens", hidden.dtype().accumulator())?;
        self.tensor.require_device(OP, "tokens", hidden.device())
    }
}
