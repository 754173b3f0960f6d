//! Subcommands and what they print.
//!
//! This is the only room that writes to standard output. What a command cannot do it says in one line on standard error, with an exit
//! code: 0 done; 1 it could not be done, the thing is not known or is refused (for `verify`: or something is damaged); 2 the arguments or the
//! configuration are wrong, or there is no store; 130 interrupted. A reader of the output that goes away (`| head`) ends a list quietly with
//! 0 and does not stop work that was begun. Texts of others are printed without control characters.

mod admin;
mod answer;
mod arguments;
mod banner;
mod command;
mod images;
mod job;
mod list;
mod lock;
mod reach;
mod request;
mod serve;
mod staged;
mod story;
mod table;
mod upload;
mod words;

pub use command::run;
