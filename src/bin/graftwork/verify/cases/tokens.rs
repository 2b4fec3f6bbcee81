//! Embeddings and pooling.

use graftwork::DType;
use graftwork::ops::{Pooling, embedding, patch_embedding, pool};

use crate::verify::case::{Arithmetic, Case, Judge};

/// m, v, d.
const TABLES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (3, 7, 17), (17, 3, 33), (65, 129, 7), (129, 33, 65), (257, 5, 128)];

/// b, c, grid down and across, patch, d.
#[derive(Clone, Copy)]
pub struct Image(pub usize, pub usize, pub [usize; 2], pub usize, pub usize);

const IMAGES: [Image; 6] = [
    Image(1, 1, [1, 1], 1, 1),
    Image(2, 3, [2, 1], 3, 7),
    Image(3, 1, [4, 4], 2, 64),
    Image(1, 3, [3, 5], 4, 33),
    Image(5, 2, [2, 2], 8, 129),
    Image(2, 3, [2, 3], 16, 65),
];

/// b, t, d.
const SEQUENCES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (3, 7, 17), (2, 17, 64), (5, 64, 33), (1, 129, 65), (33, 3, 7)];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for judge in [Judge::Exact, Judge::Bound] {
        for (i, &shape) in TABLES.iter().enumerate() {
            cases.push(looked_up(shape, if i % 2 == 0 { DType::I64 } else { DType::I32 }, judge));
        }
        for (i, &image) in IMAGES.iter().enumerate() {
            cases.push(patched(image, i % 3 != 1, judge));
        }
        for shape in SEQUENCES {
            cases.push(pooled(shape, Pooling::ClassToken, judge));
            // 1/t is a power of two, or the mean of integers is none.
            if judge == Judge::Bound || shape.1.is_power_of_two() {
                cases.push(pooled(shape, Pooling::Mean, judge));
            }
        }
    }
    cases
}

/// Ids that repeat, and that jump about the table.
pub fn looked_up((m, v, d): (usize, usize, usize), ids: DType, judge: Judge) -> Case {
    Case::new("embedding", format!("{m} of {v}x{d} {ids}"), judge)
        .stored("ids", ids, &[m], move |i| ((i * i + 3 * i) % v) as f32)
        .param("table", &[v, d], Arithmetic::depth(m))
        .call(Arithmetic::NONE, |tape, given| embedding(tape, given.tensor("ids")?, given.var("table")?))
}

/// With bias, class token and positions that learn, or with none of them.
pub fn patched(Image(b, c, [down, across], patch, d): Image, whole: bool, judge: Judge) -> Case {
    let (patches, k) = (down * across, c * patch * patch);
    let note = if whole { "" } else { " bare" };
    let shape = format!("b={b} {c}x{}x{} p={patch} d={d}{note}", down * patch, across * patch);
    let mut case = Case::new("patch_embedding", shape, judge)
        .input("pixels", &[b, c, down * patch, across * patch], Arithmetic::depth(d))
        .frozen("weight", &[d, k]);
    if whole {
        case = case.param("bias", &[d], Arithmetic::depth(b * patches));
        case = case.param("cls", &[1, 1, d], Arithmetic::depth(b));
        case = case.param("positions", &[1, 1 + patches, d], Arithmetic::depth(b));
    }
    case.call(Arithmetic::depth(k + 2), move |tape, given| {
        let (bias, cls, positions) = (given.maybe("bias"), given.maybe("cls"), given.maybe("positions"));
        patch_embedding(tape, given.var("pixels")?, given.frozen("weight")?, bias, cls, positions, patch)
    })
}

pub fn pooled((b, t, d): (usize, usize, usize), pooling: Pooling, judge: Judge) -> Case {
    let (op, terms) = match pooling {
        Pooling::Mean => ("pool_mean", t + 1),
        Pooling::ClassToken => ("pool_class_token", 0),
    };
    Case::new(op, format!("b={b} {t}x{d}"), judge)
        .input("x", &[b, t, d], Arithmetic::depth(2))
        .call(Arithmetic::depth(terms), move |tape, given| pool(tape, given.var("x")?, pooling))
}
