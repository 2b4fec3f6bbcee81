//! Counts of memory traffic: sectors of global memory, wavefronts of shared memory.

use super::warp::lanes;

/// Distinct 32-byte sectors that the active lanes touch.
pub fn sectors(addresses: &[u64; 32], active: u32, bytes: u32) -> u64 {
    let mut found = [0u64; 64];
    let mut n = 0usize;
    for l in lanes(active) {
        let first = addresses[l] >> 5;
        let last = addresses[l].wrapping_add(u64::from(bytes) - 1) >> 5;
        for s in first..=last {
            if n > 0 && found[n - 1] == s {
                continue;
            }
            if !found[..n].contains(&s) && n < 64 {
                found[n] = s;
                n += 1;
            }
        }
    }
    n as u64
}

/// Wavefronts an access to shared memory takes, and how many of them are conflicts.
///
/// A wavefront serves 32 banks of 4 bytes. Accesses of 8 bytes go in two halves of the warp, of 16 bytes in four quarters.
pub fn wavefronts(offsets: &[u32; 32], active: u32, bytes: u32) -> (u64, u64) {
    // The two commonest patterns: consecutive words, and one word for all.
    if bytes == 4 && active == u32::MAX {
        let first = offsets[0];
        let consecutive = offsets.iter().enumerate().all(|(l, &o)| o == first.wrapping_add(4 * l as u32));
        if consecutive || offsets.iter().all(|&o| o == first) {
            return (1, 0);
        }
    }
    let words = bytes.div_ceil(4).max(1);
    let parts = words.clamp(1, 4);
    let width = 32 / parts;
    let (mut total, mut ideal) = (0, 0);
    for part in 0..parts {
        let mask = active & ((((1u64 << width) - 1) << (part * width)) as u32);
        if mask == 0 {
            continue;
        }
        // Distinct words in each bank.
        let mut words_seen = [[u32::MAX; 4]; 32];
        let mut counts = [0u8; 32];
        for l in lanes(mask) {
            for w in 0..words {
                let word = offsets[l] / 4 + w;
                let bank = (word % 32) as usize;
                let n = counts[bank] as usize;
                if words_seen[bank][..n.min(4)].contains(&word) {
                    continue;
                }
                if n < 4 {
                    words_seen[bank][n] = word;
                }
                counts[bank] += 1;
            }
        }
        total += u64::from(counts.iter().copied().max().unwrap_or(0).max(1));
        ideal += 1;
    }
    (total, total - ideal)
}
