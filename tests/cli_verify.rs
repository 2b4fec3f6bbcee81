//! The commands `verify` and `bench`, as a user runs them.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

fn graftwork(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_graftwork")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A path in a directory of this test's own.
fn file(test: &str, name: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    let _ = std::fs::remove_file(&path);
    path
}

fn json(path: &PathBuf) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn words<'a>(rows: &'a [Value], field: &str) -> std::collections::BTreeSet<&'a str> {
    rows.iter().filter_map(|row| row[field].as_str()).collect()
}

#[test]
fn verify_accepts_the_cpu_and_lists_every_row() {
    let path = file("verify", "verify.json");
    let output = graftwork(&["verify", "--device", "cpu", "--quick", "--json", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stdout), stderr(&output));

    let report = json(&path);
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(report["summary"]["failed"], 0);
    assert_eq!(report["summary"]["rows"], rows.len());
    for row in rows {
        for field in ["op", "pass", "dtype", "shape", "device", "check"] {
            assert!(row[field].is_string(), "{field} in {row}");
        }
        let (error, limit) = (row["error"].as_f64().unwrap(), row["limit"].as_f64().unwrap());
        assert!(error <= limit && row["ok"] == true, "{row}");
    }
    assert_eq!(words(rows, "dtype"), ["bf16", "f16", "f32"].into());
    assert!(words(rows, "check").is_superset(&["exact", "bound", "norm", "repeat"].into()));
    let ops = words(rows, "op");
    for op in ["frozen_linear", "linear", "layer_norm", "rms_norm", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu"] {
        assert!(ops.contains(op), "{op}");
    }
    for op in ["attention", "scale_add", "scale", "embedding", "patch_embedding", "cross_entropy", "adamw"] {
        assert!(ops.contains(op), "{op}");
    }
    for op in
        ["spmm_sum", "spmm_mean", "spmm_max", "spmm_min", "sddmm", "edge_softmax", "graph_attention", "cosine_graph"]
    {
        assert!(ops.contains(op), "{op}");
    }
    assert!(ops.contains("pool_mean") && ops.contains("pool_class_token"));

    let controls = report["controls"].as_array().unwrap();
    assert_eq!(words(controls, "check"), ["bound", "exact", "norm", "ratio", "repeat"].into());
    assert!(controls.iter().all(|c| c["rejected"] == true), "{controls:?}");
}

#[test]
fn verify_takes_names_and_refuses_unknown_ones() {
    let path = file("names", "verify.json");
    let some = graftwork(&["verify", "--device", "cpu", "--quick", "--op", "scale", "--json", path.to_str().unwrap()]);
    assert!(some.status.success(), "{}", stderr(&some));
    assert_eq!(words(json(&path)["rows"].as_array().unwrap(), "op"), ["scale"].into());
    let both =
        graftwork(&["verify", "--device", "cpu", "--quick", "--op", "scale,relu", "--json", path.to_str().unwrap()]);
    assert!(both.status.success(), "{}", stderr(&both));
    assert_eq!(words(json(&path)["rows"].as_array().unwrap(), "op"), ["relu", "scale"].into());
    for command in ["verify", "bench"] {
        let none = graftwork(&[command, "--device", "cpu", "--op", "convolution"]);
        assert_eq!(none.status.code(), Some(2));
        assert!(stderr(&none).contains("convolution") && stderr(&none).contains("layer_norm"), "{}", stderr(&none));
    }
}

#[test]
fn a_device_that_computes_nothing_is_an_error() {
    for command in ["verify", "bench"] {
        let trace = graftwork(&[command, "--device", "trace"]);
        assert_eq!(trace.status.code(), Some(2));
        assert!(stderr(&trace).contains("runs none"), "{}", stderr(&trace));
        if let Err(expected) = graftwork::Device::cuda(0) {
            let cuda = graftwork(&[command, "--device", "cuda"]);
            assert_eq!(cuda.status.code(), Some(2));
            assert!(stderr(&cuda).contains(&expected.to_string()), "{}", stderr(&cuda));
            assert!(!stderr(&cuda).contains("panicked"), "{}", stderr(&cuda));
        }
    }
}

#[test]
fn bench_writes_rows_and_a_plot() {
    let (rows_file, plot) = (file("bench", "bench.json"), file("bench", "bench.svg"));
    let (json_path, plot_path) = (rows_file.to_str().unwrap(), plot.to_str().unwrap());
    let output = graftwork(&["bench", "--device", "cpu", "--quick", "--json", json_path, "--plot", plot_path]);
    assert!(output.status.success(), "{}", stderr(&output));

    let report = json(&rows_file);
    let rows = report["rows"].as_array().unwrap();
    assert!(report["peak_flops"].as_f64().unwrap() > 0.0 && report["bandwidth"].as_f64().unwrap() > 0.0);
    for row in rows {
        for field in ["op", "pass", "dtype", "shape", "device", "baseline"] {
            assert!(row[field].is_string(), "{field} in {row}");
        }
        for field in ["seconds", "floor_seconds", "baseline_seconds", "ratio"] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field} in {row}");
        }
    }
    assert_eq!(words(rows, "pass"), ["backward", "call", "forward", "step"].into());

    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("frozen_linear forward") && svg.contains("floor"), "{svg}");
}

/// Found before the work is done, not after it.
#[test]
fn a_report_that_cannot_be_written_is_refused_at_once() {
    let occupied = file("reports", "occupied");
    std::fs::write(&occupied, "a file").unwrap();
    let below = occupied.join("report.json");
    for command in ["doctor", "verify", "bench"] {
        let output = graftwork(&[command, "--device", "cpu", "--json", below.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty() && stderr(&output).contains("report.json"), "{}", stderr(&output));
    }
    let deep = file("reports", "deep").join("er/report.json");
    let _ = std::fs::remove_dir_all(deep.parent().unwrap());
    assert!(graftwork(&["doctor", "--device", "cpu", "--json", deep.to_str().unwrap()]).status.success());
    assert!(deep.is_file());
}

#[test]
fn doctor_says_what_it_cannot_explain_and_what_is_absent() {
    for (args, word) in [
        (&["--explain", "frozen_linear", "0x0x0"][..], "from 1 to"),
        (&["--explain", "frozen_linear", "8x8"], "MxNxK"),
        (&["--explain", "frozen_linear", "8x8x8x257"], "R up to 256"),
        (&["--explain", "frozen_linear", "8x8x99999999999999999999"], "MxNxK"),
        (&["--explain", "softmax", "8x8x8"], "frozen_linear"),
        (&["--device", "tpu"], "`--device` is tpu"),
        (&["--device", "cuda:x"], "`--device` is cuda:x"),
        (&["--explain", "frozen_linear", "8x8x8", "--device", "cuda:x"], "`--device` is cuda:x"),
    ] {
        let output = graftwork(&[&["doctor"][..], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    let output = graftwork(&["doctor", "--explain", "frozen_linear", "8192x4096x4096x16"]);
    let printed = String::from_utf8_lossy(&output.stdout).to_string();
    assert!(output.status.success());
    for word in ["h in the launch of y", "frozen_linear_lora_bf16_128x256x64_sm90a", "dA", "790 TFLOP/s"] {
        assert!(printed.contains(word), "{word}: {printed}");
    }
    if graftwork::Device::cuda(0).is_err() {
        let output = graftwork(&["doctor", "--device", "cuda"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stdout).contains("absent"));
        let explained = graftwork(&["doctor", "--device", "cuda", "--explain", "frozen_linear", "8x8x8"]);
        assert_eq!(explained.status.code(), Some(1));
    }
    assert!(graftwork(&["doctor"]).status.success());
}
