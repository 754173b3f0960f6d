//! Carries out a plan, round by round, and keeps the books.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::watch;

use crate::support::client::Client;
use crate::support::fake::{Fake, Reply, Rule, Then, When};
use crate::support::product::{Fault, FaultyDisk, Plan as DiskPlan, RealDisk};
use crate::support::pull::{describes_blob, describes_manifest, pull};
use crate::support::world::World;

use super::crowd::Visitor;
use super::model::{Model, Seen, Verdict, Weather};
use super::plan::{Damage, Event, How, IMAGES, Place, Plan, Round, TAGS, UPSTREAMS};
use super::scene::{Scene, content_of, tag_name};

const SEED: u64 = 20_261_123;
/// Requests of the clients, not counting what a whole pull adds.
const OPERATIONS: usize = 1600;
/// After a round with troubles so much time passes that nothing of them is remembered but that an upstream did not answer.
const A_WHILE: Duration = Duration::from_secs(60);
/// Anonymous memory of this process, which is the crowd, the upstreams and the product together, and other tests beside it.
const PEAK_BYTES: u64 = 1 << 30;

fn number_from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[derive(Default)]
struct Figures {
    requests: u64,
    right: u64,
    excused: BTreeMap<&'static str, u64>,
    faults: BTreeMap<String, u64>,
    served_bytes: f64,
    peak: u64,
}

impl Figures {
    fn fault(&mut self, kind: &str, count: u64) {
        *self.faults.entry(kind.to_owned()).or_default() += count;
    }

    fn measure(&mut self) {
        let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse().ok());
        self.peak = self.peak.max(kib.map_or(0, |kib: u64| kib * 1024));
    }
}

struct Soak {
    scene: Scene,
    world: World,
    disk: Arc<FaultyDisk>,
    model: Model,
    figures: Figures,
    /// What happened so far, for the message of a failure.
    history: String,
}

/// The events of one round that end with it.
#[derive(Default)]
struct Running {
    rules: Vec<(String, Fake, Rule)>,
    stopped: Vec<Fake>,
    restart_after: Option<u64>,
}

fn rule_of(upstream: usize, place: Place, how: How, times: u64) -> (When, Then) {
    let when = match (place, upstream) {
        // The first upstream has neither tokens nor redirects.
        (Place::Manifest, _) | (Place::Token, 0) => When::manifest(),
        (Place::Blob, _) | (Place::Store, 0) => When::blob().get(),
        (Place::Store, _) => When::store(),
        (Place::Token, _) => When::token().early(),
    };
    let then = match how {
        How::Reset(at) => Then::reset_at(at),
        How::Close(at) => Then::close_at(at),
        How::Short(at) => Then::chunked_end_at(at),
        How::Corrupt(at) => Then::corrupt_at(at),
        How::Stall(at) => Then::stall_at(at),
        How::Hang => Then::Hang,
        How::Drop => Then::Drop { reset: false },
        How::Status(status) => Then::status(status),
        How::Limited => Then::limited(Some("1")),
        How::Html => Then::reply(Reply::html(200)),
    };
    (when.times(times), then)
}

/// The word of an enum's value without what is in it.
fn word(value: impl std::fmt::Debug) -> String {
    let text = format!("{value:?}");
    text.split(['(', ' ', '{']).next().unwrap_or_default().to_lowercase()
}

impl Soak {
    async fn new(seed: u64) -> Self {
        let scene = Scene::new().await;
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let world = scene.world().disk(&disk).start().await;
        let model = Model::new(&scene);
        let history = format!("seed {seed}; configuration:\n{}\n", world.configuration());
        Self { scene, world, disk, model, figures: Figures::default(), history }
    }

    fn set_tag(&mut self, repository: usize, tag: usize, digest: Option<&str>) {
        let name = &self.scene.repositories[repository].name;
        match digest {
            Some(digest) => self.scene.fake(repository).tag(name, tag_name(tag), digest),
            None => self.scene.fake(repository).untag(name, tag_name(tag)),
        }
        self.model.tag_set(repository, tag, digest);
    }

    fn build(&mut self, number: usize) {
        let repository = &mut self.scene.repositories[number];
        let images = repository.build();
        self.model.built(number, repository);
        images.for_each(|image| self.push_number(number, image));
        for tag in 0..TAGS {
            let digest = self.scene.repositories[number].tagged(tag).digest.clone();
            self.set_tag(number, tag, Some(&digest));
        }
    }

    fn push(&mut self, repository: usize, image: usize) {
        self.push_number(repository, self.scene.repositories[repository].pick(image));
    }

    fn push_number(&mut self, repository: usize, image: usize) {
        let own = &self.scene.repositories[repository];
        self.scene.fake(repository).push_untagged(&own.name, &own.images[image]);
        self.model.pushed(repository, image);
    }

    fn delete(&mut self, repository: usize, image: usize) {
        let image = self.scene.repositories[repository].pick(image);
        let digest = self.scene.repositories[repository].images[image].digest.clone();
        for tag in 0..TAGS {
            if self.model.points_at(repository, tag) == Some(&digest) {
                self.set_tag(repository, tag, None);
            }
        }
        let others = self.model.deleted(repository, image);
        self.scene.delete(repository, image, &others);
    }

    /// Changes a stored file as somebody without care would: in place, or by removing it.
    fn damage(&mut self, repository: usize, image: usize, part: usize, how: Damage) {
        let own = &self.scene.repositories[repository];
        let all = content_of(&own.images[own.pick(image)]);
        let (digest, data) = &all[part % all.len()];
        let file = self.world.blob_file(digest);
        let Ok(open) = fs::OpenOptions::new().read(true).write(true).open(&file) else { return };
        self.model.damaged(digest);
        self.figures.fault(&format!("damage: {}", word(how)), 1);
        let middle = data.len() / 2;
        match how {
            Damage::Flip if data.len() > 0 => {
                let mut byte = [0];
                open.read_exact_at(&mut byte, middle).expect("it is stored");
                open.write_all_at(&[!byte[0]], middle).expect("it is ours");
            }
            Damage::Shorten if data.len() > 0 => open.set_len(middle).expect("it is ours"),
            _ => fs::remove_file(&file).expect("it is ours"),
        }
    }

    async fn apply(&mut self, event: &Event, weather: &mut Weather, running: &mut Running) {
        match *event {
            Event::Trouble { upstream, place, how, times } => {
                let (when, then) = rule_of(upstream, place, how, times);
                let fake = self.scene.fakes[upstream].clone();
                let rule = fake.rule(when, then);
                running.rules.push((format!("{}: {}", word(place), word(how)), fake, rule));
                weather.troubled[upstream] = true;
                weather.corrupt[upstream] |= matches!(how, How::Corrupt(_));
            }
            Event::Stop { upstream } => {
                let fake = self.scene.fakes[upstream].clone();
                fake.stop().await;
                running.stopped.push(fake);
                weather.troubled[upstream] = true;
                self.figures.fault("upstream stopped", 1);
            }
            Event::Build { repository } => self.build(repository),
            Event::ExpireTokens { upstream } => self.scene.fakes[upstream].expire_tokens(),
            Event::ExpireUrls { upstream } => self.scene.fakes[upstream].expire_urls(),
            Event::Move { repository, tag, image } => {
                let own = &self.scene.repositories[repository];
                let image = own.pick(image);
                if self.model.has_image(repository, image) {
                    let digest = own.images[image].digest.clone();
                    self.set_tag(repository, tag, Some(&digest));
                }
            }
            Event::Untag { repository, tag } => self.set_tag(repository, tag, None),
            Event::Delete { repository, image } => self.delete(repository, image),
            Event::Push { repository, image } => self.push(repository, image),
            Event::Disk { at, lasting, fault } => {
                self.disk.fail(DiskPlan { at, lasting, fault, only: None });
                weather.disk = true;
                weather.device = fault == Fault::Io;
            }
            Event::Restart { after } => {
                running.restart_after = Some(after);
                weather.restarting = true;
                self.figures.fault("restart", 1);
            }
            Event::Pass { seconds } => self.pass(Duration::from_secs(seconds)).await,
            Event::Damage { repository, image, part, how } => {
                self.damage(repository, image, part, how);
            }
        }
    }

    async fn pass(&mut self, duration: Duration) {
        self.world.pass(duration).await;
        self.model.now += u64::try_from(duration.as_millis()).expect("less than an age");
    }

    async fn count_served(&mut self) {
        let metrics = self.world.metrics().await;
        self.figures.served_bytes += metrics.sum("roadstead_served_bytes_total", &[]);
    }

    /// The crowd, with a restart in the middle if there is one.
    async fn crowd(&mut self, round: &Round, restart_after: Option<u64>) -> Vec<Seen> {
        if restart_after.is_some() {
            self.count_served().await;
        }
        let (answered, mut counted) = watch::channel(0);
        let (moves, server) = watch::channel(self.world.client());
        let scene = &self.scene;
        let visits = round.clients.iter().map(|asks| {
            let (server, answered) = (server.clone(), &answered);
            Visitor { server, scene, answered, seen: Vec::new() }.visit(asks)
        });
        let crowd = async {
            let all = join_all(visits).await;
            answered.send_modify(|count| *count = u64::MAX);
            all
        };
        let restart = async {
            if let Some(after) = restart_after {
                counted.wait_for(|count| *count >= after).await.expect("the crowd counts");
                self.disk.heal();
                self.world.restart().await;
                moves.send_replace(self.world.client());
            }
        };
        let (all, ()) = tokio::join!(crowd, restart);
        all.into_iter().flatten().collect()
    }

    async fn round(&mut self, number: usize, round: &Round) {
        writeln!(self.history, "round {number}: {:?}", round.events).expect("a String grows");
        let (mut weather, mut running) = (Weather::default(), Running::default());
        for event in &round.events {
            self.apply(event, &mut weather, &mut running).await;
        }
        let all = self.crowd(round, running.restart_after).await;
        for (kind, fake, rule) in &running.rules {
            fake.remove(rule);
            self.figures.fault(kind, rule.hits());
        }
        for fake in &running.stopped {
            fake.switch_on().await;
        }
        if weather.disk {
            self.figures.fault("disk", self.disk.injected());
        }
        self.world.downloads_over().await;
        self.disk.heal();
        self.judge(&weather, &all);
        self.figures.measure();
        if weather.disk || weather.restarting || weather.troubled != [false; UPSTREAMS] {
            self.pass(A_WHILE).await;
            self.ask_each_once().await;
        }
    }

    /// An upstream that was left alone is tried by one question, and the others do not wait for it: this is the one.
    async fn ask_each_once(&self) {
        let client = self.world.client();
        for repository in &self.scene.repositories[..UPSTREAMS] {
            client.manifest(&repository.asked(), "absent").expect(404).await;
        }
    }

    fn judge(&mut self, weather: &Weather, all: &[Seen]) {
        let mut wrong = Vec::new();
        for seen in all {
            self.figures.requests += 1;
            match self.model.judge(weather, seen) {
                Verdict::Right => self.figures.right += 1,
                Verdict::Excused(reason) => {
                    *self.figures.excused.entry(reason).or_default() += 1;
                }
                Verdict::Wrong(why) => wrong.push(format!("{why}: {seen:?}")),
            }
        }
        let missing = self.model.learn(weather, all, |digest| self.world.has_stored(digest));
        wrong.extend(missing.iter().map(|text| format!("served whole and not stored: {text}")));
        if wrong.is_empty() {
            return;
        }
        let mut requests = String::new();
        for fake in &self.scene.fakes {
            let log = fake.log();
            let last = log.0.len().saturating_sub(60);
            log.0[last..]
                .iter()
                .for_each(|entry| requests = format!("{requests}{}\n", entry.line()));
        }
        panic!(
            "{}\nat the upstreams:\n{requests}\n{weather:?}\nwrong:\n{}",
            self.history,
            wrong.join("\n")
        );
    }

    /// Every image of so many builds by tag and by digest, whole and in ranges, HEAD as GET.
    async fn everything_is_right(&self, builds: usize) {
        let client = self.world.client();
        for repository in &self.scene.repositories {
            let name = repository.asked();
            for tag in 0..TAGS {
                pull(&client, &name, tag_name(tag), repository.tagged(tag)).await;
            }
            let first = repository.images.len().saturating_sub(builds * IMAGES);
            for image in &repository.images[first..] {
                pull(&client, &name, &image.digest, image).await;
                for manifest in image.manifests() {
                    let head = client.manifest_head(&name, &manifest.digest).expect(200).await;
                    describes_manifest(&head, manifest);
                }
                for blob in image.all_blobs() {
                    let head = client.blob_head(&name, &blob.digest).expect(200).await;
                    describes_blob(&head, blob);
                    if blob.len() > 2 {
                        let (from, to) = (blob.len() / 3, blob.len() - 1);
                        let part = client.blob(&name, &blob.digest).range(&format!("{from}-"));
                        let part = part.expect(206).await;
                        assert!(
                            part.body == blob.data.slice(from..to + 1),
                            "a part has other bytes"
                        );
                    }
                }
            }
        }
    }

    /// The second phase.
    async fn calm(&mut self) {
        self.scene.push_all();
        self.pass(Duration::from_secs(3600)).await;
        self.everything_is_right(usize::MAX / IMAGES).await;
        self.world.downloads_over().await;
        for fake in &self.scene.fakes {
            fake.stop().await;
        }
        self.everything_is_right(2).await;
        // Also what is not fresh any more, and after a restart.
        self.pass(Duration::from_secs(600)).await;
        self.count_served().await;
        self.world.restart().await;
        self.everything_is_right(1).await;
        self.count_served().await;
    }

    fn report(&self, seed: u64) {
        let Figures { requests, right, excused, faults, served_bytes, peak } = &self.figures;
        let upstream: u64 = self.scene.fakes.iter().map(|fake| fake.log().sent()).sum();
        let injected: u64 = faults.values().sum();
        println!(
            "soak, seed {seed}: {requests} requests in the storm, {right} right, 0 wrong, excused {excused:?}"
        );
        println!("{injected} faults: {faults:?}");
        println!(
            "{upstream} bytes from the upstreams for {served_bytes} to the clients; anonymous memory of the \
             whole test process at most {:.1} MiB",
            *peak as f64 / f64::from(1 << 20)
        );
        assert!(injected > 20, "a storm needs faults");
        assert!(*peak < PEAK_BYTES, "{peak} bytes of anonymous memory");
    }
}

#[tokio::test]
async fn storm_and_calm() {
    let seed = number_from_environment("SOAK_SEED").unwrap_or(SEED);
    let operations = number_from_environment("SOAK_OPERATIONS")
        .map_or(OPERATIONS, |count| usize::try_from(count).expect("it fits"));
    let plan = Plan::of(seed, operations);
    let mut soak = Soak::new(seed).await;
    let began = Instant::now();
    for (number, round) in plan.rounds.iter().enumerate() {
        soak.round(number, round).await;
    }
    let storm = began.elapsed();
    soak.calm().await;
    println!("storm {storm:?}, calm {:?}", began.elapsed() - storm);
    soak.report(seed);
    soak.world.finish().await;
}

#[test]
fn a_plan_depends_on_its_seed_alone() {
    let text = |seed| format!("{:?}", Plan::of(seed, 400));
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}
