//! What the gate's kernels do to memory, counted by the emulator: every input is read once and every output written once, 16 bytes at a
//! time, and nothing goes through local memory. A vector of `[k]` is read once for each row, from a cache by then.
#![cfg(all(feature = "emulator", graftwork_kernels))]

use std::sync::{Arc, Mutex};

use graftwork::autograd::{Grads, Tape, Var};
use graftwork::device::{LaunchSpec, Launcher};
use graftwork::ops::{Gate, GranularScale, Update, granular_scale};
use graftwork::tensor::ParamSet;
use graftwork::testing::normal;
use graftwork::{DType, Device, Error, Result, Tensor};
use ptx_emulator::{Arch, Counters, LaunchConfig, Module};

type Counted = Arc<Mutex<Vec<(&'static str, Counters)>>>;

/// The emulator, with an ear on every launch.
struct Counting {
    emulator: Mutex<ptx_emulator::Device>,
    counted: Counted,
}

fn fault(report: impl std::fmt::Display) -> Error {
    Error::Emulated { place: "counting", report: report.to_string() }
}

impl Launcher for Counting {
    fn name(&self) -> String {
        "counting".into()
    }

    fn capability(&self) -> u32 {
        80
    }

    fn multiprocessors(&self) -> u32 {
        1
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.emulator.lock().unwrap().alloc(bytes.max(1) as u64).map_err(fault)
    }

    fn release(&self, address: u64, _: usize) {
        self.emulator.lock().unwrap().free(address).unwrap();
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<()> {
        self.emulator.lock().unwrap().copy_in(address, data).map_err(fault)
    }

    fn read(&self, address: u64, data: &mut [u8]) -> Result<()> {
        self.emulator.lock().unwrap().copy_out(data, address).map_err(fault)
    }

    fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        let mut through = vec![0; bytes];
        self.read(source, &mut through)?;
        self.write(target, &through)
    }

    fn zero(&self, address: u64, bytes: usize) -> Result<()> {
        self.write(address, &vec![0; bytes])
    }

    fn launch(&self, spec: &LaunchSpec) -> Result<()> {
        spec.check()?;
        let symbol = spec.kernel.symbol();
        let module = Module::parse(spec.kernel.image()?.ptx).map_err(fault)?;
        let config = LaunchConfig::new(spec.grid, spec.block).shared(spec.shared_bytes).cluster(spec.cluster);
        let launched = self.emulator.lock().unwrap().launch(&module, symbol, &config, spec.params.bytes());
        let report = launched.map_err(fault)?;
        self.counted.lock().unwrap().push((symbol, report.counters));
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

const M: usize = 24;
const K: usize = 768;
/// Bytes of `[m, k]` and of `[k]` in bf16.
const WHOLE: u64 = (M * K * 2) as u64;
const VECTOR: u64 = (K * 2) as u64;

/// Forward, and backward for ΔH, b and the gate's operands: what each launch of the gate's kernels counted.
fn count(gate: &str) -> Vec<(&'static str, Counters)> {
    let counted = Counted::default();
    let emulator = Mutex::new(ptx_emulator::Device::new(Arch::Sm80));
    let device = Device::with_launcher(Box::new(Counting { emulator, counted: counted.clone() }));
    let make = |name: &str, dims: &[usize]| {
        Tensor::from_f32(&device, dims, &normal(name, dims.iter().product()), DType::BF16).unwrap()
    };
    let params = ParamSet::none(&device, DType::BF16).unwrap();
    let mut tape = Tape::deterministic(&params);
    let (hidden, residual) = (Var::constant(make("h", &[M, K])), Var::constant(make("r", &[M, K])));
    let update = tape.input(make("d", &[M, K]));
    let weight = tape.input(make("w", &[K]));
    let logits = tape.input(make("l", &[M, K]));
    let gate = match gate {
        "large" => Gate::Large { logits: &logits },
        _ => Gate::MiddleY { offset: &weight, sigmoid: false },
    };
    let update = Update::Given(&update);
    let options = GranularScale {
        update: Some(update),
        residual: Some(&residual),
        add_residual: true,
        ..GranularScale::new(gate)
    };
    let y = granular_scale(&mut tape, &hidden, &options).unwrap();
    tape.backward_with(&y, make("dy", &[M, K]), &mut Grads::zeros(&params).unwrap()).unwrap();
    let all = counted.lock().unwrap();
    all.iter().filter(|(symbol, _)| symbol.starts_with("granular_scale")).cloned().collect()
}

fn hold((symbol, counters): &(&'static str, Counters), loads: u64, stores: u64) {
    let bytes = |sectors: u64| 32 * sectors;
    assert_eq!(bytes(counters.load_sectors), loads, "{symbol} loads");
    assert_eq!(bytes(counters.store_sectors), stores, "{symbol} stores");
    assert_eq!(
        counters.load_sectors + counters.store_sectors,
        counters.ideal_sectors,
        "{symbol} asks for whole sectors"
    );
    assert_eq!(counters.local_accesses, 0, "{symbol}");
}

#[test]
fn each_input_is_read_once_and_each_output_written_once() {
    let rows = M as u64;
    let pieces = 3 * (K * 4) as u64;
    let large = count("large");
    // H, ΔH, R, L; then dy, H, ΔH, L.
    hold(&large[0], 4 * WHOLE, WHOLE);
    hold(&large[1], 4 * WHOLE, 2 * WHOLE);
    let middle_y = count("middle-y");
    hold(&middle_y[0], 3 * WHOLE + rows * VECTOR, WHOLE);
    // One row of partial sums of z for each of three blocks: eight f32 of a thread go out in two stores, half a sector each.
    let backward = &middle_y[1].1;
    assert_eq!(32 * backward.load_sectors, 3 * WHOLE + rows * VECTOR);
    assert_eq!(32 * backward.store_sectors, WHOLE + 2 * pieces);
    assert_eq!(backward.local_accesses, 0);
}
