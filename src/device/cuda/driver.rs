//! One GPU of the driver: its context, its stream, its memory pool and all kernels, loaded once.

use std::ffi::{CString, c_void};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::error::{Error, Result};
use crate::kernels::{Class, Cubin, Image, KernelId};

/// Ready to launch, or why it never is on this GPU.
pub enum Function {
    Ready(sys::CUfunction),
    Refused(String),
}

pub struct Driver {
    /// `cuda:0`.
    pub name: String,
    /// As the driver calls it: `NVIDIA H200`.
    pub model: String,
    pub capability: u32,
    /// Newest CUDA version that the driver knows: (13, 0).
    pub version: (u32, u32),
    pub multiprocessors: u32,
    pub stream: sys::CUstream,
    /// By `KernelId::index`.
    pub functions: Vec<Function>,
    owns_stream: bool,
    device: sys::CUdevice,
    context: sys::CUcontext,
    modules: Vec<sys::CUmodule>,
    /// The device's pool, and its release threshold before us; `None` where memory comes unpooled.
    pool: Option<(sys::CUmemoryPool, u64)>,
}

// SAFETY: 1. contexts, streams, modules, functions and pools are handles that the driver lets any thread use; 2. every use makes the
// context current on its own thread first; 3. all fields but the driver's own state are constant after `open`.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver serialises what is put on one stream.
unsafe impl Sync for Driver {}

/// Whether there is a driver with a GPU of this number: before this is known, no other call may be made, as cudarc panics on a
/// library that is not there.
pub fn require(ordinal: usize) -> Result<()> {
    let unavailable = |reason: String| Error::DriverUnavailable { reason };
    // SAFETY: loads the library and lets it go again, which runs no code of it but its own initialisers.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("libcuda is not on this machine".into()));
    }
    result::init().map_err(|e| unavailable(format!("cuInit: {}", describe(e))))?;
    let version = version().map_err(|e| unavailable(format!("cuDriverGetVersion: {}", describe(e))))?;
    if version < (12, 0) {
        return Err(unavailable(format!("the driver knows CUDA {}.{}, and 12.0 is needed", version.0, version.1)));
    }
    let count = result::device::get_count().map_err(|e| unavailable(format!("cuDeviceGetCount: {}", describe(e))))?;
    if i32::try_from(ordinal).is_ok_and(|n| n < count) {
        return Ok(());
    }
    Err(unavailable(format!("cuda:{ordinal} was asked for, and the driver shows {count} GPUs")))
}

fn version() -> std::result::Result<(u32, u32), DriverError> {
    let mut number = 0;
    // SAFETY: writes one int.
    unsafe { sys::cuDriverGetVersion(&mut number) }.result()?;
    Ok((number as u32 / 1000, number as u32 % 1000 / 10))
}

impl Driver {
    /// Retains the primary context of GPU `ordinal`, which `require` has found, and loads every kernel that runs there.
    pub fn open(ordinal: usize, borrowed: Option<sys::CUstream>) -> Result<Self> {
        let version = version().map_err(|e| error("cuDriverGetVersion", e))?;
        let device = result::device::get(ordinal as i32).map_err(|e| error("cuDeviceGet", e))?;
        let attribute = |which| {
            // SAFETY: `device` came from the driver just now.
            unsafe { result::device::get_attribute(device, which) }.map_err(|e| error("cuDeviceGetAttribute", e))
        };
        use sys::CUdevice_attribute as Attribute;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let capability = (major * 10 + minor) as u32;
        let model = result::device::get_name(device).map_err(|e| error("cuDeviceGetName", e))?;
        if capability < 80 {
            return Err(Error::Unsupported {
                op: "cuda",
                what: format!("{model} has compute capability {major}.{minor}"),
                hint: "the kernels need 8.0 or later".into(),
            });
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let pooled = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? > 0;
        // SAFETY: as above; `Drop` releases what is retained here.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(|e| error("cuDevicePrimaryCtxRetain", e))?;
        // From here on `Drop` undoes what has been done so far, whatever fails.
        let mut driver = Driver {
            name: format!("cuda:{ordinal}"),
            model,
            capability,
            version,
            multiprocessors,
            stream: borrowed.unwrap_or(std::ptr::null_mut()),
            functions: Vec::with_capacity(KernelId::COUNT),
            owns_stream: false,
            device,
            context,
            modules: Vec::new(),
            pool: None,
        };
        driver.make_current().map_err(|e| error("cuCtxSetCurrent", e))?;
        if borrowed.is_none() {
            let kind = result::stream::StreamKind::NonBlocking;
            driver.stream = result::stream::create(kind).map_err(|e| error("cuStreamCreate", e))?;
            driver.owns_stream = true;
        }
        if pooled {
            driver.pool = Some(keep_freed_memory(device).map_err(|e| error("cuMemPoolSetAttribute", e))?);
        }
        driver.load()?;
        Ok(driver)
    }

    /// Makes the context current on the calling thread.
    pub fn make_current(&self) -> std::result::Result<(), DriverError> {
        if result::ctx::get_current()? == Some(self.context) {
            return Ok(());
        }
        // SAFETY: the context is retained for as long as this driver lives.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// Needs the context to be current, as do all below.
    pub fn synchronize(&self) -> std::result::Result<(), DriverError> {
        // SAFETY: the stream is ours, or borrowed from a caller who keeps it alive.
        unsafe { result::stream::synchronize(self.stream) }
    }

    pub fn allocate(&self, bytes: usize) -> std::result::Result<u64, DriverError> {
        let Some((pool, _)) = self.pool else {
            // SAFETY: the memory is bytes until something is written to it.
            return unsafe { result::malloc_sync(bytes) };
        };
        // SAFETY: 1. stream and pool are alive; 2. as above; 3. everything is done on this one stream.
        let first = unsafe { result::mem_pool::alloc_async(pool, bytes, self.stream) };
        if first != Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) {
            return first;
        }
        // What the pool keeps for later may be in pieces too small for this one: it is given back, then asked for again.
        self.synchronize()?;
        // SAFETY: the device's own pool lives as long as the device.
        unsafe { result::mem_pool::trim_to(pool, 0) }?;
        // SAFETY: as above.
        unsafe { result::mem_pool::alloc_async(pool, bytes, self.stream) }
    }

    /// # Safety
    /// `address` came from [`Driver::allocate`] and has not been freed.
    pub unsafe fn free(&self, address: u64) -> std::result::Result<(), DriverError> {
        match self.pool {
            // SAFETY: the caller's promise; the free takes its turn on the stream, behind every use.
            Some(_) => unsafe { result::free_async(address, self.stream) },
            // SAFETY: the caller's promise; the driver waits for every use itself.
            None => unsafe { result::free_sync(address) },
        }
    }

    fn load(&mut self) -> Result<()> {
        let mut loaded: Option<(&'static Image, std::result::Result<sys::CUmodule, String>)> = None;
        for id in KernelId::all() {
            let image = id.image()?;
            // Kernels of one family follow one another.
            if loaded.as_ref().is_none_or(|(of, _)| of.family != image.family) {
                let module = match choose(image.cubins, id.family().class, self.capability) {
                    Choice::Cubin(index) => Ok(self.module(id, &image.cubins[index].code.unpack()?)?),
                    Choice::Ptx => Ok(self.module(id, &image.ptx.unpack()?)?),
                    Choice::None => Err(format!("it is for sm_90a, and {} is sm_{}", self.model, self.capability)),
                };
                loaded = Some((image, module));
            }
            let function = match &loaded {
                Some((_, Ok(module))) => self.function(*module, id)?,
                Some((_, Err(reason))) => Function::Refused(reason.clone()),
                None => continue,
            };
            self.functions.push(function);
        }
        Ok(())
    }

    fn module(&mut self, id: KernelId, image: &[u8]) -> Result<sys::CUmodule> {
        // A copy that is aligned as machine code wants it and ends in the zero byte that text needs.
        let mut words = vec![0u64; image.len() / 8 + 1];
        bytemuck::cast_slice_mut(&mut words)[..image.len()].copy_from_slice(image);
        // SAFETY: 1. the image is a whole cubin, or PTX with a zero byte behind it; 2. the driver copies it; 3. the context is current.
        let module = unsafe { result::module::load_data(words.as_ptr().cast::<c_void>()) }.map_err(|e| {
            let (major, minor) = self.version;
            Error::Unsupported {
                op: "cuda",
                what: format!(
                    "the kernels of {} do not load on {} with a driver for CUDA {major}.{minor} ({})",
                    id.family().source,
                    self.model,
                    describe(e)
                ),
                hint: "update the driver, or build with an nvcc no newer than it".into(),
            }
        })?;
        self.modules.push(module);
        Ok(module)
    }

    fn function(&self, module: sys::CUmodule, id: KernelId) -> Result<Function> {
        let row = id.row();
        let name = CString::new(row.symbol).map_err(|_| Error::value("cuda", "symbol", "no zero byte", row.symbol))?;
        // SAFETY: the module is loaded.
        let function =
            unsafe { result::module::get_function(module, name) }.map_err(|e| error("cuModuleGetFunction", e))?;
        if row.shared_bytes > 0 {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was found just now.
            let outcome =
                unsafe { result::function::set_function_attribute(function, attribute, row.shared_bytes as i32) };
            if let Err(e) = outcome {
                return Ok(Function::Refused(format!(
                    "{} gives a block fewer than {} bytes of shared memory ({})",
                    self.model,
                    row.shared_bytes,
                    describe(e)
                )));
            }
        }
        Ok(Function::Ready(function))
    }
}

impl Drop for Driver {
    /// Errors have nobody left to go to: a context that is lost answers each call with its loss.
    fn drop(&mut self) {
        if self.make_current().is_ok() {
            let _ = self.synchronize();
            for &module in &self.modules {
                // SAFETY: loaded by us and unloaded once; what was launched from it is done.
                let _ = unsafe { result::module::unload(module) };
            }
            if self.owns_stream {
                // SAFETY: created by us and destroyed once.
                let _ = unsafe { result::stream::destroy(self.stream) };
            }
            if let Some((pool, mut threshold)) = self.pool {
                // SAFETY: as in `keep_freed_memory`.
                let _ = unsafe { set_release_threshold(pool, &mut threshold) };
                // SAFETY: the pool is the device's own.
                let _ = unsafe { result::mem_pool::trim_to(pool, 0) };
            }
        }
        // SAFETY: retained once by `open`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Lets the device's pool keep what is freed, which it otherwise hands back at every synchronisation. Returns the pool and what it
/// did before.
fn keep_freed_memory(device: sys::CUdevice) -> std::result::Result<(sys::CUmemoryPool, u64), DriverError> {
    // SAFETY: the device came from the driver and has pools.
    let pool = unsafe { result::device::get_default_mem_pool(device) }?;
    let (mut before, mut all) = (0u64, u64::MAX);
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: this attribute is a 64-bit number.
    unsafe { result::mem_pool::get_attribute(pool, threshold, (&raw mut before).cast()) }?;
    // SAFETY: as above.
    unsafe { set_release_threshold(pool, &mut all) }?;
    Ok((pool, before))
}

/// # Safety
/// `pool` is alive.
unsafe fn set_release_threshold(pool: sys::CUmemoryPool, bytes: &mut u64) -> std::result::Result<(), DriverError> {
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the caller's promise; this attribute is a 64-bit number.
    unsafe { result::mem_pool::set_attribute(pool, threshold, std::ptr::from_mut(bytes).cast()) }
}

#[derive(Debug, PartialEq)]
enum Choice {
    /// Which of the image's.
    Cubin(usize),
    Ptx,
    None,
}

/// Machine code runs on GPUs of the same major capability and the same or a later minor one: the closest such cubin, or else the
/// PTX. Code for sm_90a runs on 9.0 alone.
fn choose(cubins: &[Cubin], class: Class, capability: u32) -> Choice {
    let fits = |made_for: u32| match class {
        Class::Portable => made_for / 10 == capability / 10 && made_for <= capability,
        Class::Hopper => made_for == capability,
    };
    let fitting = cubins.iter().enumerate().filter(|(_, c)| fits(c.capability));
    match (fitting.max_by_key(|(_, c)| c.capability), class) {
        (Some((index, _)), _) => Choice::Cubin(index),
        (None, Class::Portable) => Choice::Ptx,
        (None, Class::Hopper) => Choice::None,
    }
}

pub fn error(call: &'static str, error: DriverError) -> Error {
    Error::Cuda { call, code: error.0 as u32, message: describe(error) }
}

/// The driver's own words.
pub fn describe(error: DriverError) -> String {
    let text = |t: std::result::Result<&std::ffi::CStr, DriverError>| {
        t.map_or_else(|_| "unknown error".into(), |t| t.to_string_lossy().into_owned())
    };
    format!("{}: {}", text(error.error_name()), text(error.error_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Packed;

    #[test]
    fn the_image_is_the_closest_cubin_or_the_ptx() {
        let code = Packed::new(&[], 0);
        let cubins = |of: &[(&'static str, u32)]| -> Vec<Cubin> {
            of.iter().map(|&(arch, capability)| Cubin { arch, capability, code }).collect()
        };
        let portable = cubins(&[("sm_80", 80), ("sm_86", 86), ("sm_90", 90)]);
        let on = |capability| choose(&portable, Class::Portable, capability);
        assert_eq!((on(80), on(86), on(87)), (Choice::Cubin(0), Choice::Cubin(1), Choice::Cubin(1)));
        assert_eq!((on(89), on(90)), (Choice::Cubin(1), Choice::Cubin(2)));
        assert_eq!((on(100), on(120)), (Choice::Ptx, Choice::Ptx));
        let hopper = cubins(&[("sm_90a", 90)]);
        assert_eq!(choose(&hopper, Class::Hopper, 90), Choice::Cubin(0));
        assert_eq!(choose(&hopper, Class::Hopper, 80), Choice::None);
        assert_eq!(choose(&hopper, Class::Hopper, 100), Choice::None);
    }
}
