//! Every op on the emulated device: the kernels' PTX, run strictly on the CPU, against the CPU reference.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn graftwork(line: &str, json: &PathBuf) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(line.split_whitespace()).arg("--json").arg(json);
    command.output().unwrap()
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.json", std::process::id()))
}

fn read(path: &PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Whether this build has kernels to run. Required builds have them: tests/kernels.rs holds that.
fn kernels_are_here() -> bool {
    let here = graftwork::kernels::available();
    if let Err(reason) = &here {
        println!("not run: {reason}");
    }
    here.is_ok()
}

#[test]
fn every_op_agrees_with_the_reference_on_the_emulated_device() {
    if !kernels_are_here() {
        return;
    }
    let json = scratch("verify");
    let output = graftwork("verify --device emulated:sm_80 --quick", &json);
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let report = read(&json);
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.len() > 500, "only {} rows", rows.len());
    assert!(rows.iter().all(|row| row["ok"] == Value::Bool(true)));
    for op in ["frozen_linear", "layer_norm", "attention", "cross_entropy", "adamw", "patch_embedding"] {
        assert!(rows.iter().any(|row| row["op"] == op), "{op} was not run");
    }
}

#[test]
fn training_on_the_emulated_device_gives_the_losses_of_the_cpu() {
    if !kernels_are_here() {
        return;
    }
    let losses = |device: &str| -> Vec<f64> {
        let json = scratch(device);
        let line = format!("finetune --device {device} --steps 3 --batch 4 --dropout 0.1");
        let output = graftwork(&line, &json);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        read(&json)["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect()
    };
    let (emulated, cpu) = (losses("emulated"), losses("cpu"));
    assert_eq!((emulated.len(), cpu.len()), (3, 3));
    // Both compute in f32 in another order; a dozen layers and three steps lie between.
    let apart = emulated.iter().zip(&cpu).map(|(e, c)| ((e - c) / c).abs()).fold(0.0, f64::max);
    assert!(apart < 2e-5, "{emulated:?} {cpu:?}");
}
