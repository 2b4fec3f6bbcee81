//! `finetune --task caption`: methods side by side, the choice of a variant, and what is refused.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

fn finetune(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.args(["finetune", "--task", "caption", "--device", "cpu"]).args(line.split_whitespace());
    command
}

fn scratch(test: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("caption").join(test);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// What it printed, and its report.
fn report(line: &str, dir: &Path) -> (String, Value) {
    let path = dir.join("report.json");
    let output = finetune(line).arg("--json").arg(&path).output().unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text, serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap())
}

fn refusal(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_method_learns_and_is_the_same_when_loaded_back() {
    let dir = scratch("methods");
    let steps = "--steps 12 --batch 16 --warmup 2";
    let (_, report_of_four) = report(&format!("--method lora,adapter,vl-adapter,vl-pet {steps}"), &dir);
    // Its factors are small at first, and multiplied.
    let (_, compacter) = report(&format!("--method compacter --lr 2e-2 {steps}"), &dir);
    let runs = [&report_of_four, &compacter].map(|report| report["runs"].as_array().unwrap());
    for run in runs.into_iter().flatten() {
        let losses: Vec<f64> = run["losses"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(losses[11] < 0.8 * losses[0], "{}: {losses:?}", run["method"]);
        assert_eq!(run["exact_match_after"], run["exact_match_reloaded"]);
    }
    // Six places of 2·(2·64·8 + 8 + 64), two value projections of half of that, seven norms.
    assert_eq!(report_of_four["runs"][3]["trainable_params"], 6 * 2192 + 2 * 1096 + 7 * 128);
    // Twelve places of 2·(64 + 4) factors and 68 biases, on both sides, and the shared rule.
    assert_eq!(compacter["trainable_params"], 12 * 204 + 64);
}

/// One run prints the table of all variants; each keeps its checkpoints in a directory of its own, and goes on from there.
#[test]
fn variants_stand_side_by_side() {
    let dir = scratch("variants");
    let out = dir.join("out");
    let line = "--method vl-pet,lora --variant large,middle-x,middle-y,small --steps 2 --batch 8 --validation";
    let (text, first) = report(&format!("{line} --out {} --save-every 2", out.display()), &dir);
    assert!(text.contains("2308 to train on, 568 held out"), "{text}");
    assert!(text.contains("exact_match") && text.contains("letters"), "{text}");
    let runs = first["runs"].as_array().unwrap();
    for run in runs {
        let of = |style: &str| run[format!("{style}_after")].as_f64().unwrap();
        let mean = ["word", "sentence", "number", "letters"].map(of).iter().sum::<f64>() / 4.0;
        assert!((of("exact_match") - mean).abs() < 1e-9, "{run}");
    }
    let variants: Vec<&str> = runs.iter().filter_map(|run| run["recipe"]["variant"].as_str()).collect();
    assert_eq!(variants, ["large", "middle-x", "middle-y", "small"]);
    assert_eq!(runs.len(), 5);
    let (_, again) = report(&format!("{line} --resume {}", out.display()).replace("--steps 2", "--steps 3"), &dir);
    for (run, again) in runs.iter().zip(again["runs"].as_array().unwrap()) {
        assert_eq!((&again["recipe"], again["losses"].as_array().unwrap().len()), (&run["recipe"], 3));
    }
    let one = out.join("vl-pet-small-r-8-h-4");
    let (text, _) = report(&format!("--resume {}", one.display()), &dir);
    assert!(text.contains("2308 to train on, 568 held out") && text.contains("nothing is left to train"), "{text}");
}

#[test]
fn auto_names_its_choice_within_the_budget() {
    let line = "--method vl-pet --granularity auto --budget 5% --trial-steps 4 --steps 1 --batch 8";
    let (text, report) = report(line, &scratch("auto"));
    assert!(text.contains("large r=8 h=4: ") && text.contains("over the budget of 5.00 %"), "{text}");
    // Large fits at a smaller rank, the others as they are.
    assert!(text.contains("small r=8 h=4: 4.74 %"), "{text}");
    assert!(text.contains("chosen: "), "{text}");
    let trainable = report["trainable_params"].as_f64().unwrap();
    assert!(trainable <= 0.05 * report["total_params"].as_f64().unwrap());
}

/// Nothing is trained on, nor saved, for a choice that was not made.
#[cfg(unix)]
#[test]
fn ctrl_c_while_variants_are_tried_leaves_no_checkpoint() {
    let out = scratch("interrupted").join("run");
    let line =
        "--method vl-pet --granularity auto --budget 5% --trial-steps 1000000 --steps 1 --batch 8 --save-every 1";
    let mut child = finetune(line).arg("--out").arg(&out).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first_trial = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("over the budget")));
    assert!(first_trial.is_some());
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!out.join("adapter").exists());
    let names = std::fs::read_dir(&out).map(|all| all.flatten().map(|entry| entry.file_name()).collect());
    let names: Vec<std::ffi::OsString> = names.unwrap_or_default();
    assert!(names.iter().all(|name| !name.to_string_lossy().starts_with("step-")), "{names:?}");
}

#[test]
fn bad_input_is_refused_with_what_would_do() {
    let message = refusal(finetune("--method vl-pet --variant auto --budget 0.1%"));
    assert!(message.contains("`--budget`") && message.contains("at least"), "{message}");
    let message = refusal(finetune("--method vl-pet --variant huge"));
    assert!(
        message.contains("--variant") && message.contains("middle-y, small") && message.contains("auto"),
        "{message}"
    );
    for twice in ["large,large", "auto,large", "large,"] {
        let message = refusal(finetune(&format!("--method vl-pet --variant {twice}")));
        assert!(message.contains("each once"), "{message}");
    }
    let message = refusal(finetune("--method vl-pet --variant large,small --decoder-places"));
    assert!(message.contains("is small, expected large, middle-x or middle-y with --decoder-places"), "{message}");
    let message = refusal(finetune("--method vl-pet --heads 3"));
    assert!(message.contains("heads"), "{message}");

    let dir = scratch("bad");
    let shipped = std::fs::read_to_string("data/captions/captions.json").unwrap();
    let images = std::fs::canonicalize("data/digits").unwrap();
    let moved = shipped.replace("../digits", images.to_str().unwrap());
    for (from, to, part) in [
        ("this is a {word}.", "what? {word}", "'?'"),
        ("\"seven\", ", "", "9 words"),
        ("this is a {word}.", "this is a long sentence about nothing but the digit {word}.", "at most 48"),
        ("\"prompt\": \"number\"", "\"prompt\": \"number number number number number\"", "51 tokens"),
        ("\"prompt\": \"number\"", "\"prompt\": \"word\"", "two styles"),
        ("0123456789-.", "0123456788-.", "a character twice"),
    ] {
        std::fs::write(dir.join("captions.json"), moved.replace(from, to)).unwrap();
        let mut command = finetune("--method lora --steps 1");
        command.arg("--data").arg(&dir);
        let message = refusal(command);
        assert!(message.contains(part), "{message}");
    }
}
