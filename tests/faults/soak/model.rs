//! What the product may answer: a small reference of the world, kept by numbers and digests.
//!
//! It knows at which digest a tag pointed at which time, what each repository holds upstream, and what was received whole and is
//! stored. From the weather of a round (who was in trouble) it says of every answer whether it was right, excused or wrong.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::plan::{TAGS, UPSTREAMS};
use super::scene::{Repository, Scene, content_of};

/// How long a tag is fresh, as the configuration says.
const FRESH_MILLIS: u64 = 60_000;
/// How an outage may be told; never as absence or denial.
const OUTAGE: [u16; 4] = [429, 502, 503, 504];
const ABSENT: u16 = 404;

/// What was bad in a round.
#[derive(Clone, Debug, Default)]
pub(super) struct Weather {
    pub(super) troubled: [bool; UPSTREAMS],
    /// Bodies have wrong bytes: before the end of a cut answer, or in a part that nobody can verify, so may answers.
    pub(super) corrupt: [bool; UPSTREAMS],
    pub(super) restarting: bool,
    pub(super) disk: bool,
    /// The device fails: content that cannot be read counts as absent for the moment, and is fetched again.
    pub(super) device: bool,
}

/// What one request asked for.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Tag { repository: usize, tag: usize },
    Content { repository: usize, digest: String },
    Stranger { repository: usize, digest: String },
}

/// What came.
#[derive(Clone, Debug)]
pub(super) enum Came {
    /// The right bytes to a clean end. For a tag the digest; `whole` if it was all of it, by GET.
    Right {
        digest: String,
        whole: bool,
    },
    Wrong(String),
    Refused(u16),
    /// The body ended before its end.
    Cut,
    /// The same, or a part of a blob without its end, or left by the client; and there were wrong bytes.
    Corrupt,
    /// No answer: the connection was refused or ended.
    Nothing,
    /// The client left.
    Left,
}

#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) asked: Asked,
    /// The request, for messages.
    pub(super) text: String,
    pub(super) came: Came,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Excused(&'static str),
    Wrong(&'static str),
}

/// Where a tag pointed, from when on; `None` is nowhere.
struct Timeline {
    entries: Vec<(u64, Option<String>)>,
    /// The product has answered with this entry or a later one, and will not go back.
    floor: usize,
    /// It has answered with content that is stored, so an outage is bridged.
    known: bool,
}

impl Timeline {
    fn new(digest: &str) -> Self {
        Self { entries: vec![(0, Some(digest.to_owned()))], floor: 0, known: false }
    }

    fn set(&mut self, now: u64, digest: Option<String>) {
        if self.entries.last().is_some_and(|(_, last)| *last != digest) {
            self.entries.push((now, digest));
        }
    }

    /// The first entry at or behind the floor that has this digest.
    fn place(&self, digest: Option<&str>) -> Option<usize> {
        let all = self.entries.iter().enumerate().skip(self.floor);
        let mut fitting = all.filter(|(_, (_, have))| have.as_deref() == digest);
        fitting.next().map(|(place, _)| place)
    }

    /// Did it point there at any time since?
    fn pointed_since(&self, since: u64, digest: Option<&str>) -> bool {
        let ends = self.entries.iter().skip(1).map(|(from, _)| *from).chain([u64::MAX]);
        let mut fitting = self.entries.iter().zip(ends);
        fitting.any(|((_, have), end)| have.as_deref() == digest && end >= since)
    }
}

pub(super) struct Model {
    /// Milliseconds since the beginning.
    pub(super) now: u64,
    tags: Vec<Vec<Timeline>>,
    images: Vec<BTreeSet<usize>>,
    /// Digests below each image of each repository.
    below: Vec<Vec<BTreeSet<String>>>,
    upstream_of: Vec<usize>,
    /// Received whole through this repository, and stored since.
    sure: HashSet<(usize, String)>,
}

impl Model {
    pub(super) fn new(scene: &Scene) -> Self {
        let tags = |repository: &Repository| {
            let point = |tag| Timeline::new(&repository.tagged(tag).digest);
            (0..TAGS).map(point).collect()
        };
        let mut model = Self {
            now: 0,
            tags: scene.repositories.iter().map(tags).collect(),
            images: scene.repositories.iter().map(|_| BTreeSet::new()).collect(),
            below: scene.repositories.iter().map(|_| Vec::new()).collect(),
            upstream_of: scene.repositories.iter().map(|one| one.upstream).collect(),
            sure: HashSet::new(),
        };
        for (number, repository) in scene.repositories.iter().enumerate() {
            model.built(number, repository);
        }
        model
    }

    /// There are more images in the repository than before, and upstream holds them.
    pub(super) fn built(&mut self, number: usize, repository: &Repository) {
        let below = &mut self.below[number];
        for image in &repository.images[below.len()..] {
            self.images[number].insert(below.len());
            below.push(content_of(image).into_iter().map(|(digest, _)| digest).collect());
        }
    }

    pub(super) fn has_image(&self, repository: usize, image: usize) -> bool {
        self.images[repository].contains(&image)
    }

    pub(super) fn pushed(&mut self, repository: usize, image: usize) {
        self.images[repository].insert(image);
    }

    /// Takes an image out; gives those that stay.
    pub(super) fn deleted(&mut self, repository: usize, image: usize) -> Vec<usize> {
        self.images[repository].remove(&image);
        self.images[repository].iter().copied().collect()
    }

    pub(super) fn tag_set(&mut self, repository: usize, tag: usize, digest: Option<&str>) {
        self.tags[repository][tag].set(self.now, digest.map(str::to_owned));
    }

    pub(super) fn points_at(&self, repository: usize, tag: usize) -> Option<&str> {
        self.tags[repository][tag].entries.last().and_then(|(_, digest)| digest.as_deref())
    }

    /// The stored file of this digest is no longer what it was.
    pub(super) fn damaged(&mut self, digest: &str) {
        self.sure.retain(|(_, known)| known != digest);
    }

    fn holds(&self, repository: usize, digest: &str) -> bool {
        let present = self.images[repository].iter();
        present.copied().any(|image| self.below[repository][image].contains(digest))
    }

    pub(super) fn is_sure(&self, repository: usize, digest: &str) -> bool {
        self.sure.contains(&(repository, digest.to_owned()))
    }

    pub(super) fn judge(&self, weather: &Weather, seen: &Seen) -> Verdict {
        match (&seen.asked, &seen.came) {
            (_, Came::Wrong(_)) => Verdict::Wrong("wrong bytes or headers"),
            (_, Came::Left) => Verdict::Right,
            (Asked::Stranger { .. }, Came::Right { .. }) => {
                Verdict::Wrong("a repository gave what it does not hold")
            }
            (Asked::Stranger { .. }, Came::Refused(_)) => Verdict::Excused("not its content"),
            (Asked::Tag { repository, tag }, came) => {
                self.judge_tag(weather, *repository, *tag, came)
            }
            (Asked::Content { repository, digest }, came) => {
                self.judge_content(weather, *repository, digest, came)
            }
            (Asked::Stranger { repository, .. }, came) => {
                judge_failure(weather, &[self.upstream_of[*repository]], false, came)
            }
        }
    }

    fn judge_tag(&self, weather: &Weather, repository: usize, tag: usize, came: &Came) -> Verdict {
        let timeline = &self.tags[repository][tag];
        let digest = match came {
            Came::Right { digest, .. } => Some(digest.as_str()),
            Came::Refused(ABSENT) => None,
            failure => {
                let floor = timeline.entries[timeline.floor].1.as_deref();
                // A tag that was gone meanwhile may be known to be gone, and is then not brought back.
                let gone = timeline.entries[timeline.floor..].iter().any(|(_, at)| at.is_none());
                let stored = !gone && floor.is_some_and(|digest| self.is_sure(repository, digest));
                let sources = [self.upstream_of[repository]];
                return judge_failure(weather, &sources, timeline.known && stored, failure);
            }
        };
        if timeline.place(digest).is_none() {
            return Verdict::Wrong("a tag went back, or points where it never did");
        }
        let since = self.now.saturating_sub(FRESH_MILLIS);
        let troubled = weather.troubled[self.upstream_of[repository]];
        let bridged = troubled || weather.restarting || weather.disk;
        if !bridged && !timeline.pointed_since(since, digest) {
            return Verdict::Wrong("a tag was answered beyond its freshness");
        }
        if digest.is_none() { Verdict::Excused("the tag is gone") } else { Verdict::Right }
    }

    fn judge_content(
        &self,
        weather: &Weather,
        repository: usize,
        digest: &str,
        came: &Came,
    ) -> Verdict {
        let sure = self.is_sure(repository, digest);
        match came {
            Came::Right { .. } => Verdict::Right,
            Came::Refused(ABSENT) if !self.holds(repository, digest) && !sure => {
                Verdict::Excused("deleted upstream")
            }
            failure => judge_failure(weather, &self.sources_of(digest), sure, failure),
        }
    }

    /// Upstreams with a repository that knows the digest: clients of all of them share one download, for better or worse.
    fn sources_of(&self, digest: &str) -> Vec<usize> {
        let knows = |below: &Vec<BTreeSet<String>>| below.iter().any(|one| one.contains(digest));
        let all = self.below.iter().zip(&self.upstream_of);
        all.filter(|(below, _)| knows(below)).map(|(_, upstream)| *upstream).collect()
    }

    /// Learns from a round what the product knows now. `stored` tells what lies on the disk; gives what should and does not.
    pub(super) fn learn(
        &mut self,
        weather: &Weather,
        all: &[Seen],
        stored: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let mut missing = BTreeMap::new();
        if weather.device {
            for seen in all {
                if let Asked::Content { digest, .. } = &seen.asked {
                    self.damaged(digest);
                } else if let Came::Right { digest, .. } = &seen.came {
                    self.damaged(digest);
                }
            }
        }
        if weather.restarting || weather.disk {
            return Vec::new();
        }
        for seen in all {
            let (repository, digest) = match (&seen.asked, &seen.came) {
                (
                    Asked::Content { repository, .. } | Asked::Tag { repository, .. },
                    Came::Right { digest, whole: true },
                ) => (*repository, digest),
                _ => continue,
            };
            if stored(digest) {
                self.sure.insert((repository, digest.clone()));
            } else {
                missing.insert(digest.clone(), seen.text.clone());
            }
        }
        let mut floors = BTreeMap::new();
        for seen in all {
            let Asked::Tag { repository, tag } = seen.asked else { continue };
            let timeline = &mut self.tags[repository][tag];
            let digest = match &seen.came {
                Came::Right { digest, .. } => Some(digest.as_str()),
                Came::Refused(ABSENT) => None,
                _ => continue,
            };
            if let Some(place) = timeline.place(digest) {
                let highest = floors.entry((repository, tag)).or_insert(place);
                *highest = place.max(*highest);
                timeline.known = true;
            }
        }
        for ((repository, tag), place) in floors {
            self.tags[repository][tag].floor = place;
        }
        missing.into_values().collect()
    }
}

/// A failure needs a reason. What is `stored` needs no upstream, so only a broken disk or a restart excuses it.
fn judge_failure(weather: &Weather, sources: &[usize], stored: bool, came: &Came) -> Verdict {
    let any = |bad: &[bool; UPSTREAMS]| sources.iter().any(|upstream| bad[*upstream]);
    if matches!(came, Came::Corrupt) {
        return if any(&weather.corrupt) {
            Verdict::Excused("corrupted upstream, never to a clean end of the whole")
        } else {
            Verdict::Wrong("wrong bytes that upstream did not send")
        };
    }
    if weather.restarting {
        return Verdict::Excused("a restart");
    }
    match came {
        _ if !any(&weather.troubled) => Verdict::Wrong("a failure without a reason"),
        _ if stored && !weather.disk => {
            Verdict::Wrong("an outage was not bridged by what is stored")
        }
        Came::Refused(status) if !OUTAGE.contains(status) => {
            Verdict::Wrong("an outage was told as something else")
        }
        Came::Nothing => Verdict::Wrong("no answer at all"),
        Came::Cut => Verdict::Excused("upstream in trouble, answer cut"),
        _ => Verdict::Excused("upstream in trouble, refused"),
    }
}
