//! Activations, add, scale and multiply, gates on columns, sums of Kronecker products.

use graftwork::ops::{Activation, activation, column_gate, kronecker, multiply, scale, scale_add};

use crate::verify::case::{Arithmetic, Case, Judge};

const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 3), (3, 7), (17, 33), (65, 129), (33, 1025)];
/// Elements around a vector of 16 bytes, a warp and a block of kernels that take one element, four or eight a thread.
const EDGES: [(usize, usize); 9] = [(0, 5), (1, 4), (1, 8), (3, 5), (1, 31), (2, 128), (1, 257), (1, 1024), (23, 89)];

/// Rows and columns of a block, blocks across, rank.
const FACTORS: [[usize; 4]; 4] = [[1, 1, 1, 1], [2, 31, 3, 2], [16, 33, 4, 1], [24, 8, 2, 3]];

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for function in Activation::ALL {
        cases.extend(EDGES.map(|shape| saturated(function, shape)));
        cases.push(saturated(function, (17, 64)).unaligned());
        cases.push(saturated(function, (17, 33)).all_inputs());
        cases.extend(SHAPES.iter().map(|&shape| activated(function, shape)));
    }
    for shape in EDGES {
        cases.extend([false, true].map(|broadcast| added(shape, broadcast, Judge::Exact)));
        cases.push(added(shape, true, Judge::Exact).all_inputs());
        cases.push(scaled(shape, Judge::Exact));
    }
    cases.extend([false, true].map(|broadcast| added((17, 64), broadcast, Judge::Exact).unaligned()));
    cases.push(scaled((17, 64), Judge::Exact).unaligned());
    for judge in [Judge::Exact, Judge::Bound] {
        for shape in SHAPES {
            cases.push(added(shape, false, judge));
            cases.push(added(shape, true, judge));
            cases.push(scaled(shape, judge));
            cases.push(gated(shape, judge));
            cases.push(multiplied(shape, judge));
        }
        cases.push(doubled((33, 65), judge));
        cases.extend(FACTORS.map(|shape| made_of_factors(shape, judge)));
    }
    cases
}

/// relu chooses and rounds nothing, so it is exact on any data. The others are judged where they bend: N(0, 2²). The first value is
/// positive: alone, one far below zero would measure the relative error of a vanishing result, which `1 + tanh` does not bound.
pub fn activated(function: Activation, (m, n): (usize, usize)) -> Case {
    let judge = if function == Activation::Relu { Judge::Exact } else { Judge::Smooth };
    // An exponential, tanh or erf counts as ten; backward takes the derivative of a product.
    let (forward, backward) = (Arithmetic::depth(16), Arithmetic::depth(32));
    Case::new(function.name(), format!("{m}x{n}"), judge)
        .limit(3)
        .input("x", &[m, n], backward)
        .shaped(move |i, v| match (judge, i) {
            (Judge::Exact, _) => v,
            (_, 0) => 2.0 * v.abs(),
            _ => 2.0 * v,
        })
        .call(forward, move |tape, given| activation(tape, given.var("x")?, function))
}

/// Far from zero every one of the functions is 0 or x, and at zero it is 0 with slope ½ (relu: 0), all to the bit. x is a parameter
/// here: its gradient is f32 where the values are not.
fn saturated(function: Activation, (m, n): (usize, usize)) -> Case {
    Case::new(function.name(), format!("{m}x{n} saturated"), Judge::Exact)
        .limit(1)
        .param("x", &[m, n], Arithmetic::depth(32))
        .shaped(|_, v| 512.0 * v)
        .call(Arithmetic::depth(16), move |tape, given| activation(tape, given.var("x")?, function))
}

/// `x + s · z`, z a parameter that is repeated where `broadcast`.
pub fn added((m, n): (usize, usize), broadcast: bool, judge: Judge) -> Case {
    let s = if judge == Judge::Exact { -0.5 } else { -1.7 };
    let name = if broadcast { format!("{m}x{n} + {n}") } else { format!("{m}x{n}") };
    let case = Case::new("scale_add", name, judge).input("x", &[m, n], Arithmetic::NONE);
    let case = match broadcast {
        true => case.param("z", &[n], Arithmetic::depth(m + 1)),
        false => case.input("z", &[m, n], Arithmetic::depth(1)),
    };
    case.call(Arithmetic::depth(3), move |tape, given| {
        scale_add(tape, given.var("x")?, given.var("z")?, given.factor(s))
    })
}

/// `x + s · x`: both gradients flow into one.
fn doubled((m, n): (usize, usize), judge: Judge) -> Case {
    Case::new("scale_add", format!("{m}x{n} twice"), judge)
        .input("x", &[m, n], Arithmetic::depth(3).inner(1))
        .call(Arithmetic::depth(3), |tape, given| scale_add(tape, given.var("x")?, given.var("x")?, 0.5))
}

pub fn scaled((m, n): (usize, usize), judge: Judge) -> Case {
    let s = if judge == Judge::Exact { -0.5 } else { -1.7 };
    Case::new("scale", format!("{m}x{n}"), judge)
        .input("x", &[m, n], Arithmetic::depth(2))
        .call(Arithmetic::depth(2), move |tape, given| scale(tape, given.var("x")?, given.factor(s)))
}

/// `x ⊙ g`, g a parameter that gates the columns.
pub fn gated((m, n): (usize, usize), judge: Judge) -> Case {
    Case::new("column_gate", format!("{m}x{n}"), judge)
        .input("x", &[m, n], Arithmetic::depth(1))
        .param("g", &[n], Arithmetic::depth(m + 1))
        .call(Arithmetic::depth(1), |tape, given| column_gate(tape, given.var("x")?, given.var("g")?))
}

/// `Σ_i A_i ⊗ (L_i R_i)`, all of them learning.
fn made_of_factors([n, k, h, r]: [usize; 4], judge: Judge) -> Case {
    // Each gradient sums, over what the other two factors range over, products with a sum of its own.
    let (forward, [rule, left, right]) = (h * r, [n * k * r, h * h * k, h * h * n].map(|terms| terms + 2));
    Case::new("kronecker", format!("{h}x{h} of {n}x{k} r={r}"), judge)
        .limit(1)
        .param("rule", &[h, h, h], Arithmetic::depth(rule + 3))
        .param("left", &[n, h * r], Arithmetic::depth(left + 3))
        .param("right", &[h * r, k], Arithmetic::depth(right + 3))
        .call(Arithmetic::depth(forward + 3), |tape, given| {
            kronecker(tape, given.var("rule")?, given.var("left")?, given.var("right")?)
        })
}

fn multiplied((m, n): (usize, usize), judge: Judge) -> Case {
    Case::new("multiply", format!("{m}x{n}"), judge)
        .input("x", &[m, n], Arithmetic::depth(1))
        .input("z", &[m, n], Arithmetic::depth(1))
        .call(Arithmetic::depth(1), |tape, given| multiply(tape, given.var("x")?, given.var("z")?))
}
