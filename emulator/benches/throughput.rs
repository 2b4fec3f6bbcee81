//! Warp instructions per second with all checks on: of one core, then of all cores together. The PTX is the checked-in one.
//!
//! The elements per second that criterion prints are warp instructions; each case's name tells how many a launch has.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ptx_emulator::{Arch, Device, LaunchConfig, Module, Swizzle, TensorMap, TensorType};

struct Case {
    device: Device,
    module: Module,
    entry: &'static str,
    config: LaunchConfig,
    params: Vec<u8>,
}

/// A buffer of `bytes` that hold 0x3F80 over and over: one in bf16, nearly one in f32.
fn ones(device: &mut Device, bytes: usize) -> u64 {
    let address = device.alloc(bytes as u64).expect("memory");
    device.copy_in(address, &[0x80, 0x3F].repeat(bytes / 2)).expect("copy");
    address
}

fn case(entry: &'static str, ptx: &str, elem: usize, tile: u32, block: [u32; 3], shared: u32) -> Case {
    let (m, n, k) = (256u32, 256u32, 256u32);
    let mut device = Device::new(Arch::Sm80);
    let mut params = Vec::new();
    for count in [m * k, n * k] {
        params.extend(ones(&mut device, count as usize * elem).to_le_bytes());
    }
    params.extend(device.alloc(u64::from(m * n * 4)).expect("memory").to_le_bytes());
    for x in [m, n, k, 0] {
        params.extend(x.to_le_bytes());
    }
    let config = LaunchConfig::new([n / tile, m / tile, 1], block).shared(shared);
    Case { device, module: Module::parse(ptx).expect("the checked-in PTX parses"), entry, config, params }
}

/// The Hopper product of the tests: C[256, 512] = A[256, 256] · B[512, 256]ᵀ in bf16.
fn hopper() -> Case {
    let (m, n, k) = (256usize, 512usize, 256usize);
    let mut device = Device::new(Arch::Sm90a);
    let (a, b) = (ones(&mut device, m * k * 2), ones(&mut device, n * k * 2));
    let c = device.alloc((m * n * 2) as u64).expect("memory");
    let mut params = Vec::new();
    for (address, rows, cols, tile) in [(a, m, k, [64, 128]), (b, n, k, [64, 128]), (c, m, n, [64, 64])] {
        let (dims, strides) = ([cols as u64, rows as u64], [cols as u64 * 2]);
        let map = TensorMap::tiled(TensorType::Bf16, address, &dims, &strides, &tile, &[1, 1], Swizzle::B128, false);
        params.extend(map.expect("a legal map").to_bytes());
    }
    params.extend((k as i32).to_le_bytes());
    params.resize(params.len().next_multiple_of(128), 0);
    let module = Module::parse(include_str!("../tests/ptx/hopper_matmul.ptx")).expect("the checked-in PTX parses");
    let shared = 3 * (128 + 256) * 64 * 2 + 128 * 256 * 2;
    let config = LaunchConfig::new([2, 2, 1], [384, 1, 1]).cluster([2, 1, 1]).shared(shared);
    Case { device, module, entry: "hopper_matmul", config, params }
}

fn run(c: &mut Case) -> u64 {
    let report = c.device.launch(&c.module, c.entry, &c.config, &c.params).expect("the kernel is right");
    report.counters.total()
}

fn benches(criterion: &mut Criterion) {
    let cores = rayon::current_num_threads();
    let mut cases = [
        case("mma_matmul", include_str!("../tests/ptx/mma_matmul.ptx"), 2, 64, [128, 1, 1], 3 * 8192),
        case("simt_matmul", include_str!("../tests/ptx/simt_matmul.ptx"), 4, 16, [16, 16, 1], 0),
        hopper(),
    ];
    for threads in [1, cores] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let name = if threads == 1 { "per core".into() } else { format!("on {threads} cores") };
        let mut group = criterion.benchmark_group(format!("warp instructions {name}"));
        group.sample_size(10);
        for c in &mut cases {
            let n = run(c);
            group.throughput(Throughput::Elements(n));
            group.bench_function(format!("{} ({n})", c.entry), |b| b.iter(|| pool.install(|| run(c))));
        }
        group.finish();
    }
}

criterion_group!(all, benches);
criterion_main!(all);
