//! What would happen now if a client asked, and why; and asking upstream on order.

use std::time::Duration;

use super::error::{Error, Reason};
use super::image::{self, Image};
use super::inspect::Sums;
use super::model::{EndpointInfo, Explanation, Refreshed};
use super::service::{Desk, Standing};
use crate::clock::Timestamp;
use crate::content::HOLDERS_MAX;
use crate::metadata::TagRecord;
use crate::oci::{Digest, Tag};
use crate::proxy::{self, Outlook, Prospect, Refreshing};
use crate::registry::locate::Repository;

/// A verdict in a word, and what there is to say about it.
struct Told {
    verdict: &'static str,
    sentences: Vec<String>,
    fresh_until: Option<Timestamp>,
}

impl Desk {
    /// What would happen now if a client asked for the image, and why. Asks nobody.
    pub async fn explain(&self, text: &str) -> Result<Explanation, Error> {
        let image = self.image(text)?.meant();
        let Some(repository) = &image.repository else {
            return Err(image::not_configured(image.key.upstream.as_str()));
        };
        let proxied = repository.proxied();
        let standing = match &image.tag {
            Some(tag) => self.standing(&image.key, tag).await?,
            None => None,
        };
        let digest = match &image.digest {
            Some(digest) => {
                // A digest that was never the tag's is refused like anywhere else; one that nobody knows may come.
                let known = self.metadata().revision(&image.key, digest).await?.is_some();
                if known && image.tag.is_some() {
                    Some(self.revision_of(&image).await?)
                } else {
                    Some(*digest)
                }
            }
            None => standing.as_ref().and_then(Standing::digest),
        };
        let (sums, known) = self.stored(&image, digest.as_ref()).await?;
        let (mut told, rule) = match (&image.tag, &image.digest) {
            (Some(tag), None) => {
                let outlook = self.registry().proxy().outlook(proxied, tag).await;
                let outlook = outlook.map_err(|_store| image::unreadable())?;
                let rule = outlook.rule.clone();
                (self.of_tag(&image, outlook, standing.as_ref()), rule)
            }
            _ => (self.of_digest(repository, known).await, None),
        };
        told.sentences.push(where_it_is(known, &sums));
        told.sentences.extend(self.why_offline(&image.key.upstream));
        if self.settings().at_rest {
            told.sentences.push("No server runs on this store, so nobody is asked; this is what the store alone says.".to_owned());
        }
        let holds = match &digest {
            Some(digest) => {
                let holders = self.metadata().holders(digest, HOLDERS_MAX).await?;
                self.holds(&holders, digest)
            }
            None => Vec::new(),
        };
        let endpoints = proxied.upstream().endpoints().into_iter();
        Ok(Explanation {
            image: image.to_string(),
            upstream: image.key.upstream.to_string(),
            endpoints: endpoints
                .map(|(url, role, in_use)| EndpointInfo { url, role: role.to_owned(), in_use })
                .collect(),
            offline: self.registry().proxy().is_offline(proxied),
            verdict: told.verdict.to_owned(),
            sentences: told.sentences,
            fresh_until: told.fresh_until,
            rule,
            digest: digest.map(|digest| digest.to_string()),
            bytes_present: sums.bytes_present,
            missing: sums.missing,
            holds,
        })
    }

    /// What of a revision is here; the flag tells whether its manifest is.
    async fn stored(&self, image: &Image, digest: Option<&Digest>) -> Result<(Sums, bool), Error> {
        let Some(digest) = digest else {
            return Ok((Sums::default(), false));
        };
        let revision = self.metadata().revision(&image.key, digest).await?;
        Ok((self.sums_of(image, digest).await?, revision.is_some_and(|revision| revision.present)))
    }

    /// A tag, by the policy and what is recorded.
    fn of_tag(&self, image: &Image, outlook: Outlook, standing: Option<&Standing>) -> Told {
        let frozen = standing.and_then(|standing| Some((standing.frozen.as_ref()?, standing)));
        if let (Some(((since, Some(entry)), standing)), false) =
            (frozen, matches!(outlook.prospect, Prospect::Denied(_) | Prospect::DeniedSince(_)))
        {
            let mut sentences = vec![format!("{image} is frozen since {since}.")];
            if entry.digest != standing.record.digest {
                sentences.push(match standing.record.digest {
                    Some(digest) => {
                        format!("Upstream moved it to {digest} at {}.", standing.record.moved)
                    }
                    None => format!("Upstream has no such tag since {}.", standing.record.moved),
                });
            }
            return Told { verdict: "frozen", sentences, fresh_until: None };
        }
        let now = self.now();
        let confirmed = standing.map(|standing| {
            format!("Upstream last confirmed it at {}.", standing.record.confirmed)
        });
        let Told { verdict, mut sentences, fresh_until } = foretell(outlook.prospect, now);
        if verdict == "refused"
            && let Some(((since, Some(_entry)), _)) = frozen
        {
            sentences.push(format!("It is frozen since {since}, which is no way around that."));
        }
        if !matches!(verdict, "refused" | "absent" | "fetch") {
            sentences.extend(confirmed);
        }
        if let Some(rule) = outlook.rule {
            sentences.push(format!("The tag rule {rule:?} of the upstream is in force."));
        }
        Told { verdict, sentences, fresh_until }
    }

    /// A digest never changes, so only its bytes matter.
    async fn of_digest(&self, repository: &Repository, present: bool) -> Told {
        let (proxy, proxied) = (self.registry().proxy(), repository.proxied());
        let (verdict, sentence) = match (proxy.barred(proxied).await, present) {
            (Some(why), _) => ("refused", format!("It is refused: {why}.")),
            (None, true) => ("fresh", "A digest never changes: it is served from here.".to_owned()),
            (None, false) if proxy.is_offline(proxied) => {
                ("refused", "It is not here, and the upstream is not asked (offline).".to_owned())
            }
            (None, false) => {
                ("fetch", "It is not here and would be fetched by its digest.".to_owned())
            }
        };
        Told { verdict, sentences: vec![sentence], fresh_until: None }
    }

    /// Asks upstream for a tag now.
    pub async fn refresh(&self, text: &str) -> Result<Refreshed, Error> {
        let image = self.image(text)?.meant();
        let Some(repository) = &image.repository else {
            return Err(image::not_configured(image.key.upstream.as_str()));
        };
        let (Some(tag), None) = (&image.tag, &image.digest) else {
            let message = format!("{image} names a revision, which never changes; name a tag");
            return Err(Error::new(Reason::Image, message));
        };
        if self.settings().at_rest {
            let message = "no server runs on this store, so upstream cannot be asked; start roadstead, and refresh then";
            return Err(Error::new(Reason::Offline, message));
        }
        let record = self.metadata().tag(&image.key, tag).await?;
        let checked = self.registry().proxy().check_now(repository.proxied(), tag).await;
        let checked = checked.map_err(|error| refused(&image, &error))?;
        tracing::info!(%image, "a tag was checked on order");
        Ok(self.refreshed(&image, tag, record, checked))
    }

    fn refreshed(
        &self,
        image: &Image,
        tag: &Tag,
        record: Option<TagRecord>,
        checked: Refreshing,
    ) -> Refreshed {
        // A tag that was gone and is back was seen before.
        let (is_new, before) = (record.is_none(), record.and_then(|record| record.digest));
        let frozen = self.rules().frozen(&image.key, tag, self.now());
        let noted = frozen
            .map(|since| format!("the tag is frozen since {since}: what it was then is served"));
        let (now, outcome, detail) = match checked {
            Refreshing::Confirmed(digest) => (Some(digest), "confirmed", noted),
            Refreshing::Moved(digest) if before == Some(digest) => {
                (Some(digest), "confirmed", noted)
            }
            Refreshing::Moved(digest) if is_new => (Some(digest), "first_seen", noted),
            Refreshing::Moved(digest) => (Some(digest), "moved", noted),
            Refreshing::Absent => (None, "absent", noted),
            Refreshing::Denied(why) => (None, "denied", Some(why)),
            Refreshing::Unreachable(why) => (before, "unreachable", Some(why)),
        };
        Refreshed {
            image: image.to_string(),
            before: before.map(|digest| digest.to_string()),
            now: now.map(|digest| digest.to_string()),
            outcome: outcome.to_owned(),
            detail,
        }
    }
}

fn refused(image: &Image, error: &proxy::Error) -> Error {
    match error {
        proxy::Error::Offline => {
            let upstream = &image.key.upstream;
            let message = format!(
                "{upstream} is offline, by the configuration or because it was switched off (`roadstead offline --show`), so it is not asked"
            );
            Error::new(Reason::Offline, message)
        }
        _ => image::unreadable(),
    }
}

/// A prospect in words.
fn foretell(prospect: Prospect, now: Timestamp) -> Told {
    let told =
        |verdict, sentence: String| Told { verdict, sentences: vec![sentence], fresh_until: None };
    match prospect {
        Prospect::Denied(why) => told("refused", format!("It is refused: {why}.")),
        Prospect::Unknown => told("fetch", "It was never seen here and would be fetched.".to_owned()),
        Prospect::AbsentUntil(then) => {
            told("absent", format!("Upstream has no such tag, and is not asked again before {then}."))
        }
        Prospect::AbsentSince(since) => told(
            "absent",
            format!("Upstream has no such tag since {since}; it would be asked again."),
        ),
        Prospect::DeniedSince(since) => told(
            "refused",
            format!("Upstream denies access to it since {since}; that ends when it says something else."),
        ),
        Prospect::Fresh(Some(left)) => {
            let until = now.plus(left);
            let sentence = format!("It is fresh until {until}: it is served without asking upstream.");
            Told { fresh_until: Some(until), ..told("fresh", sentence) }
        }
        Prospect::Fresh(None) => {
            told("fresh", "It is served without asking upstream: the upstream is offline, or the tag is immutable.".to_owned())
        }
        Prospect::ServedThenChecked(stale_for) => told(
            "stale",
            format!("It is stale for {}, served at once, and checked behind the answer.", time(stale_for)),
        ),
        Prospect::Checked(Some(wait)) => told(
            "check",
            format!("It is stale: upstream is asked, and after {} without an answer what is here is served.", time(wait)),
        ),
        Prospect::Checked(None) => told("check", "Upstream is asked.".to_owned()),
        Prospect::Bridged { failed, stale_for } => {
            let when = failed.map(|failed| format!(" at {failed}")).unwrap_or_default();
            told("stale", format!("The last check failed{when}; it is served although it is stale for {}.", time(stale_for)))
        }
        Prospect::Refused("offline") => {
            told("refused", "Nothing is known of it, and the upstream is not asked (offline).".to_owned())
        }
        Prospect::Refused(why) => told("refused", format!("It cannot be served: {why}.")),
    }
}

fn where_it_is(present: bool, sums: &Sums) -> String {
    let Sums { bytes_present, missing, .. } = sums;
    match (present, missing) {
        (true, 0) => format!("All that is known of it is here ({bytes_present} bytes)."),
        (true, missing) => format!(
            "Its manifest and {bytes_present} bytes are here; {missing} of its objects are not, and are fetched when they are asked for."
        ),
        (false, _) => "Its manifest is not here.".to_owned(),
    }
}

/// Whole seconds, which is what people want to know.
fn time(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prospect_has_its_word() {
        let (now, second) = (Timestamp::from_millis(5000), Duration::from_secs(1));
        for (prospect, verdict) in [
            (Prospect::Denied("x".to_owned()), "refused"),
            (Prospect::Unknown, "fetch"),
            (Prospect::AbsentUntil(now), "absent"),
            (Prospect::AbsentSince(now), "absent"),
            (Prospect::DeniedSince(now), "refused"),
            (Prospect::Fresh(Some(second)), "fresh"),
            (Prospect::Fresh(None), "fresh"),
            (Prospect::ServedThenChecked(second), "stale"),
            (Prospect::Checked(Some(second)), "check"),
            (Prospect::Bridged { failed: None, stale_for: second }, "stale"),
            (Prospect::Refused("offline"), "refused"),
        ] {
            assert_eq!(foretell(prospect.clone(), now).verdict, verdict, "{prospect:?}");
        }
        assert_eq!(
            foretell(Prospect::Fresh(Some(second)), now).fresh_until,
            Some(now.plus(second))
        );
    }

    #[test]
    fn it_says_what_is_here() {
        let sums = |missing| Sums { bytes_present: 7, bytes_known: 9, missing };
        assert!(where_it_is(true, &sums(0)).starts_with("All"));
        assert!(where_it_is(true, &sums(2)).contains("2 of its objects"));
        assert!(where_it_is(false, &sums(0)).contains("not here"));
    }
}
