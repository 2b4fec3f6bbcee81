//! What the graph kernels move, counted by the emulator: as many sectors of memory as the plan says, no bank conflicts in main loops, no local memory.
#![cfg(feature = "emulator")]

use graftwork::autograd::{Tape, Var};
use graftwork::device::Counters;
use graftwork::graph::{Adjacency, Csr};
use graftwork::ops::{CosineOptions, Reduce, cosine_graph, spmm};
use graftwork::rng::Stream;
use graftwork::tensor::ParamSet;
use graftwork::testing::normal;
use graftwork::{DType, Device, Tensor};

fn emulated() -> Device {
    Device::emulated("sm_80").unwrap()
}

/// What the one kernel whose symbol starts so did, and how many kernels ran.
fn counted(device: &Device, start: &str) -> (Counters, usize) {
    let all = device.take_counters().unwrap();
    let of = all.iter().find(|(kernel, _)| kernel.symbol().starts_with(start)).unwrap();
    (of.1.clone(), all.len())
}

/// Random sources, `degree` a row, and a last row with so many more.
fn random(v: usize, degree: usize, hub: usize) -> Adjacency {
    let dice = Stream::named(0, 0, "counters");
    let row = |i: usize| degree + if i + 1 == v { hub } else { 0 };
    let ends: Vec<usize> = (0..v).flat_map(|i| vec![i; row(i)]).collect();
    let edges: Vec<(usize, usize)> =
        ends.into_iter().enumerate().map(|(e, i)| (i, dice.bits(e as u64) as usize % v)).collect();
    Adjacency::from_edges((v, v), &edges, None).unwrap()
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn a_sum_moves_what_it_gathers() {
    for (hub, dtype, f) in [(0, DType::F32, 64), (0, DType::BF16, 128), (3000, DType::F32, 64), (3000, DType::F16, 64)]
    {
        let device = emulated();
        let g = random(600, 16, hub);
        let csr = Csr::new(&g, &device).unwrap();
        let x = Tensor::from_f32(&device, &[600, f], &normal("x", 600 * f), dtype).unwrap();
        let params = ParamSet::none(&device, dtype).unwrap();
        spmm(&mut Tape::inference(&params), &csr, &Var::constant(x), None, Reduce::Sum).unwrap();
        let name = format!("spmm_sum_{dtype}");
        let (walk, kernels) = counted(&device, &name);
        assert_eq!(kernels, if hub > 0 { 2 } else { 1 });
        // A row of features, the edge's source, and both offsets of a row; then bisection, whose share falls as chunks get longer.
        let row = (f * dtype.size() / 32) as u64;
        let (v, e) = (g.rows() as u64, g.edges() as u64);
        let predicted = e * (row + 1) + 2 * v;
        let share = walk.load_sectors as f64 / predicted as f64;
        assert!((0.9..1.12).contains(&share), "{name}: {} sectors, {predicted} predicted", walk.load_sectors);
        // Rows that are cut go through parts in f32, two a chunk at most; of 16-bit rows a thread has eight numbers, and stores
        // them in two halves of a sector.
        let halves = if dtype == DType::F32 { 1 } else { 2 };
        let parts = if hub > 0 { 2 * (v + e).div_ceil(256) * (f as u64 / 8) * halves } else { 0 };
        let (least, most) = (v * row - parts, v * row + parts);
        assert!((least..=most).contains(&walk.store_sectors), "{name}: {} sectors stored", walk.store_sectors);
        assert_eq!((walk.bank_conflicts, walk.local_accesses), (0, 0), "{name}");
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn the_product_of_similarities_rides_tensor_cores_without_bank_conflicts() {
    for f in [16, 128] {
        let device = emulated();
        // Three tiles of 128 rows: six of the nine products.
        let x = Tensor::from_slice(&device, &[384, f], &normal("x", 384 * f)).unwrap();
        let options = CosineOptions { threshold: 1.0, ..CosineOptions::default() };
        cosine_graph(&x, &options).unwrap();
        let counted = device.take_counters().unwrap();
        let (_, pairs) = counted.iter().find(|(k, _)| k.symbol().starts_with("cosine_graph_pairs")).unwrap();
        // Steps of 32 columns.
        assert_eq!(pairs.tensor_macs, 6 * 128 * 128 * f.next_multiple_of(32) as u64);
        // Each tile reads two panels of rows in f16, once.
        assert_eq!(pairs.load_sectors, 6 * 2 * 128 * (f as u64 * 2 / 32));
        assert_eq!((pairs.bank_conflicts, pairs.local_accesses, pairs.store_sectors), (0, 0, 0));
    }
}
