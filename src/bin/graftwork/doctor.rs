//! `graftwork doctor`: what this machine and this build can do.

use std::path::PathBuf;
use std::process::ExitCode;

use graftwork::kernels::{self, FAMILIES, KernelId};
use graftwork::ops::frozen_linear::{self, Candidate, Forecast, Gpu};
use graftwork::{DType, Device, Error, Result};
use serde::Serialize;

use super::device;
use super::output::{self, say};

#[derive(clap::Args)]
#[command(after_help = "Exit code: 1 if the device that --device names is not there, 2 if there is no such name.")]
pub struct Args {
    /// Look at this device alone: cpu, cuda, cuda:N, emulated[:sm_80|:sm_90a] [default: the CPU and every GPU]
    #[arg(long)]
    device: Option<String>,
    /// Which kernels could carry out an op, why each is taken or not, and what their plans foretell on an H200: OP MxNxK or, with a
    /// low-rank update, MxNxKxR, as in frozen_linear 8192x4096x4096x16; the op is frozen_linear
    #[arg(long, num_args = 2, value_names = ["OP", "SHAPE"])]
    explain: Option<Vec<String>>,
    /// Write the findings as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Findings {
    version: &'static str,
    threads: usize,
    vector_units: Vec<&'static str>,
    kernels: KernelFindings,
    devices: Vec<DeviceFindings>,
}

#[derive(Serialize)]
struct KernelFindings {
    available: bool,
    reason: Option<String>,
    families: usize,
    kernels: usize,
    architectures: Vec<&'static str>,
}

#[derive(Serialize)]
struct DeviceFindings {
    name: String,
    usable: bool,
    detail: String,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    output::prepare(&[("--json", args.json.as_deref())], ("", None))?;
    if let Some([op, shape]) = args.explain.as_deref() {
        return explain(args, op, shape);
    }
    let findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        threads: rayon::current_num_threads(),
        vector_units: vector_units(),
        kernels: kernel_findings(),
        devices: match &args.device {
            Some(name) => vec![device_findings(name, found(name)?)],
            None => all_devices(),
        },
    };
    print(&findings);
    output::report(args.json.as_deref(), &findings)?;
    let asked_and_absent = args.device.is_some() && findings.devices.iter().any(|d| !d.usable);
    Ok(if asked_and_absent { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn refused(expected: &str, got: &str) -> Error {
    Error::Value { op: "doctor", argument: "--explain", expected: expected.into(), got: got.into() }
}

/// No such name is the caller's mistake; no such device is a finding.
fn found(name: &str) -> Result<Result<Device>> {
    match device::named(name) {
        Err(error @ Error::Value { .. }) => Err(error),
        Err(Error::Within { source, .. }) => Ok(Err(*source)),
        found => Ok(found),
    }
}

/// A kernel that could make the large product of a pass, and why it does not.
#[derive(Serialize)]
struct Verdict {
    dtype: &'static str,
    pass: &'static str,
    tile: &'static str,
    refusal: Option<String>,
}

/// A launch of a step, and what its plan foretells.
#[derive(Serialize)]
struct Foretold {
    dtype: &'static str,
    pass: &'static str,
    makes: &'static str,
    kernel: &'static str,
    operations: u64,
    bytes: u64,
    microseconds: f64,
}

impl Foretold {
    fn new(dtype: DType, pass: &'static str, f: Forecast) -> Self {
        let Forecast { makes, kernel, operations, bytes, microseconds } = f;
        Foretold { dtype: dtype.name(), pass, makes, kernel, operations, bytes, microseconds }
    }

    fn row(&self) -> Vec<String> {
        let Foretold { dtype, pass, makes, kernel, operations, bytes, microseconds } = self;
        let [giga, mega] = [*operations as f64 / 1e9, *bytes as f64 / 1e6].map(|v| format!("{v:.1}"));
        let text = [dtype, pass, makes, kernel].map(|v| v.to_string());
        text.into_iter().chain([giga, mega, format!("{microseconds:.1}")]).collect()
    }
}

#[derive(Serialize)]
struct Explained {
    verdicts: Vec<Verdict>,
    forecasts: Vec<Foretold>,
}

/// Three of them multiply to less than 2^63.
const MOST_EXTENT: usize = 1 << 20;

/// On the GPU of `--device`, or else on an H200.
fn explain(args: &Args, op: &str, shape: &str) -> Result<ExitCode> {
    let gpu = match args.device.as_deref().map(found).transpose()? {
        Some(Ok(device)) => Gpu::of(&device),
        Some(Err(absent)) => {
            output::complain(format_args!("graftwork: {absent}"));
            return Ok(ExitCode::FAILURE);
        }
        None => Gpu { capability: 90, multiprocessors: 132 },
    };
    if op != "frozen_linear" {
        return Err(refused("an op, frozen_linear", op));
    }
    let extent = |text: &str| text.parse().ok().filter(|e| (1..=MOST_EXTENT).contains(e));
    let extents: Option<Vec<usize>> = shape.split('x').map(extent).collect();
    let (sides, rank) = match extents.as_deref() {
        Some(&[m, n, k]) => ([m, n, k], 0),
        Some(&[m, n, k, r]) if r <= frozen_linear::MAX_RANK => ([m, n, k], r),
        _ => {
            let most = frozen_linear::MAX_RANK;
            let expected = format!("a shape MxNxK, each from 1 to {MOST_EXTENT}, or MxNxKxR, R up to {most}");
            return Err(refused(&expected, shape));
        }
    };
    let [m, n, k] = sides;
    let (mut verdicts, mut forecasts) = (Vec::new(), Vec::new());
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let verdict =
            |pass| move |c: Candidate| Verdict { dtype: dtype.name(), pass, tile: c.name, refusal: c.refusal };
        for (pass, candidates) in frozen_linear::candidates(gpu, dtype, sides) {
            verdicts.extend(candidates.into_iter().map(verdict(pass)));
        }
        if rank > 0 {
            let c = frozen_linear::one_launch(gpu, dtype, [m, n, k, rank]);
            verdicts.push(verdict("forward")(c));
        }
        // The rates are those of 16-bit products.
        if gpu.capability == 90 && dtype != DType::F32 {
            for (pass, launches) in frozen_linear::forecast(gpu, dtype, [m, n, k, rank])? {
                forecasts.extend(launches.into_iter().map(|f| Foretold::new(dtype, pass, f)));
            }
        }
    }
    let row =
        |v: &Verdict| [v.dtype, v.pass, v.tile, v.refusal.as_deref().unwrap_or("taken")].map(String::from).to_vec();
    say!("{op} {shape} on sm_{} with {} multiprocessors", gpu.capability, gpu.multiprocessors);
    let rows: Vec<_> = verdicts.iter().map(row).collect();
    say!("{}", output::table(&["dtype", "pass", "tile", "verdict"], &rows));
    if !forecasts.is_empty() {
        say!("from the plans, for 790 TFLOP/s and 4.3 TB/s; nothing here is measured");
        let rows: Vec<_> = forecasts.iter().map(Foretold::row).collect();
        say!("{}", output::table(&["dtype", "pass", "makes", "kernel", "GFLOP", "MB", "µs"], &rows));
    }
    output::report(args.json.as_deref(), &Explained { verdicts, forecasts })?;
    Ok(ExitCode::SUCCESS)
}

fn vector_units() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let found = [
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
        ];
        found.into_iter().filter_map(|(name, here)| here.then_some(name)).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

fn kernel_findings() -> KernelFindings {
    let outcome = kernels::available();
    let mut architectures: Vec<_> = kernels::images().iter().flat_map(|i| i.cubins.iter().map(|c| c.arch)).collect();
    architectures.sort_unstable();
    architectures.dedup();
    KernelFindings {
        available: outcome.is_ok(),
        reason: outcome.err().map(|e| e.to_string()),
        families: FAMILIES.len(),
        kernels: KernelId::COUNT,
        architectures,
    }
}

/// The CPU, and GPUs until one number is not there. The first failure is told, since it says why there is none.
fn all_devices() -> Vec<DeviceFindings> {
    let mut all = vec![device_findings("cpu", Ok(Device::cpu()))];
    for ordinal in 0.. {
        let gpu = device_findings(&format!("cuda:{ordinal}"), Device::cuda(ordinal));
        let usable = gpu.usable;
        if usable || ordinal == 0 {
            all.push(gpu);
        }
        if !usable {
            break;
        }
    }
    all
}

fn device_findings(name: &str, found: Result<Device>) -> DeviceFindings {
    match found {
        Ok(device) => DeviceFindings { name: name.into(), usable: true, detail: describe(&device) },
        Err(error) => DeviceFindings { name: name.into(), usable: false, detail: error.to_string() },
    }
}

fn describe(device: &Device) -> String {
    match device.gpu_info() {
        Ok(Some(gpu)) => {
            let (major, minor) = gpu.driver_version;
            let free = output::bytes(gpu.free_bytes);
            let total = output::bytes(gpu.total_bytes);
            format!(
                "{}, sm_{}, {} multiprocessors, {free} of {total} free, driver for CUDA {major}.{minor}",
                gpu.name, gpu.capability, gpu.multiprocessors
            )
        }
        Ok(None) if device.is_cpu() => "the reference".into(),
        Ok(None) if device.take_counters().is_some() => "the kernels' PTX, executed on the CPU".into(),
        Ok(None) => "plans launches and runs none".into(),
        Err(error) => error.to_string(),
    }
}

fn print(findings: &Findings) {
    say!("graftwork {}", findings.version);
    say!("threads    {}  ({})", findings.threads, findings.vector_units.join(", "));
    let k = &findings.kernels;
    match &k.reason {
        None => say!("kernels    {} in {} families, for {}", k.kernels, k.families, k.architectures.join(", ")),
        Some(reason) => say!("kernels    none: {reason}"),
    }
    say!("");
    let rows: Vec<_> = findings
        .devices
        .iter()
        .map(|d| vec![d.name.clone(), if d.usable { "ready" } else { "absent" }.into(), d.detail.clone()])
        .collect();
    say!("{}", output::table(&["device", "state", "what"], &rows));
}
