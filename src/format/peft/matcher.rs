//! Which modules a configuration means, and what rank and alpha it gives each: PEFT's rules.

use regex_lite::{Regex, RegexBuilder};

use super::config::{Modules, PeftConfig};
use crate::error::{Error, Result};
use crate::format::short;

/// Entries of one list of a configuration; regular expressions among them. Every module is held against every entry, so that
/// lists without bound would take time without bound.
const MAX_NAMES: usize = 16_384;
const MAX_EXPRESSIONS: usize = 256;
/// Bytes of one compiled expression.
const MAX_COMPILED: usize = 1 << 18;

/// A configuration made ready for many module paths.
pub struct Matcher<'c> {
    config: &'c PeftConfig,
    target: Option<Regex>,
    exclude: Option<Regex>,
    layers: Vec<Regex>,
    ranks: Vec<(Ending<'c>, usize)>,
    alphas: Vec<(Ending<'c>, f64)>,
}

impl<'c> Matcher<'c> {
    /// # Errors
    /// [`Error::Unsupported`] for an expression that cannot be compiled: look-around and back references are not supported.
    pub fn new(config: &'c PeftConfig) -> Result<Self> {
        let whole = |modules: Option<&Modules>| match modules {
            Some(Modules::Pattern(pattern)) => compile(&format!("^(?:{pattern})$"), pattern).map(Some),
            _ => Ok(None),
        };
        for modules in [Some(&config.target_modules), config.exclude_modules.as_ref()] {
            if let Some(Modules::Names(names)) = modules {
                limit(names.len(), MAX_NAMES, "module names")?;
            }
        }
        limit(config.modules_to_save.len(), MAX_EXPRESSIONS, "modules to save")?;
        limit(config.layers_to_transform.as_ref().map_or(0, Vec::len), MAX_NAMES, "layers to transform")?;
        let mut layers = Vec::new();
        if config.layers_to_transform.is_some() {
            let any = ["[^.]*".to_owned()];
            let names = config.layers_pattern.as_deref().filter(|names| !names.is_empty()).unwrap_or(&any);
            limit(names.len(), MAX_EXPRESSIONS, "layer patterns")?;
            for name in names {
                layers.push(compile(&format!(r"^.*\.(?:{name})\.([0-9]+)\."), name)?);
            }
        }
        Ok(Matcher {
            config,
            target: whole(Some(&config.target_modules))?,
            exclude: whole(config.exclude_modules.as_ref())?,
            layers,
            ranks: endings(&config.rank_pattern)?,
            alphas: endings(&config.alpha_pattern)?,
        })
    }

    /// The same for every module.
    pub fn dropout(&self) -> f64 {
        self.config.lora_dropout
    }

    /// Whether the module gets a low-rank update. [`Modules::AllLinear`] says yes to all it is asked about: offer it the linear
    /// layers without the output layer.
    pub fn targets(&self, module: &str) -> bool {
        if self.config.exclude_modules.as_ref().is_some_and(|modules| named(modules, self.exclude.as_ref(), module)) {
            return false;
        }
        if !named(&self.config.target_modules, self.target.as_ref(), module) {
            return false;
        }
        match (&self.config.target_modules, &self.config.layers_to_transform) {
            (Modules::Names(names), Some(wanted)) if !names.iter().any(|name| name == module) => {
                let index = self.layers.iter().find_map(|layer| layer.captures(module)?.get(1)?.as_str().parse().ok());
                index.is_some_and(|index: usize| wanted.contains(&index))
            }
            _ => true,
        }
    }

    /// Whether the module, or one that contains it, is trained in full.
    pub fn saves(&self, module: &str) -> bool {
        let inside = |name: &str| {
            module.match_indices(name).any(|(at, _)| {
                let end = at + name.len();
                (at == 0 || module.as_bytes()[at - 1] == b'.') && module.as_bytes().get(end).is_none_or(|&b| b == b'.')
            })
        };
        self.config.modules_to_save.iter().any(|name| !name.is_empty() && inside(name))
    }

    pub fn rank(&self, module: &str) -> usize {
        first(&self.ranks, module).unwrap_or(self.config.r)
    }

    pub fn alpha(&self, module: &str) -> f64 {
        first(&self.alphas, module).unwrap_or(self.config.lora_alpha)
    }

    /// What B·A is multiplied with: alpha/r, or alpha/√r for rsLoRA.
    pub fn scale(&self, module: &str) -> f64 {
        let r = self.rank(module) as f64;
        self.alpha(module) / if self.config.use_rslora { r.sqrt() } else { r }
    }
}

fn named(modules: &Modules, expression: Option<&Regex>, module: &str) -> bool {
    match modules {
        Modules::AllLinear => true,
        Modules::Pattern(_) => expression.is_some_and(|e| e.is_match(module)),
        Modules::Names(names) => names.iter().any(|name| {
            module.strip_suffix(name.as_str()).is_some_and(|front| front.is_empty() || front.ends_with('.'))
        }),
    }
}

/// A pattern for the end of a module path, from a dot or the beginning on.
enum Ending<'c> {
    /// Letters, digits, `_`, `-`, and dots that stand for any character: no need of an expression, and by far the most common.
    Plain(&'c str),
    Expression(Regex),
}

impl Ending<'_> {
    fn matches(&self, module: &str) -> bool {
        match self {
            Ending::Expression(e) => e.is_match(module),
            Ending::Plain(pattern) => {
                let (module, pattern) = (module.as_bytes(), pattern.as_bytes());
                let Some(front) = module.len().checked_sub(pattern.len()) else { return false };
                (front == 0 || module[front - 1] == b'.')
                    && module[front..].iter().zip(pattern).rev().all(|(m, p)| m == p || *p == b'.')
            }
        }
    }
}

fn first<T: Copy>(patterns: &[(Ending<'_>, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(ending, _)| ending.matches(module)).map(|(_, value)| *value)
}

fn endings<T: Copy>(patterns: &[(String, T)]) -> Result<Vec<(Ending<'_>, T)>> {
    limit(patterns.len(), MAX_NAMES, "patterns")?;
    let mut expressions = 0;
    let mut out = Vec::with_capacity(patterns.len());
    for (pattern, value) in patterns {
        let plain = pattern.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        let ending = if plain {
            Ending::Plain(pattern)
        } else {
            expressions += 1;
            limit(expressions, MAX_EXPRESSIONS, "regular expressions")?;
            Ending::Expression(compile(&format!(r"^(?:.*\.)?(?:{pattern})$"), pattern)?)
        };
        out.push((ending, *value));
    }
    Ok(out)
}

fn limit(count: usize, most: usize, what: &str) -> Result<()> {
    if count <= most {
        return Ok(());
    }
    let hint = format!("at most {most} are accepted");
    Err(Error::Unsupported { op: "peft", what: format!("the configuration has {count} {what}"), hint })
}

fn compile(expression: &str, pattern: &str) -> Result<Regex> {
    RegexBuilder::new(expression).size_limit(MAX_COMPILED).build().map_err(|e| Error::Unsupported {
        op: "peft",
        what: format!("the pattern {:?} cannot be used: {e}", short(pattern)),
        hint: "use names, or an expression without look-around".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q: &str = "vit.layers.10.attention.q_proj";

    fn names(list: &[&str]) -> Modules {
        Modules::Names(list.iter().map(|&s| s.into()).collect())
    }

    #[test]
    fn targets_follow_the_rules_of_peft() {
        let targets = |modules: Modules, module: &str| {
            let config = PeftConfig::new(modules);
            Matcher::new(&config).unwrap().targets(module)
        };
        assert!(targets(names(&["q_proj"]), Q) && targets(names(&["attention.q_proj"]), Q) && targets(names(&[Q]), Q));
        assert!(!targets(names(&["proj"]), Q) && !targets(names(&["q_proj"]), "seq_proj") && !targets(names(&[]), Q));
        assert!(targets(Modules::Pattern(r".*\.(q|v)_proj".into()), Q));
        assert!(!targets(Modules::Pattern("q_proj".into()), Q), "a pattern must match the whole path");
        assert!(!targets(Modules::Pattern("vit|x".into()), "vitx"), "anchors hold for all alternatives");
        assert!(targets(Modules::AllLinear, Q));
        let config = PeftConfig::new(Modules::Pattern("(?!a)b".into()));
        assert!(Matcher::new(&config).is_err());
    }

    #[test]
    fn layers_and_exclusions_narrow_the_targets() {
        let config = PeftConfig {
            layers_to_transform: Some(vec![1, 10]),
            exclude_modules: Some(names(&["1.attention.q_proj"])),
            ..PeftConfig::new(names(&["q_proj"]))
        };
        let matcher = Matcher::new(&config).unwrap();
        assert!(matcher.targets(Q) && !matcher.targets("vit.layers.2.attention.q_proj"));
        assert!(!matcher.targets("vit.layers.1.attention.q_proj"), "excluded");
        let config = PeftConfig { layers_pattern: Some(vec!["blocks".into()]), ..config };
        assert!(!Matcher::new(&config).unwrap().targets(Q));
    }

    #[test]
    fn the_first_pattern_counts_and_scales_follow() {
        let patterns = vec![("^q_proj".into(), 1), ("10.attention.q_proj".into(), 2), (r"layers\.\d+\..*".into(), 3)];
        let config = PeftConfig {
            rank_pattern: patterns,
            alpha_pattern: vec![("q_proj".into(), 6.0)],
            ..PeftConfig::new(names(&["q_proj"]))
        };
        let matcher = Matcher::new(&config).unwrap();
        assert_eq!((matcher.rank(Q), matcher.alpha(Q), matcher.scale(Q)), (2, 6.0, 3.0));
        assert_eq!((matcher.rank("q_proj"), matcher.rank("vit.layers.7.x"), matcher.rank("seq_proj")), (1, 3, 8));
        assert_eq!(matcher.alpha("seq_proj"), 8.0);
        let config = PeftConfig { use_rslora: true, r: 4, ..PeftConfig::new(Modules::AllLinear) };
        assert_eq!(Matcher::new(&config).unwrap().scale(Q), 4.0);
    }

    #[test]
    fn modules_saved_in_full_are_found_with_what_lies_below_them() {
        let config = PeftConfig { modules_to_save: vec!["head".into(), "a.b".into()], ..PeftConfig::new(names(&[])) };
        let matcher = Matcher::new(&config).unwrap();
        for (module, saved) in [
            ("head", true),
            ("m.head", true),
            ("m.head.dense", true),
            ("m.ahead", false),
            ("m.heads", false),
            ("x.a.b", true),
        ] {
            assert_eq!(matcher.saves(module), saved, "{module}");
        }
    }

    #[test]
    fn patterns_without_end_are_refused() {
        let many = (0..MAX_NAMES + 1).map(|i| (i.to_string(), 1)).collect();
        let config = PeftConfig { rank_pattern: many, ..PeftConfig::new(Modules::AllLinear) };
        assert!(Matcher::new(&config).is_err());
        let config = PeftConfig::new(Modules::Pattern("(a{1000}){1000}".into()));
        assert!(Matcher::new(&config).is_err());
    }
}
