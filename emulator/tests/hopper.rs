//! A matrix product written for Hopper: TMA loads with multicast in a cluster of 2, an mbarrier ring, warp-specialised
//! producer and consumers, wgmma m64n256k16, stmatrix and TMA store. Integer inputs, so the result is exact.

mod support;
use ptx_emulator::{Arch, Device, FaultKind, LaunchConfig, Module, Numerics, Swizzle, TensorMap, TensorType};
use support::*;

const SHARED: u32 = 3 * (128 + 256) * 64 * 2 + 128 * 256 * 2;

/// -1, 0 and 1: sums stay exact in bf16.
fn signs(n: usize, seed: u32) -> Vec<f32> {
    integers(n, seed).iter().map(|x| (x % 2.0).trunc()).collect()
}

fn map(address: u64, rows: usize, cols: usize, tile: [u32; 2]) -> TensorMap {
    swizzled_map(address, rows, cols, tile, Swizzle::B128)
}

fn swizzled_map(address: u64, rows: usize, cols: usize, tile: [u32; 2], swizzle: Swizzle) -> TensorMap {
    let (dims, strides) = ([cols as u64, rows as u64], [cols as u64 * 2]);
    TensorMap::tiled(TensorType::Bf16, address, &dims, &strides, &tile, &[1, 1], swizzle, false).expect("a legal map")
}

fn product(module: &Module, m: usize, n: usize, k: usize, seed: u64, numerics: Numerics) -> (Vec<f32>, Vec<f32>) {
    product_of(module, [m, n, k], seed, numerics, Swizzle::B128)
}

/// A is loaded with this swizzle; the kernel expects 128 bytes.
fn product_of(
    module: &Module,
    [m, n, k]: [usize; 3],
    seed: u64,
    numerics: Numerics,
    swizzle: Swizzle,
) -> (Vec<f32>, Vec<f32>) {
    let mut d = Device::new(Arch::Sm90a);
    d.set_seed(seed);
    d.set_numerics(numerics);
    let (a, b) = (signs(m * k, 5), signs(n * k, 6));
    let (pa, pb) = (put(&mut d, &bytes_bf16(&a)), put(&mut d, &bytes_bf16(&b)));
    let pc = d.alloc((m * n * 2) as u64).unwrap();
    let mut p = Vec::new();
    p.extend(swizzled_map(pa, m, k, [64, 128], swizzle).to_bytes());
    for (address, rows, cols, tile) in [(pb, n, k, [64, 128]), (pc, m, n, [64, 64])] {
        p.extend(map(address, rows, cols, tile).to_bytes());
    }
    p.extend((k as i32).to_le_bytes());
    p.resize(p.len().next_multiple_of(128), 0);
    let grid = [m.div_ceil(256) as u32 * 2, n.div_ceil(256) as u32, 1];
    let config = LaunchConfig::new(grid, [384, 1, 1]).cluster([2, 1, 1]).shared(SHARED);
    d.launch(module, "hopper_matmul", &config, &p).unwrap_or_else(|f| panic!("{f}"));
    let mut out = vec![0; m * n * 2];
    d.copy_out(&mut out, pc).unwrap();
    let got = out.chunks_exact(2).map(|c| f32::from_bits(u32::from(u16::from_le_bytes([c[0], c[1]])) << 16)).collect();
    (got, matmul(m, n, k, &a, |l, j| b[j * k + l]))
}

fn kernel() -> Module {
    Module::parse(&ptx("hopper_matmul", "compute_90a")).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn the_hopper_product_is_exact() {
    let module = kernel();
    for (m, n, k, seed) in [(256, 256, 64, 0), (256, 256, 512, 1), (136, 264, 200, 2), (512, 512, 128, 3)] {
        let numerics = if seed % 2 == 0 { Numerics::Ascending } else { Numerics::Descending };
        let (got, want) = product(&module, m, n, k, seed, numerics);
        assert!(got == want, "{m} x {n} x {k}");
    }
}

/// A wrong swizzle reads memory that was written, so it is no fault: the exact check is what rejects it.
#[test]
fn a_wrong_swizzle_gives_a_wrong_product() {
    let module = kernel();
    for seed in 0..10 {
        let of = |swizzle| product_of(&module, [256, 256, 64], seed, Numerics::Ascending, swizzle);
        let (got, want) = of(Swizzle::None);
        assert!(got != want, "seed {seed}");
    }
    let (got, want) = product_of(&module, [256, 256, 64], 0, Numerics::Ascending, Swizzle::B128);
    assert!(got == want);
}

const SOURCE: &str = include_str!("kernels/hopper_matmul.cu");

/// What the faults of this kernel can be at.
const INSTRUCTIONS: [&str; 6] =
    ["cp.async.bulk.tensor", "mbarrier.", "wgmma.mma_async", "stmatrix", "cvt.rn.bf16x2", "barrier.cluster"];

/// The same kernel with one thing wrong, by changing its PTX: for every seed the fault must satisfy the condition, at a line of
/// the source that contains one of the texts. The right twin is the kernel itself, which the tests above run.
fn broken(change: impl Fn(&str) -> String, at: &[&str], expected: impl Fn(&FaultKind) -> bool) {
    let text = ptx("hopper_matmul", "compute_90a");
    let changed = change(&text);
    assert_ne!(text, changed, "the change applies");
    let module = Module::parse(&changed).unwrap_or_else(|e| panic!("{e}"));
    let (m, n, k) = (256, 256, 512);
    let (a, b) = (bytes_bf16(&signs(m * k, 5)), bytes_bf16(&signs(n * k, 6)));
    for seed in 0..10 {
        let mut d = Device::new(Arch::Sm90a);
        d.set_seed(seed);
        d.set_instruction_limit(3_000_000);
        let (pa, pb) = (put(&mut d, &a), put(&mut d, &b));
        let pc = d.alloc((m * n * 2) as u64).unwrap();
        let mut p = Vec::new();
        for (address, rows, cols, tile) in [(pa, m, k, [64, 128]), (pb, n, k, [64, 128]), (pc, m, n, [64, 64])] {
            p.extend(map(address, rows, cols, tile).to_bytes());
        }
        p.extend((k as i32).to_le_bytes());
        p.resize(p.len().next_multiple_of(128), 0);
        let config = LaunchConfig::new([2, 1, 1], [384, 1, 1]).cluster([2, 1, 1]).shared(SHARED);
        let fault = d.launch(&module, "hopper_matmul", &config, &p).expect_err("a fault");
        assert!(expected(&fault.kind), "seed {seed}: {fault}");
        let lines: Vec<u32> =
            (1u32..).zip(SOURCE.lines()).filter(|(_, l)| at.iter().any(|a| l.contains(a))).map(|l| l.0).collect();
        let named = fault.source.iter().chain(&fault.inlined_at);
        let found = named.into_iter().any(|s| s.0.ends_with("hopper_matmul.cu") && lines.contains(&s.1));
        assert!(found, "seed {seed}, lines {lines:?}: {fault}");
        let line = fault.line.expect("a PTX line") as usize;
        let instruction = changed.lines().nth(line - 1).expect("that line");
        assert!(INSTRUCTIONS.iter().any(|i| instruction.contains(i)), "PTX line {line}: {instruction}");
    }
}

/// Changes the lines that satisfy a condition.
fn lines(text: &str, which: impl Fn(&str) -> bool, change: impl Fn(&str) -> String) -> String {
    text.lines().map(|l| if which(l) { change(l) } else { l.to_string() } + "\n").collect()
}

#[test]
fn too_many_expected_bytes_never_arrive() {
    let change = |t: &str| lines(t, |l| l.contains("mov.u32") && l.contains("49152"), |l| l.replace("49152", "49168"));
    broken(
        change,
        &["mbarrier_wait(smem(full"],
        |kind| matches!(kind, FaultKind::Deadlock { waiting } if waiting.contains("16 bytes missing")),
    );
}

#[test]
fn too_few_expected_bytes_are_counted() {
    let change = |t: &str| lines(t, |l| l.contains("mov.u32") && l.contains("49152"), |l| l.replace("49152", "49136"));
    broken(change, &["tma_load"], |kind| matches!(kind, FaultKind::Misuse(text) if text.contains("bytes more")));
}

#[test]
fn a_stale_phase_parity_reads_too_early() {
    // The first wait in the text is the consumers'; 1 is the parity of the phase before the first.
    let change = |t: &str| {
        let at = t.find("mbarrier.try_wait").expect("a wait");
        let end = at + t[at..].find(';').expect("its end");
        let comma = at + t[at..end].rfind(',').expect("its parity");
        format!("{}, 1{}", &t[..comma], &t[end..])
    };
    broken(change, &["wgmma(d, descriptor", "tma_load"], |kind| {
        matches!(
            kind,
            FaultKind::AsyncNotWaited { .. }
                | FaultKind::UninitialisedMemory { .. }
                | FaultKind::Race { .. }
                | FaultKind::Deadlock { .. }
        )
    });
}

#[test]
fn barriers_used_before_the_cluster_agrees_are_found() {
    let change =
        |t: &str| t.replacen("barrier.cluster.arrive.aligned;", "", 1).replacen("barrier.cluster.wait.aligned;", "", 1);
    broken(change, &["smem(full + s)", "smem(empty + s)"], |kind| {
        matches!(kind, FaultKind::Misuse(_) | FaultKind::Race { .. })
    });
}

#[test]
fn a_missing_matrix_fence_is_found() {
    let change = |t: &str| t.replace("wgmma.fence.sync.aligned;", "");
    broken(change, &["wgmma(d, descriptor"], |kind| matches!(kind, FaultKind::Misuse(text) if text.contains("fence")));
}

#[test]
fn a_missing_proxy_fence_is_found() {
    let change = |t: &str| t.replace("fence.proxy.async.shared::cta;", "");
    broken(change, &["tma_store(&p.c"], |kind| matches!(kind, FaultKind::MissingProxyFence { .. }));
}

#[test]
fn accumulators_in_flight_are_out_of_reach() {
    let change = |t: &str| t.replace("wgmma.wait_group.sync.aligned 0;", "");
    broken(change, &["tma_load", "pack("], |kind| {
        matches!(kind, FaultKind::RegisterInFlight { .. } | FaultKind::AsyncOverwrite { .. })
    });
}

#[test]
fn a_barrier_left_out_before_the_store_is_a_race() {
    let change = |t: &str| {
        let at = t.find("bar.sync ").expect("a named barrier");
        let end = at + t[at..].find(';').expect("its end");
        format!("{}{}", &t[..at], &t[end + 1..])
    };
    broken(change, &["tma_store(&p.c", "stmatrix", "pack("], |kind| {
        matches!(
            kind,
            FaultKind::Race { .. } | FaultKind::UninitialisedMemory { .. } | FaultKind::MissingProxyFence { .. }
        )
    });
}

#[test]
fn cluster_launches_are_checked() {
    let module = kernel();
    let mut d = Device::new(Arch::Sm90a);
    let config = LaunchConfig::new([2, 1, 1], [384, 1, 1]).shared(SHARED);
    let f = d.launch(&module, "hopper_matmul", &config, &[0; 512]).expect_err("the cluster is missing");
    assert!(matches!(f.kind, FaultKind::Launch(_)), "{f}");
    let mut old = Device::new(Arch::Sm80);
    let f = old.launch(&module, "hopper_matmul", &config.cluster([2, 1, 1]), &[0; 512]).expect_err("sm_80");
    assert!(matches!(f.kind, FaultKind::Launch(_)), "{f}");
}
