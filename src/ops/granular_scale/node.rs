//! The way back.

use super::{Desc, GateInput, Kind, OP, cpu, gpu, product};
use crate::autograd::{Recorded, Saved, Sinks, Target};
use crate::error::Result;
use crate::ops::column_sum::column_sum;
use crate::ops::host::with_real;
use crate::ops::scale_add::accumulate;
use crate::tensor::Tensor;

/// Positions of the inputs on the tape.
pub(super) const HIDDEN: usize = 0;
pub(super) const UPDATE: usize = 1;
pub(super) const BIAS: usize = 2;
pub(super) const RESIDUAL: usize = 3;
pub(super) const GATE: usize = 4;
pub(super) const GATE_BIAS: usize = 5;
/// Wu, where ΔH is a product; D stands in the place of ΔH.
pub(super) const UP: usize = 6;

/// Parameters that are alive anyway.
#[derive(Debug)]
pub(super) struct Kept {
    pub bias: Option<Tensor>,
    /// w or z.
    pub gate: Option<Tensor>,
    pub tokens: Option<Tensor>,
    /// Wu
    pub up: Option<Tensor>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub desc: Desc,
    pub hidden: Option<Saved>,
    /// ΔH, or D.
    pub update: Option<Saved>,
    /// R, for the gradient of w.
    pub residual: Option<Saved>,
    pub logits: Option<Saved>,
    pub rows: Option<Saved>,
    pub kept: Kept,
}

/// What backward reads. Absent: not needed for what is wanted.
pub(super) struct Given<'a> {
    pub dy: &'a Tensor,
    pub hidden: Option<&'a Tensor>,
    pub update: Option<&'a Tensor>,
    pub bias: Option<&'a Tensor>,
    pub residual: Option<&'a Tensor>,
    /// Logits, w or z.
    pub gate: Option<&'a Tensor>,
    pub tokens: Option<&'a Tensor>,
    /// `[m]`: the logits of MiddleX and Small.
    pub rows: Option<&'a Tensor>,
}

/// What backward writes. Sums are partial ones, `[pieces, k]`, to be added in order.
pub(super) struct Gradients {
    /// `dU`, the gradient of ΔH, `[m, k]`; absent where only R or a gate without look wants one.
    pub update: Option<Tensor>,
    /// Where the gate sees H alone, H has a gradient of its own.
    pub hidden: Option<Tensor>,
    /// `dy + dl ⊗ w`
    pub residual: Option<Tensor>,
    pub logits: Option<Tensor>,
    pub bias_sums: Option<Tensor>,
    /// Of w (Small: its half of U), or z.
    pub gate_sums: Option<Tensor>,
    /// Of Small's half of R.
    pub residual_sums: Option<Tensor>,
    /// `dl [m]`
    pub rows: Option<Tensor>,
}

impl Gradients {
    /// Room for what is wanted.
    fn new(desc: &Desc, pieces: usize, dy: &Tensor, sinks: &Sinks<'_>) -> Result<Self> {
        let (device, sum) = (dy.device(), desc.dtype.accumulator());
        let like = |wanted: bool| wanted.then(|| Tensor::empty(device, dy.dims(), desc.dtype)).transpose();
        let sums = |wanted: bool| wanted.then(|| Tensor::empty(device, &[pieces, desc.k], sum)).transpose();
        let looks = desc.kind.looks();
        let own_hidden = looks && desc.input == GateInput::Hidden;
        let weight = sinks.wants(GATE) && desc.kind != Kind::Large;
        let update = [UPDATE, BIAS, UP].iter().any(|&i| sinks.wants(i)) || (sinks.wants(HIDDEN) && !own_hidden);
        Ok(Gradients {
            update: like(update)?,
            hidden: like(sinks.wants(HIDDEN) && own_hidden)?,
            residual: like(sinks.wants(RESIDUAL) && looks)?,
            logits: like(sinks.wants(GATE) && desc.kind == Kind::Large)?,
            bias_sums: sums(sinks.wants(BIAS))?,
            gate_sums: sums(weight)?,
            residual_sums: sums(weight && desc.kind == Kind::Small)?,
            rows: looks.then(|| Tensor::empty(device, &[desc.m], sum)).transpose()?,
        })
    }
}

impl Recorded for Node {
    fn name(&self) -> &'static str {
        OP
    }

    fn saved(&self) -> Vec<&Saved> {
        [&self.hidden, &self.update, &self.residual, &self.logits, &self.rows].into_iter().flatten().collect()
    }

    fn backward(&self, dy: &Tensor, sinks: &mut Sinks<'_>) -> Result<()> {
        let desc = &self.desc;
        let get = |saved: &Option<Saved>| saved.as_ref().map(Saved::get).transpose();
        let (hidden, kept_update, residual) = (get(&self.hidden)?, get(&self.update)?, get(&self.residual)?);
        let (logits, rows) = (get(&self.logits)?, get(&self.rows)?);
        // U is looked at again only where H is kept; a product is then made once more.
        let update = match (&kept_update, &self.kept.up, &hidden) {
            (Some(x), Some(up), Some(_)) => match desc.product {
                Some(product) => Some(product::whole(desc, product, x, up)?),
                None => None,
            },
            (Some(update), None, _) => Some(update.clone()),
            _ => None,
        };
        let given = Given {
            dy,
            hidden: hidden.as_ref(),
            update: update.as_ref(),
            bias: self.kept.bias.as_ref(),
            residual: residual.as_ref(),
            gate: logits.as_ref().or(self.kept.gate.as_ref()),
            tokens: self.kept.tokens.as_ref(),
            rows: rows.as_ref(),
        };
        let pieces = if dy.device().is_cpu() { desc.m.min(1) } else { gpu::pieces(desc) };
        let out = Gradients::new(desc, pieces, dy, sinks)?;
        let only_residual = [HIDDEN, UPDATE, BIAS, GATE, GATE_BIAS, UP].iter().all(|&i| !sinks.wants(i));
        if !only_residual || desc.kind.looks() {
            run(desc, &given, &out)?;
        }
        if let (Some(up), Some(gradient)) = (&self.kept.up, &out.update) {
            product::gradients(desc, gradient, kept_update.as_ref(), up, sinks)?;
        }
        self.hand_on(dy, &out, sinks)
    }
}

impl Node {
    fn hand_on(&self, dy: &Tensor, out: &Gradients, sinks: &mut Sinks<'_>) -> Result<()> {
        let Desc { k, kind, add_residual, .. } = self.desc;
        hand(sinks, RESIDUAL, out.residual.as_ref().or(add_residual.then_some(dy)))?;
        hand(sinks, UPDATE, out.update.as_ref().filter(|_| self.kept.up.is_none()))?;
        hand(sinks, HIDDEN, out.hidden.as_ref().or(out.update.as_ref()))?;
        hand(sinks, GATE, out.logits.as_ref())?;
        if let Some(sums) = &out.bias_sums
            && let Some(target) = sinks.open(BIAS)?
        {
            column_sum(sums, 1, k, 1.0, &target)?;
        }
        if let Some(sums) = &out.gate_sums
            && let Some(target) = sinks.open(GATE)?
        {
            let first = if kind == Kind::Small { k } else { 0 };
            column_sum(sums, 1, k, 1.0, &part(&target, first, k)?)?;
            if let Some(sums) = &out.residual_sums {
                column_sum(sums, 1, k, 1.0, &part(&target, 0, k)?)?;
            }
        }
        if let Some(rows) = &out.rows
            && let Some(target) = sinks.open(GATE_BIAS)?
        {
            column_sum(rows, 1, 1, 1.0, &target)?;
        }
        Ok(())
    }
}

/// Gives `gradient` to an input, without a copy where nothing else flows into it.
fn hand(sinks: &mut Sinks<'_>, index: usize, gradient: Option<&Tensor>) -> Result<()> {
    if let Some(gradient) = gradient
        && !sinks.pass(index, gradient)
        && let Some(target) = sinks.open(index)?
    {
        accumulate(&target, gradient)?;
    }
    Ok(())
}

/// Elements `first .. first + len` of a vector's gradient.
fn part(target: &Target, first: usize, len: usize) -> Result<Target> {
    Ok(Target { tensor: target.tensor.slice(0, first, len)?, accumulate: target.accumulate })
}

fn run(desc: &Desc, given: &Given, out: &Gradients) -> Result<()> {
    if desc.m == 0 {
        return Ok(());
    }
    if given.dy.device().is_cpu() {
        return with_real!(desc.dtype, OP, T => cpu::backward::<T>(desc, given, out));
    }
    gpu::backward(desc, given, out)
}
