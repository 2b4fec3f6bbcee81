//! Runs nvcc: one PTX per family, one cubin per architecture from that PTX, several families at a time, and only those whose
//! sources, headers, flags or compiler have changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ptxas::{self, Usage};
use crate::table::Family;

/// One family to compile.
pub struct Job {
    family: &'static Family,
    /// Compute capability of the PTX: `80`, `90a`.
    virtual_arch: String,
    archs: Vec<String>,
    /// Path of the outputs, without extension.
    stem: PathBuf,
}

pub struct Compiled {
    pub ptx: PathBuf,
    /// Size of each kernel's argument, in the order of the table's rows.
    pub param_bytes: Vec<u32>,
    pub cubins: Vec<Cubin>,
}

pub struct Cubin {
    pub arch: String,
    pub path: PathBuf,
    pub usage: Vec<Usage>,
}

pub struct Outcome {
    /// In the order of the jobs; the error is that of the first job that failed.
    pub compiled: Result<Vec<Compiled>, String>,
    /// Files in `kernels/` that the sources include.
    pub headers: BTreeSet<String>,
    pub warnings: Vec<String>,
}

impl Job {
    pub fn new(family: &'static Family, (virtual_arch, archs): (String, Vec<String>), out: &Path) -> Self {
        // One source may serve several families, told apart by their constants.
        let name = family.source.replace(['/', '.'], "_");
        let constants = format!("{:016x}", hash(format!("{:?}", family.defines).as_bytes()));
        Job { family, virtual_arch, archs, stem: out.join(format!("{name}-{}", &constants[..8])) }
    }

    fn output(&self, extension: &str) -> PathBuf {
        PathBuf::from(format!("{}.{extension}", self.stem.display()))
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

pub fn run(jobs: &[Job], nvcc: &Path, version: &str, workers: usize) -> Outcome {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<JobResult>>> = Mutex::new(jobs.iter().map(|_| None).collect());
    std::thread::scope(|scope| {
        for _ in 0..workers.clamp(1, jobs.len().max(1)) {
            scope.spawn(|| {
                while let Some((index, job)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    jobs.get(i).map(|j| (i, j))
                } {
                    let result = compile(job, nvcc, version);
                    results.lock().expect("no worker panics")[index] = Some(result);
                }
            });
        }
    });
    let mut outcome = Outcome { compiled: Ok(Vec::new()), headers: BTreeSet::new(), warnings: Vec::new() };
    for result in results.into_inner().expect("no worker panics").into_iter().flatten() {
        outcome.headers.extend(result.headers);
        outcome.warnings.extend(result.warnings);
        match (&mut outcome.compiled, result.compiled) {
            (Ok(all), Ok(one)) => all.push(one),
            (all @ Ok(_), Err(e)) => *all = Err(e),
            (Err(_), _) => {}
        }
    }
    outcome
}

struct JobResult {
    compiled: Result<Compiled, String>,
    headers: Vec<String>,
    warnings: Vec<String>,
}

fn compile(job: &Job, nvcc: &Path, version: &str) -> JobResult {
    let mut warnings = Vec::new();
    let compiled = bring_up_to_date(job, nvcc, version, &mut warnings);
    JobResult { compiled, headers: dependencies(&job.output("d")), warnings }
}

fn bring_up_to_date(job: &Job, nvcc: &Path, version: &str, warnings: &mut Vec<String>) -> Result<Compiled, String> {
    let (ptx, stamp) = (job.output("ptx"), job.output("stamp"));
    let recipe = format!("{version}\n{}\n{:?} {:?}", nvcc.display(), job.ptx_arguments(), job.archs);
    let current = fs::read_to_string(&stamp).is_ok_and(|old| Some(old) == fingerprint(job, &recipe));
    if !current {
        let _ = fs::remove_file(&stamp);
        let mut arguments = job.ptx_arguments();
        arguments.extend(["-MMD".into(), "-MF".into(), job.output("d").display().to_string()]);
        arguments.extend([job.source(), "-o".into(), ptx.display().to_string()]);
        note_warnings(warnings, &invoke(nvcc, &arguments)?);
        check_symbols(job, &ptx)?;
        for arch in &job.archs {
            let mut arguments = Job::cubin_arguments(arch);
            let cubin = job.output(&format!("sm_{arch}.cubin"));
            arguments.extend([ptx.display().to_string(), "-o".into(), cubin.display().to_string()]);
            let report = invoke(nvcc, &arguments)?;
            note_warnings(warnings, &report);
            write(&job.output(&format!("sm_{arch}.log")), &report)?;
        }
        if let Some(fingerprint) = fingerprint(job, &recipe) {
            write(&stamp, &fingerprint)?;
        }
    }
    let cubins = job.archs.iter().map(|arch| {
        let log = job.output(&format!("sm_{arch}.log"));
        let report = fs::read_to_string(&log).map_err(|e| format!("{}: {e}", log.display()))?;
        let path = job.output(&format!("sm_{arch}.cubin"));
        Ok(Cubin { arch: arch.clone(), path, usage: ptxas::parse(&report) })
    });
    let param_bytes = check_symbols(job, &ptx)?;
    Ok(Compiled { ptx, param_bytes, cubins: cubins.collect::<Result<_, String>>()? })
}

/// What the outputs were made from: the recipe, and a hash of every file that went in. `None` if any of them, or an output, is gone.
fn fingerprint(job: &Job, recipe: &str) -> Option<String> {
    let mut text = recipe.to_string();
    for file in dependencies(&job.output("d")) {
        text += &format!("\n{file} {:016x}", hash(&fs::read(&file).ok()?));
    }
    let outputs = job.archs.iter().flat_map(|a| [format!("sm_{a}.cubin"), format!("sm_{a}.log")]);
    for output in outputs.chain(["ptx".into(), "d".into()]) {
        fs::metadata(job.output(&output)).ok()?;
    }
    Some(text)
}

/// The files of `kernels/` in a make rule `target : file file \ file`. The toolkit's own headers are covered by its version.
fn dependencies(rule: &Path) -> Vec<String> {
    let text = fs::read_to_string(rule).unwrap_or_default();
    let files = text.split_once(" :").or_else(|| text.split_once(':')).map_or("", |(_, files)| files);
    files.split_whitespace().filter(|f| f.starts_with("kernels/")).map(String::from).collect()
}

/// Size of each kernel's argument. The entry points of the PTX must be those of the table, no more and no fewer, and each takes one
/// struct by value.
fn check_symbols(job: &Job, ptx: &Path) -> Result<Vec<u32>, String> {
    let text = fs::read_to_string(ptx).map_err(|e| format!("{}: {e}", ptx.display()))?;
    // `.visible .entry symbol(`, then a line for each argument; a struct is `.param .align 8 .b8 symbol_param_0[64]`.
    let mut has: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    let mut arguments = None;
    for line in text.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once(".entry ") {
            arguments = Some(has.entry(rest.trim_end_matches('(').trim()).or_default());
        } else if let (Some(sizes), true) = (&mut arguments, line.starts_with(".param ")) {
            let size = line.contains(" .b8 ").then(|| line.split(['[', ']']).nth(1)?.parse().ok()).flatten();
            sizes.push(size.unwrap_or(0));
        } else if line.starts_with('{') {
            arguments = None;
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
fn note_warnings(warnings: &mut Vec<String>, report: &str) {
    let noted = |line: &&str| line.to_lowercase().contains("warning") || line.contains("Performance Loss");
    warnings.extend(report.lines().filter(noted).map(String::from));
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

/// FNV-1a, 64 bit: stable between compiler versions, unlike the standard hasher.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
