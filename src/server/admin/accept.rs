//! The loop of a listener of the admin API: so many connections at a time, each in a task of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::Admin;

/// Connections at a time; a few commands and a monitor.
const CONNECTIONS: usize = 16;
/// After an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener.
pub(super) trait Accept {
    /// For the log.
    const NAME: &'static str;
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and the handlers for it.
    async fn accept(&self, admin: &Admin) -> io::Result<(Self::Stream, Admin)>;
}

/// Serves until `shutdown`.
pub(super) async fn serve_all<L: Accept>(
    listener: &L,
    admin: &Admin,
    shutdown: &CancellationToken,
    tasks: &TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept(admin).await)
            } => accepted,
        };
        match accepted {
            (Ok(place), Ok((stream, admin))) => {
                let shutdown = shutdown.clone();
                tasks.spawn(async move {
                    admin.serve(stream, shutdown).await;
                    drop(place);
                });
            }
            (_, accepted) => {
                if let Err(error) = accepted {
                    tracing::warn!(%error, "{} cannot accept connections for a moment", L::NAME);
                }
                // Also a stop during the pause is a stop.
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = sleep(PAUSE) => {}
                }
            }
        }
    }
}
