//! AdamW: three steps with two groups, clipped or not, zeroing or not, with a working copy where the dtype is 16 bits wide.

use graftwork::ops::adamw::{AdamWStep, Buffers, Group, Scratch, step};
use graftwork::testing::{integers, normal};
use graftwork::{DType, Result, Tensor};

use crate::verify::case::{Arithmetic, Case, Judge, Output, Run};

const SIZES: [usize; 6] = [1, 7, 129, 1025, 4099, 20_000];
const STEPS: u64 = 3;

/// Around a vector, a block and several of them.
const EDGES: [usize; 9] = [1, 3, 4, 5, 255, 256, 257, 1023, 1025];

pub fn all() -> Vec<Case> {
    let exact = EDGES.map(|n| stepped(Recipe { n, clip: None, zero_grads: n % 2 == 1, exact: true }));
    let forms = [(None, false), (Some(0.5), true), (Some(1e6), false)];
    let form =
        |&n: &usize| forms.map(|(clip, zero_grads)| stepped(Recipe { n, clip, zero_grads, exact: false })).into_iter();
    exact.into_iter().chain(SIZES.iter().flat_map(form)).collect()
}

#[derive(Clone, Copy)]
struct Recipe {
    n: usize,
    clip: Option<f64>,
    zero_grads: bool,
    /// One step whose every number is a small multiple of a power of two, for gradients of ±1.
    exact: bool,
}

fn stepped(recipe: Recipe) -> Case {
    let note = match recipe.clip {
        _ if recipe.exact => " one step",
        None => "",
        Some(limit) if limit < 1.0 => " clipped",
        Some(_) => " clip unused",
    };
    let zeroing = if recipe.zero_grads { " zeroing" } else { "" };
    let judge = if recipe.exact { Judge::Exact } else { Judge::Smooth };
    Case::new("adamw", format!("{}{note}{zeroing}", recipe.n), judge).steps(move |run| steps(run, recipe))
}

fn steps(run: &Run, recipe: Recipe) -> Result<Vec<Output>> {
    let Recipe { n, clip, zero_grads, exact } = recipe;
    let (last, lr, beta1, beta2, eps, decay) = if exact {
        (1, 0.5, 0.5, 0.75, f64::from(f32::MIN_POSITIVE), 0.5)
    } else {
        (STEPS, 0.01, 0.9, 0.99, 1e-8, 0.1)
    };
    let draw = |name: &str| match exact {
        true => integers(name, n, 3).into_iter().map(|v| if v < 0.0 { -1.0 } else { 1.0 }).collect(),
        false => normal(name, n),
    };
    let dtype = run.dtype.accumulator();
    // Parameters, moments and gradients are f32 whatever the working copy is.
    let place = |values: &[f32]| Tensor::from_f32(&run.device, &[n], values, dtype);
    let (params, m, v) = (place(&draw("params"))?, place(&vec![0.0; n])?, place(&vec![0.0; n])?);
    let working = (run.dtype.size() == 2).then(|| Tensor::zeros(&run.device, &[n], run.dtype)).transpose()?;
    let scratch = Scratch::new(&run.device, dtype)?;
    let groups = [
        Group { end: n / 3, lr_multiplier: 1.0, weight_decay: decay },
        Group { end: n, lr_multiplier: 0.5, weight_decay: 0.0 },
    ];
    let grads = place(&vec![0.0; n])?;
    for t in 1..=last {
        refill(&grads, &draw(NAMES[t as usize % NAMES.len()]))?;
        let request =
            AdamWStep { lr, beta1, beta2, eps, step: t, clip, measure_norm: true, zero_grads, groups: &groups };
        let working = working.as_ref();
        let buffers = Buffers { params: &params, working, grads: &grads, m: &m, v: &v, scratch: &scratch };
        step(&request, &buffers)?;
    }
    // Each step: the norm and what is cut off by it, two moments, a root, a quotient. The moments are sums that may cancel.
    let clipped = Arithmetic::depth(STEPS as usize * (16 + n.div_ceil(64))).condition(2.0);
    let output = |pass: &str, tensor: &Tensor, arithmetic: Arithmetic| {
        Ok(Output { pass: pass.into(), dtype: tensor.dtype(), cols: n, arithmetic, values: tensor.to_f64_vec()? })
    };
    let mut out = vec![
        output("parameters", &params, clipped)?,
        output("first moment", &m, clipped)?,
        output("second moment", &v, clipped)?,
        output("gradient", &grads, Arithmetic::NONE)?,
        Output { cols: 1, ..output("norm", scratch.norm(), Arithmetic::depth(n.div_ceil(16) + 24))? },
    ];
    // The reference has no working copy of its own: its parameters are what a working copy rounds.
    out.push(output("working copy", working.as_ref().unwrap_or(&params), clipped)?);
    Ok(out)
}

/// The gradients of the steps.
const NAMES: [&str; STEPS as usize] = ["first gradient", "second gradient", "third gradient"];

fn refill(tensor: &Tensor, values: &[f32]) -> Result<()> {
    match tensor.dtype() {
        DType::F64 => tensor.overwrite(&values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>()),
        _ => tensor.overwrite(values),
    }
}
