//! kill -9 at any moment is harmless (design promise 14).

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::Roadstead;
use crate::support::content::{Blob, Image, sha256};
use crate::support::fake::Fake;

const ROUNDS: u32 = 15;
const SEED: u64 = 20_261_122;

fn images() -> Vec<Image> {
    let image = |number: u64| {
        let name = format!("crash {number}");
        Image::build(&name).layers(3).layer(Blob::synthetic(number + 1, 3_000_000)).finish()
    };
    (0..4).map(image).collect()
}

/// Every file under `blobs/` is what its name says.
fn check_blobs(data: &Path) -> usize {
    let directory = data.join("blobs/sha256");
    let mut count = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        assert_eq!(
            sha256(&bytes),
            format!("sha256:{name}"),
            "a name under blobs/ implies verified content"
        );
        count += 1;
    }
    count
}

/// A GET on a connection of its own; `None` if the process died before the end.
async fn get(server: SocketAddr, path: &str) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let end_of_head = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end_of_head]).to_ascii_lowercase();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
    let body = answer.split_off(end_of_head + 4);
    (body.len() == length.parse::<usize>().ok()?).then_some((status, body))
}

/// Pulls everything until the process dies, or `budget` bytes were taken; what ends cleanly must be right.
async fn pull(server: SocketAddr, image: Image, budget: usize) -> bool {
    let mut taken = 0;
    let manifest = format!("/v2/up.test/team/app/manifests/{}", image.digest);
    let blob =
        |blob: &Blob| (format!("/v2/up.test/team/app/blobs/{}", blob.digest), blob.digest.clone());
    let parts =
        std::iter::once((manifest, image.digest.clone())).chain(image.blobs.iter().map(blob));
    for (path, digest) in parts {
        match get(server, &path).await {
            Some((200, body)) => {
                assert_eq!(sha256(&body), digest, "what ends cleanly is right");
                taken += body.len();
            }
            _ => return false,
        }
        if taken > budget {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_nine_in_a_loop() {
    let fake = Fake::start().await;
    let images = images();
    for (number, image) in images.iter().enumerate() {
        fake.push("team/app", &format!("v{number}"), image);
    }
    let home = TempDir::new().unwrap();
    let data = home.path().join("roadstead-data");
    let upstream = format!("up.test={}", fake.url());
    let mut random = SmallRng::seed_from_u64(SEED);
    for round in 0..ROUNDS {
        let roadstead = Roadstead::start(home.path(), &["--upstream", &upstream]);
        assert_eq!(
            fs::read_dir(data.join("partial")).unwrap().count(),
            0,
            "litter after a restart"
        );
        let server = roadstead.data;
        // The moment of the kill is an amount of bytes taken by one of the clients, drawn by the seed.
        let budget = random.random_range(0..3_500_000usize);
        let victim = usize::try_from(round).unwrap() % images.len();
        let others: Vec<_> = images
            .iter()
            .enumerate()
            .filter(|(number, _)| *number != victim)
            .map(|(_, image)| tokio::spawn(pull(server, image.clone(), usize::MAX)))
            .collect();
        pull(server, images[victim].clone(), budget).await;
        roadstead.kill();
        for other in others {
            other.await.unwrap();
        }
        check_blobs(&data);
    }
    let roadstead = Roadstead::start(home.path(), &["--upstream", &upstream]);
    for image in &images {
        assert!(
            pull(roadstead.data, image.clone(), usize::MAX).await,
            "everything pulls in the end"
        );
    }
    fake.stop().await;
    for image in &images {
        assert!(pull(roadstead.data, image.clone(), usize::MAX).await, "and with upstream gone");
    }
    roadstead.kill();
    let roadstead = Roadstead::start(home.path(), &["--upstream", &upstream, "--offline"]);
    for image in &images {
        assert!(pull(roadstead.data, image.clone(), usize::MAX).await, "and after one more kill");
    }
    assert!(check_blobs(&data) >= images.len() * 5);
}
