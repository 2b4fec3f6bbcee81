//! A network on the graph between samples. It sits on no linear of a trunk, and learns in the study of the graph task alone.

use graftwork::Error;

use super::Entry;

pub const ENTRY: Entry = Entry {
    name: "ga-net",
    about: "A bottleneck around a graph convolution, with --task graph",
    reads: &[],
    settings: |_, _| Err(elsewhere()),
    open: |_| Err(elsewhere()),
};

fn elsewhere() -> Error {
    Error::Unsupported {
        op: "finetune",
        what: "ga-net learns on the graph between samples, which this task has not".into(),
        hint: "use --task graph".into(),
    }
}
