//! A plain pull from every registry whose quirks are known.

use crate::support::content::Image;
use crate::support::fake::{Fake, Origin, Profile};
use crate::support::pull::pull;
use crate::support::world::World;
const NAME: &str = "team/app";

#[tokio::test]
async fn a_plain_pull_works_from_every_profile() {
    for profile in Profile::ALL {
        let fake = Fake::profile(profile).await;
        let image = Image::index("profiles");
        fake.push(NAME, "latest", &image);
        let world = World::with(&fake).await;
        let first = world.client().manifest(NAME, "latest").send().await;
        assert_eq!(first.status, 200, "{profile:?}: {first:?}{}", fake.log().lines());
        pull(&world.client(), NAME, "latest", &image).await;
        fake.log().at(Origin::Foreign).expect_none("no stranger is asked");
        fake.log().at(Origin::Cdn).no_authorization();
        fake.stop().await;
        pull(&world.client(), NAME, "latest", &image).await;
        world.finish().await;
    }
}
