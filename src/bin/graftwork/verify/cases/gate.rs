//! The granularity gate: four variants, alone and on a product, with and without what surrounds them.

use graftwork::Result;
use graftwork::autograd::{Tape, Var};
use graftwork::ops::{Gate, GateInput, GranularScale, Update, granular_scale};

use crate::verify::case::{Arithmetic, Case, Given, Judge};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Large,
    MiddleX,
    MiddleY,
    Small,
}

const FORMS: [(Form, &str); 4] =
    [(Form::Large, "large"), (Form::MiddleX, "middle-x"), (Form::MiddleY, "middle-y"), (Form::Small, "small")];
/// Samples, tokens and features.
const SHAPES: [[usize; 3]; 4] = [[2, 3, 7], [3, 11, 33], [2, 17, 64], [1, 5, 1040]];

/// Where ΔH comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Made {
    Given,
    /// Rank and heads of a product.
    Product(usize, usize),
}

pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for (form, _) in FORMS {
        for shape in SHAPES {
            cases.push(gated(form, shape, Made::Given, 0.3));
        }
        cases.push(gated(form, [2, 5, 64], Made::Given, 0.0).unaligned());
        // A row's gate has one error: as many rows as `ratio` wants numbers.
        cases.push(gated(form, [8, 33, 96], Made::Product(24, 1), 0.0));
        cases.push(gated(form, [2, 33, 72], Made::Product(12, 3), 0.3));
    }
    cases
}

/// `dropout(s · (H + ΔH + b) ⊙ G) + R`, everything learning.
pub fn gated(form: Form, [b, t, k]: [usize; 3], made: Made, dropout: f64) -> Case {
    let (_, name) = FORMS[form as usize];
    let note = match made {
        Made::Given => String::new(),
        Made::Product(r, heads) => format!(" r={r} h={heads}"),
    };
    // The sum over a row or a sample that a gate may take, its exponential, and in backward that sum again; the ways into U and R may
    // cancel.
    let (rows, through) = (b * t, if made == Made::Given { 0 } else { 1 });
    let value = Arithmetic::depth(6 * k + 2 * rows + 64).condition(3.0);
    let (forward, backward) = (value.inner(through), value.inner(2 * through));
    let case = Case::new("granular_scale", format!("{name} {b}x{t}x{k}{note}"), Judge::Smooth)
        .dropout(dropout > 0.0)
        .input("hidden", &[b, t, k], backward)
        .input("residual", &[b, t, k], backward)
        .param("bias", &[k], backward);
    let case = match made {
        Made::Given => case.input("update", &[b, t, k], backward),
        Made::Product(r, heads) => {
            // Sums of r products as large as one value.
            let small = move |_: usize, v: f32| v / (r as f32 / heads as f32).sqrt();
            case.input("update", &[b, t, r], backward).param("up", &[k, r / heads], backward).shaped(small)
        }
    };
    // Weights of a sum over a row so small that its sigmoid does not vanish.
    let small = move |_: usize, v: f32| v / (2.0 * k as f32).sqrt();
    let case = match form {
        Form::Large => case.input("logits", &[b, t, k], backward),
        Form::MiddleY => case.param("offset", &[k], backward),
        // The gradient of c is one number, in which everything may cancel: the op's own tests hold it.
        Form::MiddleX => case.param("weight", &[k], backward).shaped(small).constant("gate_bias", &[1]),
        Form::Small => case.param("weight", &[2 * k], backward).shaped(small).constant("gate_bias", &[1]),
    };
    case.call(forward, move |tape, given| call(tape, given, form, made, dropout))
}

fn call(tape: &mut Tape, given: &Given, form: Form, made: Made, dropout: f64) -> Result<Var> {
    let input = GateInput::Updated;
    let gate = match form {
        Form::Large => Gate::Large { logits: given.var("logits")? },
        Form::MiddleY => Gate::MiddleY { offset: given.var("offset")?, sigmoid: false },
        Form::MiddleX => Gate::MiddleX { weight: given.var("weight")?, bias: given.var("gate_bias")?, input },
        Form::Small => Gate::Small { weight: given.var("weight")?, bias: given.var("gate_bias")?, input, tokens: None },
    };
    let update = match made {
        Made::Given => Update::Given(given.var("update")?),
        Made::Product(_, heads) => Update::Product { x: given.var("update")?, weight: given.var("up")?, heads },
    };
    let options = GranularScale {
        update: Some(update),
        bias: given.maybe("bias"),
        residual: given.maybe("residual"),
        add_residual: true,
        scale: 0.7,
        dropout,
        site: 5,
        ..GranularScale::new(gate)
    };
    granular_scale(tape, given.var("hidden")?, &options)
}
