//! The Hopper products on the emulator: exact for every tail, equal to the portable ones, for any order of warps.

use super::*;
use crate::device::Emulated;
use crate::ops::block_sparse::{Dense, Update, ride_traffic, rider};
use crate::rng::Stream;
use crate::tensor::BlockPattern;
use crate::testing::integers;

fn device(seed: u64) -> Device {
    Device::with_launcher(Box::new(Emulated::with_seed("sm_90a", seed).unwrap()))
}

fn tensor(device: &Device, name: &str, dims: &[usize], dtype: DType, limit: u32) -> Tensor {
    let values = integers(name, dims.iter().product(), limit);
    Tensor::from_f32(device, dims, &values, dtype).unwrap()
}

#[derive(Clone, Copy)]
struct Case {
    layout: Layout,
    dtype: DType,
    m: usize,
    n: usize,
    k: usize,
    r: usize,
    /// Bias, what is held and, with a rank, dropout; of nt a function, in place of out or besides it.
    rich: bool,
    /// Edge of the blocks that ride along.
    b: Option<usize>,
}

/// Blocks of which one line has none and one has all, and their values.
fn update(device: &Device, case: Case, edge: usize, x: &Tensor) -> (Dense, Tensor) {
    let [n, k] = if case.layout == Layout::Nt { [case.n, case.k] } else { [case.k, case.n] };
    let [rows, columns] = [n.div_ceil(edge), k.div_ceil(edge)];
    let stream = Stream::named(0, 0, "pattern");
    let wanted = |i: usize| match if case.layout == Layout::Nt { i / columns } else { i % columns } {
        0 => true,
        1 => false,
        _ => stream.bits(i as u64).is_multiple_of(3),
    };
    let mask: Vec<_> = (0..rows * columns).map(wanted).collect();
    let pattern = BlockPattern::from_mask(device, [n, k], edge, &mask).unwrap();
    // Zero beyond the edges, as the format has it.
    let drawn = integers("values", pattern.value_dims().iter().product(), 1);
    let mut values = vec![0.0; drawn.len()];
    pattern.topology().for_row_pieces(|at, _, len| values[at..at + len].copy_from_slice(&drawn[at..at + len]));
    let values = Tensor::from_f32(device, &pattern.value_dims(), &values, case.dtype).unwrap();
    // The forward product has x [m, k]; what reads dy [m, n] is the other one.
    let x =
        if case.layout == Layout::Nt { x.clone() } else { Tensor::zeros(device, &[case.m, k], case.dtype).unwrap() };
    let update = Update::new("test", &x, &pattern, &values, -2.0).unwrap();
    let product = if case.layout == Layout::Nt { update.product().clone() } else { update.back_product() };
    (product, values)
}

/// Runs a Hopper plan and the portable one on the same operands.
fn both(case: Case, tile: &hopper::Tile, seed: u64) -> [Vec<f32>; 2] {
    let Case { layout, dtype, m, n, k, r, rich, b: edge } = case;
    let device = device(seed);
    let by_k = |rows: usize, k: usize| if layout == Layout::Nt { [rows, k] } else { [k, rows] };
    let (a, b) = (tensor(&device, "a", &[m, k], dtype, 1), tensor(&device, "b", &by_k(n, k), dtype, 1));
    let bias = tensor(&device, "bias", &[n], dtype, 3);
    let low = (r > 0).then(|| [tensor(&device, "a1", &[m, r], dtype, 1), tensor(&device, "b1", &by_k(n, r), dtype, 1)]);
    let riding = edge.map(|edge| update(&device, case, edge, &a));
    [true, false].map(|on_hopper| {
        let (out, activated) = (tensor(&device, "out", &[m, n], dtype, 2), tensor(&device, "phi", &[m, n], dtype, 2));
        let residual = tensor(&device, "residual", &[m, n], dtype, 2);
        let addresses = [&a, &b, &out].map(|t| t.address().unwrap());
        let mut product = Product::new("test", layout, dtype, [m, n, k], addresses);
        if rich {
            product.bias = bias.address().unwrap();
            product.held = out.address().unwrap();
            product.scale = -0.5;
            if layout == Layout::Nt && edge.is_none() {
                let to = if m % 2 == 0 { &activated } else { &out };
                product.held = residual.address().unwrap();
                product.activated = Some(Activated { activation: Activation::Gelu, to: to.address().unwrap() });
            }
        }
        if let Some([a1, b1]) = &low {
            let [a, b] = [a1, b1].map(|t| t.address().unwrap());
            product.low_rank = Some(LowRankFactors { a, b, rank: r, scale: 2.0 });
            let stream = Stream { seed: 3 << 40, step: 5, site: 7 };
            product.dropout = (rich && layout == Layout::Nn).then(|| Dropout::new(0.5, stream));
        }
        if let Some((update, values)) = &riding {
            product.rider = Some(rider(update, values).unwrap());
        }
        if on_hopper {
            product = product.on(&device);
            device.run(&Plan::from_iter([hopper::spec(&product, tile).unwrap()])).unwrap();
            let mut foretold = hopper::traffic(&product, tile);
            if let Some((update, _)) = &riding {
                let Traffic { loaded, macs, .. } = ride_traffic(update);
                foretold = Traffic { loaded: foretold.loaded + loaded, macs: foretold.macs + macs, ..foretold };
            }
            let counted = device.take_counters().unwrap().remove(0).1;
            assert_eq!((counted.tensor_macs, counted.store_sectors), (foretold.macs, foretold.stored));
            assert_eq!((counted.bank_conflicts, counted.local_accesses), (0, 0));
            if !rich {
                assert_eq!(counted.load_sectors, foretold.loaded);
            }
        } else {
            device.run(&Plan::from_iter([product.spec().unwrap()])).unwrap();
        }
        [out, activated].map(|t| t.to_f32_vec().unwrap()).concat()
    })
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn every_tail_is_exact() {
    // One tile; less than one; more than the clusters at once; with an update of less, of one and of more than a step.
    let shapes = [(256, 256, 64, 0), (65, 72, 8, 0), (600, 264, 200, 8), (137, 520, 72, 24), (300, 136, 136, 72)];
    let mut seed = 0;
    for layout in [Layout::Nt, Layout::Nn] {
        for (i, (m, n, k, r)) in shapes.into_iter().enumerate() {
            let dtype = [DType::BF16, DType::F16][i % 2];
            let case = Case { layout, dtype, m, n, k, r, rich: i % 3 > 0, b: None };
            for tile in &hopper::TILES {
                seed += 1;
                let [hopper, portable] = both(case, tile, seed);
                assert!(hopper == portable, "{} {layout:?} {m} x {n} x {k}, rank {r}, {dtype}", tile.name);
            }
        }
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn what_rides_is_exact_for_every_edge() {
    let shapes = [(256, 256, 64, 0), (72, 264, 136, 8), (300, 520, 72, 24), (265, 136, 392, 0)];
    for (i, edge) in [16, 32, 64, 128].into_iter().enumerate() {
        for (j, layout) in [Layout::Nt, Layout::Nn].into_iter().enumerate() {
            for (l, tile) in hopper::TILES.iter().enumerate() {
                let (m, n, k, r) = shapes[(i + 2 * j + l) % 4];
                let dtype = [DType::BF16, DType::F16][(i + j + l) % 2];
                let case = Case { layout, dtype, m, n, k, r, rich: (i + j + l) % 3 > 0, b: Some(edge) };
                let [hopper, portable] = both(case, tile, 1 + i as u64);
                let name = format!("{} {layout:?} {m} x {n} x {k}, rank {r}, {dtype}, b {edge}", tile.name);
                assert!(hopper == portable, "{name}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn no_order_of_warps_changes_a_bit() {
    let case = Case { layout: Layout::Nn, dtype: DType::F16, m: 520, n: 328, k: 328, r: 8, rich: true, b: None };
    let [wide, _] = &hopper::TILES;
    let first = both(case, wide, 1);
    assert!((2..5).all(|seed| both(case, wide, seed) == first));
}

#[test]
fn the_choice_of_a_tile_follows_shape_and_gpu() {
    let chosen = |m, n, k| {
        let product = Product::new("test", Layout::Nt, DType::BF16, [m, n, k], [0; 3]);
        let product = Product { gpu: Gpu { capability: 90, multiprocessors: 132 }, ..product };
        hopper::choose(&product).map(|tile| tile.name)
    };
    assert_eq!(chosen(8192, 4096, 4096), Some("128x256x64 sm90a"));
    assert_eq!(chosen(2048, 4096, 14336), Some("128x256x64 sm90a"));
    // 32 pairs of wide tiles for 66 clusters.
    assert_eq!(chosen(2048, 1024, 4096), Some("128x128x64 sm90a"));
    assert_eq!(chosen(8192, 128, 4096), Some("128x128x64 sm90a"));
    assert_eq!(chosen(8192, 64, 4096), None);
    assert_eq!(chosen(256, 256, 4096), None);
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn the_result_is_the_sum() {
    let (m, n, k) = (200, 264, 136);
    let case = Case { layout: Layout::Nt, dtype: DType::F16, m, n, k, r: 0, rich: false, b: None };
    let [hopper, _] = both(case, &hopper::TILES[1], 9);
    let (a, b) = (integers("a", m * k, 1), integers("b", n * k, 1));
    let sum = |i: usize, j: usize| (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum::<f32>();
    assert!((0..m * n).all(|at| hopper[at] == sum(at / n, at % n)));
}

/// What one launch makes, h and y, beside what two of the portable ones make of the same operands.
fn together_and_apart([m, n, k, r]: [usize; 4], dtype: DType, tile: usize, dropout: bool, seed: u64) -> [Vec<f32>; 4] {
    let device = device(seed);
    let draw = |name, dims: &[usize]| tensor(&device, name, dims, dtype, 1);
    let (x, weight, bias) = (draw("x", &[m, k]), draw("w", &[n, k]), draw("bias", &[n]));
    let (a, b) = (draw("a", &[r, k]), draw("b", &[n, r]));
    let mut out = Vec::new();
    for together in [true, false] {
        let (h, y) = (draw("h", &[m, r]), draw("y", &[m, n]));
        let [x, weight, a, b, bias, to_h, to_y] = [&x, &weight, &a, &b, &bias, &h, &y].map(|t| t.address().unwrap());
        let dropout = dropout.then(|| Dropout::new(0.5, Stream { seed: 3 << 40, step: 5, site: 7 }));
        let down = Product::new("test", Layout::Nt, dtype, [m, r, k], [x, a, to_h]);
        let down = Product { scale: 0.5, dropout, ..down };
        let base = Product::new("test", Layout::Nt, dtype, [m, n, k], [x, weight, to_y]);
        let low_rank = Some(LowRankFactors { a: to_h, b, rank: r, scale: 1.0 });
        let base = Product { bias, low_rank, ..base };
        if together {
            let both = one_launch::OneLaunch::of_tile(down, base.on(&device), tile).unwrap();
            both.run(&device).unwrap();
            let foretold = both.traffic();
            let counted = device.take_counters().unwrap().remove(0).1;
            assert_eq!((counted.tensor_macs, counted.store_sectors), (foretold.macs, foretold.stored));
            assert_eq!((counted.bank_conflicts, counted.local_accesses), (0, 0));
            // And what threads read themselves: the bias, and whether h is there, which they ask until it is.
            assert!(counted.load_sectors >= foretold.loaded);
        } else {
            device.run(&Plan::from_iter([down.spec().unwrap(), base.spec().unwrap()])).unwrap();
        }
        out.extend([h, y].map(|t| t.to_f32_vec().unwrap()));
    }
    out.try_into().unwrap()
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn a_product_and_its_update_in_one_launch_are_exact() {
    // Less than a tile; more tiles than clusters; each width of h, and ranks below it.
    let shapes = [[65, 72, 8, 8], [600, 264, 200, 16], [137, 520, 72, 24], [300, 136, 136, 64], [520, 328, 328, 40]];
    let mut seed = 0;
    for (i, shape) in shapes.into_iter().enumerate() {
        for tile in [0, 1] {
            for dropout in [false, true] {
                seed += 1;
                let dtype = [DType::F16, DType::BF16][(i + tile) % 2];
                let [h, y, exact_h, exact_y] = together_and_apart(shape, dtype, tile, dropout, seed);
                assert!(h == exact_h, "h of {shape:?}, tile {tile}, {dtype}, dropout {dropout}");
                assert!(y == exact_y, "y of {shape:?}, tile {tile}, {dtype}, dropout {dropout}");
            }
        }
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn no_order_of_clusters_changes_a_bit_of_one_launch() {
    let run = |seed| together_and_apart([520, 328, 136, 16], DType::BF16, 1, true, seed);
    let first = run(1);
    assert!((2..6).all(|seed| run(seed) == first));
}

#[test]
fn one_launch_costs_the_tensor_cores_little() {
    // (1 + r/n + r/k + 1 %) of the plain product's.
    for (m, n, k) in [(8192, 4096, 4096), (2048, 14336, 4096), (2048, 4096, 14336)] {
        for r in [16, 64] {
            let product = |n, k| Product {
                gpu: Gpu { capability: 90, multiprocessors: 132 },
                ..Product::new("test", Layout::Nt, DType::BF16, [m, n, k], [16; 3])
            };
            let low_rank = Some(LowRankFactors { a: 16, b: 16, rank: r, scale: 1.0 });
            let base = Product { low_rank, ..product(n, k) };
            let both = one_launch::OneLaunch::new(product(r, k), base).unwrap();
            let plain = (m * n * k) as f64;
            let most = 1.0 + r as f64 / n as f64 + r as f64 / k as f64 + 0.01;
            assert!(both.traffic().macs as f64 <= most * plain, "{m} x {n} x {k}, rank {r}");
        }
    }
}
