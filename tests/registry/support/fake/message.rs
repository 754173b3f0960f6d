//! Requests and replies of the fake upstream, and the ways in which a reply may be broken.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::super::content::{Data, to_u64};
use super::super::gate::Gate;

/// A request as it came, names of headers in lower case.
#[derive(Clone, Debug)]
pub struct Req {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub http2: bool,
}

impl Req {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All values of one query parameter, decoded.
    pub fn parameters(&self, name: &str) -> Vec<String> {
        form_values(&self.query, name)
    }

    pub fn parameter(&self, name: &str) -> Option<String> {
        self.parameters(name).into_iter().next()
    }

    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }
}

/// All values of one member of an urlencoded form.
pub fn form_values(form: &str, name: &str) -> Vec<String> {
    let decode = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    form.split('&')
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| decode(key) == name)
        .map(|(_, value)| decode(value))
        .collect()
}

/// How the length of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `Content-Length` with the truth.
    Length,
    /// `Content-Length` with this, whatever the body is.
    Claim(u64),
    /// Two `Content-Length` headers, the second one wrong by this.
    Twice(u64),
    Chunked,
    /// No length at all; the end of the connection is the end of the body.
    UntilClose,
}

/// What goes wrong with a body, at a place counted in bytes from the start of this reply's body.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The connection ends with FIN.
    CloseAt(u64),
    /// The connection ends with RST.
    ResetAt(u64),
    /// Nothing more comes until the client goes.
    StallAt(u64),
    /// Nothing more comes until the test opens the gate.
    GateAt(u64, Gate),
    /// This many bytes at a time, with a pause after each.
    Drip(u64, Duration),
    /// One bit of this byte is wrong.
    CorruptAt(u64),
    /// The body ends here as if it were whole (chunked or until close: a clean end).
    EndAt(u64),
}

/// A change to the reply that the fake would otherwise give.
#[derive(Clone, Debug)]
pub enum Edit {
    Status(u16),
    /// Sets a header (all earlier ones of the name go) or removes it.
    Header(&'static str, Option<String>),
    /// Adds one more header line.
    Extra(&'static str, String),
    Body(Bytes),
    /// Bytes behind the body.
    Append(Bytes),
    /// The body compressed, with `Content-Encoding: gzip`.
    Gzip,
    Framing(Framing),
    /// The claimed length is wrong by this.
    LengthOff(i64),
    Fault(Fault),
    /// The connection closes after the reply.
    Close,
}

/// A reply, not yet on the wire.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Data,
    /// The part of `body` that is sent.
    pub part: std::ops::Range<u64>,
    pub framing: Framing,
    pub faults: Vec<Fault>,
    pub close: bool,
}

impl Reply {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Data::Whole(Bytes::new()),
            part: 0..0,
            framing: Framing::Length,
            faults: Vec::new(),
            close: false,
        }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn data(mut self, data: impl Into<Data>) -> Self {
        self.body = data.into();
        self.part = 0..self.body.len();
        self
    }

    pub fn json(status: u16, document: &Value) -> Self {
        Self::new(status)
            .with("Content-Type", "application/json")
            .data(Bytes::from(document.to_string()))
    }

    /// An OCI error document with one error.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let error = json!({"code": code, "message": message, "detail": null});
        Self::json(status, &json!({"errors": [error]}))
    }

    pub fn text(status: u16, text: &str) -> Self {
        Self::new(status)
            .with("Content-Type", "text/plain; charset=utf-8")
            .data(Bytes::from(text.to_owned()))
    }

    pub fn html(status: u16) -> Self {
        let page = "<!DOCTYPE html><html><body><h1>Please log in</h1></body></html>";
        Self::new(status).with("Content-Type", "text/html").data(Bytes::from(page))
    }

    pub fn xml(status: u16, code: &str) -> Self {
        let page = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        Self::new(status).with("Content-Type", "application/xml").data(Bytes::from(page))
    }

    pub fn redirect(status: u16, location: impl Into<String>) -> Self {
        Self::new(status).with("Location", location)
    }

    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    /// The length that the headers tell, if they tell one.
    pub fn claimed(&self) -> Option<u64> {
        match self.framing {
            Framing::Length => Some(self.part.end - self.part.start),
            Framing::Claim(length) => Some(length),
            Framing::Twice(_) => Some(self.part.end - self.part.start),
            Framing::Chunked | Framing::UntilClose => None,
        }
    }

    pub fn edit(&mut self, edit: &Edit) {
        match edit {
            Edit::Status(status) => self.status = *status,
            Edit::Header(name, value) => {
                self.remove(name);
                if let Some(value) = value {
                    self.headers.push(((*name).to_owned(), value.clone()));
                }
            }
            Edit::Extra(name, value) => self.headers.push(((*name).to_owned(), value.clone())),
            Edit::Body(bytes) => *self = self.clone().data(bytes.clone()),
            Edit::Append(bytes) => {
                let mut whole = self.sent();
                whole.extend_from_slice(bytes);
                *self = self.clone().data(Bytes::from(whole));
            }
            Edit::Gzip => self.gzip(),
            Edit::Framing(framing) => self.framing = *framing,
            Edit::LengthOff(off) => {
                let truth = i64::try_from(self.part.end - self.part.start).unwrap_or(i64::MAX);
                self.framing = Framing::Claim(u64::try_from(truth + off).unwrap_or(0));
            }
            Edit::Fault(fault) => self.faults.push(fault.clone()),
            Edit::Close => self.close = true,
        }
    }

    fn sent(&self) -> Vec<u8> {
        self.body.slice(self.part.clone()).to_vec()
    }

    fn gzip(&mut self) {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&self.sent()).expect("a Vec takes everything");
        let packed = encoder.finish().expect("a Vec takes everything");
        *self = self.clone().data(Bytes::from(packed)).with("Content-Encoding", "gzip");
    }
}

/// What the sender does next.
pub enum Step {
    Send(Bytes),
    Cut { reset: bool },
    Pass(Gate),
    Stall,
    Pause(Duration),
    Done,
}

/// The largest piece that is sent at once.
const PIECE: u64 = 64 * 1024;

/// Turns a reply's body and its faults into steps; the transports carry them out.
pub struct Pump {
    body: Data,
    at: u64,
    end: u64,
    sent: u64,
    faults: Vec<Fault>,
    drip: Option<(u64, Duration)>,
    pause: Option<Duration>,
}

impl Pump {
    pub fn new(reply: &Reply) -> Self {
        let mut end = reply.part.end;
        let mut faults = Vec::new();
        let mut drip = None;
        for fault in &reply.faults {
            match fault {
                Fault::EndAt(at) => end = end.min(reply.part.start + at),
                Fault::Drip(bytes, every) => drip = Some((*bytes, *every)),
                other => faults.push(other.clone()),
            }
        }
        let at = reply.part.start;
        Self { body: reply.body.clone(), at, end, sent: 0, faults, drip, pause: None }
    }

    pub fn step(&mut self) -> Step {
        if let Some(pause) = self.pause.take() {
            return Step::Pause(pause);
        }
        let due = self.faults.iter().position(|fault| place(fault) == Some(self.sent));
        if let Some(due) = due {
            return match self.faults.remove(due) {
                Fault::CloseAt(_) => Step::Cut { reset: false },
                Fault::ResetAt(_) => Step::Cut { reset: true },
                Fault::GateAt(_, gate) => Step::Pass(gate),
                _ => Step::Stall,
            };
        }
        if self.at >= self.end {
            return Step::Done;
        }
        let boundary = self.faults.iter().filter_map(place).filter(|at| *at > self.sent).min();
        let room = boundary.map_or(u64::MAX, |at| at - self.sent);
        let piece = self.drip.map_or(PIECE, |(bytes, _)| bytes);
        let length = piece.min(room).min(self.end - self.at);
        let mut bytes = self.body.slice(self.at..self.at + length);
        for fault in &self.faults {
            if let Fault::CorruptAt(at) = fault
                && (self.sent..self.sent + length).contains(at)
            {
                let mut wrong = bytes.to_vec();
                let index = usize::try_from(at - self.sent).expect("inside this piece");
                wrong[index] ^= 1;
                bytes = Bytes::from(wrong);
            }
        }
        self.at += to_u64(bytes.len());
        self.sent += to_u64(bytes.len());
        self.pause = self.drip.map(|(_, every)| every);
        Step::Send(bytes)
    }
}

fn place(fault: &Fault) -> Option<u64> {
    match fault {
        Fault::CloseAt(at) | Fault::ResetAt(at) | Fault::StallAt(at) | Fault::GateAt(at, _) => {
            Some(*at)
        }
        Fault::Drip(..) | Fault::CorruptAt(_) | Fault::EndAt(_) => None,
    }
}
