//! The house has floors, and a module uses only those below its own. This test reads the sources and holds it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Lowest first. Modules of one floor may use each other only where the floor is one room (`error` and its neighbours).
const FLOORS: &[&[&str]] = &[
    &["error", "dtype", "shape", "rng"],
    &["kernels"],
    &["device"],
    &["tensor"],
    &["graph"],
    &["autograd"],
    &["testing"],
    &["ops"],
    &["format"],
    &["optim"],
    &["adapters"],
    &["models"],
];

fn floor(module: &str) -> usize {
    FLOORS
        .iter()
        .position(|f| f.contains(&module))
        .unwrap_or_else(|| panic!("src/{module} stands on no floor: add it to FLOORS in tests/floors.rs"))
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The source without the tests written in it, which end the file: they may look anywhere.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

/// Every `crate::x` in code, comments left out.
fn uses(text: &str) -> Vec<String> {
    let code = text.lines().map(|l| l.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
    code.match_indices("crate::")
        .map(|(at, _)| code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .filter(|name: &String| !name.is_empty())
        .collect()
}

#[test]
fn modules_use_only_floors_below_their_own() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = BTreeMap::new();
    let mut seen = 0;
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let module =
            inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_string();
        let is_test =
            file.file_stem().is_some_and(|s| s == "tests") || inside.components().any(|c| c.as_os_str() == "tests");
        if module == "lib" || module == "bin" || is_test {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for used in uses(without_tests(&text)) {
            seen += 1;
            let (own, other) = (floor(&module), floor(&used));
            let one_room = own == other && (own == 0 || module == used);
            if other > own || (other == own && !one_room) {
                wrong.insert(inside.display().to_string(), used);
            }
        }
    }
    assert!(seen > 50, "the test reads too little: {seen} uses found");
    assert!(wrong.is_empty(), "these look up: {wrong:#?}");
}
