//! What attention adds to its scores: hidden padding, and T5's bias of relative positions. Made on the host, once a call; nothing of it learns.

use crate::device::Device;
use crate::error::Result;
use crate::tensor::Tensor;

/// T5's learned bias: a number for each bucket of distances and each head, `[buckets, h]`.
#[derive(Clone, Debug)]
pub(super) struct RelativeBias {
    pub table: Vec<f32>,
    pub buckets: usize,
    pub distance: usize,
    pub heads: usize,
    /// Whether keys after the query have buckets of their own.
    pub both_sides: bool,
}

impl RelativeBias {
    /// Half of a side's buckets are single distances, the others grow by a constant factor up to the last, which takes all that is
    /// further. Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer", 2020.
    fn bucket(&self, query: usize, key: usize) -> usize {
        let side = if self.both_sides { self.buckets / 2 } else { self.buckets };
        let first = if self.both_sides && key > query { side } else { 0 };
        let away = if self.both_sides { query.abs_diff(key) } else { query.saturating_sub(key) };
        let single = side / 2;
        if away < single {
            return first + away;
        }
        // In f32, as the weights were trained: a distance on the border of two buckets stays where it was.
        let growth = (away as f32 / single as f32).ln() / ((self.distance as f64 / single as f64).ln() as f32);
        first + (single + (growth * (side - single) as f32) as usize).min(side - 1)
    }

    /// `[b, h, t, s]` for queries `start .. start + t` and keys `0 .. s`; −∞ at keys that are not kept.
    pub fn scores(&self, device: &Device, [b, t, s]: [usize; 3], start: usize, keep: Option<&[u8]>) -> Result<Tensor> {
        let mut values = Vec::with_capacity(b * self.heads * t * s);
        for item in 0..b {
            for head in 0..self.heads {
                for query in start..start + t {
                    values.extend((0..s).map(|key| match keep {
                        Some(keep) if keep[item * s + key] == 0 => f32::NEG_INFINITY,
                        _ => self.table[self.bucket(query, key) * self.heads + head],
                    }));
                }
            }
        }
        Tensor::from_slice(device, &[b, self.heads, t, s], &values)
    }
}

/// `[b, t, s]`: for every query the keys that are kept.
pub(super) fn keep_mask(device: &Device, [b, t, s]: [usize; 3], keep: &[u8]) -> Result<Tensor> {
    let rows: Vec<u8> = keep.chunks(s.max(1)).flat_map(|row| std::iter::repeat_n(row, t).flatten().copied()).collect();
    Tensor::from_slice(device, &[b, t, s], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The buckets of 32 and distance 128 that every T5 has, counted by hand.
    #[test]
    fn buckets_are_single_first_and_then_grow() {
        let bias = |both_sides| RelativeBias { table: Vec::new(), buckets: 32, distance: 128, heads: 1, both_sides };
        let two = bias(true);
        assert_eq!(
            [0, 1, 7, 8, 11, 12, 127, 128, 4000].map(|away| two.bucket(away, 0)),
            [0, 1, 7, 8, 8, 9, 15, 15, 15]
        );
        assert_eq!([1, 7, 8, 200].map(|key| two.bucket(0, key)), [17, 23, 24, 31]);
        let one = bias(false);
        assert_eq!([0, 15, 16, 127, 128].map(|away| one.bucket(away, 0)), [0, 15, 16, 31, 31]);
        assert_eq!(one.bucket(3, 9), 0);
    }

    #[test]
    fn hidden_keys_are_hidden_from_every_query() {
        let device = Device::cpu();
        let mask = keep_mask(&device, [2, 2, 3], &[1, 1, 0, 1, 0, 0]).unwrap();
        assert_eq!(mask.to_vec::<u8>().unwrap(), [1, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0]);
        let bias = RelativeBias {
            table: (0..8).map(|i| i as f32).collect(),
            buckets: 4,
            distance: 8,
            heads: 2,
            both_sides: true,
        };
        let scores = bias.scores(&device, [1, 1, 2], 1, Some(&[1, 0])).unwrap().to_f32_vec().unwrap();
        assert_eq!(scores, [2.0, f32::NEG_INFINITY, 3.0, f32::NEG_INFINITY]);
    }
}
