//! Captions from a source: greedily, or by beam search.
//!
//! A beam's score is `Σ ln p(token) / length^α`, the end token counted in the length. In every step the `beams` best continuations that do
//! not end go on; an ending one among the `beams` best of all is a finished caption. The search of a sample is over when it has `beams`
//! finished captions and the best unfinished one, as long as it is now, scores no better than the worst of them, or at `max_tokens`.
//! With one beam it goes greedily, the lowest id first among equals.

use super::{Caption, EncoderDecoder, OP, Source};
use crate::autograd::{Tape, Var};
use crate::error::{Error, Result};
use crate::ops::embedding;
use crate::tensor::Tensor;

use super::layers::KeysValues;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerateOptions {
    /// 1: greedy.
    pub beams: usize,
    /// Longest caption, the end token counted and the start token not.
    pub max_tokens: usize,
    /// α: above 0 long captions are preferred, below 0 short ones.
    pub length_penalty: f64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions { beams: 1, max_tokens: 32, length_penalty: 1.0 }
    }
}

/// A caption that is not over.
#[derive(Clone, Debug)]
struct Beam {
    tokens: Vec<i64>,
    log_probability: f64,
}

/// The search of one sample.
#[derive(Debug)]
struct Search {
    beams: Vec<Beam>,
    /// Captions without the end token, best first.
    finished: Vec<(f64, Vec<i64>)>,
    over: bool,
}

/// One way to go on: from which beam, with which token.
#[derive(Clone, Copy, Debug)]
struct Step {
    beam: usize,
    token: i64,
    log_probability: f64,
}

impl Search {
    fn new() -> Self {
        Search { beams: vec![Beam { tokens: Vec::new(), log_probability: 0.0 }], finished: Vec::new(), over: false }
    }

    /// Takes the logits after each beam. Returns from which beam each new one comes.
    fn advance(&mut self, logits: &[&[f32]], end: i64, options: &GenerateOptions) -> Vec<usize> {
        let length = self.beams[0].tokens.len() + 1;
        let score =
            |log_probability: f64, length: usize| log_probability / (length as f64).powf(options.length_penalty);
        let mut steps: Vec<Step> = Vec::new();
        for (beam, (from, row)) in self.beams.iter().zip(logits).enumerate() {
            let total = log_sum_exp(row);
            steps.extend((0i64..).zip(*row).map(|(token, &logit)| Step {
                beam,
                token,
                log_probability: from.log_probability + f64::from(logit) - total,
            }));
        }
        // Among equals the first beam and the lowest id.
        let better = |a: &Step, b: &Step| {
            b.log_probability.total_cmp(&a.log_probability).then((a.beam, a.token).cmp(&(b.beam, b.token)))
        };
        let looked_at = (2 * options.beams).min(steps.len());
        steps.select_nth_unstable_by(looked_at - 1, better);
        steps.truncate(looked_at);
        steps.sort_unstable_by(better);
        let mut next: Vec<Step> = Vec::new();
        for (rank, step) in steps.iter().enumerate() {
            let last = length == options.max_tokens;
            if step.token != end && !last {
                next.extend((next.len() < options.beams).then_some(*step));
            } else if rank < options.beams {
                let mut tokens = self.beams[step.beam].tokens.clone();
                tokens.extend((step.token != end).then_some(step.token));
                self.finished.push((score(step.log_probability, length), tokens));
            }
        }
        self.finished.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.finished.truncate(options.beams);
        let origins = next.iter().map(|step| step.beam).collect();
        self.beams = next.iter().map(|step| self.beams[step.beam].followed_by(step)).collect();
        let best = self.beams.first().map(|beam| score(beam.log_probability, length));
        let full = self.finished.len() == options.beams;
        self.over = match (best, self.finished.last()) {
            (None, _) => true,
            (Some(best), Some((worst, _))) => full && best <= *worst,
            (Some(_), None) => false,
        };
        origins
    }
}

impl Beam {
    fn followed_by(&self, step: &Step) -> Beam {
        let mut tokens = self.tokens.clone();
        tokens.push(step.token);
        Beam { tokens, log_probability: step.log_probability }
    }
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let most = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(f64::from(v)));
    most + row.iter().map(|&v| (f64::from(v) - most).exp()).sum::<f64>().ln()
}

impl EncoderDecoder {
    /// The best caption of each sample, without start and end.
    ///
    /// # Errors
    /// [`Error::Value`] for no beams, no tokens, more beams than words, a penalty that is not finite, or more tokens than positions; those of
    /// [`EncoderDecoder::encode`].
    pub fn generate(&self, tape: &mut Tape, source: &Source, options: &GenerateOptions) -> Result<Vec<Vec<i64>>> {
        let most = self.config.vocabulary / 2;
        if options.beams == 0 || (options.beams > 1 && options.beams > most) {
            return Err(Error::value(OP, "beams", format!("1 to {}", most.max(1)), options.beams));
        }
        if options.max_tokens == 0 {
            return Err(Error::value(OP, "max_tokens", "at least 1", 0));
        }
        if !options.length_penalty.is_finite() {
            return Err(Error::value(OP, "length_penalty", "a finite number", options.length_penalty));
        }
        let encoded = self.encode(tape, source)?;
        let mut caption = self.begin(tape, &encoded)?;
        let b = encoded.states.dims()[0];
        let mut searches: Vec<Search> = (0..b).map(|_| Search::new()).collect();
        let mut last = vec![self.config.start; b];
        while !last.is_empty() {
            let ids = Tensor::from_slice(&self.device, &[last.len(), 1], &last)?;
            let logits = self.extend(tape, &mut caption, &ids)?.tensor().to_f32_vec()?;
            let rows: Vec<&[f32]> = logits.chunks(self.config.vocabulary).collect();
            // Rows of the next step: all beams of the searches that go on, in order.
            let (mut origins, mut next, mut at) = (Vec::new(), Vec::new(), 0);
            for search in searches.iter_mut().filter(|search| !search.over) {
                let here = search.beams.len();
                let from = search.advance(&rows[at..at + here], self.config.end, options);
                if !search.over {
                    origins.extend(from.iter().map(|beam| (at + beam) as i64));
                    next.extend(search.beams.iter().filter_map(|beam| beam.tokens.last().copied()));
                }
                at += here;
            }
            caption.pick(tape, &origins)?;
            last = next;
        }
        Ok(searches
            .into_iter()
            .map(|search| search.finished.into_iter().next().map_or(Vec::new(), |(_, t)| t))
            .collect())
    }
}

impl Caption {
    /// Rows `origins`, in that order.
    fn pick(&mut self, tape: &mut Tape, origins: &[i64]) -> Result<()> {
        let unchanged = || origins.iter().zip(0..).all(|(&origin, i)| origin == i);
        let rows = self.source.first().map_or(0, |source| source.k.dims()[0]);
        if origins.is_empty() || (rows == origins.len() && unchanged()) {
            return Ok(());
        }
        for kept in self.source.iter_mut().chain(self.own.iter_mut().flatten()) {
            *kept = KeysValues { k: rows_of(tape, &kept.k, origins)?, v: rows_of(tape, &kept.v, origins)? };
        }
        if let Some(keep) = &mut self.keep {
            let s = keep.len() / rows.max(1);
            *keep = origins.iter().flat_map(|&row| &keep[row as usize * s..(row as usize + 1) * s]).copied().collect();
        }
        Ok(())
    }
}

/// Items `origins` of `x [b, ..]`.
fn rows_of(tape: &mut Tape, x: &Var, origins: &[i64]) -> Result<Var> {
    let &[b, s, d] = x.dims() else { return Err(Error::shape(OP, "cache", "[b, s, d]", x.dims())) };
    let ids = Tensor::from_slice(x.tensor().device(), &[origins.len()], origins)?;
    embedding(tape, &ids, &x.reshape(&[b, s * d])?)?.reshape(&[origins.len(), s, d])
}
