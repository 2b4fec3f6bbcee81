//! Linear layers: frozen with bias, low-rank update and dropout, with an adapter for each run of rows, and trainable.

use graftwork::DType;
use graftwork::ops::{
    Activation, After, Bank, LowRank, Mid, Segments, Updates, frozen_linear, frozen_linear_segmented,
    frozen_linear_with, linear, scale_add,
};

use crate::verify::case::{Arithmetic, Case, Judge};

/// m, n, k, r (0: no update), bias, dropout.
#[derive(Clone, Copy)]
pub struct Frozen(pub usize, pub usize, pub usize, pub usize, pub bool, pub f64);

const FROZEN: [Frozen; 22] = [
    Frozen(1, 1, 1, 1, true, 0.0),
    Frozen(0, 5, 3, 2, true, 0.0),
    Frozen(1, 7, 3, 0, true, 0.0),
    Frozen(3, 7, 17, 1, true, 0.5),
    Frozen(7, 33, 65, 5, false, 0.0),
    Frozen(17, 129, 33, 8, true, 0.5),
    Frozen(33, 65, 129, 16, true, 0.0),
    Frozen(33, 65, 129, 0, false, 0.0),
    Frozen(65, 33, 7, 64, true, 0.5),
    Frozen(129, 17, 65, 256, true, 0.5),
    Frozen(129, 1, 33, 8, true, 0.0),
    Frozen(65, 129, 1, 16, true, 0.0),
    Frozen(64, 64, 64, 8, true, 0.0),
    Frozen(130, 136, 72, 16, true, 0.5),
    Frozen(128, 256, 192, 64, true, 0.5),
    Frozen(257, 320, 136, 8, false, 0.0),
    Frozen(257, 256, 72, 16, true, 0.5),
    Frozen(257, 256, 72, 0, true, 0.0),
    Frozen(257, 256, 72, 128, true, 0.5),
    Frozen(130, 136, 72, 0, true, 0.0),
    Frozen(128, 256, 192, 0, true, 0.0),
    Frozen(257, 320, 136, 0, false, 0.0),
];

/// Rows of each slot, n, k, r, dropout.
type Segmented = (&'static [usize], [usize; 3], f64);

/// Runs within a tile and across tiles, slots without rows, more slots than rows, no rows; odd sizes and whole tiles.
const SEGMENTED: [Segmented; 7] = [
    (&[0, 0], [5, 3, 2], 0.0),
    (&[1], [1, 1, 1], 0.5),
    (&[3, 0, 70, 1, 0], [24, 40, 8], 0.5),
    (&[1, 1, 1, 1, 5, 60, 2], [9, 7, 3], 0.0),
    (&[0, 2, 0, 0, 0, 0, 1], [136, 72, 24], 0.5),
    (&[65, 64, 63], [33, 96, 40], 0.0),
    (&[128, 0, 64], [64, 64, 64], 0.5),
];
/// Sides long enough for the large tile, in y and in dx.
const SEGMENTED_TILES: [Segmented; 2] = [(&[700, 1, 0, 580], [1161, 33, 5], 0.0), (&[127, 1154], [33, 1161, 5], 0.5)];

/// Every side just below, at and just above the edges of the kernels' tiles (64, 128; along k 16, 32), whole pieces of tokens (256) and
/// one more, and odd ranks.
const EDGES: [Frozen; 9] = [
    Frozen(63, 64, 65, 7, true, 0.0),
    Frozen(64, 65, 63, 9, true, 0.0),
    Frozen(65, 63, 64, 8, true, 0.0),
    Frozen(127, 129, 31, 15, true, 0.0),
    Frozen(128, 127, 33, 17, true, 0.0),
    Frozen(129, 128, 32, 16, true, 0.0),
    Frozen(255, 15, 16, 1, true, 0.0),
    Frozen(256, 16, 17, 2, false, 0.0),
    Frozen(257, 17, 15, 3, true, 0.0),
];

/// Sides long enough for the kernels' largest tile, in y, in dx and in dW.
const MANY_TILES: [Frozen; 2] = [Frozen(1281, 1161, 33, 5, true, 0.0), Frozen(1281, 33, 1161, 5, true, 0.5)];
const MANY_TOKENS: (usize, usize, usize) = (6145, 129, 136);

const LINEAR: [(usize, usize, usize); 9] = [
    (0, 5, 3),
    (1, 1, 1),
    (3, 7, 17),
    (7, 3, 1),
    (17, 33, 65),
    (65, 5, 129),
    (33, 129, 7),
    (129, 65, 33),
    (128, 64, 192),
];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(EDGES.iter().chain(&MANY_TILES).map(|&shape| frozen(shape, Judge::Exact)));
    cases.extend(EDGES.map(|shape| frozen(shape, Judge::Exact).unaligned()));
    cases.extend(EDGES.map(|Frozen(m, n, k, ..)| trainable((m, n, k), Judge::Exact).unaligned()));
    cases.push(trainable(MANY_TOKENS, Judge::Exact));
    cases.extend([(0, 5, 3, 2), (3, 7, 5, 2), (65, 33, 17, 8), (130, 72, 24, 8)].map(bottleneck));
    cases.extend(SEGMENTED_TILES.map(|shape| segmented(shape, Judge::Exact)));
    cases.extend([SEGMENTED[2], SEGMENTED[5]].map(|shape| segmented(shape, Judge::Exact).unaligned()));
    for judge in [Judge::Exact, Judge::Bound] {
        cases.extend([(0, 3, 5), (3, 7, 17), (257, 65, 33)].map(|shape| trainable(shape, judge).all_inputs()));
        cases.extend([FROZEN[1], FROZEN[5], FROZEN[6]].map(|shape| frozen(shape, judge).all_inputs()));
        cases.extend(FROZEN.iter().map(|&shape| frozen(shape, judge)));
        cases.extend([(1, 3, 5, 2), (17, 33, 65, 8), (64, 64, 64, 8)].map(|shape| shared(shape, judge)));
        cases.extend(SEGMENTED.map(|shape| segmented(shape, judge)));
        cases.push(segmented(SEGMENTED[4], judge).all_inputs());
        cases.extend(LINEAR.iter().map(|&shape| trainable(shape, judge)));
    }
    cases
}

/// Products of a rank's worth of integers stay small in bf16 only for the smallest integers.
const UNIT: u32 = 1;
const SCALE: f64 = -2.0;

pub fn frozen(Frozen(m, n, k, r, bias, dropout): Frozen, judge: Judge) -> Case {
    let mut shape = format!("{m}x{n}x{k}");
    for (part, present) in [(format!(" r={r}"), r > 0), (" bias".into(), bias), (" dropout".into(), dropout > 0.0)] {
        shape += if present { &part } else { "" };
    }
    let update = usize::from(r > 0);
    // Beyond the sums: scale, mask, bias and the sum of both products.
    let extra = 4;
    let mut case = Case::new("frozen_linear", shape, judge)
        .limit(UNIT)
        .dropout(dropout > 0.0)
        .input("x", &[m, k], Arithmetic::depth(n + r + extra).inner(update))
        .frozen("weight", &[n, k]);
    if bias {
        case = case.param("bias", &[n], Arithmetic::depth(m));
    }
    if r > 0 {
        case = case.param("a", &[r, k], Arithmetic::depth(m + n + extra).inner(1));
        case = case.param("b", &[n, r], Arithmetic::depth(m + k + extra).inner(1));
    }
    case.call(Arithmetic::depth(k + r + extra).inner(update), move |tape, given| {
        let update = match (given.maybe("a"), given.maybe("b")) {
            (Some(a), Some(b)) => {
                Some(LowRank { a, b, mid: Mid::Identity, scale: given.factor(SCALE), dropout, site: 3 })
            }
            _ => None,
        };
        frozen_linear(tape, given.var("x")?, given.frozen("weight")?, given.maybe("bias"), update)
    })
}

/// A rectified bottleneck as the update, and what follows: a residual and another rectification.
pub fn bottleneck((m, n, k, r): (usize, usize, usize, usize)) -> Case {
    let any = Arithmetic::depth(m + n + k + r + 4);
    Case::new("frozen_linear", format!("{m}x{n}x{k} r={r} relu, residual, relu"), Judge::Exact)
        .limit(UNIT)
        .input("x", &[m, k], any)
        .frozen("weight", &[n, k])
        .param("a", &[r, k], any)
        .param("b", &[n, r], any)
        .param("c", &[r], any)
        .input("residual", &[m, n], any)
        .call(any, move |tape, given| {
            let [a, b, c] = ["a", "b", "c"].map(|name| given.var(name));
            let mid = Mid::Activation { activation: Activation::Relu, bias: Some(c?) };
            let update = LowRank { a: a?, b: b?, mid, scale: given.factor(SCALE), dropout: 0.0, site: 3 };
            let after = After { residual: Some(given.var("residual")?), activation: Some(Activation::Relu) };
            let updates = Updates { low_rank: Some(update), sparse: None };
            frozen_linear_with(tape, given.var("x")?, given.frozen("weight")?, None, updates, after)
        })
}

/// A bank of adapters, each on its own rows.
pub fn segmented((lengths, [n, k, r], dropout): Segmented, judge: Judge) -> Case {
    let (m, slots) = (lengths.iter().sum(), lengths.len());
    let mask = if dropout > 0.0 { " dropout" } else { "" };
    // Beyond the sums: scale, mask, bias and the sum of both products.
    let extra = 4;
    Case::new("frozen_linear_segmented", format!("{lengths:?}x{n}x{k} r={r}{mask}"), judge)
        .limit(UNIT)
        .dropout(dropout > 0.0)
        .input("x", &[m, k], Arithmetic::depth(n + r + extra).inner(1))
        .frozen("weight", &[n, k])
        .stored("scales", DType::F32, &[slots], |slot| [0.5, 1.0, 2.0][slot % 3])
        .param("bias", &[n], Arithmetic::depth(m))
        .param("a", &[slots, r, k], Arithmetic::depth(m + n + extra).inner(1))
        .param("b", &[slots, n, r], Arithmetic::depth(m + k + extra).inner(1))
        .call(Arithmetic::depth(k + r + extra).inner(1), move |tape, given| {
            let (x, a, b) = (given.var("x")?, given.var("a")?, given.var("b")?);
            let bank = Bank { a, b, scales: given.tensor("scales")?, dropout, site: 3 };
            let segments = Segments::new(x.tensor().device(), lengths)?;
            frozen_linear_segmented(tape, x, given.frozen("weight")?, given.maybe("bias"), bank, &segments)
        })
}

/// Two layers that read one x, as q and v do: the second gradient of x is added to the first.
fn shared((m, n, k, r): (usize, usize, usize, usize), judge: Judge) -> Case {
    let extra = 5;
    Case::new("frozen_linear", format!("{m}x{n}x{k} r={r} twice"), judge)
        .limit(UNIT)
        .input("x", &[m, k], Arithmetic::depth(2 * n + r + extra).inner(2))
        .frozen("first", &[n, k])
        .frozen("second", &[n, k])
        .param("a", &[r, k], Arithmetic::depth(m + n + extra).inner(1))
        .param("b", &[n, r], Arithmetic::depth(m + k + extra).inner(1))
        .call(Arithmetic::depth(k + r + extra).inner(2), move |tape, given| {
            let (x, a, b) = (given.var("x")?, given.var("a")?, given.var("b")?);
            let update = LowRank { a, b, mid: Mid::Identity, scale: given.factor(SCALE), dropout: 0.0, site: 3 };
            let first = frozen_linear(tape, x, given.frozen("first")?, None, Some(update))?;
            let second = frozen_linear(tape, x, given.frozen("second")?, None, None)?;
            scale_add(tape, &first, &second, 1.0)
        })
}

pub fn trainable((m, n, k): (usize, usize, usize), judge: Judge) -> Case {
    Case::new("linear", format!("{m}x{n}x{k}"), judge)
        .input("x", &[m, k], Arithmetic::depth(n))
        .param("weight", &[n, k], Arithmetic::depth(m))
        .param("bias", &[n], Arithmetic::depth(m))
        .call(Arithmetic::depth(k + 1), |tape, given| {
            linear(tape, given.var("x")?, given.var("weight")?, given.maybe("bias"))
        })
}
