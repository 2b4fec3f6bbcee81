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
        (&["--method", "ga-net", "--batch", "8"], "--batch has no meaning"),
        (&["--method", "linear-probe", "--fusion", "gate"], "--fusion has no meaning"),
        (&["--method", "ga-net", "--attention-heads", "0"], "attention-heads"),
        (&["--labels", "5,20,5"], "each number once"),
        (&["--labels", "500"], "by the training images of the rarest class"),
        (&["--method", "ga-net,ga-net"], "each method once"),
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

#[test]
fn the_published_network_and_every_option_of_it_run() {
    let few = ["--method", "ga-net", "--labels", "5", "--seeds", "1"];
    let of = |more: &[&str]| report("options.json", &[&few[..], more].concat());
    let published = of(&["--graph", "batch", "--batch", "16", "--activation", "none", "--no-residual"]);
    assert_eq!(published["network"]["graph"], "batch");
    let (plain, validated) = (of(&[]), of(&["--graph", "batch", "--validation"]));
    for more in [&["--fusion", "gate"][..], &["--attention-heads", "2"], &["--weighted"], &["--top-k", "4"]] {
        let changed = of(more);
        assert_ne!(changed["rows"], plain["rows"], "{more:?}");
    }
    for report in [published, plain, validated] {
        assert!(report["rows"].as_array().unwrap().iter().all(|row| row["mean"].as_f64().unwrap() > 0.25), "{report}");
    }
}

#[test]
fn both_sweeps_are_drawn() {
    let path = file("sweeps.svg");
    let found = report("sweeps.json", &["--labels", "5", "--seeds", "1", "--plot", path.to_str().unwrap()]);
    let points = |name: &str| found[name].as_array().unwrap().clone();
    assert_eq!((points("thresholds").len(), points("noises").len()), (8, 6));
    // The higher the threshold and the worse the text, the fewer edges.
    for sweep in ["thresholds", "noises"] {
        let edges: Vec<u64> = points(sweep).iter().map(|p| p["edges"].as_u64().unwrap()).collect();
        assert!(edges.windows(2).all(|pair| pair[0] >= pair[1]) && edges[0] > edges[5], "{sweep}: {edges:?}");
    }
    let svg = std::fs::read_to_string(path).unwrap();
    for words in ["similarity threshold", "share of words replaced", "with graph", "without"] {
        assert!(svg.contains(words), "{words}");
    }
}
