//! Runs nvcc: one PTX per family and one cubin per architecture from that PTX, several families at a time.
//!
//! What comes out is kept in a folder named after everything that went in, so that nothing is compiled twice: not after a change
//! elsewhere, nor for another profile where `GRAFTWORK_KERNEL_STORE` names a place for both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use miniz_oxide::deflate::compress_to_vec_zlib;

use crate::ptxas::{self, Usage};
use crate::table::Family;

/// One family to compile.
pub struct Job {
    family: &'static Family,
    /// Compute capability of the PTX: `80`, `90a`.
    virtual_arch: String,
    archs: Vec<String>,
    /// The folder of the outputs.
    folder: PathBuf,
}

pub struct Compiled {
    pub ptx: Image,
    /// Size of each kernel's argument, in the order of the table's rows.
    pub param_bytes: Vec<u32>,
    pub cubins: Vec<Cubin>,
    pub warnings: Vec<String>,
}

pub struct Cubin {
    pub arch: String,
    pub image: Image,
    pub usage: Vec<Usage>,
}

/// A file in zlib's format, and its size without.
pub struct Image {
    pub path: PathBuf,
    pub bytes: u64,
}

impl Job {
    /// `files` go into the family's source, itself among them; `version` is the compiler's.
    pub fn new(
        family: &'static Family,
        (virtual_arch, archs): (String, Vec<String>),
        files: &BTreeSet<String>,
        version: &str,
        store: &Path,
    ) -> Result<Self, String> {
        let mut job = Job { family, virtual_arch, archs, folder: PathBuf::new() };
        let arguments: Vec<_> = job.archs.iter().map(|arch| Job::cubin_arguments(arch)).collect();
        let mut key = hash(START, format!("{version}{:?}{arguments:?}", job.ptx_arguments()).as_bytes());
        for file in files {
            key = hash(hash(key, file.as_bytes()), &fs::read(file).map_err(|e| format!("{file}: {e}"))?);
        }
        job.folder = store.join(format!("{}-{key:016x}", family.source.replace(['/', '.'], "_")));
        Ok(job)
    }

    fn source(&self) -> String {
        format!("kernels/{}", self.family.source)
    }

    fn ptx_arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["-ptx", "-std=c++17", "-lineinfo", "-Ikernels"].map(String::from).into();
        arguments.push(format!("-arch=compute_{}", self.virtual_arch));
        arguments.extend(self.family.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        arguments
    }

    fn cubin_arguments(arch: &str) -> Vec<String> {
        vec!["-cubin".into(), "-lineinfo".into(), "-Xptxas=-v".into(), format!("-arch=sm_{arch}")]
    }
}

/// In the order of the jobs; the error is that of the first job that failed.
pub fn run(jobs: &[Job], nvcc: &Path, workers: usize) -> Result<Vec<Compiled>, String> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Result<Compiled, String>>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..workers.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while let Some((index, job)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(i).map(|j| (i, j))
                } {
                    let result = compile(job, nvcc);
                    results.lock().expect("no worker panics")[index] = Some(result);
                }
            });
        }
    });
    results.into_inner().expect("no worker panics").into_iter().flatten().collect()
}

fn compile(job: &Job, nvcc: &Path) -> Result<Compiled, String> {
    if !job.folder.is_dir() {
        // Another build may be at the same: whoever is first renames, and a folder is there whole or not at all.
        let partial = job.folder.with_extension(format!("partial-{}", std::process::id()));
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir_all(&partial).map_err(|e| format!("{}: {e}", partial.display()))?;
        fill(job, nvcc, &partial)?;
        if let Err(e) = fs::rename(&partial, &job.folder) {
            let _ = fs::remove_dir_all(&partial);
            if !job.folder.is_dir() {
                return Err(format!("{}: {e}", job.folder.display()));
            }
        }
    }
    load(job)
}

fn fill(job: &Job, nvcc: &Path, folder: &Path) -> Result<(), String> {
    let ptx = folder.join("ptx.ptx");
    let mut arguments = job.ptx_arguments();
    arguments.extend([job.source(), "-o".into(), ptx.display().to_string()]);
    write(&folder.join("ptx.log"), invoke(nvcc, &arguments)?.as_bytes())?;
    for arch in &job.archs {
        let cubin = folder.join(format!("sm_{arch}.cubin"));
        let mut arguments = Job::cubin_arguments(arch);
        arguments.extend([ptx.display().to_string(), "-o".into(), cubin.display().to_string()]);
        write(&cubin.with_extension("log"), invoke(nvcc, &arguments)?.as_bytes())?;
        pack(&cubin)?;
    }
    write(&folder.join("entries"), entries(&read(&ptx)?).as_bytes())?;
    pack(&ptx)
}

/// `name.extension` becomes `name.z`, compressed, and `name.size`.
fn pack(path: &Path) -> Result<(), String> {
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    write(&path.with_extension("size"), bytes.len().to_string().as_bytes())?;
    write(&path.with_extension("z"), &compress_to_vec_zlib(&bytes, 6))?;
    fs::remove_file(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn load(job: &Job) -> Result<Compiled, String> {
    let mut reports = read(&job.folder.join("ptx.log"))?;
    let mut cubins = Vec::new();
    for arch in &job.archs {
        let report = read(&job.folder.join(format!("sm_{arch}.log")))?;
        cubins.push(Cubin {
            arch: arch.clone(),
            image: image(job, &format!("sm_{arch}"))?,
            usage: ptxas::parse(&report),
        });
        reports += &report;
    }
    let param_bytes = param_bytes(job, &read(&job.folder.join("entries"))?)?;
    Ok(Compiled { ptx: image(job, "ptx")?, param_bytes, cubins, warnings: warnings(&reports) })
}

fn image(job: &Job, name: &str) -> Result<Image, String> {
    let size = job.folder.join(name).with_extension("size");
    let bytes = read(&size)?.parse().map_err(|e| format!("{}: {e}", size.display()))?;
    Ok(Image { path: job.folder.join(name).with_extension("z"), bytes })
}

/// A line for each entry point of a PTX: its symbol and the sizes of its arguments, 0 for one that is no struct.
fn entries(ptx: &str) -> String {
    // `.visible .entry symbol(`, then a line for each argument; a struct is `.param .align 8 .b8 symbol_param_0[64]`.
    let (mut found, mut in_arguments) = (String::new(), false);
    for line in ptx.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once(".entry ") {
            found = found + "\n" + rest.trim_end_matches('(').trim();
            in_arguments = true;
        } else if in_arguments && line.starts_with(".param ") {
            let size = line.contains(" .b8 ").then(|| line.split(['[', ']']).nth(1)).flatten();
            found = found + " " + size.unwrap_or("0");
        } else if line.starts_with('{') {
            in_arguments = false;
        }
    }
    found
}

/// Size of each kernel's argument. The entry points must be those of the table, no more and no fewer, and each takes one struct by
/// value.
fn param_bytes(job: &Job, entries: &str) -> Result<Vec<u32>, String> {
    let mut has: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for line in entries.lines() {
        let mut words = line.split(' ');
        if let Some(symbol) = words.next().filter(|s| !s.is_empty()) {
            has.insert(symbol, words.map(|size| size.parse().unwrap_or(0)).collect());
        }
    }
    let wants: BTreeSet<&str> = job.family.kernels.iter().map(|row| row.symbol).collect();
    let missing: Vec<&str> = wants.iter().filter(|symbol| !has.contains_key(*symbol)).copied().collect();
    let extra: Vec<&str> = has.keys().filter(|symbol| !wants.contains(*symbol)).copied().collect();
    if !missing.is_empty() || !extra.is_empty() {
        return Err(format!(
            "{} and the kernel table (src/kernels/table/) disagree; in the table alone: {missing:?}; in the source alone: {extra:?}",
            job.source()
        ));
    }
    let one_struct = |symbol: &str| match has[symbol][..] {
        [size] if size > 0 => Ok(size),
        _ => Err(format!("{}: {symbol} must take one struct, by value", job.source())),
    };
    job.family.kernels.iter().map(|row| one_struct(row.symbol)).collect()
}

/// Runs nvcc and returns what it printed.
fn invoke(nvcc: &Path, arguments: &[String]) -> Result<String, String> {
    let output = Command::new(nvcc)
        .args(arguments)
        .output()
        .map_err(|e| format!("{} cannot be started: {e}", nvcc.display()))?;
    let text = [output.stdout, output.stderr].map(|t| String::from_utf8_lossy(&t).into_owned()).concat();
    if output.status.success() {
        return Ok(text);
    }
    Err(format!("{} {} failed ({}):\n{text}", nvcc.display(), arguments.join(" "), output.status))
}

/// What ptxas only remarks on can cost as much: products of a warpgroup that it makes wait for one another.
fn warnings(report: &str) -> Vec<String> {
    let noted = |line: &&str| line.to_lowercase().contains("warning") || line.contains("Performance Loss");
    report.lines().filter(noted).map(String::from).collect()
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|e| format!("{}: {e}", path.display()))
}

const START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bit: stable between compiler versions, unlike the standard hasher.
fn hash(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
