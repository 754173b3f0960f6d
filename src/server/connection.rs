//! What is known of one connection: is a request running, since when does it wait and for whom, how many bytes went out.
//!
//! hyper's own header timeout also runs between requests, where clients may idle for minutes, and it knows nothing of slow readers;
//! so the deadlines are derived here from what the I/O wrapper and the request handler note. All writers are within one task; the
//! atomics are for the compiler and for readers elsewhere, and need no order among each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use super::settings::Limits;
use super::slots::Slots;

/// The state that the wrapper, the handler and the watch over deadlines share.
#[derive(Debug)]
pub(super) struct Connection {
    opened: Instant,
    /// A request was handed to the handler and its body has not been dropped yet.
    in_flight: AtomicBool,
    /// Requests handed to the handler so far.
    requests: AtomicU64,
    /// Everything that the handler answered has left, and no request came since: what hyper writes now is its own.
    clean: AtomicBool,
    /// Bytes of a request came and it is not complete.
    header_since: Moment,
    idle_since: Moment,
    /// The socket takes no bytes although there are some.
    blocked_since: Moment,
    /// The socket would take more, but it is the turn of others.
    yielded: AtomicBool,
    /// The client sent its FIN.
    finished: AtomicBool,
    written: AtomicU64,
    /// How long the reader may still keep us waiting, in milliseconds: waiting spends it, bytes earn it at `min_rate`, up to `window`.
    patience: AtomicU64,
    window: u64,
    /// Bytes per second; 0 is "any".
    min_rate: u64,
    slots: Slots,
}

/// Milliseconds since the connection was opened, plus one; zero is "not".
#[derive(Debug, Default)]
struct Moment(AtomicU64);

/// Why a connection is ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The headers of a request did not come in time.
    Header,
    Idle,
    /// A reader that took no byte.
    SlowReader,
    /// A reader that took too few.
    Trickle,
}

/// Held while a request is running.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Connection>);

impl Connection {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        let window = u64::try_from(limits.idle_body.as_millis()).unwrap_or(u64::MAX);
        Arc::new(Self {
            opened: Instant::now(),
            in_flight: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            clean: AtomicBool::new(true),
            header_since: Moment::default(),
            idle_since: Moment::default(),
            blocked_since: Moment::default(),
            yielded: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            written: AtomicU64::new(0),
            patience: AtomicU64::new(window),
            window,
            min_rate: limits.min_rate,
            slots: Slots::default(),
        })
    }

    /// A request begins.
    pub(super) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.store(true, Relaxed);
        self.clean.store(false, Relaxed);
        self.requests.fetch_add(1, Relaxed);
        self.header_since.clear();
        InFlight(Arc::clone(self))
    }

    pub(super) fn note_read(&self, count: usize) {
        if count == 0 {
            self.finished.store(true, Relaxed);
        } else if !self.in_flight.load(Relaxed) && !self.header_since.is_set() {
            self.header_since.set(self.opened);
        }
    }

    pub(super) fn note_written(&self, count: usize) {
        self.unblock();
        self.yielded.store(false, Relaxed);
        let count = u64::try_from(count).unwrap_or(0);
        self.written.fetch_add(count, Relaxed);
        let patience = self.patience.load(Relaxed);
        if patience < self.window
            && let Some(earned) = count.saturating_mul(1000).checked_div(self.min_rate)
        {
            self.patience.store(patience.saturating_add(earned).min(self.window), Relaxed);
        }
    }

    /// The socket takes bytes again; the wait is spent.
    fn unblock(&self) {
        if let Some(since) = self.blocked_since.get(self.opened) {
            let waited = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            let left = self.patience.load(Relaxed).saturating_sub(waited);
            self.patience.store(left, Relaxed);
            self.blocked_since.clear();
        }
    }

    pub(super) fn note_blocked(&self) {
        if !self.blocked_since.is_set() {
            self.blocked_since.set(self.opened);
        }
    }

    /// Bytes wait although the socket takes them: others come first, and this task runs again at once.
    pub(super) fn note_yielded(&self) {
        self.yielded.store(true, Relaxed);
    }

    /// The parts of files that are on their way through hyper.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Everything that hyper had to write has been written.
    pub(super) fn note_flushed(&self) {
        self.unblock();
        if !self.in_flight.load(Relaxed) {
            self.clean.store(true, Relaxed);
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.clean.load(Relaxed)
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked_since.is_set()
    }

    /// Has hyper bytes that it could not write when it last tried?
    pub(super) fn is_waiting(&self) -> bool {
        self.is_blocked() || self.yielded.load(Relaxed)
    }

    /// Did the client send its FIN?
    pub(super) fn is_finished(&self) -> bool {
        self.finished.load(Relaxed)
    }

    /// Is part of a request here that nobody answers yet?
    pub(super) fn is_mid_header(&self) -> bool {
        self.header_since.is_set()
    }

    /// Since when nothing at all happens here; none while a request runs or arrives.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        if self.in_flight.load(Relaxed) || self.header_since.is_set() || self.is_blocked() {
            return None;
        }
        Some(self.idle_since.get(self.opened).unwrap_or(self.opened))
    }

    /// When this connection must end unless something happens before; none while a request is being answered.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<(Instant, Expiry)> {
        if let Some(blocked) = self.blocked_since.get(self.opened) {
            let patience = Duration::from_millis(self.patience.load(Relaxed));
            if self.min_rate > 0 && patience < limits.idle_body {
                return Some((blocked + patience, Expiry::Trickle));
            }
            return Some((blocked + limits.idle_body, Expiry::SlowReader));
        }
        if self.in_flight.load(Relaxed) {
            return None;
        }
        if let Some(began) = self.header_since.get(self.opened) {
            return Some((began + limits.header_time, Expiry::Header));
        }
        match self.idle_since.get(self.opened) {
            Some(idle) => Some((idle + limits.idle_connection, Expiry::Idle)),
            None => Some((self.opened + limits.header_time, Expiry::Idle)),
        }
    }
}

impl InFlight {
    pub(super) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.0)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.store(false, Relaxed);
        self.0.idle_since.set(self.0.opened);
    }
}

impl Moment {
    fn set(&self, opened: Instant) {
        let millis = u64::try_from(opened.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.0.store(millis + 1, Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    fn get(&self, opened: Instant) -> Option<Instant> {
        let stored = self.0.load(Relaxed).checked_sub(1)?;
        Some(opened + Duration::from_millis(stored))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(connection: &Connection, limits: &Limits) -> Option<(Duration, Expiry)> {
        connection.deadline(limits).map(|(at, expiry)| (at - connection.opened, expiry))
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_deadline() {
        let limits = Limits::default();
        let connection = Connection::new(&limits);
        assert_eq!(due(&connection, &limits), Some((limits.header_time, Expiry::Idle)));
        tokio::time::advance(Duration::from_secs(1)).await;
        connection.note_read(5);
        tokio::time::advance(Duration::from_secs(1)).await;
        connection.note_read(5);
        let header = Duration::from_secs(1) + limits.header_time;
        assert_eq!(
            due(&connection, &limits),
            Some((header, Expiry::Header)),
            "a trickle moves nothing"
        );
        let in_flight = connection.begin();
        connection.note_read(9);
        assert_eq!(due(&connection, &limits), None);
        connection.note_blocked();
        tokio::time::advance(Duration::from_secs(3)).await;
        connection.note_blocked();
        let blocked = Duration::from_secs(2) + limits.idle_body;
        assert_eq!(due(&connection, &limits), Some((blocked, Expiry::SlowReader)));
        connection.note_written(1);
        assert_eq!(due(&connection, &limits), None);
        drop(in_flight);
        let idle = Duration::from_secs(5) + limits.idle_connection;
        assert_eq!(due(&connection, &limits), Some((idle, Expiry::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_pays_for_its_pauses_with_bytes() {
        let limits =
            Limits { idle_body: Duration::from_secs(60), min_rate: 1000, ..Limits::default() };
        let connection = Connection::new(&limits);
        let _in_flight = connection.begin();
        let mut pauses = 0;
        // Each pause of 50 s costs as much, and ten thousand bytes earn ten of them back.
        let expiry = loop {
            connection.note_blocked();
            let (at, expiry) = connection.deadline(&limits).unwrap();
            if at - Instant::now() < Duration::from_secs(50) {
                break expiry;
            }
            tokio::time::advance(Duration::from_secs(50)).await;
            connection.note_written(10_000);
            pauses += 1;
        };
        assert_eq!((expiry, pauses), (Expiry::Trickle, 1));
        let connection = Connection::new(&limits);
        for _ in 0..100 {
            connection.note_blocked();
            tokio::time::advance(Duration::from_secs(50)).await;
            connection.note_written(50_000);
        }
        connection.note_blocked();
        assert_eq!(connection.deadline(&limits).unwrap().1, Expiry::SlowReader, "fast enough");
        let any = Limits { min_rate: 0, ..limits };
        let connection = Connection::new(&any);
        for _ in 0..100 {
            connection.note_blocked();
            tokio::time::advance(Duration::from_secs(50)).await;
            connection.note_written(1);
        }
        connection.note_blocked();
        assert_eq!(connection.deadline(&any).unwrap().1, Expiry::SlowReader, "any rate will do");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_clean_when_the_answer_has_left() {
        let connection = Connection::new(&Limits::default());
        assert!(connection.is_clean());
        let in_flight = connection.begin();
        connection.note_flushed();
        assert!(!connection.is_clean(), "the body is still to come");
        drop(in_flight);
        assert!(!connection.is_clean());
        connection.note_flushed();
        assert!(connection.is_clean());
    }
}
