//! The places of one plane: who may have a connection, and who is turned away.
//!
//! What must hold: a client that finds no place hears so at once or within [`PLACE_WAIT`], in HTTP, because a client that hangs in the
//! kernel's queue asks no other host; one client cannot take all places; being turned away costs a bounded number of tasks.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::hub::Hub;

/// How long a connection waits for a place while idle ones are asked for theirs. After one has waited in vain, others are turned
/// away at once until a place is free.
const PLACE_WAIT: Duration = Duration::from_secs(2);
/// How often idle connections are asked for room while all places are taken.
const PRESSURE_PAUSE: Duration = Duration::from_millis(250);
/// One client gets at most all places but this part of them, whatever the configuration says.
const OTHERS_PART: u32 = 8;
/// Connections that are told at once that there is no place; beyond these they are closed without a word.
const TURNED_AWAY_AT_ONCE: usize = 64;
/// A full house is told to the operator once in this time.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(60);

/// The places of all listeners of a plane.
#[derive(Debug)]
pub(super) struct Places {
    semaphore: Arc<Semaphore>,
    count: u32,
    per_client: u32,
    clients: Mutex<HashMap<IpAddr, u32>>,
    /// The last one who waited got nothing.
    full: AtomicBool,
    pressed: Mutex<Instant>,
    complaints: Mutex<Option<Instant>>,
    turned_away: AtomicU64,
    farewells: Arc<Semaphore>,
    hub: Arc<Hub>,
}

/// Held as long as the connection.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    client: IpAddr,
    _permit: OwnedSemaphorePermit,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    All,
    /// This client has all that it may have.
    Client,
}

impl Full {
    /// The limit, by the name of its key.
    pub(super) fn limit(self) -> &'static str {
        match self {
            Self::All => "connections",
            Self::Client => "connections_per_client",
        }
    }
}

impl Places {
    pub(super) fn new(count: u32, per_client: u32) -> Arc<Self> {
        let permits = usize::try_from(count).unwrap_or(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            semaphore: Arc::new(Semaphore::new(permits)),
            count,
            per_client: per_client.min(count - count / OTHERS_PART),
            clients: Mutex::default(),
            full: AtomicBool::new(false),
            pressed: Mutex::new(Instant::now()),
            complaints: Mutex::default(),
            turned_away: AtomicU64::new(0),
            farewells: Arc::new(Semaphore::new(TURNED_AWAY_AT_ONCE)),
            hub: Arc::default(),
        })
    }

    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// A place for `client`, or why there is none.
    pub(super) async fn take(self: &Arc<Self>, client: IpAddr) -> Result<Place, Full> {
        let client = counted_as(client);
        if self.has_all_it_may(client) {
            return Err(Full::Client);
        }
        if let Ok(permit) = Arc::clone(&self.semaphore).try_acquire_owned() {
            self.found();
            return Ok(self.seat(client, permit));
        }
        if self.full.load(Relaxed) {
            self.press();
            return Err(Full::All);
        }
        match timeout(PLACE_WAIT, self.wait()).await {
            Ok(Some(permit)) => {
                self.found();
                Ok(self.seat(client, permit))
            }
            _ => {
                self.full.store(true, Relaxed);
                Err(Full::All)
            }
        }
    }

    /// Where one client may have all places, the number of all is the only limit.
    fn has_all_it_may(&self, client: IpAddr) -> bool {
        let taken = self.clients().get(&client).copied().unwrap_or_default();
        self.per_client < self.count && taken >= self.per_client
    }

    /// Waits for a place and asks idle connections for theirs meanwhile; none if the server is gone.
    async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            self.hub.press(true);
            let place = timeout(PRESSURE_PAUSE, Arc::clone(&self.semaphore).acquire_owned()).await;
            if let Ok(place) = place {
                return place.ok();
            }
        }
    }

    fn found(&self) {
        self.full.store(false, Relaxed);
        self.hub.press(false);
    }

    /// Asks idle connections for room, not more often than makes sense.
    fn press(&self) {
        let mut pressed = self.pressed.lock().unwrap_or_else(PoisonError::into_inner);
        if pressed.elapsed() >= PRESSURE_PAUSE {
            *pressed = Instant::now();
            self.hub.press(true);
        }
    }

    fn seat(self: &Arc<Self>, client: IpAddr, permit: OwnedSemaphorePermit) -> Place {
        *self.clients().entry(client).or_default() += 1;
        Place { places: Arc::clone(self), client, _permit: permit }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the operator now and then; gives leave to tell the client, if not too many are being told.
    pub(super) fn turn_away(&self, client: IpAddr, full: Full) -> Option<OwnedSemaphorePermit> {
        self.turned_away.fetch_add(1, Relaxed);
        let mut last = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|last| last.elapsed() >= COMPLAINT_PAUSE) {
            *last = Some(Instant::now());
            let refused = self.turned_away.swap(0, Relaxed);
            tracing::warn!(%client, limit = full.limit(), refused, "connections are refused");
        }
        Arc::clone(&self.farewells).try_acquire_owned().ok()
    }

    /// Drains for at most `time`, cuts what is left, and waits until all places are free.
    pub(super) async fn end(&self, time: Duration, cut_time: Duration) {
        self.hub.drain();
        if timeout(time, self.all_free()).await.is_ok() {
            return;
        }
        self.hub.cut_all();
        if timeout(cut_time, self.all_free()).await.is_err() {
            tracing::warn!("a connection did not end although it was cut");
        }
    }

    async fn all_free(&self) {
        // The semaphore is never closed; the permits are given back at once.
        drop(self.semaphore.acquire_many(self.count).await);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.places.clients();
        if let Some(count) = clients.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// Whoever has one address of an IPv6 network of 64 bits has them all.
fn counted_as(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(network).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_client_cannot_take_all() {
        let places = Places::new(16, u32::MAX);
        let (one, other) = (client("10.0.0.1"), client("10.0.0.2"));
        let mut taken = Vec::new();
        while let Ok(place) = places.take(one).await {
            taken.push(place);
        }
        assert_eq!(taken.len(), 14);
        assert_eq!(places.take(one).await.unwrap_err(), Full::Client);
        let others = places.take(other).await.unwrap();
        drop(taken.pop());
        taken.push(places.take(one).await.unwrap());
        drop((taken, others));
        assert!(places.clients().is_empty(), "nothing is kept of clients that are gone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_network_of_one_host_is_one_client() {
        let places = Places::new(16, 1);
        let _first = places.take(client("2001:db8::1")).await.unwrap();
        assert_eq!(places.take(client("2001:db8::2")).await.unwrap_err(), Full::Client);
        assert!(places.take(client("2001:db8:0:1::1")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_waits_and_the_others_are_told_at_once() {
        let places = Places::new(1, 2);
        let place = places.take(client("10.0.0.1")).await.unwrap();
        let began = Instant::now();
        assert_eq!(places.take(client("10.0.0.2")).await.unwrap_err(), Full::All);
        assert_eq!(began.elapsed(), PLACE_WAIT);
        assert_eq!(places.take(client("10.0.0.3")).await.unwrap_err(), Full::All);
        assert_eq!(began.elapsed(), PLACE_WAIT, "nobody waits again");
        drop(place);
        let place = places.take(client("10.0.0.2")).await.unwrap();
        let (waiting, ()) = tokio::join!(places.take(client("10.0.0.3")), async {
            tokio::time::sleep(PRESSURE_PAUSE * 3).await;
            drop(place);
        });
        assert!(waiting.is_ok(), "a place that becomes free goes to whoever waits");
    }

    #[tokio::test(start_paused = true)]
    async fn being_turned_away_is_bounded() {
        let places = Places::new(1, 1);
        let leaves: Vec<_> =
            (0..100).filter_map(|_| places.turn_away(client("10.0.0.1"), Full::All)).collect();
        assert_eq!(leaves.len(), TURNED_AWAY_AT_ONCE);
    }
}
