//! The login that a credential helper gave: asked for once, kept, renewed before it dies.
//!
//! What must hold: one run of the helper at a time, however many questions need the login; a run belongs to nobody, so that a caller who
//! leaves takes nothing with him; a login that upstream still takes serves on while a new one is asked for, and when that fails; a helper
//! that fails with nothing to fall back on is [`Error::Credential`], never anonymity; helpers are not hammered.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use super::client::Client;
use super::credentials::{Credential, Fingerprint, stretched, truncated};
use super::docker_config::Login;
use super::error::{Cause, Error};
use super::helper::{self, Answer, Failure};
use super::metrics::Meter;
use super::settings::Program;
use super::transport::Deadline;
use crate::clock::{Clock, Timestamp};
use crate::oci::Digest;

/// The pause after a failed run, or after a renewal that upstream asked for; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A login that is younger is not doubted when upstream denies something: the denial is believed.
const DENIAL_DOUBTED_FROM: Duration = Duration::from_secs(600);

/// What a keeper works with.
#[derive(Clone, Debug)]
pub(super) struct Means {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tasks: TaskTracker,
    pub(super) shutdown: CancellationToken,
    pub(super) meter: Meter,
    /// The directories of `PATH`.
    pub(super) search_path: Option<String>,
    /// Time for one run.
    pub(super) limit: Duration,
    /// The age from which a login is renewed in the background.
    pub(super) refresh: Duration,
}

/// A helper's question, and what no answer means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) program: Program,
    /// The server as docker names it.
    pub(super) server: String,
    /// "Not found" is anonymity, as docker has it; else it is trouble.
    pub(super) may_be_absent: bool,
}

/// The login of one helper for one server.
pub(super) struct Keeper {
    question: Question,
    means: Means,
    /// Stands for the question in proofs; the command may hold a secret.
    asked: Fingerprint,
    state: Mutex<State>,
    /// Goes into the logins, which ask for their successors here.
    own: Weak<Keeper>,
}

#[derive(Default)]
struct State {
    kept: Option<Kept>,
    flight: Option<watch::Receiver<Outcome>>,
    /// Why the last run gave nothing.
    trouble: Option<Error>,
    /// Failures in a row are asked again only after this.
    not_before: Option<Instant>,
    pause: Duration,
    /// The last renewal that upstream's refusal asked for, and the pause after it.
    renewed: Option<(Instant, Duration)>,
}

struct Kept {
    credential: Arc<Credential>,
    at: Timestamp,
    /// Upstream does not take it any more.
    refused: bool,
}

type Outcome = Option<Result<Arc<Credential>, Error>>;

impl Keeper {
    pub(super) fn new(question: Question, means: Means) -> Arc<Self> {
        let Question { program, server, .. } = &question;
        let command = Zeroizing::new(format!("helper\0{}\0{server}\0", program.command()));
        let asked = stretched(command.as_bytes());
        let own = |own: &Weak<Self>| Self {
            question,
            means,
            asked,
            state: Mutex::default(),
            own: Weak::clone(own),
        };
        Arc::new_cyclic(own)
    }

    pub(super) fn asks(&self, question: &Question) -> bool {
        self.question == *question
    }

    /// The login. A kept one is given at once, and renewed behind the caller's back when it has come to its age.
    ///
    /// # Errors
    /// [`Error::Credential`].
    pub(super) async fn current(
        self: &Arc<Self>,
        deadline: Deadline,
    ) -> Result<Arc<Credential>, Error> {
        let outcome = {
            let mut state = self.lock();
            if let Some(kept) = state.kept.as_ref().filter(|kept| !kept.refused) {
                let credential = Arc::clone(&kept.credential);
                if self.is_due(kept.at) && state.may_ask() {
                    drop(self.fly(&mut state));
                }
                return Ok(credential);
            }
            if !state.is_flying() && !state.may_ask() {
                return Err(state.trouble.clone().unwrap_or_else(|| self.trouble("gave no login")));
            }
            self.fly(&mut state)
        };
        self.land(outcome, deadline).await
    }

    /// Who it is, without asking: until the helper was asked once, it is somebody.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match &self.lock().kept {
            Some(kept) => kept.credential.fingerprint,
            None => Some(self.identity("")),
        }
    }

    /// Was the helper never asked to the end?
    fn is_unknown(&self) -> bool {
        let state = self.lock();
        state.kept.is_none() && state.trouble.is_none()
    }

    /// Another login in place of `refused`, if the error may be about it and there is one.
    async fn renew(
        self: &Arc<Self>,
        refused: &Credential,
        error: &Error,
        deadline: Deadline,
    ) -> Option<Arc<Credential>> {
        let outcome = {
            let mut state = self.lock();
            let kept = state.kept.as_ref()?;
            if kept.credential.secret != refused.secret && !kept.refused {
                // Another question has already brought a new one.
                return Some(Arc::clone(&kept.credential));
            }
            let refused = match error {
                Error::Credential(_) => true,
                // Some say so to an expired login (ECR Public: 400).
                Error::Denied | Error::Unreachable(Cause::Status(400))
                    if self.age(kept.at) >= DENIAL_DOUBTED_FROM =>
                {
                    kept.refused
                }
                _ => return None,
            };
            if !state.is_flying() && !state.may_renew() {
                return None;
            }
            if let Some(kept) = &mut state.kept {
                kept.refused = refused;
            }
            self.fly(&mut state)
        };
        let renewed = self.land(outcome, deadline).await.ok()?;
        (renewed.secret != refused.secret).then_some(renewed)
    }

    async fn land(
        &self,
        mut outcome: watch::Receiver<Outcome>,
        deadline: Deadline,
    ) -> Result<Arc<Credential>, Error> {
        match timeout(deadline.remaining(), outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => {
                outcome.clone().unwrap_or_else(|| Err(self.trouble("gave no login")))
            }
            Ok(Err(_closed)) => Err(self.trouble("was stopped")),
            Err(_elapsed) => Err(self.trouble("has not answered yet")),
        }
    }

    /// The run that is under way, or a new one.
    fn fly(self: &Arc<Self>, state: &mut State) -> watch::Receiver<Outcome> {
        if let Some(flight) = state.flight.as_ref().filter(|_| state.is_flying()) {
            return flight.clone();
        }
        let (sender, outcome) = watch::channel(None);
        state.flight = Some(outcome.clone());
        let keeper = Arc::clone(self);
        self.means.tasks.spawn(async move {
            let result = tokio::select! {
                result = keeper.run() => result,
                () = keeper.means.shutdown.cancelled() => {
                    Err(Failure { reason: "stopped", text: "was stopped".to_owned(), complaint: String::new() })
                }
            };
            sender.send_replace(Some(keeper.keep(result)));
        });
        outcome
    }

    async fn run(&self) -> Result<Answer, Failure> {
        let Question { program, server, .. } = &self.question;
        let Means { search_path, limit, tasks, .. } = &self.means;
        helper::run(program, server, search_path.clone(), *limit, tasks).await
    }

    /// Notes how a run ended.
    fn keep(&self, result: Result<Answer, Failure>) -> Result<Arc<Credential>, Error> {
        let result = match result {
            Ok(Answer::Login(login)) => Ok(Some(login)),
            Ok(Answer::NotFound) if self.question.may_be_absent => Ok(None),
            Ok(Answer::NotFound) => Err(Failure {
                reason: "not_found",
                text: "has no login for this registry".to_owned(),
                complaint: String::new(),
            }),
            Err(failure) => Err(failure),
        };
        let mut state = self.lock();
        state.flight = None;
        match result {
            Ok(login) => {
                let credential = Arc::new(self.credential(login));
                let at = self.means.clock.now();
                state.kept = Some(Kept { credential: Arc::clone(&credential), at, refused: false });
                (state.trouble, state.not_before) = (None, None);
                Ok(credential)
            }
            Err(failure) => {
                let error = self.trouble(&failure.text);
                let again = state.not_before.is_some();
                let pause = state.pause(again);
                state.not_before = Some(Instant::now() + pause);
                state.trouble = Some(error.clone());
                drop(state);
                self.complain(&failure);
                Err(error)
            }
        }
    }

    fn credential(&self, login: Option<Login>) -> Credential {
        let Some(login) = login else {
            return Credential::anonymous();
        };
        let username = match &login {
            Login::Basic { username, .. } | Login::Identity { username, .. } => username.as_str(),
            Login::Registry(_) => "",
        };
        let identity = self.identity(username);
        Credential::helped(login, identity, Weak::clone(&self.own))
    }

    /// Proofs of membership are bound to whom the configuration names (the helper, the server, the user), not to the secret, which
    /// changes twice a day: it is the same identity that the same helper speaks for. A helper that begins to give a lesser right under the
    /// same user is noticed when the proofs are renewed, after a day at the latest.
    fn identity(&self, username: &str) -> Fingerprint {
        truncated(&Digest::sha256_of(&[&self.asked, username.as_bytes()].concat()))
    }

    fn age(&self, at: Timestamp) -> Duration {
        self.means.clock.now().since(at)
    }

    /// A login from the future (the clock was set back) is of no known age.
    fn is_due(&self, at: Timestamp) -> bool {
        at > self.means.clock.now() || self.age(at) >= self.means.refresh
    }

    fn trouble(&self, what: &str) -> Error {
        Error::credential(format!("the credential helper {} {what}", self.question.program.name()))
    }

    fn complain(&self, failure: &Failure) {
        if failure.reason == "stopped" {
            return;
        }
        self.means.meter.helper_failed(failure.reason);
        tracing::warn!(
            upstream = self.means.meter.upstream(),
            helper = self.question.program.name(),
            reason = failure.reason,
            detail = failure.text,
            complaint = failure.complaint,
            "a credential helper gave no login"
        );
    }

    /// No holder of this lock can panic half-way through a change.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A flight whose task was dropped without a word is none.
    fn is_flying(&self) -> bool {
        self.flight.as_ref().is_some_and(|outcome| outcome.has_changed().is_ok())
    }

    fn may_ask(&self) -> bool {
        !self.is_flying() && self.not_before.is_none_or(|moment| moment <= Instant::now())
    }

    /// Once at once, then after pauses that grow as long as upstream goes on refusing.
    fn may_renew(&mut self) -> bool {
        let pause = match self.renewed {
            Some((last, pause)) if last.elapsed() < pause => return false,
            Some((last, pause)) if last.elapsed() < PAUSE_MAX => (pause * 2).min(PAUSE_MAX),
            _ => PAUSE_FIRST,
        };
        let may = self.may_ask();
        if may {
            self.renewed = Some((Instant::now(), pause));
        }
        may
    }

    /// The pause after a failure, `again` in a row.
    fn pause(&mut self, again: bool) -> Duration {
        self.pause = if again { (self.pause * 2).min(PAUSE_MAX) } else { PAUSE_FIRST };
        self.pause
    }
}

impl Credential {
    /// The login to try after upstream refused this one with `error`, if a helper gave it and gives another now.
    pub(super) async fn renewed(&self, error: &Error, deadline: Deadline) -> Option<Arc<Self>> {
        self.keeper.upgrade()?.renew(self, error, deadline).await
    }
}

impl Client {
    /// See `Upstream::settle_credential`.
    pub(super) async fn settle_credential(&self, patience: Duration) {
        let deadline = Deadline::after(patience);
        for keeper in self.credentials.keepers().iter().filter(|keeper| keeper.is_unknown()) {
            // What goes wrong is told by the question that needs the login.
            drop(keeper.current(deadline).await);
        }
    }

    /// See `Upstream::is_unsettled`.
    pub(super) fn is_unsettled(&self) -> bool {
        self.credentials.keepers().iter().any(|keeper| keeper.is_unknown())
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").field("question", &self.question).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::path::Path;

    use futures_util::StreamExt as _;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::clock::ManualClock;
    use crate::upstream::metrics::Metrics;

    const SOON: Duration = Duration::from_secs(20);

    pub(in crate::upstream) fn means() -> Means {
        Means {
            clock: Arc::new(ManualClock::starting_at(Timestamp::from_millis(1_000_000))),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            meter: Metrics::new(&mut Registry::default())
                .of(&"r.example".parse().unwrap(), "r.example"),
            search_path: None,
            limit: SOON,
            refresh: Duration::from_secs(3600),
        }
    }

    /// A helper that counts its runs in a file and gives the count as its secret, or does what the file `do` says.
    struct Script {
        directory: tempfile::TempDir,
        keeper: Arc<Keeper>,
        clock: ManualClock,
    }

    impl Script {
        fn new(may_be_absent: bool) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let text = r#"cd "$(dirname "$0")"; echo >> runs; [ -f do ] && . ./do
                printf '{"Username":"AWS","Secret":"secret-%s"}' $(wc -l < runs)"#;
            let path = directory.path().join("helper.sh");
            fs::write(&path, text).unwrap();
            let arguments = vec![path.to_str().unwrap().to_owned()];
            let program = Program { path: "/bin/sh".into(), arguments };
            let question = Question { program, server: "r.example".to_owned(), may_be_absent };
            let clock = ManualClock::starting_at(Timestamp::from_millis(1_000_000));
            let means = Means { clock: Arc::new(clock.clone()), ..means() };
            Self { directory, keeper: Keeper::new(question, means), clock }
        }

        fn does(&self, text: &str) {
            let file = self.directory.path().join("new");
            fs::write(&file, text).unwrap();
            fs::rename(file, self.directory.path().join("do")).unwrap();
        }

        fn runs(&self) -> usize {
            fs::read(self.directory.path().join("runs")).map_or(0, |runs| runs.len())
        }

        async fn current(&self) -> Result<Arc<Credential>, Error> {
            self.keeper.current(Deadline::after(SOON)).await
        }

        /// Waits until no run is under way.
        async fn idle(&self) {
            let idle = async {
                while self.keeper.lock().is_flying() {
                    tokio::task::yield_now().await;
                }
            };
            timeout(SOON, idle).await.unwrap();
        }
    }

    fn secret(credential: &Credential) -> String {
        match &credential.login {
            Some(Login::Basic { password, .. }) => password.expose().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    fn exists(directory: &Path, name: &str) -> bool {
        directory.join(name).exists()
    }

    #[tokio::test]
    async fn many_questions_are_one_run() {
        let script = Script::new(false);
        let all = futures_util::stream::iter((0..50).map(|_| script.current()));
        let mut all = all.buffer_unordered(50);
        while let Some(credential) = all.next().await {
            assert_eq!(secret(&credential.unwrap()), "secret-1");
        }
        assert_eq!(script.runs(), 1);
        let text = format!("{:?}", script.keeper);
        assert!(!text.contains("secret-1"), "{text}");
    }

    #[tokio::test]
    async fn a_login_of_age_is_renewed_behind_the_answers_and_stays_who_it_was() {
        let script = Script::new(false);
        let before = script.keeper.fingerprint();
        assert!(before.is_some() && script.keeper.is_unknown());
        let first = script.current().await.unwrap();
        let known = script.keeper.fingerprint();
        assert_ne!(before, known);
        script.clock.advance(Duration::from_secs(3600));
        assert_eq!(secret(&script.current().await.unwrap()), "secret-1");
        script.idle().await;
        let second = script.current().await.unwrap();
        assert_eq!(secret(&second), "secret-2");
        assert_eq!(script.keeper.fingerprint(), known, "proofs outlive the rotation");
        assert_ne!(first.secret, second.secret, "tokens do not");
    }

    #[tokio::test]
    async fn a_failed_refresh_leaves_the_old_login_in_use_until_it_is_refused() {
        let script = Script::new(false);
        let first = script.current().await.unwrap();
        script.does("exit 1");
        script.clock.advance(Duration::from_secs(3600));
        for _ in 0..3 {
            assert_eq!(secret(&script.current().await.unwrap()), "secret-1");
            script.idle().await;
        }
        assert_eq!(script.runs(), 2, "a failure is not repeated at once");
        let refusal = Error::credential("refused");
        assert!(first.renewed(&Error::Absent, Deadline::after(SOON)).await.is_none());
        tokio::time::pause();
        tokio::time::advance(PAUSE_MAX).await;
        tokio::time::resume();
        assert!(first.renewed(&refusal, Deadline::after(SOON)).await.is_none());
        let error = script.current().await.unwrap_err();
        assert!(matches!(&error, Error::Credential(text) if text.contains("failed")), "{error:?}");
    }

    #[tokio::test]
    async fn a_refused_login_is_replaced_once_and_then_with_pauses() {
        let script = Script::new(false);
        let first = script.current().await.unwrap();
        let refusal = Error::credential("refused");
        let until = || Deadline::after(SOON);
        let all = (0..20).map(|_| first.renewed(&refusal, until()));
        let mut all = futures_util::stream::iter(all).buffer_unordered(20);
        while let Some(renewed) = all.next().await {
            assert_eq!(secret(&renewed.unwrap()), "secret-2");
        }
        assert_eq!(script.runs(), 2);
        let second = script.current().await.unwrap();
        assert!(second.renewed(&refusal, until()).await.is_none(), "not again at once");
        assert_eq!(script.runs(), 2);
        assert_eq!(secret(&script.current().await.unwrap()), "secret-2");
        // A denial of a young login is believed, that of an old one is not.
        assert!(second.renewed(&Error::Denied, until()).await.is_none());
        script.clock.advance(DENIAL_DOUBTED_FROM);
        tokio::time::pause();
        tokio::time::advance(PAUSE_MAX).await;
        tokio::time::resume();
        let third = second.renewed(&Error::Denied, until()).await.unwrap();
        assert_eq!(secret(&third), "secret-3");
    }

    #[tokio::test]
    async fn nothing_there_is_anonymity_only_where_docker_says_so() {
        for may_be_absent in [true, false] {
            let script = Script::new(may_be_absent);
            script.does("echo 'credentials not found in native keychain'; exit 1");
            match script.current().await {
                Ok(credential) => {
                    assert!(may_be_absent && credential.login.is_none());
                    assert_eq!(script.keeper.fingerprint(), None);
                }
                Err(error) => {
                    assert!(!may_be_absent && matches!(error, Error::Credential(_)));
                    assert!(script.keeper.fingerprint().is_some());
                }
            }
            drop(script.current().await);
            assert_eq!(script.runs(), 1);
        }
    }

    #[tokio::test]
    async fn a_stop_ends_the_run() {
        let script = Script::new(false);
        script.does("touch here; sleep 1000");
        let stop = async {
            while !exists(script.directory.path(), "here") {
                tokio::task::yield_now().await;
            }
            script.keeper.means.shutdown.cancel();
        };
        let (answer, ()) = tokio::join!(script.current(), stop);
        assert!(matches!(answer, Err(Error::Credential(_))));
        script.keeper.means.tasks.close();
        timeout(SOON, script.keeper.means.tasks.wait()).await.unwrap();
    }
}
