//! The members of the family on a tape.

use super::desc::{Dense, Sampled, Side, extents, finite, matches};
use crate::autograd::{Recorded, Saved, Sinks, Tape, Target, Var};
use crate::error::{Error, Result};
use crate::tensor::{BlockPattern, Tensor};

/// Which operands enter as their transpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transposed {
    pub sparse: bool,
    pub dense: bool,
}

/// `Y = s · op(S) · op(D)`, `[rows of op(S), columns of op(D)]`.
pub fn dsd(
    tape: &mut Tape,
    pattern: &BlockPattern,
    values: &Var,
    dense: &Var,
    transposed: Transposed,
    scale: f64,
) -> Result<Var> {
    product(tape, "dsd", Side::Left, pattern, (values, dense), transposed, scale)
}

/// `Y = s · op(D) · op(S)`, `[rows of op(D), columns of op(S)]`.
pub fn dds(
    tape: &mut Tape,
    dense: &Var,
    pattern: &BlockPattern,
    values: &Var,
    transposed: Transposed,
    scale: f64,
) -> Result<Var> {
    product(tape, "dds", Side::Right, pattern, (values, dense), transposed, scale)
}

fn product(
    tape: &mut Tape,
    op: &'static str,
    side: Side,
    pattern: &BlockPattern,
    (values, dense): (&Var, &Var),
    transposed: Transposed,
    scale: f64,
) -> Result<Var> {
    let (v, d) = (values.tensor(), dense.tensor());
    check_values(op, pattern, v)?;
    matches(op, "dense", d, v)?;
    finite(op, scale)?;
    let [rows, cols] = extents(op, "dense", d, transposed.dense)?;
    let (m, depth) = if side == Side::Left { (cols, rows) } else { (rows, cols) };
    let Transposed { sparse: sparse_t, dense: dense_t } = transposed;
    let desc = Dense { op, pattern: pattern.clone(), side, sparse_t, dense_t, scale, m, dtype: v.dtype() };
    let [_, wanted] = desc.lines_and_depth();
    if depth != wanted {
        let expected = format!("{wanted} to sum over, as {pattern:?} has, of {transposed:?}");
        return Err(Error::shape(op, "dense", expected, d.dims()));
    }
    let y = Tensor::empty(v.device(), &desc.out_dims(), v.dtype())?;
    desc.run(v, d, &Target { tensor: y.clone(), accumulate: false })?;
    Ok(tape.record(y, &[dense, values], |wants| ProductNode {
        values: v.clone(),
        dense: (wants.weights || wants.input(VALUES)).then(|| dense.save()),
        desc,
    }))
}

pub(super) fn check_values(op: &'static str, pattern: &BlockPattern, values: &Tensor) -> Result<()> {
    values.require_dims(op, "values", &pattern.value_dims())?;
    values.require_contiguous(op, "values")?;
    values.require_device(op, "values", pattern.device())?;
    if values.dtype().is_float() {
        return Ok(());
    }
    Err(Error::DType { op, argument: "values", expected: "a float type".into(), got: values.dtype() })
}

/// Positions of the inputs on the tape.
const DENSE: usize = 0;
const VALUES: usize = 1;

#[derive(Debug)]
struct ProductNode {
    desc: Dense,
    values: Tensor,
    dense: Option<Saved>,
}

impl Recorded for ProductNode {
    fn name(&self) -> &'static str {
        self.desc.op
    }

    fn saved(&self) -> Vec<&Saved> {
        self.dense.iter().collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        if let (Some(dense), Some(target)) = (&self.dense, sinks.open(VALUES)?) {
            self.desc.values_gradient(dy, &dense.get()?, &target)?;
        }
        if let Some(target) = sinks.open(DENSE)? {
            self.desc.dense_gradient(dy, &self.values, &target)?;
        }
        Ok(())
    }
}

impl Dense {
    /// `d op(D)` is `s · op(S)ᵀ dY` or `s · dY op(S)ᵀ`. Where D is stored transposed, so is its gradient: the other side's product of dYᵀ.
    pub(super) fn dense_gradient(&self, dy: &Tensor, values: &Tensor, target: &Target) -> Result<()> {
        let [lines, depth] = self.lines_and_depth();
        let other = if self.side == Side::Left { Side::Right } else { Side::Left };
        let mut back = Dense { ..self.clone() };
        if self.dense_t {
            (back.side, back.sparse_t, back.dense_t) = (other, self.sparse_t, true);
        } else {
            (back.sparse_t, back.dense_t) = (!self.sparse_t, false);
        }
        debug_assert_eq!(back.lines_and_depth(), [depth, lines]);
        back.run(values, dy, target)
    }

    /// `dS` at the blocks. With P `[n, m]` and Q `[m, k]`: from dY and D in the order that S's rows and columns ask for.
    pub(super) fn values_gradient(&self, dy: &Tensor, dense: &Tensor, target: &Target) -> Result<()> {
        let sampled = |a_t, b_t| Sampled {
            op: self.op,
            pattern: self.pattern.clone(),
            a_t,
            b_t,
            scale: self.scale,
            m: self.m,
            dtype: self.dtype,
        };
        match (self.side, self.sparse_t) {
            // Y = S D: dS = dY Dᵀ.
            (Side::Left, false) => sampled(false, !self.dense_t).run(dy, dense, target),
            // Y = Sᵀ D: dS = D dYᵀ.
            (Side::Left, true) => sampled(self.dense_t, true).run(dense, dy, target),
            // Y = D S: dS = Dᵀ dY.
            (Side::Right, false) => sampled(!self.dense_t, false).run(dense, dy, target),
            // Y = D Sᵀ: dS = dYᵀ D.
            (Side::Right, true) => sampled(true, self.dense_t).run(dy, dense, target),
        }
    }
}

/// `V = s · op(A) · op(B)` at the blocks of `pattern [n, k]`: op(A) is `[n, m]`, op(B) `[m, k]`; `transposed` says whether A and B
/// are stored as their transposes.
pub fn sdd(
    tape: &mut Tape,
    a: &Var,
    b: &Var,
    pattern: &BlockPattern,
    transposed: [bool; 2],
    scale: f64,
) -> Result<Var> {
    const OP: &str = "sdd";
    let [a_t, b_t] = transposed;
    let (at, bt) = (a.tensor(), b.tensor());
    matches(OP, "a", at, at)?;
    matches(OP, "b", bt, at)?;
    at.require_device(OP, "a", pattern.device())?;
    finite(OP, scale)?;
    let ([n, m], [depth, k]) = (extents(OP, "a", at, a_t)?, extents(OP, "b", bt, b_t)?);
    if [n, k] != pattern.shape() {
        let expected = format!("{} rows for {pattern:?}", pattern.shape()[0]);
        if n != pattern.shape()[0] {
            return Err(Error::shape(OP, "a", expected, at.dims()));
        }
        return Err(Error::shape(OP, "b", format!("{} columns for {pattern:?}", pattern.shape()[1]), bt.dims()));
    }
    if m != depth {
        return Err(Error::shape(OP, "b", format!("{m} to sum over, as a has"), bt.dims()));
    }
    let desc = Sampled { op: OP, pattern: pattern.clone(), a_t, b_t, scale, m, dtype: at.dtype() };
    let values = Tensor::empty(at.device(), &pattern.value_dims(), at.dtype())?;
    desc.run(at, bt, &Target { tensor: values.clone(), accumulate: false })?;
    Ok(tape.record(values, &[a, b], |wants| SampledNode {
        a: (wants.weights || wants.input(B)).then(|| a.save()),
        b: (wants.weights || wants.input(A)).then(|| b.save()),
        desc,
    }))
}

const A: usize = 0;
const B: usize = 1;

#[derive(Debug)]
struct SampledNode {
    desc: Sampled,
    a: Option<Saved>,
    b: Option<Saved>,
}

impl Recorded for SampledNode {
    fn name(&self) -> &'static str {
        self.desc.op
    }

    fn saved(&self) -> Vec<&Saved> {
        self.a.iter().chain(&self.b).collect()
    }

    fn backward(&self, dv: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let Sampled { op, scale, m, dtype, a_t, b_t, .. } = self.desc;
        let product = |side, sparse_t, dense_t| Dense {
            op,
            pattern: self.desc.pattern.clone(),
            side,
            sparse_t,
            dense_t,
            scale,
            m,
            dtype,
        };
        if let (Some(b), Some(target)) = (&self.b, sinks.open(A)?) {
            // d op(A) = dV op(B)ᵀ, or its transpose, op(B) dVᵀ.
            let member = if a_t { product(Side::Right, true, b_t) } else { product(Side::Left, false, !b_t) };
            member.run(dv, &b.get()?, &target)?;
        }
        if let (Some(a), Some(target)) = (&self.a, sinks.open(B)?) {
            // d op(B) = op(A)ᵀ dV, or its transpose, dVᵀ op(A).
            let member = if b_t { product(Side::Left, true, a_t) } else { product(Side::Right, false, !a_t) };
            member.run(dv, &a.get()?, &target)?;
        }
        Ok(())
    }
}
