//! Attention: plain, causal, masked, one tensor for q, k and v.

use graftwork::DType;
use graftwork::ops::{AttentionOptions, attention};

use crate::verify::case::{Arithmetic, Case, Judge};

/// b, h, t, s, d.
pub type Shape = [usize; 5];

const SHAPES: [Shape; 8] = [
    [1, 1, 1, 1, 1],
    [2, 1, 3, 7, 3],
    [1, 3, 7, 3, 17],
    [2, 4, 17, 17, 16],
    [1, 2, 33, 65, 33],
    [1, 2, 65, 129, 64],
    [1, 1, 129, 33, 65],
    [1, 2, 130, 130, 128],
];

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    Causal,
    /// f32, added, the same for all.
    Added,
    /// u8, of each item and head.
    Kept,
    /// u8, one key for each query.
    One,
}

/// Queries, keys and columns around the edges of the kernels' tiles: 32 and 64 rows, 32 keys at a time, heads of 32, 64 and 128.
const EDGES: [Shape; 12] = [
    [0, 2, 3, 5, 8],
    [1, 2, 0, 3, 8],
    [1, 1, 3, 0, 8],
    [1, 1, 1, 64, 8],
    [1, 2, 31, 33, 7],
    [2, 1, 32, 32, 31],
    [1, 1, 33, 31, 32],
    [1, 2, 63, 65, 33],
    [1, 1, 64, 64, 64],
    [1, 1, 65, 63, 65],
    [1, 1, 129, 97, 127],
    [1, 3, 7, 128, 128],
];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(EDGES.map(|shape| attended(shape, Form::One)));
    cases.extend([[1, 2, 33, 65, 32], [1, 1, 65, 33, 128]].map(|shape| attended(shape, Form::One).unaligned()));
    cases.push(attended([1, 2, 33, 65, 64], Form::Plain).unaligned());
    for shape in SHAPES {
        for form in [Form::Plain, Form::Causal, Form::Added, Form::Kept] {
            cases.push(attended(shape, form));
        }
    }
    cases.extend([[1, 1, 7, 7, 8], [2, 4, 17, 17, 16], [1, 2, 65, 65, 64]].map(shared));
    cases
}

/// A score sums d products; its error, times the largest score (a few), is the relative error of a probability. Then come sums over
/// the keys (or queries).
fn arithmetic([_, _, t, s, d]: Shape) -> [Arithmetic; 4] {
    let scores = 4 * d + 10;
    let slopes = 2 * scores + s;
    [
        Arithmetic::depth(scores + 2 * s),
        // dP − D cancels: its terms are a few times what is left.
        Arithmetic::depth(slopes + s).condition(4.0),
        Arithmetic::depth(slopes + t).condition(4.0),
        Arithmetic::depth(scores + s + t),
    ]
}

pub fn attended(shape: Shape, form: Form) -> Case {
    let [b, h, t, s, d] = shape;
    let note = match form {
        Form::Plain => "",
        Form::Causal => " causal",
        Form::Added => " mask f32",
        Form::Kept => " mask u8",
        Form::One => " one key",
    };
    // Whoever sees one key gives it all its weight, whatever the score: y is a row of v, and dq and dk are zero.
    let judge = if form == Form::One { Judge::Exact } else { Judge::Smooth };
    let [forward, q, k, v] = arithmetic(shape);
    let case = Case::new("attention", format!("b={b} h={h} {t}x{s}x{d}{note}"), judge)
        .input("q", &[b, t, h * d], q)
        .input("k", &[b, s, h * d], k)
        .input("v", &[b, s, h * d], v);
    // Every third key is hidden, but never all keys of a query; the second query's are, where there is one.
    let hidden = move |i: usize| i / s % t == 1 || (s > 1 && (i % s + i / s).is_multiple_of(3));
    let case = match form {
        Form::Plain | Form::Causal => case,
        Form::Added => case.stored("mask", DType::F32, &[t, s], move |i| {
            if hidden(i) { f32::NEG_INFINITY } else { 0.25 * (i % 5) as f32 - 0.5 }
        }),
        Form::One => {
            case.stored("mask", DType::U8, &[b, h, t, s], move |i| f32::from(u8::from(i % s == i / s * 5 % s)))
        }
        Form::Kept => case.stored("mask", DType::U8, &[b, h, t, s], move |i| f32::from(u8::from(!hidden(i)))),
    };
    case.call(forward, move |tape, given| {
        let mask = given.maybe("mask").map(|m| m.tensor());
        let options = AttentionOptions { heads: h, causal: form == Form::Causal, mask, scale: None };
        attention(tape, given.var("q")?, given.var("k")?, given.var("v")?, &options)
    })
}

/// `attention(x, x, x)`: three gradients are added up in the storage type.
fn shared(shape: Shape) -> Case {
    let [b, h, t, _, d] = shape;
    let [forward, q, ..] = arithmetic(shape);
    let options = move || AttentionOptions { heads: h, ..AttentionOptions::default() };
    Case::new("attention", format!("b={b} h={h} {t}x{t}x{d} self"), Judge::Smooth)
        .input("x", &[b, t, h * d], q.inner(2))
        .call(forward, move |tape, given| {
            let x = given.var("x")?;
            attention(tape, x, x, x, &options())
        })
}
