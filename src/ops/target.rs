//! How a kernel is told where a gradient goes: an address, and two bits that `kernels/tile/gradient.cuh` mirrors.

use crate::autograd::Target;
use crate::dtype::DType;
use crate::error::{Error, Result};

/// The gradient is added to what is there.
pub(crate) const ACCUMULATE: u32 = 1;
/// The target is f32 though the values are 16 bits wide: a parameter's.
pub(crate) const WIDE: u32 = 2;

/// Address and flags of the target of a gradient whose values have `dtype`.
pub(crate) fn address_and_flags(op: &'static str, dtype: DType, target: &Target) -> Result<(u64, u32)> {
    let got = target.tensor.dtype();
    if got != dtype && got != DType::F32 {
        return Err(Error::DType { op, argument: "gradient", expected: format!("{dtype} or f32"), got });
    }
    let wide = if got == dtype { 0 } else { WIDE };
    Ok((target.tensor.address()?, wide | if target.accumulate { ACCUMULATE } else { 0 }))
}
