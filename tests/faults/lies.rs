//! Upstreams that lie about what they send. Whatever they say, the answer is right or a clean failure: an error in JSON with a status
//! that tells the truth, within its time; nothing wrong is stored (`World::finish` hashes every file) and nothing endless is read to
//! its end. When the lie is over the next request is served, and what was served once stays right while the lie goes on.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use crate::support::client::{Client, End, Request, Response};
use crate::support::content::{Blob, Data, Image, MIB, OCI_INDEX, OCI_MANIFEST, Synthetic};
use crate::support::fake::{Edit, Fake, Fault, Framing, Kind, Mode, RangeMode, Reply, Then, When};
use crate::support::pull::{describes_blob, describes_manifest, is_blob, is_manifest, pull};
use crate::support::world::World;

const NAME: &str = "team/app";
/// Every time limit, shorter than its default, so that a test takes seconds.
const TIMES: &str = "[upstream.\"docker.io\".limits]\nconnect = \"1s\"\nheaders = \"1s\"\nanswer = \"2s\"\n\
    exchange = \"2s\"\nlisting = \"3s\"\nidle_body = \"500ms\"\ntoken = \"2s\"\nbackoff_first = \"5ms\"\nbackoff_max = \"10ms\"\n\
    tag_pages = 20\n";
/// With those limits nothing takes longer.
const IN_TIME: Duration = Duration::from_secs(8);

/// What becomes of an answer with a lie in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The lie does not matter: the truth is found in spite of it.
    Right,
    /// There is no way to the truth.
    Fails,
}

use Fate::{Fails, Right};

/// What is lied about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Tag,
    Digest,
    Blob,
}

const SUBJECTS: [Subject; 3] = [Subject::Tag, Subject::Digest, Subject::Blob];

struct Lie {
    name: &'static str,
    then: Then,
    /// By tag, by digest, as a blob.
    fates: [Fate; 3],
}

fn lie(name: &'static str, then: Then, fates: [Fate; 3]) -> Lie {
    Lie { name, then, fates }
}

struct Scene {
    fake: Fake,
    world: World,
    image: Image,
    blob: Blob,
}

impl Scene {
    async fn new() -> Self {
        Self::with("").await
    }

    async fn with(settings: &str) -> Self {
        let fake = Fake::start().await;
        // More than is verified before its headers go out.
        let blob = Blob::layer("lies", 150_000);
        let image = Image::build("lies").layer(blob.clone()).finish();
        fake.push(NAME, "latest", &image);
        let settings = format!("{settings}\n{TIMES}");
        let world = World::builder().upstream_with("docker.io", &fake, &settings).start().await;
        Self { fake, world, image, blob }
    }

    fn client(&self) -> Client {
        self.world.client()
    }

    fn path(&self, subject: Subject) -> String {
        match subject {
            Subject::Tag => format!("/v2/{NAME}/manifests/latest"),
            Subject::Digest => format!("/v2/{NAME}/manifests/{}", self.image.digest),
            Subject::Blob => format!("/v2/{NAME}/blobs/{}", self.blob.digest),
        }
    }

    fn when(subject: Subject) -> When {
        if subject == Subject::Blob { When::blob() } else { When::manifest() }
    }

    fn is_right(&self, subject: Subject, head: bool, reply: &Response) {
        match (subject, head) {
            (Subject::Blob, false) => is_blob(reply, &self.blob),
            (Subject::Blob, true) => describes_blob(reply, &self.blob),
            (_, false) => is_manifest(reply, &self.image),
            (_, true) => describes_manifest(reply, &self.image),
        }
    }

    /// Asks and checks that the answer is right or a clean failure.
    async fn ask(&self, subject: Subject, head: bool, what: &str) -> Fate {
        let path = self.path(subject);
        let request = if head { self.client().head(&path) } else { self.client().get(&path) };
        let began = Instant::now();
        let reply = request.send().await;
        let took = began.elapsed();
        assert!(took < IN_TIME, "{what}: took {took:?}");
        if reply.status == 200 && reply.end == End::Clean {
            self.is_right(subject, head, &reply);
            return Right;
        }
        is_clean_failure(&reply, head, what);
        Fails
    }
}

/// An error that tells the truth, or a body that is visibly not whole.
#[track_caller]
fn is_clean_failure(reply: &Response, head: bool, what: &str) {
    if reply.status == 200 {
        assert_eq!(reply.end, End::Cut, "{what}: a broken body ends with FIN");
        return;
    }
    assert!([502, 503, 504].contains(&reply.status), "{what}: {reply:?}");
    assert_eq!(reply.end, End::Clean, "{what}: {reply:?}");
    if !head {
        reply.error("UNAVAILABLE");
    }
    for name in ["Set-Cookie", "WWW-Authenticate", "Location", "Content-Encoding"] {
        assert_eq!(reply.header(name), None, "{what}");
    }
}

/// Each lie, about each subject, begun with GET and with HEAD: while it lasts, after it, and when it is told again.
async fn tell(lies: fn(&Truth) -> Vec<Lie>) {
    let count = lies(&Truth::of(&Scene::new().await.done().await, Subject::Tag)).len();
    for (index, subject) in SUBJECTS.into_iter().enumerate() {
        for number in 0..count {
            for head in [false, true] {
                let scene = Scene::new().await;
                if subject == Subject::Blob {
                    scene.client().manifest(NAME, "latest").expect(200).await;
                }
                let Lie { name, then, fates } = lies(&Truth::of(&scene.known(), subject))
                    .into_iter()
                    .nth(number)
                    .expect("the list has one length");
                let what = format!("{name} ({subject:?}, {})", if head { "HEAD" } else { "GET" });
                let rule = scene.fake.rule(Scene::when(subject), then.clone());
                if head {
                    scene.ask(subject, true, &what).await;
                }
                let fate = scene.ask(subject, false, &what).await;
                rule.expect_hit();
                assert_eq!(fate, fates[index], "{what}");
                scene.fake.remove(&rule);
                let after = scene.ask(subject, false, &format!("after {what}")).await;
                assert_eq!(after, Right, "the next request is served: {what}");
                scene.world.downloads_over().await;
                scene.fake.rule(Scene::when(subject), then);
                for head in [false, true] {
                    assert_eq!(scene.ask(subject, head, &format!("warm {what}")).await, Right);
                }
                scene.world.finish().await;
            }
        }
    }
}

/// What an honest upstream would send.
struct Truth {
    bytes: Bytes,
    media_type: String,
    digest: String,
}

/// The content of a scene, without the scene.
struct Known {
    image: Image,
    blob: Blob,
}

impl Scene {
    fn known(&self) -> Known {
        Known { image: self.image.clone(), blob: self.blob.clone() }
    }

    async fn done(self) -> Known {
        let known = self.known();
        self.world.finish().await;
        known
    }
}

impl Truth {
    fn of(known: &Known, subject: Subject) -> Self {
        let Known { image, blob } = known;
        match subject {
            Subject::Blob => Self {
                bytes: blob.bytes(),
                media_type: "application/octet-stream".to_owned(),
                digest: blob.digest.clone(),
            },
            _ => Self {
                bytes: image.bytes.clone(),
                media_type: image.media_type.clone(),
                digest: image.digest.clone(),
            },
        }
    }

    fn length(&self) -> u64 {
        u64::try_from(self.bytes.len()).expect("small")
    }

    /// A whole answer, written by hand, with `before` in front of its status line and `fields` among its headers.
    fn raw(&self, before: &str, status: &str, fields: &str) -> Then {
        let mut bytes = format!(
            "{before}{status}\r\nContent-Type: {}\r\nDocker-Content-Digest: {}\r\nConnection: close\r\n{fields}\r\n",
            self.media_type, self.digest
        )
        .into_bytes();
        bytes.extend_from_slice(&self.bytes);
        Then::Raw(bytes.into())
    }

    fn with_length(&self, length: &str) -> Then {
        self.raw("", "HTTP/1.1 200 OK", &format!("Content-Length: {length}\r\n"))
    }
}

/// A blob that breaks off is continued, so some of these do not matter for blobs.
fn about_lengths(truth: &Truth) -> Vec<Lie> {
    let length = truth.length();
    let long = length + 1;
    vec![
        lie("chunked", Then::chunked(), [Right; 3]),
        lie("until close", Then::edit(Edit::Framing(Framing::UntilClose)), [Right; 3]),
        lie("one byte less", Then::edit(Edit::LengthOff(-1)), [Fails; 3]),
        lie("one byte more", Then::edit(Edit::LengthOff(1)), [Fails; 3]),
        lie("a length of nothing", Then::edit(Edit::Framing(Framing::Claim(0))), [Fails; 3]),
        lie("huge", Then::edit(Edit::Framing(Framing::Claim(1 << 60))), [Fails; 3]),
        lie("two lengths", Then::edit(Edit::Framing(Framing::Twice(1))), [Fails; 3]),
        lie("twice the same length", Then::edit(Edit::Framing(Framing::Twice(0))), [Right; 3]),
        lie("negative", truth.with_length("-1"), [Fails; 3]),
        lie("beyond all numbers", truth.with_length("99999999999999999999999"), [Fails; 3]),
        lie("no number", truth.with_length("many"), [Fails; 3]),
        lie("with a plus", truth.with_length(&format!("+{length}")), [Fails; 3]),
        lie("a list", truth.with_length(&format!("{length}, {long}")), [Fails; 3]),
        lie("cut in the middle", Then::close_at(length / 2), [Fails, Fails, Right]),
        lie("reset in the middle", Then::reset_at(length / 2), [Fails, Fails, Right]),
        lie("chunked and short", Then::chunked_end_at(length - 1), [Fails, Fails, Right]),
        lie("one byte behind", Then::edit(Edit::Append("\n".into())), [Fails; 3]),
        lie(
            "chunked, one byte behind",
            Then::Alter(vec![Edit::Append("\n".into()), Edit::Framing(Framing::Chunked)]),
            // All that the descriptor announces is here and right; what follows is not read.
            [Fails, Fails, Right],
        ),
        lie(
            "chunks of no size",
            truth.raw("", "HTTP/1.1 200 OK", "Transfer-Encoding: chunked\r\n"),
            [Fails; 3],
        ),
        lie(
            "an unknown coding",
            truth.raw("", "HTTP/1.1 200 OK", "Transfer-Encoding: x\r\n"),
            [Right; 3],
        ),
        lie("stalls in the middle", Then::stall_at(length / 2), [Fails, Fails, Right]),
    ]
}

fn about_bytes(truth: &Truth) -> Vec<Lie> {
    let length = truth.length();
    vec![
        lie("the first byte", Then::corrupt_at(0), [Fails; 3]),
        lie("a byte in the middle", Then::corrupt_at(length / 2), [Fails; 3]),
        lie("the last byte", Then::corrupt_at(length - 1), [Fails; 3]),
        lie("gzip", Then::edit(Edit::Gzip), [Fails; 3]),
        lie("gzip in name only", Then::set("Content-Encoding", "gzip"), [Right; 3]),
        lie("identity", Then::set("Content-Encoding", "identity"), [Right; 3]),
        lie("a login page", Then::reply(Reply::html(200)), [Fails; 3]),
        lie(
            "a login page without a type",
            Then::Alter(vec![
                Edit::Body("<!DOCTYPE html><html></html>".into()),
                Edit::Header("Content-Type", Some("application/json".to_owned())),
            ]),
            [Fails; 3],
        ),
        lie("nothing", Then::edit(Edit::Body(Bytes::new())), [Fails; 3]),
        lie("other bytes", Then::edit(Edit::Body("{\"schemaVersion\":2}".into())), [Fails; 3]),
        lie(
            "a bomb",
            Then::Alter(vec![Edit::Body(Bytes::from(vec![0; 4 << 20])), Edit::Gzip]),
            [Fails; 3],
        ),
    ]
}

fn about_fields(truth: &Truth) -> Vec<Lie> {
    let other = Image::single("another").digest;
    let cookie = "session=s3cret-c00kie; Path=/; HttpOnly";
    vec![
        lie("no type", Then::unset("Content-Type"), [Right; 3]),
        lie("text", Then::set("Content-Type", "text/plain"), [Right; 3]),
        lie("json", Then::set("Content-Type", "application/json; charset=utf-8"), [Right; 3]),
        lie("called html", Then::set("Content-Type", "text/html; charset=utf-8"), [Fails; 3]),
        lie("no type at all", Then::set("Content-Type", ";;; \u{e9}"), [Right; 3]),
        lie("another kind", Then::set("Content-Type", OCI_INDEX), [Fails, Fails, Right]),
        lie(
            "two types",
            Then::edit(Edit::Extra("Content-Type", "text/html".to_owned())),
            [Right; 3],
        ),
        lie("no digest", Then::unset("Docker-Content-Digest"), [Right; 3]),
        lie("another digest", Then::set("Docker-Content-Digest", &other), [Fails, Right, Right]),
        lie("no digest in it", Then::set("Docker-Content-Digest", "sha256:xyz"), [Right; 3]),
        lie("a junk tag", Then::set("ETag", "\"\"\"W/"), [Right; 3]),
        lie("cookies", Then::edit(Edit::Extra("Set-Cookie", cookie.to_owned())), [Right; 3]),
        lie(
            "a challenge",
            Then::set("WWW-Authenticate", "Bearer realm=\"http://127.0.0.2/x\""),
            [Right; 3],
        ),
        lie("a refresh", Then::set("Refresh", "0; url=http://127.0.0.2/"), [Right; 3]),
        lie(
            "hints before",
            truth.raw(
                &"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(3),
                "HTTP/1.1 200 OK",
                &format!("Content-Length: {}\r\n", truth.length()),
            ),
            [Right; 3],
        ),
        lie(
            "a flood of hints",
            Then::Raw("HTTP/1.1 100 Continue\r\n\r\n".repeat(50_000).into()),
            [Fails; 3],
        ),
        lie("folded lines", truth.raw("", "HTTP/1.1 200 OK", "X: a\r\n b\r\n"), [Fails; 3]),
        lie(
            "headers of megabytes",
            truth.raw("", "HTTP/1.1 200 OK", &format!("X: {}\r\n", "x".repeat(2 << 20))),
            [Fails; 3],
        ),
        lie(
            "ten thousand headers",
            truth.raw("", "HTTP/1.1 200 OK", &"X: y\r\n".repeat(10_000)),
            [Fails; 3],
        ),
        lie("ninety headers", truth.raw("", "HTTP/1.1 200 OK", &"X: y\r\n".repeat(90)), [Right; 3]),
        lie(
            "a header of 100 KiB",
            truth.raw("", "HTTP/1.1 200 OK", &format!("X: {}\r\n", "x".repeat(100 << 10))),
            [Right; 3],
        ),
    ]
}

fn about_status(truth: &Truth) -> Vec<Lie> {
    let edit = |status| Then::edit(Edit::Status(status));
    let to = |location: &str| Then::reply(Reply::redirect(307, location));
    let whole = format!("bytes 0-{}/{}", truth.length() - 1, truth.length());
    vec![
        lie("204", edit(204), [Fails; 3]),
        lie("203", edit(203), [Fails; 3]),
        lie("205", edit(205), [Fails; 3]),
        lie("206 without a range", edit(206), [Fails; 3]),
        lie(
            "206 of the whole",
            Then::Alter(vec![Edit::Status(206), Edit::Header("Content-Range", Some(whole))]),
            [Fails, Fails, Right],
        ),
        lie(
            "206 of another part",
            Then::Alter(vec![
                Edit::Status(206),
                Edit::Header(
                    "Content-Range",
                    Some(format!("bytes 1-{}/{}", truth.length(), truth.length() + 1)),
                ),
            ]),
            [Fails; 3],
        ),
        lie("226", edit(226), [Fails; 3]),
        lie("300", edit(300), [Fails; 3]),
        lie("304", edit(304), [Fails; 3]),
        lie("307 to nowhere", edit(307), [Fails; 3]),
        lie("to an empty place", to(""), [Fails; 3]),
        lie("to junk", to("http://[::1"), [Fails; 3]),
        lie("to a script", to("javascript:alert(1)"), [Fails; 3]),
        lie("to a file", to("file:///etc/passwd"), [Fails; 3]),
        lie("to a port that is none", to("http://127.0.0.1:99999/x"), [Fails; 3]),
        lie("to a NUL", to("/v2/\u{1}"), [Fails; 3]),
        lie("to megabytes", to(&format!("http://127.0.0.1:1/{}", "x".repeat(60_000))), [Fails; 3]),
        lie("a status of five digits", truth.raw("", "HTTP/1.1 20000 OK", ""), [Fails; 3]),
        lie("a status of letters", truth.raw("", "HTTP/1.1 abc OK", ""), [Fails; 3]),
        lie("another protocol", truth.raw("", "ICY 200 OK", ""), [Fails; 3]),
        lie("HTTP/1.0", truth.raw("", "HTTP/1.0 200 OK", ""), [Right; 3]),
        lie("101", truth.raw("", "HTTP/1.1 101 Switching Protocols", "Upgrade: x\r\n"), [Fails; 3]),
        lie("no answer", Then::Drop { reset: false }, [Fails; 3]),
        lie("noise", Then::Raw(Bytes::from(vec![0xff; 100_000])), [Fails; 3]),
    ]
}

#[tokio::test]
async fn lies_about_lengths() {
    tell(about_lengths).await;
}

#[tokio::test]
async fn lies_in_the_bytes() {
    tell(about_bytes).await;
}

#[tokio::test]
async fn lies_in_the_fields() {
    tell(about_fields).await;
}

#[tokio::test]
async fn lies_about_the_status() {
    tell(about_status).await;
}

/// A body without end, or with one that nobody lives to see.
fn endless() -> Reply {
    Reply::new(200).data(Data::Synthetic(Synthetic::new(8, 1 << 40)))
}

/// What was sent of a body that has no end.
fn sent(fake: &Fake, kind: Kind) -> u64 {
    fake.log().of(kind).0.iter().map(|entry| entry.sent).max().unwrap_or_default()
}

/// What lies in the buffers of sockets besides what was read.
const IN_BUFFERS: u64 = 16 * MIB;

#[tokio::test]
async fn nothing_endless_is_read_to_its_end() {
    for framing in [Framing::Chunked, Framing::UntilClose, Framing::Length] {
        let scene = Scene::new().await;
        let mut body = endless().with("Content-Type", OCI_MANIFEST);
        body.edit(&Edit::Framing(framing));
        let rules = [
            (Kind::Manifest, scene.path(Subject::Tag)),
            (Kind::Tags, format!("/v2/{NAME}/tags/list")),
            (Kind::Referrers, format!("/v2/{NAME}/referrers/{}", scene.image.digest)),
            (Kind::Blob, scene.path(Subject::Blob)),
        ];
        for (kind, path) in rules {
            let mut body = body.clone();
            if kind == Kind::Referrers {
                body.edit(&Edit::Header("Content-Type", Some(OCI_INDEX.to_owned())));
            }
            if kind == Kind::Blob {
                scene.client().manifest(NAME, "latest").expect(200).await;
            }
            let rule = scene.fake.rule(When::kind(kind), Then::reply(body));
            let began = Instant::now();
            let reply = scene.client().get(&path).send().await;
            assert!(began.elapsed() < IN_TIME, "{kind:?} took {:?}", began.elapsed());
            let hidden = kind == Kind::Referrers && reply.status == 404;
            if !hidden {
                is_clean_failure(&reply, false, &format!("{kind:?} {framing:?}"));
            }
            rule.expect_hit();
            assert!(sent(&scene.fake, kind) < 8 * MIB + IN_BUFFERS, "{kind:?} {framing:?}");
            scene.fake.remove(&rule);
        }
        scene.world.downloads_over().await;
        pull(&scene.client(), NAME, "latest", &scene.image).await;
        scene.world.finish().await;
    }
}

#[tokio::test]
async fn endless_errors_are_errors() {
    for status in [400, 401, 403, 404, 429, 500, 503] {
        let scene = Scene::new().await;
        let mut body = endless();
        body.status = status;
        let rule = scene.fake.rule(When::any(), Then::reply(body));
        let began = Instant::now();
        let reply = scene.client().get(&scene.path(Subject::Tag)).send().await;
        assert!(began.elapsed() < IN_TIME, "{status} took {:?}", began.elapsed());
        assert!([403, 404, 502, 503].contains(&reply.status), "{status}: {reply:?}");
        assert!(sent(&scene.fake, Kind::Manifest) < IN_BUFFERS, "{status}");
        scene.fake.remove(&rule);
        scene.world.advance(Duration::from_secs(120));
        // By digest, because the absence of a tag is remembered for some seconds.
        assert_eq!(scene.ask(Subject::Digest, false, "after an endless error").await, Right);
        scene.world.finish().await;
    }
}

/// Page after page, each with a link to the next.
fn endless_pages(fake: &Fake, kind: Kind, page: fn(usize) -> Reply) {
    for number in 0..40 {
        let link = format!("<?last={number}>; rel=\"next\"");
        let when = When::kind(kind).starting_at(number + 1).once();
        let number = usize::try_from(number).expect("small");
        fake.rule(when, Then::reply(page(number).with("Link", link)));
    }
}

#[tokio::test]
async fn endless_pages_end_at_their_limit() {
    let scene = Scene::new().await;
    endless_pages(&scene.fake, Kind::Tags, |number| {
        Reply::json(200, &json!({"name": NAME, "tags": [format!("v{number}")]}))
    });
    let reply = scene.client().get(&format!("/v2/{NAME}/tags/list")).expect(200).await;
    assert_eq!(reply.json()["tags"].as_array().map(Vec::len), Some(20));
    scene.fake.log().of(Kind::Tags).expect(20, "`tag_pages`");
    endless_pages(&scene.fake, Kind::Referrers, |_number| {
        Reply::json(200, &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}))
            .with("Content-Type", OCI_INDEX)
    });
    let path = format!("/v2/{NAME}/referrers/{}", scene.image.digest);
    let reply = scene.client().get(&path).send().await;
    assert!([200, 404].contains(&reply.status), "{reply:?}");
    assert!(scene.fake.log().of(Kind::Referrers).len() <= 20);
    scene.world.finish().await;
}

#[tokio::test]
async fn lies_of_the_token_service() {
    let long = format!("{{\"token\":\"{}\"}}", "x".repeat(200_000));
    let mut endless = endless();
    endless.edit(&Edit::Framing(Framing::Chunked));
    let lies = [
        Then::reply(Reply::html(200)),
        Then::reply(endless),
        Then::edit(Edit::Body(long.into())),
        Then::edit(Edit::Body("".into())),
        Then::edit(Edit::Body("{\"token\":\"a\\r\\nX: y\"}".into())),
        Then::edit(Edit::Body("{\"token\":7,\"expires_in\":-1}".into())),
        Then::edit(Edit::Body(format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)).into())),
        Then::edit(Edit::Gzip),
        Then::edit(Edit::LengthOff(5)),
        Then::edit(Edit::Status(204)),
        Then::reply(Reply::redirect(307, "http://127.0.0.2:1/")),
        Then::Raw("HTTP/1.1 100 Continue\r\n\r\n".repeat(50_000).into()),
        Then::Drop { reset: true },
        Then::stall_at(5),
    ];
    for then in lies {
        let what = format!("{then:.100?}");
        let scene = Scene::with(
            "username = \"joe\"\npassword = \"pass-of-joe-0815\"\nprivate = \"shared\"",
        )
        .await;
        scene.fake.auth(|auth| {
            auth.mode = Mode::Bearer;
            auth.users = vec![("joe".to_owned(), "pass-of-joe-0815".to_owned())];
        });
        let rule = scene.fake.rule(When::token().early(), then);
        assert_eq!(scene.ask(Subject::Tag, false, &what).await, Fails, "{what}");
        rule.expect_hit();
        assert!(sent(&scene.fake, Kind::Token) < IN_BUFFERS, "{what}");
        scene.fake.remove(&rule);
        // A failure is shared for a second, so that a failing service is not hammered.
        let began = Instant::now();
        while scene.ask(Subject::Tag, false, &what).await != Right {
            assert!(began.elapsed() < Duration::from_secs(3), "after {what}");
        }
        scene.world.finish().await;
    }
}

/// A document under a tag, with all that upstream says about it true.
async fn serve_document(document: impl Into<Bytes>, media_type: &str) -> (Response, bool) {
    let scene = Scene::new().await;
    let image = Image::from_bytes(media_type, document.into(), Vec::new(), Vec::new());
    scene.fake.push(NAME, "odd", &image);
    let began = Instant::now();
    let reply = scene.client().manifest(NAME, "odd").send().await;
    assert!(began.elapsed() < IN_TIME, "took {:?}", began.elapsed());
    if reply.status == 200 {
        is_manifest(&reply, &image);
    } else {
        is_clean_failure(&reply, false, &format!("{:.80?}", image.bytes));
    }
    let stored = scene.world.has_stored(&image.digest);
    scene.world.finish().await;
    (reply, stored)
}

fn descriptor(media_type: &str) -> String {
    let digest = Blob::layer("x", 10).digest;
    format!("{{\"mediaType\":\"{media_type}\",\"digest\":\"{digest}\",\"size\":10}}")
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[tokio::test]
async fn documents_that_are_no_manifest_are_refused_and_not_stored() {
    let one = descriptor(LAYER);
    let config = descriptor("application/vnd.oci.image.config.v1+json");
    let whole = format!("\"config\":{config},\"layers\":[{one}]");
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let with_size = |size: &str| {
        format!("{{\"schemaVersion\":2,\"config\":{},\"layers\":[]}}", config.replace("10}", size))
    };
    let mut binary = format!("{{\"schemaVersion\":2,{whole}}}").into_bytes();
    binary[20] = 0xff;
    let documents: Vec<(&str, Bytes)> = vec![
        ("deep alone", nested.into()),
        ("deep objects", format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)).into()),
        ("duplicate keys", format!("{{\"schemaVersion\":2,{whole},{whole}}}").into()),
        ("a byte order mark", format!("\u{feff}{{\"schemaVersion\":2,{whole}}}").into()),
        ("a NUL behind", format!("{{\"schemaVersion\":2,{whole}}}\0").into()),
        ("no UTF-8", binary.into()),
        ("hybrid", format!("{{\"schemaVersion\":2,{whole},\"manifests\":[{one}]}}").into()),
        ("a negative size", with_size("-1}").into()),
        ("a size beyond all", with_size("99999999999999999999}").into()),
        ("a size with a fraction", with_size("1.5}").into()),
        ("a bad digest", format!("{{\"schemaVersion\":2,{}}}", whole.replace("sha256:", "sha256:zz")).into()),
        ("a path as digest", format!("{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"{LAYER}\",\"digest\":\"sha256:../../etc\",\"size\":1}},\"layers\":[]}}").into()),
        ("two documents", format!("{{\"schemaVersion\":2,{whole}}}{{\"schemaVersion\":2,{whole}}}").into()),
        ("too large", format!("{{\"schemaVersion\":2,{whole}}}{}", " ".repeat(8 << 20)).into()),
        ("a hundred thousand layers", format!("{{\"schemaVersion\":2,\"config\":{config},\"layers\":[{}]}}", vec![one.as_str(); 100_000].join(",")).into()),
    ];
    for (name, document) in documents {
        let (reply, stored) = serve_document(document, OCI_MANIFEST).await;
        assert_eq!(reply.status, 502, "{name}: {:.300}", reply.text());
        assert!(!stored, "{name}");
    }
}

#[tokio::test]
async fn odd_documents_that_are_manifests_are_served_as_they_are() {
    let one = descriptor(LAYER);
    let config = descriptor("application/vnd.oci.image.config.v1+json");
    let layers = vec![one.as_str(); 30_000].join(",");
    // A member that nobody knows may be as deep as it likes: it is skipped, not descended into.
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for document in [
        format!("{{\"schemaVersion\":2,\"config\":{config},\"layers\":[{layers}]}}"),
        format!(
            "{{\"schemaVersion\":2,\"config\":{config},\"layers\":[{one}],\"x\":\"{}\"}}",
            "y".repeat(5 << 20)
        ),
        format!("{{\"schemaVersion\":2,\"config\":{config},\"layers\":[{one}],\"x\":{nested}}}"),
        format!("\n\t {{\"schemaVersion\" : 2 , \"config\" : {config}, \"layers\":[]}} \n\n"),
        format!(
            "{{\"schemaVersion\":2,\"config\":{config},\"layers\":[],\"annotations\":{{\"\\u0000\":\"\\ud83d\\ude00\"}}}}"
        ),
    ] {
        let (reply, stored) = serve_document(document, OCI_MANIFEST).await;
        assert_eq!(reply.status, 200, "{:.300}", reply.text());
        assert!(stored);
    }
}

#[tokio::test]
async fn an_index_that_is_said_to_be_its_own_child() {
    let scene = Scene::new().await;
    let child = Image::single("child");
    let index = Image::from_bytes(
        OCI_INDEX,
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child.descriptor()]})
            .to_string(),
        Vec::new(),
        vec![child.clone()],
    );
    scene.fake.push(NAME, "loop", &index);
    let rule = scene.fake.rule(
        When::manifest().about(&child.digest),
        Then::Alter(vec![
            Edit::Body(index.bytes.clone()),
            Edit::Header("Content-Type", Some(OCI_INDEX.to_owned())),
        ]),
    );
    is_manifest(&scene.client().manifest(NAME, "loop").expect(200).await, &index);
    let reply = scene.client().manifest(NAME, &child.digest).send().await;
    is_clean_failure(&reply, false, "the parent's bytes for the child");
    rule.expect_hit();
    scene.fake.remove(&rule);
    pull(&scene.client(), NAME, "loop", &index).await;
    scene.world.finish().await;
}

#[tokio::test]
async fn a_tag_that_moves_between_head_and_get() {
    let scene = Scene::with("fresh_for = \"0s\"").await;
    is_manifest(&scene.client().manifest(NAME, "latest").expect(200).await, &scene.image);
    let (second, third) = (Image::single("second"), Image::single("third"));
    scene.fake.push(NAME, "latest", &second);
    let (third_then, second_digest) = (third.clone(), second.digest.clone());
    let moved = scene.fake.rule(
        When::manifest().head().once(),
        Then::run(move |fake| {
            fake.push(NAME, "latest", &third_then);
            fake.delete_manifest(NAME, &second_digest);
        }),
    );
    let reply = scene.client().manifest(NAME, "latest").send().await;
    moved.expect_hit();
    // The old one, the new one, or a failure; never a mixture, and never one that was not there.
    if reply.status == 200 {
        let shown = reply.must("Docker-Content-Digest").to_owned();
        assert_eq!(shown, reply.digest());
        assert!([&scene.image.digest, &third.digest].contains(&&shown), "{shown}");
    } else {
        is_clean_failure(&reply, false, "a tag that moved");
    }
    scene.world.advance(Duration::from_secs(60));
    is_manifest(&scene.client().manifest(NAME, "latest").expect(200).await, &third);
    scene.world.finish().await;
}

#[tokio::test]
async fn lies_about_ranges() {
    let modes = [
        RangeMode::Ignore,
        RangeMode::WrongStart,
        RangeMode::WrongTotal,
        RangeMode::NoContentRange,
        RangeMode::Refuse416,
        RangeMode::BadRequestXml,
    ];
    for mode in modes {
        for range in ["100-", "0-99", "149000-149999", "-500"] {
            let scene = Scene::new().await;
            scene.client().manifest(NAME, "latest").expect(200).await;
            scene.fake.switch(|switch| switch.range = mode);
            let request: Request = scene.client().blob(NAME, &scene.blob.digest).range(range);
            let reply = request.send().await;
            if reply.status == 206 && reply.end == End::Clean {
                let place = reply.must("Content-Range");
                let (first, last) = place["bytes ".len()..]
                    .split_once('/')
                    .and_then(|(part, _)| part.split_once('-'))
                    .expect("a range");
                let (first, last): (usize, usize) =
                    (first.parse().expect("a number"), last.parse().expect("a number"));
                assert_eq!(reply.body, scene.blob.bytes().slice(first..=last), "{mode:?} {range}");
            } else if reply.status == 206 {
                assert_eq!(reply.end, End::Cut, "{mode:?} {range}");
            } else {
                is_clean_failure(&reply, false, &format!("{mode:?} {range}"));
            }
            scene.fake.switch(|switch| switch.range = RangeMode::Honour);
            assert_eq!(scene.ask(Subject::Blob, false, "after a lie about ranges").await, Right);
            scene.world.finish().await;
        }
    }
}

#[tokio::test]
async fn cookies_go_nowhere() {
    let scene = Scene::new().await;
    let cookie = "session=s3cret-c00kie; Path=/";
    scene.fake.rule(When::any(), Then::edit(Edit::Extra("Set-Cookie", cookie.to_owned())));
    pull(&scene.client(), NAME, "latest", &scene.image).await;
    let reply = scene.client().manifest(NAME, "latest").expect(200).await;
    assert_eq!(reply.header("Set-Cookie"), None);
    let log = scene.fake.log();
    assert!(log.0.len() > 2);
    for entry in &log.0 {
        assert_eq!(entry.header("cookie"), None);
    }
    scene.world.finish().await;
}

#[tokio::test]
async fn bytes_that_drip_are_bytes() {
    let scene = Scene::new().await;
    scene.client().manifest(NAME, "latest").expect(200).await;
    let drip = Fault::Drip(30_000, Duration::from_millis(20));
    scene.fake.rule(When::blob(), Then::fault(drip));
    assert_eq!(scene.ask(Subject::Blob, false, "a drip").await, Right);
    scene.world.finish().await;
}
