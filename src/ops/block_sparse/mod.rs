//! Products with a block-sparse matrix: a closed family, since the gradient of each member is another one.
//!
//! `S [n, k]` has blocks of b × b ([`BlockPattern`]) with `values [nnz, b, b]`; `op(X)` is X or its transpose.
//!
//! ```text
//! dsd    Y = s · op(S) · op(D)            sparse × dense
//! dds    Y = s · op(D) · op(S)            dense × sparse
//! sdd    V = s · op(A) · op(B) at the blocks      dense × dense, sampled
//! ```
//!
//! | of | gradient of the dense operand | gradient of the values |
//! |---|---|---|
//! | dsd | dsd with `op(S)ᵀ`, or dds where D is stored transposed | sdd of dY and D |
//! | dds | dds with `op(S)ᵀ`, or dsd where D is stored transposed | sdd of D and dY |
//! | sdd | dsd and dds of dV | – |
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `values`, `V` | `[nnz, b, b]` | f32, f16, bf16 (f64 on the CPU) |
//! | dense operands, `Y` | two dimensions, or `[.., k]` for [`block_sparse_linear`] | as values |
//!
//! [`block_sparse_linear`] is `y = s · x Sᵀ`, the update of a linear layer: `dx = s · dy S`, `dvalues = s · sdd(dyᵀ, x)`. On top of a
//! frozen product it rides along in [`frozen_linear`](super::frozen_linear()), without a second pass over y.
//!
//! Kept for backward: the dense operand only if the values learn. Gradients of values that are parameters are summed in f32.
//!
//! Cost: `2 · m · nnz · b²` floating-point operations each, for m the dense operand's other extent. Lines of blocks that are much
//! longer than the others are cut into pieces whose sums are added in order; nothing is atomic, two runs give the same bits.
//!
//! Errors: [`Error::Shape`], [`Error::DType`], [`Error::DeviceMismatch`], [`Error::NotContiguous`] for operands that do not fit the
//! pattern or each other, [`Error::Value`] for a scale that is not finite.
//!
//! The transpose index is after Gale, Narayanan, Young and Zaharia, "MegaBlocks", 2023.
//!
//! [`BlockPattern`]: crate::tensor::BlockPattern
//! [`Error::Shape`]: crate::Error::Shape
//! [`Error::DType`]: crate::Error::DType
//! [`Error::DeviceMismatch`]: crate::Error::DeviceMismatch
//! [`Error::NotContiguous`]: crate::Error::NotContiguous
//! [`Error::Value`]: crate::Error::Value

mod cpu;
mod desc;
mod gpu;
mod hopper;
mod linear;
mod members;
mod plans;
#[cfg(test)]
mod tests;

#[cfg(all(test, feature = "emulator"))]
pub(crate) use self::{desc::Dense, hopper::ride_traffic};
pub(crate) use cpu::{Operands, dense_into};
pub(crate) use desc::Sampled;
pub(crate) use gpu::{rider, sampled as sampled_strips};
pub(crate) use linear::Update;
pub use linear::block_sparse_linear;
pub use members::{Transposed, dds, dsd, sdd};
pub use plans::{Foretold, foretold};
