//! The command `finetune`, as a user runs it: what it writes, how it goes on after a stop, and what it says when it cannot.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use graftwork::Device;
use serde_json::Value;

/// `graftwork finetune --device cpu` and the options of `line`, then of `paths`.
fn finetune(line: &str, paths: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.arg("finetune").args(line.split_whitespace());
    if !line.contains("--device") {
        command.args(["--device", "cpu"]);
    }
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeed(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", stderr(&output));
}

/// Runs to the end and returns the report.
fn report(line: &str, dir: &Path, paths: &[(&str, &Path)]) -> Value {
    let path = dir.join("report.json");
    let mut all = paths.to_vec();
    all.push(("--json", &path));
    succeed(finetune(line, &all));
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

/// An empty directory of this test's own.
fn scratch(test: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("finetune").join(test);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn losses(report: &Value) -> Vec<f64> {
    report["losses"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// Bit patterns: equal numbers are not enough.
fn bits(report: &Value) -> Vec<u64> {
    losses(report).into_iter().map(f64::to_bits).collect()
}

fn adapter(out: &Path) -> [Vec<u8>; 2] {
    ["adapter_model.safetensors", "adapter_config.json"]
        .map(|name| std::fs::read(out.join("adapter").join(name)).unwrap())
}

/// Steps of the complete checkpoints in a run's directory.
fn checkpoints(out: &Path) -> Vec<u64> {
    let names = std::fs::read_dir(out).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> = names.filter_map(|n| n.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

fn share(report: &Value) -> f64 {
    report["retained_peak_bytes"].as_f64().unwrap() / report["retained_if_all_tracked_bytes"].as_f64().unwrap()
}

/// Across the end of an epoch (six steps), whose last step is a short one.
#[test]
fn a_resumed_run_equals_one_that_never_stopped() {
    let common = "--batch 64 --accumulate 2 --warmup 3";
    let cases = [
        ("lora", format!("{common} --dropout 0.1 --steps 9"), "--steps 5", "--steps 9"),
        (
            "cosine",
            format!("{common} --dropout 0.1 --rank 3 --targets all-linear --epochs 2"),
            "--steps 5",
            "--epochs 2",
        ),
        ("held", format!("{common} --ewc 50 --ewc-fisher sample --steps 9"), "--steps 5", "--steps 9"),
        ("probe", format!("{common} --method linear-probe --steps 9"), "--steps 5", "--method linear-probe --steps 9"),
    ];
    for (name, whole, first, rest) in cases {
        let dir = scratch(&format!("resume-{name}"));
        let (straight, split) = (dir.join("straight"), dir.join("split"));
        let once = report(&whole, &dir, &[("--out", &straight)]);
        // The option that stands last of two would be refused: the shorter run leaves the longer one's --steps out.
        let begun = format!("{} {first} --save-every 4", whole.replace(" --steps 9", ""));
        succeed(finetune(&begun, &[("--out", &split)]));
        assert_eq!(checkpoints(&split), [4, 5]);
        let twice = report(rest, &dir, &[("--resume", &split), ("--out", &split)]);
        assert_eq!(bits(&once), bits(&twice), "{name}");
        assert_eq!(losses(&once).len() as u64, once["steps"].as_u64().unwrap());
        assert!(adapter(&straight) == adapter(&split), "{name}: the adapters differ");
        for score in ["accuracy_before", "accuracy_after"] {
            assert_eq!(once[score], twice[score], "{name}");
        }
        assert_eq!(once["recipe"], twice["recipe"]);
    }
}

/// Whatever learns starts at its anchor, so that the first loss is the same; blocks that move take their springs along.
#[test]
fn springs_hold_every_kind_of_adapter() {
    let moving = "block-sparse --density 0.05 --density-start 0.02 --moves-from 2 --moves-until 6";
    for method in ["lora", "linear-probe", "adapter", "sora", moving] {
        let dir = scratch("held");
        let run = |more: &str| bits(&report(&format!("--method {method} --steps 8 --batch 16 {more}"), &dir, &[]));
        let (free, slack, held) = (run(""), run("--ewc 0"), run("--ewc 1e5 --ewc-whole"));
        assert_eq!(free, slack, "{method}");
        assert!(free[0] == held[0] && free != held, "{method}");
    }
}

#[test]
fn recomputation_saves_memory_and_changes_no_bit() {
    let dir = scratch("recompute");
    let kept = report("--steps 4 --dropout 0.1", &dir, &[]);
    let again = report("--steps 4 --dropout 0.1 --recompute blocks", &dir, &[]);
    assert_eq!(bits(&kept), bits(&again));
    assert!(share(&kept) <= 0.65, "{}", share(&kept));
    assert!(share(&again) <= 0.30, "{}", share(&again));
}

#[test]
fn the_report_says_everything() {
    let dir = scratch("report");
    let report = report("--method lora,linear-probe --steps 6", &dir, &[]);
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for (run, method) in [(&report, "lora"), (&runs[0], "lora"), (&runs[1], "linear-probe")] {
        assert!(run["task"].is_string());
        assert_eq!(run["device"], "cpu");
        assert_eq!(run["method"], method);
        for field in ["trainable_params", "total_params", "retained_peak_bytes", "retained_if_all_tracked_bytes"] {
            assert!(run[field].as_u64().is_some_and(|n| n > 0), "{field}: {}", run[field]);
        }
        for field in ["accuracy_before", "accuracy_after", "accuracy_reloaded"] {
            assert!(run[field].as_f64().is_some_and(|a| (0.0..=1.0).contains(&a)), "{field}: {}", run[field]);
        }
        assert!(run["seconds_train"].as_f64().is_some_and(|s| s > 0.0));
        assert_eq!(losses(run).len(), 6);
        assert_eq!(run["accuracy_reloaded"], run["accuracy_after"]);
        let trainable = run["trainable_params"].as_f64().unwrap() / run["total_params"].as_f64().unwrap();
        assert!(trainable <= 0.10, "{trainable}");
    }
}

/// Four times eight images or thirty-two at once: the same gradient, summed in another order.
#[test]
fn accumulated_gradients_are_those_of_the_whole_batch() {
    let dir = scratch("accumulate");
    let whole = losses(&report("--batch 32 --steps 6", &dir, &[]));
    let parts = losses(&report("--batch 8 --accumulate 4 --steps 6", &dir, &[]));
    for (step, (a, b)) in whole.iter().zip(&parts).enumerate() {
        let limit = if step == 0 { 1e-6 } else { 1e-4 };
        assert!((a - b).abs() <= limit * a.abs(), "step {step}: {a} and {b}");
    }
}

/// Sums have an order of their own, whoever computes them.
#[test]
fn the_number_of_threads_changes_no_bit() {
    let dir = scratch("threads");
    let run = |name: &str, threads: &str| {
        let (out, json) = (dir.join(name), dir.join(format!("{name}.json")));
        let mut command =
            finetune("--steps 4 --dropout 0.1 --rank 3 --targets all-linear", &[("--out", &out), ("--json", &json)]);
        command.env("RAYON_NUM_THREADS", threads);
        succeed(command);
        let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        (bits(&report), adapter(&out))
    };
    let one = run("one", "1");
    assert!(one == run("again", "1"), "the same run twice");
    assert!(one == run("three", "3"), "another number of threads");
}

#[test]
fn half_precision_learns() {
    let dir = scratch("half");
    for dtype in ["bf16", "f16"] {
        let losses = losses(&report(&format!("--dtype {dtype} --steps 20 --warmup 5"), &dir, &[]));
        assert!(losses.len() == 20 && losses.iter().all(|l| l.is_finite()), "{dtype}: {losses:?}");
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        assert!(mean(&losses[15..]) < 0.8 * mean(&losses[..5]), "{dtype}: {losses:?}");
    }
}

/// Exit code 2, a message that names `word`, and no panic.
fn refused(line: &str, paths: &[(&str, &Path)], word: &str) -> String {
    let output = finetune(line, paths).output().unwrap();
    let message = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{line} {paths:?}\n{message}");
    assert!(message.to_lowercase().contains(word), "{line} {paths:?}: no `{word}` in\n{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

#[test]
fn options_that_make_no_sense_are_refused() {
    for (line, word) in [
        ("--rank 0", "rank"),
        ("--rank 257", "rank"),
        ("--rank x", "--rank"),
        ("--alpha nan", "alpha"),
        ("--lr nan", "lr"),
        ("--lr inf", "lr"),
        ("--lr=-1", "lr"),
        ("--dropout 1.0", "dropout"),
        ("--dropout nan", "dropout"),
        ("--dropout=-0.5", "dropout"),
        ("--targets nope", "nope"),
        ("--targets regex:(", "pattern"),
        ("--alpha 0", "alpha"),
        ("--batch 0", "batch"),
        ("--accumulate 0", "accumulate"),
        ("--clip nan", "clip"),
        ("--clip=-1", "clip"),
        ("--weight-decay inf", "weight-decay"),
        ("--epochs 18446744073709551615", "epochs"),
        ("--save-every 0", "save-every"),
        ("--save-every 5", "--out"),
        ("--steps 1 --dtype nope", "f32, f16, bf16"),
        ("--steps 1 --batch 18446744073709551615 --accumulate 18446744073709551615", "batch"),
        ("--device nope", "nope"),
        ("--method nope", "--method"),
        ("--method adapter --reduction 100000", "from 1 to 4096"),
        ("--method vl-pet --bottleneck 10000000000", "from 1 to 4096"),
        ("--method vl-pet --gate-scale nan", "gate-scale"),
        ("--method sora --alpha 0", "alpha"),
        ("--ewc nan", "ewc"),
        ("--ewc=-1", "ewc"),
        ("--ewc-whole", "--ewc"),
        ("--ewc 1 --ewc-fisher all", "batch, sample"),
    ] {
        refused(line, &[], word);
    }
}

/// Passed over in silence, an option would be believed.
#[test]
fn options_of_others_are_refused_with_who_reads_them() {
    for (line, word) in [
        ("--method linear-probe --rank 4", "--rank has no meaning for --task digits --method linear-probe"),
        ("--method linear-probe --rank 4", "it is read by --method lora"),
        ("--method lora --density 0.1", "block-sparse, sparse-adapter, s2ft"),
        ("--method lora --labels 5", "it is read by --task graph"),
        ("--method s2ft --regrow 0.2", "--regrow has no meaning"),
        ("--method s2ft --low-rank 2", "--low-rank has no meaning"),
        ("--method sparse-adapter --targets fc1", "--targets has no meaning"),
        ("--method block-sparse --alpha 4", "block-sparse with --low-rank"),
        ("--method block-sparse --score random --score-batches 2", "with --score gradient or snip"),
        ("--method block-sparse --preconditioned", "with --lasso"),
        ("--task graph --rank 4", "--rank has no meaning for --task graph --method ga-net,linear-probe"),
    ] {
        refused(&format!("{line} --device cpu"), &[], &word.to_lowercase());
    }
    let mut command = finetune("--method lora,linear-probe --rank 4 --steps 1", &[]);
    assert!(command.output().unwrap().status.success(), "one of the methods reads it");
    let help = Command::new(env!("CARGO_BIN_EXE_graftwork")).args(["finetune", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for heading in ["Options of --task digits, multi, caption:", "Options of --method s2ft:"] {
        assert!(help.contains(heading), "{help}");
    }
}

#[test]
fn cuda_without_a_driver_is_an_error() {
    if Device::cuda(0).is_ok() {
        println!("skipped: this machine has a GPU");
        return;
    }
    refused("--device cuda --steps 1", &[], "cuda");
    refused("--device cuda:7 --steps 1", &[], "cuda");
    refused("--device cuda:x --steps 1", &[], "`--device` is cuda:x");
}

#[test]
fn paths_that_do_not_work_are_named() {
    let dir = scratch("paths");
    let missing = dir.join("missing");
    refused("--steps 1", &[("--trunk", &missing)], "missing");
    refused("--steps 1", &[("--data", &missing)], "missing");
    refused("", &[("--resume", &missing)], "missing");

    let empty = dir.join("empty");
    std::fs::create_dir(&empty).unwrap();
    let message = refused("", &[("--resume", &empty)], "empty");
    assert!(message.contains("no checkpoint"), "{message}");

    let file = dir.join("file");
    std::fs::write(&file, "not a directory").unwrap();
    refused("--steps 1", &[("--out", &file.join("below"))], "file/below");
    refused("--steps 1", &[("--resume", &file)], "file");
    refused("--steps 1", &[("--json", &file.join("below.json"))], "below.json");
    assert_eq!(std::fs::read(&file).unwrap(), b"not a directory");

    let trunk = dir.join("trunk");
    std::fs::create_dir(&trunk).unwrap();
    let whole = Path::new("data/digits/trunk");
    std::fs::copy(whole.join("config.json"), trunk.join("config.json")).unwrap();
    refused("--steps 1", &[("--trunk", &trunk)], "model.safetensors");
    let bytes = std::fs::read(whole.join("model.safetensors")).unwrap();
    for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(trunk.join("model.safetensors"), &bytes[..length]).unwrap();
        refused("--steps 1", &[("--trunk", &trunk)], "model.safetensors");
    }
}

#[test]
fn resuming_with_other_options_is_refused() {
    let dir = scratch("conflict");
    let out = dir.join("run");
    succeed(finetune("--steps 2 --save-every 2", &[("--out", &out)]));
    for (line, word) in [
        ("--rank 4", "--rank"),
        ("--lr 0.25", "--lr"),
        ("--seed 9", "--seed"),
        ("--batch 16", "--batch"),
        ("--dropout 0.5", "--dropout"),
        ("--targets all-linear", "--targets"),
        ("--dtype bf16", "--dtype"),
        ("--method linear-probe", "--method"),
        ("--schedule linear", "--schedule"),
    ] {
        refused(&format!("--steps 4 {line}"), &[("--resume", &out)], word);
    }
    let report = report("--steps 4 --rank 8", &dir, &[("--resume", &out)]);
    assert_eq!(report["steps"], 4, "an option that says the same is fine");

    // A checkpoint comes from outside, like any file.
    let state = out.join("step-000004").join("state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    for (from, to, word) in [
        ("\"batch\": 32", "\"batch\": 0", "--batch"),
        ("\"accumulate\": 1", "\"accumulate\": 0", "--accumulate"),
        ("\"rank\": 8", "\"rank\": 0", "--rank"),
        ("\"clip\": 1.0", "\"clip\": -1.0", "--clip"),
        ("\"lr\": 0.005", "\"lr\": -0.005", "--lr"),
        ("\"save_every\": 2", "\"save_every\": 0", "--save-every"),
        ("\"index\": 128", "\"index\": 1000000000000", "does not stand where its settings are"),
        ("\"clip\": 1.0", "\"clip\": 1.0, \"cilp\": 2.0", "unknown field `cilp`"),
        ("\"save_every\": 2", "\"save_every\": 2, \"seva\": 2", "unknown field `seva`"),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&state, text.replace(from, to)).unwrap();
        refused("--steps 6", &[("--resume", &out)], word);
    }

    // What a checkpoint is called is what a run's checkpoints are ordered by.
    std::fs::write(&state, &text).unwrap();
    std::fs::rename(out.join("step-000004"), out.join("step-000009")).unwrap();
    refused("--steps 12", &[("--resume", &out.join("step-000009"))], "holds step 4");
    let output = finetune("--steps 3", &[("--resume", &out)]).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("holds step 4"), "{}", stderr(&output));
}

/// Something stands where the next checkpoint is prepared: that save fails, and the last one is as good as before.
#[test]
fn a_failing_save_leaves_the_last_checkpoint() {
    let dir = scratch("blocked");
    let out = dir.join("run");
    let straight = report("--steps 6", &dir, &[]);
    succeed(finetune("--steps 3 --save-every 3", &[("--out", &out)]));
    let blocker = out.join("step-000006.partial");
    std::fs::write(&blocker, "in the way").unwrap();
    refused("--steps 6 --save-every 3", &[("--resume", &out), ("--out", &out)], "step-000006");
    assert_eq!(checkpoints(&out), [3]);
    assert_eq!(std::fs::read(&blocker).unwrap(), b"in the way");
    let resumed = report("--steps 6", &dir, &[("--resume", &out), ("--out", &dir.join("elsewhere"))]);
    assert_eq!(bits(&straight), bits(&resumed));

    // A newer checkpoint that is damaged is passed over, and said to be.
    std::fs::remove_file(&blocker).unwrap();
    succeed(finetune("--steps 6 --save-every 3", &[("--resume", &out), ("--out", &out)]));
    let state = out.join("step-000006").join("state.safetensors");
    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    let output = finetune("--steps 4", &[("--resume", &out)]).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("passed over"), "{}", stderr(&output));
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_run_with_its_last_checkpoint() {
    let dir = scratch("interrupt");
    let (out, json) = (dir.join("run"), dir.join("interrupted.json"));
    let mut command = finetune("--steps 1000000 --save-every 3", &[("--out", &out), ("--json", &json)]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let wait = |limit: u64, what: &str, mut done: Box<dyn FnMut() -> bool + '_>| {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(limit), "{what} took more than {limit} s");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    wait(120, "the first checkpoint", Box::new(|| out.is_dir() && !checkpoints(&out).is_empty()));
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let mut status = None;
    wait(
        10,
        "the end of the run",
        Box::new(|| {
            status = child.try_wait().unwrap();
            status.is_some()
        }),
    );
    assert_eq!(status.and_then(|s| s.code()), Some(130));

    let report_of_it: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let stopped = report_of_it["steps"].as_u64().unwrap();
    assert_eq!(report_of_it["interrupted"], true);
    assert_eq!(losses(&report_of_it).len() as u64, stopped);
    assert_eq!(checkpoints(&out).last(), Some(&stopped));
    let resumed = report(&format!("--steps {}", stopped + 2), &dir, &[("--resume", &out)]);
    assert_eq!(losses(&resumed).len() as u64, stopped + 2);
    assert_eq!(bits(&resumed)[..stopped as usize], bits(&report_of_it)[..]);
}

#[test]
fn two_runs_do_not_write_into_one_directory() {
    let dir = scratch("locked");
    let mut command = finetune("--steps 100000", &[("--out", &dir)]);
    let mut first = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !std::fs::read_to_string(dir.join(".lock")).is_ok_and(|holder| holder.contains("process")) {
        assert!(started.elapsed() < Duration::from_secs(60), "the first run never started");
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = finetune("--steps 1", &[("--out", &dir)]).output().unwrap();
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(second.status.code(), Some(2));
    let message = stderr(&second);
    assert!(message.contains("another run writes into it") && message.contains(&first.id().to_string()), "{message}");
    // The lock of a process that was killed holds nobody up.
    succeed(finetune("--steps 1", &[("--out", &dir)]));
}

/// Stopped in its first method, a comparison goes on as a whole: `--resume` alone knows task, methods and options.
#[test]
fn a_comparison_is_resumed_as_a_whole() {
    let dir = scratch("comparison");
    let line = "--method lora,linear-probe --rank 4 --steps 6 --batch 16";
    let straight = report(line, &dir, &[]);
    let out = dir.join("run");
    succeed(finetune(&format!("{line} --save-every 3"), &[("--out", &out)]));
    // As if the run had been killed after three steps of the first.
    std::fs::remove_dir_all(out.join("linear-probe")).unwrap();
    std::fs::remove_dir_all(out.join("lora/step-000006")).unwrap();
    std::fs::create_dir(out.join("lora/step-000006.partial")).unwrap();
    refused("--rank 8", &[("--resume", &out)], "--rank");
    let resumed = report("", &dir, &[("--resume", &out)]);
    assert!(!out.join("lora/step-000006.partial").exists());
    let runs = |report: &Value| report["runs"].as_array().unwrap().iter().map(bits).collect::<Vec<_>>();
    assert_eq!(runs(&straight), runs(&resumed));
    assert_eq!(checkpoints(&out.join("linear-probe")), [3, 6]);
    refused("--task digits --method lora", &[("--resume", &out)], "leave --method out");

    let plan = out.join("plan.json");
    let text = std::fs::read_to_string(&plan).unwrap();
    std::fs::write(&plan, text.replace("\"clip\": 1.0", "\"clip\": -1.0")).unwrap();
    refused("", &[("--resume", &out)], "--clip");
    std::fs::write(&plan, "{").unwrap();
    refused("", &[("--resume", &out)], "plan.json");
}

/// The last method's mistake is found before the first is trained.
#[test]
fn every_method_is_checked_before_the_first_is_trained() {
    let message = refused("--method lora,ga-net --steps 100000", &[], "--task graph");
    assert!(!message.contains("step"), "{message}");
}

#[test]
fn a_resumed_run_knows_its_task_and_method() {
    let dir = scratch("knows");
    let out = dir.join("run");
    succeed(finetune("--task caption --method vl-pet --steps 2 --batch 4 --save-every 2", &[("--out", &out)]));
    let resumed = report("--steps 3", &dir, &[("--resume", &out)]);
    assert_eq!((&resumed["method"], &resumed["steps"]), (&Value::from("vl-pet"), &Value::from(3)));
    refused("--task digits", &[("--resume", &out)], "--task");
}

#[test]
fn directories_of_reports_are_made() {
    let dir = scratch("deep");
    let deep = dir.join("a/b/report.json");
    succeed(finetune("--method linear-probe --steps 1", &[("--json", &deep)]));
    assert!(deep.is_file());
}
