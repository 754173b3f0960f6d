//! The unix socket: made under the lock of the data directory, for the owner alone, and removed at the end.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::{Accept, serve_all};
use super::api::Admin;

/// The socket in the data directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// The longest path that a unix socket can have (unix(7), `sun_path` with its zero byte).
const SOCKET_PATH_MAX: usize = 107;
/// Connections that wait in the kernel.
const BACKLOG: u32 = 16;

/// The socket, open and not yet served.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// Removes the socket's name when it is dropped.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl AdminSocket {
    /// Opens the socket in `directory`, in place of one that an earlier process left. The caller holds the directory's lock, so nobody
    /// else listens there. Needs a running runtime.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let path = directory.join(SOCKET_NAME);
        if path.as_os_str().as_bytes().len() > SOCKET_PATH_MAX {
            let refusal = format!("its path would be longer than {SOCKET_PATH_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, refusal));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixSocket::new_stream()?;
        socket.bind(&path)?;
        let file = SocketFile(path);
        // Nobody can connect before it listens, so nobody gets in between.
        fs::set_permissions(&file.0, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener: socket.listen(BACKLOG)?, file })
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, admin: Admin, shutdown: CancellationToken, tasks: TaskTracker) {
        serve_all(&self, &admin, &shutdown, &tasks).await;
        drop(self.file);
    }
}

impl Accept for AdminSocket {
    const NAME: &'static str = "the admin socket";
    type Stream = UnixStream;

    async fn accept(&self, admin: &Admin) -> io::Result<(UnixStream, Admin)> {
        let (stream, _address) = self.listener.accept().await?;
        Ok((stream, admin.clone()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "the admin socket could not be removed");
            }
            _ => {}
        }
    }
}
