//! Waiting for room, with a test in the place of eviction.

use std::sync::Arc;
use std::time::Duration;

use futures_util::poll;
use tokio_util::sync::CancellationToken;

use super::tests::Store;
use super::*;
use crate::blobs::testing::{Fault, FaultyDisk, Operation, Plan};
use crate::blobs::{RealDisk, Volume};
use crate::oci::Digest;

const TOTAL: u64 = 100_000;
const MIN_FREE: u64 = 1000;

struct House {
    store: Store,
    disk: Arc<FaultyDisk>,
    _root: tempfile::TempDir,
}

impl House {
    fn new(free: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let mut settings = Settings::new(root.path().join("data"));
        settings.min_free = MinFree::Bytes(MIN_FREE);
        let store = Store::try_open(Arc::clone(&disk) as _, settings).unwrap();
        let house = Self { store, disk, _root: root };
        house.set_free(free);
        house
    }

    /// As after a removal.
    fn set_free(&self, free: u64) {
        self.disk.set_volume(Some(Volume { total: TOTAL, free }));
        self.store.space().note_removal();
    }

    /// Waits until somebody is refused, and begins the look that is pressed for.
    async fn pressed(&self, evicting: &Evicting) -> Look {
        let pressed = tokio::time::timeout(Duration::from_secs(30), evicting.pressed());
        pressed.await.expect("whoever finds no room presses");
        let look = evicting.look();
        assert!(look.is_awaited());
        look
    }

    async fn finish(self) {
        self.store.finish().await;
    }
}

fn shortage<T: std::fmt::Debug>(result: Result<T, Error>) -> Shortage {
    match result {
        Err(Error::NoRoom(shortage)) => Shortage::clone(&shortage),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn who_waits_gets_the_room_that_a_look_makes() {
    let house = House::new(1500);
    let evicting = house.store.evicting();
    let receive = house.store.receive(5000);
    let evict = async {
        let look = house.pressed(&evicting).await;
        assert_eq!(look.refused().map(|refused| refused.bytes), Some(5000));
        // Not enough, but something: it waits for another one.
        house.set_free(3000);
        drop(look);
        let look = house.pressed(&evicting).await;
        house.set_free(6000);
        drop(look);
    };
    let (arrival, ()) = tokio::join!(receive, evict);
    drop(arrival.unwrap());
    assert!(!evicting.look().is_awaited(), "nobody waits any more");
    house.finish().await;
}

#[tokio::test]
async fn a_look_that_began_before_the_refusal_says_nothing() {
    let house = House::new(1500);
    let evicting = house.store.evicting();
    let early = evicting.look();
    assert_eq!(early.refused(), None);
    let mut receive = Box::pin(house.store.receive(5000));
    // Until it is refused, and waits.
    while !early.is_awaited() {
        assert!(poll!(&mut receive).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(poll!(&mut receive).is_pending());
    drop(early);
    assert!(poll!(&mut receive).is_pending(), "the end of that look is not its matter");
    let mut look = house.pressed(&evicting).await;
    look.explain("all is pinned".to_owned());
    drop(look);
    let found = shortage(receive.await);
    assert_eq!(
        found,
        Shortage { size: 5000, missing: 4500, why: Why::Kept("all is pinned".into()) }
    );
    let text = found.to_string();
    assert!(text.contains("4500 bytes") && text.contains("nothing more: all is pinned"), "{text}");
    house.finish().await;
}

#[tokio::test]
async fn nobody_waits_where_nobody_makes_room_or_where_none_can_be() {
    let house = House::new(1500);
    assert_eq!(shortage(house.store.receive(5000).await).why, Why::NobodyEvicts);
    // He who made room goes, and those who wait with him.
    let evicting = house.store.evicting();
    // What was asked for before he came.
    assert!(evicting.look().refused().is_some());
    let leaves = async {
        let look = house.pressed(&evicting).await;
        drop(evicting);
        drop(look);
    };
    let (refused, ()) = tokio::join!(house.store.receive(5000), leaves);
    assert_eq!(shortage(refused).why, Why::NobodyEvicts);

    let evicting = house.store.evicting();
    let limit = TOTAL - MIN_FREE;
    let large = shortage(house.store.receive(limit + 1).await);
    assert_eq!(large.why, Why::TooLarge { limit });
    assert!(large.to_string().contains("99000 are the most"), "{large}");
    house.disk.fail(Plan { at: 1, lasting: true, fault: Fault::Io, only: Some(Operation::Volume) });
    house.store.space().note_removal();
    assert!(matches!(house.store.receive(5000).await, Err(Error::NoSpace)), "no figures");
    house.disk.heal();
    drop(evicting);
    house.finish().await;
}

#[tokio::test]
async fn what_never_fits_moves_nobody_to_make_room() {
    let house = House::new(1500);
    let (space, claims) = (Arc::clone(house.store.space()), 100 * TOTAL);
    let over = CancellationToken::new();
    let (evicting, ends) = (house.store.evicting(), over.clone());
    let looks = std::thread::spawn(move || {
        let (mut most, mut count) = (0, 0_u32);
        while count < 100_000 {
            most = evicting.look().awaited().max(most);
            count += 1;
        }
        ends.cancel();
        most
    });
    while !over.is_cancelled() {
        let wanted = patience::Wanted::real(claims, CancellationToken::new());
        let refused = house.store.patiently(wanted, async || Ok(None::<()>)).await;
        assert!(matches!(shortage(refused).why, Why::TooLarge { .. }));
    }
    assert_eq!(looks.join().unwrap(), 0, "a look would have emptied the store");
    assert!(!space.is_awaited());
    house.finish().await;
}

#[tokio::test]
async fn who_goes_leaves_nothing() {
    let house = House::new(1500);
    let evicting = house.store.evicting();
    let mut receive = Box::pin(house.store.receive(5000));
    while !house.store.space().is_awaited() {
        assert!(poll!(&mut receive).is_pending());
        tokio::task::yield_now().await;
    }
    drop(receive);
    assert!(!evicting.look().is_awaited());

    let digest = Digest::sha256_of(&[7; 4000]);
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("data"), [7; 4000]).unwrap();
    let folder = Arc::new(house.store.folder(other.path().to_owned()));
    let cancel = CancellationToken::new();
    let path = std::path::Path::new("data");
    let taking = house.store.take_in(&folder, path, &digest, true, &cancel);
    let stops = async {
        let look = house.pressed(&evicting).await;
        assert_eq!(look.awaited(), 4000);
        cancel.cancel();
    };
    let (stopped, ()) = tokio::join!(taking, stops);
    let interrupted = |error: &std::io::Error| error.kind() == std::io::ErrorKind::Interrupted;
    assert!(matches!(&stopped, Err(Error::Disk(error)) if interrupted(error)), "{stopped:?}");
    assert_eq!(evicting.look().awaited(), 0);

    let cancel = CancellationToken::new();
    let taking = house.store.take_in(&folder, path, &digest, true, &cancel);
    let evict = async {
        let look = house.pressed(&evicting).await;
        house.set_free(50_000);
        drop(look);
    };
    let (taken, ()) = tokio::join!(taking, evict);
    assert!(matches!(taken, Ok(TakenIn::Taken { size: 4000, linked: false, .. })), "{taken:?}");
    house.finish().await;
}

#[tokio::test]
async fn silence_ends_the_wait() {
    let house = House::new(1500);
    let evicting = house.store.evicting();
    let mut receive = Box::pin(house.store.receive(5000));
    while !house.store.space().is_awaited() {
        assert!(poll!(&mut receive).is_pending());
        tokio::task::yield_now().await;
    }
    // Begun and never over.
    let look = house.pressed(&evicting).await;
    assert!(poll!(&mut receive).is_pending());
    tokio::time::pause();
    tokio::time::advance(ROOM_PATIENCE / 2).await;
    house.set_free(1600);
    assert!(poll!(&mut receive).is_pending());
    tokio::time::advance(ROOM_PATIENCE / 2 + Duration::from_secs(1)).await;
    assert!(poll!(&mut receive).is_pending(), "something went meanwhile");
    tokio::time::advance(ROOM_PATIENCE).await;
    tokio::time::resume();
    let found = shortage(receive.await);
    assert_eq!((found.why, found.missing), (Why::Silence, 4400));
    drop(look);
    house.finish().await;
}

#[tokio::test]
async fn what_is_closed_is_waited_for_until_it_opens() {
    let house = House::new(50_000);
    let evicting = house.store.evicting();
    let hub = "docker.io".parse().unwrap();
    assert!(!house.store.await_room(5000, &hub).await.unwrap(), "there is room at once");
    house.store.set_closed(true, Vec::new());
    let opens = async {
        let look = house.pressed(&evicting).await;
        assert_eq!(look.refused(), None, "it is not the disk");
        house.store.space().note_removal();
        house.store.set_closed(false, Vec::new());
        drop(look);
    };
    let (room, ()) = tokio::join!(house.store.await_room(5000, &hub), opens);
    assert!(room.unwrap(), "it was waited for");
    house.store.set_closed(false, vec!["docker.io".parse().unwrap()]);
    let stays = async { drop(house.pressed(&evicting).await) };
    let (room, ()) = tokio::join!(house.store.await_room(5000, &hub), stays);
    let found = shortage(room);
    assert_eq!(found.missing, 0);
    assert!(found.to_string().contains("closed because a limit cannot be met"), "{found}");
    house.finish().await;
}
