//! `roadstead export`: images into a bundle, which is a tar, a tar in parts, a directory, or a tar on standard output.
//!
//! What must hold: how large it becomes is told before the first byte is written; nothing has its final name before all of it is whole,
//! and nothing is left over of what did not become whole; what is there already stays, unless `--force` says that it may go.

mod command;
mod naming;
mod progress;
mod target;
mod write;

pub(in crate::cli) use command::export;
