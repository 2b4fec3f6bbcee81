//! The reference: a query at a time; the gradient of the maps a batch item at a time, its queries in order.

use super::{Desc, LOGITS, Level, MAX_SAMPLES, OFFSETS, OP, Operands, VALUE};
use crate::autograd::{Sinks, Target};
use crate::error::Result;
use crate::ops::host::{In, Out, Real, for_row_pairs, for_rows};
use crate::tensor::Tensor;

/// Where a head looks, and how much it makes of it.
#[derive(Clone, Copy)]
struct Sample<T> {
    x: T,
    y: T,
    a: T,
}

/// The values of all operands but the maps.
struct Places<'a, T> {
    offsets: &'a [T],
    logits: &'a [T],
    references: &'a [T],
}

impl<T: Real> Places<'_, T> {
    /// The samples of one head of query `query` of the batch.
    #[inline(always)]
    fn of(&self, desc: &Desc, query: usize, head: usize) -> [Sample<T>; MAX_SAMPLES] {
        let (count, zero, half) = (desc.samples(), T::of(0.0), T::of(0.5));
        let mut out = [Sample { x: zero, y: zero, a: zero }; MAX_SAMPLES];
        let at = (query * desc.heads + head) * count;
        let (logits, offsets) = (&self.logits[at..at + count], &self.offsets[2 * at..2 * (at + count)]);
        let reference = &self.references[query % desc.q * 2..][..2];
        let mut most = logits[0];
        for &logit in logits {
            most = most.maximum(logit);
        }
        let mut sum = zero;
        for (i, &logit) in logits.iter().enumerate() {
            let Level { width, height, .. } = desc.levels[i / desc.points];
            let x = reference[0] * T::of(width as f64) + offsets[2 * i] - half;
            let y = reference[1] * T::of(height as f64) + offsets[2 * i + 1] - half;
            out[i] = Sample { x, y, a: (logit - most).exp() };
            sum += out[i].a;
        }
        for sample in &mut out[..count] {
            sample.a = sample.a / sum;
        }
        out
    }
}

/// The four cells around a place: their tokens, and the shares of the right and the lower ones.
struct Corners<T> {
    tokens: [Option<usize>; 4],
    fx: T,
    fy: T,
}

impl<T: Real> Corners<T> {
    #[inline(always)]
    fn of(level: &Level, x: T, y: T) -> Self {
        // Beyond one cell outside nothing is found; a bound keeps the conversion to whole numbers defined. NaN goes to the lower one.
        let bound = |v: f64, extent: usize| v.max(-2.0).min(extent as f64 + 1.0);
        let (x, y) = (bound(x.to_f64(), level.width), bound(y.to_f64(), level.height));
        let (left, top) = (x.floor(), y.floor());
        let cell = |i: usize| {
            let (cx, cy) = (left as i64 + (i % 2) as i64, top as i64 + (i / 2) as i64);
            let inside = cx >= 0 && cy >= 0 && cx < level.width as i64 && cy < level.height as i64;
            inside.then(|| level.first + cy as usize * level.width + cx as usize)
        };
        Corners { tokens: [cell(0), cell(1), cell(2), cell(3)], fx: T::of(x - left), fy: T::of(y - top) }
    }

    #[inline(always)]
    fn weight(&self, i: usize) -> T {
        let one = T::of(1.0);
        (if i % 2 == 1 { self.fx } else { one - self.fx }) * (if i / 2 == 1 { self.fy } else { one - self.fy })
    }
}

/// 0, or NaN for a place that is not a number.
#[inline(always)]
fn wrong<T: Real>(sample: &Sample<T>) -> T {
    let nan = sample.x.to_f64().is_nan() || sample.y.to_f64().is_nan();
    T::of(if nan { f64::NAN } else { 0.0 })
}

pub fn forward<T: Real>(desc: &Desc, operands: &Operands, o: &Tensor) -> Result<()> {
    let value = In::<T>::of(OP, operands.value)?;
    let (offsets, logits) = (In::<T>::of(OP, operands.offsets)?, In::<T>::of(OP, operands.logits)?);
    let references = In::<T>::of(OP, operands.references)?;
    let places = Places { offsets: &offsets, logits: &logits, references: &references };
    let mut out = Out::<T>::of(OP, o)?;
    let (value, width, d): (&[T], usize, usize) = (&value, desc.width(), desc.d);
    for_rows(
        &mut out,
        width,
        #[inline(always)]
        |query, row| {
            let value = &value[query / desc.q * desc.s * width..][..desc.s * width];
            for (head, out) in row.chunks_exact_mut(d).enumerate() {
                out.fill(T::of(0.0));
                let samples = places.of(desc, query, head);
                for (i, sample) in samples[..desc.samples()].iter().enumerate() {
                    let corners = Corners::of(&desc.levels[i / desc.points], sample.x, sample.y);
                    let wrong = sample.a * wrong(sample);
                    for o in out.iter_mut() {
                        *o += wrong;
                    }
                    for (k, token) in corners.tokens.iter().enumerate() {
                        let Some(token) = token else { continue };
                        let factor = sample.a * corners.weight(k);
                        for (o, &v) in out.iter_mut().zip(&value[token * width + head * d..][..d]) {
                            *o += factor * v;
                        }
                    }
                }
            }
        },
    );
    out.finish()
}

pub fn backward<T: Real>(desc: &Desc, operands: &Operands, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
    let value = In::<T>::of(OP, operands.value)?;
    let (offsets, logits) = (In::<T>::of(OP, operands.offsets)?, In::<T>::of(OP, operands.logits)?);
    let (references, dy) = (In::<T>::of(OP, operands.references)?, In::<T>::of(OP, dy)?);
    let places = Places { offsets: &offsets, logits: &logits, references: &references };
    if sinks.wants(OFFSETS) || sinks.wants(LOGITS) {
        let [d_offsets, d_logits] = slopes(desc, &value, &places, &dy);
        for (input, slopes) in [(OFFSETS, d_offsets), (LOGITS, d_logits)] {
            if let Some(target) = sinks.open(input)? {
                add(&target, &slopes)?;
            }
        }
    }
    match sinks.open(VALUE)? {
        Some(target) => maps(desc, &places, &dy, &target),
        None => Ok(()),
    }
}

fn add<T: Real>(target: &Target, slopes: &[T]) -> Result<()> {
    let mut out = Out::<T>::into(OP, target)?;
    for (o, &slope) in out.iter_mut().zip(slopes) {
        *o = if target.accumulate { *o + slope } else { slope };
    }
    out.finish()
}

/// dΔ and dlogits.
fn slopes<T: Real>(desc: &Desc, value: &[T], places: &Places<T>, dy: &[T]) -> [Vec<T>; 2] {
    let (count, width, d, zero, one) = (desc.samples(), desc.width(), desc.d, T::of(0.0), T::of(1.0));
    let all = desc.b * desc.q * desc.heads * count;
    let (mut d_offsets, mut d_logits) = (vec![zero; 2 * all], vec![zero; all]);
    for_row_pairs(
        (&mut d_offsets, 2 * desc.heads * count),
        (&mut d_logits, desc.heads * count),
        #[inline(always)]
        |query, d_offsets, d_logits| {
            let value = &value[query / desc.q * desc.s * width..][..desc.s * width];
            for head in 0..desc.heads {
                let dy = &dy[query * width + head * d..][..d];
                let samples = places.of(desc, query, head);
                let d_offsets = &mut d_offsets[2 * head * count..][..2 * count];
                let d_logits = &mut d_logits[head * count..][..count];
                let mut mean = zero;
                for (i, sample) in samples[..count].iter().enumerate() {
                    let corners = Corners::of(&desc.levels[i / desc.points], sample.x, sample.y);
                    let mut dots = [zero; 4];
                    for (dot, token) in dots.iter_mut().zip(corners.tokens) {
                        let Some(token) = token else { continue };
                        for (&g, &v) in dy.iter().zip(&value[token * width + head * d..][..d]) {
                            *dot += g * v;
                        }
                    }
                    let (fx, fy, wrong) = (corners.fx, corners.fy, wrong(sample));
                    let mut found = wrong;
                    for (k, &dot) in dots.iter().enumerate() {
                        found += corners.weight(k) * dot;
                    }
                    let along_x = (one - fy) * (dots[1] - dots[0]) + fy * (dots[3] - dots[2]);
                    let along_y = (one - fx) * (dots[2] - dots[0]) + fx * (dots[3] - dots[1]);
                    d_offsets[2 * i] = sample.a * (wrong + along_x);
                    d_offsets[2 * i + 1] = sample.a * (wrong + along_y);
                    d_logits[i] = found;
                    mean += sample.a * found;
                }
                for (slope, sample) in d_logits.iter_mut().zip(&samples) {
                    *slope = sample.a * (*slope - mean);
                }
            }
        },
    );
    [d_offsets, d_logits]
}

/// dV.
fn maps<T: Real>(desc: &Desc, places: &Places<T>, dy: &[T], target: &Target) -> Result<()> {
    let (width, d) = (desc.width(), desc.d);
    let mut out = Out::<T>::into(OP, target)?;
    for_rows(
        &mut out,
        desc.s * width,
        #[inline(always)]
        |item, out| {
            if !target.accumulate {
                out.fill(T::of(0.0));
            }
            for query in item * desc.q..(item + 1) * desc.q {
                for head in 0..desc.heads {
                    let dy = &dy[query * width + head * d..][..d];
                    let samples = places.of(desc, query, head);
                    for (i, sample) in samples[..desc.samples()].iter().enumerate() {
                        let corners = Corners::of(&desc.levels[i / desc.points], sample.x, sample.y);
                        for (k, token) in corners.tokens.iter().enumerate() {
                            let Some(token) = token else { continue };
                            let factor = sample.a * corners.weight(k);
                            for (o, &g) in out[token * width + head * d..][..d].iter_mut().zip(dy) {
                                *o += factor * g;
                            }
                        }
                    }
                }
            }
        },
    );
    out.finish()
}
