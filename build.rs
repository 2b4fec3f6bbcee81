//! Compiles `kernels/` with nvcc and hands the images, and what ptxas says of them, to the crate as `OUT_DIR/kernels.rs`.
//!
//! Needs no network, no GPU and no driver. Without nvcc the crate builds all the same and says so once; see the documentation of
//! `src/kernels/mod.rs` for the variables that steer this.

#[path = "build/compile.rs"]
mod compile;
#[path = "build/ptxas.rs"]
mod ptxas;
#[path = "build/sources.rs"]
mod sources;
#[path = "build/toolkit.rs"]
mod toolkit;

/// The table of kernels, the same file that the crate compiles.
#[allow(dead_code)]
#[path = "src/kernels/table/mod.rs"]
mod table;

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use compile::{Compiled, Image, Job};
use table::{Class, FAMILIES};

/// A folder where builds of several profiles keep what nvcc made; `OUT_DIR` without it.
const STORE: &str = "GRAFTWORK_KERNEL_STORE";

fn main() {
    println!("cargo:rustc-check-cfg=cfg(graftwork_kernels)");
    println!("cargo:rustc-check-cfg=cfg(graftwork_disassembler)");
    for file in ["build.rs", "build", "src/kernels/table", "scripts/fetch_nvcc.sh"] {
        // The script that fetches nvcc touches itself when it has done so.
        if Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    for variable in [
        "NVCC",
        "NVDISASM",
        "CUDA_HOME",
        "CUDA_PATH",
        "GRAFTWORK_CUDA_ARCHS",
        STORE,
        "GRAFTWORK_REQUIRE_KERNELS",
        "GRAFTWORK_NO_KERNELS",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let generated = match toolkit::find() {
        Ok(nvcc) => {
            println!("cargo:rerun-if-changed={}", nvcc.display());
            println!("cargo:rustc-cfg=graftwork_kernels");
            if let Some(nvdisasm) = toolkit::disassembler(&nvcc) {
                println!("cargo:rustc-cfg=graftwork_disassembler");
                println!("cargo:rustc-env=GRAFTWORK_NVDISASM={}", nvdisasm.display());
            }
            present(&build_all(&nvcc, &out))
        }
        Err(reason) if is_set("GRAFTWORK_REQUIRE_KERNELS") => {
            fail(&format!("GRAFTWORK_REQUIRE_KERNELS is set and the CUDA kernels cannot be built: {reason}"))
        }
        Err(reason) => {
            println!("cargo:warning=graftwork is built without its CUDA kernels: {reason}");
            absent(&reason)
        }
    };
    std::fs::write(out.join("kernels.rs"), generated).unwrap_or_else(|e| fail(&format!("writing kernels.rs: {e}")));
}

fn build_all(nvcc: &Path, out: &Path) -> Vec<Compiled> {
    let version = toolkit::version(nvcc).unwrap_or_else(|e| fail(&e));
    let extra = env::var("GRAFTWORK_CUDA_ARCHS").unwrap_or_default();
    let store = env::var_os(STORE).filter(|v| !v.is_empty()).map_or_else(|| out.join("kernels"), PathBuf::from);
    let mut watched = BTreeSet::new();
    let jobs: Result<Vec<Job>, String> = FAMILIES
        .iter()
        .map(|family| {
            let files = sources::of(family.source)?;
            let job = Job::new(family, targets(family.class, &extra), &files, &version, &store);
            watched.extend(files);
            job
        })
        .collect();
    let workers = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let compiled = jobs.and_then(|jobs| compile::run(&jobs, nvcc, workers)).unwrap_or_else(|e| fail(&e));
    for file in watched {
        println!("cargo:rerun-if-changed={file}");
    }
    for module in &compiled {
        // A store that somebody has emptied is filled again.
        println!("cargo:rerun-if-changed={}", module.ptx.path.display());
        for line in &module.warnings {
            println!("cargo:warning={line}");
        }
    }
    compiled
}

/// What a class is compiled to: the virtual architecture of its PTX, and the machines that get a cubin.
fn targets(class: Class, extra: &str) -> (String, Vec<String>) {
    match class {
        Class::Hopper => ("90a".into(), vec!["90a".into()]),
        Class::Portable => {
            let mut archs = vec!["80".to_string(), "90".to_string()];
            for arch in extra.split([',', ' ', ';']).map(|a| a.trim().trim_start_matches("sm_")) {
                if !arch.is_empty() && !archs.iter().any(|a| a == arch) {
                    archs.push(arch.to_string());
                }
            }
            ("80".into(), archs)
        }
    }
}

fn present(compiled: &[Compiled]) -> String {
    let mut code = String::from("pub(super) const MISSING: Option<&str> = None;\n");
    code.push_str("pub(super) static IMAGES: &[Image] = &[\n");
    let packed = |image: &Image| format!("Packed::new(include_bytes!({:?}), {})", image.path, image.bytes);
    for (family, module) in compiled.iter().enumerate() {
        let _ = writeln!(code, "    Image {{ family: {family}, ptx: {}, cubins: &[", packed(&module.ptx));
        for cubin in &module.cubins {
            let digits: String = cubin.arch.chars().filter(char::is_ascii_digit).collect();
            let _ = writeln!(
                code,
                "        Cubin {{ arch: \"sm_{}\", capability: {digits}, code: {} }},",
                cubin.arch,
                packed(&cubin.image)
            );
        }
        code.push_str("    ] },\n");
    }
    code.push_str("];\npub(super) static RESOURCES: &[Resources] = &[\n");
    for cubin in compiled.iter().flat_map(|m| &m.cubins) {
        for r in &cubin.usage {
            let _ = writeln!(
                code,
                "    Resources {{ symbol: {:?}, arch: \"sm_{}\", registers: {}, spilled_bytes: {}, stack_bytes: {}, \
                 shared_bytes: {} }},",
                r.symbol, cubin.arch, r.registers, r.spilled_bytes, r.stack_bytes, r.shared_bytes
            );
        }
    }
    let sizes: Vec<u32> = compiled.iter().flat_map(|m| m.param_bytes.iter().copied()).collect();
    let _ = writeln!(code, "];\npub(super) static PARAM_BYTES: &[u32] = &{sizes:?};");
    code
}

fn absent(reason: &str) -> String {
    format!(
        "pub(super) const MISSING: Option<&str> = Some({reason:?});\npub(super) static IMAGES: &[Image] = &[];\n\
         pub(super) static RESOURCES: &[Resources] = &[];\npub(super) static PARAM_BYTES: &[u32] = &[];\n"
    )
}

fn is_set(variable: &str) -> bool {
    env::var(variable).is_ok_and(|v| !v.is_empty() && v != "0")
}

/// Ends the build with a message that cargo shows as it is.
fn fail(message: &str) -> ! {
    eprintln!("graftwork: {message}");
    std::process::exit(1)
}
