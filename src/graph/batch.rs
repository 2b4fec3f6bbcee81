//! Many small graphs as one.

use super::Adjacency;
use crate::error::{Error, Result};

impl Adjacency {
    /// One graph of which each of `parts` is a block on the diagonal: node i of part p becomes node `first(p) + i`, where `first` counts the
    /// nodes of the parts before. Features need no copying: those of a batch, one part after the other, are the features of
    /// its nodes already. Weights are kept if every part has them, and refused if only some do.
    pub fn block_diagonal(parts: &[Adjacency]) -> Result<Adjacency> {
        let weighted = parts.iter().filter(|p| p.values().is_some()).count();
        if weighted != 0 && weighted != parts.len() {
            let got = format!("{weighted} of {}", parts.len());
            return Err(Error::value("block_diagonal", "parts", "edge values in all parts or in none", got));
        }
        let edges = parts.iter().map(Adjacency::edges).sum();
        let (mut offsets, mut indices) = (vec![0], Vec::with_capacity(edges));
        let mut values = (weighted > 0).then(|| Vec::with_capacity(edges));
        let (mut rows, mut cols) = (0, 0);
        for part in parts {
            let before = indices.len();
            offsets.extend(part.offsets()[1..].iter().map(|o| before + o));
            indices.extend(part.indices().iter().map(|j| cols + j));
            if let (Some(all), Some(own)) = (&mut values, part.values()) {
                all.extend_from_slice(own);
            }
            rows += part.rows();
            cols += part.cols();
        }
        Ok(Adjacency::trusted((rows, cols), offsets, indices, values))
    }
}
