//! The optimizer and its schedules.

mod adamw;
mod carry;
mod density;
mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use carry::Carry;
pub use density::DensitySchedule;
pub use schedule::{Decay, Schedule};
