//! The writer: order, batches, the end, and what happens when nobody reads.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, Sender};

use super::*;

/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sink that the test can read.
#[derive(Clone)]
pub(crate) struct Shared(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Vec::new())))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// A sink that hands over what is written and waits for permission.
struct Gate {
    written: Sender<Vec<u8>>,
    permit: Receiver<()>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.send(bytes.to_vec()).unwrap();
        self.permit.recv().unwrap();
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A sink that takes a few bytes now and then, and else says that it would have to wait.
struct Busy {
    sink: Shared,
    calls: usize,
}

impl Write for Busy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        match self.calls % 3 {
            0 => self.sink.write(&bytes[..bytes.len().div_ceil(2)]),
            1 => Err(io::ErrorKind::Interrupted.into()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer whose sink is held, what is written, the permits, and what is reported as dropped.
fn held(style: Style) -> (Writer, Receiver<Vec<u8>>, Sender<()>, Receiver<u64>) {
    let (written, was_written) = mpsc::channel();
    let (permit, permits) = mpsc::channel();
    let (report, reports) = mpsc::channel();
    let report = move |dropped| report.send(dropped).unwrap();
    let writer = Writer::start(Gate { written, permit: permits }, style, report).unwrap();
    (writer, was_written, permit, reports)
}

fn nothing_dropped(dropped: u64) {
    panic!("{dropped} lines were dropped");
}

fn access(path: &str) -> AccessLine {
    AccessLine::odd(path, "id", (200, 7, 0))
}

#[test]
fn lines_arrive_whole_and_in_order() {
    let sink = Shared::new();
    let writer = Writer::start(sink.clone(), Style::Text, nothing_dropped).unwrap();
    let mut queue = writer.queue();
    for number in 0..1000 {
        writeln!(queue, "line {number}").unwrap();
    }
    writer.finish();
    let wanted: String = (0..1000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(sink.text(), wanted);
}

#[test]
fn a_sink_that_would_not_wait_loses_nothing() {
    let sink = Shared::new();
    let busy = Busy { sink: sink.clone(), calls: 0 };
    let writer = Writer::start(busy, Style::Text, nothing_dropped).unwrap();
    let mut queue = writer.queue();
    let wanted: String = (0..100).map(|number| format!("line {number}\n")).collect();
    queue.write_all(wanted.as_bytes()).unwrap();
    writer.finish();
    assert_eq!(sink.text(), wanted);
}

#[test]
fn the_end_writes_every_line_of_every_thread_whole_and_in_its_order() {
    const THREADS: usize = 4;
    const LINES: usize = 1000;
    let sink = Shared::new();
    let writer = Writer::start(sink.clone(), Style::Json, nothing_dropped).unwrap();
    thread::scope(|scope| {
        for name in 0..THREADS {
            let mut queue = writer.queue();
            scope.spawn(move || {
                for number in 0..LINES {
                    let path = format!("/{name}/{number}");
                    if number % 10 == 0 {
                        // At once: `writeln!` would write it in pieces, and each write is a line.
                        let line = format!("{{\"reference\":\"{path}\"}}\n");
                        queue.write_all(line.as_bytes()).unwrap();
                    } else {
                        queue.send(access(&path));
                    }
                }
            });
        }
    });
    writer.finish();
    let mut next = HashMap::<String, usize>::new();
    for line in sink.text().lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a whole line");
        let path = line["reference"].as_str().unwrap();
        let (name, number) = path[1..].split_once('/').unwrap();
        let next = next.entry(name.to_owned()).or_default();
        assert_eq!(number, next.to_string(), "{path}");
        *next += 1;
    }
    assert_eq!(next.values().copied().collect::<Vec<_>>(), [LINES; THREADS]);
}

#[test]
fn a_line_comes_without_another_one_behind_it() {
    let (writer, written, permit, _reports) = held(Style::Text);
    let queue = writer.queue();
    // The first wakes the thread, the others come while it writes or gathers.
    for number in 0..3 {
        queue.send(access(&format!("/{number}")));
        let text = String::from_utf8(written.recv_timeout(PATIENCE).unwrap()).unwrap();
        assert!(text.contains(&format!("reference=\"/{number}\"")), "{text}");
        permit.send(()).unwrap();
    }
    writer.finish();
}

#[test]
fn lines_that_came_meanwhile_leave_with_one_write() {
    let (writer, written, permit, _reports) = held(Style::Text);
    let queue = writer.queue();
    queue.send(access("/first"));
    written.recv_timeout(PATIENCE).unwrap();
    for number in 0..100 {
        queue.send(access(&format!("/{number}")));
    }
    permit.send(()).unwrap();
    let batch = String::from_utf8(written.recv_timeout(PATIENCE).unwrap()).unwrap();
    assert_eq!(batch.lines().count(), 100, "{batch}");
    permit.send(()).unwrap();
    writer.finish();
}

#[test]
fn a_stuck_reader_stops_nobody_costs_bounded_memory_and_hears_what_it_missed() {
    const SENT: u64 = 20_000;
    let (writer, written, permit, reports) = held(Style::Json);
    let mut queue = writer.queue();
    queue.write_all(b"first\n").unwrap();
    written.recv_timeout(PATIENCE).unwrap();
    for _ in 0..SENT / 2 {
        queue.send(access(&"/x".repeat(100)));
        queue.write_all(&[b'x'; 200]).unwrap();
    }
    let state = queue.0.state();
    assert!(state.bytes <= QUEUE_BYTES_MAX);
    let room = state.lines.capacity() * size_of::<Line>();
    assert!(room <= 2 * QUEUE_BYTES_MAX, "room for {room} bytes");
    let (dropped, kept) = (state.dropped, u64::try_from(state.lines.len()).unwrap());
    drop(state);
    assert!(dropped > 0 && dropped + kept == SENT, "{dropped} dropped, {kept} kept");
    assert_eq!(queue.dropped().get(), dropped);
    // From here on the reader takes everything.
    for _ in 0..1000 {
        permit.send(()).unwrap();
    }
    assert_eq!(reports.recv_timeout(PATIENCE).unwrap(), dropped);
    writer.finish();
    assert_eq!(queue.dropped().get(), dropped);
    let longest = written.try_iter().map(|write| write.len()).max().unwrap();
    assert!(longest < WRITE_BYTES + 4096, "{longest} bytes in one write");
}
