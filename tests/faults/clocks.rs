//! Clocks that are wrong: what they dated is put right, however often the server is restarted.

use std::time::Duration;

use roadstead::metadata::ClockSeen;

use crate::support::content::Image;
use crate::support::fake::Fake;
use crate::support::gate::within;
use crate::support::pull::pull;
use crate::support::world::World;

const NAME: &str = "team/app";
const HOUR: Duration = Duration::from_secs(3600);
/// How far ahead the clock was.
const AHEAD: Duration = Duration::from_secs(365 * 24 * 3600);

/// Makes the background look now, and waits until it has noted what it saw of the clock, which is later by more than an hour than last time.
pub(crate) async fn looked(world: &World) -> ClockSeen {
    let now = world.moment_ago(Duration::ZERO);
    within("the background to look at the clock", async {
        loop {
            let seen = world.metadata().clock_seen().await.expect("the rows can be read");
            if let Some(seen) = seen.filter(|seen| seen.last == now) {
                return seen;
            }
            world.wake_upkeep();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

/// Everything that is stored, by when it counts as used.
async fn used_before_soon(world: &World) -> usize {
    let soon = world.moment_ago(Duration::ZERO).plus(HOUR);
    world.metadata().idle(soon, None, 99).await.expect("the rows can be read").len()
}

#[tokio::test]
async fn what_a_clock_that_was_ahead_dated_is_put_back_although_the_server_is_restarted_daily() {
    let image = Image::single("from the future");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let mut world = World::builder().upstream("docker.io", &fake).start().await;
    world.advance(AHEAD);
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    world.turn_back(AHEAD);
    world.restart().await;
    let begun = looked(&world).await.since;
    // The machine is on for some hours, and off for some.
    for number in 1..=3 {
        world.advance(4 * HOUR);
        assert_eq!(looked(&world).await.since, begun, "{number}");
        assert_eq!(used_before_soon(&world).await, 0, "nobody knows whether the clock is right");
        world.advance(3 * HOUR);
        world.restart().await;
        assert_eq!(looked(&world).await.since, begun, "{number}: a restart is no step");
    }
    // Set back a little, it has to go on for another day.
    world.turn_back(HOUR);
    world.restart().await;
    let anew = looked(&world).await.since;
    assert_eq!(anew, world.moment_ago(Duration::ZERO));
    for number in 1..=2 {
        world.advance(11 * HOUR);
        world.restart().await;
        assert_eq!(looked(&world).await.since, anew, "{number}");
        assert_eq!(used_before_soon(&world).await, 0, "{number}");
    }
    world.advance(2 * HOUR);
    world.restart().await;
    looked(&world).await;
    within("what is dated ahead to be put back", async {
        while used_before_soon(&world).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.finish().await;
}
