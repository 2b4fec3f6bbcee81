//! Cross-entropy with ignored targets, label smoothing and a denominator of the caller's.

use graftwork::DType;
use graftwork::ops::{CrossEntropyOptions, cross_entropy};

use crate::verify::case::{Arithmetic, Case, Judge};

const SHAPES: [(usize, usize); 7] = [(1, 3), (3, 7), (7, 17), (17, 33), (65, 129), (129, 5), (33, 1025)];
const IGNORED: i64 = -100;

/// Classes around a warp's and a block's, rows around a block of warps.
const EDGES: [(usize, usize); 10] =
    [(0, 3), (1, 1), (2, 2), (7, 31), (8, 32), (9, 33), (3, 255), (3, 1024), (5, 1025), (2, 4099)];

pub fn all() -> Vec<Case> {
    let mut cases: Vec<Case> = EDGES.iter().map(|&shape| peaked(shape)).collect();
    cases.push(peaked((9, 64)).unaligned());
    cases.push(peaked((3, 2048)).unaligned());
    for (i, &shape) in SHAPES.iter().enumerate() {
        for smoothing in [0.0, 0.1] {
            let denominator = (i % 3 == 2).then_some(4 * shape.0 as u64);
            let ids = if i % 2 == 0 { DType::I64 } else { DType::I32 };
            let options = CrossEntropyOptions { ignore_index: Some(IGNORED), label_smoothing: smoothing, denominator };
            cases.push(entropy(shape, ids, options, false));
        }
    }
    let options = CrossEntropyOptions { ignore_index: Some(IGNORED), ..CrossEntropyOptions::default() };
    cases.push(entropy((7, 17), DType::I64, options, true));
    cases
}

/// One class of each row has all the weight, to the bit: the loss of a row is 0 or 256, and the gradient a whole number over N.
fn peaked((m, c): (usize, usize)) -> Case {
    let options = CrossEntropyOptions { denominator: Some(64), ..CrossEntropyOptions::default() };
    Case::new("cross_entropy", format!("{m}x{c} peaked"), Judge::Exact)
        .input("logits", &[m, c], Arithmetic::depth(c + 32))
        .shaped(move |i, _| if i % c == i / c * 5 % c { 0.0 } else { -256.0 })
        .stored("targets", DType::I64, &[m], move |row| (if row % 2 == 0 { row * 5 } else { row * 3 + 1 } % c) as f32)
        .call(Arithmetic::depth(c + m + 24), move |tape, given| {
            cross_entropy(tape, given.var("logits")?, given.tensor("targets")?, &options)
        })
}

/// Every third target is ignored; or all of them, when loss and gradient are zero exactly.
pub fn entropy((m, c): (usize, usize), ids: DType, options: CrossEntropyOptions, all_ignored: bool) -> Case {
    let judge = if all_ignored { Judge::Exact } else { Judge::Smooth };
    let notes = [
        (" smoothed", options.label_smoothing > 0.0),
        (" divided", options.denominator.is_some()),
        (" all ignored", all_ignored),
    ];
    let notes: String = notes.into_iter().filter_map(|(note, is)| is.then_some(note)).collect();
    let target = move |i: usize| if all_ignored || i % 3 == 2 { IGNORED as f32 } else { (i * 7 % c) as f32 };
    // Maximum taken away, exponential (ten), sum, logarithm (ten); backward, an exponential and the hit taken away.
    Case::new("cross_entropy", format!("{m}x{c} {ids}{notes}"), judge)
        .input("logits", &[m, c], Arithmetic::depth(c + 32).condition(2.0))
        .shaped(|_, v| 2.0 * v)
        // Without it, gradients over N in f16 fall below the normal numbers, where a relative error means nothing.
        .cotangent_scale(1024.0)
        .stored("targets", ids, &[m], target)
        .call(Arithmetic::depth(c + m + 24), move |tape, given| {
            cross_entropy(tape, given.var("logits")?, given.tensor("targets")?, &options)
        })
}
