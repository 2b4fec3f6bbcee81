//! Sums, products and attention over the edges of graphs, and the graph of similar rows.

use std::sync::{Arc, Mutex};

use graftwork::graph::{Adjacency, Csr, Width};
use graftwork::ops::{CosineOptions, Reduce, cosine_graph, edge_softmax, graph_attention, sddmm, spmm};
use graftwork::rng::Stream;
use graftwork::testing::normal;
use graftwork::{DType, Device, Result, Tensor};

use crate::verify::case::{Arithmetic, Case, Judge, Output};

/// Rows, columns, edges of a row on average: degrees go from 0 to twice that, and the last row is a hub with so many more.
#[derive(Clone, Copy)]
pub struct Shape(pub usize, pub usize, pub usize, pub usize);

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape(v, n, degree, hub) = self;
        write!(f, "{v}x{n} deg={degree}")?;
        if *hub > 0 { write!(f, " hub={hub}") } else { Ok(()) }
    }
}

const SHAPES: [Shape; 6] = [
    Shape(1, 1, 0, 1),
    Shape(3, 4, 0, 0),
    Shape(17, 17, 3, 0),
    Shape(65, 33, 7, 0),
    Shape(9, 50, 2, 700),
    Shape(129, 65, 4, 300),
];
/// Features and heads.
const FEATURES: [(usize, usize); 6] = [(1, 1), (7, 1), (24, 3), (33, 1), (64, 4), (130, 2)];
const SLOPE: f64 = 0.2;

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (shape, (f, heads)) in SHAPES.into_iter().zip(FEATURES) {
        for judge in [Judge::Exact, Judge::Bound] {
            cases.push(summed(shape, f, heads, Reduce::Sum, judge));
            cases.push(dotted(shape, f, heads, judge));
        }
        // Means of integers need not be any; extrema are not multilinear.
        cases.push(summed(shape, f, heads, Reduce::Mean, Judge::Bound));
        cases.push(summed(shape, f, heads, Reduce::Max, Judge::Exact));
        cases.push(summed(shape, f, heads, Reduce::Min, Judge::Exact));
        cases.push(softened(shape, heads));
        cases.push(attended(shape, f, heads));
    }
    for (v, f) in [(1, 3), (7, 5), (65, 16), (130, 33), (257, 24)] {
        cases.push(similar(v, f));
    }
    cases
}

impl Shape {
    /// Edges of row i.
    fn degree(&self, i: usize) -> usize {
        let Shape(v, _, degree, hub) = *self;
        i % (2 * degree + 1) + if i + 1 == v { hub } else { 0 }
    }

    pub fn edges(&self) -> usize {
        let Shape(v, _, degree, hub) = *self;
        let (cycles, rest) = (v / (2 * degree + 1), v % (2 * degree + 1));
        cycles * degree * (2 * degree + 1) + rest * rest.saturating_sub(1) / 2 + hub
    }

    /// Most edges of a row.
    fn row(&self) -> usize {
        2 * self.2 + self.3
    }

    /// Most edges of a column: sources are drawn at random, so eight deviations above the mean.
    fn column(&self) -> usize {
        let mean = self.edges() as f64 / self.1 as f64;
        (mean + 8.0 * mean.sqrt() + 8.0) as usize
    }

    fn graph(&self) -> Result<Adjacency> {
        let dice = Stream::named(0, 0, "graph");
        let mut edges = Vec::with_capacity(self.edges());
        for i in 0..self.0 {
            for _ in 0..self.degree(i) {
                edges.push((i, dice.bits(edges.len() as u64) as usize % self.1));
            }
        }
        Adjacency::from_edges((self.0, self.1), &edges, None)
    }
}

/// A graph of this shape, made when a device first asks for it: a table of cases costs nothing.
#[derive(Clone)]
struct Graph {
    shape: Shape,
    made: Arc<Mutex<Vec<Csr>>>,
}

impl Graph {
    fn new(shape: Shape) -> Self {
        Graph { shape, made: Arc::default() }
    }

    fn on(&self, device: &Device) -> Result<Csr> {
        let mut made = self.made.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(there) = made.iter().find(|csr| csr.device() == device) {
            return Ok(there.clone());
        }
        // Both widths of indices come up: by the parity of the edges.
        let width = if self.shape.edges().is_multiple_of(2) { Width::Fitting } else { Width::Wide };
        let csr = Csr::with_width(&self.shape.graph()?, device, width)?;
        made.push(csr.clone());
        Ok(csr)
    }
}

pub fn summed(shape: Shape, f: usize, heads: usize, reduce: Reduce, judge: Judge) -> Case {
    let op = match reduce {
        Reduce::Sum => "spmm_sum",
        Reduce::Mean => "spmm_mean",
        Reduce::Max => "spmm_max",
        Reduce::Min => "spmm_min",
    };
    let graph = Graph::new(shape);
    Case::new(op, format!("{shape} f={f} h={heads}"), judge)
        .limit(1)
        .input("x", &[shape.1, f], Arithmetic::depth(shape.column() + 2))
        .input("w", &[shape.edges(), heads], Arithmetic::depth(f / heads + 2))
        .call(Arithmetic::depth(shape.row() + 2), move |tape, given| {
            let x = given.var("x")?;
            spmm(tape, &graph.on(x.tensor().device())?, x, Some(given.var("w")?), reduce)
        })
}

pub fn dotted(shape: Shape, f: usize, heads: usize, judge: Judge) -> Case {
    let graph = Graph::new(shape);
    Case::new("sddmm", format!("{shape} f={f} h={heads}"), judge)
        .limit(1)
        .input("a", &[shape.0, f], Arithmetic::depth(shape.row() + 1))
        .input("b", &[shape.1, f], Arithmetic::depth(shape.column() + 1))
        .call(Arithmetic::depth(f / heads + 1), move |tape, given| {
            let a = given.var("a")?;
            sddmm(tape, &graph.on(a.tensor().device())?, a, given.var("b")?, heads)
        })
}

pub fn softened(shape: Shape, heads: usize) -> Case {
    let graph = Graph::new(shape);
    // Slopes are differences of slopes and their mean: that cancels.
    let backward = Arithmetic::depth(2 * shape.row() + 8).inner(1).condition(4.0);
    Case::new("edge_softmax", format!("{shape} h={heads}"), Judge::Smooth)
        .input("scores", &[shape.edges(), heads], backward)
        .call(Arithmetic::depth(shape.row() + 8), move |tape, given| {
            let scores = given.var("scores")?;
            edge_softmax(tape, &graph.on(scores.tensor().device())?, scores)
        })
}

pub fn attended(shape: Shape, f: usize, heads: usize) -> Case {
    let graph = Graph::new(shape);
    let (row, column) = (shape.row(), shape.column());
    // The scores' slopes are differences of products with rows of x and of y, which is rounded; they cancel in a row.
    let slopes = Arithmetic::depth(f / heads + row + column + 16).inner(2).condition(16.0);
    Case::new("graph_attention", format!("{shape} f={f} h={heads}"), Judge::Smooth)
        .input("left", &[shape.0, heads], slopes)
        .input("right", &[shape.1, heads], slopes)
        .input("x", &[shape.1, f], Arithmetic::depth(row + column + 16).inner(1))
        .call(Arithmetic::depth(2 * row + 16), move |tape, given| {
            let x = given.var("x")?;
            let graph = graph.on(x.tensor().device())?;
            graph_attention(tape, &graph, given.var("left")?, given.var("right")?, x, SLOPE)
        })
}

/// The whole matrix of the graph, whose values are the similarities: not one edge more or less, and not one bit.
pub fn similar(v: usize, f: usize) -> Case {
    Case::new("cosine_graph", format!("{v}x{f}"), Judge::Exact).steps(move |run| {
        let mut outputs = Vec::new();
        for threshold in [-0.25, 0.0, 0.25] {
            let values: Vec<f32> = normal("features", v * f).into_iter().map(|v| run.value(v)).collect();
            let x = Tensor::from_f32(&run.device, &[v, f], &values, run.dtype)?;
            let options = CosineOptions { threshold, weighted: true, ..CosineOptions::default() };
            let dense = cosine_graph(&x, &options)?.to_host()?.to_dense();
            outputs.push(Output {
                pass: format!("forward {threshold}"),
                dtype: DType::F32,
                cols: v,
                arithmetic: Arithmetic::NONE,
                values: dense.into_iter().map(f64::from).collect(),
            });
        }
        Ok(outputs)
    })
}
