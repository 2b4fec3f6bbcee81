//! The cross-check itself: recorded vectors replayed, and its way through a driver exercised with a library that only pretends.

#[path = "../examples/cross_check/compare.rs"]
mod compare;
#[path = "../examples/cross_check/driver.rs"]
mod driver;
#[path = "../examples/cross_check/golden.rs"]
mod golden;
#[path = "../examples/cross_check/planted.rs"]
mod planted;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use golden::Golden;
use ptx_emulator::{FaultKind, Numerics};
use support::program::emulate;
use support::suite::{Agreement, all};

fn cross_check(arguments: &[&str]) -> (i32, String) {
    let mut out = Vec::new();
    let arguments: Vec<String> = arguments.iter().map(|s| s.to_string()).collect();
    let code = compare::run(&arguments, &mut out);
    (code, String::from_utf8(out).expect("text"))
}

#[test]
fn recorded_vectors_are_reproduced() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let suite = all();
    let mut files = 0;
    for file in std::fs::read_dir(&folder).expect("the folder") {
        let path = file.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("readable");
        let golden = Golden::from_json(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(golden.vectors.len() >= 40, "{}: {} vectors", path.display(), golden.vectors.len());
        for (id, bytes) in &golden.vectors {
            let e = suite.iter().find(|e| e.id == *id).unwrap_or_else(|| panic!("{}: no program {id}", path.display()));
            let emulated = emulate(&e.program, Numerics::Ascending, 3).unwrap_or_else(|f| panic!("{id}: {f}"));
            compare::judge(e, bytes, &emulated)
                .unwrap_or_else(|t| panic!("{} ({}): {id}: {t}", path.display(), golden.source));
        }
        files += 1;
    }
    assert!(files > 0);
}

/// The checked-in file holds what the formulas say today.
#[test]
fn vectors_from_the_isa_are_up_to_date() {
    let text = include_str!("golden/isa.json");
    let golden = Golden::from_json(text).expect("well-formed");
    let want = all().into_iter().filter_map(|e| Some((e.id, e.want?))).collect();
    assert_eq!(golden.source, "worked out from PTX ISA 9.0");
    assert!(golden.vectors == want, "run the example with --isa tests/golden/isa.json");
}

#[test]
fn every_planted_fault_is_one() {
    for tool in planted::TOOLS {
        let program = planted::program(tool).expect("a program");
        let kind = emulate(&program, Numerics::Ascending, 0).expect_err(tool).kind;
        let right = match tool {
            "memcheck" => matches!(kind, FaultKind::OutOfBounds { write: true, .. }),
            "racecheck" => matches!(kind, FaultKind::Race { .. } | FaultKind::LaneCollision { .. }),
            "initcheck" => matches!(kind, FaultKind::UninitialisedMemory { .. }),
            _ => matches!(kind, FaultKind::Divergent { .. }),
        };
        assert!(right, "{tool}: {kind:?}");
    }
    let (code, text) = cross_check(&["--plant", "everything"]);
    assert!(code == 2 && text.contains("memcheck"), "{text}");
}

#[test]
fn every_program_runs_and_names_are_unique() {
    let mut names = std::collections::HashSet::new();
    for e in all() {
        assert!(names.insert(e.id.clone()), "{}", e.id);
        let a =
            emulate(&e.program, Numerics::Ascending, 0).unwrap_or_else(|f| panic!("{}: {f}\n{}", e.id, e.program.text));
        let d = emulate(&e.program, Numerics::Descending, 1).unwrap_or_else(|f| panic!("{}: {f}", e.id));
        compare::judge(&e, &a, &d).unwrap_or_else(|t| panic!("{}: {t}", e.id));
        if matches!(e.agreement, Agreement::Bits) {
            assert!(a == d, "{}", e.id);
        }
    }
    assert!(names.len() > 120, "{} programs", names.len());
}

/// ptxas takes every program: the list holds no PTX that only the emulator understands.
#[test]
fn the_assembler_takes_every_program() {
    let Some(ptxas) = support::tool("ptxas") else {
        println!("no ptxas: not checked");
        return;
    };
    // One file for each architecture would clash in its names, so they are numbered.
    for arch in ["sm_80", "sm_90a"] {
        let mut text = support::program::header(arch);
        let mut shared = false;
        for (i, e) in all().iter().filter(|e| e.program.hopper() == (arch == "sm_90a")).enumerate() {
            let mut body = e.program.text.split_once(".address_size 64\n").expect("the header").1.to_string();
            if let Some(rest) = body.strip_prefix(".extern .shared .align 1024 .b8 buffer[];\n") {
                body = if std::mem::replace(&mut shared, true) { rest.into() } else { body };
            }
            text += &body.replace(".entry k(", &format!(".entry k{i}("));
        }
        let path = std::env::temp_dir().join(format!("ptx-emulator-{}-{arch}.ptx", std::process::id()));
        std::fs::write(&path, text).expect("written");
        let done = Command::new(&ptxas)
            .args(["-O0", &format!("-arch={arch}"), "-o", "/dev/null"])
            .arg(&path)
            .output()
            .expect("ptxas starts");
        assert!(done.status.success(), "{arch}: {}", String::from_utf8_lossy(&done.stderr));
        let _ = std::fs::remove_file(&path);
    }
}

/// Builds the pretended driver with some defines; none where there is no C compiler.
fn pretended(name: &str, defines: &[String]) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/libcuda.c");
    let out = std::env::temp_dir().join(format!("ptx-emulator-{}-{name}.so", std::process::id()));
    let done = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(&out)
        .args(defines)
        .arg(source)
        .output();
    match done {
        Ok(d) if d.status.success() => Some(out),
        Ok(d) => panic!("{}", String::from_utf8_lossy(&d.stderr)),
        Err(_) => {
            println!("no C compiler: not checked");
            None
        }
    }
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ptx-emulator-{}-{name}", std::process::id()))
}

#[test]
fn without_a_driver_there_is_a_message_and_a_status() {
    let (code, text) = cross_check(&["--library", "/nonexistent/libcuda.so.1"]);
    assert_eq!(code, 2);
    assert!(text.contains("no CUDA driver"), "{text}");
    assert_eq!(cross_check(&["--frob"]).0, 2);
    assert_eq!(cross_check(&["--record"]).0, 2);
    let (code, text) = cross_check(&["--list"]);
    assert_eq!(code, 0);
    assert!(text.lines().count() > 120);
}

#[test]
fn errors_of_the_driver_are_told() {
    for (name, define, message) in [
        ("init", "-DINIT=999", "cuInit: pretended error (999)"),
        ("none", "-DDEVICES=0", "finds no device"),
        ("load", "-DLOAD=218", "cuModuleLoadDataEx: pretended error (218)\npretended log"),
        ("launch", "-DLAUNCH=700", "cuLaunchKernel: pretended error (700)"),
        ("lacking", "-DLACKING", "the driver lacks a function"),
    ] {
        let Some(library) = pretended(name, &[define.into()]) else { return };
        let (code, text) = cross_check(&["--library", library.to_str().expect("a path")]);
        assert_eq!(code, 2, "{name}: {text}");
        assert!(text.contains(message), "{name}: {text}");
        let _ = std::fs::remove_file(library);
    }
}

/// The pretended driver checks what it is given and answers with the emulator's own results.
#[test]
fn results_come_back_through_the_driver_and_are_recorded() {
    let suite = all();
    let mut answers = Vec::new();
    let mut places = Vec::new();
    for e in &suite {
        places.push(answers.len());
        answers.extend(emulate(&e.program, Numerics::Descending, 0).unwrap_or_else(|f| panic!("{}: {f}", e.id)));
    }
    let file = temporary("answers");
    std::fs::write(&file, &answers).expect("written");
    let define = format!("-DANSWERS=\"{}\"", file.display());
    let Some(library) = pretended("answers", &[define]) else { return };
    let record = temporary("record.json");
    let arguments = ["--library", library.to_str().expect("a path"), "--record", record.to_str().expect("a path")];
    let (code, text) = cross_check(&arguments);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("Pretended GPU, compute capability 90, CUDA 13.0"), "{text}");
    let golden = Golden::from_json(&std::fs::read_to_string(&record).expect("recorded")).expect("well-formed");
    assert_eq!(golden.vectors.len(), suite.len());
    assert_eq!((golden.source.as_str(), golden.driver.as_deref()), ("Pretended GPU", Some("13.0")));
    // One flipped bit: in a defined result it is a difference, in the last place of an approximation it is not.
    let mut flip = |family: &str| {
        let i = suite.iter().position(|e| e.family == family).expect("the family");
        answers[places[i]] ^= 1;
        std::fs::write(&file, &answers).expect("written");
        let got = cross_check(&arguments[..2]);
        answers[places[i]] ^= 1;
        (got.0, got.1, suite[i].id.clone())
    };
    let (code, text, id) = flip("integer");
    assert!(code == 1 && text.contains(&format!("DIFFERENT {id}: word 0")), "{text}");
    let (code, text, _) = flip("approximations");
    assert_eq!(code, 0, "{text}");
    for path in [file, library, record] {
        let _ = std::fs::remove_file(path);
    }
}
