//! `--device`, the same for every command.

use graftwork::{Device, Error, Result};

/// What `--device` accepts.
pub const HELP: &str = "cpu, cuda, cuda:N, emulated[:sm_80|:sm_90a] (slow and strict)";

/// The device of that name.
///
/// # Errors
/// [`Error::Value`] for no name of a device, others for a device that is not there; both say that it was `--device` who asked.
pub fn named(name: &str) -> Result<Device> {
    Device::parse(name).map_err(|error| match error {
        Error::Value { op, got, .. } => Error::Value { op, argument: "--device", expected: HELP.into(), got },
        other => other.within("--device"),
    })
}

/// A device that computes something: the named one, or else a GPU if there is one, or else the CPU.
///
/// # Errors
/// [`Error::NotExecuted`] for the one that only plans launches, in the name of the command `op`.
pub fn open(name: Option<&str>, op: &'static str) -> Result<Device> {
    let device = match name {
        Some(name) => named(name)?,
        None => Device::cuda(0).unwrap_or_else(|_| Device::cpu()),
    };
    if device.name() == "trace" {
        return Err(Error::NotExecuted { device: device.name(), op }.within("--device"));
    }
    Ok(device)
}
