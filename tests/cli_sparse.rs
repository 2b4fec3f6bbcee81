//! `graftwork finetune` with the methods whose form changes while they train: blocks that move, ranks that are pruned.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn finetune(line: &str, paths: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.arg("finetune").args(line.split_whitespace()).args(["--device", "cpu"]);
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(line: &str, dir: &Path, paths: &[(&str, &Path)]) -> Value {
    let json = dir.join("report.json");
    let mut all = paths.to_vec();
    all.push(("--json", &json));
    let output = finetune(line, &all);
    assert!(output.status.success(), "{line}\n{}", stderr(&output));
    serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap()
}

fn scratch(test: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("sparse").join(test);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn bits(report: &Value) -> Vec<u64> {
    report["losses"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap().to_bits()).collect()
}

fn adapter(out: &Path) -> [Vec<u8>; 2] {
    ["adapter_model.safetensors", "adapter_config.json"]
        .map(|name| std::fs::read(out.join("adapter").join(name)).unwrap())
}

/// Stopped before, between and after the steps at which its form changes, a run goes on to the same bits.
#[test]
fn a_run_resumed_across_changes_of_form_equals_one_that_never_stopped() {
    let moves = "--moves-from 3 --moves-until 9 --moves-every 3 --warmup 2";
    let scored = format!("{moves} --score-batches 2");
    let cases = [
        ("blocks", format!("--method block-sparse --density 0.06 --density-start 0.02 --regrow 0.25 {scored}")),
        ("lasso", format!("--method block-sparse --lasso 0.02 --preconditioned --low-rank 2 --dropout 0.1 {scored}")),
        ("bottleneck", format!("--method sparse-adapter --density 0.5 --regrow 0.5 --score random {moves}")),
        (
            "sora",
            "--method sora --rank 4 --lambda 40 --dense-steps 2 --stages 3 --stage-steps 2 --warmup 2".to_string(),
        ),
    ];
    for (name, line) in cases {
        let dir = scratch(&format!("resume-{name}"));
        let straight = dir.join("straight");
        let once = report(&format!("{line} --steps 12 --eval-every 4"), &dir, &[("--out", &straight)]);
        for stop in [2, 6, 10] {
            let split = dir.join(format!("split-{stop}"));
            let begun =
                finetune(&format!("{line} --steps {stop} --save-every {stop} --eval-every 4"), &[("--out", &split)]);
            assert!(begun.status.success(), "{}", stderr(&begun));
            let twice = report("--steps 12 --eval-every 4", &dir, &[("--resume", &split), ("--out", &split)]);
            assert_eq!(bits(&once), bits(&twice), "{name}, stopped at {stop}");
            assert!(adapter(&straight) == adapter(&split), "{name}: the adapters differ");
            assert_eq!(once["history"], twice["history"]);
            assert_eq!(once["density"], twice["density"]);
            assert_eq!(once["trainable_params"], twice["trainable_params"]);
        }
        assert_eq!(once["accuracy_after"], once["accuracy_reloaded"]);
        let sizes: Vec<&Value> = once["history"].as_array().unwrap().iter().map(|p| &p["trainable_params"]).collect();
        assert_eq!(sizes.len(), 3);
        if name != "bottleneck" {
            assert!(sizes[0] != sizes[2], "{name}: the form did not change: {sizes:?}");
        }
    }
}

/// 24 blocks of 16 are as many numbers as a LoRA of rank 6 on queries and values.
#[test]
fn methods_are_compared_at_equal_counts_and_drawn() {
    let dir = scratch("compare");
    let plot = dir.join("plot.svg");
    let line = "--method block-sparse,lora,linear-probe,s2ft --rank 6 --density 0.046875 --steps 8 --score-batches 1";
    let report = report(line, &dir, &[("--plot", &plot)]);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs[0]["trainable_params"], runs[1]["trainable_params"]);
    let share = runs[0]["trainable_params"].as_f64().unwrap() / runs[0]["total_params"].as_f64().unwrap();
    assert!(share <= 0.05, "{share}");
    assert_eq!(runs[0]["density"], 24.0 / 512.0);
    assert!(runs[0]["adapter"].as_str().unwrap().contains("b=16, 24 blocks"));
    for run in runs {
        assert_eq!(run["accuracy_after"], run["accuracy_reloaded"], "{}", run["method"]);
        assert_eq!(run["history"].as_array().unwrap().len(), 8, "{}", run["method"]);
    }
    let svg = std::fs::read_to_string(plot).unwrap();
    for part in ["density", "accuracy", "block-sparse: b=16, 24 blocks", "0.q_proj", "3.fc2"] {
        assert!(svg.contains(part), "{part}");
    }
}

fn refused(line: &str, paths: &[(&str, &Path)], word: &str) {
    let output = finetune(line, paths);
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{line}\n{message}");
    assert!(message.to_lowercase().contains(word), "{line}: no `{word}` in\n{message}");
    assert!(!message.contains("panicked"), "{message}");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for (line, word) in [
        ("--density 0", "density"),
        ("--density 1.5", "density"),
        ("--density nan", "density"),
        ("--density-start 0", "density"),
        ("--block 0", "block"),
        ("--block 24", "block"),
        ("--block 256", "block"),
        ("--regrow 1", "regrow"),
        ("--lasso=-1", "lasso"),
        ("--lasso nan", "lasso"),
        ("--score nope", "--score"),
        ("--score-batches 0", "score-batches"),
        ("--score-batches 18446744073709551615", "score-batches"),
        ("--density 0", "--density"),
        ("--density-start nan", "--density-start"),
        ("--regrow 0.1 --moves-every 0", "every"),
        ("--regrow 0.1 --moves-from 9 --moves-until 8", "--moves-until"),
        ("--low-rank 300", "rank"),
        ("--eval-every 0", "eval-every"),
    ] {
        refused(&format!("--method block-sparse --steps 1 {line}"), &[], word);
    }
    for (line, word) in [
        ("--method sparse-adapter --width 20", "width"),
        ("--method sparse-adapter --width 10000000000", "--width"),
        ("--method sparse-adapter --large-sparse 0", "--large-sparse"),
        ("--method sparse-adapter --large-sparse 1000", "--large-sparse"),
        ("--method sparse-adapter --up-std -1", "--up-std"),
        ("--method sparse-adapter --scale nan", "--scale"),
        ("--method sparse-adapter --places nope", "nope"),
        ("--method sparse-adapter --density 0.5 --score snip", "up-projection"),
        ("--method sora --lambda=-1", "lambda"),
        ("--method sora --stages 0", "stages"),
        ("--method s2ft --pairs fc1", "pairs"),
        ("--method s2ft --pairs a:b", "b"),
    ] {
        refused(&format!("{line} --steps 1"), &[], word);
    }
}

#[test]
fn a_checkpoint_with_another_pattern_is_refused() {
    let dir = scratch("pattern");
    let out = dir.join("run");
    let line = "--method block-sparse --density 0.06 --score random --steps 2 --save-every 2";
    assert!(finetune(line, &[("--out", &out)]).status.success());
    for (options, word) in [("--block 32", "--block"), ("--density 0.1", "--density"), ("--regrow 0.5", "--regrow")] {
        refused(&format!("--method block-sparse --steps 4 {options}"), &[("--resume", &out)], word);
    }
    // The state says blocks of 32, the adapter's file holds blocks of 16.
    let state = out.join("step-000002").join("state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replace("\"block\": 16", "\"block\": 32")).unwrap();
    refused("--method block-sparse --steps 4", &[("--resume", &out)], "blocks of 16, expected 32");
}

/// Names that match nothing beside some that do are mistakes, and defaults fit every shipped trunk.
#[test]
fn names_that_match_nothing_are_refused_and_told() {
    for (line, word) in [
        ("--method lora --targets q_proj,nope", "nope"),
        ("--method sora --targets nope,q_proj", "nope"),
        ("--method block-sparse --targets fc1,nope", "nope"),
        ("--method s2ft --pairs fc1:fc2,v_proj:nope", "v_proj:nope"),
        ("--method sparse-adapter --places mlp,nope --density 0.5", "nope"),
    ] {
        refused(&format!("{line} --steps 1"), &[], word);
    }
    let dir = scratch("names");
    let caption = report("--task caption --method s2ft --density 0.25 --steps 1 --batch 4 --score random", &dir, &[]);
    assert!(caption["adapter"].as_str().unwrap().contains("density 25.0 %"), "{}", caption["adapter"]);
}

/// Blocks chosen before the head has learned anything are chosen badly: without options a quarter of them is, and the others follow.
#[test]
fn the_default_moves_with_the_length_of_the_run() {
    let dir = scratch("default");
    let report = report("--method block-sparse --density 0.05 --steps 40 --eval-every 1 --score-batches 1", &dir, &[]);
    let counts: Vec<u64> =
        report["history"].as_array().unwrap().iter().map(|p| p["trainable_params"].as_u64().unwrap()).collect();
    let blocks = |step: usize| (counts[step - 1] - (counts[39] - 26 * 256)) / 256;
    assert!((6..=7).contains(&blocks(1)) && blocks(1) < blocks(8) && blocks(8) < 26, "{counts:?}");
    // The last move comes before step 12, counted from 0.
    assert_eq!([blocks(13), blocks(40)], [26, 26], "{counts:?}");
    // Of 512 blocks a share of 0.05 is no whole number.
    assert!(report["adapter"].as_str().unwrap().ends_with("density 5.1 % (asked for 5.0 %)"), "{}", report["adapter"]);
    assert_eq!(report["recipe"]["moves_from"], 2);
    assert_eq!(report["recipe"]["moves_until"], 12);
}

/// Scoring may take longer than a step: a signal ends it, and nothing that it summed up counts.
#[cfg(unix)]
#[test]
fn a_signal_ends_scoring() {
    let dir = scratch("signal");
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.args("finetune --device cpu --method block-sparse --score-batches 10000 --steps 3".split_whitespace());
    command.arg("--out").arg(&dir).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let started = std::time::Instant::now();
    while !dir.join(".lock").exists() {
        assert!(started.elapsed().as_secs() < 60, "the run never started");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let sent = std::time::Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        assert!(sent.elapsed().as_secs() < 20, "the signal was not heard");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(code, Some(130));
}
