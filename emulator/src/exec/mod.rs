//! Runs a decoded kernel: blocks, warps, groups of lanes that stand at the same instruction.

mod access;
mod atomic;
mod barrier;
pub mod block;
mod call;
mod collective;
mod copy;
pub mod grid;
pub mod lanes;
mod matrix;
mod mma;
mod print;
mod special;
mod step;
mod traffic;
pub mod warp;
