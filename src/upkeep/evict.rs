//! Eviction: takes bytes that nothing keeps and nobody used for longest, until the limits are met again.
//!
//! What must hold:
//! - It takes bytes, never rows: what is known stays, and the next pull fetches the content again.
//! - Nothing that is young, in use or kept goes; `content` looks again, under the digest's lock, before it takes the bytes.
//! - What is kept is postponed, so each object is looked at once per round; a round ends, because nothing comes into its window.
//! - What is gone upstream goes in a second part of the round, if the first was not enough. An age is an age: it goes with the others.
//! - What cannot be taken is passed over; the others go, and the store is judged all the same.
//! - Small steps with rests between them; a limit that cannot be met closes the store for what it limits, and is said once.

use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::time::{Instant, sleep};

use super::collect::Collector;
use super::events::Fate;
use super::limits::{self, Aim, Figures, Goal, MAX_SIZE, MIN_FREE, UPSTREAM_MAX_SIZE};
use super::service::Upkeep;
use super::settings::{
    AFTER_FAILURE, CLOCK_LEEWAY, COLLECT_EVERY, EVICT_EVERY, EVICT_PAUSE, FAILURES_MAX, FIRST_LOOK,
    STEP_OBJECTS, STEP_PARALLEL, STEP_REST, STEP_WORK, Settings, UNNEEDED_AFTER,
};
use super::shortage::why;
use super::trust::Trust;
use crate::clock::Timestamp;
use crate::content::{
    Error, Evicting, Evidence, HOLDERS_MAX, KeepVerdict, Left, Look, Refused, verdict,
};
use crate::metadata::Idle;
use crate::oci::{Digest, RegistryName};

/// What was decided on one object, and why.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub(super) fate: Fate,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) since: Timestamp,
    pub(super) reason: String,
}

/// The way to one aim.
pub(super) struct Round<'a> {
    upkeep: &'a Upkeep,
    settings: &'a Settings,
    aim: Aim,
    /// What was used since then is left alone.
    before: Timestamp,
    /// What is gone upstream is put here, behind everything else of the window.
    last: Timestamp,
    /// Everything else has been looked at.
    second: bool,
    /// Objects that could not be taken.
    failures: usize,
    /// The first of them says why.
    failed: Option<Error>,
}

/// A step of a round.
pub(super) struct Step {
    pub(super) decisions: Vec<Decision>,
    /// Nothing more is to be done, or can be.
    pub(super) over: bool,
}

/// What a step makes of its page.
#[derive(Default)]
struct Sorted {
    victims: Vec<Idle>,
    /// To the end of the queue.
    kept: Vec<Digest>,
    /// To the end of the round.
    last: Vec<Digest>,
    /// Out of the round.
    failed: Vec<Digest>,
    decisions: Vec<Decision>,
}

impl<'a> Round<'a> {
    pub(super) fn new(upkeep: &'a Upkeep, settings: &'a Settings, aim: Aim) -> Self {
        let young = upkeep.clock().now().minus(settings.young_for);
        let before = match aim.goal {
            Goal::Unused { before } => before.min(young),
            Goal::Free { .. } | Goal::Stored { .. } | Goal::Quota { .. } => young,
        };
        let last = before.minus(Duration::from_millis(1));
        // An age asks for no order: what is gone upstream has had its time, too.
        let second = matches!(aim.goal, Goal::Unused { .. });
        Self { upkeep, settings, aim, before, last, second, failures: 0, failed: None }
    }

    /// Takes a small part of what has to go. What cannot be taken is passed over, and is the error with which the round ends.
    pub(super) async fn step(&mut self) -> Result<Step, Error> {
        let missing = figures(self.upkeep).await?.missing(&self.aim);
        if missing == Some(0) || self.failures >= FAILURES_MAX {
            return self.end();
        }
        let rows = self.upkeep.content().metadata();
        let page = rows.idle(self.before, self.aim.from.as_ref(), STEP_OBJECTS).await?;
        let Some(first) = page.first() else {
            return self.end();
        };
        self.second |= first.since >= self.last;
        let rules = rows.rules().epoch();
        let mut sorted = self.sort(page, missing.unwrap_or(u64::MAX)).await?;
        self.take(&mut sorted, rules).await;
        if !sorted.kept.is_empty() {
            // Out of the window also if the clock was set back since the round began, or the same would come again.
            rows.postpone(sorted.kept, self.upkeep.clock().now().max(self.before)).await?;
        }
        if !sorted.last.is_empty() {
            rows.postpone(sorted.last, self.last).await?;
        }
        if !sorted.failed.is_empty() {
            self.failures += sorted.failed.len();
            // The next round tries again.
            rows.postpone(sorted.failed, self.before).await?;
        }
        Ok(Step { decisions: sorted.decisions, over: false })
    }

    fn end(&mut self) -> Result<Step, Error> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(Step { decisions: Vec::new(), over: true }),
        }
    }

    /// Looks at objects until enough may go, or the time of a step is over.
    async fn sort(&self, page: Vec<Idle>, mut missing: u64) -> Result<Sorted, Error> {
        let (begun, mut sorted) = (Instant::now(), Sorted::default());
        for object in page {
            match self.verdict(&object.digest).await? {
                KeepVerdict::Kept(hold) => {
                    sorted.kept.push(object.digest);
                    sorted.decisions.push(decided(&object, Fate::Kept, hold.to_string()));
                }
                KeepVerdict::Last if !self.second => sorted.last.push(object.digest),
                KeepVerdict::Last | KeepVerdict::Free => {
                    missing = missing.saturating_sub(object.size);
                    sorted.victims.push(object);
                }
            }
            if missing == 0 || begun.elapsed() >= STEP_WORK {
                break;
            }
        }
        Ok(sorted)
    }

    async fn verdict(&self, digest: &Digest) -> Result<KeepVerdict, Error> {
        let rows = self.upkeep.content().metadata();
        let rules = rows.rules();
        let holders = rows.holders(digest, HOLDERS_MAX).await?;
        Ok(verdict(&holders, &rules, &self.settings.keep, self.upkeep.clock().now()))
    }

    /// Takes the bytes.
    async fn take(&mut self, sorted: &mut Sorted, rules: u64) {
        let content = self.upkeep.content();
        let limit = self.aim.goal.limit(self.aim.from.as_ref());
        let leaving = std::mem::take(&mut sorted.victims).into_iter().map(|object| async move {
            let evidence = Evidence { since: object.since, rules };
            let left = content.evict(&object.digest, evidence).await;
            (object, left)
        });
        let mut leaving = pin!(stream::iter(leaving).buffer_unordered(STEP_PARALLEL));
        while let Some((object, left)) = leaving.next().await {
            match left {
                Ok(Left::Gone(bytes)) => {
                    self.upkeep.metrics().evicted(limit, bytes);
                    sorted.decisions.push(decided(&object, Fate::Evicted, limit.to_owned()));
                }
                Ok(Left::Stays) => {
                    sorted.kept.push(object.digest);
                    let reason = "it is in use, or was used just now".to_owned();
                    sorted.decisions.push(decided(&object, Fate::Kept, reason));
                }
                Ok(Left::NotHere) => {}
                Err(error) => {
                    self.upkeep.metrics().stuck();
                    tracing::warn!(digest = %object.digest, %error, "stored content could not be evicted");
                    sorted.failed.push(object.digest);
                    self.failed.get_or_insert(error);
                }
            }
        }
    }

    /// What the first steps would do, without doing it: at most `limit` objects are looked at.
    pub(super) async fn rehearse(&self, limit: u32) -> Result<Vec<Decision>, Error> {
        let mut missing = figures(self.upkeep).await?.missing(&self.aim).unwrap_or(u64::MAX);
        let rows = self.upkeep.content().metadata();
        let page = rows.idle(self.before, self.aim.from.as_ref(), limit).await?;
        let (mut decisions, mut last) = (Vec::new(), Vec::new());
        let word = self.aim.goal.limit(self.aim.from.as_ref());
        for object in page {
            if missing == 0 {
                break;
            }
            match self.verdict(&object.digest).await? {
                KeepVerdict::Kept(hold) => {
                    decisions.push(decided(&object, Fate::Kept, hold.to_string()));
                }
                KeepVerdict::Last if !self.second => last.push(object),
                KeepVerdict::Last | KeepVerdict::Free => {
                    missing = missing.saturating_sub(object.size);
                    decisions.push(decided(&object, Fate::Evicted, word.to_owned()));
                }
            }
        }
        for object in last {
            let (fate, reason) = if missing == 0 {
                (Fate::Kept, "it is gone upstream, and others are enough".to_owned())
            } else {
                (Fate::Evicted, format!("{word}, although it is gone upstream"))
            };
            missing = missing.saturating_sub(object.size);
            decisions.push(decided(&object, fate, reason));
        }
        Ok(decisions)
    }
}

fn decided(object: &Idle, fate: Fate, reason: String) -> Decision {
    let Idle { digest, size, since } = *object;
    Decision { fate, digest, size, since, reason }
}

/// What is stored and free now.
pub(super) async fn figures(upkeep: &Upkeep) -> Result<Figures, Error> {
    let content = upkeep.content();
    let by_upstream = content.metadata().usage_by_upstream().await?;
    Ok(Figures { room: content.room(), by_upstream })
}

/// The task that looks at the limits, whenever room is short and now and then.
pub(super) struct Evictor {
    upkeep: Upkeep,
    evicting: Evicting,
    /// Limits that could not be met: the whole store, and single upstreams.
    closed_all: bool,
    closed: BTreeSet<RegistryName>,
    /// `min_free` cannot be met.
    short: bool,
    /// It was said that the disk has a limit of its own.
    is_quota_told: bool,
    collected: Option<Timestamp>,
    /// The look for rows that nothing needs goes on after this one.
    stray: i64,
    trust: Trust,
}

impl Evictor {
    pub(super) fn new(upkeep: Upkeep) -> Self {
        let evicting = upkeep.content().evicting();
        Self {
            upkeep,
            evicting,
            closed_all: false,
            closed: BTreeSet::new(),
            short: false,
            is_quota_told: false,
            collected: None,
            stray: 0,
            trust: Trust::default(),
        }
    }

    /// Works until the program stops.
    pub(super) async fn run(mut self) {
        let stop = self.upkeep.shutdown().clone();
        self.mark(&Figures::default());
        let mut pause = FIRST_LOOK;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.evicting.pressed() => {}
                () = self.upkeep.eviction_woken() => {}
                () = sleep(pause) => {}
            }
            let look = self.evicting.look();
            pause = tokio::select! {
                () = stop.cancelled() => return,
                pause = self.look(look) => pause,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(EVICT_PAUSE) => {}
            }
        }
    }

    /// Does what is due; answers after which time something more may be.
    async fn look(&mut self, mut look: Look) -> Duration {
        // Whatever else is due: a clock that is set is to be seen.
        self.trust.look(self.upkeep.content().metadata(), self.upkeep.clock().now()).await;
        let evicted = self.evict(&look).await;
        if look.is_awaited() {
            let why = self.explain(&evicted, look.refused()).await;
            look.explain(why);
        }
        drop(look);
        let evicted = evicted.map(drop);
        let collected = self.collect().await;
        let forgotten = self.forget_strays().await;
        match evicted.and(collected).and(forgotten) {
            Ok(()) => EVICT_EVERY,
            Err(error) => {
                tracing::warn!(%error, "eviction or collection failed; it goes on later");
                AFTER_FAILURE
            }
        }
    }

    /// Answers how many objects went.
    async fn evict(&mut self, look: &Look) -> Result<u64, Error> {
        let settings = self.upkeep.settings();
        let found = figures(&self.upkeep).await?;
        self.mark(&found);
        // Whoever has the bytes in his hands claims nothing.
        let extra = limits::extra(found.room, look.refused()).max(look.awaited());
        let mut aims = found.aims(
            &settings,
            (self.closed_all, &self.closed),
            extra,
            self.upkeep.clock().now(),
        );
        let quota = found.under_quota(look.refused());
        if quota.is_some() && !self.is_quota_told {
            self.is_quota_told = true;
            tracing::warn!(
                "the disk takes no more although it shows room, as under a quota; as much goes as was refused; max_size below the quota keeps it from filling"
            );
        }
        aims.extend(quota);
        // Offline nothing goes, so there is nothing to look at.
        let reached =
            if self.upkeep.asks_nobody() { Ok(0) } else { self.reach(&settings, aims).await };
        // What failed does not change that a limit is met, or is not.
        let judged = self.judge(&settings).await;
        let objects = reached?;
        judged.map(|()| objects)
    }

    /// Why not more could go, for those who wait for room.
    async fn explain(&self, evicted: &Result<u64, Error>, refused: Option<Refused>) -> String {
        let most = || limits::most(self.upkeep.content().room(), refused);
        let why = match evicted {
            Ok(0) if let Some(most) = most() => Ok(format!(
                "room is made for {most} bytes at most for those who wait at the same time"
            )),
            Ok(0) => why(&self.upkeep, &self.upkeep.settings()).await,
            Ok(_) => Ok("what went was not enough".to_owned()),
            Err(error) => Err(error.clone()),
        };
        why.unwrap_or_else(|error| format!("it failed ({error})"))
    }

    /// Goes round for each of the aims, and answers the first failure afterwards, else how many objects went.
    async fn reach(&self, settings: &Settings, aims: Vec<Aim>) -> Result<u64, Error> {
        let (mut objects, mut bytes, mut outcome) = (0_u64, 0_u64, Ok(()));
        for aim in aims {
            let mut round = Round::new(&self.upkeep, settings, aim);
            loop {
                let step = match round.step().await {
                    Ok(step) => step,
                    Err(error) => {
                        outcome = outcome.and(Err(error));
                        break;
                    }
                };
                let gone = step.decisions.iter().filter(|one| one.fate == Fate::Evicted);
                for one in gone {
                    objects += 1;
                    bytes += one.size;
                }
                if step.over {
                    break;
                }
                sleep(STEP_REST).await;
            }
        }
        if objects > 0 {
            tracing::info!(objects, bytes, "content that was not used for longest was evicted");
        }
        outcome.map(|()| objects)
    }

    /// Closes the store for what exceeds its limit although everything that may go has gone, and opens it again.
    async fn judge(&mut self, settings: &Settings) -> Result<(), Error> {
        let found = figures(&self.upkeep).await?;
        let full_all =
            settings.max_size.is_some_and(|limit| found.is_full(None, limit, self.closed_all));
        let is_full = |name: &&RegistryName| {
            let limit = settings.limits(name).and_then(|limits| limits.max_size);
            limit.is_some_and(|limit| found.is_full(Some(name), limit, self.closed.contains(*name)))
        };
        let names = found.by_upstream.iter().filter_map(|(name, _)| name.as_ref());
        let full: BTreeSet<RegistryName> = names.filter(is_full).cloned().collect();
        let short = found.room.free < found.room.min_free;
        say(MAX_SIZE, "", self.closed_all, full_all);
        say(MIN_FREE, "", self.short, short);
        for name in full.union(&self.closed) {
            say(UPSTREAM_MAX_SIZE, name.as_str(), self.closed.contains(name), full.contains(name));
        }
        let metrics = self.upkeep.metrics();
        metrics.unmet(MAX_SIZE, usize::from(full_all));
        metrics.unmet(MIN_FREE, usize::from(short));
        metrics.unmet(UPSTREAM_MAX_SIZE, full.len());
        self.upkeep.content().set_closed(full_all, full.iter().cloned().collect());
        (self.closed_all, self.closed, self.short) = (full_all, full, short);
        Ok(())
    }

    /// Tells `content` from where on a commit is to wake this task.
    fn mark(&self, found: &Figures) {
        let settings = self.upkeep.settings();
        let known = found.by_upstream.iter().filter_map(|(name, _)| name.clone());
        let named = settings.upstreams.iter().map(|limits| limits.name.clone());
        let names: BTreeSet<RegistryName> = known.chain(named).collect();
        let mark = |name: RegistryName| {
            let limit = settings.limits(&name)?.max_size?;
            Some((name, limit))
        };
        let by_upstream = names.into_iter().filter_map(mark).collect();
        self.upkeep.content().set_marks(settings.max_size, by_upstream);
    }

    /// Collects what was deleted, if it is time.
    async fn collect(&mut self) -> Result<(), Error> {
        let now = self.upkeep.clock().now();
        // A clock that was set back must not put it off for ever.
        let due = |last: Timestamp| now.since(last) >= COLLECT_EVERY || last > now;
        if !self.collected.is_none_or(due) {
            return Ok(());
        }
        self.collected = Some(now);
        if self.trust.is_believed(now) {
            self.put_back().await?;
        }
        let settings = self.upkeep.settings();
        let mut collector = Collector::new(&self.upkeep, &settings, false);
        let (mut objects, mut bytes) = (0_u64, 0_u64);
        while let Some(decisions) = collector.step().await? {
            for one in decisions.iter().filter(|one| one.fate == Fate::Collected) {
                objects += 1;
                bytes += one.size;
            }
            sleep(STEP_REST).await;
        }
        if objects > 0 {
            tracing::info!(objects, bytes, "content that nothing needs any more was collected");
        }
        Ok(())
    }

    /// A clock that was far ahead once left times that no window reaches: they begin to count now.
    async fn put_back(&self) -> Result<(), Error> {
        let ahead = || self.upkeep.clock().now().plus(CLOCK_LEEWAY);
        let mut any = false;
        while self.upkeep.content().metadata().put_back(ahead()).await? {
            any = true;
            sleep(STEP_REST).await;
        }
        if any {
            tracing::warn!(
                "content was dated in the future, as by a clock that was wrong; it counts as used, or deleted, just now"
            );
        }
        Ok(())
    }

    /// Forgets rows of content that is not here and that nothing needs, a slice of all rows at a time.
    async fn forget_strays(&mut self) -> Result<(), Error> {
        let rows = self.upkeep.content().metadata();
        let before = self.upkeep.clock().now().minus(UNNEEDED_AFTER);
        let (strays, next) = rows.strays(self.stray, before).await?;
        for stray in strays {
            if rows.forget(&stray).await? {
                self.upkeep.metrics().collected(0);
            }
        }
        self.stray = next.unwrap_or(0);
        Ok(())
    }
}

/// Says once that a limit cannot be met, and once that it can again.
fn say(limit: &'static str, upstream: &str, was: bool, is: bool) {
    if is && !was {
        tracing::warn!(
            limit,
            upstream,
            "a limit cannot be met, because everything that is left is young, in use or kept; what is pulled passes through without being stored"
        );
    } else if was && !is {
        tracing::info!(limit, upstream, "a limit is met again; what is pulled is stored");
    }
}
