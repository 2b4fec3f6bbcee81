//! Global and shared memory with their shadows.

pub mod global;
pub mod shared;
