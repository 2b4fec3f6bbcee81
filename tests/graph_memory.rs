//! Graph ops need no more memory than operands, results and 64 MB: never rows × rows, never edges × features.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use graftwork::autograd::{Tape, Var};
use graftwork::graph::{Adjacency, Csr};
use graftwork::ops::{CosineOptions, Reduce, cosine_graph, graph_attention, spmm};
use graftwork::tensor::ParamSet;
use graftwork::testing::normal;
use graftwork::{DType, Device, Tensor};

/// Bytes live and at most live, of all threads.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: isize) {
    let now = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

// SAFETY: both calls go to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` has live beyond what there was, results included.
fn peak_of<R>(work: impl FnOnce() -> R) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = work();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    drop(result);
    peak.max(0) as usize
}

const MOST: usize = 64 << 20;

fn tensor(name: &str, dims: &[usize]) -> Tensor {
    Tensor::from_slice(&Device::cpu(), dims, &normal(name, dims.iter().product())).unwrap()
}

#[test]
fn nothing_grows_with_pairs_or_with_edges_times_features() {
    // All pairs in f32 would be 576 MB.
    let n = 12_000;
    let rows = tensor("rows", &[n, 24]);
    let options = CosineOptions { threshold: 0.8, ..CosineOptions::default() };
    let edges = cosine_graph(&rows, &options).unwrap().edges();
    let peak = peak_of(|| cosine_graph(&rows, &options).unwrap());
    let result = 4 * (edges + n + 1);
    assert!(peak <= result + MOST, "{peak} bytes for {result} of result");

    // Edges times features would be 1 GB.
    let (v, degree, f) = (20_000, 100, 128);
    let list: Vec<(usize, usize)> = (0..v * degree).map(|e| (e / degree, (e * 7919) % v)).collect();
    let graph = Csr::new(&Adjacency::from_edges((v, v), &list, None).unwrap(), &Device::cpu()).unwrap();
    drop(list);
    let params = ParamSet::none(&Device::cpu(), DType::F32).unwrap();
    let x = Var::constant(tensor("x", &[v, f]));
    let [l, r] = ["l", "r"].map(|name| Var::constant(tensor(name, &[v, 4])));
    let result = 4 * v * f;
    for reduce in [Reduce::Sum, Reduce::Max] {
        let peak = peak_of(|| spmm(&mut Tape::inference(&params), &graph, &x, None, reduce).unwrap());
        // Of a maximum the picked edges, too.
        assert!(peak <= 2 * result + MOST, "{reduce:?}: {peak}");
    }
    let peak = peak_of(|| graph_attention(&mut Tape::inference(&params), &graph, &l, &r, &x, 0.2).unwrap());
    assert!(peak <= result + MOST, "attention: {peak}");

    // 16-bit features and results, widened, would be 307 MB.
    let v = 300_000;
    let ring: Vec<(usize, usize)> = (0..2 * v).map(|e| (e / 2, (e * 7919) % v)).collect();
    let graph = Csr::new(&Adjacency::from_edges((v, v), &ring, None).unwrap(), &Device::cpu()).unwrap();
    let x = Var::constant(Tensor::zeros(&Device::cpu(), &[v, f], DType::BF16).unwrap());
    let result = 2 * v * f;
    let peak = peak_of(|| spmm(&mut Tape::inference(&params), &graph, &x, None, Reduce::Sum).unwrap());
    assert!(peak <= result + MOST / 4, "bf16: {peak}");
}
