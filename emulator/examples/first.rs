//! Runs `scale.cu` on the CPU, then twice with a mistake in it. `cargo run --example first`

use ptx_emulator::{Arch, Device, LaunchConfig, Module};

fn run(ptx: &str, n: usize) -> Result<(), Box<dyn std::error::Error>> {
    let module = Module::parse(ptx)?;
    let mut device = Device::new(Arch::Sm80);
    let host: Vec<u8> = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let x = device.alloc(host.len() as u64)?;
    device.copy_in(x, &host)?;
    // The bytes of (float *x, float factor, int n), laid out as C lays them out.
    let mut params = x.to_le_bytes().to_vec();
    params.extend(2.0f32.to_le_bytes());
    params.extend((n as i32).to_le_bytes());
    let config = LaunchConfig::new([n.div_ceil(64) as u32, 1, 1], [64, 1, 1]);
    match device.launch(&module, "scale", &config, &params) {
        Ok(report) => {
            println!("{} warp instructions", report.counters.total());
            for (kind, count) in report.counters.kinds() {
                println!("  {kind:10} {count}");
            }
        }
        Err(fault) => println!("{fault}"),
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ptx = include_str!("scale.ptx");
    println!("As written:");
    run(ptx, 128)?;
    println!("\nWithout the barrier:");
    run(&ptx.replace("bar.sync", "//bar.sync"), 128)?;
    println!("\nWith a tail that the kernel does not expect:");
    run(ptx, 100)?;
    Ok(())
}
