//! Files: frozen weights and adapters as safetensors, the adapter layout of Hugging Face PEFT, training checkpoints; graphs as text.
//!
//! Everything read here may come from strangers. Each parser validates the whole file before it allocates anything in
//! proportion to what the file claims, answers with a typed error that names the file, and is fuzzed (`fuzz/`). Everything
//! written here goes through [`atomic`]: after a crash at any point the old file or the new one is there, whole.

pub mod adapter;
pub mod atomic;
pub mod block_sparse;
pub mod checkpoint;
mod digest;
pub mod graph;
mod json;
pub mod peft;
pub mod safetensors;
#[cfg(test)]
mod scratch;

use std::path::Path;

use crate::error::{Error, Result};

/// The length of a regular file. Directories and pipes are refused here, since opening one may succeed or even block.
fn file_len(path: &Path) -> Result<u64> {
    let info = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if info.is_dir() {
        return Err(Error::file(path, "is a directory, expected a file"));
    }
    if !info.is_file() {
        return Err(Error::file(path, "is not a regular file"));
    }
    Ok(info.len())
}

/// A whole small file, refused when it is longer than `limit` bytes.
fn read_small(path: &Path, limit: usize) -> Result<Vec<u8>> {
    let len = file_len(path)?;
    if len > limit as u64 {
        return Err(Error::file(path, format!("is {len} bytes long, at most {limit} are accepted")));
    }
    std::fs::read(path).map_err(|e| Error::io(path, e))
}

/// A name from a file, short enough for a message.
fn short(name: &str) -> String {
    const LONGEST: usize = 120;
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
