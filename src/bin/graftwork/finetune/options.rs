//! What an option may be, and who reads it.
//!
//! An option is declared in one place, as a field of a clap struct: its help, its default, and its range as the `value_parser`: [`whole`],
//! [`size`], [`number`] or a list of names. What lies outside is refused before anything is opened, with the option's name, what was expected
//! and what was got. Settings that come from a checkpoint have the options' names and are held to the same ranges ([`require_in_range`]).
//!
//! A task and a method each list the options that they read. One that stands on the command line and is read by nobody who takes part is
//! refused and not passed over ([`require_read`]); `--help` is grouped by readers ([`grouped`]).

use std::fmt;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::path::Path;

use clap::Command;
use graftwork::{Error, Result};
use serde_json::{Map, Value};

use super::args::Args;
use super::{methods, tasks};

/// Steps, epochs, samples: whatever is counted in 32 bits somewhere.
pub const COUNT: u64 = u32::MAX as u64;
/// Features side by side, in anything that is made by an option.
pub const WIDTH: u64 = 4096;
/// What numbers without a bound of their own must stay below to be computed with in f32.
const LARGEST: f64 = f32::MAX as f64;

pub type Reals = (Bound<f64>, Bound<f64>);
pub const FROM_0: Reals = (Bound::Included(0.0), Bound::Included(LARGEST));
pub const ABOVE_0: Reals = (Bound::Excluded(0.0), Bound::Included(LARGEST));
/// Something is there, at most everything.
pub const SHARE: Reals = (Bound::Excluded(0.0), Bound::Included(1.0));
/// Not everything.
pub const PART: Reals = (Bound::Included(0.0), Bound::Excluded(1.0));

type Parsed<T> = std::result::Result<T, String>;

/// A whole number.
pub fn whole(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<u64> + Clone {
    move |text| {
        let expected = || format!("expected a whole number from {} to {}", range.start(), range.end());
        text.parse().ok().filter(|n| range.contains(n)).ok_or_else(expected)
    }
}

/// A whole number of things in memory.
pub fn size(range: RangeInclusive<u64>) -> impl Fn(&str) -> Parsed<usize> + Clone {
    let parse = whole(range);
    move |text| parse(text).map(|n| n as usize)
}

/// One of a few sizes.
pub fn one_of(sizes: &'static [usize]) -> impl Fn(&str) -> Parsed<usize> + Clone {
    move |text| {
        let expected = || format!("expected one of {sizes:?}");
        text.parse().ok().filter(|n| sizes.contains(n)).ok_or_else(expected)
    }
}

/// A number; neither infinite nor NaN.
pub fn number(range: Reals) -> impl Fn(&str) -> Parsed<f64> + Clone {
    move |text| text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| format!("expected {}", Told(range)))
}

/// A share from `4%` or `0.04`.
pub fn share(text: &str) -> Parsed<f64> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 0.01));
    let share = number.trim().parse::<f64>().map(|number| number * unit);
    share.ok().filter(|share| SHARE.contains(share)).ok_or_else(|| "expected a share as 4% or 0.04".into())
}

/// A range in words.
struct Told(Reals);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            (Bound::Excluded(a), Bound::Included(b)) if b >= LARGEST => write!(f, "a finite number above {a}"),
            (Bound::Included(a), Bound::Included(b)) if b >= LARGEST => write!(f, "a finite number, {a} or more"),
            (low, high) => {
                match low {
                    Bound::Included(a) => write!(f, "a number from {a}")?,
                    Bound::Excluded(a) => write!(f, "a number above {a}")?,
                    Bound::Unbounded => write!(f, "a number")?,
                }
                match high {
                    Bound::Included(b) => write!(f, " to {b}"),
                    Bound::Excluded(b) => write!(f, " to below {b}"),
                    Bound::Unbounded => Ok(()),
                }
            }
        }
    }
}

/// Options that a task or a method reads, by the names of their fields.
pub struct Read {
    names: &'static [&'static str],
    /// Where that depends on other options.
    when: Option<Condition>,
}

/// In words, and whether it holds.
type Condition = (&'static str, fn(&Args) -> bool);

impl Read {
    pub const fn always(names: &'static [&'static str]) -> Self {
        Read { names, when: None }
    }

    /// `condition` completes "read by NAME …", as in "with --low-rank".
    pub const fn when(names: &'static [&'static str], condition: &'static str, holds: fn(&Args) -> bool) -> Self {
        Read { names, when: Some((condition, holds)) }
    }
}

/// Of every task: where things are, how they are told apart, and what holds what is learned.
const OF_ALL: &[&str] = &[
    "task",
    "method",
    "seed",
    "device",
    "trunk",
    "data",
    "json",
    "plot",
    "ewc",
    "ewc_fisher",
    "ewc_whole",
    "ewc_anchor",
];

/// Of a task that is one training.
pub const TRAINING: Read = Read::always(&[
    "epochs",
    "steps",
    "batch",
    "accumulate",
    "lr",
    "schedule",
    "warmup",
    "weight_decay",
    "clip",
    "dtype",
    "budget",
    "trial_steps",
    "validation",
    "equal_params",
    "recompute",
    "out",
    "save_every",
    "resume",
    "eval_every",
]);

/// Refuses an option that was given and that neither the task nor any of the methods reads.
pub fn require_read(args: &Args) -> Result<()> {
    let chosen = args.method.iter().map(|name| methods::by_name(name)).collect::<Result<Vec<_>>>()?;
    let task = tasks::by_name(&args.task)?;
    let lists = || chosen.iter().map(|method| method.reads).chain([task.reads]).flatten();
    let is_read = |name: &str| {
        let holds = |read: &Read| read.when.is_none_or(|(_, holds)| holds(args));
        OF_ALL.contains(&name) || lists().any(|read| read.names.contains(&name) && holds(read))
    };
    let Some(name) = args.given.iter().find(|name| !is_read(name)) else { return Ok(()) };
    Err(Error::Unsupported {
        op: "finetune",
        what: format!(
            "--{} has no meaning for --task {} --method {}",
            name.replace('_', "-"),
            args.task,
            args.method.join(",")
        ),
        hint: format!("it is read by {}", readers(name).unwrap_or_default()),
    })
}

/// Who reads an option, as `--method lora, sora`; `None` for what everybody reads.
fn readers(name: &str) -> Option<String> {
    if OF_ALL.contains(&name) {
        return None;
    }
    let reading = |who: &'static str, reads: &'static [Read]| {
        let read = reads.iter().find(|read| read.names.contains(&name))?;
        Some(read.when.map_or_else(|| who.to_string(), |(condition, _)| format!("{who} {condition}")))
    };
    let tasks: Vec<String> = tasks::ALL.iter().filter_map(|task| reading(task.name, task.reads)).collect();
    let methods: Vec<String> = methods::ALL.iter().filter_map(|method| reading(method.name, method.reads)).collect();
    let named = [("--task", tasks), ("--method", methods)].into_iter().filter(|(_, all)| !all.is_empty());
    Some(named.map(|(kind, all)| format!("{kind} {}", all.join(", "))).collect::<Vec<_>>().join("; "))
}

/// The command with every option under a heading that says who reads it. It is made once, and clap keeps no heading of its own.
pub fn grouped(command: Command) -> Command {
    command.mut_args(|arg| match readers(arg.get_id().as_str()) {
        Some(readers) if !readers.is_empty() => arg.help_heading(&*format!("Options of {readers}").leak()),
        _ => arg,
    })
}

/// Holds settings that were read from `path` to what the options of their names may be.
pub fn require_in_range(path: &Path, settings: &Map<String, Value>) -> Result<()> {
    let command = <Args as clap::Args>::augment_args(Command::new("finetune"));
    let values = settings.iter().filter_map(|(name, value)| {
        let option = command.get_arguments().find(|arg| arg.get_id() == name.as_str())?.get_long()?;
        match value {
            Value::Number(n) => Some(format!("--{option}={n}")),
            Value::String(text) => Some(format!("--{option}={text}")),
            _ => None,
        }
    });
    let line: Vec<String> = std::iter::once("finetune".into()).chain(values).collect();
    command.clone().try_get_matches_from(line).map(drop).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        Error::File { path: path.into(), reason: format!("holds a setting that cannot be: {first}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        <Args as clap::Args>::augment_args(Command::new("finetune"))
    }

    fn accepts(option: &str, value: &str) -> bool {
        command().try_get_matches_from(["finetune".to_string(), format!("--{option}={value}")]).is_ok()
    }

    fn valued() -> Vec<(String, String)> {
        let takes_value = |arg: &&clap::Arg| arg.get_action().takes_values();
        let named = |arg: &clap::Arg| Some((arg.get_id().to_string(), arg.get_long()?.to_string()));
        command().get_arguments().filter(takes_value).filter_map(named).collect()
    }

    /// Whatever takes a number takes no NaN, no infinity, and nothing that cannot be allocated or counted.
    #[test]
    fn every_number_has_a_range() {
        for (_, option) in valued() {
            let numeric = ["1", "0.5", "16"].iter().any(|n| accepts(&option, n)) && !accepts(&option, "x");
            if !numeric || option == "seed" {
                continue;
            }
            for value in ["nan", "inf", "-inf", "1e300", "-7"] {
                assert!(!accepts(&option, value), "--{option} {value}");
            }
            assert!(accepts(&option, "0.5") || !accepts(&option, "18446744073709551615"), "--{option}");
        }
    }

    #[test]
    fn every_option_has_a_reader_and_every_reader_an_option() {
        let command = command();
        let mut known: Vec<&str> = command.get_arguments().map(|arg| arg.get_id().as_str()).collect();
        known.retain(|name| *name != "help");
        for name in &known {
            assert!(readers(name).is_none_or(|readers| !readers.is_empty()), "{name} is read by nobody");
        }
        let of_tasks = tasks::ALL.iter().flat_map(|task| task.reads);
        let of_methods = methods::ALL.iter().flat_map(|method| method.reads);
        for name in of_tasks.chain(of_methods).flat_map(|read| read.names).chain(OF_ALL) {
            assert!(known.contains(name), "{name} is no option");
        }
    }

    #[test]
    fn ranges_are_told_in_words() {
        assert_eq!(number(ABOVE_0)("0"), Err("expected a finite number above 0".into()));
        assert_eq!(number(FROM_0)("nan"), Err("expected a finite number, 0 or more".into()));
        assert_eq!(number(PART)("1"), Err("expected a number from 0 to below 1".into()));
        assert_eq!(number(SHARE)("0"), Err("expected a number above 0 to 1".into()));
        assert_eq!(whole(1..=9)("10"), Err("expected a whole number from 1 to 9".into()));
        assert_eq!([share("4%"), share("0.04")], [Ok(0.04), Ok(0.04)]);
        assert!(share("0").is_err() && share("101%").is_err() && share("nan").is_err());
    }
}
