//! A strict CPU interpreter of PTX, the assembly language that CUDA compilers emit.
//!
//! ```no_run
//! use ptx_emulator::{Arch, Device, LaunchConfig, Module};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let module = Module::parse(&std::fs::read_to_string("kernel.ptx")?)?;
//! let mut device = Device::new(Arch::Sm80);
//! let x = device.alloc(1024)?;
//! device.copy_in(x, &[0; 1024])?;
//! let report = device.launch(&module, "scale", &LaunchConfig::new([1, 1, 1], [256, 1, 1]), &x.to_le_bytes())?;
//! println!("{} warp instructions", report.counters.total());
//! # Ok(()) }
//! ```
//!
//! It is stricter than hardware: what it does not know it refuses, and what a program may not rely on is a [`Fault`] that names
//! block, warp, lane, PTX line and, through `-lineinfo`, the CUDA source line.
#![deny(unsafe_code)]

mod check;
mod decode;
mod device;
mod exec;
mod memory;
mod numerics;
mod parse;
mod tensor_map;

pub use check::counters::{Counters, Report};
pub use check::fault::{Fault, FaultKind, Memory, OtherAccess};
pub use device::{Arch, Device, Entry, LaunchConfig, Module};
pub use exec::grid::Numerics;
pub use memory::global::MemoryError;
pub use parse::ParseError;
pub use tensor_map::{Swizzle, TensorMap, TensorMapError, TensorType};

/// The newcomer's page, so that its code is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
