//! Planning and beginning a bundle.

use bytes::{Bytes, BytesMut};

use crate::carry::error::{Error, Reason};
use crate::carry::model::{ExportOrder, ExportPlan};
use crate::carry::service::Carry;
use crate::carry::tree::unreadable;
use crate::span::{FramePool, Lease};
use crate::story;

use super::plan::{Gathered, base};
use super::stream::{Ended, FRAMES_WAITING, Pour};

/// A bundle on its way out. Its content cannot go while it lives.
#[derive(Debug)]
pub struct Bundle {
    pub plan: ExportPlan,
    /// The bytes in order; an error ends them early, and then the bundle is no bundle.
    pub bytes: story::Job<Result<Bytes, String>>,
}

impl Carry {
    /// What a bundle would hold. An image that is not complete refuses the whole order and names what is missing.
    pub async fn plan_export(&self, order: &ExportOrder) -> Result<ExportPlan, Error> {
        let base = base(&order.base)?;
        Ok(self.gather(order).await?.plan(&base)?.told)
    }

    /// Writes it out; the same content and the same order give the same bytes.
    pub async fn export(&self, order: &ExportOrder) -> Result<Bundle, Error> {
        let base = base(&order.base)?;
        let gathered = self.gather(order).await?;
        let plan = gathered.plan(&base)?;
        let leases = self.hold(&gathered).await?;
        let (story, bytes) = story::begin_with(self.inner().shutdown.child_token(), FRAMES_WAITING);
        let pour = Pour {
            content: self.content().clone(),
            tasks: self.inner().tasks.clone(),
            story,
            small: BytesMut::new(),
            pool: FramePool::default(),
        };
        let (files, size) = (plan.files, plan.told.bytes);
        let images = plan.told.images.len();
        tracing::info!(images, bytes = size, "a bundle is written out");
        self.inner().tasks.spawn(async move {
            match pour.all(&files).await {
                Ok(()) => tracing::info!(images, bytes = size, "a bundle was written out"),
                Err(Ended::Stopped) => {
                    tracing::info!("a bundle was not written to its end: its reader has gone");
                }
                Err(reason) => tracing::warn!(%reason, "a bundle could not be completed"),
            }
            drop(leases);
        });
        Ok(Bundle { plan: plan.told, bytes })
    }

    /// Holds all content of the images, and looks whether it is still here.
    async fn hold(&self, gathered: &Gathered) -> Result<Vec<Lease>, Error> {
        let mut leases = Vec::with_capacity(gathered.objects.len());
        for (digest, object) in &gathered.objects {
            leases.push(self.content().lease(digest).await);
            let found = self.content().open_blob(&object.repository, digest).await;
            let found = found.map_err(unreadable)?.span;
            if found.is_none_or(|span| span.length() != object.size) {
                let message = format!(
                    "{digest} of {} went away while the bundle was planned; try again",
                    object.repository
                );
                return Err(Error::new(Reason::Incomplete, message));
            }
        }
        Ok(leases)
    }
}
