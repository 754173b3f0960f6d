//! The end of a recording: which platforms its images are wanted for, and what is missing of them.
//!
//! What must hold: nothing is asked of an upstream but what is not here; a child that clients asked for by digest tells a platform and is no
//! image of its own; whoever listens may go at any moment, and the next end goes on from there. Nodes that hold the layers already never ask for
//! them, so a recording knows images and never what they are made of: that is what this file finds.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::check::{lacking, platforms_of};
use super::error::Error;
use super::events::{Event, Fate, Report, Work};
use super::fetch::{Run, Target};
use super::filter::Filter;
use super::place::Place;
use super::recorder::Left;
use super::service::Carry;
use super::tree::{Member, Wish};
use super::warm::each;
use crate::metadata::{self, RepositoryKey, SET_DETAIL_BYTES_MAX, SetMember, SetRecord};
use crate::oci::{Digest, PlatformPattern, Role, Tag};
use crate::story::{Stopped, Story};

/// What is to be known of each revision.
type Known = HashMap<RepositoryKey, HashMap<Digest, Below>>;

/// The manifests below a revision; of most there is none.
#[derive(Default)]
struct Below {
    manifests: Vec<Digest>,
    /// Those that an index lists for a platform.
    children: Vec<(Digest, String)>,
}

/// A recording that has ended.
pub(super) struct Closing {
    carry: Carry,
    set: SetRecord,
    left: Left,
    /// By the word of whoever ended it; empty: those that clients asked for.
    named: Vec<PlatformPattern>,
    fetch: bool,
    story: Story<Event>,
    report: Report,
    /// Objects that are in the report.
    counted: HashSet<Digest>,
    /// Manifests that were fetched to know what is below them.
    brought: HashSet<Digest>,
}

/// Why the work ends before its end.
enum End {
    Stopped,
    Failed(Error),
}

/// An image of the set, with the names under which it was recorded.
struct Image {
    key: RepositoryKey,
    digest: Digest,
    /// For people: with the tags.
    shown: String,
    /// The name by which it is fetched.
    name: String,
    /// No row knows it: not what its tag is, either.
    unknown: bool,
}

/// What is wanted of one image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Extent {
    /// It is no index, or no platform that anybody wants is in it.
    All,
    /// As texts, sorted.
    Platforms(Vec<String>),
}

impl Closing {
    pub(super) fn new(
        carry: Carry,
        (set, left): (SetRecord, Left),
        named: Vec<PlatformPattern>,
        fetch: bool,
        story: Story<Event>,
    ) -> Self {
        let (report, counted, brought) = (Report::default(), HashSet::new(), HashSet::new());
        Self { carry, set, left, named, fetch, story, report, counted, brought }
    }

    /// Tells the whole story.
    pub(super) async fn run(mut self) {
        let stopped = self.story.stopped().clone();
        let done = tokio::select! {
            () = stopped.cancelled() => Err(End::Stopped),
            done = self.work() => done,
        };
        if done.is_err() {
            self.carry.recorder().put_back(self.set.id, std::mem::take(&mut self.left));
        }
        let last = match done {
            Ok(()) => Event::Ended(self.report),
            Err(End::Failed(error)) => Event::Aborted { reason: error.to_string() },
            Err(End::Stopped) => {
                let name = &self.set.name;
                tracing::warn!(%name, "nobody waited for the end of a recording; stopping it again goes on");
                return;
            }
        };
        self.story.tell(last).await.ok();
    }

    async fn work(&mut self) -> Result<(), End> {
        let members = self.members().await?;
        let known = self.walk(&members).await?;
        let platforms = self.platforms(&members, &known);
        let (images, surplus) = sort_out(&members, &known, &self.left.members);
        let count = u64::try_from(images.len()).unwrap_or(u64::MAX);
        self.story.tell(Event::Begun { work: Work::Record, images: count, bytes: 0 }).await?;
        self.keep_platforms(&platforms).await?;
        let missing = self.check(images, &known, &platforms).await?;
        for (extent, images) in missing {
            self.fetch(&extent, images).await?;
        }
        // What is a part of another image is missed by nobody.
        self.left.members.retain(|member| !surplus.contains(member));
        self.write_rest().await?;
        let metadata = self.carry.content().metadata();
        metadata.remove_members(self.set.id, surplus).await?;
        Ok(())
    }

    /// Everything that was recorded, also what has no row yet.
    async fn members(&self) -> Result<Vec<SetMember>, End> {
        let mut members = self.carry.members_of(&self.set).await?;
        members.extend(self.left.members.iter().cloned());
        Ok(members)
    }

    /// What belongs to each revision, whatever its platform. Documents that went meanwhile are fetched again, because nobody can tell
    /// without them.
    async fn walk(&mut self, members: &[SetMember]) -> Result<Known, End> {
        let wish = Wish { platforms: Vec::new(), referrers: true };
        let mut known = Known::new();
        for SetMember { repository, digest, .. } in members {
            let of_repository = known.entry(repository.clone()).or_default();
            if of_repository.contains_key(digest) {
                continue;
            }
            let mut tree = self.carry.tree(repository, digest, &wish).await?;
            let absent = tree.first().is_none_or(|root| !root.present);
            if absent && self.fetch && self.bring(repository, digest).await {
                tree = self.carry.tree(repository, digest, &wish).await?;
            }
            of_repository.insert(*digest, Below::of(digest, &tree));
        }
        Ok(known)
    }

    /// Fetches a manifest. If that fails, the image fails later, with the reason.
    async fn bring(&mut self, repository: &RepositoryKey, digest: &Digest) -> bool {
        let Ok(image) = self.carry.inner().desk.image(&format!("{repository}@{digest}")) else {
            return false;
        };
        let Some(proxied) = image.proxied() else { return false };
        match self.carry.proxy().revision(proxied, digest).await {
            Ok((manifest, _how)) => {
                self.report.objects += 1;
                self.report.bytes += u64::try_from(manifest.bytes.len()).unwrap_or(u64::MAX);
                self.counted.insert(*digest);
                self.brought.insert(*digest);
                true
            }
            Err(error) => {
                tracing::debug!(%repository, %digest, ?error, "a recorded manifest cannot be fetched");
                false
            }
        }
    }

    /// The platforms that are wanted of indexes: those that were named, now or at an earlier end, else those of the children that clients
    /// asked for.
    fn platforms(&self, members: &[SetMember], known: &Known) -> Vec<PlatformPattern> {
        if !self.named.is_empty() {
            return self.named.clone();
        }
        let before = self.set.detail.parse::<Filter>().unwrap_or_default().platforms;
        if !before.is_empty() {
            return before;
        }
        let asked: HashSet<(&RepositoryKey, &Digest)> =
            members.iter().map(|member| (&member.repository, &member.digest)).collect();
        let mut platforms = Vec::<PlatformPattern>::new();
        for (repository, revisions) in known {
            let children = revisions.values().flat_map(|below| &below.children);
            let children = children.filter(|(digest, _)| asked.contains(&(repository, digest)));
            for platform in children.filter_map(|(_, platform)| platform.parse().ok()) {
                if !platforms.contains(&platform) {
                    platforms.push(platform);
                }
            }
        }
        platforms.sort_by_key(ToString::to_string);
        platforms
    }

    /// Writes down for which platforms the set is closed, so that the next end means the same.
    async fn keep_platforms(&mut self, platforms: &[PlatformPattern]) -> Result<(), End> {
        let Ok(filter) = self.set.detail.parse::<Filter>() else { return Ok(()) };
        let filter = Filter { platforms: platforms.to_vec(), ..filter };
        let detail = filter.to_string();
        if detail != self.set.detail && detail.len() <= SET_DETAIL_BYTES_MAX {
            let metadata = self.carry.content().metadata();
            metadata.describe_set(self.set.id, detail.clone()).await?;
            self.set.detail = detail;
        }
        Ok(())
    }

    /// Tells which images are whole, and gives the others, by what is wanted of them.
    async fn check(
        &mut self,
        images: Vec<Image>,
        known: &Known,
        platforms: &[PlatformPattern],
    ) -> Result<BTreeMap<Extent, Vec<Image>>, End> {
        let mut missing = BTreeMap::<Extent, Vec<Image>>::new();
        for image in images {
            let below = known.get(&image.key).and_then(|revisions| revisions.get(&image.digest));
            let children = below.map_or(&[][..], |below| &below.children);
            let extent = extent(children, platforms, !self.named.is_empty());
            let wish = extent.wish();
            let tree = self.carry.tree(&image.key, &image.digest, &wish).await?;
            let needed = || tree.iter().filter(|member| !member.of_referrer);
            let absent = needed().filter(|member| !member.present).count();
            // Attestations are fetched with the image, and it runs without them.
            if self.fetch && (image.unknown || tree.iter().any(|member| !member.present)) {
                missing.entry(extent).or_default().push(image);
                continue;
            }
            let lacking = lacking(&platforms_of(&tree), &wish.platforms);
            let has_none = !lacking.is_empty() && lacking.len() == wish.platforms.len();
            let reason = match absent {
                0 if lacking.is_empty() => None,
                0 => Some(format!("it has no {}", lacking.join(", no "))),
                1 => Some("1 of its objects is not here".to_owned()),
                count => Some(format!("{count} of its objects are not here")),
            };
            let bytes = self.count(needed().filter(|member| member.present));
            let fate = match self.brought.contains(&image.digest) {
                _ if absent > 0 || has_none => Fate::Failed,
                true => Fate::Fetched,
                false => Fate::Here,
            };
            self.tell_image(&image, fate, bytes, reason).await?;
        }
        Ok(missing)
    }

    /// Adds what is here to the sums, each object once; gives the bytes of all.
    fn count<'a>(&mut self, present: impl Iterator<Item = &'a Member>) -> u64 {
        let mut bytes = 0_u64;
        for member in present {
            let size = member.size.unwrap_or(0);
            bytes = bytes.saturating_add(size);
            if self.counted.insert(member.digest) {
                self.report.here += 1;
                self.report.here_bytes = self.report.here_bytes.saturating_add(size);
            }
        }
        bytes
    }

    async fn tell_image(
        &mut self,
        image: &Image,
        fate: Fate,
        bytes: u64,
        reason: Option<String>,
    ) -> Result<(), End> {
        self.report.images += 1;
        self.report.failed += u64::from(fate == Fate::Failed);
        let (name, digest) = (image.shown.clone(), Some(image.digest.to_string()));
        self.story.tell(Event::Image { image: name, digest, fate, bytes, reason }).await?;
        let Report { images, objects, bytes, .. } = self.report;
        self.story.mention(Event::Progress { images, objects, bytes, of_bytes: bytes });
        Ok(())
    }

    /// Fetches what images need, as an order to warm does.
    async fn fetch(&mut self, extent: &Extent, images: Vec<Image>) -> Result<(), End> {
        let mut targets = Vec::with_capacity(images.len());
        for image in images {
            let found = self.carry.inner().desk.image(&image.name)?;
            if let Some(proxied) = found.proxied().cloned() {
                targets.push(Target { name: image.shown, image: found, proxied });
                continue;
            }
            let reason = format!("{} is not configured here any more", image.key.upstream);
            self.tell_image(&image, Fate::Failed, 0, Some(reason)).await?;
        }
        let run = Run::new(self.carry.clone(), extent.wish());
        let told = each(&run, targets, &self.story, &self.report).await;
        let (sum, more) = (&mut self.report, run.report());
        sum.images += more.images;
        sum.failed += more.failed;
        sum.objects += more.objects;
        sum.bytes += more.bytes;
        sum.here += more.here;
        sum.here_bytes += more.here_bytes;
        Ok(told?)
    }

    /// Writes the rows of what could not be stored when it was pulled and perhaps is now, and tells what stays out of the set.
    async fn write_rest(&mut self) -> Result<(), End> {
        // A copy: who goes before all of it is told is told the next time.
        let rest = self.left.clone();
        let metadata = self.carry.content().metadata();
        let (out, reason) = match metadata.add_members(self.set.id, rest.members.clone()).await {
            Ok(unknown) => (unknown, "it was pulled, and nothing of it could be stored"),
            Err(error) => {
                tracing::warn!(?error, "what was recorded cannot be written");
                (rest.members, "it was pulled, and its row cannot be written now")
            }
        };
        for member in out {
            self.leave_out(Place::of(&member).to_string(), reason).await?;
        }
        if rest.answers > 0 {
            let what = format!("{} answers", rest.answers);
            self.leave_out(what, "there were more images than are noted while rows cannot be written, or than a recording holds").await?;
        }
        Ok(())
    }

    async fn leave_out(&mut self, what: String, reason: &str) -> Result<(), End> {
        self.report.left_out += 1;
        self.story.tell(Event::LeftOut { what, reason: reason.to_owned() }).await?;
        Ok(())
    }
}

impl Extent {
    fn wish(&self) -> Wish {
        let platforms = match self {
            Self::All => Vec::new(),
            Self::Platforms(texts) => texts.iter().filter_map(|text| text.parse().ok()).collect(),
        };
        Wish { platforms, referrers: false }
    }
}

/// What is wanted of an image: of an index the platforms, as far as it has them unless they were `named`. One that has none of them is
/// wanted for this machine, else for all.
fn extent(children: &[(Digest, String)], platforms: &[PlatformPattern], named: bool) -> Extent {
    let has = |pattern: &&PlatformPattern| {
        children.iter().any(|(_, platform)| pattern.matches_text(platform))
    };
    if children.is_empty() {
        return Extent::All;
    }
    let machine = PlatformPattern::of_this_machine();
    let mut chosen: Vec<&PlatformPattern> =
        platforms.iter().filter(|pattern| named || has(pattern)).collect();
    if chosen.is_empty() && has(&&machine) {
        chosen.push(&machine);
    }
    let mut texts: Vec<String> = chosen.into_iter().map(ToString::to_string).collect();
    texts.sort();
    if texts.is_empty() { Extent::All } else { Extent::Platforms(texts) }
}

impl Below {
    fn of(root: &Digest, tree: &[Member]) -> Self {
        let mut below = Self::default();
        for member in tree.iter().filter(|member| member.is_manifest && member.digest != *root) {
            below.manifests.push(member.digest);
            let listed = member.role == Some(Role::Child) && !member.of_referrer;
            if let Some(platform) = member.platform.as_ref().filter(|_| listed) {
                below.children.push((member.digest, platform.clone()));
            }
        }
        below
    }
}

/// The images of a recording, and the rows that are none: what was asked for by digest and belongs to another one.
fn sort_out(
    members: &[SetMember],
    known: &Known,
    left: &[SetMember],
) -> (Vec<Image>, Vec<SetMember>) {
    let mut below = HashSet::new();
    for (repository, revisions) in known {
        let manifests = revisions.values().flat_map(|below| &below.manifests);
        below.extend(manifests.map(|digest| (repository, *digest)));
    }
    let mut tags = BTreeMap::<(&RepositoryKey, Digest), Vec<&Tag>>::new();
    for member in members {
        let names = tags.entry((&member.repository, member.digest)).or_default();
        names.extend(&member.tag);
    }
    let surplus = |member: &&SetMember| {
        let place = (&member.repository, member.digest);
        member.tag.is_none()
            && (below.contains(&place) || tags.get(&place).is_some_and(|tags| !tags.is_empty()))
    };
    let rows = members.iter().filter(surplus).cloned().collect();
    let images = tags
        .into_iter()
        .filter(|(place, tags)| !tags.is_empty() || !below.contains(place))
        .map(|((key, digest), tags)| {
            let is_left = |member: &SetMember| member.repository == *key && member.digest == digest;
            Image::of(key, digest, &tags, left.iter().any(is_left))
        })
        .collect();
    (images, rows)
}

impl Image {
    /// Under its tag it is fetched only if nobody knows the tag yet: that asks upstream what it is now.
    fn of(key: &RepositoryKey, digest: Digest, tags: &[&Tag], unknown: bool) -> Self {
        let tagged = tags.first().map(|tag| format!("{key}:{tag}"));
        let alone = format!("{key}@{digest}");
        let shown = tagged.clone().unwrap_or_else(|| alone.clone());
        let name = match tagged.filter(|_| unknown) {
            Some(tagged) => format!("{tagged}@{digest}"),
            None => alone,
        };
        Self { key: key.clone(), digest, shown, name, unknown }
    }
}

impl From<Stopped> for End {
    fn from(_stopped: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<metadata::Error> for End {
    fn from(error: metadata::Error) -> Self {
        Self::Failed(error.into())
    }
}
