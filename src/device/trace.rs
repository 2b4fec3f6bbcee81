//! The launcher that runs nothing: it hands out addresses and records every launch, so that planning code can be tested
//! anywhere, by the very path that a GPU takes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::launch::{LaunchSpec, Launcher};
use crate::error::{Error, Result};

pub struct Trace {
    capability: u32,
    next: AtomicU64,
    launched: Mutex<Vec<LaunchSpec>>,
}

impl Trace {
    pub fn new(capability: u32) -> Self {
        // Addresses start far from zero, so that a null pointer in a plan stands out.
        Trace { capability, next: AtomicU64::new(1 << 40), launched: Mutex::default() }
    }

    fn specs(&self) -> std::sync::MutexGuard<'_, Vec<LaunchSpec>> {
        self.launched.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Launcher for Trace {
    fn name(&self) -> String {
        "trace".into()
    }

    fn capability(&self) -> u32 {
        self.capability
    }

    /// Those of an H200 or an A100.
    fn multiprocessors(&self) -> u32 {
        if self.capability >= 90 { 132 } else { 108 }
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let span = (bytes as u64).max(1).next_multiple_of(256);
        Ok(self.next.fetch_add(span, Ordering::Relaxed))
    }

    fn release(&self, _: u64, _: usize) {}

    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::NotExecuted { device: self.name(), op: "read" })
    }

    fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }

    fn launch(&self, spec: &LaunchSpec) -> Result<()> {
        spec.check()?;
        self.specs().push(spec.clone());
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn recorded(&self) -> Vec<LaunchSpec> {
        self.specs().clone()
    }
}
