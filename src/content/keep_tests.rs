//! Every rule of keeping, and its edges.

use super::keep::*;
use crate::clock::Timestamp;
use crate::metadata::{Holder, Holders, RepositoryKey, Rule, RuleKind, Rules, TagLink};
use crate::oci::Digest;

const NOW: Timestamp = Timestamp::from_millis(1_000_000);

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn repository(name: &str) -> RepositoryKey {
    let (upstream, name) = name.split_once('/').unwrap();
    RepositoryKey { upstream: upstream.parse().unwrap(), name: name.parse().unwrap() }
}

fn digest() -> Digest {
    Digest::sha256_of(b"revision")
}

/// A tag that points there from `since` to `until`, with so many newer revisions.
fn link(tag: &str, since: i64, until: Option<i64>, newer: u32) -> TagLink {
    TagLink {
        tag: tag.parse().unwrap(),
        since: at(since),
        until: until.map(at),
        newer,
        first: false,
        last_before_absent: false,
    }
}

fn first(link: TagLink) -> TagLink {
    TagLink { first: true, ..link }
}

fn gone(link: TagLink) -> TagLink {
    TagLink { last_before_absent: true, ..link }
}

fn holder(name: &str, links: Vec<TagLink>) -> Holder {
    Holder {
        repository: repository(name),
        revision: digest(),
        unlinked: None,
        over_subject: false,
        sets: Vec::new(),
        links,
    }
}

fn held(revisions: Vec<Holder>) -> Holders {
    let mut upstreams: Vec<_> =
        revisions.iter().map(|holder| holder.repository.upstream.clone()).collect();
    upstreams.dedup();
    Holders { revisions, upstreams, more: false }
}

fn rule(kind: RuleKind, scope: &str, since: i64, until: Option<i64>) -> Rule {
    let scope = scope.parse().unwrap();
    Rule { id: 7, kind, scope, since: at(since), until: until.map(at), reason: String::new() }
}

fn rules(all: &[(RuleKind, &str, i64, Option<i64>)]) -> Rules {
    let all = all.iter().map(|(kind, scope, since, until)| rule(*kind, scope, *since, *until));
    Rules::new(all.collect(), 1)
}

fn upstream(name: &str) -> UpstreamKeep {
    UpstreamKeep {
        name: name.parse().unwrap(),
        families: Vec::new(),
        offline: false,
        revisions: 0,
        rules: Vec::new(),
    }
}

/// `free`, `last`, or the kind of what keeps it.
fn word(holders: &Holders, rules: &Rules, policy: &KeepPolicy) -> &'static str {
    match verdict(holders, rules, policy, NOW) {
        KeepVerdict::Free => "free",
        KeepVerdict::Last => "last",
        KeepVerdict::Kept(hold) => {
            assert!(!hold.to_string().is_empty());
            hold.by()
        }
    }
}

#[test]
fn a_pin_keeps_what_it_covers() {
    let nginx = |links| held(vec![holder("docker.io/library/nginx", links)]);
    let current = || nginx(vec![link("1.27", 10, None, 0)]);
    let past = || nginx(vec![link("1.27", 10, Some(20), 1)]);
    let by_digest = format!("docker.io/library/nginx@{}", digest());
    let other_digest = format!("docker.io/library/nginx@{}", Digest::sha256_of(b"other"));
    let table: &[(&str, Option<i64>, Holders, &str)] = &[
        ("docker.io/library/nginx:1.27", None, current(), "pin"),
        ("docker.io/library/nginx:1.*", None, current(), "pin"),
        ("docker.io/library/nginx:2.*", None, current(), "free"),
        // A pin of a tag follows the tag.
        ("docker.io/library/nginx:1.27", None, past(), "free"),
        // Unless there is nothing to follow, because the tag is gone upstream.
        (
            "docker.io/library/nginx:1.27",
            None,
            nginx(vec![gone(link("1.27", 10, Some(20), 0))]),
            "pin",
        ),
        (&by_digest, None, past(), "pin"),
        (&by_digest, None, nginx(vec![]), "pin"),
        (&other_digest, None, current(), "free"),
        ("docker.io/library/nginx", None, past(), "pin"),
        ("docker.io/library/*", None, nginx(vec![]), "pin"),
        ("docker.io", None, nginx(vec![]), "pin"),
        ("ghcr.io", None, current(), "free"),
        ("docker.io/library/redis", None, current(), "free"),
        // Until is the first moment at which it keeps no more.
        ("docker.io", Some(1_000_001), current(), "pin"),
        ("docker.io", Some(1_000_000), current(), "free"),
        ("docker.io", Some(5), current(), "free"),
    ];
    for (scope, until, holders, wanted) in table {
        let rules = rules(&[(RuleKind::Pin, scope, 0, *until)]);
        assert_eq!(word(holders, &rules, &KeepPolicy::default()), *wanted, "{scope} {until:?}");
    }
}

#[test]
fn one_pinned_holder_of_many_is_enough_and_says_which() {
    let holders = held(vec![
        holder("docker.io/library/redis", vec![link("7", 1, None, 0)]),
        holder("ghcr.io/a/b", vec![link("v1", 1, None, 0)]),
    ]);
    let rules = rules(&[(RuleKind::Pin, "ghcr.io/a/b:v1", 0, None)]);
    let KeepVerdict::Kept(hold) = verdict(&holders, &rules, &KeepPolicy::default(), NOW) else {
        panic!("it is pinned");
    };
    let text = hold.to_string();
    assert!(text.contains("pin 7") && text.contains("ghcr.io/a/b@sha256:"), "{text}");
}

#[test]
fn a_frozen_tag_keeps_what_it_serves() {
    let table = [
        ("current at that moment", link("v1", 10, Some(200), 1), "freeze"),
        ("current since that very moment", link("v1", 100, Some(200), 1), "freeze"),
        ("current until that very moment", link("v1", 10, Some(100), 1), "free"),
        ("current then and now", link("v1", 10, None, 0), "freeze"),
        ("the first after", first(link("v1", 150, Some(200), 1)), "freeze"),
        ("the first, before that one", first(link("v1", 10, Some(50), 2)), "free"),
        ("a later one", link("v1", 150, None, 0), "free"),
        ("another tag", link("v2", 10, None, 0), "free"),
        ("current then, absent now", gone(link("v1", 10, Some(200), 0)), "freeze"),
        ("absent before", gone(link("v1", 10, Some(50), 0)), "last"),
    ];
    let rules_now = rules(&[(RuleKind::Freeze, "docker.io/a/b:v1", 100, None)]);
    for (name, link, wanted) in table {
        let holders = held(vec![holder("docker.io/a/b", vec![link])]);
        assert_eq!(word(&holders, &rules_now, &KeepPolicy::default()), wanted, "{name}");
    }
    // Of several freezes the earliest counts, and one that is over does not.
    let holders = held(vec![holder("docker.io/a/b", vec![link("v1", 10, Some(50), 1)])]);
    let two = rules(&[
        (RuleKind::Freeze, "docker.io", 100, None),
        (RuleKind::Freeze, "docker.io/a/b:*", 20, None),
    ]);
    assert_eq!(word(&holders, &two, &KeepPolicy::default()), "freeze");
    let over = rules(&[(RuleKind::Freeze, "docker.io", 20, Some(1_000_000))]);
    assert_eq!(word(&holders, &over, &KeepPolicy::default()), "free");
}

#[test]
fn the_last_revisions_are_kept_by_upstream_and_by_rule() {
    let rules_of = |all: &[(&str, Option<u32>)]| {
        all.iter()
            .map(|(pattern, keep)| KeepRule { pattern: pattern.parse().unwrap(), revisions: *keep })
            .collect()
    };
    let policy = KeepPolicy {
        offline: false,
        upstreams: vec![
            UpstreamKeep {
                revisions: 2,
                rules: rules_of(&[("v*", Some(3)), ("a/b:nightly", Some(0)), ("edge", None)]),
                ..upstream("docker.io")
            },
            UpstreamKeep {
                families: vec!["*.pkg.dev".parse().unwrap()],
                revisions: 1,
                ..upstream("pkg.dev")
            },
        ],
    };
    let table = [
        ("docker.io/a/b", link("latest", 1, None, 0), "last_revisions"),
        ("docker.io/a/b", link("latest", 1, Some(2), 1), "last_revisions"),
        ("docker.io/a/b", link("latest", 1, Some(2), 2), "free"),
        ("docker.io/a/b", link("v1", 1, Some(2), 2), "last_revisions"),
        ("docker.io/a/b", link("v1", 1, Some(2), 3), "free"),
        ("docker.io/a/b", link("nightly", 1, None, 0), "free"),
        ("docker.io/a/c", link("nightly", 1, None, 0), "last_revisions"),
        ("docker.io/a/b", link("edge", 1, Some(2), 1), "last_revisions"),
        ("docker.io/a/b", link("edge", 1, Some(2), 2), "free"),
        ("docker.io/a/b", gone(link("latest", 1, Some(2), 0)), "last_revisions"),
        ("europe-docker.pkg.dev/a/b", link("v1", 1, None, 0), "last_revisions"),
        ("x.europe-docker.pkg.dev/a/b", link("v1", 1, None, 0), "free"),
        ("quay.io/a/b", link("v1", 1, None, 0), "free"),
    ];
    for (name, link, wanted) in table {
        let shown = format!("{name} {link:?}");
        let holders = held(vec![holder(name, vec![link])]);
        assert_eq!(word(&holders, &Rules::default(), &policy), wanted, "{shown}");
    }
}

#[test]
fn what_cannot_be_fetched_again_stays_or_goes_last() {
    let offline = KeepPolicy {
        offline: false,
        upstreams: vec![UpstreamKeep { offline: true, ..upstream("docker.io") }],
    };
    let everything = KeepPolicy { offline: true, upstreams: Vec::new() };
    let online = KeepPolicy::default();
    let only_member = |name: &str| Holders {
        revisions: Vec::new(),
        upstreams: vec![name.parse().unwrap()],
        more: false,
    };
    let absent = || gone(link("v1", 10, Some(20), 0));
    let table = [
        ("nothing holds it", Holders::default(), &online, "free"),
        ("nothing holds it, offline", Holders::default(), &everything, "offline"),
        ("a member there", only_member("docker.io"), &offline, "offline"),
        ("a member elsewhere", only_member("ghcr.io"), &offline, "free"),
        ("a revision there", held(vec![holder("docker.io/a/b", vec![])]), &offline, "offline"),
        ("gone", held(vec![holder("ghcr.io/a/b", vec![absent()])]), &online, "last"),
        (
            "gone here and current there",
            held(vec![
                holder("ghcr.io/a/b", vec![absent()]),
                holder("ghcr.io/a/c", vec![link("v2", 1, None, 0)]),
            ]),
            &online,
            "free",
        ),
        (
            "gone here and past there",
            held(vec![
                holder("ghcr.io/a/b", vec![absent()]),
                holder("ghcr.io/a/c", vec![link("v2", 1, Some(5), 1)]),
            ]),
            &online,
            "last",
        ),
        (
            "needed by more than were looked at",
            Holders { more: true, ..only_member("ghcr.io") },
            &online,
            "shared",
        ),
    ];
    for (name, holders, policy, wanted) in table {
        assert_eq!(word(&holders, &Rules::default(), policy), wanted, "{name}");
    }
}

#[test]
fn a_revision_may_leave_a_tag_unless_a_rule_wants_this_very_one() {
    let name = "docker.io/library/nginx";
    let (current, past) = (link("1.27", 10, None, 0), link("1.27", 10, Some(20), 1));
    let by_digest = format!("{name}@{}", digest());
    let tag = "docker.io/library/nginx:1.27";
    let table: &[(RuleKind, &str, i64, TagLink, bool)] = &[
        (RuleKind::Pin, tag, 0, current.clone(), true),
        (RuleKind::Pin, tag, 0, past.clone(), false),
        (RuleKind::Pin, tag, 0, gone(past.clone()), true),
        // What another tag points at now is no matter for this one.
        (RuleKind::Pin, tag, 0, link("latest", 10, None, 0), false),
        (RuleKind::Pin, "docker.io/library/nginx:2.*", 0, current.clone(), false),
        (RuleKind::Pin, name, 0, past.clone(), true),
        (RuleKind::Pin, &by_digest, 0, past.clone(), true),
        (RuleKind::Freeze, tag, 15, past.clone(), true),
        (RuleKind::Freeze, tag, 25, past.clone(), false),
        (RuleKind::Freeze, tag, 25, current.clone(), true),
        (RuleKind::Freeze, tag, 5, current, false),
    ];
    for (kind, scope, since, link, wanted) in table {
        let rules = rules(&[(*kind, scope, *since, None)]);
        let holder = holder(name, vec![link.clone()]);
        let found = rules_on_link(&holder, &"1.27".parse().unwrap(), &rules, NOW);
        assert_eq!(!found.is_empty(), *wanted, "{kind:?} {scope} {since} {link:?}");
    }
}

#[test]
fn a_kept_set_keeps_what_its_members_need() {
    let mut member = holder("docker.io/library/nginx", vec![link("1.27", 10, Some(20), 1)]);
    let rules = rules(&[]);
    let free = held(vec![member.clone()]);
    assert_eq!(word(&free, &rules, &KeepPolicy::default()), "free");
    member.sets = vec!["ci".parse().unwrap(), "demo".parse().unwrap()];
    let kept = held(vec![holder("docker.io/library/redis", vec![]), member]);
    assert_eq!(word(&kept, &rules, &KeepPolicy::default()), "set");
    let KeepVerdict::Kept(hold) = verdict(&kept, &rules, &KeepPolicy::default(), NOW) else {
        panic!("it is kept");
    };
    let text = hold.to_string();
    assert!(text.contains("set ci keeps docker.io/library/nginx@sha256:"), "{text}");
}
