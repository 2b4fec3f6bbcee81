//! Picking modules by name, and saying what came of it.

use std::fmt;

use super::{AdaptedLinear, InsertPoint, Slot, Trunk};
use crate::error::{Error, Result};
use crate::format::peft::{Matcher, Modules, PeftConfig};

/// A path matches a name that is the path itself, or its last parts.
pub(super) fn path_matches(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// One adapted module.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached {
    pub module: String,
    pub rank: usize,
    pub params: usize,
}

/// What a report counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sites {
    #[default]
    Linears,
    /// Places after sub-layers.
    Places,
}

/// What an adapter was attached to, and which patterns matched nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttachReport {
    pub attached: Vec<Attached>,
    pub unmatched_patterns: Vec<String>,
    pub untouched_modules: Vec<String>,
    pub sites: Sites,
}

impl AttachReport {
    pub fn params(&self) -> usize {
        self.attached.iter().map(|a| a.params).sum()
    }
}

impl fmt::Display for AttachReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.attached.len() + self.untouched_modules.len();
        let sites = match self.sites {
            Sites::Linears => "linears",
            Sites::Places => "places",
        };
        write!(f, "adapters on {} of {total} {sites}, {} trainable numbers", self.attached.len(), self.params())?;
        if !self.unmatched_patterns.is_empty() {
            write!(f, "; matched nothing: {}", self.unmatched_patterns.join(", "))?;
        }
        Ok(())
    }
}

/// Calls `adapt` on every linear that the configuration targets, by PEFT's rules. No match at all is an error that lists what there is.
pub(super) fn for_targets(
    trunk: &mut dyn Trunk,
    config: &PeftConfig,
    mut adapt: impl FnMut(&mut AdaptedLinear, &Matcher) -> Result<Attached>,
) -> Result<AttachReport> {
    let matcher = Matcher::new(config)?;
    let mut report = AttachReport::default();
    let linears = trunk.linears()?;
    let last = linears.len().saturating_sub(1);
    for (i, linear) in linears.into_iter().enumerate() {
        let output_layer = i == last && config.target_modules == Modules::AllLinear;
        let whole = matches!(linear.slot(), Slot::Dense { .. });
        if matcher.targets(linear.name()) && !output_layer && !whole {
            report.attached.push(adapt(linear, &matcher)?);
        } else {
            report.untouched_modules.push(linear.name().to_string());
        }
    }
    let patterns = patterns(config);
    if report.attached.is_empty() {
        return Err(Error::NoMatch { patterns, available: report.untouched_modules.join(", ") });
    }
    if let Modules::Names(names) = &config.target_modules {
        let unused = |name: &&String| !report.attached.iter().any(|a| path_matches(&a.module, name));
        report.unmatched_patterns = names.iter().filter(unused).cloned().collect();
    }
    Ok(report)
}

/// Which halves of an encoder-decoder a method goes into. A trunk of one half is an encoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sides {
    #[default]
    Encoder,
    Both,
}

/// Calls `insert` on every place of `sides` whose path is one of `names` or ends in one, on all if there are no names.
pub(super) fn for_places(
    trunk: &mut dyn Trunk,
    names: &[String],
    sides: Sides,
    mut insert: impl FnMut(&mut InsertPoint) -> Result<Attached>,
) -> Result<AttachReport> {
    let mut report = AttachReport { sites: Sites::Places, ..AttachReport::default() };
    let mut take = |place: &mut InsertPoint| -> Result<()> {
        if names.is_empty() || names.iter().any(|name| path_matches(place.name(), name)) {
            report.attached.push(insert(place)?);
        } else {
            report.untouched_modules.push(place.name().to_string());
        }
        Ok(())
    };
    for place in trunk.inserts()? {
        take(place)?;
    }
    if sides == Sides::Both {
        for place in trunk.decoder_inserts()? {
            take(place)?;
        }
    }
    if report.attached.is_empty() {
        return Err(Error::NoMatch { patterns: names.to_vec(), available: report.untouched_modules.join(", ") });
    }
    let unused = |name: &&String| !report.attached.iter().any(|a| path_matches(&a.module, name));
    report.unmatched_patterns = names.iter().filter(unused).cloned().collect();
    Ok(report)
}

fn patterns(config: &PeftConfig) -> Vec<String> {
    match &config.target_modules {
        Modules::Names(names) => names.clone(),
        Modules::Pattern(pattern) => vec![pattern.clone()],
        Modules::AllLinear => vec!["all-linear".into()],
    }
}
