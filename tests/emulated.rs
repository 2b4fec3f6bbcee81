//! Every kernel of the table on the emulated device: its PTX, executed strictly on the CPU, against the CPU reference.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use graftwork::DType;
use graftwork::kernels::{Class, KernelId};
use graftwork::testing::compare;
use serde_json::Value;

fn graftwork(line: &str, json: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(line.split_whitespace()).arg("--json").arg(json);
    command.output().unwrap()
}

/// Runs a command that must succeed and reads what it wrote.
fn report(line: &str, name: &str) -> Value {
    let json = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-{name}-{}.json", std::process::id()));
    let output = graftwork(line, &json);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{line}\n{printed}{}", String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    report
}

/// For whoever reads the output of a passing test: past what the harness holds back.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// All cases of `verify` on a device: the kernels that ran.
fn verified(device: &str, ops: &str) -> BTreeSet<String> {
    let report = report(&format!("verify --device {device} {ops}"), &device.replace(':', "-"));
    assert!(report["rows"].as_array().unwrap().iter().all(|row| row["ok"] == true));
    assert!(report["controls"].as_array().unwrap().iter().all(|control| control["rejected"] == true));
    let kernels = report["kernels"].as_array().unwrap();
    let count = |kernel: &Value, field: &str| kernel[field].as_u64().unwrap();
    let sum = |field| kernels.iter().map(|kernel| count(kernel, field)).sum::<u64>();
    for kernel in kernels {
        assert_eq!(count(kernel, "local_accesses"), 0, "{} touches local memory", kernel["kernel"]);
    }
    tell(&format!(
        "{device}: {} of the table's {} kernels ran, in {} launches of {} warp instructions; {} results checked, none wrong",
        kernels.len(),
        KernelId::COUNT,
        sum("launches"),
        sum("instructions"),
        report["summary"]["rows"]
    ));
    kernels.iter().map(|kernel| kernel["kernel"].as_str().unwrap().to_string()).collect()
}

fn symbols(class: Class) -> BTreeSet<String> {
    KernelId::all().filter(|id| id.family().class == class).map(|id| id.symbol().to_string()).collect()
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn every_portable_kernel_ran_and_every_result_is_right() {
    let ran = verified("emulated:sm_80", "");
    let missing: Vec<_> = symbols(Class::Portable).difference(&ran).cloned().collect();
    assert!(missing.is_empty(), "no case of `verify` runs {missing:?}");
}

/// Of the ops that have such kernels.
#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn every_hopper_kernel_ran_and_every_result_is_right() {
    let hopper = symbols(Class::Hopper);
    let ops: BTreeSet<&str> = hopper.iter().map(|symbol| ops(symbol)).collect();
    if ops.is_empty() {
        tell("emulated:sm_90a: the table has no kernels of this class");
        return;
    }
    let ops = ops.into_iter().collect::<Vec<_>>().join(" ");
    let ran = verified("emulated:sm_90a", &format!("--op {ops}"));
    let missing: Vec<_> = hopper.difference(&ran).cloned().collect();
    assert!(missing.is_empty(), "no case of `verify` runs {missing:?}");
}

/// What a kernel's name begins with is its op, or what several have in common.
fn ops(symbol: &str) -> &'static str {
    match symbol {
        _ if symbol.starts_with("block_sparse_") => "block_sparse_linear dsd dds sdd",
        _ => "frozen_linear",
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn bench_counts_what_the_kernels_do() {
    let report = report("bench --device emulated --op frozen_linear scale_add", "bench");
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.len() >= 12, "{} rows", rows.len());
    for row in rows {
        let total = &row["total"];
        assert!(total["instructions"].as_u64().unwrap() > 0 && total["launches"].as_u64().unwrap() > 0, "{row}");
        assert_eq!(total["local_accesses"], 0, "{row}");
        // Nothing is computed without being read, except where dx is dy itself.
        assert!(row["byte_ratio"].as_f64().unwrap() > 0.2, "{row}");
        if row["op"] == "frozen_linear" && row["dtype"] != "f32" {
            assert!(row["tensor_ratio"].as_f64().unwrap() >= 1.0, "{row}");
        }
    }
}

#[test]
#[cfg_attr(not(graftwork_kernels), ignore = "this build has no kernels")]
fn training_on_the_emulated_device_is_as_good_as_on_the_cpu() {
    let losses = |device: &str, dtype: &str| -> Vec<f64> {
        let line = format!("finetune --device {device} --dtype {dtype} --steps 4 --batch 4 --dropout 0.1");
        let report = report(&line, &format!("{device}-{dtype}"));
        report["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect()
    };
    let (emulated, cpu, exact) = (losses("emulated", "f32"), losses("cpu", "f32"), losses("cpu", "f64"));
    assert_eq!([emulated.len(), cpu.len(), exact.len()], [4; 3]);
    // `ratio` with the factor of a backward pass: each loss but the first has forward and backward passes behind it.
    let outcome = compare::ratio(&emulated, &exact, &cpu, 3.0, DType::F32);
    assert!(outcome.ok(), "{outcome:?} of {emulated:?}");
    let mut wrong = emulated;
    wrong[3] *= 1.0 + 1e-5;
    assert!(!compare::ratio(&wrong, &exact, &cpu, 3.0, DType::F32).ok());
    tell("finetune on emulated: 4 steps, losses as near to those in f64 as the CPU's");
}
