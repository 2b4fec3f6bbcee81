//! Handwritten digits: the shipped vision transformer knows 0 to 4 and is adapted to 5 to 9.

pub mod data;

use std::path::Path;
use std::sync::Arc;

use graftwork::adapters::{HeadInit, Trunk, train_head};
use graftwork::autograd::{Tape, Var};
use graftwork::models::vit::Vit;
use graftwork::ops::{CrossEntropyOptions, cross_entropy};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{DType, Device, Result};

use super::{Entry, Model, Scores, Task};
use crate::finetune::methods::vce;
use crate::finetune::options::{COMPARED, LOOKED, TRAINING};
pub use data::{Digits, SIDE, Samples};

pub const ENTRY: Entry = Entry {
    name: "digits",
    about: "Handwritten digits 5 to 9, on a vision transformer that knows 0 to 4",
    trunk: "data/digits/trunk",
    data: "data/digits",
    methods: &["lora"],
    reads: &[TRAINING, LOOKED, COMPARED, vce::READS, vce::FORM],
    open: |dir, validation| Ok(Box::new(Job::new(Digits::load(dir, UNSEEN)?.judged_within(validation)))),
    study: None,
};

/// Digits 5 to 9.
const CLASSES: usize = 5;
/// The classes that the trunk never saw.
pub const UNSEEN: std::ops::Range<u8> = 5..10;

struct Job {
    train: Arc<Samples>,
    parts: Arc<[Part]>,
}

/// Held-out samples, and what their score is called.
pub struct Part {
    pub name: &'static str,
    pub samples: Samples,
}

impl Job {
    fn new(digits: Digits) -> Self {
        let parts = [Part { name: "accuracy", samples: digits.test }];
        Job { train: Arc::new(digits.train), parts: Arc::new(parts) }
    }
}

impl Task for Job {
    fn title(&self) -> String {
        "digits 5 to 9".into()
    }

    fn samples(&self) -> usize {
        self.train.len()
    }

    fn about(&self) -> String {
        let held_out = self.parts[0].samples.len();
        format!("{} to train on, {held_out} held out; the trunk never saw these digits", self.train.len())
    }

    fn model(&self, trunk: &Path, device: &Device, dtype: DType) -> Result<Box<dyn Model>> {
        Ok(Box::new(Classifier::new(trunk, device, dtype, &self.train, &self.parts)?))
    }
}

/// A vision transformer that tells five digits apart. Its score is the share that it gets right, of each part and, of several, of all.
pub struct Classifier {
    trunk: Vit,
    train: Arc<Samples>,
    parts: Arc<[Part]>,
}

impl Classifier {
    pub fn new(trunk: &Path, device: &Device, dtype: DType, train: &Arc<Samples>, parts: &Arc<[Part]>) -> Result<Self> {
        Ok(Classifier { trunk: Vit::load(trunk, device, dtype)?, train: train.clone(), parts: parts.clone() })
    }

    /// How many of `samples` are classified rightly.
    fn right(&self, params: &ParamSet, samples: &Samples) -> Result<usize> {
        const BATCH: usize = 256;
        let mut right = 0;
        let all: Vec<usize> = (0..samples.len()).collect();
        for indices in all.chunks(BATCH) {
            let batch = samples.batch(indices, self.trunk.device(), self.trunk.dtype())?;
            let mut tape = Tape::inference(params);
            let logits = self.trunk.forward(&mut tape, &Var::constant(batch.pixels))?.tensor().to_f32_vec()?;
            for (row, &i) in logits.chunks_exact(CLASSES).zip(indices) {
                let best = (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                right += usize::from(best == usize::try_from(samples.labels()[i]).ok());
            }
        }
        Ok(right)
    }
}

impl Model for Classifier {
    fn trunk(&mut self) -> &mut dyn Trunk {
        &mut self.trunk
    }

    fn device(&self) -> &Device {
        self.trunk.device()
    }

    fn dtype(&self) -> DType {
        self.trunk.dtype()
    }

    fn learn_heads(&mut self, params: &mut ParamSetBuilder) -> Result<()> {
        train_head(&mut self.trunk, "classifier", HeadInit::Fresh { classes: CLASSES }, params)
    }

    fn heads(&self) -> &'static [&'static str] {
        &["classifier"]
    }

    fn frozen_numel(&self) -> usize {
        self.trunk.frozen_numel()
    }

    fn loss(&self, tape: &mut Tape, indices: &[usize], whole: usize) -> Result<Var> {
        let batch = self.train.batch(indices, self.trunk.device(), self.trunk.dtype())?;
        let logits = self.trunk.forward(tape, &Var::constant(batch.pixels))?;
        let options = CrossEntropyOptions { denominator: Some(whole as u64), ..CrossEntropyOptions::default() };
        cross_entropy(tape, &logits, &batch.targets, &options)
    }

    fn scores(&self, params: &ParamSet) -> Result<Scores> {
        let (mut scores, mut all, mut right) = (Scores::new(), 0, 0);
        for part in &*self.parts {
            let of_part = self.right(params, &part.samples)?;
            scores.push((part.name.into(), of_part as f64 / part.samples.len().max(1) as f64));
            (all, right) = (all + part.samples.len(), right + of_part);
        }
        if scores.len() > 1 {
            scores.insert(0, ("accuracy".into(), right as f64 / all.max(1) as f64));
        }
        Ok(scores)
    }
}
