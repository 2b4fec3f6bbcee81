//! A second modality for images of digits: a few words on what is to be seen, from the image alone, and an embedding of those words by hashing.
//!
//! The words tell of ink, holes, strokes across, symmetry and where the weight lies. They are what a person might say who does not read
//! digits; their quality is the weak point of such a text, which is why noise can be added to them.

use graftwork::rng::Stream;

use crate::finetune::tasks::digits::SIDE;

/// Numbers of a text's embedding.
pub const WIDTH: usize = 64;
/// Places of an embedding that one word touches.
const TOUCHED: u64 = 8;

const AMOUNTS: [&str; 4] = ["none", "one", "two", "many"];
const SIDES: [&str; 3] = ["less", "even", "more"];

/// What is to be seen on an image of `SIDE` by `SIDE` pixels from -1, blank, to 1.
pub fn words(pixels: &[f32]) -> Vec<String> {
    let image = Image(pixels);
    let mut words = vec![
        format!("ink-{}", (image.ink(0..SIDE, 0..SIDE) / 3.0) as usize),
        format!("holes-{}", AMOUNTS[image.holes().min(3)]),
    ];
    for (i, line) in (0..SIDE).step_by(2).enumerate() {
        words.push(format!("row-{i}-strokes-{}", AMOUNTS[image.strokes(line, true).min(3)]));
        words.push(format!("column-{i}-strokes-{}", AMOUNTS[image.strokes(line, false).min(3)]));
    }
    let half = SIDE / 2;
    for (name, a, b) in [
        ("top", image.ink(0..half, 0..SIDE), image.ink(half..SIDE, 0..SIDE)),
        ("left", image.ink(0..SIDE, 0..half), image.ink(0..SIDE, half..SIDE)),
        ("top-left", image.ink(0..half, 0..half), image.ink(0..half, half..SIDE)),
        ("bottom-left", image.ink(half..SIDE, 0..half), image.ink(half..SIDE, half..SIDE)),
    ] {
        words.push(format!("{name}-{}", SIDES[image.compare(a, b)]));
    }
    words.push(format!("mirrored-{}", (image.likeness(|r, c| (r, SIDE - 1 - c)) * 4.0) as usize));
    words.push(format!("turned-{}", (image.likeness(|r, c| (SIDE - 1 - r, SIDE - 1 - c)) * 4.0) as usize));
    words
}

/// The words' embedding, of length 1. Each word is replaced, with probability `noise`, by one that means nothing; draws are keyed by the seed
/// and the sample.
pub fn embed(words: &[String], noise: f64, seed: u64, sample: usize) -> Vec<f32> {
    let dice = Stream::named(seed, sample as u32, "noise in the text");
    let mut out = vec![0.0f32; WIDTH];
    for (i, word) in words.iter().enumerate() {
        let i = i as u64;
        let nonsense = format!("nonsense-{}", dice.bits(2 * i + 1) % 1000);
        let word = if dice.uniform(2 * i) < noise { &nonsense } else { word };
        let hash = Stream::named(0, 0, word);
        for k in 0..TOUCHED {
            let bits = hash.bits(k);
            out[bits as usize % WIDTH] += if bits >> 31 == 0 { 1.0 } else { -1.0 };
        }
    }
    unit(&mut out);
    out
}

/// Scales to length 1; zeros stay.
pub fn unit(values: &mut [f32]) {
    let length = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|v| *v /= length);
    }
}

struct Image<'a>(&'a [f32]);

impl Image<'_> {
    /// Ink of a pixel, from 0 to 1.
    fn at(&self, row: usize, column: usize) -> f32 {
        (self.0[row * SIDE + column] + 1.0) / 2.0
    }

    fn inked(&self, row: usize, column: usize) -> bool {
        self.at(row, column) > 0.4
    }

    fn ink(&self, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> f32 {
        rows.flat_map(|r| columns.clone().map(move |c| (r, c))).map(|(r, c)| self.at(r, c)).sum()
    }

    /// Strokes that a line across the image, or down it, meets.
    fn strokes(&self, line: usize, across: bool) -> usize {
        let inked = |i: usize| if across { self.inked(line, i) } else { self.inked(i, line) };
        (0..SIDE).filter(|&i| inked(i) && (i == 0 || !inked(i - 1))).count()
    }

    /// Blank regions that the border cannot be reached from.
    fn holes(&self) -> usize {
        let mut seen = [false; SIDE * SIDE];
        let mut holes = 0;
        for start in 0..SIDE * SIDE {
            let (mut open, mut size, mut waiting) = (false, 0, vec![start]);
            while let Some(at) = waiting.pop() {
                let (r, c) = (at / SIDE, at % SIDE);
                if seen[at] || self.inked(r, c) {
                    continue;
                }
                seen[at] = true;
                size += 1;
                open |= r == 0 || c == 0 || r == SIDE - 1 || c == SIDE - 1;
                let near = [
                    (r > 0, at.wrapping_sub(SIDE)),
                    (r + 1 < SIDE, at + SIDE),
                    (c > 0, at.wrapping_sub(1)),
                    (c + 1 < SIDE, at + 1),
                ];
                waiting.extend(near.into_iter().filter(|(inside, _)| *inside).map(|(_, at)| at));
            }
            holes += usize::from(size > 0 && !open);
        }
        holes
    }

    /// Index into [`SIDES`]: whether `a` is clearly less or more than `b`.
    fn compare(&self, a: f32, b: f32) -> usize {
        let share = a / (a + b).max(1e-6);
        if share < 0.42 {
            0
        } else if share > 0.58 {
            2
        } else {
            1
        }
    }

    /// How much of the ink lies on ink after a change of places, from 0 to 1, 1 left out.
    fn likeness(&self, to: impl Fn(usize, usize) -> (usize, usize)) -> f32 {
        let pairs = (0..SIDE * SIDE).map(|i| {
            let (r, c) = to(i / SIDE, i % SIDE);
            (self.at(i / SIDE, i % SIDE), self.at(r, c))
        });
        let (both, either) = pairs.fold((0.0, 1e-3), |(b, e), (u, v)| (b + u.min(v), e + u.max(v)));
        (both / either).min(0.999)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(rows: [&str; SIDE]) -> Vec<f32> {
        rows.iter().flat_map(|row| row.bytes().map(|b| if b == b'#' { 1.0 } else { -1.0 })).collect()
    }

    #[test]
    fn holes_and_strokes_are_counted() {
        let eight =
            image(["..####..", ".#....#.", ".#....#.", "..####..", "..####..", ".#....#.", ".#....#.", "..####.."]);
        let words = words(&eight);
        for word in
            ["holes-two", "row-1-strokes-two", "row-2-strokes-one", "top-even", "left-even", "mirrored-3", "turned-3"]
        {
            assert!(words.iter().any(|w| w == word), "{word} in {words:?}");
        }
        let blank = super::words(&[-1.0; SIDE * SIDE]);
        assert!(blank.iter().any(|w| w == "holes-none") && blank.iter().any(|w| w == "ink-0"));
    }

    #[test]
    fn noise_changes_words_and_seeds_decide_which() {
        let words = words(&image(["########"; SIDE]));
        let plain = embed(&words, 0.0, 1, 7);
        assert_eq!(plain, embed(&words, 0.0, 2, 9));
        assert!((plain.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
        let (a, b) = (embed(&words, 0.5, 1, 7), embed(&words, 0.5, 1, 8));
        assert!(a != plain && a != b && a == embed(&words, 0.5, 1, 7));
    }
}
