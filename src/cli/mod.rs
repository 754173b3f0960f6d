//! Subcommands and what they print.
//!
//! This is the only room that writes to standard output. What a command cannot do it says in one line on standard error, with an exit
//! code: 0 done, 1 failed (for `verify`: or something is damaged), 2 the arguments or the configuration are wrong, 130 interrupted.

mod admin;
mod arguments;
mod banner;
mod command;
mod serve;
mod store;
mod story;

pub use command::run;
