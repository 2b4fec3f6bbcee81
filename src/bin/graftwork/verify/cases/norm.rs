//! Layer norm and RMS norm.

use graftwork::ops::{layer_norm, rms_norm};

use crate::verify::case::{Arithmetic, Case, Judge};

const SHAPES: [(usize, usize); 9] =
    [(1, 3), (3, 7), (7, 17), (17, 33), (33, 65), (129, 64), (65, 129), (33, 768), (5, 1025)];
/// Widths are powers of two, so that means of integers are exact: within a lane's chunk, a warp's row, and beyond it a block's.
const EXACT: [(usize, usize); 10] =
    [(0, 4), (1, 2), (3, 4), (9, 16), (127, 32), (128, 64), (129, 64), (17, 256), (5, 1024), (3, 4096)];
const EPS: f64 = 1e-5;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Layer,
    /// With β absent and γ frozen.
    LayerFrozen,
    Rms,
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for form in [Form::Layer, Form::LayerFrozen, Form::Rms] {
        // In a row of one the value itself cancels but for ε, so ε is large there.
        cases.push(normed(form, (3, 1), 0.5));
        cases.extend(EXACT.map(|shape| signs(form, shape)));
        cases.extend([(0, 4), (129, 64)].map(|shape| signs(form, shape).all_inputs()));
        cases.push(signs(form, (9, 64)).unaligned());
        cases.push(signs(form, (3, 2048)).unaligned());
        cases.extend(SHAPES.iter().map(|&shape| normed(form, shape, EPS)));
    }
    cases
}

pub fn normed(form: Form, shape: (usize, usize), eps: f64) -> Case {
    // No two neighbours are close, so that in no row, however short, the deviation is small beside the values.
    let apart = |i: usize, v: f32| 0.25 * v + if i.is_multiple_of(2) { 1.0 } else { -1.0 };
    built(form, shape, eps, Judge::Smooth, apart)
}

/// Rows of +1 and −1, as many of each: they are their own norm.
fn signs(form: Form, shape: (usize, usize)) -> Case {
    let sign = |i: usize, _: f32| if (i / 2 * 7 / 3 + i).is_multiple_of(2) { 1.0 } else { -1.0 };
    built(form, shape, 0.0, Judge::Exact, sign)
}

fn built(
    form: Form,
    (m, d): (usize, usize),
    eps: f64,
    judge: Judge,
    value: impl Fn(usize, f32) -> f32 + Send + Sync + 'static,
) -> Case {
    let rms = form == Form::Rms;
    let name = if rms { "rms_norm" } else { "layer_norm" };
    let note = if form == Form::LayerFrozen { " frozen" } else { "" };
    // Mean, deviation, their squares' mean, root, and the product with γ and β; backward, both again and the two means of the slope,
    // which are taken away from it: that cancels, and the slope is up to three times what is left.
    let (forward, backward) = (Arithmetic::depth(2 * d + 8), Arithmetic::depth(4 * d + 16).condition(3.0));
    let case = Case::new(name, format!("{m}x{d}{note}"), judge).input("x", &[m, d], backward).shaped(value);
    let case = match form {
        Form::LayerFrozen => case.constant("gamma", &[d]),
        Form::Rms => case.param("gamma", &[d], Arithmetic::depth(2 * d + m + 8)),
        Form::Layer => {
            let case = case.param("gamma", &[d], Arithmetic::depth(2 * d + m + 8));
            case.param("beta", &[d], Arithmetic::depth(m))
        }
    };
    case.call(forward, move |tape, given| {
        let (x, gamma) = (given.var("x")?, given.var("gamma")?);
        if rms { rms_norm(tape, x, gamma, eps) } else { layer_norm(tape, x, gamma, given.maybe("beta"), eps) }
    })
}
