//! The way back: `s · dropout'(dy)` once, then each gradient in a pass of its own.

use super::super::node::{Given, Gradients};
use super::{Sum, add_products, add_scaled, column, dot, drop_row, halves, sample_gates, sigmoid, slope, values};
use crate::error::Result;
use crate::ops::column_sum::ordered;
use crate::ops::granular_scale::{Desc, GateInput, Kind, OP};
use crate::ops::host::{In, Out, Real, for_each_row, for_rows};

pub fn backward<T: Real>(desc: &Desc, given: &Given, out: &Gradients) -> Result<()> {
    let dy = In::<T>::of(OP, given.dy)?;
    let (hidden, update, bias) = (values::<T>(given.hidden)?, values::<T>(given.update)?, values::<T>(given.bias)?);
    let (residual, gate) = (values::<T>(given.residual)?, values::<T>(given.gate)?);
    let (tokens, rows) = (values::<T>(given.tokens)?, values::<T>(given.rows)?);
    let sum = Sum {
        hidden: hidden.as_deref().unwrap_or(&[]),
        update: update.as_deref(),
        bias: bias.as_deref(),
        in_place: false,
        k: desc.k,
    };
    let (gate, rows) = (gate.as_deref().unwrap_or(&[]), rows.as_deref().unwrap_or(&[]));
    let scaled = incoming(desc, &dy);
    let back = Back { desc, incoming: scaled.as_deref().unwrap_or(&dy), sum, gate };
    // The gate of each row, and what its logit receives.
    let (gates, dl) = back.rows(rows, tokens.as_deref());
    let (residual_weight, seen_weight) = halves(desc.kind, gate, desc.k);

    if let Some(tensor) = &out.update {
        let mut to = Out::<T>::of(OP, tensor)?;
        let path = desc.kind.looks() && desc.input == GateInput::Updated;
        back.gated(&gates, path.then_some((&dl, seen_weight)), &mut to);
        if let Some(sums) = &out.bias_sums {
            let mut sums = Out::<T>::of(OP, sums)?;
            weighted_sum(desc.m, &to, None, &mut sums);
            sums.finish()?;
        }
        to.finish()?;
    }
    if let Some(tensor) = &out.hidden {
        let mut to = Out::<T>::of(OP, tensor)?;
        back.gated(&gates, Some((&dl, seen_weight)), &mut to);
        to.finish()?;
    }
    if let Some(tensor) = &out.residual {
        let mut to = Out::<T>::of(OP, tensor)?;
        residual_gradient(desc, &dy, (&dl, residual_weight), &mut to);
        to.finish()?;
    }
    if let Some(tensor) = &out.logits {
        let mut to = Out::<T>::of(OP, tensor)?;
        back.logits(&mut to);
        to.finish()?;
    }
    if let Some(tensor) = &out.gate_sums {
        let mut to = Out::<T>::of(OP, tensor)?;
        match desc.kind {
            Kind::MiddleX => back.seen_sums(&dl, residual.as_deref(), &mut to),
            Kind::Small => back.seen_sums(&dl, None, &mut to),
            _ => back.offset_sums(&mut to),
        }
        to.finish()?;
    }
    if let (Some(tensor), Some(residual)) = (&out.residual_sums, &residual) {
        let mut to = Out::<T>::of(OP, tensor)?;
        weighted_sum(desc.m, residual, Some(&dl), &mut to);
        to.finish()?;
    }
    if let Some(tensor) = &out.rows {
        let mut to = Out::<T>::of(OP, tensor)?;
        to.copy_from_slice(&dl);
        to.finish()?;
    }
    Ok(())
}

/// `s · dropout'(dy)`, where that is not dy itself.
fn incoming<T: Real>(desc: &Desc, dy: &[T]) -> Option<Vec<T>> {
    if desc.scale == 1.0 && desc.dropout.is_none() {
        return None;
    }
    let (k, scale) = (desc.k, T::of(desc.scale));
    let mut out = vec![T::of(0.0); dy.len()];
    for_rows(
        &mut out,
        k,
        #[inline(always)]
        |i, row| {
            let s = scale;
            for (o, &dy) in row.iter_mut().zip(&dy[i * k..]) {
                *o = s * dy;
            }
            drop_row(&desc.dropout, i, row);
        },
    );
    Some(out)
}

/// `out[j] = Σ_i weight[i] · x[i, j]`, all weights 1 if absent.
fn weighted_sum<T: Real>(m: usize, x: &[T], weight: Option<&[T]>, out: &mut [T]) {
    let k = out.len();
    ordered(
        m,
        out,
        false,
        T::of(1.0),
        #[inline(always)]
        |i, first, sums| {
            let w = weight.map_or(T::of(1.0), |w| w[i]);
            for (s, &x) in sums.iter_mut().zip(&x[i * k + first..]) {
                *s += w * x;
            }
        },
    );
}

/// `dy + dl ⊗ w`, without dy where R is only looked at.
fn residual_gradient<T: Real>(desc: &Desc, dy: &[T], (dl, w): (&[T], &[T]), out: &mut [T]) {
    let k = desc.k;
    let share = if desc.add_residual { T::of(1.0) } else { T::of(0.0) };
    for_rows(
        out,
        k,
        #[inline(always)]
        |i, row| {
            let (share, dl) = (share, dl[i]);
            if desc.add_residual {
                for ((o, &dy), &w) in row.iter_mut().zip(&dy[i * k..]).zip(w) {
                    *o = share * dy + dl * w;
                }
            } else {
                for (o, &w) in row.iter_mut().zip(w) {
                    *o = dl * w;
                }
            }
        },
    );
}

struct Back<'a, T> {
    desc: &'a Desc,
    /// `s · dropout'(dy)`
    incoming: &'a [T],
    sum: Sum<'a, T>,
    gate: &'a [T],
}

impl<T: Real> Back<'_, T> {
    /// Of MiddleX and Small: the gate of each row, and `dl`.
    fn rows(&self, logits: &[T], tokens: Option<&[T]>) -> (Vec<T>, Vec<T>) {
        let Desc { m, k, kind, tokens: t, .. } = *self.desc;
        if !kind.looks() {
            return (Vec::new(), Vec::new());
        }
        let mut dl = vec![T::of(0.0); m];
        for_each_row(
            &mut dl,
            k,
            #[inline(always)]
            |i| {
                let at = i * k..(i + 1) * k;
                let g = &self.incoming[at.clone()];
                let mut total = dot(g, &self.sum.hidden[at.clone()]);
                if let Some(update) = self.sum.update {
                    total += dot(g, &update[at]);
                }
                if let Some(bias) = self.sum.bias {
                    total += dot(g, bias);
                }
                total
            },
        );
        if kind == Kind::MiddleX {
            let gates: Vec<T> = logits.iter().map(|&l| sigmoid(l)).collect();
            for (dl, &gate) in dl.iter_mut().zip(&gates) {
                *dl *= slope(gate);
            }
            return (gates, dl);
        }
        let (even, of_samples) = (T::of(1.0 / t as f64), sample_gates(self.desc, logits, tokens));
        let mut gates = Vec::with_capacity(m);
        for (sample, &gate) in of_samples.iter().enumerate() {
            let rows = sample * t..(sample + 1) * t;
            let mut total = T::of(0.0);
            for i in rows.clone() {
                total += dl[i];
            }
            for i in rows {
                dl[i] = total * tokens.map_or(even, |p| p[i]) * slope(sigmoid(logits[i]));
                gates.push(gate);
            }
        }
        (gates, dl)
    }

    /// `incoming ⊙ G`, and `dl ⊗ w` where the gate's own gradient flows here too.
    fn gated(&self, gates: &[T], path: Option<(&Vec<T>, &[T])>, out: &mut [T]) {
        let Desc { k, kind, gated, sigmoid: through, .. } = *self.desc;
        for_rows(
            out,
            k,
            #[inline(always)]
            |i, row| {
                let values = row.iter_mut().zip(&self.incoming[i * k..]);
                match kind {
                    Kind::Large => {
                        for ((o, &g), &l) in values.zip(&self.gate[i * k..]) {
                            *o = g * sigmoid(l);
                        }
                    }
                    Kind::MiddleY if !gated => {
                        for (o, &g) in values {
                            *o = g;
                        }
                    }
                    Kind::MiddleY => {
                        for ((o, &g), &z) in values.zip(self.gate) {
                            *o = g * column(z, through);
                        }
                    }
                    Kind::MiddleX | Kind::Small => {
                        let gate = gates[i];
                        for (o, &g) in values {
                            *o = g * gate;
                        }
                    }
                }
                if let Some((dl, w)) = path {
                    let dl = dl[i];
                    for (o, &w) in row.iter_mut().zip(w) {
                        *o += dl * w;
                    }
                }
            },
        );
    }

    /// `incoming ⊙ U ⊙ G ⊙ (1 − G)`
    fn logits(&self, out: &mut [T]) {
        let k = self.desc.k;
        for_rows(
            out,
            k,
            #[inline(always)]
            |i, row| {
                self.sum.row(i, 0, row);
                for ((o, &g), &l) in row.iter_mut().zip(&self.incoming[i * k..]).zip(&self.gate[i * k..]) {
                    *o *= g * slope(sigmoid(l));
                }
            },
        );
    }

    /// `Σ_i incoming_i ⊙ U_i`, times σ' where z goes through one.
    fn offset_sums(&self, out: &mut [T]) {
        let k = self.desc.k;
        ordered(
            self.desc.m,
            out,
            false,
            T::of(1.0),
            #[inline(always)]
            |i, first, sums| {
                let at = i * k + first;
                let g = &self.incoming[at..];
                add_products(sums, g, &self.sum.hidden[at..]);
                if let Some(update) = self.sum.update {
                    add_products(sums, g, &update[at..]);
                }
                if let Some(bias) = self.sum.bias {
                    add_products(sums, g, &bias[first..]);
                }
            },
        );
        if self.desc.sigmoid {
            for (o, &z) in out.iter_mut().zip(self.gate) {
                *o *= slope(sigmoid(z));
            }
        }
    }

    /// `Σ_i dl_i (R + U)_i`, or with H in place of U, or without R.
    fn seen_sums(&self, dl: &[T], residual: Option<&[T]>, out: &mut [T]) {
        let (k, updated) = (self.desc.k, self.desc.input == GateInput::Updated);
        ordered(
            self.desc.m,
            out,
            false,
            T::of(1.0),
            #[inline(always)]
            |i, first, sums| {
                let (at, dl) = (i * k + first, dl[i]);
                add_scaled(sums, dl, &self.sum.hidden[at..]);
                if let Some(residual) = residual {
                    add_scaled(sums, dl, &residual[at..]);
                }
                if let (Some(update), true) = (self.sum.update, updated) {
                    add_scaled(sums, dl, &update[at..]);
                }
                if let (Some(bias), true) = (self.sum.bias, updated) {
                    add_scaled(sums, dl, &bias[first..]);
                }
            },
        );
    }
}
