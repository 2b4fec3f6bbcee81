//! The reference: blocks side by side, one tile at a time on each thread.

use rayon::prelude::*;

use super::BlockNorm;
use crate::autograd::Target;
use crate::error::Result;
use crate::ops::block_sparse::{Operands, Sampled};
use crate::ops::host::{In, Out, Real};
use crate::tensor::{BlockPattern, Tensor};

pub fn norms<T: Real>(
    op: &'static str,
    pattern: &BlockPattern,
    matrix: &Tensor,
    norm: BlockNorm,
    out: &Tensor,
) -> Result<()> {
    let values = In::<T>::of(op, matrix)?;
    let values: &[T] = &values;
    let mut out = Out::<T>::of(op, out)?;
    let ([n, k], b, topology) = (pattern.shape(), pattern.block(), pattern.topology());
    let as_matrix = matrix.dims().len() == 2;
    out.par_iter_mut().enumerate().for_each(|(e, out)| {
        let (top, left) = (topology.rows()[e] as usize * b, topology.columns()[e] as usize * b);
        let (rows, cols) = (b.min(n - top), b.min(k - left));
        let mut sum = T::of(0.0);
        for i in 0..rows {
            let start = if as_matrix { (top + i) * k + left } else { (e * b + i) * b };
            for &v in &values[start..start + cols] {
                sum += match norm {
                    BlockNorm::Frobenius => v * v,
                    BlockNorm::MeanAbsolute => magnitude(v),
                };
            }
        }
        *out = match norm {
            BlockNorm::Frobenius => sum.sqrt(),
            BlockNorm::MeanAbsolute => sum / T::of((rows * cols) as f64),
        };
    });
    out.finish()
}

pub fn score<T: Real>(desc: &Sampled, dy: &Tensor, x: &Tensor, weight: Option<&Tensor>, target: &Target) -> Result<()> {
    let weight = weight.map(|w| In::<T>::of(desc.op, w)).transpose()?;
    let weight: Option<&[T]> = weight.as_deref();
    let mut out = Out::<T>::into(desc.op, target)?;
    let operands = Operands::new(desc, dy, x)?;
    let ([n, k], b, topology) = (desc.pattern.shape(), desc.pattern.block(), desc.pattern.topology());
    out.par_iter_mut().enumerate().for_each_init(
        || vec![T::of(0.0); b * b],
        |tile, (e, out)| {
            operands.block(topology, e, false, tile, T::of(1.0));
            let (top, left) = (topology.rows()[e] as usize * b, topology.columns()[e] as usize * b);
            let (rows, cols) = (b.min(n - top), b.min(k - left));
            let mut sum = T::of(0.0);
            for i in 0..rows {
                let own = &tile[i * b..i * b + cols];
                match weight {
                    None => {
                        for &g in own {
                            sum += g * g;
                        }
                    }
                    Some(weight) => {
                        let row = &weight[(top + i) * k + left..];
                        for (&g, &w) in own.iter().zip(row) {
                            sum += magnitude(g * w);
                        }
                    }
                }
            }
            *out = if target.accumulate { *out + sum } else { sum };
        },
    );
    out.finish()
}

/// |v|, NaN for NaN.
#[inline(always)]
fn magnitude<T: Real>(v: T) -> T {
    if v < T::of(0.0) { -v } else { v }
}
