//! Nodes, and one training from one seed.

use std::fmt;
use std::path::Path;

use graftwork::adapters::{GaNet, GaNetConfig, Reference};
use graftwork::autograd::{Grads, Tape, Var};
use graftwork::models::vit::Vit;
use graftwork::ops::{CosineOptions, CrossEntropyOptions, cross_entropy, embedding, linear};
use graftwork::optim::{AdamW, AdamWConfig};
use graftwork::rng::Stream;
use graftwork::tensor::{Init, ParamSet, ParamSetBuilder};
use graftwork::{DType, Device, Result, Tensor};
use serde::Serialize;

use super::describe;
use crate::finetune::ewc::Springs;
use crate::finetune::tasks::digits::{Digits, Samples};

/// Digits 5 to 9.
const CLASSES: usize = 5;
/// Of whole batches.
const STEPS: u64 = 100;
const LR: f64 = 1e-2;

pub const THRESHOLDS: [f64; 8] = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95];
pub const NOISES: [f64; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
/// At most, in sweeps.
pub const SWEEP_SEEDS: u64 = 3;

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

    /// As many of each class as there are, at most `labels`, drawn by the seed.
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
    /// Of each class.
    pub labels: usize,
    pub options: CosineOptions,
    pub noise: f64,
    pub judge: Judge,
    pub ewc: Option<Springs>,
}

pub fn over_seeds(nodes: &Nodes, recipe: &Recipe, seeds: std::ops::Range<u64>) -> Result<Cell> {
    let all = seeds.map(|seed| accuracy(nodes, recipe, seed));
    Ok(Cell::of(&all.collect::<Result<Vec<f64>>>()?))
}

/// Trains from one seed, and judges.
fn accuracy(nodes: &Nodes, recipe: &Recipe, seed: u64) -> Result<f64> {
    let Recipe { learner, labels, options, noise, judge, ewc } = recipe;
    let (labels, noise) = (*labels, *noise);
    let [features, queries] = nodes.features(noise, seed)?;
    let width = features.cols();
    let reference = match learner {
        Learner::GaNet => Reference::new(features.clone(), *options)?,
        _ => Reference::without_edges(features.clone())?,
    };
    let mut builder = ParamSetBuilder::new();
    let net = match learner {
        Learner::LinearProbe => Net::Probe(
            builder.add("head.weight", &[CLASSES, width], Init::Normal { std: 0.02 })?,
            builder.add("head.bias", &[CLASSES], Init::Zeros)?,
        ),
        _ => Net::GaNet(GaNet::declare(&mut builder, &GaNetConfig { seed, ..GaNetConfig::new(width, CLASSES) })?),
    };
    let params = builder.build(&nodes.device, DType::F32, seed)?;
    let chosen = nodes.labelled(labels, seed);

    let graph = reference.graph()?;
    let forward = |tape: &mut Tape, graph: &graftwork::graph::Csr, x: &Tensor| match &net {
        Net::GaNet(net) => net.forward(tape, graph, &Var::constant(x.clone())),
        Net::Probe(weight, bias) => {
            let (weight, bias) = (tape.param(*weight)?, tape.param(*bias)?);
            linear(tape, &Var::constant(x.clone()), &weight, Some(&bias))
        }
    };
    let loss = |tape: &mut Tape, of: &[usize]| {
        let column = |value: &dyn Fn(usize) -> i64| {
            Tensor::from_slice(&nodes.device, &[of.len()], &of.iter().map(|&i| value(i)).collect::<Vec<i64>>())
        };
        let (places, targets) = (column(&|i| i as i64)?, column(&|i| nodes.train.labels[i])?);
        let logits = forward(tape, &graph, &features)?;
        let known = embedding(tape, &places, &logits)?;
        cross_entropy(tape, &known, &targets, &CrossEntropyOptions::default())
    };
    let held = ewc.map(|springs| springs.cast_by(&params, &chosen, chosen.len().max(1), loss)).transpose()?;
    let mut optimizer = AdamW::new(AdamWConfig::default(), &params)?;
    let mut grads = Grads::zeros(&params)?;
    for step in 0..STEPS {
        let mut tape = Tape::training(&params, seed, step as u32);
        let loss = loss(&mut tape, &chosen)?;
        tape.backward(&loss, &mut grads)?;
        if let Some(held) = &held {
            held.add_gradient(&params, &grads)?;
        }
        optimizer.step(&params, &grads, LR)?;
    }

    let (logits, judged, labels): (Vec<f32>, Vec<usize>, &[i64]) = match judge {
        Judge::Unlabelled => {
            let logits = forward(&mut Tape::inference(&params), &graph, &features)?.tensor().to_f32_vec()?;
            (logits, (0..nodes.train.len()).filter(|i| !chosen.contains(i)).collect(), &nodes.train.labels)
        }
        // Held-out samples read from the training samples and themselves, never from one another.
        Judge::HeldOut => {
            let graph = reference.graph_with(&queries)?;
            let all = [features.to_f32_vec()?, queries.to_f32_vec()?].concat();
            let all = Tensor::from_slice(&nodes.device, &[features.rows() + queries.rows(), width], &all)?;
            let mut logits = forward(&mut Tape::inference(&params), &graph, &all)?.tensor().to_f32_vec()?;
            logits.drain(..features.rows() * CLASSES);
            (logits, (0..nodes.test.len()).collect(), &nodes.test.labels)
        }
    };
    let right = judged.iter().filter(|&&i| {
        let row = &logits[i * CLASSES..(i + 1) * CLASSES];
        let best = (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        best == usize::try_from(labels[i]).ok()
    });
    Ok(right.count() as f64 / judged.len().max(1) as f64)
}
