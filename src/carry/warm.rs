//! Fetching images before anybody asks for them: through the proxy, as a client would, with its flights, its proofs and its manners.
//!
//! What must hold: an order is refused whole or begun whole; an image that fails takes no other with it; what is here costs no request but
//! the check of its tag; the work ends with its reader, and what was fetched by then is not fetched again.

use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use tokio::time::{MissedTickBehavior, interval};

use super::check::full_name;
use super::error::{Error, Reason};
use super::events::{Event, Report, Work};
use super::fetch::{Run, Target};
use super::list::ImageList;
use super::service::{Carry, Job};
use super::tree::Wish;
use crate::oci::PlatformPattern;
use crate::story::{self, Stopped, Story};

/// Images that one order works on at a time.
const IMAGES_AT_A_TIME: usize = 4;
/// How often the progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// What is to be here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WarmOrder {
    pub images: ImageList,
    /// Empty: the platform of this machine.
    pub platforms: Vec<PlatformPattern>,
    /// Every platform, whatever `platforms` says.
    pub all_platforms: bool,
    pub referrers: bool,
}

impl WarmOrder {
    /// Which parts of each image are meant.
    fn wish(&self) -> Wish {
        let platforms = match &self.platforms[..] {
            _ if self.all_platforms => Vec::new(),
            [] => vec![PlatformPattern::of_this_machine()],
            platforms => platforms.to_vec(),
        };
        Wish { platforms, referrers: self.referrers }
    }
}

impl Carry {
    /// Begins to fetch what is missing. A name that cannot be read refuses the whole order, with its line; what upstream does not have
    /// fails its image only. What is here already costs no request but the check of its tag.
    ///
    /// # Errors
    ///
    /// A line names no image, or one of a registry that is not configured.
    pub fn warm(&self, order: WarmOrder) -> Result<Job, Error> {
        let targets = self.targets(&order.images)?;
        let (story, job) = story::begin(self.inner().shutdown.child_token());
        let run = Run::new(self.clone(), order.wish());
        self.inner().tasks.spawn(async move {
            let going = run.metrics().going();
            let stopped = story.stopped().clone();
            tokio::select! {
                // The reader has gone, or the program stops: nobody is left to be told.
                () = stopped.cancelled() => tracing::debug!("an order to warm was left"),
                () = work(Arc::clone(&run), targets, story) => {}
            }
            drop(going);
        });
        Ok(job)
    }

    /// What the lines mean; an image that is named twice is one.
    fn targets(&self, list: &ImageList) -> Result<Vec<Target>, Error> {
        let mut seen = HashSet::new();
        let mut targets = Vec::with_capacity(list.lines.len());
        for (line, text) in &list.lines {
            let wrong = |why: &str| Error::new(Reason::List, format!("line {line}: {why}"));
            let image = self.inner().desk.image(text).map_err(|error| wrong(&error.message))?;
            let Some(proxied) = image.proxied() else {
                let upstream = &image.key().upstream;
                return Err(wrong(&format!(
                    "{text:?}: {upstream:?} is no registry that is configured here; add [upstream.{upstream:?}] to the configuration, or check the spelling"
                )));
            };
            let (name, proxied) = (full_name(&image), proxied.clone());
            if seen.insert(name.clone()) {
                targets.push(Target { name, proxied, image });
            }
        }
        Ok(targets)
    }
}

/// Warms all of it, and tells the story to the end.
async fn work(run: Arc<Run>, targets: Vec<Target>, story: Story<Event>) {
    let images = u64::try_from(targets.len()).unwrap_or(u64::MAX);
    let begun = Event::Begun { work: Work::Warm, images, bytes: 0 };
    if story.tell(begun).await.is_err() {
        return;
    }
    if each(&run, targets, &story, &Report::default()).await.is_ok()
        && story.tell(Event::Ended(run.report())).await.is_err()
    {
        tracing::debug!("the reader of an order to warm left at its end");
    }
}

/// Brings each image here and tells what became of it; `before` is what was done by then.
pub(super) async fn each(
    run: &Arc<Run>,
    targets: Vec<Target>,
    story: &Story<Event>,
    before: &Report,
) -> Result<(), Stopped> {
    let each = stream::iter(targets).map(|target| {
        let run = Arc::clone(run);
        async move { run.image(&target).await }
    });
    let mut done = pin!(each.buffer_unordered(IMAGES_AT_A_TIME));
    let mut tick = interval(PROGRESS_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = done.next() => match event {
                Some(event) => story.tell(event).await?,
                None => break,
            },
            _ = tick.tick() => story.mention(run.progress(before)),
        }
    }
    // A bar that stands at its end, whatever was mentioned last.
    story.tell(run.progress(before)).await
}
