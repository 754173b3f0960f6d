//! The admin API: JSON over HTTP/1.1 for the operator and nobody else, on a unix socket in the data directory and, if the operator names
//! an address, on a TCP listener.
//!
//! What must hold: whoever may open the socket is the owner of the data (mode 0600), whoever comes over TCP knows the token, and no page
//! of a browser gets through (a request with an `Origin` is refused, and over TCP one to a strange `Host`). Long work is told as a stream
//! of JSON lines and ends when its client goes. A command that finds no server runs the same handlers on the store itself, through
//! [`Admin::serve`]. Nothing of this is on the data port.

mod accept;
mod api;
mod body;
mod connection;
mod gate;
mod images;
mod presence;
mod query;
mod routes;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;
mod token;
mod upload;

pub use api::Admin;
pub use socket::{AdminSocket, SOCKET_NAME};
pub use tcp::{AdminListener, GuardedListener};
pub use token::TOKEN_FILE;
