//! `graftwork finetune --task graph`, as a user runs it.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn graftwork(args: &[&str]) -> Output {
    let all = ["finetune", "--task", "graph", "--device", "cpu"].iter().chain(args);
    Command::new(env!("CARGO_BIN_EXE_graftwork")).args(all).output().unwrap()
}

fn file(name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("graph");
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    let _ = std::fs::remove_file(&path);
    path
}

fn report(name: &str, args: &[&str]) -> Value {
    let path = file(name);
    let args: Vec<&str> = args.iter().copied().chain(["--json", path.to_str().unwrap()]).collect();
    let output = graftwork(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

#[test]
fn the_table_has_every_method_and_two_runs_agree() {
    let args = ["--method", "ga-net,linear-probe", "--labels", "5", "--seeds", "2"];
    let first = report("first.json", &args);
    let rows = first["rows"].as_array().unwrap();
    let methods: Vec<&str> = rows.iter().map(|r| r["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["ga-net", "ga-net without graph", "linear-probe"]);
    for row in rows {
        let [low, mean, high] = ["lowest", "mean", "highest"].map(|f| row[f].as_f64().unwrap());
        // Five classes: chance is a fifth.
        assert!(0.4 < low && low <= mean && mean <= high && high <= 1.0, "{row}");
    }
    assert!(first["edges"].as_u64().unwrap() > 0);
    assert_eq!(first, report("second.json", &args));
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    for (args, part) in [
        (&["--method", "lora"][..], "method"),
        (&["--method", "ga-net", "--labels", "0"], "labels"),
        (&["--labels", "100000"], "labels"),
        (&["--method", "ga-net", "--seeds", "0"], "seeds"),
        (&["--method", "ga-net", "--noise", "1.5"], "noise"),
        (&["--method", "ga-net", "--threshold", "2"], "threshold"),
        (&["--method", "ga-net", "--top-k", "0"], "top-k"),
        (&["--method", "ga-net", "--data", "nowhere"], "nowhere"),
        (&["--method", "ga-net", "--epochs", "3"], "--epochs has no meaning"),
    ] {
        let output = graftwork(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(part) && !text.contains("panicked"), "{args:?}: {text}");
    }
    let other = Command::new(env!("CARGO_BIN_EXE_graftwork"))
        .args(["finetune", "--method", "ga-net", "--device", "cpu"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("--task graph"));
}
