//! Why the server cannot start: one line that names the address and the setting.

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// A listener could not be opened.
#[derive(Debug)]
pub struct BindError {
    pub address: SocketAddr,
    /// The configuration key that the address comes from.
    pub setting: &'static str,
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, setting, source } = self;
        match source.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "cannot listen on {address} ({setting}): the port is in use by another program; stop it or choose another {setting} address"
            ),
            io::ErrorKind::PermissionDenied => write!(
                f,
                "cannot listen on {address} ({setting}): not permitted; ports below 1024 need CAP_NET_BIND_SERVICE"
            ),
            io::ErrorKind::AddrNotAvailable => write!(
                f,
                "cannot listen on {address} ({setting}): this machine has no such address"
            ),
            _ => write!(f, "cannot listen on {address} ({setting}): {source}"),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_one_line_that_names_address_and_setting() {
        for kind in [
            io::ErrorKind::AddrInUse,
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::AddrNotAvailable,
            io::ErrorKind::Other,
        ] {
            let text = BindError {
                address: ([127, 0, 0, 1], 5000).into(),
                setting: "listen",
                source: kind.into(),
            }
            .to_string();
            assert!(text.contains("127.0.0.1:5000") && text.contains("listen"), "{text}");
            assert!(!text.contains('\n'), "{text}");
        }
    }
}
