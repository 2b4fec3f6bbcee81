//! `graftwork doctor`: what this machine and this build can do.

use std::path::PathBuf;
use std::process::ExitCode;

use graftwork::kernels::{self, FAMILIES, KernelId};
use graftwork::{Device, Error, Result};
use serde::Serialize;

use super::output::{self, say};

#[derive(clap::Args)]
pub struct Args {
    /// Look at this device alone: cpu, cuda, cuda:N, emulated[:sm_80|:sm_90a] [default: the CPU and every GPU]
    #[arg(long)]
    device: Option<String>,
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
    let findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        threads: rayon::current_num_threads(),
        vector_units: vector_units(),
        kernels: kernel_findings(),
        devices: match &args.device {
            // No such name is the caller's mistake; no such device is a finding.
            Some(name) => match Device::parse(name) {
                Err(error @ Error::Value { .. }) => return Err(error),
                found => vec![device_findings(name, found)],
            },
            None => all_devices(),
        },
    };
    print(&findings);
    if let Some(path) = &args.json {
        output::write_json(path, &findings)?;
    }
    let asked_and_absent = args.device.is_some() && findings.devices.iter().any(|d| !d.usable);
    Ok(if asked_and_absent { ExitCode::FAILURE } else { ExitCode::SUCCESS })
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
