//! Reads what `ptxas -v` reports.

/// What one kernel takes on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub symbol: String,
    pub registers: u32,
    pub spilled_bytes: u32,
    pub stack_bytes: u32,
    /// Static shared memory.
    pub shared_bytes: u32,
}

/// The report names an entry function first and then gives its figures, on two lines.
pub fn parse(report: &str) -> Vec<Usage> {
    let mut found: Vec<Usage> = Vec::new();
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let symbol = rest.split('\'').next().unwrap_or_default().to_string();
            found.push(Usage { symbol, ..Usage::default() });
        } else if let Some(usage) = found.last_mut() {
            if line.contains("bytes stack frame") {
                usage.stack_bytes = before(line, " bytes stack frame");
                usage.spilled_bytes = before(line, " bytes spill stores") + before(line, " bytes spill loads");
            } else if line.contains(" registers") {
                usage.registers = before(line, " registers");
                usage.shared_bytes = before(line, " bytes smem");
            }
        }
    }
    found
}

/// The number that stands right before `words`; 0 if they do not occur.
fn before(line: &str, words: &str) -> u32 {
    let Some(at) = line.find(words) else { return 0 };
    let digits = line[..at].rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}
