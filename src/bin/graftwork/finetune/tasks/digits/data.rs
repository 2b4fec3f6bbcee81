//! The UCI handwritten digits that ship with the repository, and the split that everyone uses: within each class, in file order,
//! every fifth image is held out.

use std::path::Path;

use graftwork::format::safetensors::SafeTensors;
use graftwork::{Device, Error, Result, Tensor};

pub const SIDE: usize = 8;

pub struct Digits {
    pub train: Samples,
    pub test: Samples,
}

/// Images scaled to [-1, 1] and labels counted from the first class asked for.
#[derive(Default)]
pub struct Samples {
    pixels: Vec<f32>,
    labels: Vec<i64>,
}

impl Digits {
    /// The images of `classes` from `digits.safetensors` in `dir`.
    pub fn load(dir: &Path, classes: std::ops::Range<u8>) -> Result<Self> {
        let path = dir.join("digits.safetensors");
        if !path.exists() {
            let reason = "not found; run from the repository's root or pass --data DIR";
            return Err(Error::File { path, reason: reason.into() });
        }
        let file = SafeTensors::open(&path)?;
        let images = file.tensor("images", &Device::cpu())?;
        let labels: Vec<u8> = file.tensor("labels", &Device::cpu())?.to_vec()?;
        if images.dims() != [labels.len(), SIDE, SIDE] {
            let reason = format!("`images` has shape {:?}, expected [{}, {SIDE}, {SIDE}]", images.dims(), labels.len());
            return Err(Error::File { path, reason });
        }
        let images: Vec<u8> = images.to_vec()?;
        let mut all = Samples::default();
        for (image, &label) in images.chunks_exact(SIDE * SIDE).zip(&labels) {
            if classes.contains(&label) {
                all.pixels.extend(image.iter().map(|&p| f32::from(p) / 8.0 - 1.0));
                all.labels.push(i64::from(label - classes.start));
            }
        }
        let digits = Digits::split(&all);
        if digits.train.labels.is_empty() || digits.test.labels.is_empty() {
            let last = classes.end.saturating_sub(1);
            let reason = format!(
                "holds too few images of the digits {} to {last}, expected five of one at least",
                classes.start
            );
            return Err(Error::File { path, reason });
        }
        Ok(digits)
    }

    /// Within each class, in order, every fifth image is held out.
    fn split(all: &Samples) -> Self {
        let mut digits = Digits { train: Samples::default(), test: Samples::default() };
        let mut seen = std::collections::HashMap::new();
        for (i, &label) in all.labels.iter().enumerate() {
            let index = seen.entry(label).or_insert(0usize);
            let part = if *index % 5 == 4 { &mut digits.test } else { &mut digits.train };
            *index += 1;
            part.pixels.extend(all.pixels(i));
            part.labels.push(label);
        }
        digits
    }

    /// With `validation` the training images are split once more and the held-out ones are left alone: what settings are chosen by.
    pub fn judged_within(self, validation: bool) -> Self {
        if validation { Digits::split(&self.train) } else { self }
    }
}

/// One batch on a device: pixels `[b, 1, 8, 8]`, targets `[b]`.
pub struct Batch {
    pub pixels: Tensor,
    pub targets: Tensor,
}

impl Samples {
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    pub fn labels(&self) -> &[i64] {
        &self.labels
    }

    /// Of one image, row by row.
    pub fn pixels(&self, index: usize) -> &[f32] {
        let size = SIDE * SIDE;
        &self.pixels[index * size..(index + 1) * size]
    }

    pub fn batch(&self, indices: &[usize], device: &Device, dtype: graftwork::DType) -> Result<Batch> {
        let pixels: Vec<f32> = indices.iter().flat_map(|&i| self.pixels(i)).copied().collect();
        let targets: Vec<i64> = indices.iter().map(|&i| self.labels[i]).collect();
        Ok(Batch {
            pixels: Tensor::from_f32(device, &[indices.len(), 1, SIDE, SIDE], &pixels, dtype)?,
            targets: Tensor::from_slice(device, &[indices.len()], &targets)?,
        })
    }
}

impl Samples {
    /// Takes in what `change` makes of each of `others`: a row-major image, given its number.
    pub fn extend(&mut self, others: &Samples, change: impl Fn(u64, &[f32]) -> Vec<f32>) {
        for i in 0..others.len() {
            self.pixels.extend(change(i as u64, others.pixels(i)));
        }
        self.labels.extend(&others.labels);
    }
}
