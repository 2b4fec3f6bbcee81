//! The CPU paths beside what they cannot beat: the bare matrix product, the bare copy.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use graftwork::autograd::{Tape, Var};
use graftwork::ops::{LowRank, frozen_linear};
use graftwork::tensor::{FrozenWeight, ParamSet};
use graftwork::testing::normal;
use graftwork::{DType, Device, Tensor};

fn tensor(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_slice(&Device::cpu(), dims, &normal(name, dims.iter().product())).unwrap()
}

fn constant(name: &str, dims: &[usize]) -> Var {
    Var::constant(tensor(name, dims))
}

/// `out = x wᵀ` by the `gemm` crate alone.
fn bare_product(m: usize, n: usize, k: usize, x: &[f32], w: &[f32], out: &mut [f32]) {
    assert!(x.len() == m * k && w.len() == n * k && out.len() == m * n);
    // SAFETY: lengths were just checked against the shapes, and strides are row-major within them.
    unsafe {
        gemm_f32::gemm::f32::get_gemm_fn()(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            x.as_ptr(),
            1,
            k as isize,
            w.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm_common::Parallelism::Rayon(0),
        )
    }
}

fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("frozen_linear_forward");
    let params = ParamSet::none(&Device::cpu(), DType::F32).unwrap();
    for (m, n, k, r) in [(512, 768, 768, 8), (544, 64, 64, 8), (544, 128, 64, 8)] {
        let shape = format!("{m}x{n}x{k}");
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        let (x, w, bias) = (constant("x", &[m, k]), tensor("w", &[n, k]), constant("bias", &[n]));
        let (a, b) = (constant("a", &[r, k]), constant("b", &[n, r]));
        let (xs, ws) = (x.tensor().to_f32_vec().unwrap(), w.to_f32_vec().unwrap());
        let mut out = vec![0.0f32; m * n];
        group.bench_function(BenchmarkId::new("bare gemm", &shape), |bench| {
            bench.iter(|| bare_product(m, n, k, black_box(&xs), &ws, &mut out));
        });
        let weight = FrozenWeight::new(w).unwrap();
        group.bench_function(BenchmarkId::new("frozen, bias", &shape), |bench| {
            bench.iter(|| frozen_linear(&mut Tape::inference(&params), &x, &weight, Some(&bias), None).unwrap());
        });
        group.bench_function(BenchmarkId::new(format!("frozen, bias, r={r}"), &shape), |bench| {
            bench.iter(|| {
                let update = LowRank { a: &a, b: &b, scale: 2.0, dropout: 0.0, site: 0 };
                frozen_linear(&mut Tape::inference(&params), &x, &weight, Some(&bias), Some(update)).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = linear
}
criterion_main!(benches);
