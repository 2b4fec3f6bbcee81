//! The page for newcomers shows what really happens.

use ptx_emulator::{Arch, Device, LaunchConfig, Module};

const PAGE: &str = include_str!("../README.md");
const PTX: &str = include_str!("../examples/scale.ptx");

fn fault(ptx: &str, n: i32) -> String {
    let module = Module::parse(ptx).expect("it parses");
    let mut device = Device::new(Arch::Sm80);
    let x = device.alloc(n as u64 * 4).expect("memory");
    device.copy_in(x, &vec![0; n as usize * 4]).expect("a copy");
    let mut params = x.to_le_bytes().to_vec();
    params.extend(2.0f32.to_le_bytes());
    params.extend(n.to_le_bytes());
    device
        .launch(&module, "scale", &LaunchConfig::new([2, 1, 1], [64, 1, 1]), &params)
        .expect_err("a fault")
        .to_string()
}

#[test]
fn the_faults_are_those_of_the_example() {
    let without_barrier = fault(&PTX.replace("bar.sync", "//bar.sync"), 128);
    assert!(PAGE.contains(&without_barrier), "{without_barrier}");
    let tail = fault(PTX, 100);
    assert!(PAGE.contains(&tail), "{tail}");
}

#[test]
fn the_kernel_is_the_one_of_the_example() {
    let kernel = include_str!("../examples/scale.cu");
    let start = kernel.find("extern").expect("the kernel");
    assert!(PAGE.contains(kernel[start..].trim_end()));
}
