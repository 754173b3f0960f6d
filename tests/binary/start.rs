//! Starting, refusing to start, reloading and stopping.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use tempfile::TempDir;

use crate::process::{Roadstead, binary, command, run};
use crate::support::client::Client;
use crate::support::content::Image;
use crate::support::fake::{Fake, ca_pem};

fn serve(directory: &Path, arguments: &[&str]) -> (std::process::ExitStatus, String, String) {
    let mut command = command(directory);
    command.args(["serve", "--listen", "127.0.0.1:0", "--observe", "127.0.0.1:0"]).args(arguments);
    run(command)
}

/// The last line on stderr, which must be the only one that is an error.
fn one_line(stderr: &str) -> &str {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(lines.len(), 1, "one clear line, not: {stderr}");
    lines[0]
}

#[tokio::test]
async fn the_first_start_needs_nothing_and_sigterm_ends_it() {
    let home = TempDir::new().unwrap();
    let mut roadstead = Roadstead::start(home.path(), &[]);
    let client = Client::new(roadstead.data);
    client.get("/v2/").expect(200).await;
    client.get("/livez").expect(200).await;
    Client::new(roadstead.observe).get("/readyz").expect(200).await;
    let page = Client::new(roadstead.observe).get("/metrics").expect(200).await.text();
    assert!(page.contains("roadstead_build_info"), "{page}");
    assert!(home.path().join("roadstead-data/roadstead.db").exists());
    roadstead.wait_for_line("registry-mirrors");
    roadstead.wait_for_line("docker.io");
    roadstead.signal("TERM");
    let (status, _) = roadstead.wait();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_port_in_use_is_one_line() {
    let home = TempDir::new().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = command(home.path());
    command.args(["serve", "--listen", &address, "--observe", "127.0.0.1:0"]);
    let (status, _, stderr) = run(command);
    assert!(!status.success());
    let line = one_line(&stderr);
    assert!(line.contains(&address) && line.contains("in use"), "{line}");
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_is_one_line() {
    let home = TempDir::new().unwrap();
    let roadstead = Roadstead::start(home.path(), &[]);
    let (status, _, stderr) = serve(home.path(), &[]);
    assert!(!status.success());
    let line = one_line(&stderr);
    assert!(
        line.contains("roadstead-data") && line.contains(&roadstead.pid().to_string()),
        "{line}"
    );
    Client::new(roadstead.data).get("/v2/").expect(200).await;
}

#[tokio::test]
async fn an_unwritable_directory_names_the_uid_and_the_chown_line() {
    let home = TempDir::new().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = home.path().join("roadstead");
    // By another process: while this one held it open for writing, a child that another test forks would hold it too, and what is
    // open for writing cannot be executed.
    let copied = std::process::Command::new("cp").arg(binary()).arg(&copy).status().unwrap();
    assert!(copied.success());
    let data = home.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o555)).unwrap();
    let mut command = std::process::Command::new(&copy);
    command.current_dir("/").env_clear();
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--observe", "127.0.0.1:0", "--data"])
        .arg(&data);
    // Root may write anywhere, so the test becomes nobody if it can; an ordinary user is already stopped by the mode.
    let root = fs::metadata("/proc/self").unwrap();
    let uid = if std::os::unix::fs::MetadataExt::uid(&root) == 0 {
        command.uid(65_534).gid(65_534);
        65_534
    } else {
        std::os::unix::fs::MetadataExt::uid(&root)
    };
    let (status, _, stderr) = run(command);
    assert!(!status.success());
    let line = one_line(&stderr);
    assert!(line.contains(&uid.to_string()) && line.contains("chown"), "{line}");
}

#[tokio::test]
async fn a_foreign_directory_is_refused_and_left_alone() {
    let home = TempDir::new().unwrap();
    let photos = home.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("beach.jpg"), "x").unwrap();
    let (status, _, stderr) = serve(home.path(), &["--data", "photos"]);
    assert!(!status.success());
    assert!(one_line(&stderr).contains("photos"), "{stderr}");
    let names: Vec<_> =
        fs::read_dir(&photos).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["beach.jpg"]);
}

#[tokio::test]
async fn a_file_in_place_of_the_data_directory_is_told_as_such() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("data"), "x").unwrap();
    for data in ["data", "data/below"] {
        let (status, _, stderr) = serve(home.path(), &["--data", data]);
        assert!(!status.success());
        let line = one_line(&stderr);
        assert!(line.contains("data") && line.contains("not a directory"), "{line}");
        assert!(line.contains("--data"), "{line}");
    }
}

#[tokio::test]
async fn a_renewed_authority_is_read_at_a_reload() {
    let fake = Fake::start_tls(true).await;
    fake.push("team/app", "v1", &Image::single("renewed"));
    let home = TempDir::new().unwrap();
    let ca = home.path().join("ca.pem");
    let another = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    fs::write(&ca, another.cert.pem()).unwrap();
    let text = format!("[upstream.\"new.test\"]\nurl = \"{}\"\nca_file = \"ca.pem\"\n", fake.url());
    fs::write(home.path().join("r.toml"), text).unwrap();
    let roadstead = Roadstead::start(home.path(), &["--config", "r.toml"]);
    let client = Client::new(roadstead.data);
    let path = "/v2/new.test/team/app/manifests/v1";
    client.get(path).expect(502).await;

    fs::write(&ca, ca_pem()).unwrap();
    roadstead.signal("HUP");
    roadstead.wait_for_log("the configuration was reloaded");
    client.get(path).expect(200).await;
}

#[tokio::test]
async fn all_mistakes_of_a_file_are_reported_at_once() {
    let home = TempDir::new().unwrap();
    let text = "listen = \"nowhere\"\nttl = \"5m\"\n[upstream.\"ghcr.io\"]\nurl = \"ftp://x\"\nprivate = \"maybe\"\n";
    fs::write(home.path().join("r.toml"), text).unwrap();
    for arguments in [["check-config", "--config"], ["serve", "--config"]] {
        let mut command = command(home.path());
        command.args(arguments).arg("r.toml");
        let (status, _, stderr) = run(command);
        assert_eq!(status.code(), Some(2), "{stderr}");
        for part in ["r.toml:1", "r.toml:2", "r.toml:4", "r.toml:5", "fresh_for"] {
            assert!(stderr.contains(part), "{part} is missing in {stderr}");
        }
    }
}

#[tokio::test]
async fn the_environment_of_distribution_is_translated() {
    let home = TempDir::new().unwrap();
    let mut command = command(home.path());
    command.env("REGISTRY_PROXY_REMOTEURL", "https://registry-1.docker.io").arg("serve");
    let (status, _, stderr) = run(command);
    assert!(!status.success());
    assert!(stderr.contains("REGISTRY_PROXY_REMOTEURL") && stderr.contains("upstream"), "{stderr}");
}

#[tokio::test]
async fn sighup_takes_a_good_file_and_refuses_a_bad_one() {
    let fake = Fake::start().await;
    let image = Image::single("reload");
    fake.push("team/app", "v1", &image);
    let home = TempDir::new().unwrap();
    let file = home.path().join("r.toml");
    fs::write(&file, "builtin_upstreams = true\n").unwrap();
    let roadstead = Roadstead::start(home.path(), &["--config", "r.toml"]);
    let client = Client::new(roadstead.data);
    client.get("/v2/new.test/team/app/manifests/v1").expect(404).await;

    fs::write(&file, format!("[upstream.\"new.test\"]\nurl = \"{}\"\n", fake.url())).unwrap();
    roadstead.signal("HUP");
    roadstead.wait_for_log("the configuration was reloaded");
    client.get("/v2/new.test/team/app/manifests/v1").expect(200).await;

    fs::write(&file, "[upstream.\"new.test\"]\nurl = 7\n").unwrap();
    roadstead.signal("HUP");
    roadstead.wait_for_log("was not reloaded");
    client.get("/v2/new.test/team/app/manifests/v1").expect(200).await;
}

#[tokio::test]
async fn sigterm_lets_a_running_body_finish() {
    let fake = Fake::start().await;
    let image = Image::single("drain");
    fake.push("team/app", "v1", &image);
    let home = TempDir::new().unwrap();
    let upstream = format!("up.test={}", fake.url());
    let roadstead = Roadstead::start(home.path(), &["--upstream", &upstream]);
    let client = Client::new(roadstead.data);
    client.get("/v2/up.test/team/app/manifests/v1").expect(200).await;
    let layer = image.all_blobs()[1].clone();
    let body = client.blob("up.test/team/app", &layer.digest).open().await;
    roadstead.signal("TERM");
    assert_eq!(body.rest().await.digest(), layer.digest);
    assert!(roadstead.wait().0.success());
}

#[tokio::test]
async fn every_request_before_sigterm_is_in_the_log() {
    const REQUESTS: usize = 50;
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("r.toml"), "log_format = \"json\"\n").unwrap();
    let roadstead = Roadstead::start(home.path(), &["--config", "r.toml"]);
    let client = Client::new(roadstead.data);
    for number in 0..REQUESTS {
        client.get(&format!("/no/{number}/%1b%0a")).expect(400).await;
    }
    roadstead.signal("TERM");
    let log = roadstead.log.clone();
    assert!(roadstead.wait().0.success());
    let text = fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let access: Vec<_> = lines.filter(|line| line["target"] == "roadstead::access").collect();
    assert_eq!(access.len(), REQUESTS, "{text}");
    // A line may be made when its client has the answer already, so neighbours may change places.
    for number in 0..REQUESTS {
        let path = format!("/no/{number}/%1b%0a");
        let line = access.iter().find(|line| line["reference"] == *path).expect(&path);
        assert_eq!((&line["status"], &line["outcome"]), (&400.into(), &"refused".into()));
    }
}
