//! Every table and text for people, from fixed answers.

use super::*;

const NGINX: &str = "docker.io/library/nginx:1.27";

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn now() -> Timestamp {
    at("2026-11-23T10:00:00Z")
}

/// A digest that is told apart by its first digits.
fn digest(first: &str) -> String {
    format!("sha256:{first:0<64}")
}

fn hold(by: &str, what: &str) -> Hold {
    Hold { by: by.to_owned(), what: what.to_owned() }
}

/// Digests are as long as they are; the snapshots would not be read.
fn cut(text: &str) -> String {
    text.replace(&"0".repeat(50), "..")
}

#[test]
fn tags_in_a_list() {
    let tag = TagInfo {
        image: NGINX.to_owned(),
        digest: Some(digest("0123456789abcdef")),
        present: true,
        moved: at("2026-11-01T12:00:00.5Z"),
        confirmed: at("2026-11-23T09:59:30Z"),
        used: Some(at("2026-11-23T07:00:00Z")),
        pinned: true,
        frozen: true,
    };
    let gone = TagInfo {
        image: "ghcr.io/org/app:old".to_owned(),
        digest: None,
        used: None,
        pinned: false,
        frozen: false,
        ..tag.clone()
    };
    let absent = TagInfo { present: false, pinned: false, ..tag.clone() };
    let rows: Vec<_> = [tag, absent, gone].iter().map(|tag| tag_row(tag, now())).collect();
    insta::assert_snapshot!(tag_table().page(&rows), @r"
    IMAGE                         DIGEST               SINCE                               CHECKED   USED     NOTES
    docker.io/library/nginx:1.27  sha256:0123456789ab  2026-11-01 12:00:00Z (21 days ago)  30 s ago  3 h ago  pinned, frozen
    docker.io/library/nginx:1.27  sha256:0123456789ab  2026-11-01 12:00:00Z (21 days ago)  30 s ago  3 h ago  not here, frozen
    ghcr.io/org/app:old           absent upstream      2026-11-01 12:00:00Z (21 days ago)  30 s ago  -
    ");
    assert_eq!(tag_table().page(&[]), "");
}

#[test]
fn a_timeline() {
    let newest = HistoryEntry {
        id: 9,
        digest: Some(digest("bbb")),
        since: at("2026-11-20T12:00:00Z"),
        until: None,
        source: "registry-1.docker.io".to_owned(),
        present: false,
        served: false,
    };
    let absent = HistoryEntry {
        id: 8,
        digest: None,
        since: at("2026-11-19T12:00:00Z"),
        until: Some(at("2026-11-20T12:00:00Z")),
        ..newest.clone()
    };
    let oldest = HistoryEntry {
        id: 7,
        digest: Some(digest("aaa")),
        since: at("2026-11-01T12:00:00Z"),
        until: Some(at("2026-11-19T12:00:00Z")),
        present: true,
        served: true,
        ..newest.clone()
    };
    let rows: Vec<_> =
        [newest, absent, oldest].iter().map(|entry| history_row(entry, now())).collect();
    insta::assert_snapshot!(cut(&history_table().page(&rows)), @r"
    SINCE                               UNTIL                 DIGEST                                                                   SAID BY               NOTES
    2026-11-20 12:00:00Z (2 days ago)   now                   sha256:bbb..00000000000  registry-1.docker.io  not here
    2026-11-19 12:00:00Z (3 days ago)   2026-11-20 12:00:00Z  absent upstream                                                          registry-1.docker.io
    2026-11-01 12:00:00Z (21 days ago)  2026-11-19 12:00:00Z  sha256:aaa..00000000000  registry-1.docker.io  served now
    ");
}

#[test]
fn what_an_image_is_made_of() {
    let part =
        |role: &str, first: &str, size: Option<u64>, state: &str, platform: Option<&str>| Part {
            digest: digest(first),
            role: role.to_owned(),
            media_type: None,
            platform: platform.map(ToOwned::to_owned),
            size,
            state: state.to_owned(),
        };
    let index = Inspection {
        image: NGINX.to_owned(),
        digest: digest("aaa"),
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        tags: vec!["1.27".to_owned(), "latest".to_owned()],
        content: vec![
            part("index", "aaa", Some(1234), "present", None),
            part("manifest", "bbb", Some(2345), "present", Some("linux/amd64")),
            part("manifest", "ccc", None, "absent", Some("linux/arm64/v8")),
            part("layer", "ddd", Some(30 << 20), "removed", None),
        ],
        truncated: true,
        bytes_present: 3579,
        bytes_known: (30 << 20) + 3579,
        complete: false,
        platforms: vec![
            PlatformInfo {
                platform: "linux/amd64".to_owned(),
                digest: digest("bbb"),
                complete: true,
                bytes_present: 2345,
            },
            PlatformInfo {
                platform: "linux/arm64/v8".to_owned(),
                digest: digest("ccc"),
                complete: false,
                bytes_present: 0,
            },
        ],
        holds: vec![hold("pin", "docker.io/library/*"), hold("last_revisions", "1.27")],
    };
    insta::assert_snapshot!(cut(&inspection(&index)), @r"
    image:       docker.io/library/nginx:1.27
    digest:      sha256:aaa..00000000000
    type:        application/vnd.oci.image.index.v1+json
    tags:        1.27, latest
    here:        not all of it, 3.50 KiB of 30.00 MiB known; there is more than was looked at

    PLATFORM        MANIFEST                                                                     HERE  STATE
    linux/amd64     sha256:bbb..00000000000  2.29 KiB  complete
    linux/arm64/v8  sha256:ccc..00000000000       0 B  incomplete

    CONTENT   DIGEST                                                                        SIZE  STATE    PLATFORM
    index     sha256:aaa..00000000000   1.21 KiB  present
    manifest  sha256:bbb..00000000000   2.29 KiB  present  linux/amd64
    manifest  sha256:ccc..00000000000          -  absent   linux/arm64/v8
    layer     sha256:ddd..00000000000  30.00 MiB  removed

    KEPT BY         WHAT
    pin             docker.io/library/*
    last revisions  1.27
    ");
    let plain = Inspection {
        tags: Vec::new(),
        content: vec![part("manifest", "aaa", Some(1234), "present", None)],
        truncated: false,
        complete: true,
        bytes_known: 3579,
        platforms: Vec::new(),
        holds: Vec::new(),
        ..index
    };
    insta::assert_snapshot!(cut(&inspection(&plain)), @r"
    image:       docker.io/library/nginx:1.27
    digest:      sha256:aaa..00000000000
    type:        application/vnd.oci.image.index.v1+json
    tags:        -
    here:        all of it, 3.50 KiB of 3.50 KiB known

    CONTENT   DIGEST                                                                       SIZE  STATE    PLATFORM
    manifest  sha256:aaa..00000000000  1.21 KiB  present
    ");
}

#[test]
fn what_would_happen_now() {
    let stale = Explanation {
        image: NGINX.to_owned(),
        upstream: "docker.io".to_owned(),
        endpoints: vec![
            EndpointInfo {
                url: "https://mirror.gcr.io".to_owned(),
                role: "mirror".to_owned(),
                in_use: false,
            },
            EndpointInfo {
                url: "https://registry-1.docker.io".to_owned(),
                role: "registry".to_owned(),
                in_use: true,
            },
        ],
        offline: false,
        verdict: "check".to_owned(),
        sentences: vec![
            "The tag was confirmed 2 min ago.".to_owned(),
            "Upstream is asked; a client waits 3 s at most.\n".to_owned(),
        ],
        fresh_until: Some(at("2026-11-23T09:59:00Z")),
        rule: Some("1.*".to_owned()),
        digest: Some(digest("aaa")),
        bytes_present: 30 << 20,
        missing: 2,
        holds: vec![hold("tag", NGINX)],
    };
    insta::assert_snapshot!(cut(&explanation(&stale, now())), @r"
    image:       docker.io/library/nginx:1.27
    verdict:     check
                 The tag was confirmed 2 min ago.
                 Upstream is asked; a client waits 3 s at most.�
    upstream:    docker.io
    rule:        1.*
    stale since: 2026-11-23 09:59:00Z (1 min ago)
    digest:      sha256:aaa..00000000000
    here:        30.00 MiB; 2 objects missing

    ASKED IN ORDER                ROLE      NOTES
    https://mirror.gcr.io         mirror    left alone after failures
    https://registry-1.docker.io  registry

    KEPT BY  WHAT
    tag      docker.io/library/nginx:1.27
    ");
    let fetch = Explanation {
        endpoints: Vec::new(),
        offline: true,
        verdict: "fetch".to_owned(),
        sentences: Vec::new(),
        fresh_until: Some(at("2026-11-23T10:00:30Z")),
        rule: None,
        digest: None,
        bytes_present: 0,
        missing: 0,
        holds: Vec::new(),
        ..stale
    };
    insta::assert_snapshot!(explanation(&fetch, now()), @r"
    image:       docker.io/library/nginx:1.27
    verdict:     fetch
    upstream:    docker.io (offline: it is not asked)
    fresh until: 2026-11-23 10:00:30Z (in 30 s)
    digest:      -
    here:        0 B; nothing known is missing
    ");
}

#[test]
fn pins_and_freezes() {
    let pin = RuleInfo {
        id: 7,
        scope: "docker.io/library/*:1.*".to_owned(),
        since: at("2026-11-20T12:00:00Z"),
        until: Some(at("2026-12-24T00:00:00Z")),
        reason: "audit".to_owned(),
    };
    let endless =
        RuleInfo { id: 12, until: None, reason: "\x1b]0;evil\x07".to_owned(), ..pin.clone() };
    let over = RuleInfo { id: 3, until: Some(at("2026-11-21T00:00:00Z")), ..pin.clone() };
    insta::assert_snapshot!(rules(&[pin.clone(), endless.clone(), over], now()), @r"
    ID  SCOPE                    SINCE                              UNTIL                              REASON
     7  docker.io/library/*:1.*  2026-11-20 12:00:00Z (2 days ago)  2026-12-24 00:00:00Z (in 30 days)  audit
    12  docker.io/library/*:1.*  2026-11-20 12:00:00Z (2 days ago)  -                                  �]0;evil�
     3  docker.io/library/*:1.*  2026-11-20 12:00:00Z (2 days ago)  over since 2026-11-21 00:00:00Z    audit
    ");
    assert_eq!(
        rule(RuleKind::Pin, &pin, now()),
        "pinned docker.io/library/*:1.* until 2026-12-24 00:00:00Z (in 30 days)\n"
    );
    assert_eq!(
        rule(RuleKind::Freeze, &endless, now()),
        "frozen docker.io/library/*:1.* until `roadstead unfreeze 12`\n"
    );
}

#[test]
fn what_a_deletion_took_out() {
    let text = deletion(
        &Deletion {
            tags: vec![NGINX.to_owned()],
            revisions: vec![format!("docker.io/library/nginx@{}", digest("aaa"))],
            removed: vec![digest("ddd")],
            incomplete: vec![format!("ghcr.io/org/app@{}", digest("eee"))],
            collected_after: Some(at("2026-11-24T10:00:00Z")),
        },
        now(),
    );
    insta::assert_snapshot!(cut(&text), @r"
    tag gone: docker.io/library/nginx:1.27
    revision gone: docker.io/library/nginx@sha256:aaa..00000000000
    bytes gone: sha256:ddd..00000000000
    incomplete now: ghcr.io/org/app@sha256:eee..00000000000
    the content goes after 2026-11-24 10:00:00Z (in 24 h), unless something holds it
    what is incomplete fetches what it lacks with the next pull that reaches upstream
    ");
    assert_eq!(deletion(&Deletion::default(), now()), "nothing was there to take out\n");
}

#[test]
fn what_asking_upstream_found() {
    let told = |outcome: &str, before: Option<&str>, now: Option<&str>, detail: Option<&str>| {
        refreshed(&Refreshed {
            image: "a.b/c:1".to_owned(),
            before: before.map(ToOwned::to_owned),
            now: now.map(ToOwned::to_owned),
            outcome: outcome.to_owned(),
            detail: detail.map(ToOwned::to_owned),
        })
    };
    let all = [
        told("confirmed", Some("sha256:a"), Some("sha256:a"), None),
        told("moved", Some("sha256:a"), Some("sha256:b"), None),
        told("first_seen", None, Some("sha256:a"), None),
        told("absent", Some("sha256:a"), None, None),
        told("denied", Some("sha256:a"), Some("sha256:a"), Some("403 from registry-1.docker.io")),
        told("unreachable", Some("sha256:a"), Some("sha256:a"), Some("timed out\r\n")),
        told("new_word", None, None, None),
    ];
    insta::assert_snapshot!(all.concat(), @r"
    a.b/c:1 is what it was: sha256:a
    a.b/c:1 moved: sha256:a -> sha256:b
    a.b/c:1 is sha256:a, seen for the first time
    a.b/c:1 is absent upstream (it was sha256:a)
    a.b/c:1: upstream denies it (403 from registry-1.docker.io)
    a.b/c:1: upstream cannot be asked; it stays sha256:a (timed out��)
    a.b/c:1: new_word, -
    ");
}

#[test]
fn what_is_stored() {
    let mut usage_info = UsageInfo {
        objects: 12_345,
        bytes: 20 << 30,
        max_bytes: Some(100 << 30),
        free_bytes: 10 << 30,
        min_free_bytes: 20 << 30,
        doomed: 1,
        upstreams: vec![
            UpstreamUsage {
                upstream: Some("docker.io".to_owned()),
                objects: 12_000,
                bytes: 19 << 30,
                max_bytes: Some(50 << 30),
            },
            UpstreamUsage { upstream: None, objects: 345, bytes: 1 << 30, max_bytes: None },
        ],
    };
    insta::assert_snapshot!(usage(&usage_info), @r"
    REGISTRY   OBJECTS       SIZE       LIMIT
    docker.io    12000  19.00 GiB   50.00 GiB
    (unknown)      345   1.00 GiB           -
    total        12345  20.00 GiB  100.00 GiB

    free on the disk: 10.00 GiB, wanted at least 20.00 GiB: too little
    waiting for their end: 1 object (`roadstead gc --dry-run` tells which)
    ");
    usage_info.doomed = 0;
    usage_info.min_free_bytes = 0;
    assert!(!usage(&usage_info).contains("too little") && !usage(&usage_info).contains("gc"));
}
