//! `graftwork verify`: every op on a device against the CPU reference in f64.

pub mod case;
pub mod cases;
mod control;
mod judge;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::builder::PossibleValuesParser;
use graftwork::{DType, Device, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{counted, device, output};
use case::{Case, Judge, Output, Run};
use judge::Standard;
use report::{Report, Row};

pub const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
/// Cases of one op in a quick run.
const QUICK: usize = 4;

#[derive(clap::Args)]
#[command(
    after_help = "Each result is held against the same call in f64 on the CPU, whose operands were first rounded to the dtype:
  exact   small integers, so that there is one right answer       error: elements that differ
  bound   linear ops: the rounding bound of each element          error: largest error over its bound, limit 1
  ratio   other ops on a GPU: the CPU's error in the same dtype   error: over the CPU's, limit 2 (backward 3)
  norm    other ops on the CPU, and small results                 error: worst relative norm of a row or column
  repeat  two runs (on the CPU: with other threads)               error: elements whose bits differ
A deliberately wrong result must be rejected by each of them. Exit code: 1 if anything fails, 2 if nothing could be run.
docs/verify-and-bench.md tells more."
)]
pub struct Args {
    /// cpu, cuda, cuda:N, emulated[:sm_80|:sm_90a] [default: a GPU if there is one, else the CPU]
    #[arg(long)]
    device: Option<String>,
    /// Only these ops, separated by spaces or commas
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',', value_parser = PossibleValuesParser::new(names()))]
    op: Vec<String>,
    /// Write every row and the summary as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A few cases of each op
    #[arg(long)]
    quick: bool,
    /// Print every row, not the failures alone
    #[arg(long)]
    all: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let device = device::open(args.device.as_deref(), "verify")?;
    output::prepare(&[("--json", args.json.as_deref())], ("", None))?;
    let cases = chosen(args);
    let start = Instant::now();
    let bar = progress(cases.len());
    let mut report = Report::new(&device);
    for (i, case) in cases.iter().enumerate() {
        bar.set_message(case.op);
        // An op's largest case comes last; it is the one that is run twice.
        let last = cases.get(i + 1).is_none_or(|next| next.op != case.op);
        for dtype in DTYPES {
            verify(case, &device, dtype, last, &mut report);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.controls = control::run(&device, &cases)?;
    report.kernels = device.take_counters().map(counted::runs);
    report.finish(start.elapsed().as_secs_f64());
    report.print(args.all);
    output::report(args.json.as_deref(), &report)?;
    Ok(if report.summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Of every op, in the order of the table.
fn names() -> Vec<&'static str> {
    let mut names = Vec::new();
    for case in cases::all() {
        if !names.contains(&case.op) {
            names.push(case.op);
        }
    }
    names
}

fn chosen(args: &Args) -> Vec<Case> {
    let (mut cases, names) = (cases::all(), names());
    // Stable: cases of one op come together.
    cases.sort_by_key(|case| names.iter().position(|n| *n == case.op));
    cases.retain(|case| args.op.is_empty() || args.op.iter().any(|name| name == case.op));
    if args.quick {
        let mut kept = Vec::new();
        while !cases.is_empty() {
            let count = cases.iter().take_while(|c| c.op == cases[0].op).count();
            let group: Vec<Case> = cases.drain(..count).collect();
            kept.extend(evenly(group, QUICK));
        }
        cases = kept;
    }
    cases
}

/// At most `n` of `all`, evenly spread, the last among them.
pub fn evenly<T>(all: Vec<T>, n: usize) -> Vec<T> {
    let len = all.len();
    let wanted = |i: usize| len <= n || (i * n).div_ceil(len) * len / n == i || i + 1 == len;
    all.into_iter().enumerate().filter_map(|(i, item)| wanted(i).then_some(item)).collect()
}

fn progress(len: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} case {pos}/{len}  {msg}");
    let bar = ProgressBar::new(len as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// One case in one dtype: a row for each pass.
fn verify(case: &Case, device: &Device, dtype: DType, twice: bool, report: &mut Report) {
    let before = report.rows.len();
    if let Err(error) = try_verify(case, device, dtype, twice, report) {
        report.rows.truncate(before);
        report.rows.push(Row::refused(case, device, dtype, &error));
    }
}

fn try_verify(case: &Case, device: &Device, dtype: DType, twice: bool, report: &mut Report) -> Result<()> {
    let got = case.run(&Run::on(device, dtype))?;
    let reference = Run::reference(dtype);
    let want = case.run(&reference)?;
    let magnitude = match case.judge {
        Judge::Bound => Some(case.run(&Run { absolute: true, ..reference })?),
        _ => None,
    };
    let plain = match case.judge {
        Judge::Smooth if !device.is_cpu() => Some(case.run(&Run::on(&Device::cpu(), dtype))?),
        _ => None,
    };
    for (i, got) in got.iter().enumerate() {
        let at = |run: &Option<Vec<Output>>| -> Option<Output> { run.as_ref().and_then(|r| r.get(i)).cloned() };
        let (magnitude, plain) = (at(&magnitude), at(&plain));
        let Some(want) = want.get(i) else { continue };
        let standard = Standard { want, magnitude: magnitude.as_ref(), plain: plain.as_ref(), storage: dtype };
        let outcome = judge::judge(case.judge, got, &standard);
        report.rows.push(Row::judged(case, device, dtype, &got.pass, &outcome));
    }
    if twice {
        let outcome = judge::repeat(&got, &again(case, device, dtype)?);
        report.rows.push(Row::judged(case, device, dtype, "all", &outcome));
    }
    Ok(())
}

/// The same run once more; on the CPU with a number of threads that no default is.
fn again(case: &Case, device: &Device, dtype: DType) -> Result<Vec<Output>> {
    if device.is_cpu()
        && let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(3).build()
    {
        return pool.install(|| case.run(&Run::on(device, dtype)));
    }
    case.run(&Run::on(device, dtype))
}
