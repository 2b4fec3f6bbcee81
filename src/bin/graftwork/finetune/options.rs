//! What an option may be, and who reads it.
//!
//! An option is declared in one place, as a field of a clap struct: its help, its default, and its range as the `value_parser`: [`whole`],
//! [`size`], [`number`], a list of names, or [`names`] of modules. What lies outside is refused before anything is opened, with the option's name, what was expected
//! and what was got. Settings that come from a checkpoint have the options' names and are held to the same ranges ([`require_in_range`]).
//!
//! A task and a method each list the options that they read. One that stands on the command line and is read by nobody who takes part is
//! refused and not passed over ([`require_read`]); `--help` is grouped by readers ([`grouped`]).
//!
//! Whatever else is wrong with a value is found where it is used, perhaps deep in the library, which has names of its own for things.
//! [`blame`] says it in the name of the option.

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

/// Names separated by commas, each once; of modules, places, variants.
pub fn names(text: &str) -> Parsed<String> {
    let all: Vec<&str> = text.split(',').map(str::trim).collect();
    if all.iter().any(|name| name.is_empty()) {
        return Err("expected names separated by commas".into());
    }
    match repeated(&all) {
        Some(name) => Err(format!("expected each name once, and {name} comes twice")),
        None => Ok(text.into()),
    }
}

/// Names of modules, or what stands for many.
pub fn modules(text: &str) -> Parsed<String> {
    if text.starts_with("regex:") {
        return Ok(text.into());
    }
    names(text).map_err(|expected| format!("{expected}; or all-linear, or regex:PATTERN"))
}

/// The first of those that come a second time.
pub fn repeated<T: PartialEq>(all: &[T]) -> Option<&T> {
    all.iter().enumerate().find_map(|(i, item)| all[..i].contains(item).then_some(item))
}

/// A share from `4%` or `0.04`.
pub fn share(text: &str) -> Parsed<f64> {
    let (number, unit) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 0.01));
    let share = number.trim().parse::<f64>().map(|number| number * unit);
    let expected = || String::from("expected a share above 0 and up to 100%, as 4% or 0.04");
    share.ok().filter(|share| SHARE.contains(share)).ok_or_else(expected)
}

/// A range in words.
struct Told(Reals);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            (Bound::Excluded(a), Bound::Included(b)) if b >= LARGEST => {
                write!(f, "a number above {a}, at most {b:.1e}")
            }
            (Bound::Included(a), Bound::Included(b)) if b >= LARGEST => write!(f, "a number from {a} to {b:.1e}"),
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
    "validation",
    "recompute",
    "out",
    "save_every",
    "resume",
]);

/// Of the same: scores on the way go where a file keeps them.
pub const LOOKED: Read = Read::when(&["eval_every"], "with --json, --plot or --out", |args| {
    [&args.json, &args.plot, &args.out, &args.resume].into_iter().any(Option::is_some)
});

/// Of the same: what is made equal is the rank.
pub const COMPARED: Read = Read::when(&["equal_params"], "where a method after the first has a --rank", |args| {
    let has_rank = |name: &String| methods::by_name(name).is_ok_and(|method| reads(method.reads, "rank"));
    args.method.iter().skip(1).any(has_rank)
});

fn reads(lists: &[Read], name: &str) -> bool {
    lists.iter().any(|read| read.names.contains(&name))
}

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
    let tasks = tasks::ALL.iter().map(|task| ("--task", task.name, task.reads));
    let methods = methods::ALL.iter().map(|method| ("--method", method.name, method.reads));
    // Those who read it under the same condition stand together.
    let mut groups: Vec<(&str, Option<&str>, Vec<&str>)> = Vec::new();
    for (kind, who, reads) in tasks.chain(methods) {
        let Some(read) = reads.iter().find(|read| read.names.contains(&name)) else { continue };
        let condition = read.when.map(|(words, _)| words);
        match groups.iter_mut().find(|group| (group.0, group.1) == (kind, condition)) {
            Some(group) => group.2.push(who),
            None => groups.push((kind, condition, vec![who])),
        }
    }
    let told = |(kind, condition, who): &(&str, Option<&str>, Vec<&str>)| {
        let condition = condition.map_or_else(String::new, |words| format!(" {words}"));
        format!("{kind} {}{condition}", who.join(", "))
    };
    Some(groups.iter().map(told).collect::<Vec<_>>().join("; "))
}

/// The command with every option under a heading that says who reads it. It is made once, and clap keeps no heading of its own.
pub fn grouped(command: Command) -> Command {
    command.mut_args(|arg| match readers(arg.get_id().as_str()) {
        Some(readers) if !readers.is_empty() => arg.help_heading(&*format!("Options of {readers}").leak()),
        _ => arg,
    })
}

/// An error of the command line itself: what `option` asks for cannot be.
pub fn refused(option: &'static str, expected: impl Into<String>, got: impl ToString) -> Error {
    Error::Value { op: "finetune", argument: option, expected: expected.into(), got: got.to_string() }
}

/// An error of the library, said in the name of the option that led to it: that of the argument's name, or `picks`, which names modules,
/// where nothing has such a name.
pub fn blame(error: Error, picks: &str) -> Error {
    let option = match &error {
        Error::Value { op: "finetune", .. } => return error,
        Error::NoMatch { .. } | Error::Unsupported { op: "peft", .. } => picks.to_string(),
        Error::Value { op: "vce", argument, .. } => format!("vce-{argument}"),
        Error::Value { argument, .. } => argument.replace(['_', ' '], "-"),
        _ => return error,
    };
    let known = command().get_arguments().any(|arg| arg.get_long() == Some(&option));
    if known { error.within(format!("--{option}")) } else { error }
}

/// An error of a file, said in the name of the option that led to it. What else went wrong on the way is not the file's fault.
pub fn blame_file(error: Error, option: &'static str) -> Error {
    match error {
        Error::Io { .. } | Error::File { .. } | Error::ConfigField { .. } => error.within(option),
        other => other,
    }
}

/// Refuses a schedule that ends before it begins; `end` is an option, `begin` what to say of the other.
pub fn require_order((begin, from): (&str, u64), (end, until): (&'static str, u64)) -> Result<()> {
    if from <= until {
        return Ok(());
    }
    Err(refused(end, format!("at least {begin}, {from}"), until))
}

fn command() -> Command {
    <Args as clap::Args>::augment_args(Command::new("finetune"))
}

/// Holds settings that were read from `path` to what the options of their names may be.
pub fn require_in_range(path: &Path, settings: &Map<String, Value>) -> Result<()> {
    let command = command();
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
            if !numeric {
                continue;
            }
            for value in ["nan", "inf", "-inf", "1e300", "-7"] {
                assert!(!accepts(&option, value), "--{option} {value}");
            }
            let refusal =
                command().try_get_matches_from(["finetune", &format!("--{option}=x")]).unwrap_err().to_string();
            assert!(refusal.contains("expected"), "--{option} x: {refusal}");
            // Counter-based randomness takes any seed.
            if option == "seed" {
                continue;
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
        assert_eq!(number(ABOVE_0)("1e300"), Err("expected a number above 0, at most 3.4e38".into()));
        assert_eq!(number(FROM_0)("nan"), Err("expected a number from 0 to 3.4e38".into()));
        assert_eq!(number(PART)("1"), Err("expected a number from 0 to below 1".into()));
        assert_eq!(number(SHARE)("0"), Err("expected a number above 0 to 1".into()));
        assert_eq!(whole(1..=9)("10"), Err("expected a whole number from 1 to 9".into()));
        assert_eq!([share("4%"), share("0.04")], [Ok(0.04), Ok(0.04)]);
        assert!(share("0").is_err() && share("101%").is_err() && share("nan").is_err());
    }

    #[test]
    fn names_come_once_and_have_letters() {
        assert_eq!(names("mlp, attention"), Ok("mlp, attention".into()));
        assert_eq!(names("mlp,fc1,mlp"), Err("expected each name once, and mlp comes twice".into()));
        for text in ["", ",", "mlp,", " "] {
            assert!(names(text).is_err() && modules(text).is_err(), "{text:?}");
        }
        assert!(modules("regex:a,,b").is_ok());
    }

    /// Words of the library's own become the option's; what the command says itself stays as it is.
    #[test]
    fn errors_name_their_option() {
        let value = |op, argument| Error::Value { op, argument, expected: "less".into(), got: "9".into() };
        let nowhere = Error::NoMatch { patterns: vec!["nope".into()], available: "fc1".into() };
        for (error, start) in [
            (value("vce", "heads"), "--vce-heads: vce: "),
            (value("vl_pet", "heads"), "--heads: vl_pet: "),
            (value("bottleneck", "head layout"), "--head-layout: "),
            (value("lora", "d_initial"), "--d-initial: "),
            (value("gemm", "m"), "gemm: `m`"),
            (refused("--rank", "less", 9), "finetune: `--rank` is 9"),
            (nowhere, "--places: no module matches"),
        ] {
            let told = blame(error, "places").to_string();
            assert!(told.starts_with(start), "{told}");
        }
    }
}
