//! How much each block of a matrix matters: norms of values, and of a gradient that is never formed.
//!
//! ```text
//! block_norms        out[e] = ‖M_e‖_F                      or the mean of |M_e|
//! gradient_scores    out[e] += Σ (dyᵀ x)_e²                 or  Σ |W ⊙ (dyᵀ x)|_e          in backward
//! ```
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `M` | `[nnz, b, b]`, the values of a pattern, or its matrix `[n, k]` | f32, f16, bf16 (f64 on the CPU) |
//! | `x`, `y`, `W` | `[.., k]`, `[.., n]`, `[n, k]` | one of the same |
//! | `out` | `[nnz]` | f32 (f64 for f64) |
//!
//! The gradient of a linear layer's weight is `dyᵀ x`, a sum over tokens. Its tiles are computed block by block, for the blocks of a
//! pattern of candidates, and only one number of each is kept: a warm-up costs no memory in proportion to the weight.
//! [`gradient_scores`] stands on the tape as the identity on y; what it finds in backward is the "gradient" of a parameter, so that it
//! is summed over micro-batches as gradients are. Squares of several micro-batches add up to `Σ ‖g_i‖²`, not `‖Σ g_i‖²`: the latter
//! would need the dense gradient.
//!
//! Cost: `2 · m · nnz · b²` operations for a gradient. Kept for backward: x.
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit.
//!
//! Sources: the gradient's norm as a score of blocks is after "Sparse Matrix Tuning", 2024; `|w ⊙ g|` after Lee, Ajanthan and Torr,
//! "SNIP", 2019.

mod cpu;
mod gpu;
#[cfg(test)]
mod tests;

use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::error::{Error, Result};
use crate::ops::block_sparse::Sampled;
use crate::ops::host::with_real;
use crate::ops::scale_add::accumulate;
use crate::tensor::block_sparse::STRIP;
use crate::tensor::{BlockPattern, Tensor};

/// Norm of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockNorm {
    Frobenius,
    /// Over the elements that lie inside the matrix.
    MeanAbsolute,
}

/// The norm of every block of `pattern`, `[nnz]`: of `matrix [n, k]`, or of the pattern's values `[nnz, b, b]`.
pub fn block_norms(pattern: &BlockPattern, matrix: &Tensor, norm: BlockNorm) -> Result<Tensor> {
    const OP: &str = "block_norms";
    matrix.require_device(OP, "matrix", pattern.device())?;
    matrix.require_contiguous(OP, "matrix")?;
    let values = matrix.dims() == pattern.value_dims();
    if !values && matrix.dims() != pattern.shape() {
        let expected = format!("{:?} or {:?}", pattern.shape(), pattern.value_dims());
        return Err(Error::shape(OP, "matrix", expected, matrix.dims()));
    }
    if !matrix.dtype().is_float() {
        return Err(Error::DType { op: OP, argument: "matrix", expected: "a float type".into(), got: matrix.dtype() });
    }
    let out = Tensor::empty(matrix.device(), &[pattern.nnz()], matrix.dtype().accumulator())?;
    if pattern.nnz() == 0 {
        return Ok(out);
    }
    if matrix.device().is_cpu() {
        with_real!(matrix.dtype(), OP, T => cpu::norms::<T>(OP, pattern, matrix, norm, &out))?;
        return Ok(out);
    }
    matrix.device().run(&gpu::norms(OP, pattern, matrix, norm, &out)?)?;
    Ok(out)
}

/// What is summed over each block of a weight's gradient `g`.
#[derive(Clone, Copy, Debug)]
pub enum GradientScore<'a> {
    /// `Σ g²`
    Squares,
    /// `Σ |w · g|` for a weight `[n, k]`.
    Saliency(&'a Tensor),
}

const OP: &str = "gradient_scores";
const Y: usize = 0;
const SCORES: usize = 1;

/// y itself. In backward, `scores [nnz]` gets for each block of `pattern [n, k]` its share of the gradient of a weight that makes
/// y `[.., n]` of x `[.., k]`.
pub fn gradient_scores(
    tape: &mut Tape,
    y: &Var,
    x: &Var,
    pattern: &BlockPattern,
    score: GradientScore,
    scores: &Var,
) -> Result<Var> {
    let ([n, k], like) = (pattern.shape(), x.tensor());
    let m = like.rows();
    if like.dims().is_empty() || like.cols() != k {
        return Err(Error::shape(OP, "x", format!("[.., {k}] for {pattern:?}"), like.dims()));
    }
    if y.dims().is_empty() || y.tensor().cols() != n || y.tensor().rows() != m {
        return Err(Error::shape(OP, "y", format!("[.., {n}], {m} rows as x has"), y.dims()));
    }
    like.require_device(OP, "x", pattern.device())?;
    like.require_contiguous(OP, "x")?;
    y.tensor().require_dtype(OP, "y", like.dtype())?;
    y.tensor().require_device(OP, "y", like.device())?;
    scores.tensor().require_dims(OP, "scores", &[pattern.nnz()])?;
    scores.tensor().require_device(OP, "scores", like.device())?;
    let weight = match score {
        GradientScore::Squares => None,
        GradientScore::Saliency(weight) => {
            weight.require_dims(OP, "weight", &[n, k])?;
            weight.require_dtype(OP, "weight", like.dtype())?;
            weight.require_device(OP, "weight", like.device())?;
            weight.require_contiguous(OP, "weight")?;
            Some(weight.clone())
        }
    };
    let desc = Sampled { op: OP, pattern: pattern.clone(), a_t: true, b_t: false, scale: 1.0, m, dtype: like.dtype() };
    let output = y.tensor().clone();
    Ok(tape.record(output, &[y, scores], |wants| Node {
        desc,
        weight,
        x: (wants.weights || wants.input(SCORES)).then(|| x.save()),
    }))
}

#[derive(Debug)]
struct Node {
    desc: Sampled,
    weight: Option<Tensor>,
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
        if let (Some(x), Some(target)) = (&self.x, sinks.open(SCORES)?) {
            score(&self.desc, dy, &x.get()?, self.weight.as_ref(), &target)?;
        }
        if !sinks.pass(Y, dy)
            && let Some(target) = sinks.open(Y)?
        {
            accumulate(&target, dy)?;
        }
        Ok(())
    }
}

/// `target[e] (+)= Σ g²` or `Σ |w · g|` over block e of `g = dyᵀ x`.
fn score(desc: &Sampled, dy: &Tensor, x: &Tensor, weight: Option<&Tensor>, target: &Target) -> Result<()> {
    if target.tensor.numel() == 0 {
        return Ok(());
    }
    if desc.m == 0 {
        return if target.accumulate { Ok(()) } else { target.tensor.zero() };
    }
    if dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::score::<T>(desc, dy, x, weight, target));
    }
    gpu::score(desc, dy, x, weight, target)
}
