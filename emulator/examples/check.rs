//! Parses PTX files and lists their kernels, or says what is not known and where. `cargo run --example check -- a.ptx b.ptx`

fn main() {
    let mut failed = false;
    for path in std::env::args().skip(1) {
        let text = match std::fs::read_to_string(&path) {
            Ok(t) => t,
            Err(e) => {
                eprintln!("{path}: {e}");
                failed = true;
                continue;
            }
        };
        match ptx_emulator::Module::parse(&text) {
            Ok(m) => {
                for name in m.entries() {
                    if let Some(e) = m.entry(name) {
                        println!(
                            "{path}: {name}: {} instructions, {} bytes of parameters, {} of static shared memory",
                            e.instructions, e.param_bytes, e.static_shared
                        );
                    }
                }
            }
            Err(e) => {
                eprintln!("{path}: {e}");
                failed = true;
            }
        }
    }
    std::process::exit(i32::from(failed));
}
