//! The corpora of what registries and token services send, and what must hold for every input made from them.

use std::time::Duration;

use http::header::{LINK, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use reqwest::Url;

use super::blob::content_range;
use super::challenge::{self, Scheme};
use super::docker_config::{self, RegistryHosts};
use super::listing::next_query;
use super::token_body;
use crate::clock::Timestamp;
use crate::corpus as reader;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
/// The page whose `Link` is read.
const PAGE: &str = "https://r.example/v2/a/tags/list?n=2";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One header line for each line; bytes that no header can hold never come from a registry.
fn challenges(bytes: &[u8]) -> HeaderMap {
    let values =
        bytes.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok());
    values.map(|value| (WWW_AUTHENTICATE, value)).collect()
}

fn next(bytes: &[u8]) -> Option<String> {
    let value = HeaderValue::from_bytes(bytes).ok()?;
    next_query(&HeaderMap::from_iter([(LINK, value)]), &PAGE.parse().expect("a URL"))
}

fn logins(bytes: &[u8]) -> Result<Vec<docker_config::Entry>, String> {
    docker_config::entries(bytes, &RegistryHosts::new(&["ghcr.io"]))
}

#[test]
fn challenges_of_the_corpus() {
    reader::walk("challenge", |bytes| {
        let parsed = challenge::parse(&challenges(bytes));
        reader::accepted(challenge::choose(&parsed).is_some())
    });
}

#[test]
fn links_of_the_corpus() {
    reader::walk("link", |bytes| reader::accepted(next(bytes).is_some()));
}

#[test]
fn content_ranges_of_the_corpus() {
    reader::walk("content-range", |bytes| reader::accepted(content_range(&text(bytes)).is_some()));
}

#[test]
fn token_answers_of_the_corpus() {
    reader::walk("token", |bytes| reader::accepted(token_body::read(bytes, NOW).is_some()));
}

#[test]
fn docker_configs_of_the_corpus() {
    reader::walk("docker-config", |bytes| match logins(bytes) {
        Ok(found) if found.is_empty() => "skip",
        Ok(_) => "ok",
        Err(_) => "no",
    });
}

proptest! {
    #[test]
    fn challenges_are_bounded(bytes in reader::mutated("challenge")) {
        let parsed = challenge::parse(&challenges(&bytes));
        prop_assert!(parsed.len() <= 16);
        if let Some(chosen) = challenge::choose(&parsed) {
            prop_assert!(chosen.scheme != Scheme::Other);
        }
    }

    #[test]
    fn links_stay_at_home(bytes in reader::mutated("link")) {
        if let Some(query) = next(&bytes) {
            let mut page: Url = PAGE.parse().expect("a URL");
            page.set_query(Some(&query));
            prop_assert!(page.as_str().starts_with("https://r.example/v2/a/tags/list?"));
        }
    }

    #[test]
    fn parts_lie_within_the_whole(bytes in reader::mutated("content-range")) {
        if let Some((first, last, total)) = content_range(&text(&bytes)) {
            prop_assert!(first <= last && last < u64::MAX && total.is_none_or(|total| last < total));
            let whole = total.map_or("*".to_owned(), |total| total.to_string());
            prop_assert_eq!(content_range(&format!("bytes {first}-{last}/{whole}")), Some((first, last, total)));
        }
    }

    #[test]
    fn no_token_is_for_ever_and_none_breaks_a_header(bytes in reader::mutated("token")) {
        if let Some(grant) = token_body::read(&bytes, NOW) {
            prop_assert!(grant.usable <= Duration::from_secs(3600) && grant.renew_after <= grant.usable);
            prop_assert!(grant.token.expose().bytes().all(|byte| byte.is_ascii_graphic()));
            let shown = format!("{grant:?}");
            prop_assert!(grant.token.expose().len() < 8 || !shown.contains(grant.token.expose()));
        }
    }

    #[test]
    fn docker_configs_tell_no_secret(bytes in reader::mutated("docker-config")) {
        match logins(&bytes) {
            Ok(found) => {
                let shown = format!("{found:?}");
                prop_assert!(!shown.contains("geheim"));
            }
            Err(message) => prop_assert!(!message.contains("geheim") && message.len() < 500, "{message}"),
        }
    }
}
