//! Which files of `kernels/` go into a source.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The source and, through every `#include "…"`, its headers: paths from the crate's root, in order. The toolkit's own headers are
/// named in angle brackets, and its version stands for them.
pub fn of(source: &str) -> Result<BTreeSet<String>, String> {
    let mut found = BTreeSet::new();
    let mut open = vec![format!("kernels/{source}")];
    while let Some(file) = open.pop() {
        if found.contains(&file) {
            continue;
        }
        let text = fs::read_to_string(&file).map_err(|e| format!("{file}: {e}"))?;
        for header in text.lines().filter_map(included) {
            open.push(locate(&file, header)?);
        }
        found.insert(file);
    }
    Ok(found)
}

fn included(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("#include \"")?.split('"').next()
}

/// As the compiler looks for it: from `kernels/`, or beside the file that includes it.
fn locate(includer: &str, header: &str) -> Result<String, String> {
    let beside = Path::new(includer).parent().map(|folder| folder.join(header).display().to_string());
    let candidates = [Some(format!("kernels/{header}")), beside];
    let found = candidates.into_iter().flatten().find(|path| Path::new(path).is_file());
    found.ok_or_else(|| format!("{includer} includes {header:?}, which is not in kernels/"))
}
