//! The text of access lines, letter by letter that of the log's other lines, made without the general machinery behind those.
//!
//! What must hold: a line is one line whatever its texts hold, because control characters and quotes are escaped; and both forms are
//! those that the library writes for the same event (held by a test).

use std::io::Write as _;
use std::net::IpAddr;

use super::stamp::Stamp;
use crate::server::{ACCESS_TARGET, AccessFields, AccessLine};

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Text,
    /// Text with the colours of a terminal.
    Coloured,
    Json,
}

/// Writes lines into a buffer.
#[derive(Debug)]
pub(super) struct Formatter {
    style: Style,
    stamp: Stamp,
    /// The client of the last line and its text: clients come back.
    client: Option<(IpAddr, String)>,
}

/// One line that is being written.
struct Line<'a, S> {
    style: S,
    out: &'a mut Vec<u8>,
    client: &'a mut Option<(IpAddr, String)>,
}

/// What stands around names and values.
trait Dress {
    fn name(&self, name: &'static str, out: &mut Vec<u8>);
    fn word(&self, word: &str, out: &mut Vec<u8>);
    /// A text that needs escapes.
    fn escaped(&self, text: &str, out: &mut Vec<u8>);
}

struct Text;
struct Coloured;
struct Json;

impl Formatter {
    pub(super) fn new(style: Style) -> Self {
        Self { style, stamp: Stamp::new(), client: None }
    }

    /// To be called before each batch.
    pub(super) fn begin(&mut self) {
        self.stamp.compare();
    }

    /// Appends the line with its end.
    pub(super) fn write(&mut self, line: &AccessLine, out: &mut Vec<u8>) {
        let (stamp, client) = (&mut self.stamp, &mut self.client);
        let mut write_stamp = |out: &mut Vec<u8>| stamp.write(line.ended(), out);
        match self.style {
            Style::Text => {
                write_stamp(out);
                out.extend_from_slice(b"  INFO ");
                out.extend_from_slice(ACCESS_TARGET.as_bytes());
                out.push(b':');
                line.describe(&mut Line { style: Text, out, client });
            }
            Style::Coloured => {
                out.extend_from_slice(b"\x1b[2m");
                write_stamp(out);
                out.extend_from_slice(b"\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2m");
                out.extend_from_slice(ACCESS_TARGET.as_bytes());
                out.extend_from_slice(b"\x1b[0m\x1b[2m:\x1b[0m");
                line.describe(&mut Line { style: Coloured, out, client });
            }
            Style::Json => {
                out.extend_from_slice(b"{\"timestamp\":\"");
                write_stamp(out);
                out.extend_from_slice(b"\",\"level\":\"INFO\"");
                line.describe(&mut Line { style: Json, out, client });
                out.extend_from_slice(b",\"target\":\"");
                out.extend_from_slice(ACCESS_TARGET.as_bytes());
                out.extend_from_slice(b"\"}");
            }
        }
        out.push(b'\n');
    }
}

impl<S: Dress> AccessFields for Line<'_, S> {
    fn address(&mut self, name: &'static str, value: IpAddr) {
        if self.client.as_ref().is_none_or(|(address, _)| *address != value) {
            *self.client = Some((value, value.to_string()));
        }
        self.style.name(name, self.out);
        if let Some((_, text)) = &*self.client {
            self.style.word(text, self.out);
        }
    }

    fn word(&mut self, name: &'static str, value: &str) {
        self.style.name(name, self.out);
        self.style.word(value, self.out);
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.style.name(name, self.out);
        // Without an early end the compiler looks at many bytes at once.
        let is_plain = value.bytes().fold(true, |plain, byte| {
            plain & matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')
        });
        if is_plain {
            quoted(value, self.out);
        } else {
            self.style.escaped(value, self.out);
        }
    }

    fn number(&mut self, name: &'static str, value: u64) {
        self.style.name(name, self.out);
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}

impl Dress for Text {
    fn name(&self, name: &'static str, out: &mut Vec<u8>) {
        out.push(b' ');
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
    }

    fn word(&self, word: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(word.as_bytes());
    }

    fn escaped(&self, text: &str, out: &mut Vec<u8>) {
        write!(out, "{text:?}").expect("a Vec takes all");
    }
}

impl Dress for Coloured {
    fn name(&self, name: &'static str, out: &mut Vec<u8>) {
        out.extend_from_slice(b" \x1b[3m");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\x1b[0m\x1b[2m=\x1b[0m");
    }

    fn word(&self, word: &str, out: &mut Vec<u8>) {
        Text.word(word, out);
    }

    fn escaped(&self, text: &str, out: &mut Vec<u8>) {
        Text.escaped(text, out);
    }
}

impl Dress for Json {
    fn name(&self, name: &'static str, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
    }

    fn word(&self, word: &str, out: &mut Vec<u8>) {
        quoted(word, out);
    }

    fn escaped(&self, text: &str, out: &mut Vec<u8>) {
        serde_json::to_writer(out, text).expect("a Vec takes all, and a text is always JSON");
    }
}

fn quoted(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}
