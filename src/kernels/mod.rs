//! The kernels of this build: a table of rows, and the images that build.rs made of `kernels/*.cu`.

mod table;

pub use table::{Class, FAMILIES, Family, Row};

/// A row of the table. Made at compile time from a symbol, so that the launch path looks nothing up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KernelId {
    family: u16,
    row: u16,
}

impl KernelId {
    /// Finds a symbol while compiling: `const FORWARD: KernelId = KernelId::of("op_fwd_f32_t256_sm80");`. A symbol that is not in the
    /// table is a compile error.
    pub const fn of(symbol: &str) -> Self {
        let mut family = 0;
        while family < FAMILIES.len() {
            let mut row = 0;
            while row < FAMILIES[family].kernels.len() {
                if same(FAMILIES[family].kernels[row].symbol, symbol) {
                    return KernelId { family: family as u16, row: row as u16 };
                }
                row += 1;
            }
            family += 1;
        }
        panic!("no such symbol in the kernel table")
    }

    pub fn family(self) -> &'static Family {
        &FAMILIES[self.family as usize]
    }

    pub fn row(self) -> &'static Row {
        &self.family().kernels[self.row as usize]
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
