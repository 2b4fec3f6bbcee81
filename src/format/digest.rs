//! A number that shows damage to tensors on disk. Each step is a one-to-one map of 64 bits, so a change within one word of eight bytes
//! is always seen, and any other is missed once in 2⁶⁴. It keeps out accidents, not forgers.

use crate::error::Result;
use crate::tensor::Tensor;

/// Of names, types, dimensions and bytes, in order; as sixteen hexadecimal digits.
pub(super) fn of<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<String> {
    let mut state = 0;
    for (name, tensor) in tensors {
        let header = format!("{name} {} {:?}", tensor.dtype(), tensor.dims());
        state = add(add(state, header.as_bytes()), &tensor.to_bytes()?);
    }
    Ok(format!("{state:016x}"))
}

fn add(state: u64, bytes: &[u8]) -> u64 {
    // Odd, so that multiplying loses nothing; the bits of 2⁶⁴ over the golden ratio.
    const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;
    let mix = |state: u64, word: u64| (state ^ word).wrapping_mul(FACTOR).rotate_left(29);
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // The length tells zeros at the end from nothing there.
    let tail = [u64::from_le_bytes(last), bytes.len() as u64];
    words.iter().map(|&word| u64::from_le_bytes(word)).chain(tail).fold(state, mix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn every_bit_every_length_and_every_name_counts() {
        let bytes: Vec<u8> = (0..37).map(|i| i * 7).collect();
        let whole = add(0, &bytes);
        for bit in 0..8 * bytes.len() {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(add(0, &flipped), whole, "bit {bit}");
        }
        assert_ne!(add(0, &[0; 7]), add(0, &[0; 8]));
        assert_ne!(add(0, &[]), add(0, &[0]));
        let tensor = |dims: &[usize]| Tensor::from_slice(&Device::cpu(), dims, &[1.0f32, 2.0]).unwrap();
        let [row, column] = [tensor(&[1, 2]), tensor(&[2, 1])];
        let digests = [of([("a", &row)]), of([("b", &row)]), of([("a", &column)]), of([("a", &row), ("a", &row)])];
        let digests = digests.map(|d| d.unwrap());
        assert!((0..4).all(|i| (0..i).all(|j| digests[i] != digests[j])), "{digests:?}");
    }
}
