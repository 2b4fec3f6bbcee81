//! Few labels on the graph between samples: images of the digits 5 to 9, each with a few words about it, joined by similarity.
//!
//! This is a study rather than one training: every method is trained at every number of labels from every seed, on whole batches of frozen
//! features, and the table gives mean and spread.

mod describe;
mod plot;
mod study;

use std::ops::Bound;
use std::path::Path;
use std::process::ExitCode;

use graftwork::device::on_workers;
use graftwork::ops::CosineOptions;
use graftwork::{Device, Error, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::Entry;
use super::digits::Digits;
use crate::finetune::Args;
use crate::finetune::methods::ga_net::{GaNetOptions, GraphOf};
use crate::finetune::options::{COUNT, Read, blame_file, number, refused, repeated, size, whole};
use crate::output::{self, say};
use study::{Cell, Judge, Learner, Nodes, Recipe};

pub const ENTRY: Entry = Entry {
    name: "graph",
    about: "Digits 5 to 9 from few labels: images and words on the graph of similar samples",
    trunk: "data/digits/trunk",
    data: "data/digits",
    methods: &["ga-net", "linear-probe"],
    reads: &[
        Read::always(&["labels", "seeds", "noise", "validation"]),
        Read::when(&["threshold", "top_k", "weighted"], "with --method ga-net or --plot", |args| {
            args.plot.is_some() || args.method.iter().any(|method| method == "ga-net")
        }),
    ],
    open: |_, _| Err(not_stepwise()),
    study: Some(run),
};

fn not_stepwise() -> Error {
    Error::Unsupported {
        op: "finetune",
        what: "the graph task is a study, not one training".into(),
        hint: "use --method ga-net,linear-probe".into(),
    }
}

#[derive(clap::Args)]
pub struct GraphOptions {
    /// Labelled images of each class, one study for each number
    #[arg(long, value_delimiter = ',', default_values_t = [5usize, 20, 100], value_parser = size(1..=1000))]
    pub labels: Vec<usize>,
    /// Seeds that mean and spread are taken over: of labels, starting values and noise
    #[arg(long, default_value_t = 10, value_parser = whole(1..=1000))]
    pub seeds: u64,
    /// Samples more similar than this are joined, from -1 to 1
    #[arg(long, default_value_t = 0.7, value_parser = number((Bound::Included(-1.0), Bound::Included(1.0))))]
    pub threshold: f64,
    /// The most neighbours that a sample reads [default: all above the threshold]
    #[arg(long, value_parser = size(1..=COUNT))]
    pub top_k: Option<usize>,
    /// Weigh edges by their similarity
    #[arg(long)]
    pub weighted: bool,
    /// Share of the words that are replaced by nonsense, from 0 to 1
    #[arg(long, default_value_t = 0.0, value_parser = number((Bound::Included(0.0), Bound::Included(1.0))))]
    pub noise: f64,
}

#[derive(Serialize)]
struct Report {
    device: String,
    threshold: f64,
    network: GaNetOptions,
    noise: f64,
    seeds: u64,
    judged: &'static str,
    /// Among the training samples, self loops not counted.
    edges: usize,
    samples: usize,
    rows: Vec<Row>,
    thresholds: Vec<Point>,
    noises: Vec<Point>,
}

#[derive(Serialize)]
struct Row {
    method: &'static str,
    labels: usize,
    #[serde(flatten)]
    cell: Cell,
}

/// One place of a sweep.
#[derive(Serialize)]
pub struct Point {
    pub at: f64,
    pub edges: usize,
    pub with_graph: Cell,
    pub without: Cell,
}

fn run(args: &Args, device: &Device) -> Result<ExitCode> {
    let options = &args.graph;
    let learners = learners(args)?;
    let data = args.data.as_deref().unwrap_or(Path::new(ENTRY.data));
    let digits = Digits::load(data, 5..10).map_err(|e| blame_file(e, "--data"))?;
    let nodes = on_workers(|| Nodes::new(&digits, &args.trunk()?, device));
    let nodes = nodes.map_err(|e| blame_file(e, "--trunk"))?;
    require_labels(options, &nodes, args.validation)?;
    say!(
        "digits 5 to 9: {} nodes to learn on, {} held out; each an image and about {} words; trunk {}; device {}",
        nodes.train.len(),
        nodes.test.len(),
        nodes.words(),
        args.trunk()?.display(),
        device.name()
    );
    let joined =
        |threshold| CosineOptions { threshold, top_k: options.top_k, symmetric: true, weighted: options.weighted };
    let sweep_seeds = if args.plot.is_some() { options.seeds.min(study::SWEEP_SEEDS) } else { 0 };
    let trainings = learners.len() as u64 * options.labels.len() as u64 * options.seeds;
    let bar = progress(trainings + study::SWEEP_CELLS * sweep_seeds);
    let network = args.methods.ga_net;
    let batch = (network.graph == GraphOf::Batch).then_some(args.batch);
    let study = |learner: Learner, labels, threshold, noise, seeds| {
        bar.set_message(format!("{}, {labels} labels a class", learner.name()));
        let judge = if args.validation { Judge::Unlabelled } else { Judge::HeldOut };
        let ewc = args.ewc.springs();
        let recipe = Recipe { learner, network, batch, labels, options: joined(threshold), noise, judge, ewc };
        let seeds = (0..seeds).map(|k| args.seed.wrapping_add(k));
        on_workers(|| study::over_seeds(&nodes, &recipe, seeds, || bar.inc(1)))
    };
    let mut report = Report {
        device: device.name(),
        threshold: options.threshold,
        network,
        noise: options.noise,
        seeds: options.seeds,
        judged: if args.validation { "training images without a label" } else { "held-out images" },
        edges: nodes.graph(&joined(options.threshold), options.noise, args.seed)?.edges(),
        samples: nodes.train.len(),
        rows: Vec::new(),
        thresholds: Vec::new(),
        noises: Vec::new(),
    };
    for &learner in &learners {
        for &labels in &options.labels {
            let cell = study(learner, labels, options.threshold, options.noise, options.seeds)?;
            report.rows.push(Row { method: learner.name(), labels, cell });
        }
    }
    bar.suspend(|| say!("\n{}", table(&report, &options.labels)));
    if let Some(path) = &args.plot {
        let labels = options.labels[0];
        let alone = |noise| study(Learner::WithoutGraph, labels, options.threshold, noise, sweep_seeds);
        let point = |at, threshold, noise, without| {
            Ok::<_, Error>(Point {
                at,
                edges: nodes.graph(&joined(threshold), noise, args.seed)?.edges(),
                with_graph: study(Learner::GaNet, labels, threshold, noise, sweep_seeds)?,
                without,
            })
        };
        // Without edges no threshold is asked.
        let flat = alone(options.noise)?;
        for threshold in study::THRESHOLDS {
            report.thresholds.push(point(threshold, threshold, options.noise, flat.clone())?);
        }
        for noise in study::NOISES {
            report.noises.push(point(noise, options.threshold, noise, alone(noise)?)?);
        }
        plot::write(path, labels, &report.thresholds, &report.noises).map_err(|e| e.within("--plot"))?;
    }
    bar.finish_and_clear();
    if let Some(path) = &args.plot {
        let labels = options.labels[0];
        say!("{}: accuracy by threshold and by noise, {labels} labels a class, {sweep_seeds} seeds", path.display());
    }
    output::report(args.json.as_deref(), &report)?;
    Ok(ExitCode::SUCCESS)
}

/// A bar on a terminal, which stays away from files and pipes.
fn progress(trainings: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} training {pos}/{len}  {msg}  eta {eta}");
    let bar = ProgressBar::new(trainings);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// GA-Net comes with its ablation: the same network without edges.
fn learners(args: &Args) -> Result<Vec<Learner>> {
    let mut all = Vec::new();
    for method in &args.method {
        match method.as_str() {
            "ga-net" => all.extend([Learner::GaNet, Learner::WithoutGraph]),
            "linear-probe" => all.push(Learner::LinearProbe),
            other => return Err(refused("--method", "ga-net, linear-probe", other)),
        }
    }
    Ok(all)
}

/// Every number of labels once, and no more than there are of each class; where the others judge, one is left to.
fn require_labels(graph: &GraphOptions, nodes: &Nodes, validation: bool) -> Result<()> {
    if let Some(twice) = repeated(&graph.labels) {
        return Err(refused("--labels", "each number once", format!("{:?} with {twice} twice", graph.labels)));
    }
    let most = nodes.train.fewest().saturating_sub(usize::from(validation));
    let Some(above) = graph.labels.iter().find(|labels| **labels > most) else { return Ok(()) };
    let left = if validation { ", to leave one without a label" } else { "" };
    Err(refused("--labels", format!("at most {most}, by the training images of the rarest class{left}"), above))
}

fn table(report: &Report, labels: &[usize]) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "{} edges kept of {} pairs of nodes above {}; accuracy on {}, mean ± deviation (lowest to highest) of {} seeds\n\n",
        report.edges / 2,
        report.samples * (report.samples - 1) / 2,
        report.threshold,
        report.judged,
        report.seeds
    );
    let _ = write!(text, "{:<22}", "labels a class");
    for labels in labels {
        let _ = write!(text, "{labels:>30}");
    }
    let mut methods: Vec<&str> = report.rows.iter().map(|r| r.method).collect();
    methods.dedup();
    for method in methods {
        let _ = write!(text, "\n{method:<22}");
        for row in report.rows.iter().filter(|r| r.method == method) {
            let _ = write!(text, "{:>30}", row.cell.to_string());
        }
    }
    text
}
