//! The reference. The mean is a column sum.

use super::{Desc, OP, Pooling};
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_rows};
use crate::tensor::Tensor;

pub fn first_token<T: Real>(desc: &Desc, x: &Tensor, y: &Tensor) -> Result<()> {
    let x = In::<T>::of(OP, x)?;
    let mut out = Out::<T>::of(OP, y)?;
    let (d, step) = (desc.d, desc.t * desc.d);
    for_rows(&mut out, d, |b, row| row.copy_from_slice(&x[b * step..b * step + d]));
    out.finish()
}

pub fn backward<T: Real>(desc: &Desc, dy: &Tensor, target: &Target) -> Result<()> {
    let dy = In::<T>::of(OP, dy)?;
    let mut out = Out::<T>::into(OP, target)?;
    let (dy, Desc { t, d, pooling, .. }) = (&dy[..], *desc);
    let (factor, zero) = (T::of(desc.factor()), T::of(0.0));
    for_rows(
        &mut out,
        d,
        #[inline(always)]
        |row, out| {
            let counts = pooling == Pooling::Mean || row % t == 0;
            let values = out.iter_mut().zip(&dy[row / t * d..]);
            match (counts, target.accumulate) {
                (true, true) => {
                    for (o, &g) in values {
                        *o += factor * g;
                    }
                }
                (true, false) => {
                    for (o, &g) in values {
                        *o = factor * g;
                    }
                }
                (false, true) => {}
                (false, false) => out.fill(zero),
            }
        },
    );
    out.finish()
}
