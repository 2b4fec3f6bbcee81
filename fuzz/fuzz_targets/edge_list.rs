#![no_main]

#[allow(dead_code)]
#[path = "../../tests/hostile/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::edge_list(bytes);
});
