//! What a run found, as a table and as JSON.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::args::{Pace, Recipe};
use super::train::{Trained, Trainer};
use crate::output;

#[derive(Serialize)]
pub struct RunReport {
    pub task: &'static str,
    pub device: String,
    pub method: &'static str,
    pub trainable_params: usize,
    pub total_params: usize,
    pub accuracy_before: f64,
    pub accuracy_after: f64,
    pub accuracy_reloaded: f64,
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
        trained: Trained,
        [before, after, reloaded]: [f64; 3],
        all_tracked: usize,
        out: Option<PathBuf>,
    ) -> Self {
        RunReport {
            task: "digits 5 to 9",
            device: trainer.model.trunk.device().name(),
            method: trainer.recipe.method.name(),
            trainable_params: trainer.model.params.numel(),
            total_params: trainer.model.total_params,
            accuracy_before: before,
            accuracy_after: after,
            accuracy_reloaded: reloaded,
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

/// The first run's fields at the top, and all runs in a list.
pub struct Report {
    runs: Vec<RunReport>,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape<'a> {
            #[serde(flatten)]
            first: Option<&'a RunReport>,
            runs: &'a [RunReport],
        }
        Shape { first: self.runs.first(), runs: &self.runs }.serialize(serializer)
    }
}

impl Report {
    pub fn new(runs: Vec<RunReport>) -> Self {
        Report { runs }
    }

    pub fn table(&self) -> String {
        let header = [
            "method",
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
}

fn row(run: &RunReport) -> Vec<String> {
    vec![
        run.method.to_string(),
        run.trainable_params.to_string(),
        output::percent(run.trainable_params as f64 / run.total_params as f64),
        output::percent(run.accuracy_before),
        output::percent(run.accuracy_after),
        output::percent(run.accuracy_reloaded),
        run.steps.to_string(),
        format!("{:.1}", run.seconds_train),
        format!("{:.1}", run.steps_per_second),
        output::bytes(run.retained_peak_bytes),
        output::percent(run.retained_peak_bytes as f64 / run.retained_if_all_tracked_bytes.max(1) as f64),
    ]
}
