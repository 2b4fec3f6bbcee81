//! `graftwork finetune` with the low-rank family: every method trains, is saved and comes back; what changes its form is resumed to the bit;
//! methods are compared at equal counts over several tasks.

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

fn report(line: &str, dir: &Path, paths: &[(&str, &Path)]) -> Value {
    let json = dir.join("report.json");
    let mut all = paths.to_vec();
    all.push(("--json", &json));
    let output = finetune(line, &all);
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap()
}

fn scratch(test: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("low-rank").join(test);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn bits(report: &Value) -> Vec<u64> {
    report["losses"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap().to_bits()).collect()
}

/// Trainable numbers: those of the method on eight linears of 64 x 64, and the classifier's 325.
#[test]
fn every_method_learns_and_comes_back() {
    let dir = scratch("methods");
    let line = "--method lora,dora,lora-fa,vera,dual-lora,adalora --rank 4 --dropout 0.1 --steps 12 --warmup 2";
    let report = report(line, &dir, &[]);
    let runs = report["runs"].as_array().unwrap();
    let counts = [4 * 128, 4 * 128 + 64, 4 * 64, 64 + 4, 4 * 192 + 8, 2 * 129];
    for (run, count) in runs.iter().zip(counts) {
        let method = run["method"].as_str().unwrap();
        assert_eq!(run["trainable_params"], 8 * count + 325, "{method}");
        assert_eq!(run["accuracy_after"], run["accuracy_reloaded"], "{method}");
        let losses: Vec<f64> = run["losses"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
        assert!(losses[11] < losses[0], "{method}: {losses:?}");
    }
    // What the tape holds: less without the input, more with a second projection of it.
    let kept = |i: usize| runs[i]["retained_peak_bytes"].as_u64().unwrap();
    assert!(
        kept(2) < kept(0) && kept(3) < kept(0) && kept(4) > kept(0),
        "{} {} {} {}",
        kept(0),
        kept(2),
        kept(3),
        kept(4)
    );
}

#[test]
fn lora_plus_gives_b_a_rate_of_its_own() {
    let dir = scratch("plus");
    let out = dir.join("run");
    let line = "--method lora --rank 2 --steps 4 --warmup 0";
    let plain = report(line, &dir, &[]);
    let plus = report(&format!("{line} --lora-plus-ratio 16 --save-every 2"), &dir, &[("--out", &out)]);
    // The first loss is the same, and so is the step that it leads to but for B.
    assert_eq!(bits(&plain)[0], bits(&plus)[0]);
    assert_ne!(bits(&plain)[1], bits(&plus)[1]);
    let resumed = report("--steps 4", &dir, &[("--resume", &out.join("step-000002"))]);
    assert_eq!(bits(&plus), bits(&resumed));
}

/// Stopped while the budget falls, at its end and after it.
#[test]
fn a_budget_of_ranks_is_resumed_to_the_bit() {
    let dir = scratch("adalora");
    let line = "--method adalora --rank 4 --target-rank 2 --ranks-from 2 --ranks-until 8 --ranks-every 2 --dropout 0.1 --warmup 2";
    let straight = dir.join("straight");
    let once = report(&format!("{line} --steps 12 --eval-every 4"), &dir, &[("--out", &straight)]);
    assert_eq!(once["density"], 0.5);
    let sizes: Vec<u64> =
        once["history"].as_array().unwrap().iter().map(|p| p["trainable_params"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [8 * 4 * 129 + 325, 8 * 4 * 129 + 325, 8 * 2 * 129 + 325]);
    for stop in [3, 8, 10] {
        let split = dir.join(format!("split-{stop}"));
        let begun = format!("{line} --steps {stop} --save-every {stop} --eval-every 4");
        assert!(finetune(&begun, &[("--out", &split)]).status.success());
        let twice = report("--steps 12 --eval-every 4", &dir, &[("--resume", &split), ("--out", &split)]);
        assert_eq!(bits(&once), bits(&twice), "stopped at {stop}");
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            let read = |run: &Path| std::fs::read(run.join("adapter").join(name)).unwrap();
            assert!(read(&straight) == read(&split), "{name}, stopped at {stop}");
        }
    }
}

#[test]
fn tasks_are_told_apart_and_methods_compared_at_equal_counts() {
    let dir = scratch("multi");
    let json = dir.join("report.json");
    let line = "--task multi --method dual-lora,lora --rank 8 --equal-params --steps 6";
    let output = finetune(line, &[("--json", &json)]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8_lossy(&output.stdout);
    for part in ["plain", "rotated", "inverted", "noisy", "dual-lora"] {
        assert!(table.contains(part), "{part}\n{table}");
    }
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let count = |i: usize| runs[i]["trainable_params"].as_f64().unwrap();
    assert_eq!(runs[1]["recipe"]["rank"], 12);
    assert!((count(0) / count(1) - 1.0).abs() < 0.03, "{} {}", count(0), count(1));
    assert_eq!(runs[0]["accuracy_after"], runs[0]["accuracy_reloaded"]);
}

#[test]
fn maps_of_several_depths_help_any_method_and_come_back() {
    let dir = scratch("vce");
    let out = dir.join("run");
    for options in ["--method lora --rank 4", "--method dual-lora --rank 4 --vce-anchor 0 --vce-bare --dropout 0.1"] {
        let plain = report("--method linear-probe --vce --steps 2", &dir, &[]);
        let line = format!("{options} --vce --vce-heads 4 --vce-points 2");
        let once = report(&format!("{line} --steps 6"), &dir, &[]);
        assert!(
            once["adapter"].as_str().unwrap().contains("vce") && plain["adapter"].as_str().unwrap().contains("vce")
        );
        assert_eq!(once["accuracy_after"], once["accuracy_reloaded"]);
        let _ = std::fs::remove_dir_all(&out);
        assert!(finetune(&format!("{line} --steps 3 --save-every 3"), &[("--out", &out)]).status.success());
        let twice = report("--steps 6", &dir, &[("--resume", &out)]);
        assert_eq!(bits(&once), bits(&twice), "{options}");
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for (line, word) in [
        ("--method dual-lora --rank 1", "rank"),
        ("--method adalora --rank 4 --target-rank 5", "target-rank"),
        ("--method adalora --ranks-from 9 --ranks-until 8", "--ranks-until"),
        ("--method adalora --orthogonality nan", "--orthogonality"),
        ("--method vera --d-initial 0", "--d-initial"),
        ("--method lora --lora-plus-ratio 0", "--lora-plus-ratio"),
        ("--method lora --vce-points 2", "--vce"),
        ("--method lora --vce --vce-depths 5", "--vce-depths"),
        ("--method lora --vce --vce-heads 5", "--vce-heads"),
        ("--method lora --vce --vce-depths 2 --vce-anchor 2", "--vce-anchor"),
        ("--method lora --vce --vce-points 9", "--vce-points"),
        ("--method lora --task caption --vce", "vce"),
        ("--method vera --lora-plus-ratio 2", "lora-plus-ratio"),
    ] {
        let output = finetune(&format!("{line} --steps 1"), &[]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{line}\n{message}");
        assert!(message.to_lowercase().contains(word), "{line}: no `{word}` in\n{message}");
        assert!(!message.contains("panicked"), "{message}");
    }
}
