//! What the graph kernels move, counted by the emulator: as many sectors of memory as the plan says, no bank conflicts in main loops, no local memory.
#![cfg(feature = "emulator")]

use std::sync::{Arc, Mutex};

use graftwork::autograd::{Tape, Var};
use graftwork::device::{LaunchSpec, Launcher};
use graftwork::graph::{Adjacency, Csr};
use graftwork::ops::{CosineOptions, Reduce, cosine_graph, spmm};
use graftwork::rng::Stream;
use graftwork::tensor::ParamSet;
use graftwork::testing::normal;
use graftwork::{DType, Device, Error, Result, Tensor};
use ptx_emulator::{Arch, Device as Emulator, LaunchConfig, Module};

type Counts = Arc<Mutex<Vec<(&'static str, ptx_emulator::Counters)>>>;

/// The emulator, and what each launch did.
struct Counting {
    emulator: Mutex<Emulator>,
    counts: Counts,
}

fn fault(report: impl std::fmt::Display) -> Error {
    Error::Emulated { place: "test", report: report.to_string() }
}

impl Launcher for Counting {
    fn name(&self) -> String {
        "counting".into()
    }
    fn capability(&self) -> u32 {
        80
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.emulator.lock().unwrap().alloc(bytes.max(1) as u64).map_err(fault)
    }
    fn release(&self, address: u64, _: usize) {
        let _ = self.emulator.lock().unwrap().free(address);
    }
    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        self.emulator.lock().unwrap().copy_in(address, data).map_err(fault)
    }
    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.emulator.lock().unwrap().copy_out(data, address).map_err(fault)
    }
    fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        let mut through = vec![0; bytes];
        self.read(source, &mut through)?;
        self.write(target, &through)
    }
    fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.write(address, &vec![0; bytes])
    }
    fn launch(&self, spec: &LaunchSpec) -> Result<()> {
        spec.check()?;
        let symbol = spec.kernel.row().symbol;
        let module = Module::parse(spec.kernel.image()?.ptx).map_err(fault)?;
        let config = LaunchConfig::new(spec.grid, spec.block).shared(spec.shared_bytes);
        let mut emulator = self.emulator.lock().unwrap();
        let report = emulator.launch(&module, symbol, &config, spec.params.bytes()).map_err(fault)?;
        self.counts.lock().unwrap().push((symbol, report.counters));
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

fn counting() -> (Device, Counts) {
    let counts = Counts::default();
    let emulator = Mutex::new(Emulator::new(Arch::Sm80));
    (Device::with_launcher(Box::new(Counting { emulator, counts: counts.clone() })), counts)
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
        let (device, counts) = counting();
        let g = random(600, 16, hub);
        let csr = Csr::new(&g, &device).unwrap();
        let x = Tensor::from_f32(&device, &[600, f], &normal("x", 600 * f), dtype).unwrap();
        let params = ParamSet::none(&device, dtype).unwrap();
        spmm(&mut Tape::inference(&params), &csr, &Var::constant(x), None, Reduce::Sum).unwrap();
        let counts = counts.lock().unwrap();
        assert_eq!(counts.len(), if hub > 0 { 2 } else { 1 });
        let (name, walk) = &counts[0];
        // A row of features, the edge's source, and both offsets of a row; then bisection, whose share falls as chunks get longer.
        let row = (f * dtype.size() / 32) as u64;
        let (v, e) = (g.rows() as u64, g.edges() as u64);
        let predicted = e * (row + 1) + 2 * v;
        let share = walk.load_sectors as f64 / predicted as f64;
        assert!((0.9..1.12).contains(&share), "{name}: {} sectors, {predicted} predicted", walk.load_sectors);
        // Rows that are cut go through parts in f32, of which there are two a chunk at most.
        let parts = if hub > 0 { 2 * (v + e).div_ceil(256) * (f as u64 / 8) } else { 0 };
        assert!(walk.store_sectors >= v * row - parts && walk.store_sectors <= v * row + parts, "{name}");
        assert_eq!((walk.bank_conflicts, walk.local_accesses), (0, 0), "{name}");
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn the_product_of_similarities_has_no_bank_conflicts() {
    let of = |f: usize| {
        let (device, counts) = counting();
        let x = Tensor::from_slice(&device, &[128, f], &normal("x", 128 * f)).unwrap();
        cosine_graph(&x, &CosineOptions::default()).unwrap();
        let counts = counts.lock().unwrap();
        counts.iter().find(|(name, _)| name.contains("_mask_")).unwrap().1.clone()
    };
    let (short, long) = (of(16), of(128));
    // What conflicts there are come with the decisions, once a tile, and not with the columns.
    assert_eq!(short.bank_conflicts, long.bank_conflicts);
    assert_eq!(long.local_accesses, 0);
}
