//! Operands as they are stored: 16-bit ones are widened panel by panel, never as a whole.

use half::{bf16, f16};

use crate::device::HostRead;
use crate::dtype::DType;
use crate::error::Result;
use crate::ops::host::{In, Real};
use crate::tensor::Tensor;

/// A tensor's elements.
pub enum Held<'a, T: Real> {
    F16(HostRead<'a, f16>),
    BF16(HostRead<'a, bf16>),
    Other(In<'a, T>),
}

impl<'a, T: Real> Held<'a, T> {
    pub fn of(op: &'static str, tensor: &'a Tensor) -> Result<Self> {
        Ok(match tensor.dtype() {
            DType::F16 => Held::F16(tensor.read(op)?),
            DType::BF16 => Held::BF16(tensor.read(op)?),
            _ => Held::Other(In::of(op, tensor)?),
        })
    }

    pub fn stored(&self) -> Stored<'_, T> {
        match self {
            Held::F16(values) => Stored::F16(values),
            Held::BF16(values) => Stored::BF16(values),
            Held::Other(values) => Stored::Wide(values),
        }
    }
}

#[derive(Clone, Copy)]
pub enum Stored<'a, T> {
    F16(&'a [f16]),
    BF16(&'a [bf16]),
    Wide(&'a [T]),
}

/// A matrix among stored elements.
#[derive(Clone, Copy)]
pub struct View {
    pub start: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl View {
    /// Columns `0 .. cols` of rows that are `row` elements long, or the same transposed.
    pub fn new(start: usize, cols: usize, row: usize, transposed: bool) -> Self {
        let [row_stride, col_stride] = if transposed { [1, row] } else { [row, 1] };
        View { start, cols, row_stride, col_stride }
    }
}

impl<T: Real> Stored<'_, T> {
    /// Columns `first .. first + width` of a matrix, as far as it has them, as rows of `width`.
    pub fn fill(&self, to: &mut [T], width: usize, view: View, first: usize) {
        match self {
            Stored::Wide(from) => copy(to, width, from, 0, view, first),
            Stored::F16(from) => widened(to, width, from, view, first, T::widen_f16),
            Stored::BF16(from) => widened(to, width, from, view, first, T::widen_bf16),
        }
    }
}

/// Elements that are copied before they are widened: they stay in the first-level cache.
const AT_ONCE: usize = 4096;

fn widened<S: Copy + Default, T>(
    to: &mut [T],
    width: usize,
    from: &[S],
    view: View,
    first: usize,
    widen: impl Fn(&[S], &mut [T]),
) {
    let rows = (AT_ONCE / width).max(1);
    let mut raw = vec![S::default(); (rows * width).min(to.len())];
    for (i, to) in to.chunks_mut(rows * width).enumerate() {
        let raw = &mut raw[..to.len()];
        copy(raw, width, from, i * rows, view, first);
        widen(raw, to);
    }
}

/// From row `top` of the matrix on.
fn copy<S: Copy>(to: &mut [S], width: usize, from: &[S], top: usize, view: View, first: usize) {
    let cols = width.min(view.cols.saturating_sub(first));
    if cols == 0 {
        return;
    }
    for (p, step) in to.chunks_mut(width).enumerate() {
        let row = &from[view.start + (top + p) * view.row_stride + first * view.col_stride..];
        if view.col_stride == 1 {
            step[..cols].copy_from_slice(&row[..cols]);
        } else {
            for (c, s) in step[..cols].iter_mut().enumerate() {
                *s = row[c * view.col_stride];
            }
        }
    }
}
