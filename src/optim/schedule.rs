//! Learning-rate schedules: a linear warm-up, then constant, linear or cosine decay to zero.
//!
//! With W warm-up steps and T in all, the multiplier of step t (counted from 0) is `(t + 1) / W` while t < W. After that, with
//! `p = (t − W) / (T − W)`: 1 (constant), `1 − p` (linear), `(1 + cos πp) / 2` (cosine); 0 from T on for the latter two.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    Constant,
    Linear,
    Cosine,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    pub lr: f64,
    pub decay: Decay,
    pub warmup_steps: u64,
    pub total_steps: u64,
}

impl Schedule {
    pub fn new(lr: f64, decay: Decay, warmup_steps: u64, total_steps: u64) -> Result<Self> {
        if !lr.is_finite() || lr < 0.0 {
            return Err(Error::value("schedule", "lr", "a finite number, 0 or more", lr));
        }
        if decay != Decay::Constant && warmup_steps > total_steps {
            return Err(Error::value("schedule", "warmup_steps", format!("at most {total_steps}"), warmup_steps));
        }
        Ok(Schedule { lr, decay, warmup_steps, total_steps })
    }

    pub fn constant(lr: f64) -> Result<Self> {
        Schedule::new(lr, Decay::Constant, 0, 0)
    }

    /// Learning rate of step `step`, counted from 0.
    pub fn lr_at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps) as f64 / span).min(1.0);
        let factor = match self.decay {
            Decay::Constant => 1.0,
            Decay::Linear => 1.0 - progress,
            Decay::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        };
        self.lr * factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_then_decay() {
        let s = Schedule::new(1.0, Decay::Linear, 4, 12).unwrap();
        assert_eq!([0, 3, 4, 8, 12, 99].map(|t| s.lr_at(t)), [0.25, 1.0, 1.0, 0.5, 0.0, 0.0]);
        let s = Schedule::new(2.0, Decay::Cosine, 0, 8).unwrap();
        assert_eq!((s.lr_at(0), s.lr_at(8)), (2.0, 0.0));
        assert!((s.lr_at(4) - 1.0).abs() < 1e-15);
        assert_eq!(Schedule::constant(3.0).unwrap().lr_at(1 << 40), 3.0);
    }

    #[test]
    fn impossible_settings_are_refused() {
        assert!(Schedule::new(f64::NAN, Decay::Constant, 0, 0).is_err());
        assert!(Schedule::new(-1.0, Decay::Constant, 0, 0).is_err());
        assert!(Schedule::new(1.0, Decay::Cosine, 9, 8).is_err());
    }
}
