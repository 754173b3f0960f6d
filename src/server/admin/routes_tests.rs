//! What can be asked, and what is refused before anything is touched.

use super::*;

fn asked(method: &str, uri: &str) -> Result<Asked, Unread> {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    read(method, path, query)
}

fn image(text: &str) -> String {
    text.to_owned()
}

#[test]
fn every_path_has_its_methods_and_its_parameters() {
    for (method, uri, want) in [
        ("GET", "/api/v1/", Asked::About),
        ("HEAD", "/api/v1", Asked::About),
        ("GET", "/api/v1/images", Asked::Images { within: None, after: None, limit: 100 }),
        ("GET", "/api/v1/inspect?image=nginx%3A1", Asked::Inspect { image: image("nginx:1") }),
        (
            "GET",
            "/api/v1/history?image=a&before=7&limit=3",
            Asked::History { image: image("a"), before: Some(7), limit: 3 },
        ),
        (
            "GET",
            "/api/v1/locked?image=a&image=b",
            Asked::Locked { images: vec![image("a"), image("b")] },
        ),
        (
            "DELETE",
            "/api/v1/images?image=a:b&force=true",
            Asked::DeleteImage { image: image("a:b"), force: true },
        ),
        ("DELETE", "/api/v1/pins?id=3", Asked::RemoveRule { kind: Kind::Pin, which: Which::Id(3) }),
        ("POST", "/api/v1/verify", Asked::Verify { repair: false }),
        ("POST", "/api/v1/verify?repair=true", Asked::Verify { repair: true }),
        ("POST", "/api/v1/gc?dry_run=true", Asked::Collect { dry_run: true }),
        (
            "POST",
            "/api/v1/purge?within=ghcr.io",
            Asked::Purge { within: image("ghcr.io"), extent: None },
        ),
    ] {
        assert_eq!(asked(method, uri), Ok(want), "{method} {uri}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    for uri in
        ["/", "/v2/", "/api/v2/verify", "/api/v1verify", "/api/v1/verify/", "/api/v1//reindex"]
    {
        assert_eq!(asked("POST", uri), Err(Unread::NoSuchPath), "{uri}");
    }
    for (method, uri, allowed) in [
        ("GET", "/api/v1/verify", "POST"),
        ("PUT", "/api/v1/pins", "GET, HEAD, POST, DELETE"),
        ("POST", "/api/v1/usage", "GET, HEAD"),
        ("HEAD", "/api/v1/blobs", "DELETE"),
    ] {
        assert_eq!(asked(method, uri), Err(Unread::Method(allowed.to_owned())), "{method} {uri}");
    }
}

#[test]
fn parameters_that_are_not_understood_are_named() {
    for (method, uri, named) in [
        ("POST", "/api/v1/verify?repair", "repair"),
        ("POST", "/api/v1/verify?repair=", "repair"),
        ("POST", "/api/v1/verify?repair=yes", "repair"),
        ("POST", "/api/v1/verify?repair=true&repair=false", "repair"),
        ("POST", "/api/v1/verify?repiar=true", "repiar"),
        ("POST", "/api/v1/reindex?repair=true", "repair"),
        ("GET", "/api/v1/inspect", "image"),
        ("GET", "/api/v1/inspect?image=a&image=b", "image"),
        ("GET", "/api/v1/images?limit=0", "limit"),
        ("GET", "/api/v1/images?limit=1001", "limit"),
        ("GET", "/api/v1/history?image=a&before=-1", "before"),
        ("GET", "/api/v1/locked", "image"),
        ("POST", "/api/v1/pins?scope=a&until=yesterday", "until"),
        ("POST", "/api/v1/pins?scope=a&for=-5d", "for"),
        ("POST", "/api/v1/pins?scope=a&for=5d&until=2030-01-01", "until"),
        ("DELETE", "/api/v1/freezes", "scope"),
        ("DELETE", "/api/v1/freezes?id=1&scope=a", "scope"),
        ("DELETE", "/api/v1/images?image=a:b&force=1", "force"),
    ] {
        match asked(method, uri) {
            Err(Unread::Query(message)) => assert!(message.contains(named), "{uri}: {message}"),
            other => panic!("{uri}: {other:?}"),
        }
    }
}

#[test]
fn no_route_stands_twice() {
    for (index, route) in ROUTES.iter().enumerate() {
        let twin = ROUTES[..index]
            .iter()
            .any(|other| other.path == route.path && other.method == route.method);
        assert!(!twin, "{} {}", route.method, route.path);
    }
}
