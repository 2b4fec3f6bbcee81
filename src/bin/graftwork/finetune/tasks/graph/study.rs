//! Nodes, and one training from one seed.

use std::fmt;
use std::path::Path;

use graftwork::adapters::{GaNet, Reference};
use graftwork::autograd::{Grads, Tape, Var};
use graftwork::graph::{Adjacency, Csr};
use graftwork::models::vit::Vit;
use graftwork::ops::{CosineOptions, CrossEntropyOptions, cross_entropy, embedding, linear};
use graftwork::optim::{AdamW, AdamWConfig};
use graftwork::rng::Stream;
use graftwork::tensor::{Init, ParamSet, ParamSetBuilder};
use graftwork::{DType, Device, Result, Tensor};
use serde::Serialize;

use super::describe;
use crate::finetune::ewc::Springs;
use crate::finetune::methods::ga_net::GaNetOptions;
use crate::finetune::tasks::digits::{Digits, Samples};
use crate::finetune::tasks::order;

/// Digits 5 to 9.
const CLASSES: usize = 5;
/// Of all labelled samples, or of a batch of them where each batch has its graph.
const STEPS: u64 = 100;
const LR: f64 = 1e-2;

pub const THRESHOLDS: [f64; 8] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95];
pub const NOISES: [f64; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
/// At most, in sweeps.
pub const SWEEP_SEEDS: u64 = 3;
/// Cells of both sweeps: with the graph at each place, and without it once for thresholds and at each place of noise.
pub const SWEEP_CELLS: u64 = (THRESHOLDS.len() + 1 + 2 * NOISES.len()) as u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learner {
    GaNet,
    WithoutGraph,
    LinearProbe,
}

impl Learner {
    pub fn name(self) -> &'static str {
        match self {
            Learner::GaNet => "ga-net",
            Learner::WithoutGraph => "ga-net without graph",
            Learner::LinearProbe => "linear-probe",
        }
    }
}

/// Accuracies over seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub mean: f64,
    pub deviation: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Cell {
    fn of(all: &[f64]) -> Self {
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let spread = all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        Cell {
            mean,
            deviation: spread.sqrt(),
            lowest: all.iter().copied().fold(f64::INFINITY, f64::min),
            highest: all.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [mean, deviation, lowest, highest] =
            [self.mean, self.deviation, self.lowest, self.highest].map(|v| 100.0 * v);
        write!(f, "{mean:.2} ± {deviation:.2} % ({lowest:.1} to {highest:.1})")
    }
}

/// Samples of one part: image embeddings, words, labels.
pub struct Part {
    images: Vec<Vec<f32>>,
    words: Vec<Vec<String>>,
    labels: Vec<i64>,
}

impl Part {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Samples of the smallest class.
    pub fn fewest(&self) -> usize {
        (0..CLASSES as i64).map(|class| self.labels.iter().filter(|&&l| l == class).count()).min().unwrap_or(0)
    }
}

pub struct Nodes {
    pub train: Part,
    pub test: Part,
    device: Device,
}

impl Nodes {
    pub fn new(digits: &Digits, trunk: &Path, device: &Device) -> Result<Self> {
        let trunk = Vit::load(trunk, device, DType::F32)?;
        let (mut train, mut test) = (part(&trunk, &digits.train)?, part(&trunk, &digits.test)?);
        let mean = mean_of(&train.images);
        for image in train.images.iter_mut().chain(&mut test.images) {
            centre(image, &mean);
        }
        Ok(Nodes { train, test, device: device.clone() })
    }

    /// Words of a text.
    pub fn words(&self) -> usize {
        self.train.words.first().map_or(0, Vec::len)
    }

    /// Image and text side by side, each centred on the training samples' mean and of length 1: what all samples share tells none apart.
    fn features(&self, noise: f64, seed: u64) -> Result<[Tensor; 2]> {
        let texts = |part: &Part, first: usize| -> Vec<Vec<f32>> {
            (0..part.len()).map(|i| describe::embed(&part.words[i], noise, seed, first + i)).collect()
        };
        let (train, test) = (texts(&self.train, 0), texts(&self.test, self.train.len()));
        let mean = mean_of(&train);
        let rows = |part: &Part, mut texts: Vec<Vec<f32>>| {
            texts.iter_mut().for_each(|text| centre(text, &mean));
            let width = part.images.first().map_or(0, Vec::len) + describe::WIDTH;
            let rows: Vec<f32> = part.images.iter().zip(&texts).flat_map(|(i, t)| [&i[..], t].concat()).collect();
            Tensor::from_slice(&self.device, &[part.len(), width], &rows)
        };
        Ok([rows(&self.train, train)?, rows(&self.test, test)?])
    }

    pub fn graph(&self, options: &CosineOptions, noise: f64, seed: u64) -> Result<Reference> {
        let [train, _] = self.features(noise, seed)?;
        Reference::new(train, *options)
    }

    /// `labels` of each class, drawn by the seed.
    fn labelled(&self, labels: usize, seed: u64) -> Vec<usize> {
        let dice = Stream::named(seed, 0, "labels");
        let mut chosen = Vec::new();
        for class in 0..CLASSES as i64 {
            let mut own: Vec<usize> = (0..self.train.len()).filter(|&i| self.train.labels[i] == class).collect();
            own.sort_by_key(|&i| (dice.bits(i as u64), i));
            chosen.extend(own.into_iter().take(labels));
        }
        chosen
    }
}

fn mean_of(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut mean = vec![0.0f32; rows.first().map_or(0, Vec::len)];
    for row in rows {
        mean.iter_mut().zip(row).for_each(|(m, v)| *m += v / rows.len() as f32);
    }
    mean
}

fn centre(row: &mut [f32], mean: &[f32]) {
    row.iter_mut().zip(mean).for_each(|(v, m)| *v -= m);
    describe::unit(row);
}

fn part(trunk: &Vit, samples: &Samples) -> Result<Part> {
    const BATCH: usize = 256;
    let params = ParamSet::none(trunk.device(), trunk.dtype())?;
    let all: Vec<usize> = (0..samples.len()).collect();
    let (mut images, mut words) = (Vec::new(), Vec::new());
    for indices in all.chunks(BATCH) {
        let batch = samples.batch(indices, trunk.device(), trunk.dtype())?;
        let embedded = trunk.embed(&mut Tape::inference(&params), &Var::constant(batch.pixels))?;
        let width = embedded.tensor().cols();
        images.extend(embedded.tensor().to_f32_vec()?.chunks(width).map(<[f32]>::to_vec));
        words.extend(indices.iter().map(|&i| describe::words(samples.pixels(i))));
    }
    Ok(Part { images, words, labels: samples.labels().to_vec() })
}

/// What is trained: a head over features, or the network over nodes.
enum Net {
    Probe(graftwork::tensor::ParamId, graftwork::tensor::ParamId),
    GaNet(GaNet),
}

/// What accuracies are taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    HeldOut,
    /// Training samples whose label is not shown.
    Unlabelled,
}

/// One cell of the table.
pub struct Recipe {
    pub learner: Learner,
    pub network: GaNetOptions,
    /// Samples of a batch that has its own graph; `None` for one graph of all.
    pub batch: Option<usize>,
    /// Of each class.
    pub labels: usize,
    pub options: CosineOptions,
    pub noise: f64,
    pub judge: Judge,
    pub ewc: Option<Springs>,
}

/// Calls `done` after each seed.
pub fn over_seeds(nodes: &Nodes, recipe: &Recipe, seeds: impl Iterator<Item = u64>, done: impl Fn()) -> Result<Cell> {
    let all = seeds.map(|seed| accuracy(nodes, recipe, seed).inspect(|_| done()));
    Ok(Cell::of(&all.collect::<Result<Vec<f64>>>()?))
}

impl Net {
    fn declare(recipe: &Recipe, params: &mut ParamSetBuilder, width: usize, seed: u64) -> Result<Self> {
        if recipe.learner != Learner::LinearProbe {
            return Ok(Net::GaNet(GaNet::declare(params, &recipe.network.config(width, CLASSES, seed))?));
        }
        let weight = params.add("head.weight", &[CLASSES, width], Init::Normal { std: 0.02 })?;
        Ok(Net::Probe(weight, params.add("head.bias", &[CLASSES], Init::Zeros)?))
    }

    fn forward(&self, tape: &mut Tape, graph: &Csr, x: &Tensor) -> Result<Var> {
        let x = Var::constant(x.clone());
        match self {
            Net::GaNet(net) => net.forward(tape, graph, &x),
            Net::Probe(weight, bias) => {
                let (weight, bias) = (tape.param(*weight)?, tape.param(*bias)?);
                linear(tape, &x, &weight, Some(&bias))
            }
        }
    }
}

/// Trains from one seed, and judges.
fn accuracy(nodes: &Nodes, recipe: &Recipe, seed: u64) -> Result<f64> {
    let [features, queries] = nodes.features(recipe.noise, seed)?;
    let mut builder = ParamSetBuilder::new();
    let net = Net::declare(recipe, &mut builder, features.cols(), seed)?;
    let params = builder.build(&nodes.device, DType::F32, seed)?;
    let chosen = nodes.labelled(recipe.labels, seed);
    let joined = |x: Tensor| match recipe.learner {
        Learner::GaNet => Reference::new(x, recipe.options),
        _ => Reference::without_edges(x),
    };
    let all = match recipe.batch {
        None => Some(joined(features.clone())?),
        Some(_) => None,
    };
    let fixed = all.as_ref().map(Reference::graph).transpose()?;

    let loss = |tape: &mut Tape, of: &[usize]| {
        let targets: Vec<i64> = of.iter().map(|&i| nodes.train.labels[i]).collect();
        let targets = Tensor::from_slice(&nodes.device, &[of.len()], &targets)?;
        let logits = match &fixed {
            Some(graph) => {
                let places: Vec<i64> = of.iter().map(|&i| i as i64).collect();
                let places = Tensor::from_slice(&nodes.device, &[of.len()], &places)?;
                let logits = net.forward(tape, graph, &features)?;
                embedding(tape, &places, &logits)?
            }
            None => {
                let batch = rows(&features, of)?;
                net.forward(tape, &joined(batch.clone())?.graph()?, &batch)?
            }
        };
        cross_entropy(tape, &logits, &targets, &CrossEntropyOptions::default())
    };
    let size = recipe.batch.unwrap_or(chosen.len()).max(1);
    let held = recipe.ewc.map(|springs| springs.cast_by(&params, &chosen, size, loss)).transpose()?;
    let mut optimizer = AdamW::new(AdamWConfig::default(), &params)?;
    let mut grads = Grads::zeros(&params)?;
    for step in 0..STEPS {
        let mut tape = Tape::training(&params, seed, step as u32);
        let loss = match recipe.batch {
            None => loss(&mut tape, &chosen)?,
            Some(size) => loss(&mut tape, &batch_of(&chosen, size, seed, step))?,
        };
        tape.backward(&loss, &mut grads)?;
        if let Some(held) = &held {
            held.add_gradient(&params, &grads)?;
        }
        optimizer.step(&params, &grads, LR)?;
    }

    let (asked, labels) = match recipe.judge {
        Judge::HeldOut => ((0..nodes.test.len()).collect(), &nodes.test.labels),
        Judge::Unlabelled => {
            ((0..nodes.train.len()).filter(|i| !chosen.contains(i)).collect::<Vec<_>>(), &nodes.train.labels)
        }
    };
    let mut tape = Tape::inference(&params);
    // One row of logits for each sample that is asked for.
    let logits: Vec<f32> = match (&all, recipe.judge) {
        (Some(all), Judge::HeldOut) => {
            // They read from the training samples and themselves, never from one another.
            let nodes = join(&features, &queries)?;
            let logits = net.forward(&mut tape, &all.graph_with(&queries)?, &nodes)?.tensor().to_f32_vec()?;
            logits[features.rows() * CLASSES..].to_vec()
        }
        (Some(all), Judge::Unlabelled) => {
            let logits = net.forward(&mut tape, &all.graph()?, &features)?;
            rows(logits.tensor(), &asked)?.to_f32_vec()?
        }
        (None, judge) => {
            let x = rows(if judge == Judge::HeldOut { &queries } else { &features }, &asked)?;
            net.forward(&mut tape, &side_by_side(&x, size, joined)?, &x)?.tensor().to_f32_vec()?
        }
    };
    let right = asked.iter().zip(logits.chunks(CLASSES)).filter(|&(&i, row)| {
        let best = (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        best == usize::try_from(labels[i]).ok()
    });
    Ok(right.count() as f64 / asked.len().max(1) as f64)
}

/// The samples of a step: those of an epoch in an order of its own, `size` at a time.
fn batch_of(chosen: &[usize], size: usize, seed: u64, step: u64) -> Vec<usize> {
    let batches = chosen.len().div_ceil(size).max(1) as u64;
    let places = order(chosen.len(), seed, step / batches);
    places.into_iter().skip((step % batches) as usize * size).take(size).map(|place| chosen[place]).collect()
}

/// The graphs of one batch after the other, as one.
fn side_by_side(x: &Tensor, size: usize, joined: impl Fn(Tensor) -> Result<Reference>) -> Result<Csr> {
    let mut parts = Vec::new();
    for first in (0..x.rows()).step_by(size) {
        let batch = x.slice(0, first, size.min(x.rows() - first))?.contiguous()?;
        parts.push(joined(batch)?.graph()?.to_host()?);
    }
    Csr::new(&Adjacency::block_diagonal(&parts)?, x.device())
}

/// The rows of x that are asked for, in that order.
fn rows(x: &Tensor, asked: &[usize]) -> Result<Tensor> {
    let (values, width) = (x.to_f32_vec()?, x.cols());
    let picked: Vec<f32> = asked.iter().flat_map(|&i| &values[i * width..(i + 1) * width]).copied().collect();
    Tensor::from_slice(x.device(), &[asked.len(), width], &picked)
}

/// The rows of a, then those of b.
fn join(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let all = [a.to_f32_vec()?, b.to_f32_vec()?].concat();
    Tensor::from_slice(a.device(), &[a.rows() + b.rows(), a.cols()], &all)
}
