//! Finds nvcc.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler, or why there is none.
pub fn find() -> Result<PathBuf, String> {
    if crate::is_set("GRAFTWORK_NO_KERNELS") {
        return Err("GRAFTWORK_NO_KERNELS is set".into());
    }
    let mut tried = Vec::new();
    let mut attempt = |origin: &str, path: PathBuf| {
        let there = path.is_file();
        if !there {
            tried.push(format!("{origin} ({})", path.display()));
        }
        there.then_some(path)
    };
    let explicit = env::var_os("NVCC").filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(nvcc) = explicit.and_then(|path| attempt("NVCC", path)) {
        return Ok(nvcc);
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        let home = env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(nvcc) = home.and_then(|home| attempt(variable, home.join("bin").join(executable()))) {
            return Ok(nvcc);
        }
    }
    // Only a search that comes this far depends on PATH, which differs between an editor and a shell.
    println!("cargo:rerun-if-env-changed=PATH");
    let on_path = env::var_os("PATH")
        .and_then(|path| env::split_paths(&path).map(|d| d.join(executable())).find(|candidate| candidate.is_file()));
    if let Some(nvcc) = on_path {
        return Ok(nvcc);
    }
    let own = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join(".cuda");
    for (origin, home) in [("the usual place", PathBuf::from("/usr/local/cuda")), ("this repository", own)] {
        if let Some(nvcc) = attempt(origin, home.join("bin").join(executable())) {
            return Ok(nvcc);
        }
    }
    Err(format!("no nvcc on PATH nor in {}", tried.join(", ")))
}

/// The disassembler of a test that looks at machine code: `$NVDISASM`, beside the compiler, or this repository's own. A build does
/// without it.
pub fn disassembler(nvcc: &Path) -> Option<PathBuf> {
    let own = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join(".cuda/bin/nvdisasm");
    let explicit = env::var_os("NVDISASM").map(PathBuf::from);
    explicit.into_iter().chain([nvcc.with_file_name("nvdisasm"), own]).find(|path| path.is_file())
}

/// What `nvcc --version` says: part of what decides whether an image is up to date.
pub fn version(nvcc: &Path) -> Result<String, String> {
    let output = Command::new(nvcc)
        .arg("--version")
        .output()
        .map_err(|e| format!("{} cannot be started: {e}", nvcc.display()))?;
    if !output.status.success() {
        return Err(format!("{} --version failed:\n{}", nvcc.display(), String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn executable() -> &'static str {
    if cfg!(windows) { "nvcc.exe" } else { "nvcc" }
}
