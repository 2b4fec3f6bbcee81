//! Runs a decoded kernel: blocks, warps, groups of lanes that stand at the same instruction.

mod access;
mod atomic;
mod barrier;
pub mod block;
mod bulk;
mod call;
mod cluster;
mod collective;
mod copy;
pub mod grid;
mod hopper;
pub mod lanes;
mod matrix;
pub mod mbarrier;
mod mma;
mod print;
pub mod registers;
mod shared;
mod source;
mod special;
mod step;
mod tensormap;
mod traffic;
pub mod warp;
mod wgmma;
mod wmma;
