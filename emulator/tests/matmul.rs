//! Two matrix products, end to end: plain SIMT in f32, and bf16 through `cp.async`, `ldmatrix` and `mma.sync`.

mod support;
use ptx_emulator::{LaunchConfig, Numerics};
use support::*;

fn simt(m: usize, n: usize, k: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
    let module = module("simt_matmul");
    let mut d = device();
    d.set_seed(seed);
    let (a, b) = (integers(m * k, 1), integers(k * n, 2));
    let (pa, pb) = (put(&mut d, &bytes_f32(&a)), put(&mut d, &bytes_f32(&b)));
    let pc = d.alloc((m * n * 4) as u64).unwrap();
    let p = Params::new().u64(pa).u64(pb).u64(pc).i32(m as i32).i32(n as i32).i32(k as i32).pad(8);
    let config = LaunchConfig::new([n.div_ceil(16) as u32, m.div_ceil(16) as u32, 1], [16, 16, 1]);
    launch(&mut d, &module, "simt_matmul", config, &p).unwrap_or_else(|f| panic!("{f}"));
    (get_f32(&d, pc, m * n), matmul(m, n, k, &a, |l, j| b[l * n + j]))
}

#[test]
fn simt_f32_is_exact_for_tails() {
    for (m, n, k) in [(1, 1, 1), (16, 16, 16), (17, 33, 19), (40, 5, 64), (3, 50, 7)] {
        let (got, want) = simt(m, n, k, m as u64);
        assert_eq!(got, want, "{m} x {n} x {k}");
    }
}

fn tensor(m: usize, n: usize, k: usize, seed: u64, numerics: Numerics) -> (Vec<f32>, Vec<f32>, u64) {
    let module = module("mma_matmul");
    let mut d = device();
    d.set_seed(seed);
    d.set_numerics(numerics);
    let (a, b) = (integers(m * k, 3), integers(n * k, 4));
    let (pa, pb) = (put(&mut d, &bytes_bf16(&a)), put(&mut d, &bytes_bf16(&b)));
    let pc = d.alloc((m * n * 4) as u64).unwrap();
    let p = Params::new().u64(pa).u64(pb).u64(pc).i32(m as i32).i32(n as i32).i32(k as i32).pad(8);
    let config = LaunchConfig::new([n.div_ceil(64) as u32, m.div_ceil(64) as u32, 1], [128, 1, 1]).shared(3 * 8192);
    let report = launch(&mut d, &module, "mma_matmul", config, &p).unwrap_or_else(|f| panic!("{f}"));
    (get_f32(&d, pc, m * n), matmul(m, n, k, &a, |l, j| b[j * k + l]), report.counters.tensor_macs)
}

#[test]
fn tensor_bf16_is_exact_for_tails() {
    for (m, n, k) in [(64, 64, 32), (64, 64, 160), (65, 70, 40), (1, 130, 8), (100, 3, 96)] {
        let (got, want, macs) = tensor(m, n, k, k as u64, Numerics::Ascending);
        assert_eq!(got, want, "{m} x {n} x {k}");
        let tiles = m.div_ceil(64) * n.div_ceil(64);
        assert_eq!(macs, (tiles * 64 * 64 * k.div_ceil(32) * 32) as u64);
    }
}

#[test]
fn results_and_counters_do_not_depend_on_the_number_of_cores() {
    let module = module("mma_matmul");
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            let mut d = device();
            let (m, n, k) = (200, 200, 64);
            let (pa, pb) =
                (put(&mut d, &bytes_bf16(&integers(m * k, 3))), put(&mut d, &bytes_bf16(&integers(n * k, 4))));
            let pc = d.alloc((m * n * 4) as u64).unwrap();
            let p = Params::new().u64(pa).u64(pb).u64(pc).i32(m as i32).i32(n as i32).i32(k as i32).pad(8);
            let config = LaunchConfig::new([4, 4, 1], [128, 1, 1]).shared(3 * 8192);
            let report = launch(&mut d, &module, "mma_matmul", config, &p).unwrap_or_else(|f| panic!("{f}"));
            (get_f32(&d, pc, m * n), report)
        })
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(5), one);
    // A swizzled tile has no bank conflicts beyond those of the copies' own order.
    assert!(one.1.counters.bank_conflicts * 10 < one.1.counters.shared_wavefronts, "{:?}", one.1.counters);
}

#[test]
fn devices_and_modules_can_cross_threads() {
    fn crosses<T: Send + Sync>() {}
    crosses::<ptx_emulator::Device>();
    crosses::<ptx_emulator::Module>();
}

#[test]
fn results_depend_neither_on_the_seed_nor_on_the_order_of_additions() {
    let (first, want, _) = tensor(96, 96, 64, 0, Numerics::Ascending);
    assert_eq!(first, want);
    for seed in 1..6 {
        assert_eq!(tensor(96, 96, 64, seed, Numerics::Descending).0, first);
    }
}
