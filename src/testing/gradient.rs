//! Gradient checks in f64 on the CPU: central differences of every element, and one random direction.

use crate::autograd::{Grads, Tape, Var};
use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::rng::Stream;
use crate::tensor::{ParamSet, Tensor};

/// Step of the central difference, relative to max(1, |x|).
const STEP: f64 = 1e-6;
/// A central difference of that step is good to about `STEP² + u/STEP`, 1e-10, times the function's scale.
const TOLERANCE: f64 = 1e-7;

/// An input of the checked function: dimensions and values.
pub type Input<'a> = (&'a [usize], Vec<f64>);

/// Holds the analytic gradient of `function`, in every input and element, against central differences, and against a random
/// direction (`⟨t, Jᵀc⟩ = ⟨Jt, c⟩`). `dropout_seed` turns dropout on.
///
/// # Errors
/// Names the input and element whose gradient is off.
pub fn check(
    inputs: &[Input<'_>],
    dropout_seed: Option<u64>,
    function: impl Fn(&mut Tape, &[Var]) -> Result<Var>,
) -> Result<()> {
    let probe = Probe { params: ParamSet::none(&Device::cpu(), DType::F64)?, dropout_seed, function: &function };
    let values: Vec<Vec<f64>> = inputs.iter().map(|(_, v)| v.clone()).collect();
    let dims: Vec<&[usize]> = inputs.iter().map(|(d, _)| *d).collect();
    let (y, analytic) = probe.gradients(&dims, &values)?;
    let scale = y.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, gradient) in analytic.iter().enumerate() {
        for (e, &got) in gradient.iter().enumerate() {
            let step = STEP * values[i][e].abs().max(1.0);
            let want = probe.difference(&dims, &values, step, |at, _, j| f64::from(at == i && j == e))?;
            hold(got, want, scale, || format!("input {i}, element {e}"))?;
        }
    }
    let direction = |i: usize, _: f64, j: usize| Stream { seed: 11, step: i as u32, site: 0 }.normal(j as u64);
    let want = probe.difference(&dims, &values, STEP, direction)?;
    let along = |(i, g): (usize, &Vec<f64>)| g.iter().enumerate().map(|(j, v)| v * direction(i, 0.0, j)).sum::<f64>();
    let got = analytic.iter().enumerate().map(along).sum();
    let size: usize = values.iter().map(Vec::len).sum();
    hold(got, want, scale * size as f64, || "a random direction".into())
}

fn hold(got: f64, want: f64, scale: f64, place: impl Fn() -> String) -> Result<()> {
    if (got - want).abs() <= TOLERANCE * scale.max(want.abs()) {
        return Ok(());
    }
    Err(Error::Autograd {
        what: format!("the gradient at {} is {got:e}, central differences give {want:e}", place()),
        hint: "the backward of the op is wrong there".into(),
    })
}

struct Probe<'a, F> {
    params: ParamSet,
    dropout_seed: Option<u64>,
    function: &'a F,
}

impl<F: Fn(&mut Tape, &[Var]) -> Result<Var>> Probe<'_, F> {
    fn tape(&self) -> Tape {
        match self.dropout_seed {
            Some(seed) => Tape::training(&self.params, seed, 0),
            None => Tape::deterministic(&self.params),
        }
    }

    fn forward(&self, dims: &[&[usize]], values: &[Vec<f64>]) -> Result<(Tape, Vec<Var>, Var)> {
        let mut tape = self.tape();
        let mut vars = Vec::new();
        for (d, v) in dims.iter().zip(values) {
            let tensor = Tensor::from_slice(self.params.device(), d, v)?;
            vars.push(tape.input(tensor));
        }
        let y = (self.function)(&mut tape, &vars)?;
        Ok((tape, vars, y))
    }

    /// The output, and the gradient of its product with the cotangent.
    fn gradients(&self, dims: &[&[usize]], values: &[Vec<f64>]) -> Result<(Vec<f64>, Vec<Vec<f64>>)> {
        let (tape, vars, y) = self.forward(dims, values)?;
        let out = y.tensor().to_f64_vec()?;
        let c = Tensor::from_slice(self.params.device(), y.dims(), &cotangent(out.len()))?;
        let mut grads = Grads::zeros(&self.params)?;
        let done = tape.backward_with(&y, c, &mut grads)?;
        let mut all = Vec::new();
        for (var, v) in vars.iter().zip(values) {
            all.push(done.input_gradient(var).map_or(Ok(vec![0.0; v.len()]), Tensor::to_f64_vec)?);
        }
        Ok((out, all))
    }

    /// Central difference of `Σ c ⊙ y` along `direction(input, value, element)`.
    fn difference(
        &self,
        dims: &[&[usize]],
        values: &[Vec<f64>],
        step: f64,
        direction: impl Fn(usize, f64, usize) -> f64,
    ) -> Result<f64> {
        let at = |sign: f64| {
            let moved: Vec<Vec<f64>> = values
                .iter()
                .enumerate()
                .map(|(i, v)| v.iter().enumerate().map(|(j, &x)| x + sign * step * direction(i, x, j)).collect())
                .collect();
            let y = self.forward(dims, &moved)?.2.tensor().to_f64_vec()?;
            Ok::<f64, Error>(y.iter().zip(cotangent(y.len())).map(|(a, b)| a * b).sum())
        };
        Ok((at(1.0)? - at(-1.0)?) / (2.0 * step))
    }
}

fn cotangent(len: usize) -> Vec<f64> {
    let stream = Stream { seed: 5, step: 0, site: 0 };
    (0..len as u64).map(|e| stream.normal(e)).collect()
}
