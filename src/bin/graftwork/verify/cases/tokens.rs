//! Embeddings, pooling and joined sequences.

use graftwork::DType;
use graftwork::ops::{Pooling, embedding, join, patch_embedding, pool};

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

/// Columns around a vector of 16 bytes, a warp of them, and the 512 columns of a block; no token at all.
const WIDTHS: [(usize, usize, usize); 8] =
    [(0, 3, 5), (5, 2, 8), (7, 3, 31), (33, 4, 32), (9, 2, 257), (3, 2, 511), (3, 2, 512), (4, 3, 1032)];

/// Patches and columns around the kernel's tile of 64, the length of a patch around its step of 16.
const TILES: [Image; 5] = [
    Image(0, 1, [2, 2], 2, 8),
    Image(7, 1, [3, 3], 3, 63),
    Image(4, 1, [4, 4], 4, 64),
    Image(13, 1, [5, 1], 2, 65),
    Image(1, 17, [9, 7], 1, 40),
];

/// b, tokens of either part, d: parts that begin at multiples of 16 bytes and parts that do not, and parts that are empty.
const PARTS: [(usize, [usize; 2], usize); 8] = [
    (0, [2, 3], 5),
    (1, [1, 1], 1),
    (2, [3, 2], 7),
    (3, [0, 4], 8),
    (3, [5, 0], 4),
    (33, [16, 9], 8),
    (5, [31, 1], 64),
    (2, [1, 33], 129),
];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(PARTS.map(joined));
    cases.extend([PARTS[2], PARTS[5]].map(|parts| joined(parts).all_inputs()));
    cases.push(joined(PARTS[6]).unaligned());
    for shape in WIDTHS {
        cases.push(looked_up(shape, DType::I64, Judge::Exact));
        cases.push(pooled((shape.0, 4, shape.2), Pooling::Mean, Judge::Exact));
        cases.push(pooled((shape.0, 3, shape.2), Pooling::ClassToken, Judge::Exact));
    }
    cases.extend([(0, 3, 5), (33, 4, 65)].map(|shape| looked_up(shape, DType::I64, Judge::Exact).all_inputs()));
    cases.push(looked_up((9, 4, 64), DType::I32, Judge::Exact).unaligned());
    cases.extend([Pooling::Mean, Pooling::ClassToken].map(|p| pooled((5, 8, 64), p, Judge::Exact).unaligned()));
    cases.extend(TILES.map(|image| patched(image, true, Judge::Exact)));
    cases.extend([TILES[0], TILES[3]].map(|image| patched(image, true, Judge::Exact).all_inputs()));
    cases.push(patched(Image(3, 2, [4, 4], 4, 64), true, Judge::Exact).unaligned());
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

/// Copies, exact on any data; the second part is a parameter, to whose gradient is added.
pub fn joined((b, [t, s], d): (usize, [usize; 2], usize)) -> Case {
    Case::new("join", format!("b={b} {t}+{s}x{d}"), Judge::Exact)
        .input("first", &[b, t, d], Arithmetic::NONE)
        .param("second", &[b, s, d], Arithmetic::depth(1))
        .call(Arithmetic::NONE, |tape, given| join(tape, given.var("first")?, given.var("second")?))
}
