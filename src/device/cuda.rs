//! The CUDA driver, through cudarc.
use crate::device::launch::{LaunchSpec, Launcher};
use crate::error::{Error, Result};
pub struct Cuda;
impl Cuda {
    pub fn new(ordinal: usize) -> Result<Self> {
        Err(Error::DriverUnavailable { reason: format!("{ordinal}") })
    }
    /// # Safety
    pub unsafe fn borrowing(ordinal: usize, _: *mut std::ffi::c_void) -> Result<Self> {
        Cuda::new(ordinal)
    }
}
impl Launcher for Cuda {
    fn name(&self) -> String {
        "cuda".into()
    }
    fn capability(&self) -> u32 {
        90
    }
    fn allocate(&self, _: usize) -> Result<u64> {
        Err(Error::DriverUnavailable { reason: String::new() })
    }
    fn release(&self, _: u64, _: usize) {}
    fn write(&self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: usize) -> Result<()> {
        Ok(())
    }
    fn launch(&self, _: &LaunchSpec) -> Result<()> {
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}
