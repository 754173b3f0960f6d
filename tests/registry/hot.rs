//! The short way of warm manifests: it says to the last header what the long way says, obeys the same rules at once, and makes almost
//! nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::support::client::{Request, Response};
use crate::support::content::Image;
use crate::support::fake::Fake;
use crate::support::gate::within;
use crate::support::pull::{is_hit, is_manifest, pulled};
use crate::support::world::World;

const NAME: &str = "team/app";
/// A header that sends a request the long way.
const LONG: (&str, &str) = ("Via", "1.1 proxy.example");
/// Allocations of one warm request on a kept connection, all in all: hyper's, the server's, and the record's. Of these, the access log
/// makes none here, because nobody listens to it.
const ALLOCATIONS_MAX: u64 = 12;
const WARM_UP: u32 = 200;
const COUNTED: u32 = 1000;

/// Headers, without those that differ from request to request.
fn lasting(reply: &Response) -> Vec<(String, String)> {
    let mut headers = reply.headers.clone();
    headers.retain(|(name, _)| match &*name.to_ascii_lowercase() {
        "date" | "x-request-id" => false,
        // The body of an error names the request, whose number grows.
        "content-length" => reply.status < 400,
        _ => true,
    });
    headers.sort();
    headers
}

async fn both_ways(what: &str, ask: impl Fn() -> Request) -> Response {
    let (long_name, long_value) = LONG;
    let long = ask().header(long_name, long_value).send().await;
    let short = ask().send().await;
    assert_eq!(short.status, long.status, "{what}");
    assert_eq!(lasting(&short), lasting(&long), "{what}");
    let body = |reply: &Response| reply.text().replace(reply.must("X-Request-Id"), "its id");
    assert_eq!(body(&short), body(&long), "{what}");
    assert_ne!(short.must("X-Request-Id"), long.must("X-Request-Id"), "{what}");
    short
}

#[tokio::test]
async fn both_ways_say_the_same() {
    let image = Image::index("both ways");
    let (_fake, world) = pulled(NAME, &image).await;
    let quoted = format!("\"{}\"", image.digest);
    let clients = [
        ("bare", world.client(), NAME.to_owned()),
        ("by prefix", world.client(), format!("docker.io/{NAME}")),
        ("with ns", world.client().ns("docker.io"), NAME.to_owned()),
        ("with both", world.client().ns("docker.io"), format!("docker.io/{NAME}")),
        ("with an alias", world.client().ns("index.docker.io"), NAME.to_owned()),
        ("in capitals", world.client().ns("Docker.IO"), NAME.to_owned()),
        ("with ns that is no name", world.client().ns("%20"), NAME.to_owned()),
    ];
    for (form, client, name) in clients {
        for reference in ["latest", image.digest.as_str(), "absent", "sha256:00", "-"] {
            for method in ["GET", "HEAD"] {
                let path = format!("/v2/{name}/manifests/{reference}");
                let ask = || client.request(method, &path);
                let what = format!("{method} {reference} {form}");
                both_ways(&what, ask).await;
                both_ways(&what, || ask().header("If-None-Match", &quoted)).await;
                both_ways(&what, || ask().header("If-None-Match", "\"other\"")).await;
                both_ways(&what, || ask().header("Range", "bytes=0-1")).await;
            }
        }
    }
    let hit = both_ways("at last", || world.client().manifest(NAME, "latest")).await;
    is_manifest(&hit, &image);
    is_hit(&hit);
    world.finish().await;
}

/// The access line of an answer, without what differs from request to request. The counters are fed from the same values.
async fn line_of(world: &World, reply: &Response) -> String {
    let id = format!("id=\"{}\"", reply.must("X-Request-Id"));
    let line = within("the access line", async {
        loop {
            if let Some(line) = world.log_lines().into_iter().find(|line| line.contains(&id)) {
                return line;
            }
            tokio::task::yield_now().await;
        }
    });
    let line = line.await.replace(&id, "id");
    let (_time, fields) = line.split_once("roadstead::access:").expect("an access line");
    let lasting = |field: &str| match field.split_once('=') {
        Some((name @ ("ms" | "first_byte_ms"), _)) => name.to_owned(),
        _ => field.to_owned(),
    };
    fields.split_whitespace().map(lasting).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn both_ways_leave_the_same_line() {
    let image = Image::index("both lines");
    let (_fake, world) = pulled(NAME, &image).await;
    let quoted = format!("\"{}\"", image.digest);
    for reference in ["latest", &image.digest] {
        for method in ["GET", "HEAD"] {
            for held in ["\"other\"", &quoted] {
                let path = format!("/v2/index.docker.io/{NAME}/manifests/{reference}");
                let ask = || world.client().request(method, &path).header("If-None-Match", held);
                let (name, value) = LONG;
                let long = line_of(&world, &ask().header(name, value).send().await).await;
                let short = line_of(&world, &ask().send().await).await;
                assert_eq!(short, long);
                assert!(short.contains("outcome=\"hit\"") && short.contains(reference), "{short}");
            }
        }
    }
    world.finish().await;
}

#[tokio::test]
async fn a_body_with_the_request_ends_the_connection_the_short_way_too() {
    let image = Image::single("a body");
    let (_fake, world) = pulled(NAME, &image).await;
    let reply = world.client().manifest(NAME, "latest").body("GET / HTTP/1.1\r\n\r\n").send().await;
    assert_eq!(reply.must("Connection"), "close");
    is_manifest(&reply, &image);
    world.finish().await;
}

#[tokio::test]
async fn a_move_and_an_end_count_for_what_is_ready() {
    let (old, new) = (Image::single("old"), Image::single("new"));
    let fake = Fake::start().await;
    fake.push(NAME, "latest", &old);
    let world = World::builder().upstream("docker.io", &fake).fresh_for("60s").start().await;
    let latest = || world.client().manifest(NAME, "latest");
    for _ in 0..3 {
        is_manifest(&latest().expect(200).await, &old);
    }
    fake.push(NAME, "latest", &new);
    is_manifest(&latest().expect(200).await, &old);
    world.advance(Duration::from_secs(61));
    for _ in 0..3 {
        is_manifest(&latest().expect(200).await, &new);
        is_manifest(&world.client().manifest(NAME, &old.digest).expect(200).await, &old);
    }
    fake.untag(NAME, "latest");
    world.advance(Duration::from_secs(61));
    for _ in 0..3 {
        latest().expect(404).await;
        is_manifest(&world.client().manifest(NAME, &new.digest).expect(200).await, &new);
    }
    world.finish().await;
}

#[tokio::test]
async fn a_reload_counts_for_what_is_ready() {
    let image = Image::single("reload");
    let (fake, mut world) = pulled(NAME, &image).await;
    for _ in 0..2 {
        is_hit(&world.client().manifest(NAME, "latest").send().await);
        is_hit(&world.client().manifest(NAME, &image.digest).send().await);
    }
    let deny = "deny = [\"team/*\"]";
    let denied = world.reload_with(|builder| builder.upstream_with("docker.io", &fake, deny));
    denied.expect("a good file");
    world.client().manifest(NAME, "latest").expect(403).await;
    world.client().manifest(NAME, &image.digest).expect(403).await;
    let open = world.reload_with(|builder| builder.upstream("docker.io", &fake));
    open.expect("a good file");
    is_hit(&world.client().manifest(NAME, "latest").send().await);
    world.finish().await;
}

/// Counts what a thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() {
    // A thread that ends allocates without being counted.
    if ALLOCATIONS.try_with(|count| count.set(count.get() + 1)).is_err() {}
}

#[expect(unsafe_code, reason = "an allocator has no safe interface; each call is the system's own")]
// SAFETY: every method hands its arguments on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

/// Asks so many times on one connection.
type Asking = Box<dyn FnMut(u32) + Send>;

fn ask(address: SocketAddr, request: &str, length: usize) -> Asking {
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let request = request.to_owned();
    let mut buffer = vec![0; 64 << 10];
    Box::new(move |times| {
        for _ in 0..times {
            stream.write_all(request.as_bytes()).expect("the server reads");
            let (mut filled, mut whole) = (0, usize::MAX);
            while filled < whole {
                let count = stream.read(&mut buffer[filled..]).expect("the server answers");
                assert_ne!(count, 0, "the connection was kept");
                filled += count;
                let head = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n");
                if let Some(head) = head {
                    assert!(buffer.starts_with(b"HTTP/1.1 200 OK\r\n"));
                    whole = head + 4 + length;
                }
            }
            assert_eq!(filled, whole);
        }
    })
}

async fn asked(mut client: Asking, times: u32) -> Asking {
    let work = move || {
        client(times);
        client
    };
    tokio::task::spawn_blocking(work).await.expect("the client is content")
}

#[tokio::test]
async fn a_warm_manifest_allocates_almost_nothing() {
    let image = Image::single("allocations");
    let (_fake, world) = pulled(NAME, &image).await;
    // The product runs on this thread, its access log too. The client has a thread of its own.
    let _silent = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::new());
    let address = world.client().address();
    for (method, length) in [("GET", image.bytes.len()), ("HEAD", 0)] {
        for reference in ["latest", &image.digest] {
            let request = format!(
                "{method} /v2/{NAME}/manifests/{reference} HTTP/1.1\r\nHost: {address}\r\n\r\n"
            );
            let client = asked(ask(address, &request, length), WARM_UP).await;
            let before = ALLOCATIONS.get();
            let client = asked(client, COUNTED).await;
            let each = (ALLOCATIONS.get() - before) / u64::from(COUNTED);
            println!("{method} {reference}: {each} allocations");
            assert!(
                (1..=ALLOCATIONS_MAX).contains(&each),
                "{method} {reference}: {each} allocations"
            );
            drop(client);
        }
    }
    world.finish().await;
}
