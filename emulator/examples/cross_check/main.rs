//! Runs the same programs through the CUDA driver and through the emulator, and compares bits.
//!
//! `cargo run -p ptx-emulator --example cross_check -- [--record FILE] [--library FILE] [--list] [--plant TOOL]`

mod compare;
mod driver;
mod golden;
mod planted;
#[path = "../../tests/support/mod.rs"]
mod support;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    std::process::exit(compare::run(&arguments, &mut std::io::stdout()));
}
