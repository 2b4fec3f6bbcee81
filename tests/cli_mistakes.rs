//! What the commands say when they are asked for what cannot be, are stopped at a bad moment, or cannot write what they found.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn graftwork(line: &str, paths: &[(&str, &Path)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
    command.args(line.split_whitespace());
    if !line.contains("--device") {
        command.args(["--device", "cpu"]);
    }
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(line: &str, paths: &[(&str, &Path)]) -> Output {
    graftwork(line, paths).output().unwrap()
}

fn report(line: &str, dir: &Path, paths: &[(&str, &Path)]) -> Value {
    let json = dir.join("report.json");
    let mut all = paths.to_vec();
    all.push(("--json", &json));
    let output = run(line, &all);
    assert!(output.status.success(), "{line}\n{}", text(&output.stderr));
    serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap()
}

/// Exit code 2, and a message that names `word`.
fn refused(line: &str, paths: &[(&str, &Path)], word: &str) {
    let output = run(line, paths);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{line} {paths:?}\n{message}");
    assert!(message.contains(word), "{line} {paths:?}: no `{word}` in\n{message}");
    assert!(!message.contains("panicked"), "{message}");
}

fn scratch(test: &str) -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mistakes").join(test);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn bits(report: &Value) -> Vec<u64> {
    report["losses"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap().to_bits()).collect()
}

/// Whatever is wrong with a value, the message has the name of the option that it was given to.
#[test]
fn messages_name_their_option() {
    let file = scratch("named").join("file");
    std::fs::write(&file, "a file").unwrap();
    let below = file.join("below");
    for (line, word) in [
        ("--targets nope", "--targets: no module matches"),
        ("--targets q_proj,nope", "--targets: no module matches"),
        ("--targets regex:(", "--targets: "),
        ("--targets ,", "--targets"),
        ("--targets q_proj,q_proj", "q_proj comes twice"),
        ("--method ia3 --ia3-targets nope", "--ia3-targets: "),
        ("--method sparse-adapter --density 0.5 --places nope", "--places: "),
        ("--method s2ft --pairs fc1", "--pairs"),
        ("--method s2ft --pairs a:b", "--pairs: "),
        ("--method s2ft --pairs fc1:fc2,fc1:fc2", "fc1:fc2 comes twice"),
        (
            "--method block-sparse --moves-from 9 --moves-until 8",
            "`--moves-until` is 8, expected at least --moves-from, 9",
        ),
        ("--method adalora --ranks-from 9 --ranks-until 8", "`--ranks-until` is 8, expected at least --ranks-from, 9"),
        ("--method vl-pet --heads 3", "--heads: "),
        ("--method vl-pet --head-layout x", "--head-layout"),
        ("--method vl-pet --variant huge", "'huge' for '--variant"),
        ("--method vl-pet --variant large,auto", "or auto"),
        ("--method vl-pet --variant large,large", "each once"),
        ("--method compacter --products 7", "--products: "),
        ("--method sparse-adapter --width 4096 --large-sparse 2", "`--large-sparse` is 2, which makes 8192"),
        ("--method dual-lora --rank 1", "--rank: "),
        ("--method lora,lora", "lora twice"),
        ("--device tpu", "`--device` is tpu"),
        ("--device trace", "--device: trace records launches"),
        ("--alpha 1e300", "at most 3.4e38"),
        ("--seed -1", "expected a whole number from 0"),
        ("--save-every 5", "--save-every has no directory to write checkpoints to; pass --out DIR too"),
        ("--task graph --labels 100000", "--labels"),
        ("--task graph --labels 1000", "`--labels` is 1000, expected at most 1"),
        ("--task graph --labels 5,5", "with 5 twice"),
        ("--accumulate 1000", "`--accumulate` is 1000, expected at most 23, the micro-batches of 32"),
        ("--batch 100000", "`--batch` is 100000, expected at most"),
    ] {
        refused(&format!("finetune {line}"), &[], word);
    }
    let nowhere = Path::new("/nonexist");
    for (option, path, word) in [
        ("--out", &*below, "--out: "),
        ("--json", &below, "--json: "),
        ("--plot", &below, "--plot: "),
        ("--trunk", nowhere, "--trunk: "),
        ("--data", nowhere, "--data: "),
        ("--resume", nowhere, "--resume: /nonexist: is no directory"),
    ] {
        refused("finetune --steps 1", &[(option, path)], word);
    }
    for command in ["doctor", "verify --quick", "bench --quick"] {
        refused(command, &[("--json", &below)], "--json: ");
    }
}

/// Passed over in silence, an option would be believed.
#[test]
fn options_without_effect_are_refused() {
    for (line, word) in [
        ("--method lora --equal-params", "where a method after the first has a --rank"),
        ("--method lora,linear-probe --equal-params", "where a method after the first has a --rank"),
        ("--trial-steps 5", "--method vl-pet with --variant auto"),
        ("--method vl-pet --trial-steps 5", "with --variant auto"),
        ("--method vl-pet --decoder-places", "with --task caption"),
        ("--method vl-pet --value-rank 4", "with --task caption"),
        ("--method vl-pet --frozen-norms", "with --task caption"),
        ("--task caption --method vl-pet --real-tokens", "--variant small or auto"),
        ("--method vl-pet --variant small --gate-rank 4", "with --variant large or auto"),
        ("--eval-every 2", "with --json, --plot or --out"),
        ("--task graph --method linear-probe --top-k 3", "with --method ga-net or --plot"),
    ] {
        refused(&format!("finetune {line}"), &[], word);
    }
}

#[test]
fn two_options_do_not_write_to_one_place() {
    let dir = scratch("places");
    let (same, other) = (dir.join("same"), dir.join("x/../same"));
    std::fs::create_dir(dir.join("x")).unwrap();
    refused("finetune --steps 1", &[("--json", &same), ("--plot", &same)], "--json: ");
    refused("finetune --steps 1", &[("--json", &same), ("--plot", &other)], "is for --plot already");
    refused("finetune --steps 1", &[("--json", &same), ("--out", &same)], "is for --out already");
    refused("finetune --steps 1", &[("--plot", &same), ("--out", &same.join("run"))], "is for --out already");
    refused("bench --quick", &[("--json", &same), ("--plot", &same)], "is for --plot already");
    let with_slash = format!("{}/", same.display());
    refused("finetune --steps 1", &[("--json", Path::new(&with_slash))], "is a directory");
    assert!(!same.exists());
    let run = dir.join("run");
    report("finetune --method linear-probe --steps 1", &dir, &[("--out", &run), ("--plot", &run.join("plot.svg"))]);
}

/// Who reads the output must be able to rely on it.
#[cfg(target_os = "linux")]
#[test]
fn output_that_is_lost_is_a_failure() {
    let full = || Stdio::from(std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
    let json = scratch("full").join("report.json");
    for line in
        ["doctor", "finetune --method linear-probe --steps 1", "verify --quick --op scale", "bench --quick --op scale"]
    {
        let output = graftwork(line, &[("--json", &json)]).stdout(full()).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}\n{message}");
        assert!(message.contains("graftwork: standard output: "), "{line}\n{message}");
        // The run itself went on.
        std::fs::remove_file(&json).unwrap();
    }
    for line in ["--help", "finetune --help", "--version"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graftwork"));
        let output = command.args(line.split_whitespace()).stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(text(&output.stderr).contains("standard output"), "{line}");
    }
    // With nobody to tell there is still an exit code.
    let output = graftwork("finetune --rank 0", &[]).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let output = graftwork("finetune --targets nope", &[]).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// A gradient that blocks are chosen by is that of the whole model, the module beside the method included.
#[test]
fn every_form_that_changes_goes_with_maps_of_several_depths() {
    let blocks = "--density 0.1 --score-batches 1 --vce --vce-points 2 --warmup 2";
    let moves = "--moves-from 2 --moves-until 6 --moves-every 2";
    for line in [
        format!("--method block-sparse --density-start 0.05 {blocks} {moves}"),
        format!("--method block-sparse --score snip {blocks} {moves}"),
        format!("--method sparse-adapter --regrow 0.5 {blocks} {moves}"),
        format!("--method s2ft --both-sides {blocks}"),
        "--method sora --rank 4 --lambda 40 --dense-steps 2 --stages 2 --stage-steps 2 --vce --warmup 2".into(),
        "--method adalora --rank 4 --ranks-from 2 --ranks-until 6 --ranks-every 2 --vce --warmup 2".into(),
    ] {
        let dir = scratch("vce");
        let out = dir.join("run");
        let once = report(&format!("finetune {line} --steps 8"), &dir, &[]);
        assert_eq!(once["accuracy_after"], once["accuracy_reloaded"], "{line}");
        report(&format!("finetune {line} --steps 4 --save-every 4"), &dir, &[("--out", &out)]);
        let twice = report("finetune --steps 8", &dir, &[("--resume", &out)]);
        assert_eq!(bits(&once), bits(&twice), "{line}");
    }
}

/// What does not fit into the run is said, since a run may be gone on with.
#[test]
fn schedules_that_end_after_the_run_are_told() {
    for (line, words) in [
        (
            "--method adalora --ranks-until 50 --warmup 0",
            "--ranks-until takes ranks away until step 50, but this run ends at step 2",
        ),
        (
            "--method block-sparse --score random --moves-until 50 --warmup 0",
            "--moves-until moves blocks until step 50",
        ),
        ("--method sora --warmup 0", "prune ranks until step 1000"),
        ("--warmup 9", "--warmup raises the learning rate until step 9"),
    ] {
        let output = run(&format!("finetune {line} --steps 2"), &[]);
        assert!(output.status.success() && text(&output.stderr).contains(words), "{}", text(&output.stderr));
    }
    let output = run("finetune --steps 2 --warmup 1", &[]);
    assert!(!text(&output.stderr).contains("note:"), "{}", text(&output.stderr));
}

/// The slow reference in f64, in which a micro-batch is halved as in f32.
#[test]
fn f64_is_a_dtype_like_others() {
    let dir = scratch("f64");
    let of =
        |dtype: &str| report(&format!("finetune --dtype {dtype} --steps 2 --warmup 0"), &dir, &[])["losses"].clone();
    let (wide, narrow) = (of("f64"), of("f32"));
    for step in 0..2 {
        let (a, b) = (wide[step].as_f64().unwrap(), narrow[step].as_f64().unwrap());
        assert!(a != b && (a - b).abs() < 1e-5 * a, "{a} {b}");
    }
}

/// A directory belongs to one run, whatever of it is there.
#[test]
fn a_plan_and_checkpoints_of_others_do_not_mix() {
    let dir = scratch("mixed");
    let (several, single) = (dir.join("several"), dir.join("single"));
    let both = "finetune --method lora,linear-probe --steps 2 --batch 16 --save-every 2";
    let one = "finetune --method dora --steps 2 --batch 16 --save-every 2";
    report(both, &dir, &[("--out", &several)]);
    report(one, &dir, &[("--out", &single)]);
    refused(one, &[("--out", &several)], "holds checkpoints of another run");
    refused(both, &[("--out", &single)], "holds checkpoints of another run");
    refused("finetune", &[("--resume", &single), ("--out", &several)], "holds checkpoints of another run");
    refused(one, &[("--out", &single.join("step-000002"))], "is a checkpoint; pass another directory");
    // Put together by hand, or by a version that did not look.
    std::fs::copy(several.join("plan.json"), single.join("plan.json")).unwrap();
    for word in ["the plan of a comparison (lora, linear-probe)", "move plan.json away"] {
        refused("finetune --steps 4", &[("--resume", &single)], word);
    }
    std::fs::remove_file(single.join("plan.json")).unwrap();
    assert_eq!(report("finetune --steps 4", &dir, &[("--resume", &single)])["method"], "dora");

    // Of a plan nothing is passed over either.
    let plan = std::fs::read_to_string(several.join("plan.json")).unwrap();
    std::fs::write(several.join("plan.json"), plan.replace("\"rank\": 8", "\"rank\": 8, \"rnak\": 4")).unwrap();
    refused("finetune", &[("--resume", &several)], "unknown field `rnak`");
    // A file that is not ours is not overwritten.
    let foreign = dir.join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("plan.json"), "{\"holiday\": 1}").unwrap();
    refused("finetune --steps 1", &[("--out", &foreign)], "is not the plan of a run");
}

/// How counts are made equal is part of the plan.
#[test]
fn a_comparison_at_equal_counts_is_resumed_as_one() {
    let dir = scratch("equal");
    let out = dir.join("run");
    let line = "finetune --method dual-lora,lora --rank 4 --equal-params --steps 2 --batch 16 --save-every 2";
    let once = report(line, &dir, &[("--out", &out)]);
    std::fs::remove_dir_all(out.join("lora")).unwrap();
    let twice = report("finetune", &dir, &[("--resume", &out)]);
    assert_eq!(once["runs"][1]["recipe"]["rank"], 6);
    assert_eq!(once["runs"][1]["recipe"], twice["runs"][1]["recipe"]);
    refused("finetune --budget 4%", &[("--resume", &out)], "--budget (it has none)");
}

/// Trials that were cut off decide nothing, and are made again.
#[cfg(unix)]
#[test]
fn an_interrupted_trial_is_not_chosen() {
    let dir = scratch("trial");
    let (out, json) = (dir.join("run"), dir.join("interrupted.json"));
    let line = "finetune --task caption --method vl-pet --variant auto --trial-steps 100000 --steps 1 --batch 8";
    let mut command = graftwork(line, &[("--out", &out), ("--json", &json)]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let plan = out.join("plan.json");
    let start = Instant::now();
    while !plan.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "the run never started");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(1500));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(!said.contains("chosen") && !complained.contains("no --out"), "{said}\n{complained}");
    assert!(complained.contains("makes the choice again"), "{complained}");
    let stopped: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&stopped["interrupted"], &stopped["runs"]), (&Value::from(true), &Value::from(Vec::<Value>::new())));
    let text_of_plan = std::fs::read_to_string(&plan).unwrap();
    std::fs::write(&plan, text_of_plan.replace("\"trial_steps\": 100000", "\"trial_steps\": 2")).unwrap();
    let output = run("finetune", &[("--resume", &out)]);
    assert!(output.status.success() && text(&output.stdout).contains("chosen: "), "{}", text(&output.stderr));
}
