//! Reads the corpus of one parser, and makes more inputs from its files. Included by the tests beside the parsers.

use std::path::PathBuf;

use proptest::prelude::*;

/// Changes of one input.
const CHANGES_MAX: usize = 8;
/// Inputs do not grow beyond this by changes.
const BYTES_MAX: usize = 32 * 1024;
/// Pieces that mean something to one parser or another.
const WORDS: [&[u8]; 40] = [
    b"/",
    b"//",
    b"..",
    b"%2f",
    b"%00",
    b"%",
    b":",
    b"@",
    b"?",
    b"&",
    b"=",
    b"-",
    b",",
    b";",
    b"\"",
    b"\\",
    b"<",
    b">",
    b"{",
    b"}",
    b"[",
    b"]",
    b"null",
    b"\0",
    b"\r\n",
    b"\xff",
    b"\xef\xbb\xbf",
    b"v2",
    b"manifests",
    b"blobs",
    b"sha256:",
    b"bytes=",
    b"18446744073709551615",
    b"-1",
    b"1e999",
    b"Bearer ",
    b"realm=",
    b"rel=next",
    b"\xe2\x80\xae",
    b"*",
];

/// One file.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

/// All files of a parser, in the order of their names.
pub(crate) fn inputs(parser: &str) -> Vec<Input> {
    let entries = std::fs::read_dir(root().join(parser)).expect("the parser has a corpus");
    let mut inputs: Vec<Input> = entries
        .map(|entry| {
            let path = entry.expect("the directory can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("names are ASCII");
            Input {
                name: name.to_owned(),
                bytes: std::fs::read(&path).expect("a file can be read"),
            }
        })
        .collect();
    inputs.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(inputs.len() > 5, "a corpus of {} files is none", inputs.len());
    inputs
}

/// Holds each file to the class in its name: `ok`, `no` or `skip`; and each to a line of the index.
pub(crate) fn walk(parser: &str, classify: impl Fn(&[u8]) -> &'static str) {
    let index = std::fs::read_to_string(root().join("README.md")).expect("the index can be read");
    for Input { name, bytes } in inputs(parser) {
        let class = name.split('-').next().unwrap_or_default().to_owned();
        let found = classify(&bytes);
        assert_eq!(found, class, "{parser}/{name}: {:?}", String::from_utf8_lossy(&bytes));
        assert!(
            index.contains(&format!("- `{name}`: ")),
            "{parser}/{name} has no line in the index"
        );
    }
}

/// `ok` or `no`.
pub(crate) fn accepted(accepted: bool) -> &'static str {
    if accepted { "ok" } else { "no" }
}

#[derive(Clone, Debug)]
enum Change {
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, usize),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize, usize),
    Splice(prop::sample::Index, prop::sample::Index),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Flip(at, byte)),
        (at(), 0..WORDS.len()).prop_map(|(at, word)| Change::Insert(at, word)),
        (at(), 1..40_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (at(), 1..40_usize, 1..60_usize)
            .prop_map(|(at, count, times)| Change::Repeat(at, count, times)),
        (at(), at()).prop_map(|(at, other)| Change::Splice(at, other)),
    ]
}

fn apply(bytes: &mut Vec<u8>, change: &Change, all: &[Input]) {
    let place = |at: &prop::sample::Index, length: usize| at.index(length + 1);
    match change {
        Change::Flip(at, byte) => {
            let at = place(at, bytes.len());
            if let Some(slot) = bytes.get_mut(at) {
                *slot ^= *byte;
            }
        }
        Change::Insert(at, word) => {
            let at = place(at, bytes.len());
            bytes.splice(at..at, WORDS[*word].iter().copied());
        }
        Change::Remove(at, count) => {
            let at = place(at, bytes.len());
            let end = (at + count).min(bytes.len());
            bytes.drain(at..end);
        }
        Change::Repeat(at, count, times) => {
            let at = place(at, bytes.len());
            let piece = bytes[at..(at + count).min(bytes.len())].repeat(*times);
            bytes.splice(at..at, piece);
        }
        Change::Splice(at, other) => {
            let at = place(at, bytes.len());
            let other = &all[other.index(all.len())].bytes;
            bytes.truncate(at);
            bytes.extend_from_slice(&other[at.min(other.len())..]);
        }
    }
    bytes.truncate(BYTES_MAX);
}

/// Files of the corpus with some changes, and words in any order.
pub(crate) fn mutated(parser: &str) -> impl Strategy<Value = Vec<u8>> {
    let all = inputs(parser);
    let count = all.len();
    let of_corpus = (0..count, prop::collection::vec(change(), 0..CHANGES_MAX)).prop_map(
        move |(number, changes)| {
            let mut bytes = all[number].bytes.clone();
            changes.iter().for_each(|change| apply(&mut bytes, change, &all));
            bytes
        },
    );
    let of_words = prop::collection::vec(0..WORDS.len(), 0..60)
        .prop_map(|words| words.iter().flat_map(|word| WORDS[*word]).copied().collect());
    prop_oneof![4 => of_corpus, 1 => of_words]
}
