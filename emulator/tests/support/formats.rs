//! Number formats and rounding, written from their definitions: a format is the sorted list of its finite values, rounding is
//! a search in that list. Slow and plain on purpose: the emulator's own arithmetic is checked against it.

use std::cmp::Ordering;
use std::sync::LazyLock;

/// Rounding as PTX names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    Nearest,
    Away,
    Zero,
    Down,
    Up,
}

impl Round {
    pub const ALL: [(Round, &'static str); 5] =
        [(Round::Nearest, "rn"), (Round::Away, "rna"), (Round::Zero, "rz"), (Round::Down, "rm"), (Round::Up, "rp")];
}

/// A binary format with a sign bit; `special` is the first encoding of a magnitude that is no finite number.
pub struct Format {
    pub exponent: u32,
    pub mantissa: u32,
    pub special: u32,
    /// Whether that encoding is infinity; otherwise it is NaN.
    pub infinity: bool,
    /// Every finite magnitude, ascending: the index is the encoding.
    pub values: Vec<f64>,
}

impl Format {
    fn new(exponent: u32, mantissa: u32, special: u32, infinity: bool) -> Format {
        let bias = (1 << (exponent - 1)) - 1;
        let value = |bits: u32| {
            let (e, m) = ((bits >> mantissa) as i32, f64::from(bits & ((1 << mantissa) - 1)));
            let unit = 2f64.powi(-(mantissa as i32));
            if e == 0 { m * unit * 2f64.powi(1 - bias) } else { (1.0 + m * unit) * 2f64.powi(e - bias) }
        };
        Format { exponent, mantissa, special, infinity, values: (0..special).map(value).collect() }
    }

    pub fn f16() -> &'static Format {
        static TABLE: LazyLock<Format> = LazyLock::new(|| Format::new(5, 10, 0x7C00, true));
        &TABLE
    }

    pub fn bf16() -> &'static Format {
        static TABLE: LazyLock<Format> = LazyLock::new(|| Format::new(8, 7, 0x7F80, true));
        &TABLE
    }

    /// Its 19 bits; in a register they stand above 13 zeros.
    pub fn tf32() -> &'static Format {
        static TABLE: LazyLock<Format> = LazyLock::new(|| Format::new(8, 10, 0xFF << 10, true));
        &TABLE
    }

    pub fn e4m3() -> &'static Format {
        static TABLE: LazyLock<Format> = LazyLock::new(|| Format::new(4, 3, 0x7F, false));
        &TABLE
    }

    pub fn e5m2() -> &'static Format {
        static TABLE: LazyLock<Format> = LazyLock::new(|| Format::new(5, 2, 0x7C, true));
        &TABLE
    }

    pub fn sign_bit(&self) -> u32 {
        1 << (self.exponent + self.mantissa)
    }

    /// The value of an encoding, sign included.
    pub fn value(&self, bits: u32) -> f64 {
        let magnitude = bits & (self.sign_bit() - 1);
        let v = match self.values.get(magnitude as usize) {
            Some(v) => *v,
            None if self.infinity && magnitude == self.special => f64::INFINITY,
            None => f64::NAN,
        };
        if bits & self.sign_bit() != 0 { -v } else { v }
    }

    /// The encoding that a finite number rounds to. `exact(v)` compares the number's magnitude with v.
    pub fn round_by(&self, negative: bool, mode: Round, finite: bool, exact: impl Fn(f64) -> Ordering) -> u32 {
        let sign = if negative { self.sign_bit() } else { 0 };
        // The largest encoding whose value is not above the number.
        let below = self.values.partition_point(|v| exact(*v) != Ordering::Less) as u32 - 1;
        let low = self.values[below as usize];
        if exact(low) == Ordering::Equal {
            return sign | below;
        }
        // One step beyond the largest finite number stands for overflow.
        let last = below + 1 == self.special;
        let high = if last { 2.0 * low - self.values[below as usize - 1] } else { self.values[below as usize + 1] };
        let up = match mode {
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
            _ => match exact((low + high) / 2.0) {
                Ordering::Less => false,
                Ordering::Greater => true,
                Ordering::Equal => mode == Round::Away || below % 2 == 1,
            },
        };
        sign | if up && !(last && finite) { below + 1 } else { below }
    }

    /// The encoding that an f64 rounds to; `finite` keeps it below infinity. NaN has an encoding of its own in each format.
    pub fn round(&self, v: f64, mode: Round, finite: bool) -> u32 {
        let sign = if v.is_sign_negative() { self.sign_bit() } else { 0 };
        if v.is_nan() {
            return self.sign_bit() - 1;
        }
        if v.is_infinite() {
            return sign | if finite { self.special - 1 } else { self.special };
        }
        self.round_by(v < 0.0 || sign != 0, mode, finite, |x| v.abs().partial_cmp(&x).expect("numbers"))
    }

    /// The encoding of n / 2^scale.
    pub fn round_fixed(&self, n: i128, scale: u32, mode: Round) -> u32 {
        let magnitude = n.unsigned_abs();
        self.round_by(n < 0, mode, false, |x| {
            let scaled = x * 2f64.powi(scale as i32);
            // Beyond the range of the integers nothing is asked that a comparison of magnitudes cannot tell.
            if scaled >= 2f64.powi(126) {
                return Ordering::Less;
            }
            let floor = scaled.floor();
            magnitude.cmp(&(floor as u128)).then(if scaled > floor { Ordering::Less } else { Ordering::Equal })
        })
    }
}

/// a + b or a·b + c in f32, rounded in a direction: the exact sum as two f64, then the neighbour on the right side.
pub fn sum_f32(a: f64, b: f64, mode: Round) -> f32 {
    let s = a + b;
    let t = s - a;
    let e = (a - (s - t)) + (b - t);
    let side = |c: f32| {
        // s - c is exact: the two are within a step of f32 of each other.
        let d = (s - f64::from(c)) + e;
        d.partial_cmp(&0.0).expect("a number")
    };
    let near = s as f32;
    let (mut low, mut high) = (near, near);
    match side(near) {
        Ordering::Less => low = near.next_down(),
        Ordering::Greater => high = near.next_up(),
        Ordering::Equal => {
            if near == 0.0 && mode == Round::Down && (a.is_sign_negative() || b.is_sign_negative()) {
                return -0.0;
            }
            return near;
        }
    }
    match mode {
        Round::Down => low,
        Round::Up => high,
        Round::Zero => {
            if low.abs() < high.abs() {
                low
            } else {
                high
            }
        }
        _ => {
            // The two distances are exact; what s itself left over decides only between equals.
            let skew = (s - f64::from(low)) - (f64::from(high) - s);
            match skew.partial_cmp(&0.0).expect("a number").then(e.partial_cmp(&0.0).expect("a number")) {
                Ordering::Less => low,
                Ordering::Greater => high,
                Ordering::Equal => {
                    if low.to_bits() % 2 == 0 {
                        low
                    } else {
                        high
                    }
                }
            }
        }
    }
}

/// Repeatable bits.
pub struct Bits(pub u64);

impl Bits {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// An f32 in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}
