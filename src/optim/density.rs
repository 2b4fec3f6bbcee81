//! How many blocks exist at a step: a start, an end, and a cubic between them.
//!
//! ```text
//! d(t) = d_T + (d_0 − d_T) · (1 − (t − t_0) / (t_1 − t_0))³        d_0 until t_0, d_T from t_1 on
//! ```
//!
//! Falling (`d_0 > d_T`) it prunes fast while there is much to prune; rising (`d_0 < d_T`) it is progressive fine-tuning: few blocks first,
//! most of the others soon, the final pattern for the rest of the run. Blocks move at `t_0`, then every `every` steps, and at `t_1` for
//! the last time.
//!
//! Source: the cubic of Zhu and Gupta, "To prune, or not to prune", 2017, as AdaLoRA uses it for ranks.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DensitySchedule {
    /// d_0, in (0, 1].
    pub start: f64,
    /// d_T, in (0, 1].
    pub end: f64,
    /// t_0.
    pub first_step: u64,
    /// t_1.
    pub last_step: u64,
    /// Steps between moves.
    pub every: u64,
}

const OP: &str = "density_schedule";

impl DensitySchedule {
    pub fn new(start: f64, end: f64, first_step: u64, last_step: u64, every: u64) -> Result<Self> {
        let schedule = DensitySchedule { start, end, first_step, last_step, every };
        schedule.check()?;
        Ok(schedule)
    }

    /// The same density throughout.
    pub fn constant(density: f64) -> Result<Self> {
        DensitySchedule::new(density, density, 0, 0, 1)
    }

    /// For a schedule that comes from a file.
    pub fn check(&self) -> Result<()> {
        for (argument, density) in [("start", self.start), ("end", self.end)] {
            if !(density > 0.0 && density <= 1.0) {
                return Err(Error::value(OP, argument, "a density above 0 and at most 1", density));
            }
        }
        if self.last_step < self.first_step {
            return Err(Error::value(OP, "last_step", format!("at least {}", self.first_step), self.last_step));
        }
        if self.every == 0 {
            return Err(Error::value(OP, "every", "at least 1", 0));
        }
        Ok(())
    }

    /// The density that step `step` trains at.
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.first_step && step < self.last_step {
            return self.start;
        }
        if step >= self.last_step {
            return self.end;
        }
        let done = (step - self.first_step) as f64 / (self.last_step - self.first_step) as f64;
        self.end + (self.start - self.end) * (1.0 - done).powi(3)
    }

    /// Whether blocks move before step `step`. Never before the first: what a run starts with is chosen, not moved.
    pub fn moves_at(&self, step: u64) -> bool {
        let within = step > 0 && step >= self.first_step && step <= self.last_step;
        within && (step == self.last_step || (step - self.first_step).is_multiple_of(self.every))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (1 − x)³ at the quarters is 27/64, 1/8, 1/64.
    #[test]
    fn the_cubic_has_its_golden_values_in_both_directions() {
        for (start, end) in [(0.5, 0.1), (0.05, 0.2)] {
            let schedule = DensitySchedule::new(start, end, 100, 500, 50).unwrap();
            let cubic = |share: f64| end + (start - end) * share;
            let golden = [
                (0, start),
                (100, start),
                (200, cubic(27.0 / 64.0)),
                (300, cubic(1.0 / 8.0)),
                (400, cubic(1.0 / 64.0)),
                (500, end),
                (9999, end),
            ];
            for (step, density) in golden {
                assert!((schedule.at(step) - density).abs() < 1e-15, "step {step}");
            }
        }
    }

    #[test]
    fn moves_come_at_their_interval_and_at_the_end() {
        let schedule = DensitySchedule::new(0.1, 0.2, 10, 25, 10).unwrap();
        let moves: Vec<u64> = (0..100).filter(|&t| schedule.moves_at(t)).collect();
        assert_eq!(moves, [10, 20, 25]);
        let constant = DensitySchedule::constant(0.3).unwrap();
        assert_eq!((0..100).filter(|&t| constant.moves_at(t)).count(), 0);
        assert_eq!([constant.at(0), constant.at(7)], [0.3, 0.3]);
    }

    #[test]
    fn densities_and_steps_that_make_no_sense_are_refused() {
        for (start, end, first, last, every, word) in [
            (0.0, 0.5, 0, 1, 1, "start"),
            (0.5, 1.1, 0, 1, 1, "end"),
            (f64::NAN, 0.5, 0, 1, 1, "start"),
            (0.5, -0.1, 0, 1, 1, "end"),
            (0.5, 0.5, 2, 1, 1, "last_step"),
            (0.5, 0.5, 0, 1, 0, "every"),
        ] {
            let error = DensitySchedule::new(start, end, first, last, every).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
