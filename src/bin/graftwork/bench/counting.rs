//! On a device that counts (`emulated`): an op's instructions and traffic beside what its formula cannot do without. Nothing is timed.

use std::process::ExitCode;

use graftwork::device::{Counters, KernelCounters, counters};
use graftwork::{DType, Device, Error, Result};
use serde::Serialize;

use super::table::{Entry, Pass};
use super::timing::Job;
use super::{Args, progress};
use crate::counted::{self, KernelRun, count};
use crate::output::{self, say};

#[derive(Serialize)]
struct Row {
    op: &'static str,
    pass: &'static str,
    dtype: &'static str,
    shape: String,
    device: String,
    /// What the formula asks for: every operand and result once, every multiplication and addition once.
    least_bytes: u64,
    formula_flops: u64,
    /// Whole sectors, loads and stores together; null, as the others below, where `note` says why.
    global_bytes: Option<u64>,
    /// Global bytes over the least.
    byte_ratio: Option<f64>,
    /// Multiplications and additions of matrix instructions.
    tensor_ops: Option<u64>,
    /// Those over the formula's.
    tensor_ratio: Option<f64>,
    uncoalesced_sectors: Option<u64>,
    /// All kernels of the call together, and each.
    total: Option<Counters>,
    kernels: Vec<KernelRun>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    device: String,
    rows: Vec<Row>,
}

/// Exits with 1 where a call fails or touches local memory: a kernel of ours keeps everything in registers.
pub fn run(args: &Args, device: &Device, work: &[(DType, Entry)]) -> Result<ExitCode> {
    if args.plot.is_some() {
        let expected = "a device whose times mean something: an emulated one has none to draw";
        return Err(Error::Value { op: "bench", argument: "--plot", expected: expected.into(), got: device.name() });
    }
    let bar = progress(work.len());
    let mut rows = Vec::new();
    for (dtype, entry) in work {
        bar.set_message(entry.op());
        rows.extend(entry.passes().iter().map(|pass| row(pass, device, *dtype)));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let report = Report { version: env!("CARGO_PKG_VERSION"), device: device.name(), rows };
    let cells: Vec<_> = report.rows.iter().map(Row::cells).collect();
    say!("{}", output::table(&HEADER, &cells));
    output::report(args.json.as_deref(), &report)?;
    Ok(if report.rows.iter().any(Row::failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn row(pass: &Pass, device: &Device, dtype: DType) -> Row {
    let (kernels, error) = match pass.job(device, dtype, 1).and_then(|job| one_call(device, job.as_ref())) {
        Ok(kernels) => (kernels, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let cost = pass.cost;
    let total = error.is_none().then(|| counters::total(&kernels));
    let over = |got: u64, least: u64| (least > 0).then(|| got as f64 / least as f64);
    let tensor_ops = total.as_ref().map(|t| 2 * t.tensor_macs);
    Row {
        op: pass.op,
        pass: pass.name,
        dtype: dtype.name(),
        shape: pass.shape.clone(),
        device: device.name(),
        least_bytes: cost.bytes,
        formula_flops: cost.flops,
        global_bytes: total.as_ref().map(Counters::global_bytes),
        byte_ratio: total.as_ref().and_then(|t| over(t.global_bytes(), cost.bytes)),
        tensor_ops,
        tensor_ratio: tensor_ops.filter(|&ops| ops > 0).and_then(|ops| over(ops, cost.flops)),
        uncoalesced_sectors: total.as_ref().map(Counters::uncoalesced_sectors),
        total,
        kernels: counted::runs(kernels),
        note: error,
    }
}

/// What the kernels of one call did; what the call needs beforehand is not counted.
fn one_call(device: &Device, job: &dyn Job) -> Result<KernelCounters> {
    let ready = job.ready(0)?;
    device.take_counters();
    ready()?;
    Ok(device.take_counters().unwrap_or_default())
}

const HEADER: [&str; 14] = [
    "op",
    "pass",
    "dtype",
    "shape",
    "launches",
    "instructions",
    "global",
    "× least",
    "tensor",
    "× formula",
    "conflicts",
    "uncoalesced",
    "local",
    "note",
];

impl Row {
    fn failed(&self) -> bool {
        self.total.as_ref().is_none_or(|t| t.local_accesses > 0)
    }

    fn cells(&self) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "–".into());
        let of = |get: fn(&Counters) -> u64| or_dash(self.total.as_ref().map(|t| count(get(t))));
        let ratio = |r: Option<f64>| or_dash(r.map(|r| format!("{r:.2}")));
        vec![
            self.op.into(),
            self.pass.into(),
            self.dtype.into(),
            self.shape.clone(),
            of(|t| t.launches),
            of(|t| t.instructions),
            or_dash(self.global_bytes.map(|n| output::bytes(n as usize))),
            ratio(self.byte_ratio),
            or_dash(self.tensor_ops.filter(|&n| n > 0).map(count)),
            ratio(self.tensor_ratio),
            of(|t| t.bank_conflicts),
            or_dash(self.uncoalesced_sectors.map(count)),
            of(|t| t.local_accesses),
            self.note.clone().unwrap_or_default(),
        ]
    }
}
