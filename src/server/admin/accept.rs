//! The loop of a listener of the admin API: so many connections at a time, each in a task of its own.
//!
//! What must hold: whoever was let in keeps his place until he is done; whoever was not (his request is not here as a whole, or was
//! refused) gives it to the next one who comes, the oldest first, so that no stranger can keep the places taken.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::api::Admin;
use super::presence;

/// Connections at a time; a few commands and a monitor.
const CONNECTIONS: usize = 16;
/// After an accept that failed for want of something.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener.
pub(super) trait Accept {
    /// For the log.
    const NAME: &'static str;
    type Stream: AsFd + AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and the handlers for it.
    async fn accept(&self, admin: &Admin) -> io::Result<(Self::Stream, Admin)>;
}

/// Connections of which nobody was let in yet, the oldest first.
#[derive(Debug, Default)]
struct Lobby {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    guests: VecDeque<(u64, CancellationToken)>,
    came: u64,
}

/// Somebody in the lobby, until he is let in or goes.
#[derive(Debug)]
pub(super) struct Guest {
    lobby: Arc<Lobby>,
    number: u64,
}

impl Lobby {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A newcomer, and the order to him to leave.
    fn enter(self: &Arc<Self>) -> (Guest, CancellationToken) {
        let (leave, mut waiting) = (CancellationToken::new(), self.waiting());
        waiting.came += 1;
        let number = waiting.came;
        waiting.guests.push_back((number, leave.clone()));
        (Guest { lobby: Arc::clone(self), number }, leave)
    }

    /// Sends away the one who has been here longest, if there is one.
    fn make_room(&self) {
        if let Some((_number, leave)) = self.waiting().guests.pop_front() {
            leave.cancel();
        }
    }
}

impl Guest {
    /// He keeps his place from now on, unless it was given away a moment ago.
    pub(super) fn let_in(&self) -> bool {
        let mut waiting = self.lobby.waiting();
        let place = waiting.guests.iter().position(|(number, _leave)| *number == self.number);
        place.and_then(|place| waiting.guests.remove(place)).is_some()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.let_in();
    }
}

/// Serves until `shutdown`.
pub(super) async fn serve_all<L: Accept>(
    listener: &L,
    admin: &Admin,
    shutdown: &CancellationToken,
    tasks: &TaskTracker,
) {
    let (places, lobby) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::<Lobby>::default());
    let accept = async || {
        let accepted = listener.accept(admin).await?;
        let places = Arc::clone(&places);
        if places.available_permits() == 0 {
            tracing::debug!("all places of {} are taken", L::NAME);
            lobby.make_room();
        }
        let place = places.acquire_owned().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>((accepted, place))
    };
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(((stream, admin), place)) => {
                let shutdown = shutdown.clone();
                let (guest, leave) = lobby.enter();
                let admin = admin.for_guest(guest);
                let gone = presence::gone(stream.as_fd());
                tasks.spawn(async move {
                    tokio::select! {
                        biased;
                        () = admin.serve(stream, shutdown) => {}
                        () = gone => {}
                        () = leave.cancelled() => {
                            tracing::debug!("a connection to {} gives its place to another", L::NAME);
                        }
                    }
                    // Whoever is gone is not in the lobby when his place is free.
                    drop(admin);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "{} cannot accept connections for a moment", L::NAME);
                // Also a stop during the pause is a stop.
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = sleep(PAUSE) => {}
                }
            }
        }
    }
}
