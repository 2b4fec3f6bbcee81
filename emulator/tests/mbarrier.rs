//! `mbarrier` step by step, one thread: what each instruction returns, worked out from the ISA.

mod support;
use ptx_emulator::Numerics;
use support::program::{elementwise, emulate, longs};

/// Runs a body that finds an mbarrier's address in %r10 and leaves its answer in %r9; each answer is shifted in from below.
fn run(body: &str) -> Result<u64, String> {
    let body = format!("{{ .shared .align 8 .b64 bar; .reg .b64 %s<4>; mov.u32 %r10, bar; mov.u32 %r9, 0;\n{body}\n}}");
    let got =
        emulate(&elementwise("sm_90a", &body, "r", &[[0; 3]]), Numerics::Ascending, 0).map_err(|f| f.to_string())?;
    Ok(longs(&got)[0])
}

const INIT: &str = "mbarrier.init.shared::cta.b64 [%r10],";
const ARRIVE: &str = "mbarrier.arrive.shared::cta.b64 %s0, [%r10];";
/// Shifts a predicate into the answer.
const ASK: &str = "selp.b32 %r11, 1, 0, %p4; shl.b32 %r9, %r9, 1; or.b32 %r9, %r9, %r11;";

fn parity(p: u32) -> String {
    format!("mbarrier.test_wait.parity.shared::cta.b64 %p4, [%r10], {p}; {ASK}\n")
}

#[test]
fn a_phase_completes_with_its_last_arrival() {
    let (p0, p1) = (parity(0), parity(1));
    // Before: the phase of parity 0 is open, the one before it counts as complete. After: the other way round.
    assert_eq!(run(&format!("{INIT} 2; {p0}{p1}{ARRIVE}{p0}{p1}{ARRIVE}{p0}{p1}")), Ok(0b01_01_10));
    // Two phases on, parity 0 is open again.
    assert_eq!(run(&format!("{INIT} 1; {ARRIVE}{p0}{ARRIVE}{p0}{p1}{ARRIVE}{p0}")), Ok(0b1011));
    let both = format!("{INIT} 2; mbarrier.arrive.shared::cta.b64 %s0, [%r10], 2; {p0}");
    assert_eq!(run(&both), Ok(1));
}

#[test]
fn a_state_tells_its_phase_and_what_was_pending_before() {
    let count = "mbarrier.pending_count.b64 %r11, %s0; shl.b32 %r9, %r9, 4; or.b32 %r9, %r9, %r11;";
    assert_eq!(run(&format!("{INIT} 3; {ARRIVE}{count}{ARRIVE}{count}{ARRIVE}{count}{ARRIVE}{count}")), Ok(0x3213));
    let test = format!("mbarrier.test_wait.shared::cta.b64 %p4, [%r10], %s1; {ASK}");
    let first = "mbarrier.arrive.shared::cta.b64 %s1, [%r10];";
    assert_eq!(run(&format!("{INIT} 2; {first}{test}{ARRIVE}{test}")), Ok(0b01));
    let quiet = "mbarrier.arrive.noComplete.shared::cta.b64 %s1, [%r10], 2;";
    assert_eq!(run(&format!("{INIT} 3; {quiet}{test}{ARRIVE}{test}")), Ok(0b01));
    assert_eq!(run(&format!("{INIT} 1; {first} mbarrier.try_wait.shared::cta.b64 %p4, [%r10], %s1; {ASK}")), Ok(1));
}

#[test]
fn a_dropped_thread_is_expected_no_more() {
    let p0 = parity(0);
    let drop = "mbarrier.arrive_drop.shared::cta.b64 %s0, [%r10];";
    // The first phase takes both; the second only the one that stayed.
    assert_eq!(run(&format!("{INIT} 2; {drop}{p0}{ARRIVE}{p0}{ARRIVE}{p0}{}", parity(1))), Ok(0b01_01));
    let counted = "mbarrier.arrive_drop.shared::cta.b64 %s0, [%r10], 2;";
    assert_eq!(run(&format!("{INIT} 3; {counted}{ARRIVE}{p0}{ARRIVE}{}", parity(1))), Ok(0b11));
}

#[test]
fn transactions_hold_a_phase_open() {
    let p0 = parity(0);
    let expect = "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r10], 48;";
    let complete = "mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r10], 16;";
    assert_eq!(run(&format!("{INIT} 1; {expect}{ARRIVE}{p0}{complete}{p0}{complete}{p0}{complete}{p0}")), Ok(0b0001));
    assert_eq!(run(&format!("{INIT} 1; {expect}{complete}{complete}{complete}{p0}{ARRIVE}{p0}")), Ok(0b01));
    let together = "mbarrier.arrive.expect_tx.shared::cta.b64 %s0, [%r10], 16;";
    assert_eq!(run(&format!("{INIT} 2; {ARRIVE}{together}{p0}{complete}{p0}")), Ok(0b01));
}

#[test]
fn a_barrier_is_used_again_after_it_was_made_invalid() {
    let inval = "mbarrier.inval.shared::cta.b64 [%r10];";
    assert_eq!(run(&format!("{INIT} 5; {ARRIVE}{inval}{INIT} 1; {ARRIVE}{}", parity(0))), Ok(1));
}

#[test]
fn misuse_is_a_fault() {
    for (body, says) in [
        (format!("{INIT} 0;"), "arrivals"),
        (format!("{INIT} 1048576;"), "arrivals"),
        (format!("{INIT} 1; {INIT} 1;"), "initialised already"),
        (ARRIVE.to_string(), "no mbarrier"),
        (format!("{INIT} 1; mbarrier.arrive.shared::cta.b64 %s0, [%r10], 2;"), "arrivals"),
        (format!("{INIT} 1; mbarrier.inval.shared::cta.b64 [%r10]; {ARRIVE}"), "no mbarrier"),
        (format!("{INIT} 1; mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r10], 16; {ARRIVE}"), "more than"),
        (
            format!("{INIT} 1; WAIT: mbarrier.try_wait.parity.shared::cta.b64 %p4, [%r10], 0; @!%p4 bra WAIT;"),
            "deadlock",
        ),
        ("add.u32 %r10, %r10, 4; mbarrier.init.shared::cta.b64 [%r10], 1;".into(), "not aligned"),
    ] {
        let text = run(&body).expect_err(&body);
        assert!(text.contains(says), "{body}: {text}");
    }
}
