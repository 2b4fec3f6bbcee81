//! Several tasks for one adapter: the digits that the trunk never saw, as they are, turned, inverted, and in noise. What helps one task is in
//! the others' way, so that adapters are told apart which one task alone does not tell apart.

use std::path::Path;
use std::sync::Arc;

use graftwork::rng::Stream;
use graftwork::{DType, Device, Result};

use super::digits::{Classifier, Digits, Part, SIDE, Samples, UNSEEN};
use super::{Entry, Model, Task};
use crate::finetune::methods::vce;
use crate::finetune::options::{COMPARED, LOOKED, TRAINING};

pub const ENTRY: Entry = Entry {
    name: "multi",
    about: "The digits 5 to 9 plain, rotated, inverted and noisy, with one adapter for all four",
    trunk: "data/digits/trunk",
    data: "data/digits",
    methods: &["dual-lora", "lora"],
    reads: &[TRAINING, LOOKED, COMPARED, vce::READS, vce::FORM],
    open: |dir, validation| Ok(Box::new(Job::new(&Digits::load(dir, UNSEEN)?.judged_within(validation)))),
    study: None,
};

/// Standard deviation of the noise; images lie in [-1, 1].
const NOISE: f64 = 0.5;

/// Makes another image of the one with this number.
type Change = fn(u64, &[f32]) -> Vec<f32>;

const CHANGES: [(&str, Change); 4] = [
    ("plain", |_, image| image.to_vec()),
    ("rotated", |_, image| rotated(image)),
    ("inverted", |_, image| image.iter().map(|p| -p).collect()),
    ("noisy", noisy),
];

/// A quarter to the right.
fn rotated(image: &[f32]) -> Vec<f32> {
    (0..SIDE * SIDE).map(|at| image[(SIDE - 1 - at % SIDE) * SIDE + at / SIDE]).collect()
}

/// The same noise for the same number, whatever the run.
fn noisy(number: u64, image: &[f32]) -> Vec<f32> {
    let stream = Stream::named(0, 0, "noise on digits");
    let first = number * (SIDE * SIDE) as u64;
    (first..).zip(image).map(|(e, p)| p + (NOISE * stream.normal(e)) as f32).collect()
}

struct Job {
    train: Arc<Samples>,
    parts: Arc<[Part]>,
}

impl Job {
    fn new(digits: &Digits) -> Self {
        let mut train = Samples::default();
        let parts = CHANGES.map(|(name, change)| {
            train.extend(&digits.train, change);
            let mut samples = Samples::default();
            // Numbers beyond those of the training samples, so that no noise comes twice.
            samples.extend(&digits.test, |number, image| change(number + digits.train.len() as u64, image));
            Part { name, samples }
        });
        Job { train: Arc::new(train), parts: Arc::new(parts) }
    }
}

impl Task for Job {
    fn title(&self) -> String {
        "digits 5 to 9 in four guises".into()
    }

    fn samples(&self) -> usize {
        self.train.len()
    }

    fn about(&self) -> String {
        let held_out: usize = self.parts.iter().map(|part| part.samples.len()).sum();
        let names: Vec<&str> = self.parts.iter().map(|part| part.name).collect();
        format!("{} to train on, {held_out} held out: {}", self.train.len(), names.join(", "))
    }

    fn model(&self, trunk: &Path, device: &Device, dtype: DType) -> Result<Box<dyn Model>> {
        Ok(Box::new(Classifier::new(trunk, device, dtype, &self.train, &self.parts)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_turn_four_times_is_none_and_noise_is_the_same_for_all() {
        let image: Vec<f32> = (0..64).map(|p| p as f32).collect();
        let once = rotated(&image);
        // What was at the bottom left is at the top left.
        assert_eq!((once[0], once[7], once[56]), (56.0, 0.0, 63.0));
        assert_eq!(rotated(&rotated(&rotated(&once))), image);
        assert_eq!(noisy(3, &image), noisy(3, &image));
        assert_ne!(noisy(3, &image), noisy(4, &image));
    }
}
