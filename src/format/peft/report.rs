//! What of an adapter fits, and what does not.

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::format::short;

/// Differences between the tensors that an adapter holds and those that are expected of it. Strict by default: a difference is
/// an error unless the caller decides otherwise with the report in hand, because an adapter that loads in part trains and
/// answers as if nothing were wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Expected, but not in the adapter.
    pub missing: Vec<String>,
    /// In the adapter, but of no use.
    pub unexpected: Vec<String>,
    pub misshapen: Vec<Misshapen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    pub name: String,
    pub expected: String,
    pub got: Vec<usize>,
}

impl LoadReport {
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }

    /// Strict: anything in the report is an error that lists it.
    pub fn into_result(self, path: &Path) -> Result<()> {
        if self.is_clean() {
            return Ok(());
        }
        Err(Error::AdapterMismatch { path: path.to_path_buf(), report: self.to_string() })
    }

    pub(in crate::format) fn misshapen(&mut self, name: &str, expected: impl fmt::Display, got: &[usize]) {
        self.misshapen.push(Misshapen { name: name.into(), expected: expected.to_string(), got: got.to_vec() });
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Enough to see the pattern; a wrong trunk can have thousands.
        const SHOWN: usize = 20;
        let mut list = |title: &str, lines: &mut dyn ExactSizeIterator<Item = String>| {
            let total = lines.len();
            if total == 0 {
                return Ok(());
            }
            writeln!(f, "  {title} ({total}):")?;
            for line in lines.take(SHOWN) {
                writeln!(f, "    {line}")?;
            }
            if total > SHOWN { writeln!(f, "    … and {} more", total - SHOWN) } else { Ok(()) }
        };
        list("missing", &mut self.missing.iter().map(|name| short(name)))?;
        list("unexpected", &mut self.unexpected.iter().map(|name| short(name)))?;
        let misshapen = self.misshapen.iter();
        list("misshapen", &mut misshapen.map(|m| format!("{}: {:?}, expected {}", short(&m.name), m.got, m.expected)))
    }
}
