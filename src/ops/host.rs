//! What every `cpu.rs` shares: reading tensors in a compute type, writing results back in the storage type, and loops that use the
//! machine's vector units and threads.
//!
//! Ops compute in `f64` for f64 tensors and in `f32` for all others; 16-bit values are widened on the way in and rounded once,
//! to nearest and ties to even, on the way out.

use std::ops::{Deref, DerefMut};
use std::sync::LazyLock;

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use crate::autograd::Target;
use crate::device::{HostRead, HostWrite, Product};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// A type that the reference computes in: `f32` or `f64`.
pub(crate) trait Real: Element + Product + super::halves::Halves + super::math::Math {}

impl Real for f32 {}
impl Real for f64 {}

/// Runs a generic expression in the compute type of a dtype: `with_real!(x.dtype(), "op", T => forward::<T>(...))`.
macro_rules! with_real {
    ($dtype:expr, $op:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::dtype::DType::F64 => {
                type $t = f64;
                $body
            }
            $crate::dtype::DType::F32 | $crate::dtype::DType::F16 | $crate::dtype::DType::BF16 => {
                type $t = f32;
                $body
            }
            got => Err($crate::error::Error::DType { op: $op, argument: "x", expected: "a float type".into(), got }),
        }
    };
}
pub(crate) use with_real;

/// A tensor's elements in the compute type: borrowed when they are stored in it, widened otherwise.
pub(crate) enum In<'a, T: Element> {
    Borrowed(HostRead<'a, T>),
    Widened(Vec<T>),
}

impl<'a, T: Real> In<'a, T> {
    pub fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        if tensor.dtype() == T::DTYPE {
            return Ok(In::Borrowed(tensor.read::<T>(op)?));
        }
        let mut out = vec![T::of(0.0); tensor.numel()];
        match tensor.dtype() {
            DType::F32 => convert(&tensor.read::<f32>(op)?, &mut out, each(|v: f32| T::of(f64::from(v)))),
            DType::F16 => convert(&tensor.read::<f16>(op)?, &mut out, T::widen_f16),
            DType::BF16 => convert(&tensor.read::<bf16>(op)?, &mut out, T::widen_bf16),
            got => return Err(Error::DType { op, argument: "tensor", expected: "a float type".into(), got }),
        }
        Ok(In::Widened(out))
    }
}

/// Converts piece by piece, on several threads when that pays.
#[inline(always)]
fn convert<S: Sync, T: Send>(from: &[S], to: &mut [T], piece: impl Fn(&[S], &mut [T]) + Sync) {
    const PIECE: usize = 4096;
    for_rows(
        to,
        PIECE,
        #[inline(always)]
        |block, to| piece(&from[block * PIECE..][..to.len()], to),
    );
}

/// One element after the other.
fn each<S: Copy, T>(convert: impl Fn(S) -> T) -> impl Fn(&[S], &mut [T]) {
    move |from, to| {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = convert(from);
        }
    }
}

impl<T: Element> Deref for In<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            In::Borrowed(read) => read,
            In::Widened(values) => values,
        }
    }
}

/// A tensor's elements to be written in the compute type; [`Out::finish`] rounds them into storage.
pub(crate) enum Out<'a, T: Element> {
    Direct(HostWrite<'a, T>),
    Staged { values: Vec<T>, target: &'a Tensor, op: &'static str },
}

impl<'a, T: Real> Out<'a, T> {
    /// Contents are unspecified until written.
    pub fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        if tensor.dtype() == T::DTYPE {
            return Ok(Out::Direct(tensor.write::<T>(op)?));
        }
        Ok(Out::Staged { values: vec![T::of(0.0); tensor.numel()], target: tensor, op })
    }

    /// Holds the tensor's present values, to be added to.
    pub fn adding(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        if tensor.dtype() == T::DTYPE {
            return Ok(Out::Direct(tensor.write::<T>(op)?));
        }
        let values = In::<T>::of(op, tensor)?.to_vec();
        Ok(Out::Staged { values, target: tensor, op })
    }

    /// Where a gradient goes: the present values when it is to be added to them.
    pub fn into(op: &'static str, target: &'a Target) -> Result<Self> {
        if target.accumulate { Out::adding(op, &target.tensor) } else { Out::of(op, &target.tensor) }
    }

    pub fn finish(self) -> Result<()> {
        let Out::Staged { values, target, op } = self else { return Ok(()) };
        match target.dtype() {
            DType::F32 => convert(&values, &mut target.write::<f32>(op)?, each(|v: T| v.to_f64() as f32)),
            DType::F16 => convert(&values, &mut target.write::<f16>(op)?, T::narrow_f16),
            DType::BF16 => convert(&values, &mut target.write::<bf16>(op)?, T::narrow_bf16),
            got => return Err(Error::DType { op, argument: "output", expected: "a float type".into(), got }),
        }
        Ok(())
    }
}

impl<T: Element> Deref for Out<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Out::Direct(write) => write,
            Out::Staged { values, .. } => values,
        }
    }
}

impl<T: Element> DerefMut for Out<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Out::Direct(write) => write,
            Out::Staged { values, .. } => values,
        }
    }
}

struct Vectorised<F>(F);

impl<R, F: FnOnce() -> R> WithSimd for Vectorised<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> R {
        (self.0)()
    }
}

static ARCH: LazyLock<Arch> = LazyLock::new(Arch::new);

/// Runs `body` compiled for the widest vector unit this machine has. `body` must be `#[inline(always)]` all the way down: write
/// loops with `for`, since a closure given to `for_each` may be compiled once, for the narrowest.
#[inline(always)]
pub(crate) fn vectorised<R>(body: impl FnOnce() -> R) -> R {
    ARCH.dispatch(Vectorised(body))
}

struct Fuses;

impl WithSimd for Fuses {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> bool {
        // Of the vector units that loops are compiled for, all of 64-bit ARM and those of x86 with wide registers.
        cfg!(target_arch = "aarch64") || size_of::<S::f32s>() >= 32
    }
}

/// Whether [`vectorised`] code has an instruction that multiplies and adds; without one, `mul_add` is a slow call.
pub(crate) fn fuses() -> bool {
    ARCH.dispatch(Fuses)
}

/// Below this many elements a loop stays on one thread: handing out work takes some ten microseconds, in which one core adds up
/// about as many.
const PARALLEL_FROM: usize = 64 * 1024;
/// Elements that a thread takes at a time.
const SHARE: usize = 8 * 1024;

/// Calls `body(index, row)` for every row of `width` elements, on several threads when that pays. Rows are independent, so the
/// result does not depend on the number of threads.
pub(crate) fn for_rows<T: Send>(out: &mut [T], width: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    let width = width.max(1);
    if out.len() < PARALLEL_FROM {
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in out.chunks_mut(width).enumerate() {
                    body(i, row);
                }
            },
        );
        return;
    }
    let rows_each = (SHARE / width).max(1);
    out.par_chunks_mut(width * rows_each).enumerate().for_each(|(block, rows)| {
        vectorised(
            #[inline(always)]
            || {
                for (i, row) in rows.chunks_mut(width).enumerate() {
                    body(block * rows_each + i, row);
                }
            },
        )
    });
}

/// `out[i] = of(i)` for functions that read `width` elements each, on several threads when that pays.
pub(crate) fn for_each_row<T: Send>(out: &mut [T], width: usize, of: impl Fn(usize) -> T + Sync) {
    let each = (SHARE / width.max(1)).max(1);
    let some = |(block, out): (usize, &mut [T])| {
        vectorised(
            #[inline(always)]
            || {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = of(block * each + i);
                }
            },
        )
    };
    if out.len().saturating_mul(width) < PARALLEL_FROM {
        out.chunks_mut(each).enumerate().for_each(some);
    } else {
        out.par_chunks_mut(each).enumerate().for_each(some);
    }
}

/// As [`for_rows`], with rows of two outputs at a time: `a_width` elements of `a` and `b_width` of `b`.
pub(crate) fn for_row_pairs<A: Send, B: Send>(
    (a, a_width): (&mut [A], usize),
    (b, b_width): (&mut [B], usize),
    body: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (a_width, b_width) = (a_width.max(1), b_width.max(1));
    let parallel = a.len() >= PARALLEL_FROM;
    let rows_each = if parallel { (SHARE / a_width).max(1) } else { (a.len() / a_width).max(1) };
    let group = |(block, (a, b)): (usize, (&mut [A], &mut [B]))| {
        vectorised(
            #[inline(always)]
            || {
                for (i, (a, b)) in a.chunks_mut(a_width).zip(b.chunks_mut(b_width)).enumerate() {
                    body(block * rows_each + i, a, b);
                }
            },
        )
    };
    if parallel {
        let groups = a.par_chunks_mut(a_width * rows_each).zip(b.par_chunks_mut(b_width * rows_each));
        groups.enumerate().for_each(group);
    } else {
        a.chunks_mut(a_width * rows_each).zip(b.chunks_mut(b_width * rows_each)).enumerate().for_each(group);
    }
}

/// `sums[j] += Σ_i values[i, j]` over rows of `width`, in row order within fixed blocks of rows, then in block order.
fn add_column_sums<T: Real>(values: &[T], width: usize, sums: &mut [T]) {
    const ROWS: usize = 256;
    let partial: Vec<Vec<T>> = values
        .par_chunks(ROWS * width.max(1))
        .map(|block| {
            let mut sum = vec![T::of(0.0); width];
            for row in block.chunks(width) {
                for (s, &v) in sum.iter_mut().zip(row) {
                    *s += v;
                }
            }
            sum
        })
        .collect();
    for sum in partial {
        for (s, v) in sums.iter_mut().zip(sum) {
            *s += v;
        }
    }
}

/// `target (+)= Σ_rows values`: the gradient of a bias.
pub(crate) fn sum_columns<T: Real>(op: &'static str, values: &Tensor, width: usize, target: &Target) -> Result<()> {
    let values = In::<T>::of(op, values)?;
    let mut out = Out::<T>::into(op, target)?;
    if !target.accumulate {
        out.fill(T::of(0.0));
    }
    add_column_sums(&values, width, &mut out);
    out.finish()
}
