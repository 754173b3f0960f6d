//! Is the client still there? Told also while nobody reads what it has sent, as during a wait for room.
//!
//! What must hold: not one byte of the stream is touched. A client that has closed its sending side has gone, as the HTTP server below judges
//! too when it reads that far.
//!
//! Over a unix socket the end is seen at once. Over TCP it stands behind what was sent before it, so a client that sends more than the
//! buffers hold is missed only when somebody reads on.

use std::future::pending;
use std::io;
use std::os::fd::BorrowedFd;

use tokio::io::Interest;
use tokio::net::UnixStream;

/// Returns when the client has gone, or never if that cannot be told. Needs a running runtime.
pub(super) fn gone(stream: BorrowedFd<'_>) -> impl Future<Output = ()> + use<> {
    let watched = watch(stream);
    async move {
        match watched {
            Ok(watched) => until_closed(&watched).await,
            Err(error) => {
                tracing::debug!(%error, "an admin connection cannot be watched");
                pending().await
            }
        }
    }
}

/// By a descriptor of its own, because the stream's is watched already. Only its readiness is looked at, so its kind is of no matter.
fn watch(stream: BorrowedFd<'_>) -> io::Result<UnixStream> {
    let own = stream.try_clone_to_owned()?;
    UnixStream::from_std(own.into())
}

async fn until_closed(watched: &UnixStream) {
    loop {
        let Ok(ready) = watched.ready(Interest::READABLE).await else {
            return pending().await;
        };
        if ready.is_read_closed() {
            return;
        }
        // What this says is taken for "nothing is there", so the next wait is for more, or for the end.
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        let _still_nothing = watched.try_io(Interest::READABLE, nothing);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use futures_util::poll;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_goes_is_missed_although_nobody_reads() {
        let (mut client, mut server) = UnixStream::pair().unwrap();
        let mut gone = Box::pin(gone(server.as_fd()));
        assert!(poll!(&mut gone).is_pending());
        client.write_all(b"something").await.unwrap();
        // Until it is here, and with it whatever wakes the watch.
        server.readable().await.unwrap();
        assert!(poll!(&mut gone).is_pending());
        drop(client);
        timeout(Duration::from_secs(30), gone).await.expect("it is seen");
        let mut left = String::new();
        server.read_to_string(&mut left).await.unwrap();
        assert_eq!(left, "something");
    }
}
