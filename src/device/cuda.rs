//! The CUDA driver, through cudarc's thin layer over it: nothing here allocates, looks up a name or uploads anything to launch
//! a kernel, so that a step can be captured in a graph.
//!
//! The driver is loaded at run time. A machine without one gets [`Error::DriverUnavailable`], before any other call is made.
//! An error that CUDA cannot recover from poisons the device: every later call names the launch after which it showed.
//! `GRAFTWORK_SYNC=1` waits after each launch, so that the name is that of the culprit.

mod driver;

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::device::launch::{GpuInfo, LaunchSpec, Launcher, MAX_PARAMS};
use crate::device::tensor_map::{Swizzle, TensorMap};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels::{self, KernelId};
use driver::{Driver, Function};

pub struct Cuda {
    driver: Driver,
    health: Health,
    /// Index of the last kernel launched, plus one.
    last: AtomicU32,
    synchronous: bool,
}

impl Cuda {
    pub fn new(ordinal: usize) -> Result<Self> {
        Cuda::on(ordinal, None)
    }

    /// # Safety
    /// 1. `stream` is a live `CUstream` of the primary context of GPU `ordinal`; 2. it outlives the device and every buffer of it;
    /// 3. it is not being captured while tensors are read back or written.
    pub unsafe fn borrowing(ordinal: usize, stream: *mut c_void) -> Result<Self> {
        Cuda::on(ordinal, Some(stream.cast()))
    }

    fn on(ordinal: usize, stream: Option<sys::CUstream>) -> Result<Self> {
        driver::require(ordinal)?;
        kernels::available()?;
        let synchronous = std::env::var("GRAFTWORK_SYNC").is_ok_and(|v| !v.is_empty() && v != "0");
        let driver = Driver::open(ordinal, stream)?;
        Ok(Cuda { driver, health: Health::default(), last: AtomicU32::new(0), synchronous })
    }

    /// The start of every call: refuses a device that is lost, hands over what went wrong while a buffer was dropped, and makes the
    /// context current on this thread.
    fn enter(&self) -> Result<()> {
        if let Some(loss) = self.health.loss.get() {
            return Err(loss.error(&self.driver.name));
        }
        if self.health.has_deferred.swap(false, Ordering::AcqRel)
            && let Some(error) = self.health.deferred().take()
        {
            return Err(error);
        }
        self.judge("cuCtxSetCurrent", self.driver.make_current())
    }

    /// The end of every call: an error becomes a typed one, and one that CUDA does not recover from poisons the device.
    fn judge<T>(&self, call: &'static str, outcome: std::result::Result<T, DriverError>) -> Result<T> {
        outcome.map_err(|error| {
            if !is_sticky(error.0 as u32) {
                return driver::error(call, error);
            }
            let last = self.last.load(Ordering::Acquire);
            let kernel = last.checked_sub(1).and_then(|index| KernelId::all().nth(index as usize));
            let first = match kernel {
                Some(kernel) if self.synchronous => kernel.symbol().to_string(),
                Some(kernel) => format!("{} or a launch before it (GRAFTWORK_SYNC=1 tells which)", kernel.symbol()),
                None => call.to_string(),
            };
            self.health.lose(first, driver::describe(error)).error(&self.driver.name)
        })
    }

    /// Keeps an error of a call that can return none.
    fn defer<T>(&self, outcome: Result<T>) {
        if let Err(error) = outcome {
            self.health.deferred().get_or_insert(error);
            self.health.has_deferred.store(true, Ordering::Release);
        }
    }

    fn wait(&self) -> Result<()> {
        self.judge("cuStreamSynchronize", self.driver.synchronize())
    }

    fn out_of_memory(&self, requested: usize) -> Error {
        let free = result::mem_get_info().ok().map(|(free, _)| free);
        Error::OutOfMemory { device: self.driver.name.clone(), requested, free }
    }
}

impl Launcher for Cuda {
    fn name(&self) -> String {
        self.driver.name.clone()
    }

    fn capability(&self) -> u32 {
        self.driver.capability
    }

    fn multiprocessors(&self) -> u32 {
        self.driver.multiprocessors
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        // Zero bytes get an address of their own, too.
        let outcome = self.driver.allocate(bytes.max(1));
        match outcome {
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(self.out_of_memory(bytes)),
            other => self.judge("cuMemAllocFromPoolAsync", other),
        }
    }

    fn release(&self, address: u64, _: usize) {
        // A lost device has lost its memory, too.
        if self.health.loss.get().is_some() {
            return;
        }
        let current = self.judge("cuCtxSetCurrent", self.driver.make_current());
        self.defer(current.and_then(|()| {
            // SAFETY: `address` came from `allocate` of this driver and a buffer gives it back once, when it is dropped.
            self.judge("cuMemFreeAsync", unsafe { self.driver.free(address) })
        }));
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        self.enter()?;
        if data.is_empty() {
            return Ok(());
        }
        let stream = self.driver.stream;
        // SAFETY: 1. `address` starts a range of at least `data.len()` bytes of a live buffer of this device: tensors check their
        // layout against their buffer; 2. the stream is the device's one; 3. `data` is not let go before the copy is done: pinned
        // memory, and any memory on machines that share page tables, is read after the call has returned.
        self.judge("cuMemcpyHtoDAsync", unsafe { result::memcpy_htod_async(address, data, stream) })?;
        self.wait()
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.enter()?;
        if data.is_empty() {
            return Ok(());
        }
        let stream = self.driver.stream;
        // SAFETY: as in `write`, with `data` exclusively borrowed until the copy is done. If waiting fails, the context is lost and
        // copies nothing more.
        self.judge("cuMemcpyDtoHAsync", unsafe { result::memcpy_dtoh_async(data, address, stream) })?;
        self.wait()
    }

    fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: 1. both addresses start ranges of at least `bytes` bytes of live buffers of this device; 2. all work on them is in
        // the order of this one stream.
        let outcome = unsafe { result::memcpy_dtod_async(target, source, bytes, self.driver.stream) };
        self.judge("cuMemcpyDtoDAsync", outcome)
    }

    fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as in `copy`; every element type has all zeros as a value.
        let outcome = unsafe { result::memset_d8_async(address, 0, bytes, self.driver.stream) };
        self.judge("cuMemsetD8Async", outcome)
    }

    fn launch(&self, spec: &LaunchSpec) -> Result<()> {
        spec.check()?;
        let function = match &self.driver.functions[spec.kernel.index()] {
            Function::Ready(function) => *function,
            Function::Refused(reason) => {
                return Err(Error::Launch { kernel: spec.kernel.symbol(), reason: reason.clone() });
            }
        };
        self.enter()?;
        // SAFETY: 1. the function belongs to a module that is unloaded only with the driver; 2. `check` has held grid, block, shared
        // memory and the size of the parameters against what was compiled; 3. the addresses in the parameters are those of
        // tensors alive at this call, whose buffers are freed in the order of the same stream.
        let outcome = unsafe { start(function, spec, self.driver.stream) };
        match outcome {
            Ok(()) => self.last.store(spec.kernel.index() as u32 + 1, Ordering::Release),
            Err(error) if is_sticky(error.0 as u32) => return self.judge("cuLaunchKernel", Err(error)),
            Err(error) => {
                return Err(Error::Launch { kernel: spec.kernel.symbol(), reason: driver::describe(error) });
            }
        }
        if self.synchronous { self.wait() } else { Ok(()) }
    }

    fn synchronize(&self) -> Result<()> {
        self.enter()?;
        self.wait()
    }

    fn gpu_info(&self) -> Result<Option<GpuInfo>> {
        self.enter()?;
        let (free_bytes, total_bytes) = self.judge("cuMemGetInfo", result::mem_get_info())?;
        Ok(Some(GpuInfo {
            name: self.driver.model.clone(),
            capability: self.driver.capability,
            driver_version: self.driver.version,
            multiprocessors: self.driver.multiprocessors,
            free_bytes,
            total_bytes,
        }))
    }
}

/// What is known of a device that CUDA has given up.
struct Loss {
    first: String,
    reason: String,
}

impl Loss {
    fn error(&self, device: &str) -> Error {
        Error::Poisoned { device: device.into(), first: self.first.clone(), reason: self.reason.clone() }
    }
}

#[derive(Default)]
struct Health {
    loss: OnceLock<Loss>,
    deferred: Mutex<Option<Error>>,
    /// Spares the calls that follow the lock.
    has_deferred: AtomicBool,
}

impl Health {
    /// The first loss stays.
    fn lose(&self, first: String, reason: String) -> &Loss {
        self.loss.get_or_init(|| Loss { first, reason })
    }

    fn deferred(&self) -> std::sync::MutexGuard<'_, Option<Error>> {
        self.deferred.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Errors after which a context answers every call with the same error.
fn is_sticky(code: u32) -> bool {
    // 4: deinitialised; 214, 220: memory or link faults; 700, 702, 709, 710: illegal address, timeout, destroyed, assert;
    // 714..=719: stack, instruction, alignment, address space, program counter, launch failure; 999: unknown.
    matches!(code, 4 | 214 | 220 | 700 | 702 | 709 | 710 | 714..=719 | 999)
}

#[repr(align(128))]
struct Aligned([MaybeUninit<u8>; MAX_PARAMS]);

/// Has the driver encode a map, which computes and touches no GPU.
///
/// # Safety
/// `to` is valid for writing one map.
unsafe fn encode(map: &TensorMap, to: *mut sys::CUtensorMap) -> std::result::Result<(), DriverError> {
    use sys::CUtensorMapDataType as Kind;
    let kind = match map.dtype {
        DType::F16 => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::BF16 => Kind::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        // Others have been refused by the check of the launch.
        _ => Kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    };
    let swizzle = match map.swizzle {
        Swizzle::B32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        Swizzle::B64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        Swizzle::B128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let (dims, strides) = ([map.cols, map.rows], [map.stride()]);
    let (tile, steps) = ([map.tile_cols(), map.tile_rows], [1, 1]);
    // SAFETY: 1. the caller's promise on `to`; 2. sizes, box and steps have two entries, strides one, as two dimensions need; 3. the
    // address is only encoded.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            to,
            kind,
            2,
            map.address as *mut c_void,
            dims.as_ptr(),
            strides.as_ptr(),
            tile.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
        .result()
    }
}

/// Puts one launch on the stream.
///
/// # Safety
/// `function` is loaded in the current context, `spec` has passed its check (so that its parameters are as long as the kernel reads),
/// and every address in them is valid when the kernel runs.
unsafe fn start(
    function: sys::CUfunction,
    spec: &LaunchSpec,
    stream: sys::CUstream,
) -> std::result::Result<(), DriverError> {
    // The driver reads the struct where it lies, so it is moved to the alignment that a tensor map in it wants.
    let mut aligned = Aligned([const { MaybeUninit::uninit() }; MAX_PARAMS]);
    let (maps, rest) = aligned.0.split_at_mut(spec.maps.len() * TensorMap::BYTES);
    for (to, map) in maps.chunks_exact_mut(TensorMap::BYTES).zip(&spec.maps) {
        // SAFETY: each place has the size of a map and its alignment, as the first one has and its size is a multiple of it.
        unsafe { encode(map, to.as_mut_ptr().cast()) }?;
    }
    for (to, &from) in rest.iter_mut().zip(spec.params.bytes()) {
        to.write(from);
    }
    let mut params: [*mut c_void; 1] = [aligned.0.as_mut_ptr().cast()];
    let [x, y, z] = spec.grid;
    let [bx, by, bz] = spec.block;
    if spec.cluster == [1, 1, 1] {
        // SAFETY: the caller's promises; the driver copies the parameters before it returns.
        return unsafe {
            result::launch_kernel(function, (x, y, z), (bx, by, bz), spec.shared_bytes, stream, &mut params)
        };
    }
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    let [cx, cy, cz] = spec.cluster;
    value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cx, y: cy, z: cz };
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value,
    };
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: bx,
        blockDimY: by,
        blockDimZ: bz,
        sharedMemBytes: spec.shared_bytes,
        hStream: stream,
        attrs: &mut attribute,
        numAttrs: 1,
    };
    // SAFETY: the caller's promises; configuration, attribute and parameters live until the driver has copied them, which is
    // before it returns.
    unsafe { sys::cuLaunchKernelEx(&config, function, params.as_mut_ptr(), std::ptr::null_mut()).result() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_end_a_context_are_told_from_those_that_do_not() {
        assert!([700, 716, 719, 710, 999].into_iter().all(is_sticky));
        // Out of memory, invalid value, out of launch resources, an illegal state of capture.
        assert!(![1, 2, 701, 900].into_iter().any(is_sticky));
    }

    #[test]
    fn the_first_loss_is_the_one_that_is_named() {
        let health = Health::default();
        health.lose("one".into(), "illegal address".into());
        let text = health.lose("two".into(), "launch failed".into()).error("cuda:0").to_string();
        assert!(text.contains("one") && text.contains("illegal address") && !text.contains("two"), "{text}");
    }

    #[test]
    fn without_a_driver_every_way_in_is_a_typed_error() {
        // SAFETY: only looks for a library.
        if unsafe { sys::is_culib_present() } {
            return;
        }
        for outcome in [crate::Device::cuda(0), crate::Device::cuda(usize::MAX), crate::Device::parse("cuda:3")] {
            assert!(matches!(outcome, Err(Error::DriverUnavailable { .. })), "{:?}", outcome.map(|d| d.name()));
        }
        // SAFETY: the stream is not used: there is no driver to use it with.
        let borrowed = unsafe { crate::Device::cuda_on_stream(0, std::ptr::null_mut()) };
        assert!(matches!(borrowed, Err(Error::DriverUnavailable { .. })));
    }
}
