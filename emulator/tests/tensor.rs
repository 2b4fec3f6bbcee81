//! Tensor copies: loads, stores and reductions of every rank, type, swizzle and fill, against plain loops.

mod support;
use proptest::prelude::*;
use ptx_emulator::{Numerics, TensorType};
use support::formats::{Bits, Format, Round};
use support::layout::{SPANS, swizzled};
use support::program::{Program, Tensor, emulate, run, tensor_load, tensor_store};

const TYPES: [TensorType; 10] = [
    TensorType::U8,
    TensorType::U16,
    TensorType::U32,
    TensorType::S32,
    TensorType::U64,
    TensorType::S64,
    TensorType::F16,
    TensorType::F32,
    TensorType::F64,
    TensorType::Bf16,
];

fn is_float(ty: TensorType) -> bool {
    matches!(ty, TensorType::F16 | TensorType::F32 | TensorType::F64 | TensorType::Bf16)
}

fn is_nan(ty: TensorType, e: &[u8]) -> bool {
    let bits = e.iter().rev().fold(0u64, |x, b| x << 8 | u64::from(*b));
    match ty {
        TensorType::F16 => Format::f16().value(bits as u32).is_nan(),
        TensorType::Bf16 => f32::from_bits((bits as u32) << 16).is_nan(),
        TensorType::F32 => f32::from_bits(bits as u32).is_nan(),
        _ => f64::from_bits(bits).is_nan(),
    }
}

/// A tensor and a box over it.
#[derive(Debug, Clone)]
struct Case {
    map: Tensor,
    at: Vec<i32>,
    /// Bytes of the whole tensor.
    size: usize,
}

impl Case {
    fn new(ty: TensorType, dims: &[u64], tile: &[u32], steps: &[u32], span: u32, nan_fill: bool, at: &[i32]) -> Case {
        let es = u64::from(ty.bytes());
        let mut strides = Vec::new();
        let mut pitch = dims[0] * es;
        for d in &dims[1..] {
            // A row is padded to the 16 bytes that a stride must be a multiple of, and 16 more.
            pitch = pitch.next_multiple_of(16) + 16;
            strides.push(pitch);
            pitch *= d;
        }
        let map = Tensor {
            buffer: 0,
            ty,
            dims: dims.to_vec(),
            strides,
            tile: tile.to_vec(),
            steps: steps.to_vec(),
            span,
            nan_fill,
        };
        Case { map, at: at.to_vec(), size: pitch.next_multiple_of(16) as usize }
    }

    /// Elements of the box along each dimension: the innermost has no stride.
    fn counts(&self) -> Vec<usize> {
        let m = &self.map;
        (0..m.tile.len()).map(|i| if i == 0 { m.tile[0] } else { m.tile[i].div_ceil(m.steps[i]) } as usize).collect()
    }

    fn bytes(&self) -> usize {
        self.counts().iter().product::<usize>() * self.map.ty.bytes() as usize
    }

    /// For every element of the box: its byte in the tile, and its byte in the tensor if it lies inside.
    fn elements(&self) -> Vec<(usize, Option<usize>)> {
        let es = self.map.ty.bytes() as usize;
        let counts = self.counts();
        let total: usize = counts.iter().product();
        (0..total)
            .map(|i| {
                let (mut left, mut byte, mut inside) = (i, 0i64, true);
                for d in 0..counts.len() {
                    let step = if d == 0 { 1 } else { i64::from(self.map.steps[d]) };
                    let c = i64::from(self.at[d]) + (left % counts[d]) as i64 * step;
                    left /= counts[d];
                    inside &= c >= 0 && c < self.map.dims[d] as i64;
                    byte += c * if d == 0 { es as i64 } else { self.map.strides[d - 1] as i64 };
                }
                (swizzled(self.map.span, i * es), inside.then_some(byte as usize))
            })
            .collect()
    }
}

fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut b = Bits(seed);
    (0..n).map(|_| b.next() as u8).collect()
}

fn check_load(c: &Case, seed: u64) {
    let data = bytes(c.size, seed);
    let got = run(&tensor_load(c.map.clone(), data.clone(), &c.at, c.bytes()));
    let es = c.map.ty.bytes() as usize;
    for (to, from) in c.elements() {
        // The tile may end inside a line of 128 bytes whose pieces are exchanged: what lies beyond is not copied out.
        let Some(e) = got.get(to..to + es) else { continue };
        match from {
            Some(from) => assert_eq!(e, &data[from..from + es], "{c:?}: byte {to} of the tile"),
            None if c.map.nan_fill => assert!(is_nan(c.map.ty, e), "{c:?}: byte {to} of the tile is {e:x?}"),
            None => assert!(e.iter().all(|b| *b == 0), "{c:?}: byte {to} of the tile is {e:x?}"),
        }
    }
}

fn check_store(c: &Case, seed: u64, reduce: &str, apply: impl Fn(&[u8], &[u8]) -> Vec<u8>, data: (Vec<u8>, Vec<u8>)) {
    let (before, tile) = data;
    let es = c.map.ty.bytes() as usize;
    let mut image = vec![0; c.bytes().next_multiple_of(1024)];
    let mut want = before.clone();
    for (i, (from, to)) in c.elements().into_iter().enumerate() {
        let e = &tile[i * es..(i + 1) * es];
        image[from..from + es].copy_from_slice(e);
        if let Some(to) = to {
            let new = apply(&want[to..to + es], e);
            want[to..to + es].copy_from_slice(&new);
        }
    }
    let mut map = c.map.clone();
    map.buffer = 1;
    let p = tensor_store(map, before, image, &c.at, reduce);
    let got = emulate(&p, Numerics::Ascending, seed).unwrap_or_else(|f| panic!("{c:?}: {f}"));
    let wrong = (0..want.len()).find(|&i| got[i] != want[i]);
    assert!(wrong.is_none(), "{c:?} {reduce}: byte {wrong:?} of the tensor");
}

fn both(c: &Case, seed: u64) {
    check_load(c, seed);
    let data = (bytes(c.size, seed + 1), bytes(c.bytes(), seed + 2));
    check_store(c, seed, "", |_, new| new.to_vec(), data);
}

#[test]
fn every_rank_inside_and_across_each_border() {
    let dims = [40u64, 5, 4, 3, 3];
    let tile = [16u32, 3, 2, 2, 2];
    for rank in 1..=5 {
        for shift in [0, 2, -1, 35, 100] {
            let at: Vec<i32> = (0..rank).map(|d| if d == 0 { shift } else { shift.clamp(-1, 2) }).collect();
            let c = Case::new(TensorType::U16, &dims[..rank], &tile[..rank], &[1; 5][..rank], 16, false, &at);
            both(&c, 3);
        }
    }
}

#[test]
fn every_type_and_fill() {
    for ty in TYPES {
        let inner = 32 / ty.bytes();
        for nan_fill in [false, true] {
            if nan_fill && !is_float(ty) {
                continue;
            }
            check_load(&Case::new(ty, &[u64::from(inner) * 2, 6], &[inner, 4], &[1, 1], 16, nan_fill, &[-3, 4]), 1);
        }
        both(&Case::new(ty, &[u64::from(inner) * 2, 6], &[inner, 4], &[1, 1], 32, false, &[3, 1]), 1);
    }
}

#[test]
fn every_swizzle_at_its_full_width() {
    for span in SPANS {
        for rows in [1, 8, 19] {
            let inner = if span == 16 { 96 } else { span / 2 };
            both(&Case::new(TensorType::F16, &[200, 30], &[inner, rows], &[1, 1], span, false, &[8, 3]), 2);
        }
    }
}

#[test]
fn element_strides_skip_in_outer_dimensions_and_not_in_the_innermost() {
    for steps in [[1, 2, 1], [1, 3, 2], [4, 8, 5], [1, 1, 8]] {
        both(&Case::new(TensorType::U32, &[20, 30, 9], &[8, 12, 6], &steps, 16, false, &[2, 1, 0]), 5);
        both(&Case::new(TensorType::U32, &[20, 30, 9], &[8, 12, 6], &steps, 32, false, &[14, 22, 5]), 5);
    }
}

fn cases() -> impl Strategy<Value = Case> {
    (1usize..6, 0usize..10, 0usize..4, any::<bool>(), any::<u64>()).prop_map(|(rank, ty, span, nan, seed)| {
        let (ty, span) = (TYPES[ty], SPANS[span]);
        let mut r = Bits(seed);
        let pieces = if span == 16 { 1 + r.below(6) } else { 1 + r.below(u64::from(span) / 16) };
        // A swizzled row is whole: rows narrower than the span are asked of hardware by the cross-check.
        let inner = if span == 16 { pieces * 16 } else { u64::from(span) } as u32 / ty.bytes();
        let mut dims = vec![u64::from(inner) + r.below(40)];
        let (mut tile, mut steps) = (vec![inner], vec![1 + r.below(8) as u32]);
        let mut at = vec![r.below(dims[0] + 20) as i32 - 10];
        for _ in 1..rank {
            dims.push(1 + r.below(6));
            tile.push(1 + r.below(4) as u32);
            steps.push(1 + r.below(3) as u32);
            at.push(r.below(dims[dims.len() - 1] + 4) as i32 - 2);
        }
        Case::new(ty, &dims, &tile, &steps, span, nan && is_float(ty), &at)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_box(c in cases(), seed in 0u64..1000) {
        both(&c, seed);
    }
}

/// Element by element on little-endian bytes.
fn apply(ty: TensorType, op: &str, old: &[u8], new: &[u8]) -> Vec<u8> {
    let get = |b: &[u8]| b.iter().rev().fold(0u64, |x, y| x << 8 | u64::from(*y));
    let (x, y) = (get(old), get(new));
    let signed = |v: u64| if ty.bytes() == 4 { i64::from(v as i32) } else { v as i64 };
    let half = |f: &Format| {
        let (a, b) = (f.value(x as u32), f.value(y as u32));
        u64::from(match op {
            ".add" => f.round(a + b, Round::Nearest, false),
            ".min" => f.round(a.min(b), Round::Nearest, false),
            _ => f.round(a.max(b), Round::Nearest, false),
        })
    };
    let out = match (ty, op) {
        (TensorType::F16, _) => half(Format::f16()),
        (TensorType::Bf16, _) => half(Format::bf16()),
        (TensorType::F32, _) => u64::from((f32::from_bits(x as u32) + f32::from_bits(y as u32)).to_bits()),
        (_, ".add") => x.wrapping_add(y),
        (TensorType::S32 | TensorType::S64, ".min") => {
            if signed(x) < signed(y) {
                x
            } else {
                y
            }
        }
        (TensorType::S32 | TensorType::S64, ".max") => {
            if signed(x) > signed(y) {
                x
            } else {
                y
            }
        }
        (_, ".min") => x.min(y),
        (_, ".max") => x.max(y),
        (_, ".and") => x & y,
        (_, ".or") => x | y,
        (_, ".xor") => x ^ y,
        (_, ".inc") => {
            if x >= y {
                0
            } else {
                x + 1
            }
        }
        _ => {
            if x == 0 || x > y {
                y
            } else {
                x - 1
            }
        }
    };
    out.to_le_bytes()[..old.len()].to_vec()
}

#[test]
fn every_reduction_of_every_type_that_has_it() {
    use TensorType::{Bf16, F16, F32, S32, S64, U32, U64};
    let table: [(&str, &[TensorType]); 8] = [
        (".add", &[U32, S32, U64, F32, F16, Bf16]),
        (".min", &[U32, S32, U64, S64, F16, Bf16]),
        (".max", &[U32, S32, U64, S64, F16, Bf16]),
        (".inc", &[U32]),
        (".dec", &[U32]),
        (".and", &[U32, S32, U64, S64]),
        (".or", &[U32, S32, U64, S64]),
        (".xor", &[U32, S32, U64, S64]),
    ];
    for (op, types) in table {
        for &ty in types {
            let inner = 32 / ty.bytes();
            let c = Case::new(ty, &[u64::from(inner) + 3, 5], &[inner, 4], &[1, 1], 32, false, &[2, -1]);
            let (mut before, mut tile) = (bytes(c.size, 11), bytes(c.bytes(), 12));
            if is_float(ty) {
                // Finite numbers of moderate size: the top byte of each is +-1 to 2 (or so).
                let es = ty.bytes() as usize;
                for b in [&mut before, &mut tile] {
                    b.iter_mut().skip(es - 1).step_by(es).for_each(|t| *t = (*t & 0x81) | 0x3E);
                }
            } else if op == ".inc" || op == ".dec" {
                // Small numbers, so that both sides of the comparison occur.
                for b in [&mut before, &mut tile] {
                    b.iter_mut().enumerate().for_each(|(i, t)| *t = if i % 4 == 0 { *t % 4 } else { 0 });
                }
            }
            check_store(&c, 1, op, |old, new| apply(ty, op, old, new), (before, tile));
        }
    }
}

/// Reductions that the ISA's table does not have are refused.
#[test]
fn reductions_without_a_type_are_faults() {
    for (op, ty) in [
        (".inc", TensorType::S32),
        (".add", TensorType::F64),
        (".and", TensorType::F32),
        (".min", TensorType::F32),
        (".add", TensorType::S64),
        (".add", TensorType::U8),
    ] {
        let inner = 32 / ty.bytes();
        let c = Case::new(ty, &[u64::from(inner)], &[inner], &[1], 16, false, &[0]);
        let mut map = c.map.clone();
        map.buffer = 1;
        let p = tensor_store(map, vec![0; 32], vec![0; 1024], &[0], op);
        let f = emulate(&p, Numerics::Ascending, 0).expect_err("refused");
        assert!(f.to_string().contains("reduction"), "{op} {ty:?}: {f}");
    }
}

/// One block copies to several of its cluster at once: every block named in the mask receives the tile, the others nothing.
#[test]
fn multicast_reaches_the_blocks_of_the_mask() {
    for (cluster, mask) in [(2u32, 3u32), (4, 0b1101), (8, 0b1000_0001), (4, 1)] {
        let c = Case::new(TensorType::U32, &[64], &[32], &[1], 16, false, &[16]);
        let data = bytes(c.size, 9);
        let load = tensor_load(c.map.clone(), data.clone(), &c.at, 128);
        // Every block named expects the bytes; the first block loads for all, once all barriers exist.
        let text = load
            .text
            .replace("mbarrier.arrive", &format!("mov.u32 %r8, %cluster_ctarank; mov.u32 %r9, {mask}; shr.u32 %r9, %r9, %r8; and.b32 %r9, %r9, 1;
setp.eq.u32 %p2, %r9, 0; @%p2 mbarrier.arrive.shared::cta.b64 _, [%r3];\n@!%p2 mbarrier.arrive"))
            .replace("cp.async.bulk.tensor", "START0:\nbarrier.cluster.arrive;\nbarrier.cluster.wait;\nmov.u32 %r8, %cluster_ctarank; or.b32 %r8, %r8, %r1; setp.ne.u32 %p1, %r8, 0; @%p1 bra START;\ncp.async.bulk.tensor")
            .replace("@%p1 bra START;\nmbarrier", "@%p1 bra START0;\nmbarrier")
            .replace("complete_tx::bytes [", "complete_tx::bytes.multicast::cluster [")
            .replace(", [%r3];\nSTART:", &format!(", [%r3], {mask};\nSTART:"))
            .replace("LOOP:\n", "mov.u32 %r8, %cluster_ctarank; mul.wide.u32 %rd5, %r8, 128; add.u64 %rd1, %rd1, %rd5;\nmov.u32 %r9, 1; shl.b32 %r9, %r9, %r8; and.b32 %r9, %r9, MASK; setp.eq.u32 %p1, %r9, 0; @%p1 bra DONE;\nLOOP:\n")
            .replace("MASK", &mask.to_string())
            .replace("DONE:\nret;", "DONE:\nbarrier.cluster.arrive;\nbarrier.cluster.wait;\nret;")
            .replace("\n{\n.reg .b64", &format!("\n.reqnctapercluster {cluster}, 1, 1\n{{\n.reg .b64"));
        let out = support::program::Param::Output(vec![0xEE; 128 * cluster as usize]);
        let params = vec![load.params[0].clone(), load.params[1].clone(), out];
        let p = Program { text, grid: cluster, cluster, params, ..load };
        for seed in 0..5 {
            let got = emulate(&p, Numerics::Ascending, seed)
                .unwrap_or_else(|f| panic!("mask {mask:b} seed {seed}: {f}\n{}", p.text));
            for rank in 0..cluster as usize {
                let piece = &got[128 * rank..128 * (rank + 1)];
                if mask >> rank & 1 == 1 {
                    assert_eq!(piece, &data[64..192], "block {rank} of mask {mask:b}");
                } else {
                    assert!(piece.iter().all(|b| *b == 0xEE), "block {rank} of mask {mask:b}");
                }
            }
        }
    }
}
