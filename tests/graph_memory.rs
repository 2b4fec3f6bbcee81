//! Graph ops need no more memory than operands, results and 64 MB: never rows × rows, never edges × features.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use graftwork::autograd::{Grads, Tape, Var};
use graftwork::graph::{Adjacency, Csr};
use graftwork::ops::{CosineOptions, Reduce, cosine_graph, edge_softmax, graph_attention, sddmm, spmm};
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
    // A result that is itself large is there once: every pair is an edge. Weights double it.
    for weighted in [false, true] {
        let n = 5000;
        let all = CosineOptions { threshold: -1.0, weighted, ..CosineOptions::default() };
        let rows = tensor("rows", &[n, 8]);
        let peak = peak_of(|| assert_eq!(cosine_graph(&rows, &all).unwrap().edges(), n * (n - 1)));
        let result = 4 * n * n * if weighted { 2 } else { 1 };
        assert!(peak <= result + MOST, "{peak} bytes for {result} of result");
    }
    // Copies of long rows are made a part at a time.
    let rows = Tensor::zeros(&Device::cpu(), &[1000, 20_000], DType::F32).unwrap();
    let peak = peak_of(|| cosine_graph(&rows, &options).unwrap());
    assert!(peak <= MOST / 4, "{peak} bytes for long rows");

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
    // Forward and backward, and what both give: once the graph is turned round, nothing else.
    graph.prepare().unwrap();
    let (edges, dy) = (tensor("edges", &[v * degree]), tensor("dy", &[v, f]));
    let both = |forward: &dyn Fn(&mut Tape) -> Var, dy: &Tensor| {
        peak_of(|| {
            let mut tape = Tape::deterministic(&params);
            let y = forward(&mut tape);
            tape.backward_with(&y, dy.clone(), &mut Grads::zeros(&params).unwrap()).unwrap()
        })
    };
    let inputs = |tape: &mut Tape| [x.tensor(), &edges].map(|t| tape.input(t.clone()));
    let summed = |tape: &mut Tape| {
        let [x, w] = inputs(tape);
        spmm(tape, &graph, &x, Some(&w), Reduce::Sum).unwrap()
    };
    let dotted = |tape: &mut Tape| {
        let [x, _] = inputs(tape);
        sddmm(tape, &graph, &x, &x, 1).unwrap()
    };
    let softened = |tape: &mut Tape| {
        let [_, scores] = inputs(tape);
        edge_softmax(tape, &graph, &scores).unwrap()
    };
    let of_edges = 4 * v * degree;
    let dots = edges.reshape(&[v * degree, 1]).unwrap();
    // Of rows: y and dx; of edges: dw. Of pairs dx is the sum of two.
    for (name, peak, results) in [
        ("sum", both(&summed, &dy), 2 * result + of_edges),
        ("products", both(&dotted, &dots), 2 * result + of_edges),
        ("softmax", both(&softened, &edges), 2 * of_edges),
    ] {
        assert!(peak <= results + MOST, "{name}: {peak} bytes for {results} of results");
    }

    // 16-bit features and results, widened, would be 307 MB.
    let v = 300_000;
    let ring: Vec<(usize, usize)> = (0..2 * v).map(|e| (e / 2, (e * 7919) % v)).collect();
    let graph = Csr::new(&Adjacency::from_edges((v, v), &ring, None).unwrap(), &Device::cpu()).unwrap();
    let x = Var::constant(Tensor::zeros(&Device::cpu(), &[v, f], DType::BF16).unwrap());
    let result = 2 * v * f;
    let peak = peak_of(|| spmm(&mut Tape::inference(&params), &graph, &x, None, Reduce::Sum).unwrap());
    assert!(peak <= result + MOST / 4, "bf16: {peak}");
}
