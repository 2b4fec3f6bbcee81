//! The CPU paths beside what they cannot beat: the bare matrix product, the bare copy.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use graftwork::adapters::{HeadInit, LoraConfig, train_head};
use graftwork::autograd::{Grads, Tape, Var};
use graftwork::graph::{Adjacency, Csr};
use graftwork::models::vit::Vit;
use graftwork::ops::{
    Activation, AttentionOptions, CosineOptions, CrossEntropyOptions, LowRank, Mid, Reduce, Transposed, activation,
    attention, block_sparse_linear, cosine_graph, cross_entropy, dds, frozen_linear, layer_norm, scale_add, sdd, spmm,
};
use graftwork::optim::{AdamW, AdamWConfig};
use graftwork::rng::Stream;
use graftwork::tensor::{BlockPattern, FrozenWeight, Init, ParamSet, ParamSetBuilder};
use graftwork::testing::{bare_product, normal};
use graftwork::{DType, Device, Tensor};
use rayon::prelude::*;

fn tensor(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_slice(&Device::cpu(), dims, &normal(name, dims.iter().product())).unwrap()
}

fn constant(name: &str, dims: &[usize]) -> Var {
    Var::constant(tensor(name, dims))
}

fn no_params() -> ParamSet {
    ParamSet::none(&Device::cpu(), DType::F32).unwrap()
}

/// The bare product `[m, k] × [k, n]`.
fn bare_gemm(group: &mut BenchmarkGroup<'_, WallTime>, shape: &str, [m, n, k]: [usize; 3]) {
    let (x, w, mut out) = (normal("x", m * k), normal("w", n * k), vec![0.0f32; m * n]);
    group.bench_function(BenchmarkId::new("bare gemm", shape), |bench| {
        bench.iter(|| bare_product([m, n, k], black_box(&x), &w, &mut out).unwrap());
    });
}

/// A copy that reads and writes `bytes` in all, on every thread where that pays.
fn bare_copy(group: &mut BenchmarkGroup<'_, WallTime>, shape: &str, bytes: usize) {
    let (from, mut to) = (vec![1u8; bytes / 2], vec![2u8; bytes / 2]);
    group.throughput(Throughput::Bytes(bytes as u64));
    group
        .bench_function(BenchmarkId::new("copy of the same bytes", shape), |bench| bench.iter(|| copy(&from, &mut to)));
}

/// A copy, on every thread where that pays.
fn copy(from: &[u8], to: &mut [u8]) {
    const PIECE: usize = 256 * 1024;
    if from.len() < 2 * PIECE {
        to.copy_from_slice(black_box(from));
    } else {
        let pieces = to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE));
        pieces.for_each(|(to, from)| to.copy_from_slice(black_box(from)));
    }
}

fn linear(c: &mut Criterion) {
    let mut group = c.benchmark_group("frozen_linear_forward");
    let params = no_params();
    for (m, n, k, r) in [(512, 768, 768, 8), (544, 64, 64, 8), (544, 128, 64, 8)] {
        let shape = format!("{m}x{n}x{k}");
        group.throughput(Throughput::Elements((2 * m * n * k) as u64));
        let (x, w, bias) = (constant("x", &[m, k]), tensor("w", &[n, k]), constant("bias", &[n]));
        let (a, b) = (constant("a", &[r, k]), constant("b", &[n, r]));
        bare_gemm(&mut group, &shape, [m, n, k]);
        let weight = FrozenWeight::new(w).unwrap();
        group.bench_function(BenchmarkId::new("frozen, bias", &shape), |bench| {
            bench.iter(|| frozen_linear(&mut Tape::inference(&params), &x, &weight, Some(&bias), None).unwrap());
        });
        group.bench_function(BenchmarkId::new(format!("frozen, bias, r={r}"), &shape), |bench| {
            bench.iter(|| {
                let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 2.0, dropout: 0.0, site: 0 };
                frozen_linear(&mut Tape::inference(&params), &x, &weight, Some(&bias), Some(update)).unwrap()
            });
        });
    }
    group.finish();
}

/// Forward and backward with an update that learns, beside the two products with the frozen weight that are in it.
fn linear_step(c: &mut Criterion) {
    let mut group = c.benchmark_group("frozen_linear_step");
    for (m, n, k, r) in [(512, 768, 768, 8), (1576, 768, 768, 16)] {
        let shape = format!("{m}x{n}x{k}");
        let mut builder = ParamSetBuilder::new();
        let a = builder.add("a", &[r, k], Init::KaimingUniform { fan_in: k }).unwrap();
        let b = builder.add("b", &[n, r], Init::KaimingUniform { fan_in: r }).unwrap();
        let params = builder.build(&Device::cpu(), DType::F32, 0).unwrap();
        let mut grads = Grads::zeros(&params).unwrap();
        let weight = FrozenWeight::new(tensor("w", &[n, k])).unwrap();
        let (x, dy) = (tensor("x", &[m, k]), tensor("dy", &[m, n]));
        let (values, turned) = (normal("w", n * k), normal("w", n * k));
        let (mut y, mut dx) = (vec![0.0f32; m * n], vec![0.0f32; m * k]);
        group.bench_function(BenchmarkId::new("two bare gemms", &shape), |bench| {
            let (x, dy) = (normal("x", m * k), normal("dy", m * n));
            bench.iter(|| {
                bare_product([m, n, k], black_box(&x), &values, &mut y).unwrap();
                bare_product([m, k, n], black_box(&dy), &turned, &mut dx).unwrap();
            });
        });
        group.bench_function(BenchmarkId::new(format!("forward and backward, r={r}"), &shape), |bench| {
            bench.iter(|| {
                let mut tape = Tape::deterministic(&params);
                let x = tape.input(x.clone());
                let (a, b) = (tape.param(a).unwrap(), tape.param(b).unwrap());
                let update = LowRank { a: &a, b: &b, mid: Mid::Identity, scale: 2.0, dropout: 0.0, site: 0 };
                let y = frozen_linear(&mut tape, &x, &weight, None, Some(update)).unwrap();
                tape.backward_with(&y, dy.clone(), &mut grads).unwrap()
            });
        });
    }
    group.finish();
}

/// A quarter of the blocks exist: the three products of a step, beside the dense one.
fn block_sparse(c: &mut Criterion) {
    const EDGE: usize = 1024;
    let params = no_params();
    let mut group = c.benchmark_group("block_sparse_1024x1024x1024_density_0.25");
    bare_gemm(&mut group, "dense", [EDGE; 3]);
    let (x, dy) = (constant("x", &[EDGE, EDGE]), constant("dy", &[EDGE, EDGE]));
    for block in [16, 32, 64, 128] {
        let stream = Stream { seed: 1, step: 0, site: 0 };
        let pattern = BlockPattern::random(&Device::cpu(), [EDGE, EDGE], block, 0.25, stream).unwrap();
        let values = constant("values", &pattern.value_dims());
        group.bench_function(BenchmarkId::new("y = x Sᵀ", block), |bench| {
            bench.iter(|| block_sparse_linear(&mut Tape::inference(&params), &x, &pattern, &values, 1.0).unwrap());
        });
        group.bench_function(BenchmarkId::new("dx = dy S", block), |bench| {
            let mut tape = Tape::inference(&params);
            bench.iter(|| dds(&mut tape, &dy, &pattern, &values, Transposed::default(), 1.0).unwrap());
        });
        group.bench_function(BenchmarkId::new("dvalues", block), |bench| {
            let mut tape = Tape::inference(&params);
            bench.iter(|| sdd(&mut tape, &dy, &x, &pattern, [true, false], 1.0).unwrap());
        });
    }
    group.finish();
}

/// Rows of the digits trunk at batch 32, and of ViT-B at batch 8.
const ROWS: [(usize, usize); 2] = [(544, 64), (1576, 768)];

/// `y = x + s · z` reads two tensors and writes one; layer norm and GELU read one and write one.
fn memory_bound(c: &mut Criterion) {
    let params = no_params();
    let mut group = c.benchmark_group("memory_bound_forward");
    for (m, d) in ROWS {
        let (shape, bytes) = (format!("{m}x{d}"), m * d * size_of::<f32>());
        let (x, z) = (constant("x", &[m, d]), constant("z", &[m, d]));
        let (gamma, beta) = (constant("gamma", &[d]), constant("beta", &[d]));
        bare_copy(&mut group, &format!("{shape}, three tensors"), 3 * bytes);
        group.bench_function(BenchmarkId::new("scale_add", &shape), |bench| {
            bench.iter(|| scale_add(&mut Tape::inference(&params), &x, &z, 0.5).unwrap());
        });
        bare_copy(&mut group, &format!("{shape}, two tensors"), 2 * bytes);
        group.bench_function(BenchmarkId::new("layer_norm", &shape), |bench| {
            bench.iter(|| layer_norm(&mut Tape::inference(&params), &x, &gamma, Some(&beta), 1e-5).unwrap());
        });
        group.bench_function(BenchmarkId::new("gelu", &shape), |bench| {
            bench.iter(|| activation(&mut Tape::inference(&params), &x, Activation::Gelu).unwrap());
        });
    }
    group.finish();
}

fn attend(c: &mut Criterion) {
    let params = no_params();
    let mut group = c.benchmark_group("attention_forward");
    for (b, h, t, d) in [(32, 4, 17, 16), (4, 12, 197, 64)] {
        let shape = format!("b={b} h={h} {t}x{t}x{d}");
        group.throughput(Throughput::Elements((4 * b * h * t * t * d) as u64));
        let [q, k, v] = ["q", "k", "v"].map(|name| constant(name, &[b, t, h * d]));
        // As many operations as both products of all heads.
        bare_gemm(&mut group, &shape, [b * h * t, t, 2 * d]);
        let options = AttentionOptions { heads: h, ..AttentionOptions::default() };
        group.bench_function(BenchmarkId::new("attention", &shape), |bench| {
            bench.iter(|| attention(&mut Tape::inference(&params), &q, &k, &v, &options).unwrap());
        });
    }
    group.finish();
}

fn loss(c: &mut Criterion) {
    let params = no_params();
    let mut group = c.benchmark_group("cross_entropy_forward");
    for (m, classes) in [(32, 5), (256, 32_000)] {
        let shape = format!("{m}x{classes}");
        let logits = constant("logits", &[m, classes]);
        let targets: Vec<i64> = (0..m as i64).map(|i| i % 5).collect();
        let targets = Tensor::from_slice(&Device::cpu(), &[m], &targets).unwrap();
        bare_copy(&mut group, &shape, m * classes * size_of::<f32>());
        let options = CrossEntropyOptions::default();
        group.bench_function(BenchmarkId::new("cross_entropy", &shape), |bench| {
            bench.iter(|| cross_entropy(&mut Tape::inference(&params), &logits, &targets, &options).unwrap());
        });
    }
    group.finish();
}

/// How many times as long as `base` the op takes, told as seconds. The two take turns, so that both meet the same moments of the machine; the
/// median of the turns counts.
fn beside(
    group: &mut BenchmarkGroup<'_, WallTime>,
    (name, shape): (&str, &str),
    mut base: impl FnMut(),
    mut op: impl FnMut(),
) {
    group.bench_function(BenchmarkId::new(name, shape), |bench| {
        bench.iter_custom(|turns| {
            let timed = |run: &mut dyn FnMut()| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64()
            };
            let turn = |_| {
                let base = timed(&mut base);
                timed(&mut op) / base
            };
            let mut ratios: Vec<f64> = (0..turns).map(turn).collect();
            ratios.sort_by(f64::total_cmp);
            Duration::from_secs_f64(ratios[ratios.len() / 2] * turns as f64)
        });
    });
}

/// Sums over 16 random edges a node beside a copy of as many bytes as they gather, and the graph of similar rows beside the bare product of
/// all rows with all rows, of which it computes one half. What is told is how many times as long they take.
fn graphs(c: &mut Criterion) {
    let params = no_params();
    let mut group = c.benchmark_group("graph_forward");
    group.sample_size(10);
    let (v, degree, f) = (100_000, 16, 64);
    let dice = Stream::named(0, 0, "bench graph");
    let edges: Vec<(usize, usize)> = (0..v * degree).map(|e| (e / degree, dice.bits(e as u64) as usize % v)).collect();
    let graph = Csr::new(&Adjacency::from_edges((v, v), &edges, None).unwrap(), &Device::cpu()).unwrap();
    let shape = format!("{v} nodes, degree {degree}, f={f}");
    for dtype in [DType::F32, DType::BF16] {
        let x = Var::constant(tensor("x", &[v, f]).cast(dtype).unwrap());
        // A copy reads one half of the bytes and writes the other.
        let half = v * (degree + 1) * f * dtype.size() / 2;
        let (from, mut to) = (vec![1u8; half], vec![2u8; half]);
        for reduce in [Reduce::Sum, Reduce::Max] {
            let name = format!("spmm {reduce:?} {dtype}, times a copy of the same bytes");
            beside(
                &mut group,
                (&name, &shape),
                || copy(&from, &mut to),
                || drop(spmm(&mut Tape::inference(&params), &graph, &x, None, reduce).unwrap()),
            );
        }
    }
    group.finish();

    let mut group = c.benchmark_group("cosine_graph");
    group.sample_size(10);
    let (n, f) = (20_000, 128);
    let shape = format!("{n}x{f}");
    let rows = tensor("rows", &[n, f]);
    // A band of rows at a time, so that the bare product needs no n x n matrix either.
    let (band, values) = (2000, rows.to_f32_vec().unwrap());
    let mut out = vec![0.0f32; band * n];
    beside(
        &mut group,
        ("cosine_graph, times the bare gemm", &shape),
        || values.chunks(band * f).for_each(|x| bare_product([band, n, f], black_box(x), &values, &mut out).unwrap()),
        || drop(cosine_graph(&rows, &CosineOptions::default()).unwrap()),
    );
    group.finish();
}

/// One step of the main job: the shipped trunk, LoRA of rank 8 on q and v (the default), batch 32; forward, backward, AdamW.
fn training(c: &mut Criterion) {
    const BATCH: usize = 32;
    let device = Device::cpu();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digits/trunk");
    let mut trunk = Vit::load(&dir, &device, DType::F32).unwrap();
    let mut builder = ParamSetBuilder::new();
    train_head(&mut trunk, "classifier", HeadInit::Fresh { classes: 5 }, &mut builder).unwrap();
    LoraConfig::default().attach(&mut trunk, &mut builder).unwrap();
    let params = builder.build(&device, DType::F32, 0).unwrap();
    let mut optimizer = AdamW::new(AdamWConfig::default(), &params).unwrap();
    let mut grads = Grads::zeros(&params).unwrap();
    let pixels = constant("pixels", &[BATCH, 1, 8, 8]);
    let targets: Vec<i64> = (0..BATCH as i64).map(|i| i % 5).collect();
    let targets = Tensor::from_slice(&device, &[BATCH], &targets).unwrap();
    let options = CrossEntropyOptions::default();

    let mut group = c.benchmark_group("training_step_vit_lora_r8_batch32");
    group.throughput(Throughput::Elements(1));
    group.bench_function("forward alone", |bench| {
        bench.iter(|| trunk.forward(&mut Tape::inference(&params), &pixels).unwrap());
    });
    let mut step = 0;
    for recompute in [false, true] {
        let name = if recompute { "whole step, blocks recomputed" } else { "whole step" };
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let mut tape = Tape::training(&params, 0, step).recompute_blocks(recompute);
                let logits = trunk.forward(&mut tape, &pixels).unwrap();
                let loss = cross_entropy(&mut tape, &logits, &targets, &options).unwrap();
                tape.backward(&loss, &mut grads).unwrap();
                optimizer.step(&params, &grads, 1e-3).unwrap();
                step += 1;
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = linear, linear_step, block_sparse, memory_bound, attend, loss, graphs, training
}
criterion_main!(benches);
