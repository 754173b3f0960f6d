//! The fake upstream: a registry, its token service, its blob store and a stranger's host, in this process.
//!
//! Everything can be changed while it runs: switches (`auth`, `switch`), rules (`rule`), content (`push`, `tag`, `untag`, ...), and
//! the whole can be stopped and started again on the same ports. Everything that is asked is logged in order.
//! It speaks plain HTTP unless built with TLS. It knows nothing of the product.

mod auth;
mod http2;
mod log;
mod message;
mod net;
mod profiles;
mod registry;
mod rules;
mod state;
mod tls;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::content::{Blob, Image};
use super::gate::within;
pub use auth::{Anonymous, Auth, Hidden, Mode, Realm, Rejection, Scope, Style, TokenBody};
pub use log::{End, Entry, Kind, Log, Origin};
pub use message::{Edit, Fault, Framing, Reply};
pub use profiles::Profile;
pub use rules::{Rule, Then, When};
pub use state::{
    AcceptMode, BlobHead, Delivery, EtagForm, LinkForm, LocationForm, RangeMode, ReferrersMode,
    StoreAuth, Switches,
};
pub use tls::ca_pem;

use log::Target;
use message::Req;
use net::Port;
use state::{Addresses, State, Stored};

/// A handle on the fake; clones are the same fake. It ends with the test's runtime.
#[derive(Clone)]
pub struct Fake(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    ports: Vec<(Origin, Arc<Port>)>,
    tls: Option<TlsAcceptor>,
    run: Mutex<Run>,
    changed: watch::Sender<u64>,
}

/// One period between start and stop.
#[derive(Default)]
struct Run {
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What the wire is to do with a request.
enum Plan {
    Reply(Box<Reply>),
    Drop { reset: bool },
    Raw(Bytes),
    Hang,
}

impl Fake {
    /// Plain HTTP, no authentication, no content.
    pub async fn start() -> Self {
        Self::launch(None).await
    }

    /// The same over TLS, with the test CA; `h2` says whether HTTP/2 is offered.
    pub async fn start_tls(h2: bool) -> Self {
        Self::launch(Some(tls::acceptor(h2))).await
    }

    /// With all the switches of a real registry's profile.
    pub async fn profile(profile: Profile) -> Self {
        let fake = Self::start().await;
        profile.apply(&fake);
        fake
    }

    async fn launch(tls: Option<TlsAcceptor>) -> Self {
        let hosts = [
            (Origin::Registry, [127, 0, 0, 1]),
            (Origin::Realm, [127, 0, 0, 1]),
            (Origin::Cdn, [127, 0, 0, 3]),
            (Origin::Foreign, [127, 0, 0, 2]),
        ];
        let reserve = |(origin, host)| {
            (origin, Arc::new(Port::reserve(host).expect("a loopback port is free")))
        };
        let ports: Vec<(Origin, Arc<Port>)> = hosts.into_iter().map(reserve).collect();
        let list = ports.iter().map(|(origin, port)| (*origin, port.address)).collect();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let inner = Inner {
            state: Mutex::new(State::new(Addresses { scheme, list })),
            ports,
            tls,
            run: Mutex::default(),
            changed: watch::Sender::new(0),
        };
        let fake = Self(Arc::new(inner));
        fake.switch_on().await;
        fake
    }

    /// Closes the listeners and every connection, and waits until that is done. Connections are refused from then on.
    pub async fn stop(&self) {
        let (stop, tasks) = {
            let run = self.run();
            (run.stop.clone(), run.tasks.clone())
        };
        stop.cancel();
        tasks.close();
        within("the fake to stop", tasks.wait()).await;
    }

    /// Listens again, on the same ports.
    pub async fn switch_on(&self) {
        let run = Run::default();
        let stop = run.stop.clone();
        *self.run() = run;
        net::listen_all(self, &self.0.ports, self.0.tls.as_ref(), &stop)
            .expect("the ports were reserved");
        tokio::task::yield_now().await;
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        self.0.run.lock().expect("no holder of this lock panics")
    }

    fn tracker(&self) -> TaskTracker {
        self.run().tasks.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no holder of this lock panics")
    }

    fn change(&self) {
        self.0.changed.send_modify(|count| *count += 1);
    }

    pub fn address(&self, origin: Origin) -> SocketAddr {
        self.state().addresses.of(origin)
    }

    /// The registry as an upstream's `url`.
    pub fn url(&self) -> String {
        self.url_at(Origin::Registry)
    }

    pub fn url_at(&self, origin: Origin) -> String {
        self.state().addresses.url(origin, "")
    }

    pub fn is_tls(&self) -> bool {
        self.0.tls.is_some()
    }
}

/// Content and switches.
impl Fake {
    /// Stores an image with everything below it, and tags it.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        self.push_untagged(repository, image);
        self.tag(repository, tag, &image.digest);
    }

    pub fn push_untagged(&self, repository: &str, image: &Image) {
        let mut state = self.state();
        let held = state.repositories.entry(repository.to_owned()).or_default();
        for image in image.manifests() {
            let first_child = image.children.first().map(|child| child.digest.clone());
            let (media_type, bytes) = (image.media_type.clone(), image.bytes.clone());
            let stored = Stored { media_type, bytes, first_child };
            held.manifests.insert(image.digest.clone(), stored);
            let own = image.blobs.iter().filter(|blob| blob.urls.is_empty());
            held.blobs.extend(own.map(|blob| (blob.digest.clone(), blob.clone())));
            if let Some(subject) = &image.subject {
                let list = held.referrers.entry(subject.clone()).or_default();
                list.push(image.descriptor());
            }
        }
    }

    /// A blob that no manifest names.
    pub fn push_blob(&self, repository: &str, blob: &Blob) {
        let mut state = self.state();
        let held = state.repositories.entry(repository.to_owned()).or_default();
        held.blobs.insert(blob.digest.clone(), blob.clone());
    }

    /// Moves a tag, or makes it.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) {
        let mut state = self.state();
        let held = state.repositories.entry(repository.to_owned()).or_default();
        held.tags.insert(tag.to_owned(), digest.to_owned());
    }

    pub fn untag(&self, repository: &str, tag: &str) {
        self.edit(repository, |held| drop(held.tags.remove(tag)));
    }

    pub fn delete_blob(&self, repository: &str, digest: &str) {
        self.edit(repository, |held| drop(held.blobs.remove(digest)));
    }

    pub fn delete_manifest(&self, repository: &str, digest: &str) {
        self.edit(repository, |held| drop(held.manifests.remove(digest)));
    }

    pub fn delete_repository(&self, repository: &str) {
        self.state().repositories.remove(repository);
    }

    /// Only these users may read it from now on.
    pub fn private(&self, repository: &str, readers: &[&str]) {
        let readers = readers.iter().map(|user| (*user).to_owned()).collect();
        self.edit(repository, |held| held.readers = Some(readers));
    }

    pub fn public(&self, repository: &str) {
        self.edit(repository, |held| held.readers = None);
    }

    fn edit(&self, repository: &str, change: impl FnOnce(&mut state::Repository)) {
        let mut state = self.state();
        change(state.repositories.get_mut(repository).expect("the test pushed to it before"));
    }

    pub fn auth(&self, change: impl FnOnce(&mut Auth)) {
        change(&mut self.state().auth);
    }

    pub fn switch(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.state().switches);
    }

    /// Every token handed out so far is worth nothing any more.
    pub fn expire_tokens(&self) {
        self.state().tokens.iter_mut().for_each(|token| token.dead = true);
    }

    /// Every URL signed so far is worth nothing any more.
    pub fn expire_urls(&self) {
        self.state().signed.iter_mut().for_each(|signed| signed.dead = true);
    }

    pub fn rule(&self, when: When, then: Then) -> Rule {
        let rule = Rule::new(when, then);
        self.state().rules.push(rule.clone());
        rule
    }

    pub fn remove(&self, rule: &Rule) {
        self.state().rules.retain(|other| !other.is(rule));
    }

    /// Passwords, tokens and signatures that must appear in no log, no answer and no file.
    pub fn secrets(&self) -> Vec<String> {
        let state = self.state();
        let basic =
            |(user, password): &(String, String)| STANDARD.encode(format!("{user}:{password}"));
        let encoded = state.auth.users.iter().map(basic);
        let passwords =
            state.auth.users.iter().map(|(_, password)| password.clone()).chain(encoded);
        let tokens = state.tokens.iter().map(|token| token.text.clone());
        let signatures = state.signed.iter().map(|signed| signed.signature.clone());
        passwords.chain(tokens).chain(signatures).collect()
    }
}

/// What was seen.
impl Fake {
    pub fn log(&self) -> Log {
        Log(self.state().log.clone())
    }

    /// A place in the log, for [`Fake::since`].
    pub fn mark(&self) -> usize {
        self.state().log.len()
    }

    pub fn since(&self, mark: usize) -> Log {
        Log(self.state().log[mark..].to_vec())
    }

    /// Body bytes of this blob that were sent, from the registry and from the store; bodies of errors do not count.
    pub fn blob_bytes(&self, digest: &str) -> u64 {
        self.log()
            .about(digest)
            .filter(|entry| entry.kind != Kind::Manifest && entry.status < 300)
            .sent()
    }

    /// Connections accepted so far at any origin.
    pub fn connections(&self) -> u64 {
        self.state().connections
    }

    pub fn open_connections(&self) -> u64 {
        self.state().open_connections
    }

    pub fn most_parallel(&self, origin: Origin) -> u64 {
        let state = self.state();
        state.running.iter().find(|(o, ..)| *o == origin).map_or(0, |(_, _, most)| *most)
    }

    /// Waits until the log looks like this.
    pub async fn wait_for(&self, what: &str, holds: impl Fn(&Log) -> bool) {
        let mut changed = self.0.changed.subscribe();
        within(what, async {
            while !holds(&self.log()) {
                changed.changed().await.expect("the fake itself holds the sender");
            }
        })
        .await;
    }

    /// Waits until this many requests have come, counted as [`Fake::mark`] counts.
    pub async fn asked(&self, count: usize) {
        let mut changed = self.0.changed.subscribe();
        while self.mark() < count {
            changed.changed().await.expect("the fake itself holds the sender");
        }
    }

    /// Waits until no request is being answered any more.
    pub async fn quiet(&self) {
        let idle = |log: &Log| log.0.iter().all(|entry| entry.end != End::Open);
        self.wait_for("the fake to have answered everything", idle).await;
    }
}

/// The wire's side.
impl Fake {
    fn connected(&self) -> u64 {
        let mut state = self.state();
        state.connections += 1;
        state.open_connections += 1;
        state.connections
    }

    fn disconnected(&self) {
        let mut state = self.state();
        state.open_connections -= 1;
        drop(state);
        self.change();
    }

    fn send_buffer(&self) -> Option<usize> {
        self.state().switches.send_buffer
    }

    fn loud(&self) -> bool {
        self.state().switches.loud_headers
    }

    fn logged(&self, origin: Origin, connection: u64, req: &Req) -> usize {
        let mut state = self.state();
        let number = state.log.len();
        let target = Target::of(&req.path);
        state.log.push(Entry::new(origin, connection, target, req));
        state.began(origin);
        drop(state);
        self.change();
        number
    }

    fn sent(&self, number: usize, bytes: u64) {
        self.state().log[number].sent += bytes;
        self.change();
    }

    fn over(&self, number: usize, end: End) {
        let mut state = self.state();
        let origin = state.log[number].origin;
        state.log[number].end = end;
        state.ended(origin);
        drop(state);
        self.change();
    }

    fn actions(&self, number: usize, early: bool) -> Vec<Then> {
        let state = self.state();
        let entry = &state.log[number];
        state.rules.iter().filter_map(|rule| rule.take(entry, early)).collect()
    }

    /// What is to be done with the request, after rules, credentials and gates.
    async fn plan(&self, number: usize, origin: Origin, req: &Req) -> Plan {
        let target = Target::of(&req.path);
        let early = self.actions(number, true);
        let asks = origin == Origin::Registry && !matches!(target.kind, Kind::Token | Kind::Store);
        let refusal = if asks { self.state().gatekeeper(req, &target) } else { None };
        let mut reply = refusal;
        let late = if reply.is_none() { self.actions(number, false) } else { Vec::new() };
        if reply.is_none() && !early.iter().chain(&late).any(|then| matches!(then, Then::Answer(_)))
        {
            reply = Some(self.state().usual(origin, req, &target));
        }
        let mut reply = reply.unwrap_or_else(|| Reply::new(500));
        for then in early.into_iter().chain(late) {
            match then {
                Then::Answer(other) => reply = *other,
                Then::Alter(edits) => edits.iter().for_each(|edit| reply.edit(edit)),
                Then::Drop { reset } => return Plan::Drop { reset },
                Then::Raw(bytes) => return Plan::Raw(bytes),
                Then::Hang => return Plan::Hang,
                Then::Hold(gate) => gate.pass().await,
                Then::Run(action) => action(self),
            }
        }
        let mut state = self.state();
        if !state.switches.keep_alive {
            reply.close = true;
        }
        state.log[number].status = reply.status;
        drop(state);
        self.change();
        Plan::Reply(Box::new(reply))
    }
}
