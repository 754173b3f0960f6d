//! Names as people type them, taken apart.

use super::*;

fn digest_text() -> String {
    Digest::sha256_of(b"x").to_string()
}

#[test]
fn a_name_is_taken_apart_as_docker_does() {
    let digest = digest_text();
    let cases = [
        ("nginx", "nginx", None, false),
        ("nginx:1.27", "nginx", Some("1.27"), false),
        ("localhost:5001/a", "localhost:5001/a", None, false),
        ("localhost:5001/a/b:v1", "localhost:5001/a/b", Some("v1"), false),
        (&format!("ghcr.io/o/r@{digest}"), "ghcr.io/o/r", None, true),
        (&format!("a:b@{digest}"), "a", Some("b"), true),
    ];
    for (text, name, tag, has_digest) in cases {
        let parts = split(text).unwrap();
        assert_eq!(parts.name, name, "{text}");
        assert_eq!(parts.tag.as_ref().map(Tag::as_str), tag, "{text}");
        assert_eq!(parts.digest.is_some(), has_digest, "{text}");
    }
}

#[test]
fn what_is_no_name_says_what_is_wanted() {
    let digest = digest_text();
    for text in [
        "",
        ":tag",
        "nginx:",
        "nginx:a b",
        "nginx@",
        "nginx@sha256:abc",
        "nginx@latest",
        &format!("@{digest}"),
        &format!("nginx@{}", digest.to_uppercase()),
        "docker://nginx",
        "https://ghcr.io/a",
        &"a".repeat(IMAGE_BYTES_MAX + 1),
    ] {
        let error = split(text).unwrap_err();
        assert_eq!(error.reason, Reason::Image, "{text}");
        assert!(error.message.contains("[REGISTRY/]REPOSITORY"), "{text}: {error}");
        assert!(error.message.len() < 700, "{} bytes", error.message.len());
    }
}

#[test]
fn a_registry_alone_has_a_host() {
    for text in ["ghcr.io", "localhost", "localhost:5001", "registry.test:5443"] {
        assert!(registry_alone(text).is_some(), "{text}");
    }
    for text in ["nginx", "postgres:16", "nginx:1.27", "a b.c", ""] {
        assert!(registry_alone(text).is_none(), "{text}");
    }
}

#[test]
fn only_a_plain_single_component_gets_the_library() {
    for rest in ["nginx", "nginx:1.*", &format!("nginx@{}", digest_text())] {
        assert!(is_one_name(rest), "{rest}");
    }
    for rest in ["*", "ngin?:1", "library/nginx", "{a,b}", "", ":1"] {
        assert!(!is_one_name(rest), "{rest}");
    }
}

#[test]
fn without_upstreams_every_registry_is_unknown() {
    let none = Upstreams::default();
    let unknown = |error: Error| assert_eq!(error.reason, Reason::UnknownRegistry, "{error}");
    unknown(Image::read("nginx", &none).unwrap_err());
    unknown(scope("ghcr.io/a", &none).unwrap_err());
    unknown(scope("ghcr.io", &none).unwrap_err());
    unknown(scope("postgres:16", &none).unwrap_err());
    // What is here of a registry that is gone can still be looked at.
    let gone = Image::read("old.test/a/b:v1", &none).unwrap();
    assert!(gone.repository.is_none());
    assert_eq!(gone.to_string(), "old.test/a/b:v1");
    unknown(gone.unknown());
    assert_eq!(
        within("old.test", &none).unwrap(),
        (Within::Upstream("old.test".parse().unwrap()), false)
    );
}

#[test]
fn nothing_is_known_of_what_is_not_served_or_was_not_pulled() {
    let upstream: RegistryName = "docker.io".parse().unwrap();
    let key = RepositoryKey { upstream: upstream.clone(), name: "a".parse().unwrap() };
    let reason = |within: Within, configured| nothing_within(&within, configured).reason;
    assert_eq!(reason(Within::Upstream(upstream), false), Reason::UnknownRegistry);
    assert_eq!(reason(Within::Repository(key.clone()), false), Reason::UnknownRegistry);
    assert_eq!(reason(Within::Repository(key), true), Reason::UnknownImage);
}

#[test]
fn a_moment_is_no_image() {
    for name in ["asof-20261101/docker.io/a", "asof-20261101t1200z/a/b", "asof-1"] {
        let error = Image::read(name, &Upstreams::default()).unwrap_err();
        assert_eq!(error.reason, Reason::Image, "{name}");
        assert!(error.message.contains("history"), "{error}");
    }
}
