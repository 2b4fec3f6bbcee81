//! Counter-based random numbers: Philox4x32 of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
//! (SC 2011). A draw is a pure function of (seed, step, site, element), so CPU, GPU and emulator see the same bits,
//! nothing has a state to save, and a dropout mask is drawn again in backward instead of being stored.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of Philox4x32 with `ROUNDS` rounds: 10 as published, 7 the fewest that pass BigCrush.
#[inline(always)]
pub const fn philox4x32<const ROUNDS: usize>(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    let mut round = 0;
    while round < ROUNDS {
        let p0 = MULTIPLIERS[0] as u64 * c[0] as u64;
        let p1 = MULTIPLIERS[1] as u64 * c[2] as u64;
        c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        round += 1;
    }
    c
}

/// The stream of one use of randomness. `seed` is the run's, `step` counts micro-batches, `site` names the place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub seed: u64,
    pub step: u32,
    pub site: u32,
}

impl Stream {
    /// Site of the stream is derived from a name, so that adding a parameter leaves the others' draws as they were.
    pub fn named(seed: u64, step: u32, name: &str) -> Self {
        // FNV-1a, 32 bit.
        let site = name.bytes().fold(0x811C_9DC5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Stream { seed, step, site }
    }

    /// The four words that elements `4·block .. 4·block + 4` draw.
    #[inline(always)]
    pub const fn words<const ROUNDS: usize>(&self, block: u64) -> [u32; 4] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        philox4x32::<ROUNDS>([block as u32, (block >> 32) as u32, self.step, self.site], key)
    }

    /// 32 uniform bits of one element, ten rounds.
    pub const fn bits(&self, element: u64) -> u32 {
        self.words::<10>(element >> 2)[(element & 3) as usize]
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn uniform(&self, element: u64) -> f64 {
        f64::from(self.bits(element) >> 8) / 16_777_216.0
    }

    /// Standard normal by Box-Muller from two words of the element's own block.
    pub fn normal(&self, element: u64) -> f64 {
        let w = self.words::<10>(element);
        let u = (f64::from(w[0]) + 1.0) / 4_294_967_297.0;
        let v = f64::from(w[1]) / 4_294_967_296.0;
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// Inverted dropout of probability `p` at one site: an element is kept when its 32-bit draw (7 rounds) is at least
/// `threshold`, and kept elements are multiplied by `keep_scale = 1 / (1 - p)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    pub stream: Stream,
    pub threshold: u32,
    pub keep_scale: f32,
}

impl Dropout {
    /// `p` must lie in [0, 1); callers validate.
    pub fn new(p: f64, stream: Stream) -> Self {
        Dropout { stream, threshold: (p * 4_294_967_296.0) as u32, keep_scale: (1.0 / (1.0 - p)) as f32 }
    }

    /// Multipliers (0 or `keep_scale`) of elements `4·block ..`.
    #[inline(always)]
    pub fn factors(&self, block: u64) -> [f32; 4] {
        self.stream.words::<7>(block).map(|w| if w >= self.threshold { self.keep_scale } else { 0.0 })
    }

    #[inline(always)]
    pub fn factor(&self, element: u64) -> f32 {
        self.factors(element >> 2)[(element & 3) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors of Random123 1.14 (`kat_vectors`) for philox4x32.
    #[test]
    fn known_answers_of_random123() {
        let pi = ([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]);
        let ones = ([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(philox4x32::<10>([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox4x32::<10>(ones.0, ones.1), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
        assert_eq!(philox4x32::<10>(pi.0, pi.1), [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]);
        assert_eq!(philox4x32::<7>([0; 4], [0; 2]), [0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48]);
        assert_eq!(philox4x32::<7>(ones.0, ones.1), [0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662]);
        assert_eq!(philox4x32::<7>(pi.0, pi.1), [0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a]);
    }

    #[test]
    fn dropout_keeps_the_stated_share() {
        let d = Dropout::new(0.25, Stream { seed: 7, step: 3, site: 1 });
        let kept = (0..40_000u64).filter(|&e| d.factor(e) != 0.0).count() as f64;
        // Binomial(40000, 0.75): standard deviation 87, so 5 of them.
        assert!((kept - 30_000.0).abs() < 435.0, "{kept}");
        assert_eq!(d.keep_scale, 4.0 / 3.0);
    }

    #[test]
    fn normals_have_unit_variance() {
        let s = Stream::named(1, 0, "x");
        let n = 20_000u64;
        let (sum, squares) = (0..n).map(|e| s.normal(e)).fold((0.0, 0.0), |(a, b), v| (a + v, b + v * v));
        let mean = sum / n as f64;
        assert!(mean.abs() < 0.03 && (squares / n as f64 - 1.0).abs() < 0.05);
    }
}
