//! One result against the reference: the four checks of `testing::compare`, and that a second run gives the same bits.

use graftwork::DType;
use graftwork::testing::compare::{self, Chain, Outcome};

use super::case::{Judge, Output, round};

/// Below this many elements the largest error of the plain computation is luck.
const RATIO_FROM: usize = 256;
/// Roundings are as good as independent: the error of n of them exceeds λ·√n·u with probability below 2·exp(−λ²/2) (Higham and Mary,
/// "A new approach to probabilistic rounding error analysis", 2019).
const LAMBDA: f64 = 4.0;

/// What a result is held against.
pub struct Standard<'a> {
    /// In f64, from the same rounded operands.
    pub want: &'a Output,
    /// The same call on absolute values, for [`Judge::Bound`].
    pub magnitude: Option<&'a Output>,
    /// The CPU's result in the same dtype, where the device is not the CPU.
    pub plain: Option<&'a Output>,
    pub storage: DType,
}

pub fn judge(judge: Judge, got: &Output, standard: &Standard) -> Outcome {
    match judge {
        Judge::Exact => exact(got, standard),
        Judge::Bound => bound(got, standard),
        // What only copies is right to the bit.
        Judge::Smooth if got.arithmetic.depth == 0 => exact(got, standard),
        Judge::Smooth => match standard.plain {
            Some(plain) if got.values.len() >= RATIO_FROM => ratio(got, standard, plain),
            _ => norm(got, standard),
        },
    }
}

pub fn exact(got: &Output, standard: &Standard) -> Outcome {
    let want: Vec<f64> = standard.want.values.iter().map(|&v| round(got.dtype, v)).collect();
    compare::exact(&got.values, &want)
}

pub fn bound(got: &Output, standard: &Standard) -> Outcome {
    let chain = Chain {
        terms: got.arithmetic.depth,
        inner: got.arithmetic.inner,
        storage: standard.storage,
        output: got.dtype,
    };
    let magnitude = standard.magnitude.map_or(&[][..], |m| &m.values);
    compare::bound_chain(&got.values, &standard.want.values, magnitude, &chain)
}

pub fn ratio(got: &Output, standard: &Standard, plain: &Output) -> Outcome {
    let factor = if got.pass.starts_with("backward") { 3.0 } else { 2.0 };
    compare::ratio(&got.values, &standard.want.values, &plain.values, factor, got.dtype)
}

/// Limit: one rounding of the result, the inner ones, and λ·√depth roundings of f32, all times the condition.
pub fn norm(got: &Output, standard: &Standard) -> Outcome {
    let arithmetic = got.arithmetic;
    let f32_part = LAMBDA * (arithmetic.depth as f64).sqrt() * DType::F32.unit_roundoff();
    let inner = arithmetic.inner as f64 * standard.storage.unit_roundoff();
    let limit = got.dtype.unit_roundoff() + arithmetic.condition * (f32_part + inner);
    compare::norm(&got.values, &standard.want.values, got.cols, limit)
}

/// Two runs: equal bits in every result.
pub fn repeat(first: &[Output], second: &[Output]) -> Outcome {
    let bits = |run: &[Output]| -> Vec<u64> { run.iter().flat_map(|o| &o.values).map(|v| v.to_bits()).collect() };
    let (first, second) = (bits(first), bits(second));
    let differing = first.iter().zip(&second).filter(|(a, b)| a != b).count();
    let error = if first.len() == second.len() { differing as f64 } else { f64::INFINITY };
    Outcome { check: "repeat", error, limit: 0.0, worst: None }
}
