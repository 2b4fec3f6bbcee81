//! Rows, their summary, and how they are shown.

use graftwork::testing::compare::Outcome;
use graftwork::{DType, Device, Error};
use serde::Serialize;

use super::case::Case;
use super::control::Control;
use crate::counted::{self, KernelRun};
use crate::output::{self, say};

#[derive(Serialize)]
pub struct Row {
    pub op: &'static str,
    pub pass: String,
    pub dtype: &'static str,
    pub shape: String,
    pub device: String,
    pub check: &'static str,
    /// In the check's own unit; null where it is not finite.
    pub error: f64,
    pub limit: f64,
    pub ok: bool,
    /// Where a failure lies, or why there is no result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Row {
    pub fn judged(case: &Case, device: &Device, dtype: DType, pass: &str, outcome: &Outcome) -> Self {
        let place = outcome.worst.filter(|_| !outcome.ok());
        Row {
            op: case.op,
            pass: pass.into(),
            dtype: dtype.name(),
            shape: case.shape.clone(),
            device: device.name(),
            check: outcome.check,
            error: outcome.error,
            limit: outcome.limit,
            ok: outcome.ok(),
            note: place.map(|(at, got, want)| format!("element {at} is {got:e}, expected {want:e}")),
        }
    }

    /// The call itself failed.
    pub fn refused(case: &Case, device: &Device, dtype: DType, error: &Error) -> Self {
        let outcome = Outcome { check: "run", error: f64::NAN, limit: 0.0, worst: None };
        Row { note: Some(error.to_string()), ..Row::judged(case, device, dtype, "all", &outcome) }
    }

    fn cells(&self) -> Vec<String> {
        let ok = match (self.ok, &self.note) {
            (true, _) => "yes".into(),
            (false, None) => "NO".into(),
            (false, Some(note)) => format!("NO: {note}"),
        };
        let number = |v: f64| if v == v.trunc() && v.abs() < 1e6 { format!("{v}") } else { format!("{v:.2e}") };
        vec![
            self.op.into(),
            self.pass.clone(),
            self.dtype.into(),
            self.shape.clone(),
            self.device.clone(),
            self.check.into(),
            number(self.error),
            number(self.limit),
            ok,
        ]
    }
}

#[derive(Serialize, Default)]
pub struct Summary {
    pub rows: usize,
    /// Rows that are not ok, and negative controls that were not rejected.
    pub failed: usize,
    pub seconds: f64,
    pub ops: Vec<OpSummary>,
}

#[derive(Serialize)]
pub struct OpSummary {
    pub op: &'static str,
    pub rows: usize,
    pub failed: usize,
    pub checks: Vec<&'static str>,
    /// Largest error over its limit, where the limit is not zero.
    pub worst: f64,
}

#[derive(Serialize)]
pub struct Report {
    pub version: &'static str,
    pub device: String,
    pub summary: Summary,
    pub controls: Vec<Control>,
    /// Every kernel that ran, on a device that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Vec<KernelRun>>,
    pub rows: Vec<Row>,
}

impl Report {
    pub fn new(device: &Device) -> Self {
        Report {
            version: env!("CARGO_PKG_VERSION"),
            device: device.name(),
            summary: Summary::default(),
            controls: Vec::new(),
            kernels: None,
            rows: Vec::new(),
        }
    }

    pub fn finish(&mut self, seconds: f64) {
        let mut ops: Vec<OpSummary> = Vec::new();
        for row in &self.rows {
            let at = ops.iter().position(|s| s.op == row.op).unwrap_or_else(|| {
                ops.push(OpSummary { op: row.op, rows: 0, failed: 0, checks: Vec::new(), worst: 0.0 });
                ops.len() - 1
            });
            let summary = &mut ops[at];
            summary.rows += 1;
            summary.failed += usize::from(!row.ok);
            if !summary.checks.contains(&row.check) {
                summary.checks.push(row.check);
            }
            let share = row.error / row.limit;
            if row.limit > 0.0 && (share > summary.worst || share.is_nan()) {
                summary.worst = share;
            }
        }
        let failed = self.rows.iter().filter(|r| !r.ok).count() + self.controls.iter().filter(|c| !c.rejected).count();
        self.summary = Summary { rows: self.rows.len(), failed, seconds, ops };
    }

    pub fn print(&self, all: bool) {
        let header = ["op", "pass", "dtype", "shape", "device", "check", "error", "limit", "ok"];
        let shown: Vec<_> = self.rows.iter().filter(|r| all || !r.ok).map(Row::cells).collect();
        if !shown.is_empty() {
            say!("{}", output::table(&header, &shown));
        }
        let ops: Vec<_> = self.summary.ops.iter().map(OpSummary::cells).collect();
        say!("{}", output::table(&["op", "rows", "failed", "worst/limit", "checks"], &ops));
        let rejected = self.controls.iter().filter(|c| c.rejected).count();
        say!("negative controls: {} wrong results were shown to the checks, {rejected} rejected", self.controls.len());
        for Control { op, pass, check, wrong, rejected, .. } in self.controls.iter().filter(|c| all || !c.rejected) {
            let verdict = if *rejected { "rejected, as it must be" } else { "NOT REJECTED" };
            say!("negative control  {op} {pass}  {check:<6}  {wrong}: {verdict}");
        }
        if let Some(runs) = &self.kernels {
            say!("\n{}", counted::summary(runs));
        }
        let Summary { rows, failed, seconds, .. } = &self.summary;
        say!("\n{rows} rows on {}, {failed} failed, {seconds:.1} s", self.device);
    }
}

impl OpSummary {
    fn cells(&self) -> Vec<String> {
        let worst = format!("{:.2}", self.worst);
        vec![self.op.into(), self.rows.to_string(), self.failed.to_string(), worst, self.checks.join(", ")]
    }
}
