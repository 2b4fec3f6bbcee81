//! One run at a time writes into a directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;

use graftwork::format::checkpoint;
use graftwork::{Error, Result};

use crate::output;

/// In the run's directory. It stays there: what counts is not the file but the operating system's lock on it, which ends with the
/// process that holds it, however that ends.
const NAME: &str = ".lock";

/// Held for as long as it lives.
pub struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Makes `dir` this run's own, and so the directory itself if need be, and removes what a run that was killed left half written there.
    ///
    /// # Errors
    /// Names the process that writes into `dir` already; says so where nothing can be written.
    pub fn claim(dir: &Path) -> Result<Self> {
        let possible = std::fs::create_dir_all(dir).and_then(|()| output::create_in(dir));
        possible.map_err(|source| Error::Io { path: dir.into(), source })?;
        let lock = Lock::take(dir)?;
        checkpoint::sweep(dir)?;
        Ok(lock)
    }

    fn take(dir: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: dir.join(NAME), source };
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join(NAME));
        let mut file = open.map_err(io)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).and_then(|()| writeln!(file, "process {}", std::process::id())).map_err(io)?;
                Ok(Lock(file))
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who it is helps, and is no condition.
                let _ = file.take(64).read_to_string(&mut holder);
                let reason = format!("another run writes into it ({})", holder.trim());
                Err(Error::File { path: dir.into(), reason })
            }
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }
}
