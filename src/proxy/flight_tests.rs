//! All interleavings of the machine's events up to a small depth, and what the ring's pace is.

use std::time::Duration;

use super::*;

const SIZE: u64 = HOLD_BACK + 8 * 1024 * 1024;
/// A piece is written at the front or far ahead; the latter is where the side fetcher's client reads.
const PIECE: u64 = SIZE / 4;
const FAR: u64 = SIZE - HOLD_BACK - 2 * PIECE;

fn key(name: &str) -> RepositoryKey {
    RepositoryKey { upstream: "r.test".parse().unwrap(), name: name.parse().unwrap() }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Join,
    Try,
    Refuse,
    Start,
    StartUnknown,
    AdvanceFront,
    AdvanceFar,
    Claim,
    Detach,
    Push,
    Verify,
    Fail,
}

const EVENTS: [Event; 12] = [
    Event::Join,
    Event::Try,
    Event::Refuse,
    Event::Start,
    Event::StartUnknown,
    Event::AdvanceFront,
    Event::AdvanceFar,
    Event::Claim,
    Event::Detach,
    Event::Push,
    Event::Verify,
    Event::Fail,
];

/// What the test remembers beside the machine.
#[derive(Default)]
struct Model {
    joined: Vec<usize>,
    trying: Option<usize>,
    refused: Vec<usize>,
    streaming: bool,
    announced: bool,
    here: IntervalSet,
    pushed: IntervalSet,
    claimed: IntervalSet,
    detached: bool,
    verified: bool,
    failed: bool,
}

fn apply(state: &mut State, model: &mut Model, event: Event) {
    match event {
        Event::Join => {
            let name = if model.joined.is_empty() { "a" } else { "b" };
            match state.join(&key(name)) {
                Some(index) => model.joined.push(index),
                None => assert!(model.failed || model.detached, "only those take no joiners"),
            }
        }
        Event::Try => {
            let tried: Vec<usize> = model.trying.into_iter().collect();
            let next = state.next_source(&tried);
            assert!(next.is_none_or(|index| !model.refused.contains(&index)));
            model.trying = next.or(model.trying);
        }
        Event::Refuse => {
            if let Some(index) = model.trying.take() {
                state.refuse(index, upstream::Error::Absent);
                model.refused.push(index);
            }
        }
        Event::Start | Event::StartUnknown => {
            let size = matches!(event, Event::Start).then_some(SIZE);
            if !model.streaming && !model.failed && !model.verified {
                (model.streaming, model.announced) = (true, size.is_some());
                model.here = IntervalSet::default();
            }
            let none = IntervalSet::default;
            state.start(size, none(), Claims::new(size, none(), None));
        }
        // The writer writes after the start, and not after it has lost its disk.
        Event::AdvanceFront | Event::AdvanceFar => {
            if model.streaming && !model.detached {
                let at = if matches!(event, Event::AdvanceFront) { 0 } else { FAR };
                let start = model.here.covered_to(at);
                state.advance(start, start + PIECE / 2);
                model.here.insert(start, start + PIECE / 2);
            }
        }
        Event::Claim => claim(state, model),
        Event::Detach => {
            let may = model.streaming && model.announced && !model.joined.is_empty();
            let may = may && !model.failed && !model.verified && !model.detached;
            assert_eq!(state.detach(), may);
            model.detached |= may;
        }
        Event::Push => {
            if model.detached && !model.verified {
                let end = state.ring.as_ref().unwrap().end();
                state.push(end, Bytes::from_static(&[0; 1000]));
                model.pushed.insert(end, end + 1000);
            }
        }
        Event::Verify => {
            model.verified |= !model.failed;
            state.verify(SIZE);
        }
        Event::Fail => {
            model.failed |= !model.verified;
            state.fail(Failure::DigestMismatch);
        }
    }
}

/// A client far ahead asks for a fetcher of his own.
fn claim(state: &mut State, model: &mut Model) {
    let id = state.follow(ByteRange { start: FAR, end: SIZE }, Instant::now());
    if let Some(part) = state.next_side() {
        assert!(model.streaming && model.announced && !model.detached);
        assert!(!model.failed && !model.verified);
        let (from, to) = (part.from, part.to.unwrap());
        assert_eq!(model.claimed.first_gap(from, to), Some(from..to), "claimed twice");
        model.claimed.insert(from, to);
    }
    state.unfollow(id);
}

fn check(state: &State, model: &Model, path: &[Event]) {
    assert!(!(model.verified && model.failed));
    for source in &model.joined {
        for position in [0, 1, PIECE, FAR, FAR + PIECE, SIZE - HOLD_BACK, SIZE - 1] {
            let shown = match state.view(*source, position) {
                View::Ready { size, readable_to } => {
                    assert_eq!(size, SIZE, "{path:?}");
                    let all_here = model.verified && !model.detached;
                    let here = model.here.covered_to(position) >= readable_to;
                    assert!(readable_to <= position || all_here || here, "{path:?}: not here");
                    if readable_to <= position {
                        assert!(!model.verified, "{path:?}: nobody waits for ever");
                    }
                    Some(readable_to)
                }
                View::Ring { size, bytes } => {
                    let end = position + bytes.len() as u64;
                    assert_eq!(size, SIZE, "{path:?}");
                    assert!(model.pushed.covered_to(position) >= end, "{path:?}: not here");
                    Some(end)
                }
                View::Alone { size } => {
                    assert!(model.detached && size == SIZE, "{path:?}");
                    None
                }
                View::Failed(_) => {
                    assert!(model.failed && !model.refused.contains(source), "{path:?}");
                    continue;
                }
                View::Refused(_) => {
                    assert!(model.refused.contains(source), "{path:?}");
                    continue;
                }
                View::Wait => {
                    assert!(!model.failed && !model.verified, "{path:?}: nobody waits for ever");
                    continue;
                }
            };
            assert!(!model.failed && !model.refused.contains(source), "{path:?}");
            let tail = shown.is_some_and(|to| to > position && to > SIZE - HOLD_BACK);
            assert!(model.verified || !tail, "{path:?}: the tail leaked");
        }
    }
}

#[test]
fn all_interleavings_up_to_five_events() {
    fn walk(path: &mut Vec<Event>, count: &mut u64) {
        let (mut state, mut model) = (State::new(), Model::default());
        for event in path.iter() {
            apply(&mut state, &mut model, *event);
        }
        check(&state, &model, path);
        *count += 1;
        if path.len() < 5 {
            for event in EVENTS {
                path.push(event);
                walk(path, count);
                path.pop();
            }
        }
    }
    let mut count = 0;
    walk(&mut Vec::new(), &mut count);
    assert_eq!(count, (0..=5).map(|depth| 12u64.pow(depth)).sum::<u64>());
    // Deeper where it matters: what happens around the loss of the disk.
    for event in [Event::AdvanceFront, Event::AdvanceFar, Event::Claim, Event::Refuse] {
        let mut path = vec![Event::Join, Event::Try, Event::Start, event, Event::Detach];
        let mut state = State::new();
        let mut model = Model::default();
        path.iter().for_each(|event| apply(&mut state, &mut model, *event));
        for last in EVENTS {
            for then in EVENTS {
                path.extend([last, then]);
                let (mut state, mut model) = (State::new(), Model::default());
                path.iter().for_each(|event| apply(&mut state, &mut model, *event));
                check(&state, &model, &path);
                path.truncate(5);
            }
        }
    }
}

/// A flight that has lost its disk at byte 0.
fn detached() -> State {
    let mut state = State::new();
    state.join(&key("a")).unwrap();
    let none = IntervalSet::default;
    let size = Some(100 * RING_BYTES);
    state.start(size, none(), Claims::new(size, none(), None));
    assert!(state.detach());
    state
}

fn fill(state: &mut State, now: Instant) {
    while state.room(now) == Room::Free && !state.ring.as_ref().unwrap().is_full() {
        let end = state.ring.as_ref().unwrap().end();
        state.push(end, Bytes::from(vec![0; 256 * 1024]));
    }
}

#[tokio::test(start_paused = true)]
async fn the_ring_waits_for_the_slowest_until_it_stalls() {
    let (mut state, start) = (detached(), Instant::now());
    let all = ByteRange { start: 0, end: 100 * RING_BYTES };
    let (slow, fast) = (state.follow(all, start), state.follow(all, start));
    fill(&mut state, start);
    state.moved(fast, RING_BYTES, start);
    state.moved(slow, 256 * 1024, start);
    assert_eq!(state.room(start), Room::Free, "the oldest chunk was taken by both");
    fill(&mut state, start);
    state.moved(fast, RING_BYTES + 256 * 1024, start);
    assert_eq!(state.room(start), Room::Full(Some(start + RING_STALL)));
    let later = start + RING_STALL - Duration::from_millis(1);
    assert_eq!(state.room(later), Room::Full(Some(start + RING_STALL)));
    assert_eq!(state.room(start + RING_STALL), Room::Free);
    assert!(matches!(state.view(0, 256 * 1024), View::Alone { .. }), "it goes its own way");
    assert!(matches!(state.view(0, RING_BYTES), View::Ring { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_follower_alone_holds_the_ring_and_nobody_means_no_brake() {
    let (mut state, start) = (detached(), Instant::now());
    let only = state.follow(ByteRange { start: 0, end: 100 * RING_BYTES }, start);
    fill(&mut state, start);
    assert_eq!(state.room(start + RING_STALL * 100), Room::Full(None));
    state.unfollow(only);
    // One who wants nothing of it, and one who is far ahead.
    state.follow(ByteRange { start: 50 * RING_BYTES, end: 51 * RING_BYTES }, start);
    assert_eq!(state.room(start), Room::Free);
}

#[test]
fn whoever_has_read_what_is_on_the_disk_ahead_waits_behind_it() {
    let (mut state, mut present) = (State::new(), IntervalSet::default());
    state.join(&key("a")).unwrap();
    present.insert(RING_BYTES, 2 * RING_BYTES);
    let size = Some(100 * RING_BYTES);
    state.start(size, present.clone(), Claims::new(size, present, None));
    assert!(state.detach());
    state.follow(ByteRange { start: 0, end: RING_BYTES }, Instant::now());
    fill(&mut state, Instant::now());
    assert_eq!(state.ring.as_ref().unwrap().end(), RING_BYTES);
    assert!(matches!(state.view(0, 2 * RING_BYTES), View::Ready { .. }), "the next to come");
    assert!(matches!(state.view(0, 3 * RING_BYTES), View::Alone { .. }), "far ahead");
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_that_waits_starts_the_clock_of_the_one_that_stalls() {
    let flight = Flight::new();
    flight.with(|state| *state = detached());
    let all = ByteRange { start: 0, end: 100 * RING_BYTES };
    let _stalled = flight.follow(all);
    flight.with(|state| fill(state, Instant::now()));
    let mut room = Box::pin(flight.room());
    assert!(futures_util::poll!(&mut room).is_pending(), "nobody waits, so it may stall");
    // The next part of one that has all of the ring begins behind it.
    flight.follow(ByteRange { start: RING_BYTES, ..all });
    assert!(futures_util::poll!(&mut room).is_pending());
    tokio::time::advance(RING_STALL).await;
    assert!(futures_util::poll!(&mut room).is_ready());
}

#[tokio::test]
async fn a_change_after_subscribing_wakes() {
    let flight = Flight::new();
    let source = flight.join(&key("a")).unwrap();
    let mut changes = flight.changes();
    assert!(matches!(flight.view(source, 0), View::Wait));
    flight.verify(5);
    changes.changed().await.unwrap();
    assert!(matches!(flight.view(source, 0), View::Ready { size: 5, readable_to: 5 }));
}

#[tokio::test]
async fn the_last_client_to_leave_is_noticed() {
    let flight = Flight::new();
    flight.join(&key("a")).unwrap();
    flight.join(&key("b")).unwrap();
    let mut deserted = Box::pin(flight.deserted());
    flight.leave();
    assert!(futures_util::poll!(&mut deserted).is_pending());
    flight.leave();
    deserted.await;
}
