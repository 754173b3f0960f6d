//! Too few open files: connections wait or are refused, nothing spins, and all is well when there are files again.

use std::time::Duration;

use tempfile::TempDir;

use crate::process::Roadstead;
use crate::support::client::Client;
use crate::support::content::Image;
use crate::support::fake::Fake;
use crate::support::gate::within;

/// Fewer than the places that roadstead keeps at least, with the files of its own.
const FILES: u32 = 70;

/// Processor time of a process so far, in ticks of a hundredth of a second (proc(5), fields 14 and 15 of `stat`).
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn no_descriptors_left_is_a_pause_and_no_end() {
    let fake = Fake::start().await;
    let image = Image::single("files");
    fake.push("team/app", "v1", &image);
    let home = TempDir::new().unwrap();
    let upstream = format!("up.test={}", fake.url());
    let roadstead = Roadstead::start_with_files(home.path(), FILES, &["--upstream", &upstream]);
    let client = Client::new(roadstead.data);
    client.get("/v2/up.test/team/app/manifests/v1").expect(200).await;
    // Each holds a place and a file with a request that never ends.
    let mut greedy = Vec::new();
    for _ in 0..FILES {
        let mut connection = client.connect().await;
        connection.try_send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ").await;
        greedy.push(connection);
    }
    roadstead.wait_for_log("connections cannot be accepted");
    let before = ticks(roadstead.pid());
    // The pause itself is what is measured, so here time has to pass.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let spent = ticks(roadstead.pid()) - before;
    assert!(spent < 50, "{spent} of 200 ticks were spent on trying");
    drop(greedy);
    within("connections to be accepted again", async {
        while client.get("/v2/up.test/team/app/manifests/v1").send().await.status != 200 {}
    })
    .await;
    roadstead.wait_for_log("connections are accepted again");
    let told = roadstead.log_text().matches("connections cannot be accepted").count();
    assert!(told <= 3, "told {told} times");
    roadstead.signal("TERM");
    assert!(roadstead.wait().0.success());
}
