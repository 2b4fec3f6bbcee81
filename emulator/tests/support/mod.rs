//! Shared by the tests: kernels compiled when nvcc is at hand (else the checked-in PTX), and small numeric helpers.
#![allow(dead_code)]

pub mod formats;
pub mod instructions;
pub mod layout;
pub mod program;
pub mod suite;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use ptx_emulator::{Arch, Device, Fault, LaunchConfig, Module, Report};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A tool of the CUDA compiler from `CUDA_HOME`, the repository's own `.cuda`, or the search path.
pub fn tool(name: &str) -> Option<PathBuf> {
    let mut places = Vec::new();
    if let Ok(p) = std::env::var("CUDA_HOME") {
        places.push(Path::new(&p).join("bin"));
    }
    places.push(root().join("../.cuda/bin"));
    if let Some(paths) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&paths));
    }
    places.into_iter().map(|p| p.join(name)).find(|p| p.is_file())
}

/// nvcc from `NVCC`, or from where the other tools are.
pub fn nvcc() -> Option<PathBuf> {
    std::env::var("NVCC").ok().map(PathBuf::from).filter(|p| p.is_file()).or_else(|| tool("nvcc"))
}

/// The PTX of `tests/kernels/<name>.cu` for an architecture such as `compute_80`.
pub fn ptx(name: &str, arch: &str) -> String {
    compiled(name, arch, name, &[])
}

/// The PTX of a gallery with every mistake mended.
pub fn mended(name: &str, arch: &str) -> String {
    compiled(name, arch, &format!("{name}_mended"), &["-DMENDED"])
}

fn compiled(name: &str, arch: &str, kept: &str, options: &[&str]) -> String {
    let source = root().join("tests/kernels").join(format!("{name}.cu"));
    if let Some(nvcc) = nvcc() {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        let unique = format!("{}-{}", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
        let out = std::env::temp_dir().join(format!("ptx-emulator-{unique}-{kept}.ptx"));
        let done = Command::new(&nvcc)
            .args(["-ptx", "-lineinfo", &format!("-arch={arch}"), "-o"])
            .arg(&out)
            .arg(&source)
            .args(options)
            .env("CUDA_HOME", nvcc.parent().and_then(Path::parent).unwrap_or(Path::new("/")))
            .output()
            .expect("nvcc can be started");
        assert!(done.status.success(), "nvcc refused {name}.cu:\n{}", String::from_utf8_lossy(&done.stderr));
        let text = std::fs::read_to_string(&out).expect("nvcc wrote the PTX");
        let _ = std::fs::remove_file(&out);
        return text;
    }
    let kept = root().join("tests/ptx").join(format!("{kept}.ptx"));
    std::fs::read_to_string(&kept).unwrap_or_else(|e| panic!("no nvcc, and {}: {e}", kept.display()))
}

pub fn module(name: &str) -> Module {
    Module::parse(&ptx(name, "compute_80")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Parameters in the order and with the alignment that C gives them.
#[derive(Default, Clone)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn new() -> Self {
        Params::default()
    }

    pub fn push(mut self, bytes: &[u8]) -> Self {
        while self.0.len() % bytes.len() != 0 {
            self.0.push(0);
        }
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u64(self, v: u64) -> Self {
        self.push(&v.to_le_bytes())
    }

    pub fn u32(self, v: u32) -> Self {
        self.push(&v.to_le_bytes())
    }

    pub fn i32(self, v: i32) -> Self {
        self.push(&v.to_le_bytes())
    }

    pub fn f32(self, v: f32) -> Self {
        self.push(&v.to_le_bytes())
    }

    /// Pads to a multiple, as the end of a structure is padded.
    pub fn pad(mut self, to: usize) -> Self {
        while self.0.len() % to != 0 {
            self.0.push(0);
        }
        self
    }
}

pub fn bytes_f32(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub fn bytes_u32(v: &[u32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// f32 to bf16 by cutting: exact for the small integers the tests use.
pub fn bytes_bf16(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

pub fn put(d: &mut Device, data: &[u8]) -> u64 {
    let a = d.alloc(data.len() as u64).expect("memory");
    d.copy_in(a, data).expect("copy");
    a
}

pub fn get_f32(d: &Device, a: u64, n: usize) -> Vec<f32> {
    let mut b = vec![0; n * 4];
    d.copy_out(&mut b, a).expect("copy");
    b.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().expect("4 bytes"))).collect()
}

pub fn get_u32(d: &Device, a: u64, n: usize) -> Vec<u32> {
    get_f32(d, a, n).iter().map(|x| x.to_bits()).collect()
}

/// Small integers, repeatable.
pub fn integers(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((s >> 16) % 9) as f32 - 4.0
        })
        .collect()
}

/// C[m, n] = A[m, k] · B, B given by a closure (k, n).
pub fn matmul(m: usize, n: usize, k: usize, a: &[f32], b: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k).map(|l| a[i * k + l] * b(l, j)).sum();
        }
    }
    c
}

pub fn launch(d: &mut Device, m: &Module, entry: &str, c: LaunchConfig, p: &Params) -> Result<Report, Box<Fault>> {
    d.launch(m, entry, &c, &p.0)
}

pub fn device() -> Device {
    Device::new(Arch::Sm80)
}
