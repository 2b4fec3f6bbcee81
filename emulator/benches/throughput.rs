//! Warp instructions per second, all checks on, for the two matrix products of the tests. The PTX is the checked-in one.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ptx_emulator::{Arch, Device, LaunchConfig, Module};

struct Case {
    device: Device,
    module: Module,
    entry: &'static str,
    config: LaunchConfig,
    params: Vec<u8>,
}

fn case(entry: &'static str, ptx: &str, elem: usize, tile: u32, block: [u32; 3], shared: u32) -> Case {
    let (m, n, k) = (256u32, 256u32, 256u32);
    let mut device = Device::new(Arch::Sm80);
    let mut params = Vec::new();
    for count in [m * k, n * k] {
        // Any finite bits do: 0x3F80 is one in bf16, 0x3F803F80 nearly one in f32.
        let data = [0x80, 0x3F].repeat(count as usize * elem / 2);
        let a = device.alloc(data.len() as u64).expect("memory");
        device.copy_in(a, &data).expect("copy");
        params.extend(a.to_le_bytes());
    }
    params.extend(device.alloc(u64::from(m * n * 4)).expect("memory").to_le_bytes());
    for x in [m, n, k, 0] {
        params.extend(x.to_le_bytes());
    }
    let config = LaunchConfig::new([n / tile, m / tile, 1], block).shared(shared);
    Case { device, module: Module::parse(ptx).expect("the checked-in PTX parses"), entry, config, params }
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
    ];
    let mut group = criterion.benchmark_group(format!("warp instructions on {cores} cores"));
    group.sample_size(10);
    for c in &mut cases {
        let n = run(c);
        group.throughput(Throughput::Elements(n));
        group.bench_function(c.entry, |b| b.iter(|| run(c)));
    }
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
