//! Negative controls: one deliberately wrong result for each check. A check that accepts it would accept anything, so then `verify`
//! fails whatever the ops do.

use graftwork::{DType, Device, Result};
use serde::Serialize;

use super::case::{Case, Judge, Output, Run};
use super::cases::{linear, norm};
use super::judge::{self, Standard};

#[derive(Serialize)]
pub struct Control {
    pub check: &'static str,
    /// What is wrong with the result.
    pub wrong: &'static str,
    pub error: f64,
    pub limit: f64,
    pub rejected: bool,
}

/// Runs an op on the device with the last element of x changed, as a kernel that misreads its tail would, and asks every check.
pub fn run(device: &Device) -> Result<Vec<Control>> {
    let frozen = |judge| linear::frozen(linear::Frozen(17, 33, 65, 8, true, 0.0), judge);
    let normed = || norm::normed(norm::Form::Layer, (17, 65), 1e-5);
    let mut controls = Vec::new();
    for case in [frozen(Judge::Exact), frozen(Judge::Bound), normed()] {
        let dtype = DType::BF16;
        let reference = Run::reference(dtype);
        let want = case.run(&reference)?;
        let magnitude = case.run(&Run { absolute: true, ..reference })?;
        let plain = case.run(&Run::on(&Device::cpu(), dtype))?;
        let right = case.run(&Run::on(device, dtype))?;
        let wrong = with_wrong_tail(&case, &Run::on(device, dtype))?;
        let (Some(want), Some(magnitude), Some(plain)) = (want.first(), magnitude.first(), plain.first()) else {
            continue;
        };
        let Some(got) = wrong.first() else { continue };
        let standard = Standard { want, magnitude: Some(magnitude), plain: Some(plain), storage: dtype };
        let mut see = |outcome: graftwork::testing::compare::Outcome, wrong| {
            let rejected = !outcome.ok();
            controls.push(Control {
                check: outcome.check,
                wrong,
                error: outcome.error,
                limit: outcome.limit,
                rejected,
            });
        };
        const TAIL: &str = "the last element of x read wrongly";
        match case.judge {
            Judge::Exact => {
                see(judge::exact(got, &standard), TAIL);
                see(judge::repeat(&right, &wrong), "two runs that differ");
            }
            Judge::Bound => see(judge::bound(got, &standard), TAIL),
            Judge::Smooth => {
                see(judge::ratio(got, &standard, plain), TAIL);
                see(judge::norm(got, &standard), TAIL);
            }
        }
    }
    Ok(controls)
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
