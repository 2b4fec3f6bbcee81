//! The command: every program on both machines, and what they disagree about.

use std::collections::BTreeMap;
use std::io::Write;

use ptx_emulator::Numerics;

use super::driver::Driver;
use super::golden::{Golden, today};
use super::planted;
use super::support::program::{emulate, words};
use super::support::suite::{Agreement, Entry, all};

const HELP: &str = "Compares the emulator with a GPU, bit by bit.
  --record FILE    also writes what the GPU puts out, for replay
  --library FILE   the driver's library, instead of libcuda.so.1
  --isa FILE       writes the vectors worked out from the ISA; needs no GPU
  --list           names the programs
  --plant TOOL     runs one program with the fault that this tool of compute-sanitizer looks for
Exit status: 0 agreement, 1 a difference that is not declared, 2 no driver or no device, or a wrong argument.";

/// What the programs of one family showed.
#[derive(Default)]
struct Row {
    programs: usize,
    equal: usize,
    differing: usize,
    /// Equal words with the other order of summation.
    descending: usize,
    max_ulp: u64,
    worst: f64,
    /// Sum of errors toward (−) or away from (+) zero, in 2^-24 of the terms' magnitudes: of the GPU, and of the emulator.
    drift: [f64; 2],
    words: usize,
}

/// Does the result of a machine agree with the emulator's? The text says how not.
pub fn judge(e: &Entry, got: &[u8], emulated: &[u8]) -> Result<(), String> {
    let (g, x) = (words(got), words(emulated));
    if g.len() != x.len() {
        return Err(format!("{} bytes instead of {}", got.len(), emulated.len()));
    }
    for i in 0..g.len() {
        let fine = match e.agreement {
            _ if g[i] == x[i] => true,
            Agreement::Bits => false,
            Agreement::Approximate { ulps, absolute } => {
                let (a, b) = (f32::from_bits(g[i]), f32::from_bits(x[i]));
                (a - b).abs() <= absolute || distance(g[i], x[i]) <= u64::from(ulps)
            }
            Agreement::Sums { fraction } => {
                let (exact, magnitude) = e.exact[i];
                (f64::from(f32::from_bits(g[i])) - exact).abs() <= fraction * magnitude
            }
        };
        if !fine {
            return Err(format!("word {i} is {:#010x}, emulated {:#010x}", g[i], x[i]));
        }
    }
    Ok(())
}

/// Steps between two f32 on the line of all f32.
fn distance(a: u32, b: u32) -> u64 {
    let line = |x: u32| if x >> 31 == 1 { -i64::from(x & 0x7FFF_FFFF) } else { i64::from(x) };
    line(a).abs_diff(line(b))
}

impl Row {
    fn add(&mut self, e: &Entry, got: &[u8], ascending: &[u8], descending: &[u8]) {
        self.programs += 1;
        let (g, a, d) = (words(got), words(ascending), words(descending));
        for i in 0..g.len() {
            self.words += 1;
            self.equal += usize::from(g[i] == a[i]);
            self.differing += usize::from(g[i] != a[i]);
            self.descending += usize::from(g[i] == d[i]);
            if e.agreement != Agreement::Bits {
                self.max_ulp = self.max_ulp.max(distance(g[i], a[i]));
            }
            if let Some(&(exact, magnitude)) = e.exact.get(i)
                && matches!(e.agreement, Agreement::Sums { .. })
                && magnitude > 0.0
            {
                for (slot, bits) in [(0, g[i]), (1, a[i])] {
                    let error = (f64::from(f32::from_bits(bits)) - exact) / magnitude * 2f64.powi(24);
                    self.drift[slot] += error * exact.signum();
                    if slot == 0 {
                        self.worst = self.worst.max(error.abs());
                    }
                }
            }
        }
    }
}

fn argument<'a>(arguments: &'a [String], name: &str) -> Result<Option<&'a str>, String> {
    match arguments.iter().position(|a| a == name) {
        None => Ok(None),
        Some(i) => arguments.get(i + 1).map(|s| Some(s.as_str())).ok_or_else(|| format!("{name} needs a file")),
    }
}

fn unknown(arguments: &[String]) -> Option<&String> {
    let mut skip = false;
    arguments.iter().find(|a| {
        let value = std::mem::take(&mut skip);
        skip = ["--record", "--library", "--isa", "--plant"].contains(&a.as_str());
        !value && !skip && a.as_str() != "--list"
    })
}

/// Runs the command; what it returns is the exit status.
pub fn run(arguments: &[String], out: &mut dyn Write) -> i32 {
    match perform(arguments, out) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(text) => {
            let _ = writeln!(out, "{text}");
            2
        }
    }
}

fn perform(arguments: &[String], out: &mut dyn Write) -> Result<bool, String> {
    if let Some(a) = unknown(arguments) {
        return Err(if a == "--help" { HELP.into() } else { format!("unknown argument {a}\n{HELP}") });
    }
    let say = |out: &mut dyn Write, text: String| writeln!(out, "{text}").map_err(|e| e.to_string());
    let suite = all();
    if arguments.iter().any(|a| a == "--list") {
        for e in &suite {
            say(out, format!("{:14} {}", e.family, e.id))?;
        }
        return Ok(true);
    }
    if let Some(path) = argument(arguments, "--isa")? {
        let vectors = suite.into_iter().filter_map(|e| Some((e.id, e.want?))).collect();
        let golden = Golden { source: "worked out from PTX ISA 9.0".into(), driver: None, date: today(), vectors };
        std::fs::write(path, golden.to_json()).map_err(|e| format!("{path}: {e}"))?;
        return Ok(true);
    }
    if let Some(tool) = argument(arguments, "--plant")? {
        let program = planted::program(tool).ok_or_else(|| format!("--plant takes {}", planted::TOOLS.join(", ")))?;
        let driver = Driver::open(argument(arguments, "--library")?)?;
        driver.run(&program)?;
        say(out, format!("the fault for {tool} has run"))?;
        return Ok(true);
    }
    let record = argument(arguments, "--record")?;
    let driver = Driver::open(argument(arguments, "--library")?)?;
    let version = format!("{}.{}", driver.version / 1000, driver.version % 1000 / 10);
    say(out, format!("{}, compute capability {}, CUDA {version}", driver.name, driver.capability))?;
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let mut vectors = BTreeMap::new();
    let (mut wrong, mut skipped) = (Vec::new(), 0);
    for e in &suite {
        if driver.capability < 80 || (e.program.hopper() && driver.capability != 90) {
            skipped += 1;
            continue;
        }
        let got = driver.run(&e.program).map_err(|t| format!("{}: {t}", e.id))?;
        let emulated = |n| emulate(&e.program, n, 0).map_err(|f| format!("{}: {f}", e.id));
        let (ascending, descending) = (emulated(Numerics::Ascending)?, emulated(Numerics::Descending)?);
        rows.entry(e.family).or_default().add(e, &got, &ascending, &descending);
        if let Err(text) = judge(e, &got, &ascending) {
            wrong.push(format!("{}: {text}", e.id));
        }
        vectors.insert(e.id.clone(), got);
    }
    say(
        out,
        format!(
            "{:15} {:>8} {:>8} {:>9} {:>11} {:>8}",
            "family", "programs", "equal", "differing", "descending", "max ulp"
        ),
    )?;
    for (family, r) in &rows {
        let line = format!(
            "{family:15} {:>8} {:>8} {:>9} {:>11} {:>8}",
            r.programs, r.equal, r.differing, r.descending, r.max_ulp
        );
        say(out, line)?;
    }
    for (family, r) in rows.iter().filter(|(_, r)| r.worst > 0.0) {
        let mean = |i: usize| r.drift[i] / r.words as f64;
        say(
            out,
            format!(
                "{family}: in 2^-24 of the sum of the terms' magnitudes, the GPU's error is at most {:.2}, {:+.4} on average \
                 (negative: toward zero, truncation), the emulator's {:+.4} on average",
                r.worst,
                mean(0),
                mean(1)
            ),
        )?;
    }
    if skipped > 0 {
        say(out, format!("{skipped} programs need another compute capability and were not run"))?;
    }
    for w in &wrong {
        say(out, format!("DIFFERENT {w}"))?;
    }
    if let Some(path) = record {
        let golden = Golden { source: driver.name.clone(), driver: Some(version), date: today(), vectors };
        std::fs::write(path, golden.to_json()).map_err(|e| format!("{path}: {e}"))?;
        say(out, format!("wrote {path}"))?;
    }
    Ok(wrong.is_empty())
}
