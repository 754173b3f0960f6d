//! Bundles and sets for the house of [`super::life`]: what is taken in, recorded, kept and forgotten, through the room that does it.

#![expect(clippy::unwrap_used, reason = "every value here is the test's own; what fails is a bug")]

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use prometheus_client::registry::Registry;
use roadstead::carry::{self, Carry, Event, Fate, ImportOrder, Job, RecordOrder};
use roadstead::clock::{Clock as _, SystemClock, Timestamp};
use roadstead::metadata::{SetMember, SetRecord};
use roadstead::oci::{Digest, SetName, Tag};
use roadstead::proxy::{self, Proxy, Source, UpstreamPolicy};
use roadstead::registry::desk::{self, Desk, Reason};
use roadstead::registry::{CatalogPolicy, Registry as Service, Upstream, Upstreams};
use roadstead::upkeep::Parts;
use roadstead::upstream;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::life_house::{Done, House};
use super::life_images::{
    REPOSITORIES, blob, blobs, children, closure, descriptor, digest, digest_of, family, image,
    list_of_referrers, name_of, number_of, repository, subject, tag,
};
use super::life_model::{Member, Move, Set};

/// Names of sets.
pub const SETS: usize = 3;

/// A bundle for a set.
#[derive(Clone, Copy, Debug)]
pub struct Bundle {
    pub repository: usize,
    pub image: usize,
    pub tag: Option<usize>,
    /// Since when the tag points there, in minutes before now; none: the bundle does not say.
    pub since: Option<usize>,
    pub load: Load,
    pub set: usize,
}

/// How much of an image is in its bundle.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    Whole,
    /// With everything that refers to it.
    Signed,
    /// Without what another image has.
    Delta(usize),
}

impl Bundle {
    /// The manifests that its list names: the image, and what comes with it.
    fn roots(&self) -> Vec<usize> {
        let mut roots = vec![self.image];
        if matches!(self.load, Load::Signed) {
            let family = family(self.image);
            let images = family.iter().filter_map(number_of);
            roots.extend(
                images.filter(|number| subject(*number).is_some() && *number != self.image),
            );
        }
        roots
    }

    /// The digests of its content.
    fn content(&self) -> BTreeSet<Digest> {
        let roots = self.roots();
        let mut content: BTreeSet<Digest> = roots.iter().flat_map(|root| closure(*root)).collect();
        if let Load::Delta(base) = self.load {
            let base = closure(base);
            content.retain(|object| !base.contains(object));
        }
        content.extend(roots.into_iter().map(digest_of));
        content
    }

    fn named(&self) -> String {
        let name = REPOSITORIES[self.repository];
        match self.tag {
            Some(number) => format!("{name}:{}", tag(number)),
            None => format!("{name}@{}", digest_of(self.image)),
        }
    }

    fn bytes(&self, now: Timestamp) -> Bytes {
        let mut list: Vec<Value> = self.roots().into_iter().map(descriptor).collect();
        let mut annotations = json!({ "io.containerd.image.name": self.named() });
        if let Some(since) = self.moved(now) {
            annotations["dev.roadstead.since"] = json!(since.to_string());
        }
        list[0]["annotations"] = annotations;
        let mut tar = tar::Builder::new(Vec::new());
        let mut file = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(bytes.len()).unwrap());
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes).unwrap();
        };
        file("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes());
        let list = json!({ "schemaVersion": 2, "manifests": list });
        file("index.json", list.to_string().as_bytes());
        for object in self.content() {
            file(&object.layout_path(), &bytes_of(&object));
        }
        tar.into_inner().unwrap().into()
    }

    fn moved(&self, now: Timestamp) -> Option<Timestamp> {
        let minutes = u64::try_from(self.since?).unwrap();
        Some(now.minus(std::time::Duration::from_secs(60 * minutes)))
    }

    /// The manifests that are whole with what is here, if all that it brings are.
    pub fn included(&self, here: &BTreeSet<Digest>) -> Option<BTreeSet<usize>> {
        let content = self.content();
        let is_here = |object: &Digest| content.contains(object) || here.contains(object);
        let is_whole = |number: usize| {
            let all = |number: usize| closure(number).iter().all(is_here);
            let children = children(number);
            is_here(&digest_of(number))
                && if children.is_empty() { all(number) } else { children.into_iter().any(all) }
        };
        let brought: Vec<usize> = content.iter().filter_map(number_of).collect();
        brought.iter().all(|number| is_whole(*number)).then(|| {
            let roots = self.roots().into_iter();
            let all = roots.flat_map(|root| children(root).into_iter().chain([root]));
            all.filter(|number| is_whole(*number)).collect()
        })
    }
}

fn bytes_of(object: &Digest) -> Vec<u8> {
    match number_of(object) {
        Some(number) => image(number),
        None => (0..).map(blob).find(|bytes| digest(bytes) == *object).unwrap(),
    }
}

pub fn set_name(number: usize) -> SetName {
    format!("set-{number}").parse().unwrap()
}

/// The registries that the store knows; nobody is ever asked.
pub struct Quay(Vec<Arc<Source>>);

impl Quay {
    pub fn new() -> Self {
        let shared = upstream::Shared {
            clock: Arc::new(SystemClock),
            tasks: TaskTracker::new(),
            instance_id: "roadstead-life".to_owned(),
            metrics: upstream::Metrics::new(&mut Registry::default()),
            proxies: upstream::ProxyEnv::default(),
            search_path: None,
            shutdown: CancellationToken::new(),
        };
        let source = |name: &str| {
            let url = upstream::Url::parse("http://127.0.0.1:9/").unwrap();
            let settings = upstream::Settings::new(name.parse().unwrap(), url);
            let upstream = Arc::new(upstream::Upstream::new(settings, &shared).unwrap());
            Arc::new(Source::new(upstream, UpstreamPolicy::default()).unwrap())
        };
        Self(vec![source("docker.io"), source("ghcr.io")])
    }

    /// Who carries images in and out of a store that was just opened.
    pub fn carry(&self, parts: &Parts, registry: &mut Registry) -> Carry {
        let Parts { content, clock, tasks, shutdown, .. } = parts;
        let proxy = Proxy::new(proxy::Parts {
            content: content.clone(),
            clock: Arc::clone(clock),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
            metrics: proxy::Metrics::new(registry, Arc::clone(clock)),
        });
        let known = |source: &Arc<Source>| Upstream {
            source: Arc::clone(source),
            aliases: Vec::new(),
            hosts: Vec::new(),
            library: false,
        };
        let upstreams = self.0.iter().map(known).collect();
        let upstreams = Upstreams::new(upstreams, Vec::new(), "docker.io".parse().unwrap());
        let catalog = CatalogPolicy::default();
        let service = Service::new(upstreams, catalog, proxy, content.clone(), registry);
        let settings = desk::Settings::default();
        Carry::new(carry::Parts {
            desk: Desk::new(Arc::new(service), Arc::clone(clock), settings),
            clock: Arc::clone(clock),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
            settings: carry::Settings::default(),
            metrics: carry::Metrics::default(),
        })
    }
}

/// The story to its end, or why it has none.
async fn told(mut job: Job) -> Result<Vec<Event>, String> {
    let mut events = Vec::new();
    while let Some(event) = job.next().await {
        events.push(event);
    }
    match events.last() {
        Some(Event::Ended(_)) => Ok(events),
        other => Err(format!("{other:?}")),
    }
}

impl House {
    /// What is here and was shown to somebody, so that a bundle may leave it out.
    async fn shown(&self, at: usize) -> BTreeSet<Digest> {
        let (rows, mut shown) = (self.content().metadata(), BTreeSet::new());
        for object in self.present().await {
            if rows.is_shown(&object, &repository(at)).await.unwrap() {
                shown.insert(object);
            }
        }
        shown
    }

    /// Takes a bundle in; `None`: it is refused because something is neither in it nor here. Tells whether the tag is there now.
    pub async fn import(
        &self,
        bundle: &Bundle,
    ) -> Result<Option<bool>, Box<dyn std::error::Error>> {
        let order = ImportOrder { set: Some(set_name(bundle.set)), ..ImportOrder::default() };
        let pieces: Vec<std::io::Result<Bytes>> = vec![Ok(bundle.bytes(self.now()))];
        let job = match self.carry().import(order, Box::pin(stream::iter(pieces))).await {
            Err(error) if error.reason == Reason::Incomplete => return Ok(None),
            job => job.map_err(|error| error.message)?,
        };
        let events = told(job).await?;
        let kept = |event: &Event| matches!(event, Event::Image { fate: Fate::TagKept, .. });
        Ok(Some(!events.iter().any(kept)))
    }

    /// The same with everything that is to come of it, in the store and in the model.
    pub async fn take_in(&mut self, bundle: &Bundle) -> Done {
        let wanted = bundle.included(&self.shown(bundle.repository).await);
        self.brought(bundle);
        let moved = self.import(bundle).await?;
        if moved.is_none() && wanted.is_some() && self.is_broken() {
            return Err("what it builds on cannot be read".into());
        }
        assert_eq!(moved.is_some(), wanted.is_some(), "is it whole with {wanted:?}?");
        match moved.zip(wanted) {
            Some((moved, included)) => self.taken_in(bundle, &included, moved).await,
            None => self.tally.refused += 1,
        }
        Ok(())
    }

    /// The content of a bundle comes, whatever becomes of the bundle.
    pub fn brought(&mut self, bundle: &Bundle) {
        let now = self.now();
        for object in bundle.content() {
            self.model.removed.remove(&object);
            self.model.maybe_used.insert(object, now);
            if let Some(number) = number_of(&object) {
                self.model.wait_again(number);
                let list = subject(number).and_then(list_of_referrers);
                self.model.maybe_used.extend(list.map(|list| (list, now)));
            }
        }
    }

    /// The model learns of a bundle that was taken in; all of it must be here.
    pub async fn taken_in(&mut self, bundle: &Bundle, included: &BTreeSet<usize>, moved: bool) {
        let (at, now, present) = (bundle.repository, self.now(), self.present().await);
        for number in included {
            let blobs = blobs(*number).into_iter().map(|number| digest(&blob(number)));
            for object in blobs.chain([digest_of(*number)]) {
                assert!(
                    present.contains(&object),
                    "{} was imported, and is not here",
                    name_of(&object)
                );
            }
            self.model.maybe_used.extend(family(*number).into_iter().map(|object| (object, now)));
        }
        let waited = self.model.may_return(at, included.iter().copied());
        self.model.import(at, (included, bundle.set), now);
        self.returned(at, waited).await;
        let rows = self.content().metadata().clone();
        for number in included {
            if let Some(subject) = subject(*number)
                && rows.referrers(&repository(at), &digest_of(subject)).await.unwrap().is_some()
            {
                self.model.lists.insert((at, subject));
            }
        }
        let named = |root: usize| (at, root, bundle.tag.filter(|_| root == bundle.image));
        let members: Vec<Member> = bundle.roots().into_iter().map(named).collect();
        self.model.sets.get_mut(&bundle.set).unwrap().members.extend(members);
        if let Some(tag) = bundle.tag {
            self.taken_tag(bundle, tag, moved).await;
        }
        self.tally.imported += 1;
    }

    /// An import may add to the timeline of a tag, and takes nothing of it away.
    async fn taken_tag(&mut self, bundle: &Bundle, number: usize, moved: bool) {
        let (at, known) = (bundle.repository, repository(bundle.repository));
        let rows = self.content().metadata();
        let entries = rows.timeline(&known, &tag(number), 1000).await.unwrap();
        let moves: Vec<Move> = entries
            .into_iter()
            .rev()
            .map(|entry| (entry.since, entry.digest.map(|digest| number_of(&digest).unwrap())))
            .collect();
        assert!(moves.is_sorted_by_key(|(since, _)| *since), "{moves:?}");
        let record = rows.tag(&known, &tag(number)).await.unwrap();
        let points_at = record.and_then(|record| record.digest);
        let timeline = self.model.timelines.entry((at, number)).or_default();
        let mut left = moves.iter();
        let is_left = timeline.iter().all(|known| left.any(|found| found == known));
        assert!(is_left, "{timeline:?} became {moves:?}");
        let before = timeline.last().and_then(|last| last.1);
        *timeline = moves;
        if moved {
            assert_eq!(points_at, Some(digest_of(bundle.image)), "the tag is there");
            self.model.current.insert((at, number), bundle.image);
        } else {
            assert_eq!(points_at.as_ref().and_then(number_of), before, "the tag stays");
            self.tally.unmoved += 1;
        }
    }

    /// Begins a recording, or ends it.
    pub async fn record(&mut self, number: usize) -> Done {
        let name = set_name(number);
        match self.model.sets.get(&number).map(|set| set.recording) {
            None => {
                let (clients, upstreams) = (Vec::new(), Vec::new());
                let order = RecordOrder { name, clients, upstreams };
                self.carry().record(order).await.map_err(|error| error.message)?;
                let set = Set { recording: true, ..Set::default() };
                self.model.sets.insert(number, set);
            }
            Some(true) => {
                let job = self.carry().stop_record(&name, Vec::new(), false).await;
                told(job.map_err(|error| error.message)?).await?;
                self.closed(number).await;
            }
            Some(false) => {}
        }
        Ok(())
    }

    /// What was asked for by digest and is a part of something else of the recording is no image of its own; nothing else is left out.
    async fn closed(&mut self, number: usize) {
        let (_, found) = self.set(number).await.expect("it was recorded");
        let set = self.model.sets.get_mut(&number).unwrap();
        let of_others = |(at, image, _): &Member| {
            let has = |other: &Member| {
                let part = digest_of(*image);
                other.0 == *at
                    && (other.1 != *image && family(other.1).contains(&part)
                        || other.1 == *image && other.2.is_some())
            };
            set.members.iter().any(has)
        };
        for gone in set.members.difference(&found) {
            assert!(gone.2.is_none() && of_others(gone), "{gone:?} is not in the set");
        }
        set.members = found;
        set.recording = false;
        self.tally.recorded += 1;
    }

    /// Every recording gets what was pulled, as whoever records writes it down.
    pub async fn recorded(&mut self, at: usize, image: usize, tag_number: Option<usize>) -> Done {
        for number in 0..SETS {
            if !self.model.sets.get(&number).is_some_and(|set| set.recording) {
                continue;
            }
            let (set, _) = self.set(number).await.expect("it is being recorded");
            let member = SetMember {
                repository: repository(at),
                digest: digest_of(image),
                tag: tag_number.map(tag),
                at: self.now(),
            };
            let unknown = self.content().metadata().add_members(set.id, vec![member]).await?;
            assert!(unknown.is_empty(), "{unknown:?} was pulled just now");
            let set = self.model.sets.get_mut(&number).unwrap();
            set.members.insert((at, image, tag_number));
        }
        Ok(())
    }

    pub async fn keep(&mut self, number: usize, kept: bool) -> Done {
        if self.model.sets.contains_key(&number) {
            let info = self.carry().pin_set(set_name(number).as_str(), kept).await;
            assert_eq!(info.map_err(|error| error.message)?.pinned, kept);
            self.model.sets.get_mut(&number).unwrap().kept = kept;
        }
        Ok(())
    }

    pub async fn forget(&mut self, number: usize) -> Done {
        if self.model.sets.contains_key(&number) {
            let removed = self.carry().remove_set(set_name(number).as_str()).await;
            assert!(removed.map_err(|error| error.message)?, "there is one");
            self.model.forget(number);
            self.tally.forgotten += 1;
        }
        Ok(())
    }

    /// A set of the store with its members.
    async fn set(&self, number: usize) -> Option<(SetRecord, BTreeSet<Member>)> {
        let rows = self.content().metadata();
        let set =
            rows.sets().await.unwrap().into_iter().find(|set| set.name == set_name(number))?;
        let members = rows.set_members(set.id, None, 1000).await.unwrap();
        let member = |member: SetMember| {
            let at = (0..REPOSITORIES.len()).find(|at| repository(*at) == member.repository);
            let of_tag = |wanted: Tag| (0..).find(|number| tag(*number) == wanted).unwrap();
            (at.unwrap(), number_of(&member.digest).unwrap(), member.tag.map(of_tag))
        };
        Some((set, members.into_iter().map(member).collect()))
    }

    /// The sets of the store are those of the model.
    pub async fn check_sets(&self) {
        for number in 0..SETS {
            let found = self.set(number).await;
            let Some((set, wanted)) =
                found.as_ref().map(|found| &found.0).zip(self.model.sets.get(&number))
            else {
                assert_eq!(found.is_some(), self.model.sets.contains_key(&number), "set {number}");
                continue;
            };
            let members = &found.as_ref().unwrap().1;
            assert_eq!(set.kept, wanted.kept, "set {number}");
            assert_eq!(*members, wanted.members, "set {number}");
            assert_eq!(set.members, u64::try_from(members.len()).unwrap(), "set {number}");
        }
    }
}
