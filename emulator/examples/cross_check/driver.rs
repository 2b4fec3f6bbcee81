//! The few calls of the CUDA driver that launching a kernel takes, loaded at run time.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use libloading::Library;

use super::support::program::{Param, Program, Tensor};

/// The memory of a `CUtensorMap`.
#[repr(C, align(64))]
struct MapBytes([u8; 128]);

const JIT_ERROR_LOG_BUFFER: c_int = 5;
const JIT_ERROR_LOG_BUFFER_SIZE_BYTES: c_int = 6;
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
const COMPUTE_CAPABILITY_MINOR: c_int = 76;

type Handle = *mut c_void;

macro_rules! functions {
    ($($field:ident: $symbol:literal ($($arg:ty),*);)*) => {
        /// The driver's functions by their symbols; every one returns 0 for success.
        struct Functions {
            $($field: unsafe extern "C" fn($($arg),*) -> c_int,)*
        }

        impl Functions {
            fn load(library: &Library) -> Result<Functions, String> {
                Ok(Functions {
                    $($field: {
                        // SAFETY: (1) the symbol's signature is the one of the driver's header; (2) the library outlives the table.
                        unsafe { *library.get($symbol).map_err(|e| format!("the driver lacks a function: {e}"))? }
                    },)*
                })
            }
        }
    };
}

functions! {
    init: b"cuInit\0" (c_uint);
    version: b"cuDriverGetVersion\0" (*mut c_int);
    count: b"cuDeviceGetCount\0" (*mut c_int);
    device: b"cuDeviceGet\0" (*mut c_int, c_int);
    name: b"cuDeviceGetName\0" (*mut c_char, c_int, c_int);
    attribute: b"cuDeviceGetAttribute\0" (*mut c_int, c_int, c_int);
    retain: b"cuDevicePrimaryCtxRetain\0" (*mut Handle, c_int);
    release: b"cuDevicePrimaryCtxRelease_v2\0" (c_int);
    current: b"cuCtxSetCurrent\0" (Handle);
    wait: b"cuCtxSynchronize\0" ();
    load: b"cuModuleLoadDataEx\0" (*mut Handle, *const c_void, c_uint, *mut c_int, *mut *mut c_void);
    unload: b"cuModuleUnload\0" (Handle);
    function: b"cuModuleGetFunction\0" (*mut Handle, Handle, *const c_char);
    set: b"cuFuncSetAttribute\0" (Handle, c_int, c_int);
    alloc: b"cuMemAlloc_v2\0" (*mut u64, usize);
    free: b"cuMemFree_v2\0" (u64);
    to_device: b"cuMemcpyHtoD_v2\0" (u64, *const c_void, usize);
    to_host: b"cuMemcpyDtoH_v2\0" (*mut c_void, u64, usize);
    error: b"cuGetErrorString\0" (c_int, *mut *const c_char);
    launch: b"cuLaunchKernel\0"
        (Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
}

/// Since CUDA 12, and needed by the tensor programs only.
type EncodeTiled = unsafe extern "C" fn(
    *mut MapBytes,
    c_int,
    c_uint,
    *mut c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

pub struct Driver {
    f: Functions,
    encode: Option<EncodeTiled>,
    device: c_int,
    pub name: String,
    /// As 13000 for 13.0.
    pub version: i32,
    /// As 90 for 9.0.
    pub capability: i32,
    // Dropped last: the functions live in it.
    _library: Library,
}

impl Driver {
    /// Loads the driver and makes a context on its first device.
    pub fn open(path: Option<&str>) -> Result<Driver, String> {
        let names = path.map_or_else(|| vec!["libcuda.so.1", "libcuda.so", "nvcuda.dll"], |p| vec![p]);
        let mut library = Err(String::new());
        for name in names {
            // SAFETY: the driver's initialisers have no requirements of their own.
            library = unsafe { Library::new(name) }.map_err(|e| e.to_string());
            if library.is_ok() {
                break;
            }
        }
        let library = library.map_err(|e| format!("no CUDA driver: {e}"))?;
        let f = Functions::load(&library)?;
        // SAFETY: the signature is the header's; the library outlives the pointer.
        let encode = unsafe { library.get::<EncodeTiled>(b"cuTensorMapEncodeTiled\0").ok().map(|s| *s) };
        let mut d = Driver { f, encode, device: 0, name: String::new(), version: 0, capability: 0, _library: library };
        let (mut count, mut version, mut major, mut minor) = (0, 0, 0, 0);
        let mut name = [0 as c_char; 256];
        let mut context = null_mut();
        // SAFETY: every pointer is to a local of the type and, for the name, of the length that the call is told.
        unsafe {
            d.done("cuInit", (d.f.init)(0))?;
            d.done("cuDeviceGetCount", (d.f.count)(&mut count))?;
            if count == 0 {
                return Err("the CUDA driver finds no device".into());
            }
            d.done("cuDriverGetVersion", (d.f.version)(&mut version))?;
            let mut device = 0;
            d.done("cuDeviceGet", (d.f.device)(&mut device, 0))?;
            d.device = device;
            d.done("cuDeviceGetName", (d.f.name)(name.as_mut_ptr(), name.len() as c_int - 1, d.device))?;
            d.done("cuDeviceGetAttribute", (d.f.attribute)(&mut major, COMPUTE_CAPABILITY_MAJOR, d.device))?;
            d.done("cuDeviceGetAttribute", (d.f.attribute)(&mut minor, COMPUTE_CAPABILITY_MINOR, d.device))?;
            d.done("cuDevicePrimaryCtxRetain", (d.f.retain)(&mut context, d.device))?;
            d.done("cuCtxSetCurrent", (d.f.current)(context))?;
            d.name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
        }
        (d.version, d.capability) = (version, 10 * major + minor);
        Ok(d)
    }

    fn done(&self, call: &str, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut text = null();
        // SAFETY: the driver sets the pointer to a constant string, or leaves it null for a code it does not know.
        let words = unsafe {
            (self.f.error)(code, &mut text);
            if text.is_null() { "unknown error".into() } else { CStr::from_ptr(text).to_string_lossy() }
        };
        Err(format!("{call}: {words} ({code})"))
    }

    fn encode_map(&self, t: &Tensor, address: u64) -> Result<Box<MapBytes>, String> {
        let encode = self.encode.ok_or("the driver lacks cuTensorMapEncodeTiled")?;
        let mut map = Box::new(MapBytes([0; 128]));
        let swizzle = match t.span {
            32 => 1,
            64 => 2,
            128 => 3,
            _ => 0,
        };
        // The enumeration of `TensorType` has the driver's order. No interleave, no promotion.
        let (ty, rank, fill) = (t.ty as c_int, t.dims.len() as c_uint, c_int::from(t.nan_fill));
        // SAFETY: the map is aligned to 64; the arrays have rank, and for the strides rank − 1, elements.
        let code = unsafe {
            encode(
                &mut *map,
                ty,
                rank,
                address as *mut c_void,
                t.dims.as_ptr(),
                t.strides.as_ptr(),
                t.tile.as_ptr(),
                t.steps.as_ptr(),
                0,
                swizzle,
                0,
                fill,
            )
        };
        self.done("cuTensorMapEncodeTiled", code)?;
        Ok(map)
    }

    /// Compiles and runs a program: what its output holds afterwards.
    pub fn run(&self, p: &Program) -> Result<Vec<u8>, String> {
        let mut module = Module { driver: self, handle: null_mut() };
        let text = CString::new(p.text.as_str()).map_err(|e| e.to_string())?;
        let mut log = vec![0u8; 4096];
        let mut options = [JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The driver takes the size in place of a pointer.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), log.len() as *mut c_void];
        // SAFETY: the text ends with a zero; options and values have two elements each; the log has the length it is told.
        let code = unsafe {
            (self.f.load)(&mut module.handle, text.as_ptr().cast(), 2, options.as_mut_ptr(), values.as_mut_ptr())
        };
        self.done("cuModuleLoadDataEx", code).map_err(|e| {
            let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
            format!("{e}\n{}", String::from_utf8_lossy(&log[..end]))
        })?;
        let mut function = null_mut();
        // SAFETY: the module is loaded; the name ends with a zero.
        self.done("cuModuleGetFunction", unsafe { (self.f.function)(&mut function, module.handle, c"k".as_ptr()) })?;
        if p.shared > 48 << 10 {
            // SAFETY: the function belongs to the loaded module.
            let code = unsafe { (self.f.set)(function, MAX_DYNAMIC_SHARED_SIZE_BYTES, p.shared as c_int) };
            self.done("cuFuncSetAttribute", code)?;
        }
        let buffers: Vec<Option<Buffer>> = p
            .params
            .iter()
            .map(|x| match x {
                Param::Buffer(b) | Param::Output(b) => Buffer::new(self, b.len(), b).map(Some),
                Param::Fresh(bytes) => Buffer::new(self, *bytes, &[]).map(Some),
                _ => Ok(None),
            })
            .collect::<Result<_, _>>()?;
        let address = |i: usize| buffers[i].as_ref().map_or(0, |b| b.address);
        // Each parameter's bytes stay where they are until the launch has copied them.
        let mut scalars: Vec<u64> = (0..p.params.len())
            .map(|i| match &p.params[i] {
                Param::Word(w) => u64::from(*w),
                Param::Long(w) => *w,
                _ => address(i),
            })
            .collect();
        let mut maps: Vec<Option<Box<MapBytes>>> = p
            .params
            .iter()
            .map(|x| if let Param::Map(t) = x { self.encode_map(t, address(t.buffer)).map(Some) } else { Ok(None) })
            .collect::<Result<_, _>>()?;
        let mut pointers: Vec<*mut c_void> = scalars
            .iter_mut()
            .zip(&mut maps)
            .map(|(s, m)| match m {
                Some(map) => (&raw mut **map).cast(),
                // The low bytes of a word come first.
                None => (&raw mut *s).cast(),
            })
            .collect();
        // SAFETY: there is one pointer for each parameter that the PTX declares, to at least its size; all outlive the call.
        let code = unsafe {
            let (grid, block) = (p.grid, p.block);
            (self.f.launch)(function, grid, 1, 1, block, 1, 1, p.shared, null_mut(), pointers.as_mut_ptr(), null_mut())
        };
        self.done("cuLaunchKernel", code)?;
        // SAFETY: a context is current.
        self.done("cuCtxSynchronize", unsafe { (self.f.wait)() })?;
        let at = p.params.iter().position(|x| matches!(x, Param::Output(_))).ok_or("the program has no output")?;
        let mut out = vec![0u8; p.output().len()];
        // SAFETY: both sides hold that many bytes.
        let code = unsafe { (self.f.to_host)(out.as_mut_ptr().cast(), address(at), out.len()) };
        self.done("cuMemcpyDtoH", code)?;
        Ok(out)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: the context was retained when the driver was opened. Nothing can be done about a failure here.
        unsafe { (self.f.release)(self.device) };
    }
}

struct Module<'a> {
    driver: &'a Driver,
    handle: Handle,
}

impl Drop for Module<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: the module was loaded, and is unloaded once.
            unsafe { (self.driver.f.unload)(self.handle) };
        }
    }
}

struct Buffer<'a> {
    driver: &'a Driver,
    address: u64,
}

impl<'a> Buffer<'a> {
    /// `size` bytes, the first of them as given, the others as they come.
    fn new(driver: &'a Driver, size: usize, bytes: &[u8]) -> Result<Buffer<'a>, String> {
        let mut b = Buffer { driver, address: 0 };
        // SAFETY: the address is a local.
        driver.done("cuMemAlloc", unsafe { (driver.f.alloc)(&mut b.address, size.max(1)) })?;
        if !bytes.is_empty() {
            // SAFETY: the copy has as many bytes on both sides.
            let code = unsafe { (driver.f.to_device)(b.address, bytes.as_ptr().cast(), bytes.len()) };
            driver.done("cuMemcpyHtoD", code)?;
        }
        Ok(b)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        if self.address != 0 {
            // SAFETY: the memory was allocated, and is freed once.
            unsafe { (self.driver.f.free)(self.address) };
        }
    }
}
