//! Block-sparse matrices in a safetensors file: of each, by its name, four tensors.
//!
//! | tensor | shape | dtype |
//! |---|---|---|
//! | `NAME.values` | `[nnz, b, b]` | any float |
//! | `NAME.row_offsets` | `[⌈n/b⌉ + 1]` | I32 |
//! | `NAME.columns` | `[nnz]` | I32 |
//! | `NAME.shape` | `[3]`: n, k, b | I64 |
//!
//! Everything else that a pattern has follows from these, so that no file can contradict itself.

use std::path::Path;

use super::safetensors::SafeTensors;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{BlockPattern, BlockSparse, Tensor};

/// The tensors of `matrix`, for [`safetensors::write`](super::safetensors::write).
pub fn tensors(name: &str, matrix: &BlockSparse) -> Result<Vec<(String, Tensor)>> {
    let mut out = pattern_tensors(name, matrix.pattern())?;
    out.push((format!("{name}.values"), matrix.values().clone()));
    Ok(out)
}

/// The pattern alone.
pub fn pattern_tensors(name: &str, pattern: &BlockPattern) -> Result<Vec<(String, Tensor)>> {
    let (cpu, topology) = (Device::cpu(), pattern.topology());
    let [n, k] = pattern.shape();
    // A validated pattern's indices lie below 2³¹.
    let index = |values: &[u32]| {
        let values: Vec<i32> = values.iter().map(|&v| v as i32).collect();
        Tensor::from_slice(&cpu, &[values.len()], &values)
    };
    let shape = [n as i64, k as i64, pattern.block() as i64];
    Ok(vec![
        (format!("{name}.row_offsets"), index(topology.row_offsets())?),
        (format!("{name}.columns"), index(topology.columns())?),
        (format!("{name}.shape"), Tensor::from_slice(&cpu, &[3], &shape)?),
    ])
}

/// The parts of a pattern, by the ends of their names.
pub const PARTS: [&str; 3] = ["shape", "row_offsets", "columns"];

/// The pattern `name` of a file, for a matrix of `expected` shape where one is given.
///
/// # Errors
/// [`Error::File`] that names the file and what is wrong: missing tensors, other dtypes, indices that make no pattern, another shape.
pub fn read_pattern(
    file: &SafeTensors,
    name: &str,
    expected: Option<[usize; 2]>,
    device: &Device,
) -> Result<BlockPattern> {
    let load = |part: usize| file.tensor(&format!("{name}.{}", PARTS[part]), &Device::cpu());
    pattern_from(file.path(), name, load, expected, device)
}

/// The same from wherever `load` gets the [`PARTS`], by their number.
pub(crate) fn pattern_from(
    path: &Path,
    name: &str,
    mut load: impl FnMut(usize) -> Result<Tensor>,
    expected: Option<[usize; 2]>,
    device: &Device,
) -> Result<BlockPattern> {
    let wrong = |reason: String| Error::file(path, format!("`{name}`: {reason}"));
    let shape = load(0)?.to_vec::<i64>().map_err(|e| wrong(e.to_string()))?;
    let sizes: Option<Vec<usize>> = shape.iter().map(|&v| usize::try_from(v).ok()).collect();
    let Some([n, k, block]) = sizes.and_then(|s| <[usize; 3]>::try_from(s).ok()) else {
        let first = &shape[..shape.len().min(3)];
        return Err(wrong(format!("`shape` holds {} numbers, {first:?} first, expected n, k and b", shape.len())));
    };
    if let Some(expected) = expected.filter(|&e| e != [n, k]) {
        return Err(wrong(format!("is a pattern of [{n}, {k}], expected {expected:?}")));
    }
    let mut indices = |part: usize| {
        let values = load(part)?.to_vec::<i32>().map_err(|e| wrong(e.to_string()))?;
        let checked: Option<Vec<u32>> = values.iter().map(|&v| u32::try_from(v).ok()).collect();
        checked.ok_or_else(|| wrong(format!("`{}` holds a negative index", PARTS[part])))
    };
    let (row_offsets, columns) = (indices(1)?, indices(2)?);
    BlockPattern::from_offsets(device, [n, k], block, row_offsets, columns).map_err(|e| wrong(e.to_string()))
}

/// The matrix `name` of a file, likewise. What its blocks hold beyond the matrix's edge must be zero.
pub fn read(file: &SafeTensors, name: &str, expected: Option<[usize; 2]>, device: &Device) -> Result<BlockSparse> {
    let pattern = read_pattern(file, name, expected, device)?;
    let values = file.tensor(&format!("{name}.values"), &Device::cpu())?;
    require_inside(file.path(), name, &pattern, &values)?;
    let wrong = |e| Error::file(file.path(), format!("`{name}`: {e}"));
    BlockSparse::new(pattern, values.to_device(device)?).map_err(wrong)
}

/// Refuses `values` of another shape than the pattern's blocks have, and any that are not zero beyond the matrix's edge: products would not see
/// them, norms of whole blocks would.
pub(crate) fn require_inside(path: &Path, name: &str, pattern: &BlockPattern, values: &Tensor) -> Result<()> {
    let wrong = |reason: String| Error::file(path, format!("`{name}`: {reason}"));
    values.require_dims("block_sparse", "values", &pattern.value_dims()).map_err(|e| wrong(e.to_string()))?;
    let [n, k] = pattern.shape();
    if n.is_multiple_of(pattern.block()) && k.is_multiple_of(pattern.block()) {
        return Ok(());
    }
    let mut beyond = values.to_f64_vec().map_err(|e| wrong(e.to_string()))?;
    pattern.topology().for_row_pieces(|at, _, len| beyond[at..at + len].fill(0.0));
    match beyond.iter().position(|&v| v != 0.0) {
        None => Ok(()),
        Some(at) => {
            let block = at / (pattern.block() * pattern.block());
            Err(wrong(format!("block {block} of `values` is not zero beyond the edge of [{n}, {k}]")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::safetensors::write;
    use super::super::scratch::Scratch;
    use super::*;
    use crate::dtype::DType;
    use crate::rng::Stream;
    use crate::testing::normal;

    fn matrix() -> BlockSparse {
        let stream = Stream { seed: 3, step: 0, site: 0 };
        let pattern = BlockPattern::random(&Device::cpu(), [40, 70], 16, 0.4, stream).unwrap();
        let dense = Tensor::from_f32(&Device::cpu(), &[40, 70], &normal("m", 2800), DType::BF16).unwrap();
        BlockSparse::sample(pattern, &dense).unwrap()
    }

    fn written(scratch: &Scratch, parts: &[(String, Tensor)]) -> SafeTensors {
        let path = scratch.path().join("blocks.safetensors");
        write(&path, parts.iter().map(|(n, t)| (n.as_str(), t)), &BTreeMap::new()).unwrap();
        SafeTensors::open(&path).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let (scratch, matrix) = (Scratch::new("block-sparse"), matrix());
        let file = written(&scratch, &tensors("layer.q", &matrix).unwrap());
        let again = read(&file, "layer.q", Some([40, 70]), &Device::cpu()).unwrap();
        assert_eq!(again.pattern(), matrix.pattern());
        assert_eq!(again.values().to_f32_vec().unwrap(), matrix.values().to_f32_vec().unwrap());
    }

    #[test]
    fn files_for_other_matrices_and_broken_ones_are_refused_by_name() {
        let (scratch, matrix) = (Scratch::new("block-sparse-bad"), matrix());
        let good = tensors("q", &matrix).unwrap();
        let message = |file: &SafeTensors, expected| read(file, "q", expected, &Device::cpu()).unwrap_err().to_string();
        let file = written(&scratch, &good);
        assert!(message(&file, Some([70, 40])).contains("is a pattern of [40, 70], expected [70, 40]"));
        let with = |part: &str, tensor: Tensor| {
            let name = format!("q.{part}");
            let mut parts: Vec<_> = good.iter().filter(|(n, _)| *n != name).cloned().collect();
            parts.push((name, tensor));
            message(&written(&scratch, &parts), None)
        };
        let ints = |v: &[i32]| Tensor::from_slice(&Device::cpu(), &[v.len()], v).unwrap();
        let shape = |v: &[i64]| Tensor::from_slice(&Device::cpu(), &[v.len()], v).unwrap();
        assert!(with("columns", ints(&[-1])).contains("negative index"));
        assert!(with("columns", ints(&[0])).contains("the number of blocks"));
        assert!(with("row_offsets", ints(&[0])).contains("4 offsets for 3 rows"));
        assert!(with("shape", shape(&[40, 70])).contains("expected n, k and b"));
        assert!(with("shape", shape(&[40, 70, 24])).contains("16, 32, 64 or 128"));
        assert!(with("shape", shape(&[-1, 70, 16])).contains("expected n, k and b"));
        assert!(with("shape", ints(&[40, 70, 16])).contains("i64"));
        assert!(with("values", Tensor::zeros(&Device::cpu(), &[1, 16, 16], DType::F32).unwrap()).contains("values"));
        let [blocks, b, _] = matrix.pattern().value_dims();
        let ones =
            |dtype| Tensor::from_f32(&Device::cpu(), &[blocks, b, b], &vec![1.0; blocks * b * b], dtype).unwrap();
        assert!(with("values", ones(DType::BF16)).contains("is not zero beyond the edge of [40, 70]"));
        let whole = Tensor::zeros(&Device::cpu(), &[blocks, b, b], DType::I32).unwrap();
        assert!(with("values", whole).contains("i32"));
        let long = with("shape", shape(&[1; 100_000]));
        assert!(long.contains("100000 numbers") && long.len() < 400);
    }
}
