//! One image of an order to warm: find out what it is now, fetch what of it is missing, and say what became of it.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt as _, stream};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::check::{lacking, platforms_of};
use super::events::{Event, Fate, Report};
use super::manners::Manners;
use super::metrics::Metrics;
use super::service::Carry;
use super::tree::{Member, Wish, referrer_tags};
use crate::content;
use crate::metadata::RepositoryKey;
use crate::oci::{ByteRange, Digest, Tag};
use crate::proxy::{self, Found, Proxied, Refreshing, Revision, Tagged};
use crate::registry::desk::Image;

/// Blobs and manifests that one order fetches at a time.
const OBJECTS_AT_A_TIME: usize = 6;
/// Times that one object is asked for because there was no room for it before: others may have taken what was made.
const ROOM_TRIES: u32 = 16;
/// Times that one object comes whole and is not stored, or passes by a store that has room.
const DOWNLOADS_MAX: u32 = 3;
/// What the proxy says of a tag that it checks behind its answer.
const CHECKED_BEHIND: &str = "while_revalidate";

/// An image that is to be here.
#[derive(Debug)]
pub(super) struct Target {
    /// In full.
    pub(super) name: String,
    pub(super) image: Image,
    pub(super) proxied: Proxied,
}

/// An order at work.
pub(super) struct Run {
    carry: Carry,
    wish: Wish,
    manners: Manners,
    places: Semaphore,
    sums: Mutex<Sums>,
}

#[derive(Default)]
struct Sums {
    report: Report,
    /// Bytes that came, and those that are to come as far as that is known.
    bytes: u64,
    of_bytes: u64,
    fetched: HashSet<Digest>,
    /// Objects that are in the report: what two images have counts once.
    counted: HashSet<Digest>,
}

/// What became of an object that was asked for.
enum Brought {
    Here,
    /// So many bytes came, and are not here.
    NotStored(u64),
    /// There is no room for so many bytes, and none were asked for.
    NoRoom(u64),
    /// Upstream does not have it.
    Absent,
}

/// What an image is now.
struct Resolved {
    digest: Digest,
    /// What there is to know of its tag.
    note: Option<String>,
}

impl Run {
    pub(super) fn new(carry: Carry, wish: Wish) -> Arc<Self> {
        let places = Semaphore::new(OBJECTS_AT_A_TIME);
        Arc::new(Self { carry, wish, manners: Manners::default(), places, sums: Mutex::default() })
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.carry.inner().metrics
    }

    fn sums(&self) -> MutexGuard<'_, Sums> {
        // Each change is an addition or an insertion, which leave it whole.
        self.sums.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self) -> Report {
        self.sums().report
    }

    /// The progress of all, of which `before` was done by others.
    pub(super) fn progress(&self, before: &Report) -> Event {
        let sums = self.sums();
        let (images, objects) =
            (before.images + sums.report.images, before.objects + sums.report.objects);
        let bytes = before.bytes + sums.bytes;
        let of_bytes = before.bytes + sums.of_bytes.max(sums.bytes);
        Event::Progress { images, objects, bytes, of_bytes }
    }

    /// Brings one image here, as far as that goes.
    pub(super) async fn image(&self, target: &Target) -> Event {
        let (digest, ended) = match self.resolve(target).await {
            Ok(Resolved { digest, note }) => {
                let ended = self.fill(target, &digest).await;
                let ended = ended.map(|(fate, bytes, reason)| (fate, bytes, reason.or(note)));
                (Some(digest), ended)
            }
            Err(why) => (None, Err(why)),
        };
        let (fate, bytes, reason) = ended.unwrap_or_else(|why| (Fate::Failed, 0, Some(why)));
        self.metrics().image(fate);
        let mut sums = self.sums();
        sums.report.images += 1;
        sums.report.failed += u64::from(fate == Fate::Failed);
        let (image, digest) = (target.name.clone(), digest.map(|digest| digest.to_string()));
        Event::Image { image, digest, fate, bytes, reason }
    }

    /// Asks the upstream something, with patience if it has had enough. `None`: it does not have it.
    async fn ask<T, F: Future<Output = Result<T, proxy::Error>>>(
        &self,
        target: &Target,
        question: impl Fn() -> F,
    ) -> Result<Option<T>, String> {
        let answer = self.ask_in_place(target, question).await?;
        Ok(answer.map(|(answer, _place)| answer))
    }

    /// The same for who keeps the place to take what follows the answer. Nobody has a place while he is patient.
    async fn ask_in_place<T, F: Future<Output = Result<T, proxy::Error>>>(
        &self,
        target: &Target,
        question: impl Fn() -> F,
    ) -> Result<Option<(T, Option<SemaphorePermit<'_>>)>, String> {
        let upstream = &key(target).upstream;
        loop {
            self.manners.turn(upstream).await?;
            // The semaphore is never closed.
            let place = self.places.acquire().await.ok();
            // Who waited for a place may have lost his turn.
            self.spare(target);
            if self.manners.waits(upstream) {
                continue;
            }
            match question().await {
                Ok(answer) => {
                    self.manners.answered(upstream);
                    return Ok(Some((answer, place)));
                }
                Err(proxy::Error::Absent) => {
                    self.manners.answered(upstream);
                    return Ok(None);
                }
                Err(proxy::Error::Limited { retry_after }) => {
                    self.manners.limited(upstream, retry_after);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// What is left of a quota is for clients.
    fn spare(&self, target: &Target) {
        if self.carry.proxy().is_sparing(&target.proxied) {
            let upstream = &key(target).upstream;
            let why = format!("what is left of the quota of {upstream} is kept for clients");
            self.manners.close(upstream, why);
        }
    }

    async fn resolve(&self, target: &Target) -> Result<Resolved, String> {
        self.spare(target);
        let upstream = &key(target).upstream;
        if self.manners.closed(upstream).is_none() {
            match self.resolve_there(target).await {
                // Upstream may have had enough just now.
                Err(_why) if self.manners.closed(upstream).is_some() => {}
                resolved => return resolved,
            }
        }
        let why = self.manners.closed(upstream).unwrap_or_default();
        match self.carry.here(&target.image).await {
            Ok(Ok(digest)) => Ok(Resolved { digest, note: Some(format!("not confirmed: {why}")) }),
            Ok(Err(_unknown)) => Err(why),
            Err(error) => Err(error.message),
        }
    }

    async fn resolve_there(&self, target: &Target) -> Result<Resolved, String> {
        match (target.image.digest(), target.image.tag_meant()) {
            (Some(digest), tag) => {
                if matches!(self.revision(target, digest).await?, Brought::Absent) {
                    return Err(format!("upstream does not have {digest}"));
                }
                let note = match target.image.tag().and(tag) {
                    Some(tag) => self.note_of(target, &tag, digest).await,
                    None => None,
                };
                Ok(Resolved { digest: *digest, note })
            }
            (None, Some(tag)) => self.tag(target, &tag).await,
            (None, None) => Err("it has neither tag nor digest".to_owned()),
        }
    }

    /// The tag in front of a digest becomes known here if upstream says that it points there.
    async fn note_of(&self, target: &Target, tag: &Tag, digest: &Digest) -> Option<String> {
        match self.tag(target, tag).await {
            Ok(found) if found.digest == *digest => found.note,
            Ok(found) => Some(format!("{tag} points at {} now", found.digest)),
            Err(why) => Some(format!("whether {tag} points there is not known: {why}")),
        }
    }

    async fn tag(&self, target: &Target, tag: &Tag) -> Result<Resolved, String> {
        let proxy = self.carry.proxy();
        let answer = self.ask(target, || proxy.tag(&target.proxied, tag)).await?;
        let Some((manifest, tagged)) = answer else {
            return Err(format!("upstream has no tag {tag}"));
        };
        let digest = manifest.digest;
        match tagged {
            Tagged::Stale { reason: CHECKED_BEHIND, .. } => {
                // A client takes what is here; this one is here to know.
                let checked = self.ask(target, || proxy.check_now(&target.proxied, tag)).await?;
                match checked {
                    Some(Refreshing::Confirmed(digest)) => Ok(Resolved { digest, note: None }),
                    Some(Refreshing::Moved(digest)) => {
                        self.came(&digest, manifest_bytes(&manifest)).await;
                        Ok(Resolved { digest, note: None })
                    }
                    Some(Refreshing::Unreachable(why)) => {
                        Ok(Resolved { digest, note: Some(format!("not confirmed: {why}")) })
                    }
                    Some(Refreshing::Denied(why)) => Err(why),
                    Some(Refreshing::Absent) | None => Err(format!("upstream has no tag {tag}")),
                }
            }
            Tagged::Stale { reason, .. } => {
                Ok(Resolved { digest, note: Some(format!("not confirmed: {reason}")) })
            }
            Tagged::Fetched { .. } | Tagged::Joined { .. } => {
                self.came(&digest, manifest_bytes(&manifest)).await;
                Ok(Resolved { digest, note: None })
            }
            Tagged::Fresh { .. } | Tagged::Revalidated { .. } | Tagged::Frozen { .. } => {
                Ok(Resolved { digest, note: None })
            }
        }
    }

    /// A manifest by its digest.
    async fn revision(&self, target: &Target, digest: &Digest) -> Result<Brought, String> {
        let proxy = self.carry.proxy();
        match self.ask(target, || proxy.revision(&target.proxied, digest)).await? {
            None => Ok(Brought::Absent),
            Some((manifest, Revision::Fetched { .. } | Revision::Joined)) => {
                Ok(self.came(digest, manifest_bytes(&manifest)).await)
            }
            Some((_, Revision::Stored | Revision::Renewed)) => Ok(Brought::Here),
        }
    }

    /// An object came, and may have passed by a store that is full.
    async fn came(&self, digest: &Digest, bytes: u64) -> Brought {
        match self.carry.content().metadata().object(digest).await {
            Ok(object) if !object.is_some_and(|object| object.present) => {
                return Brought::NotStored(bytes);
            }
            // Who cannot be asked now is asked at the end, with all the others.
            Ok(_) | Err(_) => {}
        }
        if self.sums().fetched.insert(*digest) {
            self.metrics().object(bytes);
        }
        Brought::Here
    }

    /// Waits for room for an object that found none. `false`: it was there at once, so that it may be something else that is wanting.
    async fn room(&self, target: &Target, digest: &Digest, size: u64) -> Result<bool, String> {
        let upstream = &key(target).upstream;
        let no_room =
            |why: &str| Err(format!("the store has no room for {digest} ({size} bytes){why}"));
        if let Some(why) = self.manners.no_room(upstream, size) {
            return no_room(&why);
        }
        let why = match self.carry.content().await_room(size, upstream).await {
            Ok(waited) => return Ok(waited),
            Err(content::Error::NoSpace) => String::new(),
            Err(content::Error::NoRoom(shortage)) => format!(": {shortage}"),
            Err(error) => format!(": {error}"),
        };
        self.manners.waited_in_vain(upstream, size, why.clone());
        no_room(&why)
    }

    /// Fetches what of the image is missing; its fate, its bytes, and what there is to know.
    async fn fill(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Result<(Fate, u64, Option<String>), String> {
        let (mut members, mut failures) = self.manifests(target, digest).await?;
        let lacking = lacking(&platforms_of(&members), &self.wish.platforms);
        if !lacking.is_empty() && lacking.len() == self.wish.platforms.len() {
            return Err(format!("it has no {}", lacking.join(", no ")));
        }
        let absent = |member: &&Member| !member.present && !member.is_manifest;
        let sizes = members.iter().filter(absent).filter_map(|blob| blob.size);
        self.sums().of_bytes += sizes.fold(0, u64::saturating_add);
        let blobs: Vec<Digest> = members.iter().filter(absent).map(|blob| blob.digest).collect();
        let asked = !blobs.is_empty();
        let each = blobs.into_iter().map(|blob| self.blob(target, blob));
        let mut each = stream::iter(each).buffer_unordered(OBJECTS_AT_A_TIME);
        while let Some(done) = each.next().await {
            failures.extend(done.err());
        }
        drop(each);
        if asked {
            members = self.tree(target, digest).await?;
        }
        let (bytes, fetched) = self.count(&members);
        let short = members.iter().filter(|member| !member.present);
        let (short, needed) = short.fold((0_u64, false), |(count, needed), member| {
            (count + 1, needed || !member.of_referrer || self.wish.referrers)
        });
        let why = failures.into_iter().next();
        if needed {
            let noun = if short == 1 { "object is" } else { "objects are" };
            let why = why.unwrap_or_else(|| "it was taken away meanwhile".to_owned());
            return Ok((Fate::Failed, bytes, Some(format!("{short} {noun} missing: {why}"))));
        }
        let note = if lacking.is_empty() {
            why
        } else {
            Some(format!("it has no {}", lacking.join(", no ")))
        };
        Ok((if fetched { Fate::Fetched } else { Fate::Here }, bytes, note))
    }

    async fn tree(&self, target: &Target, digest: &Digest) -> Result<Vec<Member>, String> {
        let tree = self.carry.tree(key(target), digest, &self.wish).await;
        tree.map_err(|error| error.message)
    }

    /// Fetches all manifests of the image, level by level. Gives the tree with them, and what could not be fetched.
    async fn manifests(
        &self,
        target: &Target,
        digest: &Digest,
    ) -> Result<(Vec<Member>, Vec<String>), String> {
        let (mut tried, mut asked) = (HashSet::new(), HashSet::new());
        let mut failures = Vec::new();
        loop {
            let members = self.tree(target, digest).await?;
            let manifests = || members.iter().filter(|member| member.is_manifest);
            let mut more = false;
            if self.wish.referrers && !self.carry.proxy().is_offline(&target.proxied) {
                for member in manifests().filter(|member| asked.insert(member.digest)) {
                    more = true;
                    failures.extend(self.referrers(target, member).await.err());
                }
            }
            let absent: Vec<Digest> = manifests()
                .filter(|member| !member.present && tried.insert(member.digest))
                .map(|member| member.digest)
                .collect();
            if absent.is_empty() && !more {
                return Ok((members, failures));
            }
            let each = absent.into_iter().map(|digest| self.manifest(target, digest));
            let mut each = stream::iter(each).buffer_unordered(OBJECTS_AT_A_TIME);
            while let Some(done) = each.next().await {
                failures.extend(done.err());
            }
        }
    }

    async fn manifest(&self, target: &Target, digest: Digest) -> Result<(), String> {
        for _try in 0..DOWNLOADS_MAX {
            match self.revision(target, &digest).await? {
                Brought::Here => return Ok(()),
                Brought::NotStored(size) | Brought::NoRoom(size) => {
                    self.room(target, &digest, size).await?;
                }
                Brought::Absent => {
                    return Err(format!("upstream does not have the manifest {digest}"));
                }
            }
        }
        Err(format!("the store does not take {digest}"))
    }

    /// Finds out what refers to a manifest: by the referrers API or its tag, and for what is no referrer itself by cosign's tags.
    async fn referrers(&self, target: &Target, member: &Member) -> Result<(), String> {
        let proxy = self.carry.proxy();
        self.ask(target, || proxy.referrers(&target.proxied, &member.digest)).await?;
        if member.of_referrer {
            return Ok(());
        }
        // The first is the one that the API falls back to.
        for tag in referrer_tags(&member.digest).skip(1) {
            let answer = self.ask(target, || proxy.tag(&target.proxied, &tag)).await?;
            if let Some((manifest, Tagged::Fetched { .. } | Tagged::Joined { .. })) = answer {
                self.came(&manifest.digest, manifest_bytes(&manifest)).await;
            }
        }
        Ok(())
    }

    async fn blob(&self, target: &Target, digest: Digest) -> Result<(), String> {
        let mut in_vain = 0;
        for _try in 0..ROOM_TRIES {
            let (size, came) = match self.try_blob(target, digest).await? {
                Brought::Here => return Ok(()),
                Brought::NotStored(size) => (size, true),
                Brought::NoRoom(size) => (size, false),
                Brought::Absent => return Err(format!("upstream does not have {digest}")),
            };
            let waited = self.room(target, &digest, size).await?;
            in_vain += u32::from(came || !waited);
            if in_vain >= DOWNLOADS_MAX {
                break;
            }
        }
        Err(format!("the store does not take {digest}"))
    }

    async fn try_blob(&self, target: &Target, digest: Digest) -> Result<Brought, String> {
        let proxy = self.carry.proxy();
        let blob = self.ask_in_place(target, || proxy.blob(&target.proxied, &digest, None)).await?;
        let Some((blob, _place)) = blob else {
            return Ok(Brought::Absent);
        };
        match blob.found {
            Found::Stored => {
                self.sums().bytes += blob.size;
                return Ok(Brought::Here);
            }
            Found::PastTheStore => return Ok(Brought::NoRoom(blob.size)),
            Found::Joined | Found::Fetched => {}
        }
        let mut frames = blob.body.stream(ByteRange { start: 0, end: blob.size });
        while let Some(frame) = frames.next().await {
            let frame =
                frame.map_err(|why| format!("the download of {digest} broke off ({why})"))?;
            self.sums().bytes += frame.length();
        }
        drop(frames);
        blob.body.settled().await;
        let brought = self.came(&digest, blob.size).await;
        if matches!(brought, Brought::NotStored(_)) {
            let mut sums = self.sums();
            sums.bytes = sums.bytes.saturating_sub(blob.size);
        }
        Ok(brought)
    }

    /// Adds what is here to the sums; the bytes of the image, and whether some of it was fetched in this run.
    fn count(&self, members: &[Member]) -> (u64, bool) {
        let mut sums = self.sums();
        let (mut bytes, mut any) = (0_u64, false);
        for member in members.iter().filter(|member| member.present) {
            let size = member.size.unwrap_or(0);
            bytes = bytes.saturating_add(size);
            let fetched = sums.fetched.contains(&member.digest);
            any |= fetched;
            if !sums.counted.insert(member.digest) {
                continue;
            }
            let report = &mut sums.report;
            let (objects, sum) = if fetched {
                (&mut report.objects, &mut report.bytes)
            } else {
                (&mut report.here, &mut report.here_bytes)
            };
            *objects += 1;
            *sum = sum.saturating_add(size);
        }
        (bytes, any)
    }
}

fn key(target: &Target) -> &RepositoryKey {
    target.image.key()
}

fn manifest_bytes(manifest: &proxy::Manifest) -> u64 {
    u64::try_from(manifest.bytes.len()).unwrap_or(u64::MAX)
}
