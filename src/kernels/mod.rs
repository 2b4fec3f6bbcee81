//! The kernels of this build: a table of rows, and the images that build.rs made of `kernels/*.cu`.
//!
//! A build finds nvcc in `$NVCC`, `$CUDA_HOME/bin`, `$CUDA_PATH/bin`, `PATH`, `/usr/local/cuda/bin` and `.cuda/bin` (where
//! `scripts/fetch_nvcc.sh` puts it), in this order. With none of them the crate builds without kernels, says so once, and
//! [`available`] gives the reason; an nvcc that fails ends the build with its output.
//!
//! | variable, at build time | effect |
//! |---|---|
//! | `NVCC` | this compiler |
//! | `NVDISASM` | this disassembler, which a test uses; otherwise the one beside nvcc, if there is one |
//! | `CUDA_HOME`, `CUDA_PATH` | a toolkit whose `bin/nvcc` is used |
//! | `GRAFTWORK_CUDA_ARCHS` | cubins for more architectures than sm_80 and sm_90, as in `86,89,120`; others run the PTX |
//! | `GRAFTWORK_KERNEL_STORE` | a folder where builds of all profiles find what nvcc has made before; safe to delete |
//! | `GRAFTWORK_REQUIRE_KERNELS=1` | no nvcc ends the build |
//! | `GRAFTWORK_NO_KERNELS=1` | nvcc is not looked for |
//!
//! Only what has changed is compiled again: a source, a header that it includes, its constants, the flags or the compiler. Images are
//! embedded compressed, a tenth of their size, and unpacked when a device first needs them.

mod packed;
mod table;

pub use packed::Packed;
pub use table::{Class, FAMILIES, Family, Row};

use crate::error::{Error, Result};

#[allow(unused_imports)]
mod generated {
    use super::{Cubin, Image, Packed, Resources};
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// What was compiled from one family.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Index into [`FAMILIES`].
    pub family: usize,
    /// For GPUs without a cubin, and for the emulator.
    pub ptx: Packed,
    pub cubins: &'static [Cubin],
}

/// Machine code for one architecture.
#[derive(Clone, Copy, Debug)]
pub struct Cubin {
    /// `sm_80`, `sm_90a`.
    pub arch: &'static str,
    /// 80, 90.
    pub capability: u32,
    pub code: Packed,
}

/// What one kernel takes on one architecture, as ptxas reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    pub symbol: &'static str,
    pub arch: &'static str,
    /// Per thread.
    pub registers: u32,
    /// Stores and loads together.
    pub spilled_bytes: u32,
    pub stack_bytes: u32,
    /// Static shared memory.
    pub shared_bytes: u32,
}

/// # Errors
/// [`Error::KernelsMissing`] with the reason, when this build was made without nvcc.
pub fn available() -> Result<()> {
    match generated::MISSING {
        None => Ok(()),
        Some(reason) => Err(Error::KernelsMissing { reason: reason.into() }),
    }
}

/// One image for each family of [`FAMILIES`], in their order; none when the build has no kernels.
pub fn images() -> &'static [Image] {
    generated::IMAGES
}

/// A row for each kernel and architecture.
pub fn resources() -> &'static [Resources] {
    generated::RESOURCES
}

/// A row of the table. Made at compile time from a symbol, so that the launch path looks nothing up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId {
    family: u16,
    row: u16,
    index: u16,
}

impl KernelId {
    /// How many kernels the table has.
    pub const COUNT: usize = {
        let (mut family, mut count) = (0, 0);
        while family < FAMILIES.len() {
            count += FAMILIES[family].kernels.len();
            family += 1;
        }
        count
    };

    /// Finds a symbol while compiling: `const FORWARD: KernelId = KernelId::of("op_fwd_f32_t256_sm80");`. A symbol that is not in the
    /// table is a compile error.
    pub const fn of(symbol: &str) -> Self {
        let (mut family, mut index) = (0, 0);
        while family < FAMILIES.len() {
            let mut row = 0;
            while row < FAMILIES[family].kernels.len() {
                if same(FAMILIES[family].kernels[row].symbol, symbol) {
                    return KernelId { family: family as u16, row: row as u16, index };
                }
                row += 1;
                index += 1;
            }
            family += 1;
        }
        panic!("no such symbol in the kernel table")
    }

    /// Finds a symbol at run time: for tools and tests.
    pub fn of_symbol(symbol: &str) -> Option<Self> {
        KernelId::all().find(|id| id.symbol() == symbol)
    }

    /// Every kernel, in the order of [`KernelId::index`].
    pub fn all() -> impl Iterator<Item = KernelId> {
        let rows = FAMILIES.iter().enumerate().flat_map(|(f, family)| (0..family.kernels.len()).map(move |r| (f, r)));
        rows.enumerate().map(|(i, (f, r))| KernelId { family: f as u16, row: r as u16, index: i as u16 })
    }

    /// Position among all kernels of the table, below [`KernelId::COUNT`].
    pub fn index(self) -> usize {
        self.index as usize
    }

    pub fn family(self) -> &'static Family {
        &FAMILIES[self.family as usize]
    }

    pub fn row(self) -> &'static Row {
        &self.family().kernels[self.row as usize]
    }

    pub fn symbol(self) -> &'static str {
        self.row().symbol
    }

    /// Size of the kernel's one argument; unknown when this build has no kernels.
    pub fn param_bytes(self) -> Option<u32> {
        generated::PARAM_BYTES.get(self.index()).copied()
    }

    /// What was compiled from this kernel's family.
    pub fn image(self) -> Result<&'static Image> {
        available()?;
        Ok(&images()[self.family as usize])
    }
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}
