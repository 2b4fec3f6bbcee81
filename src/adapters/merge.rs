//! `W = round(W₀ + ΔW)`: adapters that are a matrix become part of the weight, and nothing is paid for them any more.
//!
//! A merge is safe: nothing is changed if a sum is not finite in the weight's dtype, or if there is no matrix to add. The sum is taken in f64 and rounded once, to the weight's dtype. In a 16-bit weight much of a small update is lost that way; the
//! report says how much.

use std::fmt;

use half::{bf16, f16};

use super::{Slot, Trunk};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::tensor::{BlockPattern, FrozenWeight, ParamId, ParamSet, Tensor};

/// What rounding did to one merged weight.
#[derive(Clone, Debug, PartialEq)]
pub struct MergeReport {
    pub module: String,
    /// Elements of the weight.
    pub elements: usize,
    /// Elements that an update asked to change.
    pub updated: usize,
    /// Of those, the ones whose sum is no value of the weight's dtype.
    pub rounded: usize,
    /// Of those, the ones that rounding put back where they were.
    pub lost: usize,
    /// The largest distance between a sum and what is stored.
    pub max_error: f64,
}

impl fmt::Display for MergeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MergeReport { module, elements, updated, rounded, lost, max_error } = self;
        write!(
            f,
            "{module}: {updated} of {elements} updated, {rounded} rounded, {lost} lost, error at most {max_error:e}"
        )
    }
}

/// Merges every adapter of the trunk.
///
/// # Errors
/// Those of [`AdaptedLinear::merge`](super::AdaptedLinear::merge); nothing is merged then.
pub fn merge_all(trunk: &mut dyn Trunk, params: &ParamSet) -> Result<Vec<MergeReport>> {
    let mut reports = Vec::new();
    for linear in trunk.linears()? {
        if matches!(linear.slot(), Slot::Adapted(_)) {
            match linear.merge(params) {
                Ok(report) => reports.push(report),
                Err(error) => {
                    unmerge_all(trunk)?;
                    return Err(error);
                }
            }
        }
    }
    Ok(reports)
}

/// Takes every merge back, bit for bit. Returns how many there were.
pub fn unmerge_all(trunk: &mut dyn Trunk) -> Result<usize> {
    Ok(trunk.linears()?.into_iter().map(|linear| usize::from(linear.unmerge())).sum())
}

/// The weight with `update` added.
pub(super) fn merged(module: &str, weight: &FrozenWeight, update: &[f64]) -> Result<(FrozenWeight, MergeReport)> {
    let old = weight.tensor().to_f64_vec()?;
    let sums: Vec<f64> = old.iter().zip(update).map(|(w, u)| w + u).collect();
    let tensor = rounded(weight, &sums)?;
    let new = tensor.to_f64_vec()?;
    if let Some(at) = new.iter().position(|v| !v.is_finite()) {
        let got = format!("{:e} at element {at} of `{module}`", sums[at]);
        return Err(Error::value("merge", "update", format!("sums that are finite in {}", weight.dtype()), got));
    }
    let (module, elements) = (module.to_string(), old.len());
    let mut report = MergeReport { module, elements, updated: 0, rounded: 0, lost: 0, max_error: 0.0 };
    for (((old, update), sum), new) in old.iter().zip(update).zip(&sums).zip(&new) {
        report.updated += usize::from(*update != 0.0);
        report.rounded += usize::from(new != sum);
        report.lost += usize::from(*update != 0.0 && new == old);
        report.max_error = report.max_error.max((new - sum).abs());
    }
    Ok((FrozenWeight::new(tensor)?, report))
}

/// In the weight's dtype and on its device, each number rounded once.
fn rounded(weight: &FrozenWeight, values: &[f64]) -> Result<Tensor> {
    let (device, dims) = (weight.device(), [weight.n(), weight.k()]);
    match weight.dtype() {
        DType::F64 => Tensor::from_slice(device, &dims, values),
        DType::F32 => Tensor::from_slice(device, &dims, &values.iter().map(|&v| v as f32).collect::<Vec<_>>()),
        DType::F16 => Tensor::from_slice(device, &dims, &values.iter().map(|&v| f16::from_f64(v)).collect::<Vec<_>>()),
        DType::BF16 => {
            Tensor::from_slice(device, &dims, &values.iter().map(|&v| bf16::from_f64(v)).collect::<Vec<_>>())
        }
        got => Err(Error::DType { op: "merge", argument: "weight", expected: "a float type".into(), got }),
    }
}

/// The master values of a parameter.
pub(super) fn master(params: &ParamSet, id: ParamId) -> Result<Vec<f64>> {
    params.view(params.master(), id)?.contiguous()?.to_f64_vec()
}

/// Adds the blocks `values [nnz, b, b]`.
pub(super) fn add_blocks(out: &mut [f64], params: &ParamSet, pattern: &BlockPattern, values: ParamId) -> Result<()> {
    let values = params.view(params.master(), values)?;
    values.require_dims("merge", "values", &pattern.value_dims())?;
    let values = values.to_f64_vec()?;
    pattern.topology().for_row_pieces(|at, place, len| {
        for (out, value) in out[place..place + len].iter_mut().zip(&values[at..at + len]) {
            *out += value;
        }
    });
    Ok(())
}

/// Adds `scale · B (g ⊙ A)`; no gate is a gate of ones.
pub(super) fn add_low_rank(
    out: &mut [f64],
    [n, k]: [usize; 2],
    params: &ParamSet,
    [a, b]: [ParamId; 2],
    gate: Option<ParamId>,
    scale: f64,
) -> Result<()> {
    let (a, b) = (master(params, a)?, master(params, b)?);
    let gate = gate.map(|g| master(params, g)).transpose()?;
    add_product(out, [n, k], [&a, &b], gate.as_deref(), scale)
}

/// Adds `scale · B (g ⊙ A)` for factors that are given.
pub(super) fn add_product(
    out: &mut [f64],
    [n, k]: [usize; 2],
    [a, b]: [&[f64]; 2],
    gate: Option<&[f64]>,
    scale: f64,
) -> Result<()> {
    let r = a.len() / k.max(1);
    let ones = vec![1.0; r];
    let gate = gate.unwrap_or(&ones);
    if r == 0 || a.len() != r * k {
        return Err(Error::shape("merge", "a", format!("[r, {k}]"), &[a.len()]));
    }
    if b.len() != n * r || out.len() != n * k || gate.len() != r {
        return Err(Error::shape("merge", "b", format!("[{n}, {r}]"), &[b.len()]));
    }
    for (row, b) in out.chunks_exact_mut(k).zip(b.chunks_exact(r)) {
        for ((b, g), a) in b.iter().zip(gate).zip(a.chunks_exact(k)) {
            let factor = scale * b * g;
            for (out, a) in row.iter_mut().zip(a) {
                *out += factor * a;
            }
        }
    }
    Ok(())
}
