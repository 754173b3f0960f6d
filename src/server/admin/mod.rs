//! The admin API: JSON over HTTP/1.1 on a unix socket in the data directory, for the operator and nobody else.
//!
//! What must hold: whoever may open the socket is the owner of the data (mode 0600), and no page of a browser gets through (a request
//! with an `Origin` is refused). Long work is told as a stream of JSON lines and ends when its client goes. A command that finds no
//! server runs the same handlers on the store itself, through [`Admin::serve`].

mod api;
mod body;
mod connection;
mod socket;
#[cfg(test)]
mod tests;

pub use api::Admin;
pub use socket::{AdminSocket, SOCKET_NAME};
