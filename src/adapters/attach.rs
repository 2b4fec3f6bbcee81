//! Picking modules by name, and saying what came of it.

use std::fmt;

use super::{AdaptedLinear, Trunk};
use crate::error::{Error, Result};

/// Which modules an adapter goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// A module matches a name when its path is that name or ends in `.name`, as in PEFT.
    Names(Vec<String>),
    /// A regular expression that must match the whole path, as in PEFT.
    Regex(String),
    /// Every linear but those that learn as a whole.
    AllLinear,
}

impl Targets {
    /// `q_proj,v_proj`, `all-linear`, or `regex:…`, as on the command line.
    pub fn parse(text: &str) -> Result<Self> {
        if text == "all-linear" {
            return Ok(Targets::AllLinear);
        }
        if let Some(pattern) = text.strip_prefix("regex:") {
            return Ok(Targets::Regex(pattern.to_string()));
        }
        let names: Vec<String> = text.split(',').map(|t| t.trim().to_string()).filter(|t| !t.is_empty()).collect();
        if names.is_empty() {
            return Err(Error::value("targets", "names", "q_proj,v_proj or all-linear or regex:…", text));
        }
        Ok(Targets::Names(names))
    }
}

pub(super) fn path_matches(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|front| front.ends_with('.'))
}

/// One adapted module.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached {
    pub module: String,
    pub rank: usize,
    pub params: usize,
}

/// What an adapter was attached to, and which patterns matched nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttachReport {
    pub attached: Vec<Attached>,
    pub unmatched_patterns: Vec<String>,
    pub untouched_modules: Vec<String>,
}

impl AttachReport {
    pub fn params(&self) -> usize {
        self.attached.iter().map(|a| a.params).sum()
    }
}

impl fmt::Display for AttachReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.attached.len() + self.untouched_modules.len();
        write!(f, "adapters on {} of {total} linears, {} trainable numbers", self.attached.len(), self.params())?;
        if !self.unmatched_patterns.is_empty() {
            write!(f, "; matched nothing: {}", self.unmatched_patterns.join(", "))?;
        }
        Ok(())
    }
}

/// Calls `adapt` on every linear that `targets` picks. No match at all is an error that lists what there is.
pub(super) fn for_targets(
    trunk: &mut dyn Trunk,
    targets: &Targets,
    mut adapt: impl FnMut(&mut AdaptedLinear) -> Result<Attached>,
) -> Result<AttachReport> {
    let picker = Picker::new(targets)?;
    let mut report = AttachReport::default();
    let mut used = vec![false; picker.patterns.len()];
    for linear in trunk.linears()? {
        if picker.picks(linear, &mut used) {
            report.attached.push(adapt(linear)?);
        } else {
            report.untouched_modules.push(linear.name().to_string());
        }
    }
    if report.attached.is_empty() {
        return Err(Error::NoMatch { patterns: picker.patterns, available: report.untouched_modules.join(", ") });
    }
    report.unmatched_patterns =
        picker.patterns.into_iter().zip(used).filter_map(|(pattern, used)| (!used).then_some(pattern)).collect();
    Ok(report)
}

struct Picker {
    patterns: Vec<String>,
    regex: Option<regex_lite::Regex>,
    all: bool,
}

impl Picker {
    fn new(targets: &Targets) -> Result<Self> {
        let (patterns, regex, all) = match targets {
            Targets::Names(names) => (names.clone(), None, false),
            Targets::AllLinear => (vec!["all-linear".to_string()], None, true),
            Targets::Regex(pattern) => {
                let whole = regex_lite::Regex::new(&format!("^(?:{pattern})$"))
                    .map_err(|e| Error::value("targets", "regex", "a regular expression", format!("{pattern}: {e}")))?;
                (vec![pattern.clone()], Some(whole), false)
            }
        };
        Ok(Picker { patterns, regex, all })
    }

    fn picks(&self, linear: &AdaptedLinear, used: &mut [bool]) -> bool {
        let learns_whole = matches!(linear.slot(), super::Slot::Dense { .. });
        let mut picked = false;
        for (pattern, used) in self.patterns.iter().zip(used) {
            let hit = match &self.regex {
                Some(regex) => regex.is_match(linear.name()),
                None if self.all => !learns_whole,
                None => path_matches(linear.name(), pattern),
            };
            *used |= hit;
            picked |= hit;
        }
        picked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_whole_path_components() {
        assert!(path_matches("vit.layers.0.attention.q_proj", "q_proj"));
        assert!(path_matches("vit.layers.0.attention.q_proj", "attention.q_proj"));
        assert!(path_matches("q_proj", "q_proj"));
        assert!(!path_matches("vit.layers.0.attention.xq_proj", "q_proj"));
        assert!(!path_matches("vit.layers.0.mlp.fc1", "fc"));
    }

    #[test]
    fn targets_parse_from_text() {
        assert_eq!(Targets::parse("q, v").unwrap(), Targets::Names(vec!["q".into(), "v".into()]));
        assert_eq!(Targets::parse("all-linear").unwrap(), Targets::AllLinear);
        assert_eq!(Targets::parse("regex:.*fc[12]").unwrap(), Targets::Regex(".*fc[12]".into()));
        assert!(Targets::parse(" , ").is_err());
        assert!(Picker::new(&Targets::Regex("(".into())).is_err());
    }
}
