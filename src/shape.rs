//! Shapes and strides at run time. Every product is checked: a size that overflows is an error, never a wrap.

use smallvec::SmallVec;

use crate::error::{Error, Result};

/// Dimensions, outermost first. Up to five stay on the stack.
pub type Dims = SmallVec<[usize; 5]>;

/// Number of elements of `dims`, refused when `numel · item_bytes` exceeds what one allocation may hold.
pub fn checked_numel(op: &'static str, dims: &[usize], item_bytes: usize) -> Result<usize> {
    let overflow = || Error::SizeOverflow { op, dims: dims.to_vec() };
    // A zero-sized tensor is fine however large its other dimensions are, so zeros are looked for first.
    if dims.contains(&0) {
        return Ok(0);
    }
    let numel = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    let bytes = numel.checked_mul(item_bytes).ok_or_else(overflow)?;
    if bytes > isize::MAX as usize { Err(overflow()) } else { Ok(numel) }
}

/// Strides, in elements, of a row-major tensor with nothing between its elements.
pub fn contiguous_strides(dims: &[usize]) -> Dims {
    let mut strides: Dims = smallvec::smallvec![1; dims.len()];
    for i in (0..dims.len().saturating_sub(1)).rev() {
        strides[i] = strides[i + 1].saturating_mul(dims[i + 1].max(1));
    }
    strides
}

/// Where the elements of a view lie in its buffer. Strides and offset count elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub dims: Dims,
    pub strides: Dims,
    pub offset: usize,
}

impl Layout {
    pub fn contiguous(dims: &[usize]) -> Self {
        Layout { dims: Dims::from_slice(dims), strides: contiguous_strides(dims), offset: 0 }
    }

    /// Saturates only for shapes that `checked_numel` has refused already.
    pub fn numel(&self) -> usize {
        if self.dims.contains(&0) { 0 } else { self.dims.iter().fold(1, |n: usize, &d| n.saturating_mul(d)) }
    }

    /// Row-major with nothing between elements. A dimension of length 1 may have any stride, and a view of nothing any strides.
    pub fn is_contiguous(&self) -> bool {
        if self.dims.contains(&0) {
            return true;
        }
        let mut expected = 1usize;
        for (&d, &s) in self.dims.iter().zip(&self.strides).rev() {
            if d != 1 && s != expected {
                return false;
            }
            expected = expected.saturating_mul(d);
        }
        true
    }

    /// One past the furthest element that the view reaches, counted from the buffer's start.
    pub fn end(&self) -> usize {
        if self.numel() == 0 {
            return self.offset;
        }
        let reach: usize = self.dims.iter().zip(&self.strides).map(|(&d, &s)| (d - 1) * s).sum();
        self.offset + reach + 1
    }

    /// Keeps `range` of dimension `dim`.
    pub fn slice(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        let fits = dim < self.dims.len() && start.checked_add(len).is_some_and(|end| end <= self.dims[dim]);
        if !fits {
            let expected = format!("a part of dimension {dim} of shape {:?}", self.dims);
            return Err(Error::value("slice", "range", expected, format!("{start}..{start}+{len}")));
        }
        let mut out = self.clone();
        out.dims[dim] = len;
        // A view of nothing stays where it is: moved, it could point past its buffer.
        if out.numel() > 0 {
            out.offset += start * self.strides[dim];
        }
        Ok(out)
    }

    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        if a >= self.dims.len() || b >= self.dims.len() {
            let expected = format!("two dimensions below {}", self.dims.len());
            return Err(Error::value("transpose", "dims", expected, format!("{a}, {b}")));
        }
        let mut out = self.clone();
        out.dims.swap(a, b);
        out.strides.swap(a, b);
        Ok(out)
    }

    /// Buffer positions of all elements, in row-major order of the view.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        let mut index: Dims = smallvec::smallvec![0; self.dims.len()];
        let mut position = self.offset;
        (0..self.numel()).map(move |_| {
            let here = position;
            for d in (0..index.len()).rev() {
                index[d] += 1;
                position += self.strides[d];
                if index[d] < self.dims[d] {
                    break;
                }
                position -= self.strides[d] * self.dims[d];
                index[d] = 0;
            }
            here
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_that_overflow_are_refused() {
        assert!(checked_numel("t", &[usize::MAX, 2], 1).is_err());
        assert!(checked_numel("t", &[1 << 62], 4).is_err());
        assert_eq!(checked_numel("t", &[usize::MAX, 0], 4).unwrap(), 0);
        assert_eq!(checked_numel("t", &[], 4).unwrap(), 1);
    }

    #[test]
    fn empty_slices_stay_inside_their_buffer() {
        assert_eq!(Layout::contiguous(&[3, 0]).slice(0, 1, 2).unwrap().end(), 0);
        let column = Layout::contiguous(&[3, 2]).slice(1, 1, 1).unwrap();
        assert!(column.slice(0, 3, 0).unwrap().end() <= 6);
    }

    #[test]
    fn transposed_views_walk_in_view_order() {
        let t = Layout::contiguous(&[2, 3]).transpose(0, 1).unwrap();
        assert!(!t.is_contiguous());
        assert_eq!(t.positions().collect::<Vec<_>>(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(t.end(), 6);
    }
}
