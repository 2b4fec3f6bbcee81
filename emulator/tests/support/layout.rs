//! Where elements lie, as the PTX ISA tabulates it: swizzled lines of shared memory, and the matrices of `wgmma`.

/// Bytes that a swizzle spans; 16 is none.
pub const SPANS: [u32; 4] = [16, 32, 64, 128];

/// The ISA's tables of the swizzling modes: line i of 128 bytes holds, at place j, the piece (16 bytes) of this number.
const TABLE: [[usize; 8]; 8] = [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [1, 0, 3, 2, 5, 4, 7, 6],
    [2, 3, 0, 1, 6, 7, 4, 5],
    [3, 2, 1, 0, 7, 6, 5, 4],
    [4, 5, 6, 7, 0, 1, 2, 3],
    [5, 4, 7, 6, 1, 0, 3, 2],
    [6, 7, 4, 5, 2, 3, 0, 1],
    [7, 6, 5, 4, 3, 2, 1, 0],
];

/// The place of a byte of a tile that lies in lines of 128 bytes, aligned to 1024: the table's first 1, 2, 4 or 8 lines, repeated.
pub fn swizzled(span: u32, byte: usize) -> usize {
    let (line, piece, rest) = (byte / 128, byte % 128 / 16, byte % 16);
    let row = &TABLE[line % (span as usize / 16)];
    let place = row.iter().position(|p| *p == piece).expect("the table holds all eight");
    line * 128 + place * 16 + rest
}

/// One operand of `wgmma` in shared memory: `rows` along M or N, `k` along K, elements of `bytes`.
#[derive(Debug, Clone, Copy)]
pub struct Tile {
    pub rows: usize,
    pub k: usize,
    pub bytes: usize,
    pub span: u32,
    /// M- or N-major, `imm-trans` 1.
    pub transposed: bool,
    /// Leading and stride dimension byte offsets.
    pub leading: usize,
    pub stride: usize,
}

impl Tile {
    /// Offsets that leave `gap` atoms unused between neighbours.
    pub fn new(rows: usize, k: usize, bytes: usize, span: u32, transposed: bool, gap: usize) -> Tile {
        let wide = span as usize;
        // An atom has eight lines of the span; in front of it stands 1024 / span of them before the pattern repeats.
        let atom = if span == 16 { 128 } else { 8 * wide };
        let unit = 16 / bytes;
        let (leading, stride) = if transposed {
            let (across, down) = (rows.div_ceil(unit * wide / 16), k.div_ceil(8));
            // Without a swizzle the stride runs along rows, with one along k.
            if span == 16 { (atom * (across + gap), atom) } else { (atom * (down + gap), atom) }
        } else if span == 16 {
            let down = rows.div_ceil(8);
            (atom * (down + gap), atom)
        } else {
            (16, atom * (1 + gap))
        };
        Tile { rows, k, bytes, span, transposed, leading, stride }
    }

    /// The canonical layouts of the ISA: byte of element (row, k), before and after the swizzle.
    pub fn place(&self, row: usize, k: usize) -> usize {
        let (t, wide) = (16 / self.bytes, self.span as usize / 16);
        let elements = |n: usize| n * self.bytes;
        let linear = match (self.transposed, wide) {
            // ((8, m), (T, 2k)) : ((1T, SBO), (1, LBO))
            (false, 1) => elements(row % 8 * t + k % t) + row / 8 * self.stride + k / t * self.leading,
            // ((8, m), (T, 2k)) : ((wide T, SBO), (1, T))
            (false, _) => elements(row % 8 * wide * t + k) + row / 8 * self.stride,
            // ((T, 1, m), (8, k)) : ((1, T, SBO), (1T, LBO))
            (true, 1) => elements(row % t + k % 8 * t) + row / t * self.stride + k / 8 * self.leading,
            // ((T, wide, m), (8, k)) : ((1, T, LBO), (wide T, SBO))
            (true, _) => {
                let across = wide * t;
                elements(row % across + k % 8 * across) + row / across * self.leading + k / 8 * self.stride
            }
        };
        swizzled(self.span, linear)
    }

    /// Bytes up to a multiple of 1024.
    pub fn size(&self) -> usize {
        let last = (0..self.rows).flat_map(|r| (0..self.k).map(move |k| (r, k))).map(|(r, k)| self.place(r, k)).max();
        (last.unwrap_or(0) + 1).next_multiple_of(1024)
    }

    /// The matrix descriptor, but for the start address.
    pub fn descriptor(&self) -> u64 {
        let field = |bytes: usize, shift: u32| ((bytes as u64 & 0x3FFFF) >> 4) << shift;
        let mode = match self.span {
            128 => 1u64,
            64 => 2,
            32 => 3,
            _ => 0,
        };
        field(self.leading, 16) | field(self.stride, 32) | mode << 62
    }

    /// The bytes of a matrix of raw elements.
    pub fn image(&self, element: impl Fn(usize, usize) -> u32) -> Vec<u8> {
        let mut out = vec![0; self.size()];
        for r in 0..self.rows {
            for k in 0..self.k {
                let at = self.place(r, k);
                out[at..at + self.bytes].copy_from_slice(&element(r, k).to_le_bytes()[..self.bytes]);
            }
        }
        out
    }
}
