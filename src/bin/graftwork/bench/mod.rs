//! `graftwork bench`: every op's time beside its floor and its baseline; on an emulated device, its traffic beside its least.

mod counting;
#[cfg_attr(not(feature = "bench-cublas"), path = "no_cublas.rs")]
mod cublas;
mod plot;
mod table;
mod timing;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use graftwork::{DType, Device, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::device;
use crate::output::{self, say};
use crate::verify::DTYPES;
use cublas::Blas;
use table::{Baseline, Cost, Entry, Pass, Size};
use timing::{Bare, Effort, Job, Peak, Timing, sets, time};

const QUICK: Effort = Effort { batch: 3e-4, repeats: 3 };
const FULL: Effort = Effort { batch: 2e-2, repeats: 9 };

#[derive(clap::Args)]
#[command(
    after_help = "Seconds are the median of several batches of calls, in turn with those of the baseline in the same process; a batch lies
between two waits for the device. On a GPU the calls of a batch go round sets of buffers larger than its second-level cache, and the
time holds the launches too: what is shorter than a launch (a few µs) shows the launch.
The floor is max(FLOP / peak, bytes / bandwidth). On the CPU both are measured first, by the bare product and a copy past the
caches, so what stays in the caches can lie below its floor; on an H200 they are 989 TF/s (67 in f32) and 4.8 TB/s.
A build with the feature bench-cublas holds products on a GPU against the fastest algorithm of cuBLASLt, where that is installed.
An emulated device is not timed: it counts launches, instructions, global bytes (beside the least that the op must move), operations of
matrix instructions (beside the formula's), bank conflicts, uncoalesced sectors and local memory, which must stay untouched.
docs/verify-and-bench.md tells more."
)]
pub struct Args {
    /// cpu, cuda, cuda:N, emulated[:sm_80|:sm_90a] [default: a GPU if there is one, else the CPU]
    #[arg(long)]
    device: Option<String>,
    /// Only these ops, separated by spaces or commas
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', value_parser = PossibleValuesParser::new(names()))]
    op: Vec<String>,
    /// Write every row as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw time beside floor
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Small shapes in f32, few repeats: for a look, not for the record
    #[arg(long)]
    quick: bool,
    /// The largest shapes [default: gpu on a GPU, model on the CPU, small emulated and with --quick]
    #[arg(long)]
    size: Option<Size>,
}

#[derive(Serialize)]
pub struct Row {
    op: &'static str,
    pass: &'static str,
    dtype: &'static str,
    shape: String,
    device: String,
    /// Null, as the others below, where `note` says why.
    seconds: Option<f64>,
    floor_seconds: Option<f64>,
    baseline: &'static str,
    baseline_seconds: Option<f64>,
    /// Seconds over the baseline's: the median of the repeats' ratios.
    ratio: Option<f64>,
    /// Distance of the quartiles over the median.
    spread: Option<f64>,
    /// Calls in a batch.
    calls: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    device: String,
    threads: usize,
    /// Per second, in f32 and for memory; null where unknown.
    peak_flops: Option<f64>,
    bandwidth: Option<f64>,
    rows: Vec<Row>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let device = device::open(args.device.as_deref(), "bench")?;
    output::prepare(&[("--json", args.json.as_deref()), ("--plot", args.plot.as_deref())], ("", None))?;
    // Whoever counts has no times worth showing.
    let counts = device.take_counters().is_some();
    let work = chosen(args, &device, counts);
    if counts { counting::run(args, &device, &work) } else { timed(args, device, &work) }
}

/// Of every op, in the order of the table.
fn names() -> Vec<&'static str> {
    let mut names = Vec::new();
    for entry in table::all(DType::F32) {
        if !names.contains(&entry.op()) {
            names.push(entry.op());
        }
    }
    names
}

fn chosen(args: &Args, device: &Device, counts: bool) -> Vec<(DType, Entry)> {
    let size = args.size.unwrap_or(match (args.quick || counts, device.is_cpu()) {
        (true, _) => Size::Small,
        (false, true) => Size::Model,
        (false, false) => Size::Gpu,
    });
    let named = |entry: &Entry| args.op.is_empty() || args.op.iter().any(|name| name == entry.op());
    let entries = |&dtype| table::all(dtype).into_iter().map(move |entry| (dtype, entry));
    let all = dtypes(device, args.quick).iter().flat_map(entries);
    all.filter(|(_, entry)| entry.size <= size && named(entry)).collect()
}

fn timed(args: &Args, device: Device, work: &[(DType, Entry)]) -> Result<ExitCode> {
    let (device, blas) = Blas::open(device)?;
    let (device, blas) = (&device, blas.as_ref());
    let peak = Peak::of(device, DType::F32, args.quick)?;
    announce(device, peak);
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        device: device.name(),
        threads: rayon::current_num_threads(),
        peak_flops: peak.map(|p| p.flops),
        bandwidth: peak.map(|p| p.bandwidth),
        rows: Vec::new(),
    };
    let bar = progress(work.len());
    for (dtype, entry) in work {
        bar.set_message(entry.op());
        // A GPU's peak depends on the dtype; the CPU computes everything in f32.
        let peak = if device.is_cpu() { peak } else { Peak::of(device, *dtype, args.quick)? };
        let bench = Bench { device, blas, dtype: *dtype, peak, effort: if args.quick { QUICK } else { FULL } };
        report.rows.extend(entry.passes().iter().map(|pass| bench.row(pass)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let header = ["op", "pass", "dtype", "shape", "device", "time", "floor", "× floor", "baseline", "ratio", "note"];
    let cells: Vec<_> = report.rows.iter().map(Row::cells).collect();
    say!("{}", output::table(&header, &cells));
    output::report(args.json.as_deref(), &report)?;
    if let Some(path) = &args.plot {
        let title = format!("graftwork {} on {}: time beside floor", report.version, report.device);
        plot::write(path, &title, &report.rows).map_err(|e| e.within("--plot"))?;
        say!("\nplot in {}", path.display());
    }
    let failed = report.rows.iter().any(|row| row.seconds.is_none());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The CPU widens both 16-bit types alike, so one of them stands for both.
fn dtypes(device: &Device, quick: bool) -> &'static [DType] {
    match (device.is_cpu(), quick) {
        (true, true) => &[DType::F32],
        (true, false) => &[DType::F32, DType::BF16],
        (false, _) => &DTYPES,
    }
}

fn announce(device: &Device, peak: Option<Peak>) {
    match peak {
        Some(Peak { flops, bandwidth }) => {
            let how = if device.is_cpu() { "measured" } else { "its data sheet" };
            say!("{}: {:.1} GFLOP/s in f32, {:.1} GB/s ({how})\n", device.name(), flops / 1e9, bandwidth / 1e9);
        }
        None => say!("{}: peak unknown, so there are no floors\n", device.name()),
    }
}

fn progress(len: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} op {pos}/{len}  {msg}");
    let bar = ProgressBar::new(len as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

struct Bench<'a> {
    device: &'a Device,
    blas: Option<&'a Blas>,
    dtype: DType,
    peak: Option<Peak>,
    effort: Effort,
}

impl Bench<'_> {
    fn row(&self, pass: &Pass) -> Row {
        let cost = pass.cost;
        let baseline = match cost.baseline {
            Baseline::Product { .. } if self.device.is_cpu() => "bare gemm",
            Baseline::Product { .. } if self.blas.is_some() => "cuBLASLt",
            Baseline::Product { .. } => "none",
            Baseline::Copy => "copy",
        };
        let job = pass.job(self.device, self.dtype, sets(self.device, cost.bytes));
        let outcome = job.and_then(|job| self.measure(job.as_ref(), cost));
        let (timing, error) = match outcome {
            Ok(timing) => (Some(timing), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let of = |get: fn(&Timing) -> f64| timing.as_ref().map(get);
        Row {
            op: pass.op,
            pass: pass.name,
            dtype: self.dtype.name(),
            shape: pass.shape.clone(),
            device: self.device.name(),
            seconds: of(|t| t.seconds),
            floor_seconds: self.peak.map(|p| p.floor(cost.flops, cost.bytes)),
            baseline,
            baseline_seconds: timing.as_ref().and_then(|t| t.baseline_seconds),
            ratio: timing.as_ref().and_then(|t| t.ratio),
            spread: of(|t| t.spread),
            calls: timing.as_ref().map(|t| t.calls),
            note: error,
        }
    }

    fn measure(&self, job: &dyn Job, cost: &Cost) -> Result<Timing> {
        let bare = Bare::new(self.device, self.blas, cost, self.dtype)?;
        time(self.device, job, bare.as_ref().map(|b| b as &dyn Job), self.effort)
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
        let over_floor = self.seconds.zip(self.floor_seconds).map(|(s, f)| format!("{:.1}", s / f));
        let baseline = self.baseline_seconds.map(|s| format!("{} {}", self.baseline, seconds(s)));
        vec![
            self.op.into(),
            self.pass.into(),
            self.dtype.into(),
            self.shape.clone(),
            self.device.clone(),
            or_dash(self.seconds.map(seconds)),
            or_dash(self.floor_seconds.map(seconds)),
            or_dash(over_floor),
            baseline.unwrap_or_else(|| self.baseline.into()),
            or_dash(self.ratio.map(|r| format!("{r:.2}"))),
            self.note.clone().unwrap_or_default(),
        ]
    }
}

/// Seconds with a unit, three digits or so.
fn seconds(s: f64) -> String {
    let (value, unit) = match s {
        s if s < 9.995e-7 => (s * 1e9, "ns"),
        s if s < 9.995e-4 => (s * 1e6, "µs"),
        s if s < 0.9995 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.digits$} {unit}")
}
