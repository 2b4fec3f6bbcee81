//! What a run found, as a table and as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::args::{Pace, Recipe};
use super::methods::Picture;
use super::tasks::Scores;
use super::train::{Point, Trained, Trainer};
use crate::output;

#[derive(Serialize)]
pub struct RunReport {
    pub task: String,
    pub device: String,
    pub method: String,
    /// What the adapter is, in a few words.
    pub adapter: String,
    pub trainable_params: usize,
    pub total_params: usize,
    /// `accuracy_before`, `accuracy_after`, `accuracy_reloaded`, and so for every score of the task.
    #[serde(flatten)]
    pub scores: BTreeMap<String, f64>,
    /// The score to compare by.
    pub score: String,
    /// Every score, in the task's order.
    #[serde(skip)]
    pub score_names: Vec<String>,
    /// Share of what could learn that did in the end, for a method whose form changes.
    pub density: Option<f64>,
    /// The scores over steps, as far as asked for.
    pub history: Vec<Point>,
    #[serde(skip)]
    pub pictures: Vec<Picture>,
    pub losses: Vec<f64>,
    pub steps: u64,
    pub seconds_train: f64,
    pub steps_per_second: f64,
    /// Bytes kept alive for backward, at the worst moment of any step.
    pub retained_peak_bytes: usize,
    /// The same for a tape that tracks every weight and recomputes nothing.
    pub retained_if_all_tracked_bytes: usize,
    pub interrupted: bool,
    pub recipe: Recipe,
    pub pace: Pace,
    pub out: Option<PathBuf>,
}

impl RunReport {
    pub fn new(
        trainer: &Trainer,
        task: String,
        trained: Trained,
        [after, reloaded]: [Scores; 2],
        all_tracked: usize,
        out: Option<PathBuf>,
    ) -> Self {
        RunReport {
            task,
            device: trainer.adapted.model.device().name(),
            method: trainer.recipe.method.clone(),
            adapter: trainer.adapted.method.note(),
            trainable_params: trainer.adapted.params.numel(),
            total_params: trainer.adapted.total_params(),
            score: after.first().map_or("score".into(), |(name, _)| name.clone()),
            score_names: after.iter().map(|(name, _)| name.clone()).collect(),
            scores: moments([("before", &trainer.before), ("after", &named(&after)), ("reloaded", &named(&reloaded))]),
            density: trainer.adapted.method.density(),
            history: trainer.history.clone(),
            pictures: trainer.adapted.method.pictures(),
            losses: trainer.losses.clone(),
            steps: trainer.step,
            seconds_train: trained.seconds,
            steps_per_second: trained.steps as f64 / trained.seconds.max(f64::MIN_POSITIVE),
            retained_peak_bytes: trained.retained_peak_bytes,
            retained_if_all_tracked_bytes: all_tracked,
            interrupted: trained.interrupted,
            recipe: trainer.recipe.clone(),
            pace: trainer.pace,
            out,
        }
    }
}

/// By name.
pub fn named(scores: &Scores) -> BTreeMap<String, f64> {
    scores.iter().cloned().collect()
}

/// `accuracy_before` and so on.
fn moments(all: [(&str, &BTreeMap<String, f64>); 3]) -> BTreeMap<String, f64> {
    let of = |(moment, scores): (&'_ str, &BTreeMap<String, f64>)| {
        scores.iter().map(|(name, value)| (format!("{name}_{moment}"), *value)).collect::<Vec<_>>()
    };
    all.into_iter().flat_map(of).collect()
}

/// The first run's fields at the top, and all runs in a list.
pub struct Report {
    pub runs: Vec<RunReport>,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            #[serde(flatten)]
            first: Option<&'a RunReport>,
            /// Of a run that was stopped before there was a first.
            #[serde(skip_serializing_if = "Option::is_none")]
            interrupted: Option<bool>,
            runs: &'a [RunReport],
        }
        let interrupted = self.runs.is_empty().then_some(true);
        Shape { first: self.runs.first(), interrupted, runs: &self.runs }.serialize(serializer)
    }
}

impl Report {
    pub fn new(runs: Vec<RunReport>) -> Self {
        Report { runs }
    }

    pub fn table(&self) -> String {
        let header = [
            "method",
            "adapter",
            "trainable",
            "share",
            "before",
            "after",
            "reloaded",
            "steps",
            "seconds",
            "steps/s",
            "kept for backward",
            "of all-tracked",
        ];
        let rows: Vec<Vec<String>> = self.runs.iter().map(row).collect();
        output::table(&header, &rows)
    }

    /// A column for each score after training, of a task that has several.
    pub fn scores(&self) -> Option<String> {
        let names = &self.runs.first().filter(|run| run.score_names.len() > 1)?.score_names;
        let header: Vec<&str> = ["method", "adapter"].into_iter().chain(names.iter().map(String::as_str)).collect();
        let row = |run: &RunReport| {
            let score =
                |name: &String| run.scores.get(&format!("{name}_after")).map_or("-".into(), |s| output::percent(*s));
            [run.method.clone(), run.adapter.clone()].into_iter().chain(names.iter().map(score)).collect()
        };
        Some(output::table(&header, &self.runs.iter().map(row).collect::<Vec<Vec<String>>>()))
    }
}

fn row(run: &RunReport) -> Vec<String> {
    let score =
        |moment: &str| run.scores.get(&format!("{}_{moment}", run.score)).map_or("-".into(), |s| output::percent(*s));
    vec![
        run.method.clone(),
        run.adapter.clone(),
        run.trainable_params.to_string(),
        output::percent(run.trainable_params as f64 / run.total_params as f64),
        score("before"),
        score("after"),
        score("reloaded"),
        run.steps.to_string(),
        format!("{:.1}", run.seconds_train),
        format!("{:.1}", run.steps_per_second),
        output::bytes(run.retained_peak_bytes),
        output::percent(run.retained_peak_bytes as f64 / run.retained_if_all_tracked_bytes.max(1) as f64),
    ]
}
