//! A small autograd for adapters. A node is recorded only when something trainable lies at or before it, nodes are plain data,
//! and what each one keeps for backward can be listed, counted and asserted.
//!
//! The mechanism knows no op: an op records a struct of its own that implements [`Recorded`], in its own folder.

mod checkpoint;
mod grads;
mod ledger;
mod node;
mod tape;
mod var;

pub use checkpoint::Segment;
pub use grads::{AuditReport, Grads};
pub use ledger::{Ledger, LedgerRow};
pub use node::{Recorded, Sinks, Target, Wants};
pub use tape::{Backward, Tape, Tracking};
pub use var::{Recompute, Saved, Var};
