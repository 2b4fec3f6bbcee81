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

use super::{Entry, Model, Task};
use crate::finetune::options::TRAINING;
pub use data::{Digits, SIDE, Samples};

pub const ENTRY: Entry = Entry {
    name: "digits",
    about: "Handwritten digits 5 to 9, on a vision transformer that knows 0 to 4",
    trunk: "data/digits/trunk",
    data: "data/digits",
    methods: &["lora"],
    reads: &[TRAINING],
    open: |dir, validation| Ok(Box::new(Job(Arc::new(Digits::load(dir, 5..10)?.judged_within(validation))))),
    study: None,
};

/// Digits 5 to 9.
const CLASSES: usize = 5;

struct Job(Arc<Digits>);

impl Task for Job {
    fn title(&self) -> String {
        "digits 5 to 9".into()
    }

    fn samples(&self) -> usize {
        self.0.train.len()
    }

    fn about(&self) -> String {
        format!("{} to train on, {} held out; the trunk never saw these digits", self.0.train.len(), self.0.test.len())
    }

    fn model(&self, trunk: &Path, device: &Device, dtype: DType) -> Result<Box<dyn Model>> {
        Ok(Box::new(Classifier { trunk: Vit::load(trunk, device, dtype)?, digits: self.0.clone() }))
    }
}

struct Classifier {
    trunk: Vit,
    digits: Arc<Digits>,
}

impl Classifier {
    /// Share of `samples` classified rightly.
    fn accuracy(&self, params: &ParamSet, samples: &Samples) -> Result<f64> {
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
        Ok(right as f64 / samples.len().max(1) as f64)
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
        let batch = self.digits.train.batch(indices, self.trunk.device(), self.trunk.dtype())?;
        let logits = self.trunk.forward(tape, &Var::constant(batch.pixels))?;
        let options = CrossEntropyOptions { denominator: Some(whole as u64), ..CrossEntropyOptions::default() };
        cross_entropy(tape, &logits, &batch.targets, &options)
    }

    fn scores(&self, params: &ParamSet) -> Result<Vec<(&'static str, f64)>> {
        Ok(vec![("accuracy", self.accuracy(params, &self.digits.test)?)])
    }
}
