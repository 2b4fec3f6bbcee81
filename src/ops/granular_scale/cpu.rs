//! The reference: rows of U in the result's own place, gated while they are in the first-level cache.

mod backward;

pub use backward::backward;

use super::product::{Head, columns, heads};
use super::{Delta, Desc, GateInput, Kind, OP, Operands, Product};
use crate::device::{Mat, MatMut, gemm_alone};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_row_pairs, for_rows};
use crate::ops::lanes;
use crate::rng::Dropout;
use crate::tensor::Tensor;

type Values<'a, T> = Option<In<'a, T>>;

fn values<T: Real>(tensor: Option<&Tensor>) -> Result<Values<'_, T>> {
    tensor.map(|t| In::<T>::of(OP, t)).transpose()
}

/// `H`, `ΔH`, `b`, and how U comes from them.
struct Sum<'a, T> {
    hidden: &'a [T],
    update: Option<&'a [T]>,
    bias: Option<&'a [T]>,
    /// Rows hold ΔH already.
    in_place: bool,
    k: usize,
}

impl<T: Real> Sum<'_, T> {
    /// Columns `first ..` of row i of U.
    #[inline(always)]
    fn row(&self, i: usize, first: usize, out: &mut [T]) {
        let at = i * self.k + first;
        let width = out.len();
        let hidden = &self.hidden[at..at + width];
        if self.in_place {
            add(out, hidden);
        } else {
            out.copy_from_slice(hidden);
        }
        if let Some(update) = self.update {
            add(out, &update[at..]);
        }
        if let Some(bias) = self.bias {
            add(out, &bias[first..]);
        }
    }

    /// What the gate sees of row i: U, which the caller has, or H.
    #[inline(always)]
    fn seen<'r>(&'r self, input: GateInput, i: usize, row: &'r [T]) -> &'r [T] {
        match input {
            GateInput::Updated => row,
            GateInput::Hidden => &self.hidden[i * self.k..(i + 1) * self.k],
        }
    }
}

#[inline(always)]
fn add<T: Real>(out: &mut [T], from: &[T]) {
    for (o, &v) in out.iter_mut().zip(from) {
        *o += v;
    }
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::of(1.0) / (T::of(1.0) + (-x).exp())
}

/// `σ'` from σ.
#[inline(always)]
fn slope<T: Real>(s: T) -> T {
    s * (T::of(1.0) - s)
}

/// The gate of MiddleY at one column.
#[inline(always)]
fn column<T: Real>(z: T, through: bool) -> T {
    T::of(1.0) + if through { sigmoid(z) } else { z }
}

/// `w · r + w' · u` with the two halves of Small's w, or MiddleX's w twice.
#[inline(always)]
fn logit<T: Real>(kind: Kind, w: &[T], residual: &[T], seen: &[T]) -> T {
    let (first, second) = halves(kind, w, residual.len());
    dot(residual, first) + dot(seen, second)
}

/// R's weights and U's.
#[inline(always)]
fn halves<T>(kind: Kind, w: &[T], k: usize) -> (&[T], &[T]) {
    if kind == Kind::Small { w.split_at(k) } else { (w, w) }
}

/// Zeroes what a mask drops of row i and scales the rest.
#[inline(always)]
fn drop_row<T: Real>(dropout: &Option<Dropout>, i: usize, row: &mut [T]) {
    let Some(dropout) = dropout else { return };
    let first = (i * row.len()) as u64;
    let lead = row.len().min((first.next_multiple_of(4) - first) as usize);
    let (head, body) = row.split_at_mut(lead);
    for (e, v) in head.iter_mut().enumerate() {
        *v *= T::of(f64::from(dropout.factor(first + e as u64)));
    }
    for (block, four) in body.chunks_mut(4).enumerate() {
        let factors = dropout.factors(first.div_ceil(4) + block as u64);
        for (v, f) in four.iter_mut().zip(factors) {
            *v *= T::of(f64::from(f));
        }
    }
}

#[inline(always)]
fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    lanes::sum_pair(a, b, b, |a, b, _| (a * b, T::of(0.0))).0
}

/// `sums += factor · v`
#[inline(always)]
fn add_scaled<T: Real>(sums: &mut [T], factor: T, v: &[T]) {
    for (s, &v) in sums.iter_mut().zip(v) {
        *s += factor * v;
    }
}

/// `sums += a ⊙ b`
#[inline(always)]
fn add_products<T: Real>(sums: &mut [T], a: &[T], b: &[T]) {
    for ((s, &a), &b) in sums.iter_mut().zip(a).zip(b) {
        *s += a * b;
    }
}

/// The gate of each sample: the mean of its rows' sigmoids, in row order.
fn sample_gates<T: Real>(desc: &Desc, logits: &[T], tokens: Option<&[T]>) -> Vec<T> {
    let t = desc.tokens;
    let even = T::of(1.0 / t as f64);
    let gate = |sample: usize| {
        let mut sum = T::of(0.0);
        for i in sample * t..(sample + 1) * t {
            sum += tokens.map_or(even, |p| p[i]) * sigmoid(logits[i]);
        }
        sum
    };
    (0..desc.samples()).map(gate).collect()
}

/// Rows whose ΔH is made at a time, so that it is gated while it lies in the cache.
const ROWS: usize = 32;

/// `D`, `Wu`: what ΔH is made of.
struct Up<'a, T> {
    x: &'a [T],
    weight: &'a [T],
    product: Product,
}

impl<T: Real> Up<'_, T> {
    /// ΔH of the rows from `first` on.
    fn rows(&self, desc: &Desc, first: usize, out: &mut [T]) {
        let (m, r_all) = (out.len() / desc.k, self.product.r);
        for Head { j, n, r } in heads(desc, self.product) {
            let to = MatMut { data: &mut out[j * n..], rows: m, cols: n, row_stride: desc.k };
            let x = columns(&self.x[first * r_all..], j, m, r, r_all);
            gemm_alone(to, None, x, Mat::new(&self.weight[j * n * r..], n, r).t(), T::of(1.0));
        }
    }
}

pub fn forward<T: Real>(desc: &Desc, operands: &Operands, y: &Tensor) -> Result<()> {
    let (update, x, weight) = match operands.delta {
        Delta::None => (None, None, None),
        Delta::Given(update) => (Some(update), None, None),
        Delta::Product { x, weight } => (None, Some(x), Some(weight)),
    };
    let (hidden, update, bias) = (In::<T>::of(OP, operands.hidden)?, values(update)?, values(operands.bias)?);
    let (x, weight) = (values::<T>(x)?, values::<T>(weight)?);
    let (residual, gate) = (values::<T>(operands.residual)?, values::<T>(operands.gate)?);
    let (gate_bias, tokens) = (values::<T>(operands.gate_bias)?, values::<T>(operands.tokens)?);
    let up = match (x.as_deref(), weight.as_deref(), desc.product) {
        (Some(x), Some(weight), Some(product)) => Some(Up { x, weight, product }),
        _ => None,
    };
    let mut stored = operands.rows.map(|t| Out::<T>::of(OP, t)).transpose()?;
    let mut out = Out::<T>::of(OP, y)?;
    let call = Call {
        desc,
        sum: Sum {
            hidden: &hidden,
            update: update.as_deref(),
            bias: bias.as_deref(),
            in_place: up.is_some(),
            k: desc.k,
        },
        residual: residual.as_deref().unwrap_or(&[]),
        gate: gate.as_deref().unwrap_or(&[]),
        shift: gate_bias.map_or(T::of(0.0), |b| b[0]),
        scale: T::of(desc.scale),
    };
    let k = desc.k;
    match &mut stored {
        None => for_rows(
            &mut out,
            ROWS * k,
            #[inline(always)]
            |block, rows| {
                if let Some(up) = &up {
                    up.rows(desc, block * ROWS, rows);
                }
                for (i, row) in rows.chunks_mut(k).enumerate() {
                    call.gated(block * ROWS + i, row);
                }
            },
        ),
        Some(logits) => for_row_pairs(
            (&mut out, ROWS * k),
            (&mut *logits, ROWS),
            #[inline(always)]
            |block, rows, logits| {
                if let Some(up) = &up {
                    up.rows(desc, block * ROWS, rows);
                }
                for (i, (row, l)) in rows.chunks_mut(k).zip(logits).enumerate() {
                    *l = call.looked(block * ROWS + i, row);
                }
            },
        ),
    }
    if let (Kind::Small, Some(logits)) = (desc.kind, &stored) {
        let gates = sample_gates(desc, logits, tokens.as_deref());
        for_rows(
            &mut out,
            k,
            #[inline(always)]
            |i, row| call.by_one(i, call.scale * gates[i / desc.tokens], row),
        );
    }
    if let Some(stored) = stored {
        stored.finish()?;
    }
    out.finish()
}

/// A forward pass, row by row.
struct Call<'a, T> {
    desc: &'a Desc,
    sum: Sum<'a, T>,
    residual: &'a [T],
    gate: &'a [T],
    shift: T,
    scale: T,
}

impl<T: Real> Call<'_, T> {
    /// Row i of a gate that does not look at U.
    #[inline(always)]
    fn gated(&self, i: usize, row: &mut [T]) {
        let Desc { kind, gated, sigmoid: through, .. } = *self.desc;
        let s = self.scale;
        self.sum.row(i, 0, row);
        if kind == Kind::Large {
            for (o, &l) in row.iter_mut().zip(&self.gate[i * self.sum.k..]) {
                *o *= s * sigmoid(l);
            }
        } else if !gated {
            for o in row.iter_mut() {
                *o *= s;
            }
        } else if through {
            for (o, &z) in row.iter_mut().zip(self.gate) {
                *o *= s * column(z, true);
            }
        } else {
            for (o, &z) in row.iter_mut().zip(self.gate) {
                *o *= s * column(z, false);
            }
        }
        self.finish(i, row);
    }

    /// Row i of U and its logit; MiddleX gates it at once.
    #[inline(always)]
    fn looked(&self, i: usize, row: &mut [T]) -> T {
        let k = self.sum.k;
        self.sum.row(i, 0, row);
        let seen = self.sum.seen(self.desc.input, i, row);
        let logit = logit(self.desc.kind, self.gate, &self.residual[i * k..(i + 1) * k], seen) + self.shift;
        if self.desc.kind == Kind::MiddleX {
            self.by_one(i, self.scale * sigmoid(logit), row);
        }
        logit
    }

    /// Row i, times one factor.
    #[inline(always)]
    fn by_one(&self, i: usize, factor: T, row: &mut [T]) {
        for o in row.iter_mut() {
            *o *= factor;
        }
        self.finish(i, row);
    }

    /// What follows the gate.
    #[inline(always)]
    fn finish(&self, i: usize, row: &mut [T]) {
        drop_row(&self.desc.dropout, i, row);
        if self.desc.add_residual {
            add(row, &self.residual[i * self.sum.k..]);
        }
    }
}
