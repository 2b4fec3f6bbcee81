//! Patterns among the tensors of an adapter file: see [`crate::format::block_sparse`] for the layout.

use std::path::Path;

use super::Patterns;
use super::blocks::VALUES;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::adapter::NativeAdapter;
use crate::format::block_sparse::{PARTS, pattern_from, pattern_tensors as parts_of, require_inside};
use crate::tensor::Tensor;

/// The tensors that say which blocks exist; the values are parameters and are stored as such.
pub fn pattern_tensors(patterns: &Patterns) -> Result<Vec<(String, Tensor)>> {
    let mut out = Vec::new();
    for (name, pattern) in patterns {
        out.extend(parts_of(name, pattern)?);
    }
    Ok(out)
}

/// Takes the patterns of the sites in `shapes` out of a file's tensors: what is left are parameters.
///
/// # Errors
/// [`Error::File`] for indices that make no pattern, or one for a matrix of another shape or block, and for values that are not its blocks'.
pub fn take_patterns(
    dir: &Path,
    file: &mut NativeAdapter,
    shapes: &[(String, [usize; 2])],
    block: usize,
    device: &Device,
) -> Result<Patterns> {
    let mut out = Patterns::new();
    for (name, shape) in shapes {
        let mut parts = PARTS.map(|part| file.tensors.remove(&format!("{}.{part}", name)));
        if parts.iter().all(Option::is_none) {
            continue;
        }
        let path = dir.join(crate::format::peft::MODEL_FILE);
        let load = |part: usize| {
            let missing = || Error::file(&path, format!("lacks `{}.{}`", name, PARTS[part]));
            parts[part].take().ok_or_else(missing)
        };
        let pattern = pattern_from(&path, name, load, Some(*shape), device)?;
        if pattern.block() != block {
            let reason = format!("`{}`: has blocks of {}, expected {block}", name, pattern.block());
            return Err(Error::file(&path, reason));
        }
        if let Some(values) = file.tensors.get(&format!("{name}{VALUES}")) {
            require_inside(&path, name, &pattern, values)?;
        }
        out.insert(name.clone(), pattern);
    }
    Ok(out)
}
