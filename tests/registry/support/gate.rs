//! A gate that holds the fake upstream at a point until the test opens it: tests wait for events and never sleep.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// A test that waits longer than this for an event has failed. Nothing waits so long but on a machine whose disk stands still.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Cheap to clone; all clones are one gate.
#[derive(Clone, Debug)]
pub struct Gate(Arc<State>);

#[derive(Debug)]
struct State {
    open: watch::Sender<bool>,
    arrived: watch::Sender<u64>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self(Arc::new(State { open: watch::Sender::new(false), arrived: watch::Sender::new(0) }))
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.0.open.send_replace(true);
    }

    /// Waits until the fake stands at the gate.
    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Waits until this many have come to the gate.
    pub async fn reached_by(&self, count: u64) {
        let mut arrived = self.0.arrived.subscribe();
        let wait = arrived.wait_for(|arrived| *arrived >= count);
        within("somebody to come to the gate", wait)
            .await
            .expect("the gate itself holds the sender");
    }

    /// How many have come so far.
    pub fn arrivals(&self) -> u64 {
        *self.0.arrived.borrow()
    }

    /// The fake's side: announces itself and waits until the gate is open.
    pub async fn pass(&self) {
        self.0.arrived.send_modify(|arrived| *arrived += 1);
        let mut open = self.0.open.subscribe();
        open.wait_for(|open| *open).await.expect("the gate itself holds the sender");
    }
}

/// Waits for `future` and fails the test, naming `what`, when it takes longer than [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_elapsed) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}
