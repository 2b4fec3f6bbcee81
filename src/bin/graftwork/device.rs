//! `--device`, the same for every command.

use graftwork::{Device, Result};

/// What `--device` accepts.
pub const HELP: &str =
    "cpu, cuda, cuda:N, emulated[:sm_80|:sm_90a] (slow and strict); trace plans launches and runs none";

/// The named device; `None` asks for a GPU if there is one, else the CPU.
pub fn open(name: Option<&str>) -> Result<Device> {
    match name {
        Some(name) => Device::parse(name),
        None => Ok(Device::cuda(0).unwrap_or_else(|_| Device::cpu())),
    }
}
