//! Captions: `captions.json` says how the ten digits are called, in which styles, and spelled with which characters; the images are
//! those of the digits, split as they are there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use graftwork::{DType, Device, Error, Result, Tensor};
use serde::Deserialize;

use super::super::digits::data::{Digits, SIDE, Samples};

/// Edge of a patch: one visual token.
const PATCH: usize = 2;
pub const FEATURES: usize = PATCH * PATCH;
const PATCHES: usize = (SIDE / PATCH) * (SIDE / PATCH);

/// What a caption's loss leaves out.
pub const IGNORED: i64 = -1;

/// The first of the digits that the trunk never saw.
const FIRST: u8 = 5;

#[derive(Deserialize)]
struct File {
    images: PathBuf,
    words: Vec<String>,
    specials: Vec<String>,
    characters: String,
    styles: Vec<Style>,
}

/// One caption style, a task of its own: the prompt that asks for it, and its form.
#[derive(Deserialize)]
pub struct Style {
    pub prompt: String,
    /// With `{word}`, `{digit}` and `{letters}` (the word's, hyphens between them).
    caption: String,
}

pub struct Captions {
    pub styles: Vec<Style>,
    words: Vec<String>,
    ids: HashMap<char, i64>,
    pub symbols: usize,
    pub images: Digits,
    path: PathBuf,
}

/// Which of the images.
#[derive(Clone, Copy)]
pub enum Part {
    Train,
    Test,
}

/// A batch on a device: what the encoder reads and what the decoder is to write.
pub struct Batch {
    pub features: Tensor,
    pub prompts: Tensor,
    pub keep: Vec<u8>,
    /// Start token, then the caption.
    pub given: Tensor,
    /// The caption, then the end token; [`IGNORED`] behind.
    pub wanted: Tensor,
}

impl Captions {
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("captions.json");
        if !path.exists() {
            let reason = "not found; run from the repository's root or pass --data DIR".into();
            return Err(Error::File { path, reason });
        }
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let file: File = serde_json::from_str(&text)
            .map_err(|e| Error::File { path: path.clone(), reason: format!("not a file of captions: {e}") })?;
        if file.words.len() != 10 || file.styles.is_empty() {
            let reason =
                format!("{} words and {} styles, expected 10 and at least 1", file.words.len(), file.styles.len());
            return Err(Error::File { path, reason });
        }
        let mut prompts: Vec<&str> = file.styles.iter().map(|style| style.prompt.as_str()).collect();
        prompts.sort_unstable();
        if let Some(twice) = prompts.windows(2).find(|pair| pair[0] == pair[1]) {
            let reason = format!("two styles have the prompt {:?}, which would ask for both", twice[0]);
            return Err(Error::File { path, reason });
        }
        let first = file.specials.len() as i64;
        let ids: HashMap<char, i64> = file.characters.chars().zip(first..).collect();
        if ids.len() != file.characters.chars().count() {
            return Err(Error::File { path, reason: "has a character twice in `characters`".into() });
        }
        let symbols = file.specials.len() + ids.len();
        let images = Digits::load(&dir.join(file.images), FIRST..10)?;
        let captions = Captions { styles: file.styles, words: file.words, ids, symbols, images, path };
        // What cannot be spelled is found out before anything is trained.
        for text in captions.styles.iter().map(|style| style.prompt.clone()).chain(captions.texts()) {
            captions.spell(&text)?;
        }
        Ok(captions)
    }

    /// Every caption that there is.
    fn texts(&self) -> impl Iterator<Item = String> {
        let labels = 0..i64::from(10 - FIRST);
        (0..self.styles.len()).flat_map(move |style| labels.clone().map(move |label| self.caption(style, label)))
    }

    /// Tokens of the longest caption, the end token counted.
    pub fn longest(&self) -> usize {
        self.texts().map(|text| text.chars().count() + 1).max().unwrap_or(1)
    }

    /// # Errors
    /// [`Error::File`] with the first prompt or caption that is longer than a model with so many positions can take.
    pub fn require_within(&self, positions: usize) -> Result<()> {
        // A prompt stands behind the patches and before its end token; a caption behind the start token.
        let prompts = self.styles.iter().map(|style| (style.prompt.clone(), PATCHES));
        let mut all = prompts.chain(self.texts().map(|text| (text, 0)));
        let tokens = |(text, before): &(String, usize)| before + text.chars().count() + 1;
        match all.find(|text| tokens(text) > positions) {
            None => Ok(()),
            Some(long) => {
                let (text, tokens) = (&long.0, tokens(&long));
                let reason = format!(
                    "{text:?} makes a sequence of {tokens} tokens, of at most {positions} for which the trunk has positions"
                );
                Err(Error::File { path: self.path.clone(), reason })
            }
        }
    }

    /// As [`Digits::judged_within`].
    pub fn judged_within(self, validation: bool) -> Self {
        Captions { images: self.images.judged_within(validation), ..self }
    }

    /// One sample for each image and style.
    pub fn len(&self, part: Part) -> usize {
        self.part(part).len() * self.styles.len()
    }

    /// Of sample `index`.
    pub fn image_and_style(&self, index: usize) -> (usize, usize) {
        (index / self.styles.len(), index % self.styles.len())
    }

    fn part(&self, part: Part) -> &Samples {
        match part {
            Part::Train => &self.images.train,
            Part::Test => &self.images.test,
        }
    }

    fn caption(&self, style: usize, label: i64) -> String {
        let digit = label as usize + usize::from(FIRST);
        let word = &self.words[digit];
        let letters: Vec<String> = word.chars().map(String::from).collect();
        let form = &self.styles[style].caption;
        form.replace("{word}", word).replace("{digit}", &digit.to_string()).replace("{letters}", &letters.join("-"))
    }

    /// The caption of sample `index` as ids, without start and end.
    pub fn expected(&self, part: Part, index: usize) -> Result<Vec<i64>> {
        let (image, style) = self.image_and_style(index);
        self.spell(&self.caption(style, self.part(part).labels()[image]))
    }

    /// Ids of the characters.
    pub fn spell(&self, text: &str) -> Result<Vec<i64>> {
        let id = |c: char| self.ids.get(&c).copied().ok_or(c);
        text.chars().map(id).collect::<std::result::Result<_, _>>().map_err(|unknown| {
            let mut known: Vec<char> = self.ids.keys().copied().collect();
            known.sort_unstable();
            let known: String = known.into_iter().collect();
            Error::File {
                path: self.path.clone(),
                reason: format!(
                    "{text:?} has the character {unknown:?}, which is not among those of the vocabulary: {known:?}"
                ),
            }
        })
    }

    /// Mean length of a caption with its end token.
    pub fn mean_tokens(&self) -> Result<f64> {
        let n = self.len(Part::Train);
        let mut tokens = 0;
        for index in 0..n {
            tokens += self.expected(Part::Train, index)?.len() + 1;
        }
        Ok(tokens as f64 / n.max(1) as f64)
    }

    /// Samples `indices`, with the token that captions begin with, the one that ends them, and the one that fills up.
    pub fn batch(
        &self,
        part: Part,
        indices: &[usize],
        [start, end, pad]: [i64; 3],
        device: &Device,
        dtype: DType,
    ) -> Result<Batch> {
        let b = indices.len();
        let pixels = |&i: &usize| patches(self.part(part).pixels(self.image_and_style(i).0));
        let features: Vec<f32> = indices.iter().flat_map(pixels).collect();
        let ended = |mut ids: Vec<i64>| {
            ids.push(end);
            ids
        };
        let prompt = |&i: &usize| self.spell(&self.styles[self.image_and_style(i).1].prompt).map(ended);
        let prompts: Vec<Vec<i64>> = indices.iter().map(prompt).collect::<Result<_>>()?;
        let captions: Vec<Vec<i64>> =
            indices.iter().map(|&i| self.expected(part, i).map(ended)).collect::<Result<_>>()?;
        let given: Vec<Vec<i64>> = captions.iter().map(|c| [&[start][..], &c[..c.len() - 1]].concat()).collect();
        let t = longest(&prompts);
        let n = longest(&captions);
        let keep = prompts.iter().flat_map(|p| (0..t).map(move |i| u8::from(i < p.len()))).collect();
        Ok(Batch {
            features: Tensor::from_f32(device, &[b, PATCHES, FEATURES], &features, dtype)?,
            prompts: Tensor::from_slice(device, &[b, t], &filled(&prompts, t, pad))?,
            keep,
            given: Tensor::from_slice(device, &[b, n], &filled(&given, n, pad))?,
            wanted: Tensor::from_slice(device, &[b, n], &filled(&captions, n, IGNORED))?,
        })
    }
}

fn longest(rows: &[Vec<i64>]) -> usize {
    rows.iter().map(Vec::len).max().unwrap_or(0)
}

fn filled(rows: &[Vec<i64>], length: usize, with: i64) -> Vec<i64> {
    rows.iter().flat_map(|row| (0..length).map(move |i| row.get(i).copied().unwrap_or(with))).collect()
}

/// Patches row by row, the pixels of each row by row.
fn patches(pixels: &[f32]) -> impl Iterator<Item = f32> + '_ {
    let across = SIDE / PATCH;
    (0..PATCHES * FEATURES).map(move |e| {
        let (patch, pixel) = (e / FEATURES, e % FEATURES);
        let (row, column) = (patch / across * PATCH + pixel / PATCH, patch % across * PATCH + pixel % PATCH);
        pixels[row * SIDE + column]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("data/captions")
    }

    #[test]
    fn samples_are_images_in_every_style() {
        let captions = Captions::load(&shipped()).unwrap();
        let batch = captions.batch(Part::Train, &[0, 1, 2, 3], [2, 2, 1], &Device::cpu(), DType::F32).unwrap();
        assert_eq!(batch.features.dims(), [4, 16, 4]);
        let wanted: Vec<i64> = batch.wanted.to_vec().unwrap();
        let first = captions.expected(Part::Train, 0).unwrap();
        assert_eq!(wanted[..first.len()], first);
        assert_eq!((wanted[first.len()], wanted[first.len() + 1]), (2, IGNORED));
        assert_eq!(captions.caption(0, 0), "five");
        assert_eq!(captions.caption(3, 4), "n-i-n-e");
        assert_eq!(captions.caption(2, 2), "digit 7");
        assert_eq!(captions.len(Part::Train), 4 * captions.images.train.len());
    }

    #[test]
    fn pixels_go_to_their_patches() {
        let pixels: Vec<f32> = (0..64).map(|i| i as f32).collect();
        let got: Vec<f32> = patches(&pixels).collect();
        assert_eq!(got[..8], [0.0, 1.0, 8.0, 9.0, 2.0, 3.0, 10.0, 11.0]);
        assert_eq!(got[16..20], [16.0, 17.0, 24.0, 25.0]);
    }

    #[test]
    fn a_character_outside_the_vocabulary_is_named() {
        let captions = Captions::load(&shipped()).unwrap();
        let error = captions.spell("seven!").unwrap_err().to_string();
        assert!(error.contains("'!'") && error.contains("seven!"), "{error}");
    }
}
