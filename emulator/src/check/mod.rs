//! What the emulator checks and counts.

pub mod clocks;
pub mod counters;
pub mod fault;
pub mod race;
