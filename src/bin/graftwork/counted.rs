//! What an emulated device counted, as `verify` and `bench` report it.

use graftwork::device::{Counters, KernelCounters};
use graftwork::kernels::KernelId;
use serde::Serialize;

/// One kernel's launches together.
#[derive(Serialize)]
pub struct KernelRun {
    pub kernel: &'static str,
    #[serde(flatten)]
    pub counters: Counters,
}

pub fn runs(kernels: KernelCounters) -> Vec<KernelRun> {
    kernels.into_iter().map(|(id, counters)| KernelRun { kernel: id.symbol(), counters }).collect()
}

/// How many kernels of the table ran, and how often.
pub fn summary(runs: &[KernelRun]) -> String {
    let launches: u64 = runs.iter().map(|r| r.counters.launches).sum();
    let instructions: u64 = runs.iter().map(|r| r.counters.instructions).sum();
    format!(
        "{} of the table's {} kernels ran emulated, in {launches} launches of {} warp instructions",
        runs.len(),
        KernelId::COUNT,
        count(instructions)
    )
}

/// A count in five digits at most.
pub fn count(n: u64) -> String {
    match n {
        0..100_000 => n.to_string(),
        100_000..10_000_000 => format!("{:.0}k", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.0}M", n as f64 / 1e6),
        _ => format!("{:.0}G", n as f64 / 1e9),
    }
}
