//! Reads `multipart/byteranges`; what is not well formed fails the test.

use super::client::Response;

/// The parts of a multipart body: their content ranges and bytes.
pub fn parts(reply: &Response) -> Vec<(String, Vec<u8>)> {
    let kind = reply.must("Content-Type");
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap_or_else(|| panic!("{kind} is no multipart type"))
        .trim_matches('"');
    let mut found = Vec::new();
    let mut rest = &reply.body[..];
    let delimiter = format!("--{boundary}");
    loop {
        let at = find(rest, delimiter.as_bytes()).expect("a part begins with the boundary");
        rest = &rest[at + delimiter.len()..];
        if rest.starts_with(b"--") {
            return found;
        }
        let head = find(rest, b"\r\n\r\n").expect("a part has a head");
        let text = String::from_utf8_lossy(&rest[..head]).into_owned();
        let line = text
            .lines()
            .find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-range").then(|| value.trim().to_owned())
            })
            .expect("a part has its Content-Range");
        let (first, last) = line
            .strip_prefix("bytes ")
            .and_then(|text| text.split_once('/'))
            .and_then(|(range, _)| range.split_once('-'))
            .expect("a Content-Range names bytes");
        let length = last.parse::<usize>().expect("a number") + 1
            - first.parse::<usize>().expect("a number");
        found.push((line.clone(), rest[head + 4..head + 4 + length].to_vec()));
        rest = &rest[head + 4 + length..];
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
