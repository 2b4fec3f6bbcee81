//! Loops over the lanes that are worth compiling twice: for machines with fused multiply-add vectors and for those without.
//!
//! The two versions give the same bits; only the speed differs. This is the crate's only unsafe code.
#![allow(unsafe_code)]

/// a·b + c on 32 lanes, rounded once.
#[inline]
pub fn fma(a: &[f32; 32], b: &[f32; 32], c: &[f32; 32]) -> [f32; 32] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: (1) the two features were detected on the line above; (2) the function takes and returns plain arrays.
        return unsafe { fma_vector(a, b, c) };
    }
    fma_plain(a, b, c)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_vector(a: &[f32; 32], b: &[f32; 32], c: &[f32; 32]) -> [f32; 32] {
    fma_plain(a, b, c)
}

#[inline(always)]
fn fma_plain(a: &[f32; 32], b: &[f32; 32], c: &[f32; 32]) -> [f32; 32] {
    let mut out = [0.0; 32];
    for i in 0..32 {
        out[i] = a[i].mul_add(b[i], c[i]);
    }
    out
}

/// D[m, n] = C[m, n] + Σ A[m, k]·B[n, k] with products exact in f32 and one rounding for each addition, k ascending.
/// `d` holds m rows of n values; `a` is [m, k], `b` is [k, n].
pub fn matrix(d: &mut [f32], a: &[f32], b: &[f32], m: usize, n: usize, k: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: (1) the two features were detected on the line above; (2) slices are indexed with bounds checks.
        return unsafe { matrix_vector(d, a, b, m, n, k) };
    }
    matrix_plain(d, a, b, m, n, k);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn matrix_vector(d: &mut [f32], a: &[f32], b: &[f32], m: usize, n: usize, k: usize) {
    matrix_plain(d, a, b, m, n, k);
}

#[inline(always)]
fn matrix_plain(d: &mut [f32], a: &[f32], b: &[f32], m: usize, n: usize, k: usize) {
    let mut j = 0;
    while j < n {
        for i in 0..m {
            let mut sum = [0.0f32; 8];
            let row = &mut d[i * n + j..i * n + j + 8];
            sum.copy_from_slice(row);
            for l in 0..k {
                let x = a[i * k + l];
                let y = &b[l * n + j..l * n + j + 8];
                for q in 0..8 {
                    sum[q] = x.mul_add(y[q], sum[q]);
                }
            }
            row.copy_from_slice(&sum);
        }
        j += 8;
    }
}
