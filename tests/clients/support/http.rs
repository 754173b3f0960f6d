//! The smallest HTTP client that can push an image and read a page: one HTTP/1.0 request per connection, so that
//! the answer is never chunked and ends with the connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long the peer may say nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// An answer, read to its end.
pub(super) struct Answer {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Answer {
    /// The first value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A request body: its media type, its length in bytes, and where it comes from.
pub(super) struct Body<'a> {
    pub(super) media_type: &'a str,
    pub(super) length: u64,
    pub(super) source: &'a mut dyn Read,
}

/// Sends one request and reads the whole answer.
pub(super) fn exchange(
    address: SocketAddr,
    method: &str,
    target: &str,
    body: Option<Body<'_>>,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    write!(stream, "{method} {target} HTTP/1.0\r\nHost: {address}\r\n")?;
    if let Some(body) = body {
        let Body { media_type, length, source } = body;
        write!(stream, "Content-Type: {media_type}\r\nContent-Length: {length}\r\n\r\n")?;
        let sent = io::copy(source, &mut stream)?;
        assert_eq!(sent, length, "the body of {method} {target} has its announced length");
    } else {
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        write!(stream, "{length}\r\n")?;
    }
    read_answer(BufReader::new(stream))
}

/// Reads status line, headers and body.
fn read_answer(mut reader: BufReader<TcpStream>) -> io::Result<Answer> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("not a status line: {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok(Answer { status, headers, body })
}
