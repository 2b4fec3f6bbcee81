//! The register file of a warp: one plane of 32 lanes for each 32 bits of a register.
//!
//! A 64-bit register is two planes (low halves, then high halves), a 128-bit register four. A predicate is one plane whose
//! first word is the bit mask of its lanes. Immediates are planes too, filled once, so every operand is just an index.

pub const LANES: usize = 32;
pub type Plane = [u32; LANES];

#[derive(Debug, Clone, Default)]
pub struct Planes(pub Vec<Plane>);

impl Planes {
    #[inline(always)]
    pub fn get(&self, i: u32) -> &Plane {
        &self.0[i as usize]
    }

    #[inline(always)]
    pub fn mask(&self, i: u32) -> u32 {
        self.0[i as usize][0]
    }

    #[inline(always)]
    pub fn set_mask(&mut self, i: u32, value: u32, active: u32) {
        let w = &mut self.0[i as usize][0];
        *w = (*w & !active) | (value & active);
    }

    #[inline(always)]
    pub fn put(&mut self, i: u32, v: &Plane, active: u32) {
        let p = &mut self.0[i as usize];
        if active == u32::MAX {
            *p = *v;
        } else {
            for l in 0..LANES {
                if active >> l & 1 == 1 {
                    p[l] = v[l];
                }
            }
        }
    }

    #[inline(always)]
    pub fn u64_at(&self, i: u32, lane: usize) -> u64 {
        u64::from(self.0[i as usize][lane]) | u64::from(self.0[i as usize + 1][lane]) << 32
    }

    #[inline(always)]
    pub fn set_u64(&mut self, i: u32, lane: usize, v: u64) {
        self.0[i as usize][lane] = v as u32;
        self.0[i as usize + 1][lane] = (v >> 32) as u32;
    }
}

/// A type that instructions read from and write to registers.
pub trait Lane: Copy {
    const ZERO: Self;
    fn load(p: &Planes, i: u32) -> [Self; LANES];
    fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32);
}

macro_rules! narrow {
    ($($t:ty),*) => {$(
        impl Lane for $t {
            const ZERO: Self = 0;
            #[inline(always)]
            fn load(p: &Planes, i: u32) -> [Self; LANES] {
                p.get(i).map(|w| w as $t)
            }
            #[inline(always)]
            fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32) {
                p.put(i, &v.map(|x| x as u32), active);
            }
        }
    )*};
}
narrow!(u8, i8, u16, i16, u32, i32);

impl Lane for f32 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn load(p: &Planes, i: u32) -> [Self; LANES] {
        p.get(i).map(f32::from_bits)
    }
    #[inline(always)]
    fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32) {
        p.put(i, &v.map(f32::to_bits), active);
    }
}

impl Lane for u64 {
    const ZERO: Self = 0;
    #[inline(always)]
    fn load(p: &Planes, i: u32) -> [Self; LANES] {
        let (lo, hi) = (p.get(i), p.get(i + 1));
        let mut out = [0; LANES];
        for l in 0..LANES {
            out[l] = u64::from(lo[l]) | u64::from(hi[l]) << 32;
        }
        out
    }
    #[inline(always)]
    fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32) {
        p.put(i, &v.map(|x| x as u32), active);
        p.put(i + 1, &v.map(|x| (x >> 32) as u32), active);
    }
}

impl Lane for i64 {
    const ZERO: Self = 0;
    #[inline(always)]
    fn load(p: &Planes, i: u32) -> [Self; LANES] {
        u64::load(p, i).map(|x| x as i64)
    }
    #[inline(always)]
    fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32) {
        u64::store(p, i, &v.map(|x| x as u64), active);
    }
}

impl Lane for f64 {
    const ZERO: Self = 0.0;
    #[inline(always)]
    fn load(p: &Planes, i: u32) -> [Self; LANES] {
        u64::load(p, i).map(f64::from_bits)
    }
    #[inline(always)]
    fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32) {
        u64::store(p, i, &v.map(f64::to_bits), active);
    }
}

/// A 128-bit register.
impl Lane for u128 {
    const ZERO: Self = 0;
    fn load(p: &Planes, i: u32) -> [Self; LANES] {
        let (lo, hi) = (u64::load(p, i), u64::load(p, i + 2));
        let mut out = [0; LANES];
        for l in 0..LANES {
            out[l] = u128::from(lo[l]) | u128::from(hi[l]) << 64;
        }
        out
    }
    fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32) {
        u64::store(p, i, &v.map(|x| x as u64), active);
        u64::store(p, i + 2, &v.map(|x| (x >> 64) as u64), active);
    }
}

/// A predicate.
impl Lane for bool {
    const ZERO: Self = false;
    #[inline(always)]
    fn load(p: &Planes, i: u32) -> [Self; LANES] {
        let m = p.mask(i);
        let mut out = [false; LANES];
        for (l, o) in out.iter_mut().enumerate() {
            *o = m >> l & 1 == 1;
        }
        out
    }
    #[inline(always)]
    fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32) {
        let mut m = 0;
        for (l, &b) in v.iter().enumerate() {
            m |= u32::from(b) << l;
        }
        p.set_mask(i, m, active);
    }
}

macro_rules! wrapped {
    ($(#[$doc:meta])* $name:ident, $of:ty) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub struct $name(pub $of);
        impl Lane for $name {
            const ZERO: Self = $name(0);
            #[inline(always)]
            fn load(p: &Planes, i: u32) -> [Self; LANES] {
                <$of>::load(p, i).map($name)
            }
            #[inline(always)]
            fn store(p: &mut Planes, i: u32, v: &[Self; LANES], active: u32) {
                <$of>::store(p, i, &v.map(|x| x.0), active);
            }
        }
    };
}
wrapped!(
    /// The bits of an f16.
    H, u16
);
wrapped!(
    /// The bits of a bf16.
    B, u16
);
wrapped!(
    /// Two f16, the first in the low half.
    H2, u32
);
wrapped!(
    /// Two bf16, the first in the low half.
    B2, u32
);

/// Operands of an arithmetic instruction: plane indices and one immediate (a look-up table, a mode).
#[derive(Debug, Clone, Copy, Default)]
pub struct Args {
    pub d: [u32; 2],
    pub s: [u32; 4],
    pub imm: u32,
}

/// An arithmetic instruction on all lanes of a warp.
pub type AluFn = fn(&mut Planes, &Args, u32);

/// Makes an [`AluFn`] from a per-lane expression: `alu!(|a: u32, b: u32| -> u32 { a & b })`.
/// With `imm` before the bars, the immediate is bound too.
macro_rules! alu {
    (|$($v:ident : $t:ty),+| -> $r:ty $body:block) => {
        $crate::exec::lanes::alu!(_imm |$($v: $t),+| -> $r $body)
    };
    ($imm:ident |$($v:ident : $t:ty),+| -> $r:ty $body:block) => {{
        fn f(p: &mut $crate::exec::lanes::Planes, x: &$crate::exec::lanes::Args, active: u32) {
            use $crate::exec::lanes::Lane;
            let $imm = x.imm;
            let mut _k = 0;
            $(let $v = <$t as Lane>::load(p, x.s[_k]); _k += 1;)+
            let mut out = [<$r as Lane>::ZERO; 32];
            for i in 0..32 {
                $(let $v = $v[i];)+
                out[i] = $body;
            }
            <$r as Lane>::store(p, x.d[0], &out, active);
        }
        f as $crate::exec::lanes::AluFn
    }};
}
pub(crate) use alu;
