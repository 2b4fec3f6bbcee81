//! The account of what backward keeps alive. A buffer saved by several nodes is held, and counted, once.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::tensor::Tensor;

#[derive(Clone, Debug, Default)]
pub struct Ledger {
    held: HashMap<usize, Held>,
    retained: usize,
    peak: usize,
    rows: BTreeMap<&'static str, LedgerRow>,
}

#[derive(Clone, Debug)]
struct Held {
    bytes: usize,
    times: usize,
}

/// What one kind of op has recorded since the ledger began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerRow {
    pub nodes: usize,
    /// Bytes that these nodes were the first to hold.
    pub bytes: usize,
}

impl Ledger {
    /// Bytes kept alive for backward now.
    pub fn retained_bytes(&self) -> usize {
        self.retained
    }

    /// The most that was ever kept alive at once, recomputation in checkpoints included.
    pub fn peak_bytes(&self) -> usize {
        self.peak
    }

    pub fn rows(&self) -> impl Iterator<Item = (&'static str, LedgerRow)> + '_ {
        self.rows.iter().map(|(&op, &row)| (op, row))
    }

    pub fn nodes(&self) -> usize {
        self.rows.values().map(|r| r.nodes).sum()
    }

    pub(crate) fn node(&mut self, op: &'static str) {
        self.rows.entry(op).or_default().nodes += 1;
    }

    pub(crate) fn hold(&mut self, op: &'static str, tensor: &Tensor) {
        let bytes = tensor.buffer().bytes();
        let held = self.held.entry(tensor.buffer().id()).or_insert(Held { bytes, times: 0 });
        held.times += 1;
        if held.times == 1 {
            self.retained += bytes;
            self.peak = self.peak.max(self.retained);
            self.rows.entry(op).or_default().bytes += bytes;
        }
    }

    pub(crate) fn release(&mut self, tensor: &Tensor) {
        let id = tensor.buffer().id();
        let Some(held) = self.held.get_mut(&id) else { return };
        held.times -= 1;
        if held.times == 0 {
            self.retained -= held.bytes;
            self.held.remove(&id);
        }
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24} {:>6} {:>14}", "op", "nodes", "bytes held")?;
        for (op, row) in self.rows() {
            writeln!(f, "{op:<24} {:>6} {:>14}", row.nodes, row.bytes)?;
        }
        writeln!(f, "{:<24} {:>6} {:>14}", "retained now", "", self.retained)?;
        write!(f, "{:<24} {:>6} {:>14}", "peak", "", self.peak)
    }
}
