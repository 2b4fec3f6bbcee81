//! The reference: row by row of W, a block's part of the row at a time.

use super::{Desc, Factors, OP};
use crate::error::Result;
use crate::ops::host::{In, Out, Real};
use crate::ops::lanes::dot;
use crate::tensor::Tensor;

/// One block's part of one row of W: where it lies, and the numbers of the factors that meet there.
#[derive(Clone, Copy)]
struct Part {
    /// First of its elements in W.
    at: usize,
    /// Row of L.
    o: usize,
    q: usize,
    p: usize,
}

/// Every part of every row, in the order in which they lie in W.
fn parts(desc: &Desc) -> impl Iterator<Item = Part> {
    let Desc { n, k, h, .. } = *desc;
    (0..h * n * h).map(move |i| Part { at: i * k, o: i / h % n, q: i / h / n, p: i % h })
}

impl Part {
    /// Where A_i[q, p] lies, for the rank `ir` of all ranks.
    fn rule(&self, desc: &Desc, ir: usize) -> usize {
        (ir / desc.r * desc.h + self.q) * desc.h + self.p
    }
}

pub fn forward<T: Real>(desc: &Desc, factors: &Factors, w: &Tensor) -> Result<()> {
    let (rule, left) = (In::<T>::of(OP, &factors.rule)?, In::<T>::of(OP, &factors.left)?);
    let right = In::<T>::of(OP, &factors.right)?;
    let mut out = Out::<T>::of(OP, w)?;
    let (k, ranks) = (desc.k, desc.ranks());
    for part in parts(desc) {
        let row = &mut out[part.at..part.at + k];
        row.fill(T::of(0.0));
        for ir in 0..ranks {
            let factor = rule[part.rule(desc, ir)] * left[part.o * ranks + ir];
            add_scaled(row, factor, &right[ir * k..(ir + 1) * k]);
        }
    }
    out.finish()
}

pub fn backward<T: Real>(desc: &Desc, factors: &Factors, dw: &Tensor, out: &Factors) -> Result<()> {
    let (rule, left) = (In::<T>::of(OP, &factors.rule)?, In::<T>::of(OP, &factors.left)?);
    let (right, dw) = (In::<T>::of(OP, &factors.right)?, In::<T>::of(OP, dw)?);
    let (mut d_rule, mut d_left) = (Out::<T>::of(OP, &out.rule)?, Out::<T>::of(OP, &out.left)?);
    let mut d_right = Out::<T>::of(OP, &out.right)?;
    for sums in [&mut d_rule, &mut d_left, &mut d_right] {
        sums.fill(T::of(0.0));
    }
    let (k, ranks) = (desc.k, desc.ranks());
    for part in parts(desc) {
        let row = &dw[part.at..part.at + k];
        for ir in 0..ranks {
            let (a, l) = (part.rule(desc, ir), part.o * ranks + ir);
            let along = dot(row, &right[ir * k..(ir + 1) * k]);
            d_left[l] += rule[a] * along;
            d_rule[a] += left[l] * along;
            add_scaled(&mut d_right[ir * k..(ir + 1) * k], rule[a] * left[l], row);
        }
    }
    d_rule.finish()?;
    d_left.finish()?;
    d_right.finish()
}

/// `sums += factor · v`
#[inline(always)]
fn add_scaled<T: Real>(sums: &mut [T], factor: T, v: &[T]) {
    for (s, &v) in sums.iter_mut().zip(v) {
        *s += factor * v;
    }
}
