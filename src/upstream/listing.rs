//! Lists: tags and referrers, page by page.
//!
//! What must hold: of a `Link` only the query is used, put to our own path, and only if it names the origin that we asked: registries
//! lose prefixes, and an answer must not send us elsewhere. Pages, names and time are limited; a link that comes again ends the list.
//! For referrers whatever is not an index is "unsupported", but an outage is an error: an empty list would read as "unsigned".

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Url;
use serde_json::Value;

use super::ask::{Ask, Failure};
use super::blob::BlobRange;
use super::client::{Client, with_ns};
use super::credentials::Credential;
use super::error::{Cause, Error};
use super::failover::Turn;
use super::memory::Need;
use super::metrics::Kind;
use super::redirect::{Arrival, Hops};
use super::transport::Deadline;
use crate::oci::{Digest, MediaType, RepositoryName, Tag};

/// The page that we ask for: ECR refuses more, Quay gives fewer.
const PAGE: &str = "n=1000";
/// Enough to see whether there is a list.
const PAGE_OF_ONE: &str = "n=1";

impl Client {
    /// See `Upstream::tags`.
    pub(super) async fn tags(
        &self,
        repository: &RepositoryName,
        limit: usize,
        turn: Turn<'_>,
    ) -> Result<Vec<String>, Error> {
        let _place = self.place(turn.deadline).await?;
        let (mut names, mut known) = (Vec::new(), HashSet::new());
        let mut pages = self.pages(repository, "tags/list");
        pages.set_query(Some(PAGE));
        for number in 0..self.limits.tag_pages {
            let deadline = turn.deadline.within(turn.page.min(self.limits.exchange));
            let ask = self.list_ask(Kind::Tags, repository, &pages.url, turn);
            let arrival = match self.ask(&ask, deadline).await {
                Ok(arrival) => arrival,
                // Some refuse the page size, or any.
                Err(failure) if number == 0 && refuses_page_size(&failure) => {
                    pages.set_query(None);
                    let ask = self.list_ask(Kind::Tags, repository, &pages.url, turn);
                    self.ask(&ask, deadline).await?
                }
                // zot, when the last name of the page was deleted meanwhile.
                Err(failure) if number > 0 && failure.error == Error::Absent => break,
                Err(failure) => return Err(failure.error),
            };
            let more = pages.advance(&arrival);
            let body = self.list_body(Kind::Tags, arrival, deadline).await?;
            for name in tags_of(&body)? {
                if names.len() == limit {
                    return Ok(names);
                }
                if name.parse::<Tag>().is_ok() && known.insert(name.clone()) {
                    names.push(name);
                }
            }
            if !more || names.len() == limit {
                break;
            }
        }
        Ok(names)
    }

    /// See `Upstream::referrers`.
    pub(super) async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        turn: Turn<'_>,
    ) -> Result<Option<Bytes>, Error> {
        let _place = self.place(turn.deadline).await?;
        let mut pages = self.pages(repository, &format!("referrers/{digest}"));
        let mut first: Option<Bytes> = None;
        let mut merged: Option<Value> = None;
        let mut merged_bytes = 0;
        for _number in 0..self.limits.tag_pages {
            let deadline = turn.deadline.within(turn.page.min(self.limits.exchange));
            let ask = self.list_ask(Kind::Referrers, repository, &pages.url, turn);
            let arrival = match self.ask(&ask, deadline).await {
                Ok(arrival) => arrival,
                Err(failure) if first.is_none() && is_unsupported(&failure) => return Ok(None),
                Err(failure) => return Err(failure.error),
            };
            if arrival.status() != StatusCode::OK || !is_index(arrival.response.headers()) {
                return match first {
                    None => Ok(None),
                    Some(_) => Err(Error::Junk("a page of referrers that is no index")),
                };
            }
            let more = pages.advance(&arrival);
            let body = self.list_body(Kind::Referrers, arrival, deadline).await?;
            merged_bytes += body.len();
            if u64::try_from(merged_bytes).unwrap_or(u64::MAX) > self.limits.manifest_bytes {
                return Err(Error::TooLarge);
            }
            let page: Value = serde_json::from_slice(&body)
                .map_err(|_invalid| Error::Junk("an index of referrers that is not JSON"))?;
            match (&mut merged, first.is_some()) {
                (Some(merged), _) => append(merged, page)?,
                (None, _) => merged = Some(page),
            }
            let only = first.is_none() && !more;
            first.get_or_insert(body);
            if only {
                // One page goes on unchanged, byte for byte.
                return Ok(first);
            }
            if !more {
                break;
            }
        }
        Ok(merged.map(|merged| merged.to_string().into()))
    }

    /// Can `who` see a page of tags?
    pub(super) async fn visible_list(
        &self,
        who: &Arc<Credential>,
        repository: &RepositoryName,
        turn: Turn<'_>,
    ) -> Result<(), Error> {
        let mut pages = self.pages(repository, "tags/list");
        pages.set_query(Some(PAGE_OF_ONE));
        let ask = self.list_ask(Kind::Tags, repository, &pages.url, turn);
        let arrival = self.ask_as(who, &ask, turn.deadline).await?;
        let body = self.list_body(Kind::Tags, arrival, turn.deadline).await?;
        tags_of(&body).map(drop)
    }

    fn list_ask<'a>(
        &self,
        kind: Kind,
        repository: &'a RepositoryName,
        url: &Url,
        turn: Turn<'a>,
    ) -> Ask<'a> {
        let (need, accept) = match kind {
            Kind::Tags => (Need::List, None),
            _ => (Need::Pull, Some(MediaType::OCI_INDEX)),
        };
        Ask {
            repository,
            need,
            kind,
            method: Method::GET,
            url: url.clone(),
            accept,
            range: BlobRange::WHOLE,
            hops: Hops::SameOrigin,
            turn,
        }
    }

    fn pages(&self, repository: &RepositoryName, rest: &str) -> Pages {
        Pages { url: self.url(repository, rest), ns: self.ns.clone(), seen: HashSet::new() }
    }

    async fn list_body(
        &self,
        kind: Kind,
        arrival: Arrival,
        deadline: Deadline,
    ) -> Result<Bytes, Error> {
        if arrival.status() != StatusCode::OK {
            return Err(Error::Junk("a list that is not 200"));
        }
        self.small_body(kind, arrival.response, deadline).await
    }
}

/// Where the next page is.
struct Pages {
    url: Url,
    /// The registry that a mirror or parent must know to be meant, whatever its Link says.
    ns: Option<String>,
    seen: HashSet<String>,
}

impl Pages {
    fn set_query(&mut self, query: Option<&str>) {
        self.url.set_query(with_ns(query, self.ns.as_deref()).as_deref());
    }

    /// Goes on to the next page if the answer has one that may be asked and was not asked before.
    fn advance(&mut self, arrival: &Arrival) -> bool {
        let Some(query) = next_query(arrival.response.headers(), &self.url) else {
            return false;
        };
        let asked_now = self.url.query().map(str::to_owned);
        self.seen.extend(asked_now);
        self.set_query(Some(&query));
        self.seen.insert(self.url.query().unwrap_or_default().to_owned())
    }
}

/// The query of the `rel="next"` link (RFC 8288), if the link stays at the origin of `asked`.
pub(super) fn next_query(headers: &HeaderMap, asked: &Url) -> Option<String> {
    let values = headers.get_all(LINK).iter();
    let texts = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let target = texts.into_iter().find_map(|text| next_target(&text).map(str::to_owned))?;
    let next = asked.join(&target).ok()?;
    if next.origin() != asked.origin() {
        let host = next.host_str().unwrap_or_default();
        tracing::warn!(
            asked = asked.host_str(),
            link = host,
            "a list goes on at another origin, which is not asked"
        );
        return None;
    }
    next.query().map(str::to_owned)
}

/// The target of the first link-value whose relation is `next`, or that has none. Targets come unescaped, with commas and spaces.
fn next_target(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        let (_before, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let end = after.find(",").map_or(after.len(), |comma| {
            // A comma ends the link-value only if another target follows; parameters may hold commas.
            after[comma..].find('<').map_or(after.len(), |_| comma)
        });
        let (parameters, following) = after.split_at(end);
        if is_next(parameters) {
            return Some(target);
        }
        rest = following;
    }
}

fn is_next(parameters: &str) -> bool {
    let relation = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim()
            .eq_ignore_ascii_case("rel")
            .then(|| value.trim().trim_matches('"').to_ascii_lowercase())
    });
    relation.is_none_or(|relation| relation.split_ascii_whitespace().any(|word| word == "next"))
}

fn tags_of(body: &[u8]) -> Result<Vec<String>, Error> {
    const NO_LIST: Error = Error::Junk("a list of tags that is none");
    let Ok(Value::Object(mut list)) = serde_json::from_slice(body) else {
        return Err(NO_LIST);
    };
    match list.remove("tags") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(names)) => Ok(names
            .into_iter()
            .filter_map(|name| match name {
                Value::String(name) => Some(name),
                _ => None,
            })
            .collect()),
        Some(_) => Err(NO_LIST),
    }
}

/// Adds the descriptors of one more page.
fn append(merged: &mut Value, mut page: Value) -> Result<(), Error> {
    let more = page.get_mut("manifests").and_then(Value::as_array_mut);
    let all = merged.get_mut("manifests").and_then(Value::as_array_mut);
    match (all, more) {
        (Some(all), Some(more)) => all.append(more),
        (_, None) => {}
        (None, Some(_)) => return Err(Error::Junk("an index of referrers without manifests")),
    }
    Ok(())
}

fn is_index(headers: &HeaderMap) -> bool {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = text.and_then(|text| text.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case(MediaType::OCI_INDEX))
}

fn refuses_page_size(failure: &Failure) -> bool {
    matches!(failure.status, Some(StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED))
}

/// Any refusal of the endpoint, but no outage, no limit and no trouble of our credential.
fn is_unsupported(failure: &Failure) -> bool {
    match &failure.error {
        Error::Absent | Error::Denied => true,
        Error::Unreachable(Cause::Status(status)) => *status < 500 || *status == 501,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn next(link: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(LINK, HeaderValue::from_bytes(link.as_bytes()).unwrap());
        next_query(&headers, &"https://r.example/v2/a/tags/list?n=2".parse().unwrap())
    }

    #[test]
    fn links_of_every_form() {
        let cases = [
            (r#"</v2/a/tags/list?last=b&n=2>; rel="next""#, Some("last=b&n=2")),
            (
                r#"<https://r.example/v2/a/tags/list?next_page=x%3D>; rel="next""#,
                Some("next_page=x%3D"),
            ),
            ("</v2/lost/prefix/tags/list?last=b>; rel=next", Some("last=b")),
            (r#"</v2/a/tags/list?last=b c&n=2>; REL="Next""#, Some("last=b%20c&n=2")),
            ("<?last=b>", Some("last=b")),
            (r#"</x?last=a>; rel="prev", </x?last=b>; title="a,b"; rel="next""#, Some("last=b")),
            (r#"</x?last=a,b>; rel="next""#, Some("last=a,b")),
            (r#"<https://evil.example/v2/a/tags/list?last=b>; rel="next""#, None),
            (r#"<http://r.example/v2/a/tags/list?last=b>; rel="next""#, None),
            (r#"</v2/a/tags/list>; rel="next""#, None),
            (r#"</x?last=a>; rel="prev""#, None),
            ("", None),
            ("<", None),
            ("<>;", Some("n=2")),
        ];
        for (link, want) in cases {
            assert_eq!(next(link).as_deref(), want, "{link}");
        }
    }

    #[test]
    fn lists_of_tags_in_the_wild() {
        assert_eq!(
            tags_of(br#"{"name":"a","tags":["x","y"],"manifest":{}}"#).unwrap(),
            vec!["x", "y"]
        );
        for empty in [r#"{"tags":null}"#, "{}", r#"{"tags":[]}"#, r#"{"tags":[1,null]}"#] {
            assert!(tags_of(empty.as_bytes()).unwrap().is_empty(), "{empty}");
        }
        for junk in ["", "true", "[]", r#"{"tags":"x"}"#, "<html>"] {
            assert!(tags_of(junk.as_bytes()).is_err(), "{junk}");
        }
    }

    #[test]
    fn only_an_index_is_an_index() {
        let of = |text| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(text));
            is_index(&headers)
        };
        assert!(of("application/vnd.oci.image.index.v1+json"));
        assert!(of("application/vnd.oci.image.index.v1+json; charset=utf-8"));
        assert!(!of("application/json") && !of("text/html") && !is_index(&HeaderMap::new()));
    }

    proptest! {
        #[test]
        fn no_link_panics(link in r#"(<|>|;|,|rel=|next|"|\?|/x| |é){0,30}"#) {
            let _target = next_target(&link);
        }
    }
}
