//! The reference: chunks that fit the first-level cache, each taken through the whole formula at once.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Buffers, Desc, OP};
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::host::{Real, vectorised};
use crate::ops::lanes;

/// Elements that one step of the loop takes.
const CHUNK: usize = 1024;
/// Fewer elements than this stay on one thread.
const PARALLEL_FROM: usize = 16 * 1024;

pub fn step<T: Real>(desc: &Desc, buffers: &Buffers) -> Result<()> {
    let clip = if desc.measure_norm { clip_factor::<T>(desc, buffers)? } else { T::of(1.0) };
    let mut params = buffers.params.write::<T>(OP)?;
    let mut grads = buffers.grads.write::<T>(OP)?;
    let mut m = buffers.m.write::<T>(OP)?;
    let mut v = buffers.v.write::<T>(OP)?;
    let chunks = Chunks { params: &mut params, grads: &mut grads, m: &mut m, v: &mut v };
    let working = buffers.working.filter(|_| desc.working.is_some());
    match (desc.working, working) {
        (Some(DType::F16), Some(working)) => {
            let mut working = working.write::<f16>(OP)?;
            chunks.run(desc, clip, &mut working, |to, from| {
                to.convert_from_f32_slice(bytemuck::cast_slice(from));
            });
        }
        (Some(_), Some(working)) => {
            let mut working = working.write::<bf16>(OP)?;
            chunks.run(desc, clip, &mut working, |to, from| {
                to.convert_from_f32_slice(bytemuck::cast_slice(from));
            });
        }
        _ => {
            // Zero-sized elements: the loop has nothing to write beside the parameters.
            let mut nothing = vec![(); desc.n];
            chunks.run(desc, clip, &mut nothing, |_, _| {});
        }
    }
    Ok(())
}

/// Writes ‖g‖ and gives the factor that brings it down to the limit. NaN stays NaN.
fn clip_factor<T: Real>(desc: &Desc, buffers: &Buffers) -> Result<T> {
    let grads = buffers.grads.read::<T>(OP)?;
    let grads: &[T] = &grads;
    let mut partials = buffers.scratch.partials.write::<T>(OP)?;
    let piece = desc.piece();
    let sum = |(i, partial): (usize, &mut T)| {
        let part = &grads[i * piece..desc.n.min((i + 1) * piece)];
        *partial = vectorised(
            #[inline(always)]
            || lanes::sum(part, |g| g * g),
        );
    };
    let partials = &mut partials[..desc.partials()];
    if desc.n < PARALLEL_FROM {
        partials.iter_mut().enumerate().for_each(sum);
    } else {
        partials.par_iter_mut().enumerate().for_each(sum);
    }
    let norm = lanes::sum(partials, |p| p).sqrt();
    buffers.scratch.norm.write::<T>(OP)?[0] = norm;
    let Some(clip) = desc.clip else { return Ok(T::of(1.0)) };
    let factor = T::of(clip) / (norm + T::of(1e-6));
    Ok(if factor > T::of(1.0) { T::of(1.0) } else { factor })
}

struct Chunks<'a, T> {
    params: &'a mut [T],
    grads: &'a mut [T],
    m: &'a mut [T],
    v: &'a mut [T],
}

impl<T: Real> Chunks<'_, T> {
    /// `copy` rounds a finished chunk of parameters into the working copy.
    fn run<W: Send>(self, desc: &Desc, clip: T, working: &mut [W], copy: impl Fn(&mut [W], &[T]) + Sync) {
        let one = |(index, ((((p, g), m), v), w)): (usize, Chunk<'_, T, W>)| {
            let mut begin = 0;
            for rates in &desc.rates[..desc.groups] {
                let end = rates.end.saturating_sub(index * CHUNK).min(p.len());
                if end > begin {
                    let at = begin..end;
                    let (keep, step) = (T::of(rates.keep), T::of(rates.step));
                    let part = (&mut p[at.clone()], &mut g[at.clone()], &mut m[at.clone()], &mut v[at]);
                    vectorised(
                        #[inline(always)]
                        || update(desc, clip, keep, step, part),
                    );
                    begin = end;
                }
            }
            copy(w, p);
        };
        let Chunks { params, grads, m, v } = self;
        if desc.n < PARALLEL_FROM {
            let chunks = params.chunks_mut(CHUNK).zip(grads.chunks_mut(CHUNK)).zip(m.chunks_mut(CHUNK));
            chunks.zip(v.chunks_mut(CHUNK)).zip(working.chunks_mut(CHUNK)).enumerate().for_each(one);
        } else {
            let chunks = params.par_chunks_mut(CHUNK).zip(grads.par_chunks_mut(CHUNK)).zip(m.par_chunks_mut(CHUNK));
            chunks.zip(v.par_chunks_mut(CHUNK)).zip(working.par_chunks_mut(CHUNK)).enumerate().for_each(one);
        }
    }
}

type Chunk<'a, T, W> = ((((&'a mut [T], &'a mut [T]), &'a mut [T]), &'a mut [T]), &'a mut [W]);

#[inline(always)]
fn update<T: Real>(desc: &Desc, clip: T, keep: T, step: T, (p, g, m, v): (&mut [T], &mut [T], &mut [T], &mut [T])) {
    let (first, second) = (T::of(1.0 - desc.beta1), T::of(1.0 - desc.beta2));
    let (beta2, root, eps) = (T::of(desc.beta2), T::of(desc.root_correction), T::of(desc.eps));
    for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let scaled = *g * clip;
        *m += first * (scaled - *m);
        *v = beta2 * *v + second * (scaled * scaled);
        *p = *p * keep - step * *m / (v.sqrt() / root + eps);
        *g = if desc.zero_grads { T::of(0.0) } else { *g };
    }
}
