//! Elastic weight consolidation: two gradients observed, the penalty, and its gradient.

use graftwork::ops::ewc::{Spring, observe};
use graftwork::testing::{integers, normal};
use graftwork::{Result, Tensor};

use crate::verify::case::{Arithmetic, Case, Judge, Output, Run};

/// Around a block of threads and a piece of the penalty.
const SIZES: [usize; 7] = [1, 3, 255, 257, 4096, 4097, 9000];

pub fn all() -> Vec<Case> {
    let case = |judge| move |n: usize| held(n, judge);
    SIZES.into_iter().map(case(Judge::Exact)).chain(SIZES.into_iter().map(case(Judge::Smooth))).collect()
}

fn held(n: usize, judge: Judge) -> Case {
    Case::new("ewc", format!("{n}"), judge).steps(move |run| steps(run, n, judge))
}

fn steps(run: &Run, n: usize, judge: Judge) -> Result<Vec<Output>> {
    let draw = |name: &str| if judge == Judge::Exact { integers(name, n, 2) } else { normal(name, n) };
    // Parameters, gradients and squares are f32 whatever the working copy is.
    let place = |name: &str| Tensor::from_f32(&run.device, &[n], &draw(name), run.dtype.accumulator());
    let (params, anchor, grads) = (place("params")?, place("anchor")?, place("gradient")?);
    let squares = Tensor::zeros(&run.device, &[n], run.dtype.accumulator())?;
    observe(&squares, &place("first")?)?;
    observe(&squares, &place("second")?)?;
    let spring = Spring { params: &params, anchor: &anchor, squares: &squares };
    let penalty = spring.penalty()?;
    spring.pull(&grads, 0.5)?;
    let output = |pass: &str, cols, arithmetic, values| Output {
        pass: pass.into(),
        dtype: run.dtype.accumulator(),
        cols,
        arithmetic,
        values,
    };
    Ok(vec![
        output("squares", n, Arithmetic::depth(3), squares.to_f64_vec()?),
        output("penalty", 1, Arithmetic::depth(8), vec![penalty]),
        output("pull", n, Arithmetic::depth(6).condition(2.0), grads.to_f64_vec()?),
    ])
}
