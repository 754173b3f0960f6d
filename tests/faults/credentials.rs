//! Credentials that expire, and helpers that fail.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tempfile::TempDir;

use crate::support::content::Image;
use crate::support::fake::{Fake, Hidden, Kind, Mode, Profile, Rejection, When};
use crate::support::gate::within;
use crate::support::pull::{is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
const USER: &str = "AWS";

/// A credential helper as a shell script. It counts its runs and gives what the file `secret` holds; a file `do` is run first.
struct Helper(TempDir);

impl Helper {
    fn new() -> Self {
        let helper = Self(TempDir::new().expect("a temporary directory can be made"));
        let text = r#"cd "$(dirname "$0")" || exit 9
echo run >> runs
cat >> servers; echo >> servers
if [ -f do ]; then . ./do; fi
printf '{"ServerURL":"x","Username":"AWS","Secret":"%s"}' "$(cat secret)"
"#;
        helper.write("helper.sh", text);
        helper.gives("first-secret-of-twelve-hours");
        helper
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// In one step, because a helper may be reading.
    fn write(&self, name: &str, text: &str) {
        let file = self.path().join("new");
        fs::write(&file, text).expect("the directory is ours");
        fs::rename(file, self.path().join(name)).expect("the directory is ours");
    }

    fn gives(&self, secret: &str) {
        self.write("secret", secret);
    }

    fn does(&self, text: &str) {
        self.write("do", text);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    fn runs(&self) -> usize {
        self.read("runs").lines().count()
    }

    /// Waits until the helper has written this file.
    async fn wrote(&self, name: &str) {
        let written = async {
            while !self.path().join(name).exists() {
                tokio::task::yield_now().await;
            }
        };
        within("the helper to write a file", written).await;
    }

    fn settings(&self) -> String {
        let script = self.path().join("helper.sh");
        format!("credential_helper = [\"/bin/sh\", {script:?}]\nprivate = \"shared\"")
    }

    /// The script as a program of this name in `directory`.
    fn install(&self, directory: &Path, name: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let script = self.path().join("helper.sh");
        let file = directory.join(format!("docker-credential-{name}"));
        fs::write(&file, format!("#!/bin/sh\nexec /bin/sh {script:?}\n")).expect("it is ours");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o700)).expect("the file is ours");
    }
}

async fn ecr(image: &Image, helper: &Helper) -> Fake {
    let fake = Fake::profile(Profile::Ecr).await;
    fake.push(NAME, "latest", image);
    fake.private(NAME, &[USER]);
    accepts(&fake, &helper.read("secret"));
    fake
}

fn accepts(fake: &Fake, secret: &str) {
    fake.auth(|auth| auth.users = vec![(USER.to_owned(), secret.to_owned())]);
}

async fn world_of(fake: &Fake, settings: &str) -> World {
    World::builder().upstream_with("docker.io", fake, settings).start().await
}

fn silent(world: &World, secret: &str) {
    let lines = world.log_lines();
    assert!(!lines.iter().any(|line| line.contains(secret)), "{secret} stands in the log");
}

#[tokio::test]
async fn fifty_pulls_log_in_once() {
    let helper = Helper::new();
    let images: Vec<_> = (0..50).map(|n| Image::single(&format!("ecr {n}"))).collect();
    let fake = ecr(&images[0], &helper).await;
    for (n, image) in images.iter().enumerate() {
        fake.push(NAME, &format!("v{n}"), image);
    }
    let world = world_of(&fake, &helper.settings()).await;
    let client = world.client();
    let all = (0..50).map(|n| {
        let client = client.clone();
        let image = &images[n];
        async move { pull(&client, NAME, &format!("v{n}"), image).await }
    });
    join_all(all).await;
    assert_eq!(helper.runs(), 1, "one login call");
    assert_eq!(helper.read("servers").trim(), "https://index.docker.io/v1/");
    fake.log().of(Kind::Store).no_authorization();
    silent(&world, &helper.read("secret"));
    world.finish().await;
}

#[tokio::test]
async fn a_login_that_dies_in_the_middle_of_a_pull_is_renewed_unseen() {
    let image = Image::of_eleven_objects("rotation");
    for (mode, rejection) in [
        (Mode::Basic, Rejection::Bearer),
        (Mode::Basic, Rejection::Denied),
        (Mode::Basic, Rejection::BadRequest),
        (Mode::Bearer, Rejection::Bearer),
        (Mode::Bearer, Rejection::BasicOnly),
        (Mode::Bearer, Rejection::BadRequest),
        (Mode::Bearer, Rejection::Denied),
    ] {
        let helper = Helper::new();
        let fake = ecr(&image, &helper).await;
        fake.auth(|auth| (auth.mode, auth.rejection) = (mode, rejection));
        // Nothing but the refusal tells that it is over.
        let settings = format!("{}\ncredential_refresh = \"24h\"", helper.settings());
        let world = world_of(&fake, &settings).await;
        world.client().manifest(NAME, "latest").expect(200).await;
        world.advance(Duration::from_secs(12 * 3600));
        helper.gives("second-secret-of-twelve-hours");
        accepts(&fake, "second-secret-of-twelve-hours");
        fake.expire_tokens();
        pull(&world.client(), NAME, "latest", &image).await;
        assert_eq!(helper.runs(), 2, "{mode:?} {rejection:?}:{}", fake.log().lines());
        let metrics = world.metrics().await;
        let ok = metrics.sum("roadstead_upstream_credential_ok", &[("upstream", "docker.io")]);
        assert!(ok > 0.5, "{mode:?} {rejection:?}");
        silent(&world, "second-secret-of-twelve-hours");
        world.finish().await;
    }
}

#[tokio::test]
async fn a_rotation_does_not_end_what_was_proved() {
    let helper = Helper::new();
    let image = Image::of_eleven_objects("proofs");
    let fake = ecr(&image, &helper).await;
    let mut world = world_of(&fake, &helper.settings()).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    helper.gives("second-secret-of-twelve-hours");
    accepts(&fake, "second-secret-of-twelve-hours");
    world.advance(Duration::from_secs(2 * 3600));
    // The refresh runs behind the answer to a question that goes upstream.
    world.client().manifest(NAME, "latest").expect(200).await;
    let twice = async {
        while helper.runs() < 2 {
            tokio::task::yield_now().await;
        }
    };
    within("the login to be refreshed", twice).await;
    for after_restart in [false, true] {
        if after_restart {
            world.restart().await;
        }
        let mark = fake.mark();
        for blob in image.all_blobs() {
            world.client().blob(NAME, &blob.digest).expect(200).await;
        }
        world.client().manifest(NAME, &image.digest).expect(200).await;
        fake.since(mark).expect_none("the identity is the same");
    }
    world.finish().await;
}

#[tokio::test]
async fn a_login_of_age_is_renewed_while_the_old_one_serves() {
    let helper = Helper::new();
    let image = Image::single("refresh");
    let fake = ecr(&image, &helper).await;
    let settings =
        format!("{}\nfresh_for = \"0s\"\ncredential_refresh = \"10m\"", helper.settings());
    let world = world_of(&fake, &settings).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    assert_eq!(helper.runs(), 1);
    // A refresh that hangs keeps nobody waiting, and one that fails changes nothing.
    helper.does("touch hangs; while [ -f hangs ]; do sleep 0.01; done; exit 1");
    world.advance(Duration::from_secs(600));
    for _ in 0..3 {
        let reply = world.client().manifest(NAME, "latest").expect(200).await;
        assert_eq!(reply.header("Warning"), None, "{reply:?}");
    }
    helper.wrote("hangs").await;
    assert_eq!(helper.runs(), 2);
    fs::remove_file(helper.path().join("hangs")).expect("it is there");
    let failed = [("upstream", "docker.io"), ("reason", "exit")];
    let counted = |metrics: &crate::support::world::Metrics| {
        metrics.sum("roadstead_upstream_credential_helper_failures_total", &failed) > 0.5
    };
    world.metrics_where("the failure to be counted", counted).await;
    let reply = world.client().manifest(NAME, "latest").expect(200).await;
    assert_eq!(reply.header("Warning"), None, "the old one serves on: {reply:?}");
    world.finish().await;
}

#[tokio::test]
async fn a_helper_that_fails_is_an_outage_of_ours_and_never_anonymity() {
    let image = Image::single("failing helper");
    let cases = [
        ("echo geheim-on-stdout; echo 'no such profile\u{1b}[31m' >&2; exit 1", "exit"),
        ("echo geheim-on-stdout; exit 0", "junk"),
        ("yes geheim-on-stdout", "too_large"),
        ("echo 'credentials not found in native keychain'; exit 1", "not_found"),
        ("sleep 1000", "timeout"),
    ];
    for (does, reason) in cases {
        let helper = Helper::new();
        helper.does(does);
        let fake = ecr(&image, &helper).await;
        // It would be open to everybody: nobody may notice by a fall-through.
        fake.auth(|auth| auth.mode = Mode::None);
        fake.public(NAME);
        let limit = if reason == "timeout" { "300ms" } else { "10s" };
        let settings = format!("{}\nlimits.helper = {limit:?}", helper.settings());
        let world = world_of(&fake, &settings).await;
        let reply = world.client().manifest(NAME, "latest").expect(502).await;
        let message = reply.error("UNAVAILABLE");
        assert!(message.contains("credential helper sh"), "{message}");
        assert!(!message.contains("geheim"), "{message}");
        fake.log().expect_none("nothing is asked without the login");
        let metrics = world.metrics().await;
        let labels = [("upstream", "docker.io"), ("reason", reason)];
        let name = "roadstead_upstream_credential_helper_failures_total";
        assert!(metrics.sum(name, &labels) > 0.5, "{reason}");
        let ok = metrics.sum("roadstead_upstream_credential_ok", &[("upstream", "docker.io")]);
        assert!(ok < 0.5, "{reason}");
        silent(&world, "geheim");
        if reason == "exit" {
            let lines = world.log_lines();
            let line = lines.iter().find(|line| line.contains("no such profile"));
            assert!(line.is_some_and(|line| !line.contains('\u{1b}')), "{line:?}");
        }
        world.finish().await;
    }
}

#[tokio::test]
async fn a_failing_helper_is_bridged_and_heals_by_itself() {
    let helper = Helper::new();
    let image = Image::single("bridged");
    let fake = ecr(&image, &helper).await;
    let settings =
        format!("{}\nfresh_for = \"0s\"\nretry_after_failure = \"0s\"", helper.settings());
    let mut world = world_of(&fake, &settings).await;
    world.client().manifest(NAME, "latest").expect(200).await;
    helper.does("exit 1");
    world.restart().await;
    let mark = fake.mark();
    let reply = world.client().manifest(NAME, "latest").expect(200).await;
    is_manifest(&reply, &image);
    assert!(reply.must("Warning").starts_with("299 "), "{reply:?}");
    fake.since(mark).expect_none("nothing is asked without the login");
    helper.does("");
    let healed = async {
        while world.client().manifest(NAME, "latest").expect(200).await.header("Warning").is_some()
        {
            tokio::task::yield_now().await;
        }
    };
    within("the helper to be asked again", healed).await;
    assert!(helper.runs() <= 5, "{} runs", helper.runs());
    world.finish().await;
}

#[tokio::test]
async fn a_hanging_helper_does_not_hold_up_what_is_here_nor_the_stop() {
    let helper = Helper::new();
    let image = Image::single("hanging");
    let fake = ecr(&image, &helper).await;
    let settings = format!("{}\nwait = \"200ms\"\nwait_recent = \"100ms\"", helper.settings());
    let mut world = world_of(&fake, &settings).await;
    pull(&world.client(), NAME, "latest", &image).await;
    world.downloads_over().await;
    helper.does("echo $$ > leader; sleep 1000");
    world.restart().await;
    world.advance(Duration::from_secs(7200));
    let began = Instant::now();
    let reply = world.client().manifest(NAME, "latest").expect(200).await;
    assert!(reply.must("Warning").starts_with("299 "), "{reply:?}");
    for blob in image.all_blobs() {
        world.client().blob(NAME, &blob.digest).expect(200).await;
    }
    assert!(began.elapsed() < Duration::from_secs(8), "nobody waits for the helper's whole time");
    helper.wrote("leader").await;
    // The stop does not wait for it.
    world.restart_with(|builder| builder.upstream("docker.io", &fake)).await;
    let leader = helper.read("leader");
    let gone = async {
        while Path::new("/proc").join(leader.trim()).exists() {
            tokio::task::yield_now().await;
        }
    };
    within("the helper to be killed and reaped", gone).await;
    world.finish().await;
}

#[tokio::test]
async fn docker_config_names_helpers_as_docker_does() {
    let image = Image::single("config.json");
    let helper = Helper::new();
    let programs = TempDir::new().expect("a temporary directory can be made");
    helper.install(programs.path(), "acme");
    let forms = [
        r#"{"credHelpers":{"index.docker.io":"acme"}}"#,
        r#"{"auths":{"https://index.docker.io/v1/":{}},"credsStore":"acme"}"#,
    ];
    for form in forms {
        let fake = ecr(&image, &helper).await;
        helper.write("config.json", form);
        let file = helper.path().join("config.json");
        let settings = format!("docker_config = {file:?}\nprivate = \"shared\"");
        let builder = World::builder().upstream_with("docker.io", &fake, &settings);
        let world = builder.search_path(programs.path()).start().await;
        pull(&world.client(), NAME, "latest", &image).await;
        assert!(helper.read("servers").lines().all(|line| line == "https://index.docker.io/v1/"));
        world.finish().await;
    }
}

#[tokio::test]
async fn what_a_store_does_not_know_is_asked_for_anonymously_and_a_missing_store_is_an_outage() {
    let image = Image::single("store");
    let helper = Helper::new();
    helper.does("echo 'credentials not found in native keychain'; exit 1");
    let programs = TempDir::new().expect("a temporary directory can be made");
    helper.install(programs.path(), "acme");
    helper.write("config.json", r#"{"credsStore":"acme"}"#);
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let file = helper.path().join("config.json");
    let settings = format!("docker_config = {file:?}");
    let builder = World::builder().upstream_with("docker.io", &fake, &settings);
    let world = builder.search_path(programs.path()).start().await;
    pull(&world.client(), NAME, "latest", &image).await;
    fake.log().no_authorization();
    assert_eq!(helper.runs(), 1, "nothing is also an answer");
    fake.log().of(Kind::Tags).expect_none("who has no login needs no look whether others may read");
    // The file changes, and no reload is needed.
    helper.write("config.json", r#"{"credsStore":"not-installed"}"#);
    let mark = fake.mark();
    let reply = world.client().manifest(NAME, "other").expect(502).await;
    let message = reply.error("UNAVAILABLE");
    assert!(message.contains("docker-credential-not-installed"), "{message}");
    fake.since(mark).expect_none("never anonymously");
    world.finish().await;
}

#[tokio::test]
async fn after_a_reload_nobody_joins_a_question_of_the_old_login() {
    let image = Image::single("reload");
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &image);
    let gate = crate::support::gate::Gate::new();
    let rule = fake.rule(When::manifest().once(), crate::support::fake::Then::hold(&gate));
    let login = |user: &str| {
        format!("username = \"{user}\"\npassword = \"hush-{user}\"\nprivate = \"shared\"")
    };
    fake.auth(|auth| {
        auth.mode = Mode::Basic;
        auth.users = vec![("a".into(), "hush-a".into()), ("b".into(), "hush-b".into())];
        auth.hidden = Hidden::Denied;
    });
    let mut world = world_of(&fake, &login("a")).await;
    let client = world.client();
    let first = tokio::spawn(async move { client.manifest(NAME, "latest").send().await });
    gate.reached().await;
    let new = fake.clone();
    world
        .reload_with(move |builder| builder.upstream_with("docker.io", &new, &login("b")))
        .expect("the new login is valid");
    world.client().manifest(NAME, "latest").expect(200).await;
    gate.open();
    first.await.expect("the client does not panic").expect("the first is served as well", 200);
    rule.expect_hit();
    let seen = fake.log().of(Kind::Manifest).filter(|entry| entry.status == 200);
    let mut logins: Vec<_> =
        seen.0.iter().filter_map(|entry| entry.authorization.clone()).collect();
    logins.sort();
    logins.dedup();
    assert_eq!(logins.len(), 2, "each came with his own:{}", fake.log().lines());
    world.finish().await;
}
