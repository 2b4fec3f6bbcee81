//! Matrix products on host memory: a checked, safe face over the `gemm` crates.

use gemm_common::Parallelism;

/// A matrix to read: element (i, j) lies at `i · row_stride + j · col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    pub data: &'a [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

/// A matrix to write, rows of neighbouring elements `row_stride` apart.
pub(crate) struct MatMut<'a, T> {
    pub data: &'a mut [T],
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// Row-major `[rows, cols]`.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        Mat { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    pub fn t(self) -> Self {
        Mat { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn reach(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            0
        } else {
            (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
        }
    }
}

impl<'a, T> MatMut<'a, T> {
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        MatMut { data, rows, cols, row_stride: cols }
    }

    fn reach(&self) -> usize {
        if self.rows == 0 || self.cols == 0 { 0 } else { (self.rows - 1) * self.row_stride + self.cols }
    }
}

/// A float type that has a product.
pub(crate) trait Product: Copy + Send + Sync + 'static {
    /// `out = keep · out + scale · lhs · rhs`. With `keep` absent, `out` is not read.
    ///
    /// # Safety
    /// The shapes agree and every stride stays inside its slice; [`checked`] sees to both.
    unsafe fn product(
        out: MatMut<'_, Self>,
        keep: Option<Self>,
        lhs: Mat<'_, Self>,
        rhs: Mat<'_, Self>,
        scale: Self,
        threads: Parallelism,
    );
}

/// Multiplications below which one thread is faster than two: waking another takes about as long as it would save.
const PARALLEL_FROM: usize = 5 << 19;

fn parallelism(m: usize, n: usize, k: usize) -> Parallelism {
    if m.saturating_mul(n).saturating_mul(k) < PARALLEL_FROM { Parallelism::None } else { Parallelism::Rayon(0) }
}

macro_rules! product {
    ($type:ty, $function:path) => {
        impl Product for $type {
            unsafe fn product(
                out: MatMut<'_, Self>,
                keep: Option<Self>,
                lhs: Mat<'_, Self>,
                rhs: Mat<'_, Self>,
                scale: Self,
                threads: Parallelism,
            ) {
                if lhs.cols == 0 {
                    // A sum of nothing: zero, or what is kept.
                    return out.data.iter_mut().for_each(|v| *v = keep.map_or(0.0, |keep| keep * *v));
                }
                // SAFETY: 1. `checked` has seen that shapes agree and that strides stay inside the slices; 2. `out` is an
                // exclusive borrow, so it overlaps neither operand; 3. strides are below isize::MAX, as slice lengths are.
                unsafe {
                    $function()(
                        out.rows,
                        out.cols,
                        lhs.cols,
                        out.data.as_mut_ptr(),
                        1,
                        out.row_stride as isize,
                        keep.is_some(),
                        lhs.data.as_ptr(),
                        lhs.col_stride as isize,
                        lhs.row_stride as isize,
                        rhs.data.as_ptr(),
                        rhs.col_stride as isize,
                        rhs.row_stride as isize,
                        keep.unwrap_or(0.0),
                        scale,
                        false,
                        false,
                        false,
                        threads,
                    )
                }
            }
        }
    };
}

product!(f32, gemm_f32::gemm::f32::get_gemm_fn);
product!(f64, gemm_f64::gemm::f64::get_gemm_fn);

/// `out = keep · out + scale · lhs · rhs`, on several threads when that pays.
///
/// # Panics
/// On shapes that disagree: callers are this crate's ops, whose descriptions have validated them.
pub(crate) fn gemm<T: Product>(out: MatMut<'_, T>, keep: Option<T>, lhs: Mat<'_, T>, rhs: Mat<'_, T>, scale: T) {
    let threads = parallelism(out.rows, out.cols, lhs.cols);
    checked(out, keep, lhs, rhs, scale, threads);
}

/// As [`gemm`] on the calling thread alone: for one of many products that run side by side.
pub(crate) fn gemm_alone<T: Product>(out: MatMut<'_, T>, keep: Option<T>, lhs: Mat<'_, T>, rhs: Mat<'_, T>, scale: T) {
    checked(out, keep, lhs, rhs, scale, Parallelism::None);
}

fn checked<T: Product>(
    out: MatMut<'_, T>,
    keep: Option<T>,
    lhs: Mat<'_, T>,
    rhs: Mat<'_, T>,
    scale: T,
    threads: Parallelism,
) {
    assert!(lhs.cols == rhs.rows && out.rows == lhs.rows && out.cols == rhs.cols, "shapes of a product disagree");
    assert!(out.row_stride >= out.cols, "rows of a product's output overlap");
    assert!(out.data.len() >= out.reach(), "output of a product is too short");
    assert!(lhs.data.len() >= lhs.reach() && rhs.data.len() >= rhs.reach(), "operand of a product is too short");
    if out.rows == 0 || out.cols == 0 {
        return;
    }
    // SAFETY: just checked.
    unsafe { T::product(out, keep, lhs, rhs, scale, threads) }
}
