//! The optimizer and its schedules.

mod adamw;
mod schedule;

pub use adamw::{AdamW, AdamWConfig};
pub use schedule::{Decay, Schedule};
