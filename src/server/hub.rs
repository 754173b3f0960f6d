//! How all connections of a listener are spoken to at once: drain, cut, and "make room".
//!
//! One notification for all three, so that a connection that minds its own business pays for one waiter only.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Default)]
pub(super) struct Hub {
    draining: AtomicBool,
    pressed: AtomicBool,
    cut: CancellationToken,
    changed: Notify,
}

impl Hub {
    /// Resolves at the next change. Create it before looking at the state, then nothing is missed.
    pub(super) fn attention(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Running requests end, no further ones begin.
    pub(super) fn drain(&self) {
        self.draining.store(true, SeqCst);
        self.changed.notify_waiters();
    }

    /// All connections end now.
    pub(super) fn cut_all(&self) {
        self.cut.cancel();
        self.changed.notify_waiters();
    }

    /// All places are taken: idle connections make room.
    pub(super) fn press(&self, pressed: bool) {
        self.pressed.store(pressed, SeqCst);
        if pressed {
            self.changed.notify_waiters();
        }
    }

    /// Resolves when no further requests begin.
    pub(super) async fn drained(&self) {
        loop {
            let attention = self.attention();
            if self.is_draining() {
                return;
            }
            attention.await;
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    pub(super) fn is_pressed(&self) -> bool {
        self.pressed.load(SeqCst)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// Resolves when all connections must end.
    pub(super) async fn cut(&self) {
        self.cut.cancelled().await;
    }
}
