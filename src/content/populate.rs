//! Makes a data directory of any size, for benches and for tests of growth.
//!
//! Not part of the program's surface; public so that benches can reach it. The rows are complete; a million files take a while, so
//! they are made for as many images as are wanted.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::small::mark;
use crate::blobs::{Blobs, RealDisk};
use crate::metadata::Usage;
use crate::metadata::populate::{self, Item};

pub use crate::metadata::populate::{BASES, Plan};

/// Makes a store in a directory that is new or empty: all rows of the plan, and the files of the first `images_with_files` images and
/// of the bases. The rows of the others say that files are here, which a request for one of them will disprove. Blocks.
///
/// Files are not made durable one by one: this is no store to keep.
pub fn populate(data: &Path, plan: &Plan, images_with_files: u32) -> io::Result<Usage> {
    let (blobs, lock) = Blobs::open(Arc::new(RealDisk), data).map_err(io::Error::other)?;
    let mut place = |item: Item<'_>| {
        if item.image.is_some_and(|image| image >= images_with_files) {
            return Ok(None);
        }
        blobs.place(&item.digest, item.bytes).map(|stat| Some(mark(stat)))
    };
    let usage = populate::populate(&blobs.database_path(), plan, &mut place)?;
    drop(lock);
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::content::{AdoptReport, Content, Haste, Settings};
    use crate::oci::Digest;

    #[tokio::test]
    async fn a_made_store_serves_what_the_plan_tells() {
        let root = tempfile::tempdir().unwrap();
        let plan = Plan {
            repositories: 3,
            images: 50,
            ..Plan::new("docker.io".parse().unwrap(), SystemClock.now(), 100, 20)
        };
        let usage = populate(root.path(), &plan, 30).unwrap();
        assert_eq!(usage.objects, 64 + 50 + 100);
        let settings = Settings::new(root.path().to_owned());
        let (clock, tasks) = (Arc::new(SystemClock), TaskTracker::new());
        let content = Content::open(settings, clock, tasks, &mut Registry::default()).unwrap();
        for image in [0, 19, 20, 29] {
            let (repository, tag) = (plan.repository(image), plan.tag(image));
            let manifest = plan.manifest(image);
            let digest = Digest::sha256_of(&manifest);
            let found = content.metadata().tag(&repository, &tag).await.unwrap().unwrap();
            assert_eq!(found.digest == Some(digest), image < 20);
            assert!(content.metadata().was_tagged(&repository, &tag, &digest).await.unwrap());
            let found = content.manifest(&repository, &digest).await.unwrap().unwrap();
            assert_eq!(found.bytes, manifest);
            assert_eq!(content.metadata().missing_children(&repository, &digest).await.unwrap(), 0);
            for blob in plan.blobs_of(image) {
                let blob = Digest::sha256_of(&plan.blob(blob));
                assert!(content.open_blob(&repository, &blob).await.unwrap().span.is_some());
            }
        }
        // A file that was not made is missed when it is wanted, and every file has its row.
        let (repository, missing) = (plan.repository(40), Digest::sha256_of(&plan.manifest(40)));
        assert_eq!(content.manifest(&repository, &missing).await.unwrap(), None);
        let report =
            content.adopt_orphans(Haste::Full, &|_| (), &CancellationToken::new()).await.unwrap();
        assert_eq!(report, AdoptReport::default());
        content.close().await;
    }
}
