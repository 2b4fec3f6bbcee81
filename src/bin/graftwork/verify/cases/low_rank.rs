//! What single adapters need besides the products: Dual-LoRA's gate, DoRA's lengths of rows, and sampling of maps.

use graftwork::ops::{DualRank, Level, Sampling, deformable_sample, dual_rank, magnitude};

use crate::verify::case::{Arithmetic, Case, Judge};

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [[1, 3, 2], [9, 17, 3], [70, 33, 16], [33, 64, 33], [5, 96, 255]] {
        for dropout in [0.0, 0.3] {
            cases.push(gated(shape, dropout));
        }
    }
    cases.push(gated([70, 64, 16], 0.3).unaligned());
    cases.push(gated([70, 64, 16], 0.3).all_inputs());
    cases.extend([[1, 1, 1], [9, 33, 3], [17, 300, 16], [8, 64, 256]].map(lengths));
    cases.push(lengths([9, 33, 3]).all_inputs());
    cases.extend([Maps([1, 5, 1, 3], 1, 1), Maps([2, 33, 2, 33], 3, 4), Maps([1, 40, 4, 64], 4, 8)].map(sampled));
    cases.push(sampled(Maps([2, 7, 2, 16], 2, 2)).unaligned());
    cases
}

/// `LayerNorm(S dropout(x)) ⊙ ReLU(T x)`, everything learning.
pub fn gated([m, k, r]: [usize; 3], dropout: f64) -> Case {
    // The product, the norm over r of what is rounded, which cancels, and backward that twice.
    let (forward, backward) = (
        Arithmetic::depth(k + 4 * r + 16).inner(2).condition(4.0),
        Arithmetic::depth(2 * k + 8 * r + m + 32).inner(4).condition(8.0),
    );
    let note = if dropout > 0.0 { format!(" p={dropout}") } else { String::new() };
    // Rows of S differ widely, so that no row of a has a deviation that is small beside it.
    let apart = move |i: usize, v: f32| (v + if (i / k).is_multiple_of(2) { 1.0 } else { -1.0 }) / (k as f32).sqrt();
    Case::new("dual_rank", format!("{m}x{k} r={r}{note}"), Judge::Smooth)
        .dropout(dropout > 0.0)
        .input("x", &[m, k], backward)
        .param("stacked", &[2 * r, k], backward)
        .shaped(apart)
        .param("gamma", &[r], backward)
        .param("beta", &[r], backward)
        .call(forward, move |tape, given| {
            let [x, stacked, gamma, beta] = ["x", "stacked", "gamma", "beta"].map(|name| given.var(name));
            let gate = DualRank { stacked: stacked?, gamma: gamma?, beta: beta?, eps: 1e-5, dropout, site: 3 };
            dual_rank(tape, x?, &gate)
        })
}

/// `m / ‖W₀ + s · B A‖`.
pub fn lengths([n, k, r]: [usize; 3]) -> Case {
    let arithmetic = Arithmetic::depth(r + k + 8).condition(2.0);
    Case::new("magnitude", format!("{n}x{k} r={r}"), Judge::Smooth)
        .param("magnitude", &[n], arithmetic)
        .frozen("weight", &[n, k])
        .constant("a", &[r, k])
        .constant("b", &[n, r])
        .shaped(move |_, v| v / (r as f32).sqrt())
        .call(arithmetic, move |tape, given| {
            let factors = [given.var("a")?, given.var("b")?];
            magnitude(tape, given.var("magnitude")?, given.frozen("weight")?, factors, 0.5)
        })
}

/// Batch, queries, heads and features of a head; levels, and points of each.
#[derive(Clone, Copy)]
pub struct Maps(pub [usize; 4], pub usize, pub usize);

impl Maps {
    /// As many cells as there are queries, in rows of five or so, one token between the maps.
    pub fn levels(&self) -> Vec<Level> {
        let Maps([_, q, ..], l, _) = *self;
        let (width, height) = (q.min(5), q.div_ceil(5));
        (0..l).map(|i| Level { height, width, first: i * (height * width + 1) + 1 }).collect()
    }

    pub fn tokens(&self) -> usize {
        self.levels().last().map_or(0, |last| last.first + last.height * last.width)
    }
}

/// Multi-scale deformable sampling.
pub fn sampled(maps: Maps) -> Case {
    let Maps([b, q, h, d], l, p) = maps;
    let (levels, samples) = (maps.levels(), h * l * p);
    let forward = Arithmetic::depth(8 * l * p + 16).condition(4.0);
    let backward = Arithmetic::depth(8 * l * p + 2 * d + 4 * q * p + 32).condition(8.0);
    // A query asks from the middle of a cell, and no place is close to a border between cells, where slopes jump.
    let inside = |_: usize, v: f32| (2.0 * v).round() + 0.3 + 0.4 * v.fract().abs();
    let at = move |i: usize| {
        let (query, width, height) = (i / 2, q.min(5), q.div_ceil(5));
        let cell = if i.is_multiple_of(2) { (query % width, width) } else { (query / width % height, height) };
        (cell.0 as f32 + 0.5) / cell.1 as f32
    };
    Case::new("deformable_sample", format!("{b}x{q} h={h} d={d} l={l} p={p}"), Judge::Smooth)
        .input("value", &[b, maps.tokens(), h * d], backward)
        .input("offsets", &[b, q, 2 * samples], backward)
        .shaped(inside)
        .input("logits", &[b, q, samples], backward)
        .stored("references", graftwork::DType::F32, &[q, 2], at)
        .call(forward, move |tape, given| {
            let value = given.var("value")?;
            let references = given.tensor("references")?.cast(value.tensor().dtype().accumulator())?;
            let (offsets, logits) = (given.var("offsets")?, given.var("logits")?);
            let (references, levels) = (&references, &levels[..]);
            deformable_sample(tape, &Sampling { value, offsets, logits, references, levels, heads: h })
        })
}
