//! Files and directories that are replaced whole or not at all.
//!
//! A [`Transaction`] writes its files aside, syncs each, and only on [`commit`](Transaction::commit) gives them their names:
//!
//! ```text
//! files(dir)        dir/.name.PID-N.partial   → sync → rename to dir/name, each                     → sync dir
//! directory(path)   path.partial/name         → sync → sync path.partial
//!                   path → path.old (if there is one), path.partial → path                          → sync parent
//!                   path.old removed
//! ```
//!
//! A rename within one directory is atomic, so a reader finds the old file or the new one. The one moment at which `path`
//! itself is missing lies between the two renames of a directory; [`resolve`] then points at `path.old`, which is whole.
//! Dropping a transaction removes what it wrote aside. Two writers of one directory at a time are not supported.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What a transaction is about to do to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Create,
    Write,
    Sync,
    Rename,
    SyncDir,
    Remove,
}

/// Asked before each step: tests answer with an error to stand for a full disk or a crash there.
pub(super) trait Gate {
    fn pass(&self, step: Step) -> io::Result<()>;
}

struct Open;

impl Gate for Open {
    fn pass(&self, _: Step) -> io::Result<()> {
        Ok(())
    }
}

/// Several files that appear together.
pub struct Transaction<'g> {
    /// The directory that holds the finished files.
    home: PathBuf,
    kind: Kind,
    gate: &'g dyn Gate,
}

enum Kind {
    /// (written aside, final) of each file.
    Files(Vec<(PathBuf, PathBuf)>),
    /// `false` once `<home>.partial` has become `home`.
    Directory { pending: bool },
}

impl Transaction<'static> {
    /// Files that join, or replace, those of an existing directory.
    pub fn files(dir: &Path) -> Self {
        Transaction::begin_files(dir, &Open)
    }

    /// A whole directory, which replaces the one at `path` if there is one. Its parent is made if need be.
    pub fn directory(path: &Path) -> Result<Self> {
        Transaction::begin_directory(path, &Open)
    }
}

impl<'g> Transaction<'g> {
    fn begin_files(dir: &Path, gate: &'g dyn Gate) -> Self {
        Transaction { home: dir.to_path_buf(), kind: Kind::Files(Vec::new()), gate }
    }

    pub(super) fn begin_directory(path: &Path, gate: &'g dyn Gate) -> Result<Self> {
        if path.file_name().is_none() {
            return Err(Error::file(path, "does not end in a directory's name"));
        }
        let partial = beside(path, ".partial");
        let prepare = || {
            gate.pass(Step::Remove)?;
            remove_dir(&partial)?;
            gate.pass(Step::Create)?;
            fs::create_dir_all(parent(path))?;
            fs::create_dir(&partial)
        };
        prepare().map_err(|e| Error::io(path, e))?;
        Ok(Transaction { home: path.to_path_buf(), kind: Kind::Directory { pending: true }, gate })
    }

    /// Writes one file aside and syncs it. Errors name the file that it is to become.
    pub fn add(&mut self, name: &str, body: impl FnOnce(&mut Sink<'_>) -> Result<()>) -> Result<()> {
        let target = self.home.join(name);
        let created = self.create(name, &target).map_err(|e| Error::io(&target, e))?;
        let mut sink = Sink { file: BufWriter::with_capacity(1 << 18, created), path: &target, gate: self.gate };
        body(&mut sink)?;
        sink.finish()
    }

    fn create(&mut self, name: &str, target: &Path) -> io::Result<File> {
        if Path::new(name).file_name() != Some(name.as_ref()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a file name has no directory part"));
        }
        self.gate.pass(Step::Create)?;
        match &mut self.kind {
            Kind::Directory { .. } => create_new(&beside(&self.home, ".partial").join(name)),
            Kind::Files(staged) => loop {
                static COUNTER: AtomicU64 = AtomicU64::new(0);
                let count = COUNTER.fetch_add(1, Ordering::Relaxed);
                let aside = self.home.join(format!(".{name}.{}-{count}.partial", std::process::id()));
                match create_new(&aside) {
                    // Left behind by a crashed process of the same id: another number is free.
                    Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(e) => break Err(e),
                    Ok(file) => {
                        staged.push((aside, target.to_path_buf()));
                        break Ok(file);
                    }
                }
            },
        }
    }

    /// Gives everything its name. After an error some files of [`files`](Transaction::files) may be new and others old, each
    /// of them whole; a [`directory`](Transaction::directory) is old or new as one.
    pub fn commit(mut self) -> Result<()> {
        if let Kind::Files(staged) = &mut self.kind {
            while let Some((aside, target)) = staged.last() {
                let renamed = self.gate.pass(Step::Rename).and_then(|()| fs::rename(aside, target));
                renamed.map_err(|e| Error::io(target, e))?;
                staged.pop();
            }
        }
        let home = self.home.clone();
        self.settle().map_err(|e| Error::io(home, e))
    }

    fn settle(&mut self) -> io::Result<()> {
        match &mut self.kind {
            Kind::Files(_) => {
                self.gate.pass(Step::SyncDir)?;
                sync_dir(&self.home)
            }
            Kind::Directory { pending } => {
                let (partial, old) = (beside(&self.home, ".partial"), beside(&self.home, ".old"));
                self.gate.pass(Step::SyncDir)?;
                sync_dir(&partial)?;
                if self.home.symlink_metadata().is_ok() {
                    // Here, and only here, an earlier `.old` is worthless: `home` is whole.
                    self.gate.pass(Step::Remove)?;
                    remove_dir(&old)?;
                    self.gate.pass(Step::Rename)?;
                    fs::rename(&self.home, &old)?;
                }
                let renamed = self.gate.pass(Step::Rename).and_then(|()| fs::rename(&partial, &self.home));
                if let Err(error) = renamed {
                    // Best effort: `resolve` finds the old directory under either name.
                    if self.gate.pass(Step::Rename).is_ok() {
                        let _ = fs::rename(&old, &self.home);
                    }
                    return Err(error);
                }
                *pending = false;
                self.gate.pass(Step::SyncDir)?;
                sync_dir(parent(&self.home))?;
                // A leftover costs space and nothing else; the next transaction tries again.
                if self.gate.pass(Step::Remove).is_ok() {
                    let _ = remove_dir(&old);
                }
                Ok(())
            }
        }
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        match &self.kind {
            Kind::Files(staged) => {
                for (aside, _) in staged {
                    if self.gate.pass(Step::Remove).is_ok() {
                        let _ = fs::remove_file(aside);
                    }
                }
            }
            Kind::Directory { pending } => {
                if *pending && self.gate.pass(Step::Remove).is_ok() {
                    let _ = remove_dir(&beside(&self.home, ".partial"));
                }
            }
        }
    }
}

/// A file being written aside.
pub struct Sink<'a> {
    file: BufWriter<File>,
    path: &'a Path,
    gate: &'a dyn Gate,
}

impl Sink<'_> {
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.gate.pass(Step::Write).and_then(|()| self.file.write_all(bytes));
        written.map_err(|e| Error::io(self.path, e))
    }

    fn finish(mut self) -> Result<()> {
        let synced =
            self.file.flush().and_then(|()| self.gate.pass(Step::Sync)).and_then(|()| self.file.get_ref().sync_all());
        synced.map_err(|e| Error::io(self.path, e))
    }
}

/// Replaces one file by these bytes.
pub fn write_file(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    write_with(path, |sink| sink.write(bytes.as_ref()))
}

/// Replaces one file by what `body` writes.
pub fn write_with(path: &Path, body: impl FnOnce(&mut Sink<'_>) -> Result<()>) -> Result<()> {
    let name = path.file_name().and_then(|n| n.to_str());
    let name = name.ok_or_else(|| Error::file(path, "does not end in a file name of valid UTF-8"))?;
    let mut transaction = Transaction::files(parent(path));
    transaction.add(name, body)?;
    transaction.commit()
}

/// Where the directory written as `path` is to be read: `path` itself, or `path.old` after a crash in the middle of a replacement.
pub fn resolve(path: &Path) -> PathBuf {
    let old = beside(path, ".old");
    if !path.exists() && old.is_dir() { old } else { path.to_path_buf() }
}

/// Removes a directory so that no part of it is ever found under its name.
pub fn remove_directory(path: &Path) -> Result<()> {
    let partial = beside(path, ".partial");
    let remove = || {
        // `.old` goes first: half removed, it must not be what `resolve` finds.
        remove_dir(&beside(path, ".old"))?;
        remove_dir(&partial)?;
        match fs::rename(path, &partial) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => sync_dir(parent(path)).and_then(|()| remove_dir(&partial)),
        }
    };
    remove().map_err(|e| Error::io(path, e))
}

/// Removes what a process that died has left of a directory that was to become `path`.
pub(super) fn discard_partial(path: &Path) -> Result<()> {
    remove_dir(&beside(path, ".partial")).map_err(|e| Error::io(path, e))
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(suffix);
    path.with_file_name(name)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Makes renames in a directory durable. Only Unix can open a directory for that.
fn sync_dir(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
/// Refuses step number `at`; with `dead`, every later one too, as after a crash.
pub(super) struct Faulty {
    at: usize,
    dead: bool,
    pub seen: std::cell::Cell<usize>,
}

#[cfg(test)]
impl Faulty {
    pub fn new(at: usize, dead: bool) -> Self {
        Faulty { at, dead, seen: Default::default() }
    }
}

#[cfg(test)]
impl Gate for Faulty {
    fn pass(&self, _: Step) -> io::Result<()> {
        let n = self.seen.replace(self.seen.get() + 1);
        let refused = if self.dead { n >= self.at } else { n == self.at };
        if refused { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;

    fn write_pair(path: &Path, value: &str, gate: &dyn Gate) -> Result<()> {
        let mut transaction = Transaction::begin_directory(path, gate)?;
        for name in ["a", "b"] {
            transaction.add(name, |sink| {
                sink.write(value.as_bytes())?;
                sink.write(b".")
            })?;
        }
        transaction.commit()
    }

    fn read_pair(path: &Path) -> Option<String> {
        let home = resolve(path);
        let (a, b) = (fs::read_to_string(home.join("a")).ok()?, fs::read_to_string(home.join("b")).ok()?);
        assert_eq!(a, b, "both files are of one transaction");
        Some(a)
    }

    #[test]
    fn a_directory_is_old_or_new_wherever_the_writer_fails() {
        for dead in [false, true] {
            for fresh in [false, true] {
                let mut at = 0;
                loop {
                    let scratch = Scratch::new(&format!("dir-{dead}-{fresh}-{at}"));
                    let path = scratch.path().join("c");
                    let old = (!fresh).then(|| "old.".to_owned());
                    if !fresh {
                        write_pair(&path, "old", &Open).unwrap();
                    }
                    let gate = Faulty::new(at, dead);
                    let result = write_pair(&path, "new", &gate);
                    let found = read_pair(&path);
                    assert!(found == old || found.as_deref() == Some("new."), "step {at}: {found:?}");
                    if result.is_ok() {
                        assert_eq!(found.as_deref(), Some("new."));
                    }
                    if let Err(error) = &result {
                        assert!(error.to_string().contains("/c"), "{error}");
                        assert!(
                            dead || !path.with_file_name("c.partial").exists(),
                            "step {at} left a partial directory"
                        );
                    }
                    // The next attempt succeeds whatever the last one left behind.
                    write_pair(&path, "next", &Open).unwrap();
                    assert_eq!(read_pair(&path).as_deref(), Some("next."));
                    assert_eq!(scratch.names(), ["c"]);
                    if gate.seen.get() <= at {
                        break;
                    }
                    at += 1;
                }
                assert!(at > 10, "every step was reached");
            }
        }
    }

    /// A crash between the renames, then another crash during the repair: the only whole copy, `.old`, must survive both.
    #[test]
    fn two_crashes_in_a_row_lose_nothing() {
        for first in 0..20 {
            for second in 0..20 {
                let scratch = Scratch::new(&format!("twice-{first}-{second}"));
                let path = scratch.path().join("c");
                write_pair(&path, "old", &Open).unwrap();
                let _ = write_pair(&path, "one", &Faulty::new(first, true));
                let _ = write_pair(&path, "two", &Faulty::new(second, true));
                let found = read_pair(&path);
                assert!(found.is_some(), "crashes at {first} and {second}");
            }
        }
    }

    #[test]
    fn a_file_is_old_or_new_wherever_the_writer_fails() {
        for at in 0..8 {
            let scratch = Scratch::new(&format!("file-{at}"));
            let path = scratch.path().join("f");
            write_file(&path, "old").unwrap();
            let gate = Faulty::new(at, false);
            let mut transaction = Transaction::begin_files(scratch.path(), &gate);
            let written = transaction.add("f", |sink| sink.write(b"new"));
            let result = written.and_then(|()| transaction.commit());
            let found = fs::read(&path).unwrap();
            assert!(if result.is_ok() { found == b"new" } else { found == b"old" || found == b"new" });
            assert_eq!(result.is_ok(), gate.seen.get() <= at);
            if at < 4 {
                assert_eq!(found, b"old", "nothing is renamed before step 4");
            }
            assert_eq!(scratch.names(), ["f"], "nothing is left aside");
        }
    }

    #[test]
    fn errors_name_the_path_and_the_reason() {
        let scratch = Scratch::new("errors");
        let file = scratch.path().join("file");
        write_file(&file, "x").unwrap();
        let below = file.join("below");
        let error = write_file(&below, "x").unwrap_err().to_string();
        assert!(error.contains("file/below"), "{error}");
        assert!(Transaction::directory(&below).is_err());
        assert!(Transaction::directory(Path::new("/")).is_err());
        let error = write_with(&file, |_| Err(Error::file(&file, "no"))).unwrap_err();
        assert!(matches!(error, Error::File { .. }));
        assert_eq!(fs::read(&file).unwrap(), b"x");
        assert_eq!(scratch.names(), ["file"]);
        assert!(Transaction::files(scratch.path()).add("../escape", |_| Ok(())).is_err());
    }

    #[test]
    fn removing_takes_everything_and_twice_is_fine() {
        let scratch = Scratch::new("remove");
        let path = scratch.path().join("c");
        write_pair(&path, "old", &Open).unwrap();
        fs::create_dir(scratch.path().join("c.old")).unwrap();
        remove_directory(&path).unwrap();
        remove_directory(&path).unwrap();
        assert!(scratch.names().is_empty());
    }
}
