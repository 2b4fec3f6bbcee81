use super::*;
use crate::testing::integers;

fn pattern(shape: [usize; 2], block: usize, blocks: &[(u32, u32)]) -> Result<BlockPattern> {
    BlockPattern::from_blocks(&Device::cpu(), shape, block, blocks)
}

#[test]
fn both_indices_name_every_block_once() {
    let p = pattern([70, 100], 32, &[(0, 1), (0, 3), (2, 0), (2, 1)]).unwrap();
    let t = p.topology();
    assert_eq!(t.grid(), [3, 4]);
    assert_eq!((t.row_offsets(), t.columns(), t.rows()), (&[0, 2, 2, 4][..], &[1, 3, 0, 1][..], &[0, 0, 2, 2][..]));
    assert_eq!((t.t_offsets(), t.t_rows()), (&[0, 1, 3, 3, 4][..], &[2, 0, 2, 0][..]));
    assert_eq!(t.t_blocks(), &[2, 0, 3, 1]);
    // Row 2 has 6 lines, column 3 has 4.
    assert_eq!(t.covered(), 32 * 32 + 32 * 4 + 2 * 6 * 32);
    assert_eq!(BlockPattern::from_mask(&Device::cpu(), [70, 100], 32, &t.mask()).unwrap(), p);
    assert!((p.density() - 4.0 / 12.0).abs() < 1e-15);
}

#[test]
fn what_is_no_pattern_is_refused_with_its_place() {
    let message = |r: Result<BlockPattern>| r.unwrap_err().to_string();
    let device = Device::cpu();
    let offsets =
        |o: &[u32], c: &[u32]| message(BlockPattern::from_offsets(&device, [64, 64], 32, o.to_vec(), c.to_vec()));
    assert!(message(pattern([64, 64], 32, &[(1, 0), (0, 0)])).contains("(1, 0) before (0, 0)"));
    assert!(message(pattern([64, 64], 32, &[(0, 1), (0, 0)])).contains("0 after 1 in row 0"));
    assert!(message(pattern([64, 64], 32, &[(1, 1), (1, 1)])).contains("1 after 1 in row 1"));
    assert!(message(pattern([64, 64], 32, &[(2, 0)])).contains("rows below 2"));
    assert!(message(pattern([64, 64], 32, &[(0, 2)])).contains("columns below 2"));
    assert!(offsets(&[0, 1, 1], &[0, 1]).contains("offsets from 0 to 2"));
    assert!(offsets(&[0, 3, 2], &[0, 1]).contains("2 after 3 at row 1"));
    assert!(offsets(&[0, 2], &[0, 1]).contains("3 offsets for 2 rows"));
    for block in [0, 8, 24, 48, 256] {
        assert!(message(pattern([64, 64], block, &[])).contains("16, 32, 64 or 128"), "{block}");
    }
    let stream = Stream { seed: 1, step: 0, site: 0 };
    for density in [0.0, -0.1, 1.01, f64::NAN] {
        let refused = BlockPattern::random(&device, [64, 64], 16, density, stream);
        assert!(message(refused).contains("above 0 and at most 1"), "{density}");
    }
    assert!(BlockPattern::from_mask(&device, [64, 64], 32, &[true; 3]).is_err());
    let huge = pattern([usize::MAX, usize::MAX], 16, &[]);
    assert!(matches!(huge, Err(Error::SizeOverflow { .. })), "{huge:?}");
}

#[test]
fn random_patterns_have_their_density_and_repeat() {
    let draw =
        |seed| BlockPattern::random(&Device::cpu(), [512, 300], 16, 0.25, Stream { seed, step: 0, site: 3 }).unwrap();
    let p = draw(1);
    assert_eq!(p.nnz(), 152);
    assert!(p == draw(1) && p != draw(2));
    assert_eq!(blocks_of(0.001, 4).unwrap(), 1);
    assert_eq!((blocks_of(1.0, 7).unwrap(), blocks_of(0.5, 0).unwrap()), (7, 0));
}

#[test]
fn dense_to_blocks_and_back_is_the_identity() {
    for (n, k, block) in [(50, 70, 16), (64, 64, 32), (1, 1, 16), (130, 5, 128)] {
        let p = BlockPattern::random(&Device::cpu(), [n, k], block, 0.4, Stream { seed: 9, step: 0, site: 0 }).unwrap();
        let matrix = Tensor::from_f32(&Device::cpu(), &[n, k], &integers("m", n * k, 5), DType::BF16).unwrap();
        let sampled = BlockSparse::sample(p.clone(), &matrix).unwrap();
        let dense = sampled.to_dense().unwrap();
        let again = BlockSparse::from_dense(&dense, block).unwrap();
        assert_eq!(again.to_dense().unwrap().to_f32_vec().unwrap(), dense.to_f32_vec().unwrap());
        let full = BlockSparse::sample(BlockPattern::full(&Device::cpu(), [n, k], block).unwrap(), &matrix).unwrap();
        assert_eq!(full.to_dense().unwrap().to_f32_vec().unwrap(), matrix.to_f32_vec().unwrap());
    }
    let none = BlockSparse::zeros(BlockPattern::empty(&Device::cpu(), [20, 20], 16).unwrap(), DType::F32).unwrap();
    assert_eq!(none.to_dense().unwrap().to_f32_vec().unwrap(), vec![0.0; 400]);
    let p = BlockPattern::full(&Device::cpu(), [20, 20], 16).unwrap();
    let wrong = Tensor::zeros(&Device::cpu(), &[3, 16, 16], DType::F32).unwrap();
    assert!(matches!(BlockSparse::new(p, wrong), Err(Error::Shape { .. })));
}

#[test]
fn a_schedule_covers_every_block_once_and_evenly() {
    // One row of 4000 blocks among 63 of 4.
    let mut offsets = vec![0u32];
    for row in 0..64 {
        offsets.push(offsets[row] + if row == 5 { 4000 } else { 4 });
    }
    let s = Schedule::new(&offsets, 64);
    let mut seen = vec![0; 4252];
    for item in &s.items {
        for e in item.first..item.first + item.count {
            seen[e as usize] += 1;
            assert!((offsets[item.line as usize]..offsets[item.line as usize + 1]).contains(&e));
        }
    }
    assert!(seen.iter().all(|&n| n == 1));
    assert_eq!(s.joints, [Joint { line: 5, first: 0, count: 30 }]);
    assert_eq!((s.pieces, s.items.len()), (30, 93));
    assert!(s.items.iter().all(|i| i.count <= 134) && s.items.windows(2).all(|w| w[0].count >= w[1].count));
    // Whole, for kernels that do not cut.
    assert_eq!((s.lines.len(), s.lines[0].line, s.lines[0].count), (offsets.len() - 1, 5, offsets[6] - offsets[5]));
    // Lines without blocks have their item: it writes zeros.
    assert_eq!(Schedule::new(&[0, 0, 0], 16).items.len(), 2);
    let strips = schedule::strips(&[0, 3, 3, 12], 32);
    assert_eq!(
        strips.iter().map(|s| (s.line, s.first, s.count)).collect::<Vec<_>>(),
        [(0, 0, 3), (2, 3, 8), (2, 11, 1)]
    );
}
