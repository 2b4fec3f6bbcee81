//! The optimizer and its schedules.

mod adamw;
mod carry;
mod density;
mod ewc;
mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use carry::Carry;
pub use density::DensitySchedule;
pub use ewc::{Ewc, EwcConfig};
pub use schedule::{Decay, Schedule};
