//! Captions of handwritten digits in several styles: the shipped encoder-decoder spells those of 0 to 4 and is adapted to 5 to 9, with one
//! adapter for all styles.

mod data;

use std::path::Path;
use std::sync::Arc;

use graftwork::adapters::Trunk;
use graftwork::autograd::{Tape, Var};
use graftwork::models::encoder_decoder::{EncoderDecoder, GenerateOptions, Places, Source};
use graftwork::ops::{CrossEntropyOptions, cross_entropy};
use graftwork::tensor::{ParamSet, ParamSetBuilder};
use graftwork::{DType, Device, Error, Result};

use super::{Entry, Model, Scores, Task};
use crate::finetune::options::{COMPARED, LOOKED, TRAINING};
use data::{Batch, Captions, FEATURES, IGNORED, Part};

pub const ENTRY: Entry = Entry {
    name: "caption",
    about: "Captions of the digits 5 to 9 in several styles, on an encoder-decoder that spells those of 0 to 4",
    trunk: "data/captions/trunk",
    data: "data/captions",
    methods: &["lora"],
    reads: &[TRAINING, LOOKED, COMPARED],
    open: |dir, validation| Ok(Box::new(Job(Arc::new(Captions::load(dir)?.judged_within(validation))))),
    study: None,
};

struct Job(Arc<Captions>);

impl Task for Job {
    fn title(&self) -> String {
        "captions of digits 5 to 9".into()
    }

    fn samples(&self) -> usize {
        self.0.len(Part::Train)
    }

    fn about(&self) -> String {
        let prompts: Vec<&str> = self.0.styles.iter().map(|style| style.prompt.as_str()).collect();
        let (train, test) = (self.0.len(Part::Train), self.0.len(Part::Test));
        format!(
            "{train} to train on, {test} held out, in the styles {}; the trunk never saw these digits",
            prompts.join(", ")
        )
    }

    fn model(&self, trunk: &Path, device: &Device, dtype: DType) -> Result<Box<dyn Model>> {
        let model = EncoderDecoder::load(trunk, device, dtype)?;
        let config = model.config();
        if config.vocabulary != self.0.symbols || config.features != Some(FEATURES) {
            return Err(Error::File {
                path: trunk.join("config.json"),
                reason: format!(
                    "a vocabulary of {} and features of {}, but the captions have {} symbols and the images patches of {FEATURES}",
                    config.vocabulary,
                    config.features.unwrap_or(0),
                    self.0.symbols
                ),
            });
        }
        if let Places::Learned { positions } = config.places {
            self.0.require_within(positions).map_err(|e| e.within("--data"))?;
        }
        let mean_tokens = self.0.mean_tokens()?;
        Ok(Box::new(Captioner { model, captions: self.0.clone(), mean_tokens }))
    }
}

struct Captioner {
    model: EncoderDecoder,
    captions: Arc<Captions>,
    mean_tokens: f64,
}

impl Captioner {
    fn batch(&self, part: Part, indices: &[usize]) -> Result<Batch> {
        let config = self.model.config();
        self.captions.batch(
            part,
            indices,
            [config.start, config.end, config.pad],
            self.model.device(),
            self.model.dtype(),
        )
    }

    /// How many held-out captions of each style greedy decoding spells exactly.
    fn exact(&self, params: &ParamSet) -> Result<Vec<usize>> {
        const BATCH: usize = 256;
        let all: Vec<usize> = (0..self.captions.len(Part::Test)).collect();
        let mut right = vec![0; self.captions.styles.len()];
        // What has not ended by then is wrong.
        let options = GenerateOptions { max_tokens: self.captions.longest(), ..GenerateOptions::default() };
        for indices in all.chunks(BATCH) {
            let batch = self.batch(Part::Test, indices)?;
            let features = Var::constant(batch.features);
            let source = Source { features: Some(&features), ids: &batch.prompts, keep: Some(&batch.keep) };
            let found = self.model.generate(&mut Tape::inference(params), &source, &options)?;
            for (caption, &index) in found.iter().zip(indices) {
                let (_, style) = self.captions.image_and_style(index);
                right[style] += usize::from(*caption == self.captions.expected(Part::Test, index)?);
            }
        }
        Ok(right)
    }
}

impl Model for Captioner {
    fn trunk(&mut self) -> &mut dyn Trunk {
        &mut self.model
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn dtype(&self) -> DType {
        self.model.dtype()
    }

    fn learn_heads(&mut self, _: &mut ParamSetBuilder) -> Result<()> {
        Ok(())
    }

    fn heads(&self) -> &'static [&'static str] {
        &[]
    }

    fn frozen_numel(&self) -> usize {
        self.model.frozen_numel()
    }

    /// Of every token, over as many as `whole` captions have on the average.
    fn loss(&self, tape: &mut Tape, indices: &[usize], whole: usize) -> Result<Var> {
        let batch = self.batch(Part::Train, indices)?;
        let features = Var::constant(batch.features);
        let source = Source { features: Some(&features), ids: &batch.prompts, keep: Some(&batch.keep) };
        let logits = self.model.forward(tape, &source, &batch.given)?;
        let tokens = (whole as f64 * self.mean_tokens).round().max(1.0);
        let options = CrossEntropyOptions {
            ignore_index: Some(IGNORED),
            denominator: Some(tokens as u64),
            ..CrossEntropyOptions::default()
        };
        cross_entropy(tape, &logits, &batch.wanted, &options)
    }

    /// The share of all captions that is right, and of each style's.
    fn scores(&self, params: &ParamSet) -> Result<Scores> {
        let right = self.exact(params)?;
        let all = self.captions.len(Part::Test);
        let share = |right: usize, of: usize| right as f64 / of.max(1) as f64;
        let mut scores = vec![("exact_match".into(), share(right.iter().sum(), all))];
        if right.len() > 1 {
            let styles = self.captions.styles.iter().zip(&right);
            scores.extend(styles.map(|(style, &own)| (style.prompt.clone(), share(own, all / right.len()))));
        }
        Ok(scores)
    }
}
