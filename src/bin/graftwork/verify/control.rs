//! Negative controls: deliberately wrong results. A check that accepts one would accept anything, so then `verify` fails whatever
//! the ops do.

use graftwork::testing::compare::Outcome;
use graftwork::{DType, Device, Result};
use serde::Serialize;

use super::case::{Case, Judge, Output, Run};
use super::cases::{linear, norm};
use super::judge::{self, Standard};

#[derive(Serialize)]
pub struct Control {
    pub op: &'static str,
    pub pass: String,
    pub check: &'static str,
    /// What is wrong with the result.
    pub wrong: &'static str,
    pub error: f64,
    pub limit: f64,
    pub rejected: bool,
}

impl Control {
    fn of(op: &'static str, pass: &str, wrong: &'static str, outcome: &Outcome) -> Self {
        let Outcome { check, error, limit, .. } = *outcome;
        Control { op, pass: pass.into(), check, wrong, error, limit, rejected: !outcome.ok() }
    }
}

const DTYPE: DType = DType::BF16;

/// Wrong operands to every check, and to each op's own checks a result with its largest element left unwritten.
pub fn run(device: &Device, cases: &[Case]) -> Result<Vec<Control>> {
    let mut controls = wrong_operands(device)?;
    let mut seen: Vec<(&str, Judge)> = Vec::new();
    for case in cases {
        if !seen.contains(&(case.op, case.judge))
            && let Some(wrong) = unwritten(case, device)?
        {
            seen.push((case.op, case.judge));
            controls.extend(wrong);
        }
    }
    Ok(controls)
}

/// What a result is held against.
struct Standards {
    want: Vec<Output>,
    magnitude: Vec<Output>,
    plain: Vec<Output>,
}

impl Standards {
    fn of(case: &Case) -> Result<Self> {
        let reference = Run::reference(DTYPE);
        Ok(Standards {
            want: case.run(&reference)?,
            magnitude: case.run(&Run { absolute: true, ..reference })?,
            plain: case.run(&Run::on(&Device::cpu(), DTYPE))?,
        })
    }

    /// Every check that a case of this kind is held to, of the result number `i`.
    fn judge(&self, judge: Judge, i: usize, got: &Output) -> Vec<Outcome> {
        let (Some(want), Some(plain)) = (self.want.get(i), self.plain.get(i)) else { return Vec::new() };
        let standard = Standard { want, magnitude: self.magnitude.get(i), plain: Some(plain), storage: DTYPE };
        match judge {
            Judge::Exact => vec![judge::exact(got, &standard)],
            Judge::Bound => vec![judge::bound(got, &standard)],
            Judge::Smooth if got.arithmetic.depth == 0 => vec![judge::exact(got, &standard)],
            Judge::Smooth => vec![judge::ratio(got, &standard, plain), judge::norm(got, &standard)],
        }
    }
}

/// Runs an op on the device with the last element of x changed, as a kernel that misreads its tail would, and asks every check.
fn wrong_operands(device: &Device) -> Result<Vec<Control>> {
    const TAIL: &str = "the last element of x read wrongly";
    let frozen = |judge| linear::frozen(linear::Frozen(17, 33, 65, 8, true, 0.0), judge);
    let normed = norm::normed(norm::Form::Layer, (17, 65), 1e-5);
    let mut controls = Vec::new();
    for case in [frozen(Judge::Exact), frozen(Judge::Bound), normed] {
        let right = case.run(&Run::on(device, DTYPE))?;
        let wrong = with_wrong_tail(&case, &Run::on(device, DTYPE))?;
        let outcomes = wrong.first().map(|got| Ok(Standards::of(&case)?.judge(case.judge, 0, got))).transpose()?;
        let control = |outcome: &Outcome| Control::of(case.op, "forward", TAIL, outcome);
        controls.extend(outcomes.iter().flatten().map(control));
        if case.judge == Judge::Exact {
            controls.push(Control::of(case.op, "all", "two runs that differ", &judge::repeat(&right, &wrong)));
        }
    }
    Ok(controls)
}

/// Shows each of a case's results with its largest element at zero, as if it had not been written (or, where all are zero, one that
/// is not); `None` where a result is empty.
fn unwritten(case: &Case, device: &Device) -> Result<Option<Vec<Control>>> {
    const UNWRITTEN: &str = "one element left unwritten";
    let right = case.run(&Run::on(device, DTYPE))?;
    if right.iter().any(|output| output.values.is_empty()) {
        return Ok(None);
    }
    let standards = Standards::of(case)?;
    let mut controls = Vec::new();
    for (i, mut wrong) in right.into_iter().enumerate() {
        let largest = (0..wrong.values.len()).max_by(|&a, &b| wrong.values[a].abs().total_cmp(&wrong.values[b].abs()));
        let Some(at) = largest else { continue };
        wrong.values[at] = if wrong.values[at] == 0.0 { 1.0 } else { 0.0 };
        let outcomes = standards.judge(case.judge, i, &wrong);
        controls.extend(outcomes.iter().map(|outcome| Control::of(case.op, &wrong.pass, UNWRITTEN, outcome)));
    }
    Ok(Some(controls))
}

/// Every result of a case whose x has its last element wrong.
fn with_wrong_tail(case: &Case, run: &Run) -> Result<Vec<Output>> {
    case.run_with(run, |name, values| {
        if name == "x"
            && let Some(last) = values.last_mut()
        {
            // Moved, not zeroed: integers may be zero already.
            *last += 1.0;
        }
    })
}
