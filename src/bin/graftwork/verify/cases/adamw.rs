//! AdamW: three steps with two groups, clipped or not, zeroing or not, with a working copy where the dtype is 16 bits wide.

use graftwork::ops::adamw::{AdamWStep, Buffers, Group, Scratch, step};
use graftwork::testing::normal;
use graftwork::{DType, Result, Tensor};

use crate::verify::case::{Arithmetic, Case, Judge, Output, Run};

const SIZES: [usize; 6] = [1, 7, 129, 1025, 4099, 20_000];
const STEPS: u64 = 3;

pub fn all() -> Vec<Case> {
    let forms = [(None, false), (Some(0.5), true), (Some(1e6), false)];
    SIZES.iter().flat_map(|&n| forms.map(|(clip, zero)| stepped(n, clip, zero))).collect()
}

fn stepped(n: usize, clip: Option<f64>, zero_grads: bool) -> Case {
    let note = match clip {
        None => "",
        Some(limit) if limit < 1.0 => " clipped",
        Some(_) => " clip unused",
    };
    let zeroing = if zero_grads { " zeroing" } else { "" };
    Case::new("adamw", format!("{n}{note}{zeroing}"), Judge::Smooth).steps(move |run| steps(run, n, clip, zero_grads))
}

fn steps(run: &Run, n: usize, clip: Option<f64>, zero_grads: bool) -> Result<Vec<Output>> {
    let dtype = run.dtype.accumulator();
    // Parameters, moments and gradients are f32 whatever the working copy is.
    let place = |values: &[f32]| Tensor::from_f32(&run.device, &[n], values, dtype);
    let (params, m, v) = (place(&normal("params", n))?, place(&vec![0.0; n])?, place(&vec![0.0; n])?);
    let working = (run.dtype.size() == 2).then(|| Tensor::zeros(&run.device, &[n], run.dtype)).transpose()?;
    let scratch = Scratch::new(&run.device, dtype)?;
    let groups = [
        Group { end: n / 3, lr_multiplier: 1.0, weight_decay: 0.1 },
        Group { end: n, lr_multiplier: 0.5, weight_decay: 0.0 },
    ];
    let grads = place(&vec![0.0; n])?;
    for t in 1..=STEPS {
        refill(&grads, &normal(NAMES[t as usize % NAMES.len()], n))?;
        let request = AdamWStep {
            lr: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            step: t,
            clip,
            measure_norm: true,
            zero_grads,
            groups: &groups,
        };
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
